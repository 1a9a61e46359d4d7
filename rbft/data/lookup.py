"""Where the video of an id lies below a folder, and that it lies nowhere else.

Ids and paths come from files that others wrote; none of them may lead out of the folder that the
user named.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from rbft.data.tables import shown

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".flv", ".mpeg", ".m4v")


class VideoLookup:
    """Finds videos by id below a folder; every folder is listed once.

    Accepted are `<root>/<id>.<suffix>`, `<root>/<id>/video.<suffix>` and a single video of any
    name in `<root>/<id>/`.

    Args:
        root: The folder of the videos. It may not exist: then every video is missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[Path, _Listing] = {}

    def find(self, clip_id: str) -> Path:
        """The video's path, `<root>/<id>.mp4` where there is none (the scan calls it missing).

        Raises:
            ValueError: If several videos could be meant, or the id leads out of the root.
        """
        named = inside(self.root, clip_id)
        beside = self._list(named.parent)
        found = [named.parent / name for name in beside.videos.get(named.name, [])]
        if named.name in beside.folders:
            own = self._list(named).videos
            names = own.get("video") or [name for names in own.values() for name in names]
            found += [named / name for name in names]
        if len(found) > 1:
            raise ValueError(
                f"id {shown(clip_id)}: several videos could be meant: "
                f"{', '.join(str(path) for path in sorted(found))}. Keep one of them."
            )
        if not found:
            return named.with_name(f"{named.name}.mp4")
        check_inside(self.root, found[0])
        return found[0]

    def _list(self, folder: Path) -> "_Listing":
        if folder not in self._folders:
            listing = _Listing({}, set())
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        # Path.is_dir, unlike the entry's, survives a link that leads to itself.
                        if Path(entry).is_dir() if entry.is_symlink() else entry.is_dir():
                            listing.folders.add(entry.name)
                        elif _is_video(entry):
                            listing.videos.setdefault(Path(entry).stem, []).append(entry.name)
            except FileNotFoundError:
                pass
            except OSError as error:
                raise ValueError(
                    f"Video folder {folder} cannot be listed: {error.strerror}."
                ) from error
            self._folders[folder] = listing
        return self._folders[folder]


@dataclass(frozen=True)
class _Listing:
    videos: dict[str, list[str]]  # stem -> file names
    folders: set[str]


def inside(root: Path, relative: str) -> Path:
    """The path below the root; an absolute one is accepted where it lies there.

    Raises:
        ValueError: If the path is empty, cannot be a file name, or leads out of the root.
    """
    path = Path(relative)
    if path.is_absolute():
        for base in (root.absolute(), Path(os.path.realpath(root))):
            if path.is_relative_to(base):
                path = path.relative_to(base)
                break
    if not path.parts or path.is_absolute() or path.drive or ".." in path.parts:
        raise ValueError(
            f"{shown(relative)} is no path below {root}; ids and paths must lie there and must not "
            "hold '..'."
        )
    try:
        # What file systems allow (255 bytes a part), less a suffix.
        sizes = [len(os.fsencode(part)) for part in path.parts]
    except UnicodeEncodeError:
        sizes = []
    if not sizes or "\0" in relative or max(sizes) > 240 or sum(sizes) > 1000:
        raise ValueError(
            f"{shown(relative)} cannot be a file name: it is too long (240 bytes a part, 1000 in "
            "all) or holds characters that no file name can hold."
        )
    return root / path


def check_inside(root: Path, path: Path) -> None:
    """Refuses a path that leaves the root through a symbolic link.

    Raises:
        ValueError: If the path, all links followed, lies outside the root.
    """
    # realpath, unlike Path.resolve, treats a link that leads to itself the same way in every
    # Python: it stays where it is, and the scan finds nothing there.
    target = Path(os.path.realpath(path))
    if not target.is_relative_to(os.path.realpath(root)):
        raise ValueError(
            f"{path} is a symbolic link out of {root} (to {target}). Copy the video there, or name "
            "the folder that really holds it."
        )


def list_videos(root: Path) -> tuple[list[Path], list[Path]]:
    """All files below a folder, at any depth; hidden files and folders are left out.

    Returns:
        The videos and the other files, both sorted.

    Raises:
        ValueError: If the folder cannot be listed or a video is a symbolic link out of it.
    """
    videos: list[Path] = []
    others: list[Path] = []
    folders = [root]
    try:
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    # Folders behind links are left alone: they can lead out, or in circles.
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry))
                    elif _is_video(entry):
                        check_inside(root, Path(entry))
                        videos.append(Path(entry))
                    else:
                        others.append(Path(entry))
    except OSError as error:
        raise ValueError(f"Folder {error.filename} cannot be listed: {error.strerror}.") from error
    return sorted(videos), sorted(others)


def without_suffix(path: str) -> str:
    """The path without its video suffix; any other ending stays."""
    suffix = Path(path).suffix
    return path.removesuffix(suffix) if suffix.lower() in VIDEO_SUFFIXES else path


def _is_video(entry: os.DirEntry[str]) -> bool:
    # A broken link is a missing video; a pipe or a device is none at all (opening one can hang).
    return (
        not entry.name.startswith(".")
        and Path(entry).suffix.lower() in VIDEO_SUFFIXES
        and (entry.is_symlink() or entry.is_file())
    )
