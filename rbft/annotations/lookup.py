"""Where the video of an id lies below a folder, and that it lies nowhere else.

Ids and paths come from files that others wrote; none of them may lead out of the folder that the
user named.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rbft.annotations.tables import shown
from rbft.clip import IMAGE_SUFFIXES

# What files of moving pictures are called, of every container that FFmpeg opens by itself.
# Pictures, sound and subtitles are not among them, nor raw frames, whose size no file tells.
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mj2", ".f4v", ".ismv", ".psp", ".insv"),
    *(".mkv", ".mk3d", ".webm", ".avi", ".divx", ".xvid", ".flv", ".kux", ".gif"),
    *(".wmv", ".asf", ".wm", ".wtv", ".rm", ".rmvb", ".ivr", ".ogv", ".ogm", ".nut", ".nsv"),
    *(".mpg", ".mpeg", ".mpe", ".mpv", ".m1v", ".m2v", ".mp2v", ".m2p", ".vob", ".evo", ".mod"),
    *(".ts", ".mts", ".m2ts", ".m2t", ".trp", ".tod", ".pva", ".ty", ".ty+"),
    *(".nuv", ".dv", ".dif", ".mxf", ".gxf", ".lvf", ".dav", ".ifv", ".pdv"),
    *(".h261", ".h263", ".h264", ".264", ".h26l", ".avc", ".h265", ".265", ".hevc", ".h266"),
    *(".266", ".vvc", ".evc", ".apv", ".av1", ".obu", ".ivf", ".vc1", ".rcv", ".cavs", ".avs"),
    *(".avs2", ".avs3", ".drc", ".mjpg", ".mjpeg", ".y4m", ".ipu", ".viv", ".vivo", ".cdxl"),
    *(".bik", ".bk2", ".smk", ".roq", ".usm", ".moflex", ".mods", ".bmv", ".mvi", ".xmv", ".yop"),
    *(".thp", ".pmp", ".mtv", ".amv", ".fli", ".flc", ".swf", ".mlv", ".cine"),
)
LONGEST_NAME = 255  # bytes of a part of a path, in all usual file systems
LONGEST_PATH = 4000


class VideoLookup:
    """Finds videos by id below a folder; every folder is listed once.

    Accepted are `<root>/<id>.<suffix>`, `<root>/<id>/video.<suffix>` and a single video of any
    name in `<root>/<id>/`.

    Args:
        root: The folder of the videos. It may not exist: then every video is missing.
        images: Where there is no video: clips also finds `<root>/<id>.jpg` (or another image),
            frames `<root>/<id>/`, if it holds only images. None finds neither.
    """

    def __init__(self, root: Path, images: Literal["clips", "frames"] | None = None) -> None:
        self.root, self.images = root, images
        self._folders: dict[Path, _Listing] = {}

    def find(self, clip_id: str) -> Path:
        """The video's path, `<root>/<id>.mp4` where there is none (the scan calls it missing).

        Raises:
            ValueError: If several videos could be meant, or the id is no path below the root.
                Whether a link leads out of it is for `leaves_root` to say.
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
        if found:
            return found[0]
        if self.images == "frames" and named.name in beside.folders:
            own = self._list(named)
            if own.images and not own.folders:
                return named
        stills = beside.images.get(named.name, []) if self.images == "clips" else []
        if len(stills) > 1:
            raise ValueError(
                f"id {shown(clip_id)}: several images could be meant: "
                f"{', '.join(str(named.parent / name) for name in sorted(stills))}. Keep one of "
                "them."
            )
        return named.parent / stills[0] if stills else named.with_name(f"{named.name}.mp4")

    def _list(self, folder: Path) -> "_Listing":
        if folder not in self._folders:
            listing = _Listing({}, {}, set())
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if _is_folder(entry):
                            listing.folders.add(entry.name)
                        elif _is_video(entry):
                            listing.videos.setdefault(Path(entry).stem, []).append(entry.name)
                        elif _is_image(entry):
                            listing.images.setdefault(Path(entry).stem, []).append(entry.name)
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
    images: dict[str, list[str]]
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
        sizes = [len(os.fsencode(part)) for part in path.parts]
    except UnicodeEncodeError:
        sizes = []
    if not sizes or "\0" in relative or max(sizes) > LONGEST_NAME or sum(sizes) > LONGEST_PATH:
        raise ValueError(
            f"{shown(relative)} cannot be a file name: it is too long ({LONGEST_NAME} bytes a "
            f"part, {LONGEST_PATH} in all) or holds characters that no file name can hold."
        )
    return root / path


def leaves_root(root: Path, path: Path) -> str:
    """Why a path must not be opened: it is a symbolic link out of the root.

    A linked folder is a folder: what lies in it counts as below the root. A linked file must lie
    below the root or below one of the folders on its way.

    Returns:
        The reason, without the path; empty where there is none.
    """
    # realpath, unlike Path.resolve, treats a link that leads to itself the same way in every
    # Python: it stays where it is, and the scan finds nothing there.
    target = Path(os.path.realpath(path))
    folders = [folder for folder in path.parents if folder.is_relative_to(root)]
    if any(target.is_relative_to(os.path.realpath(folder)) for folder in reversed(folders)):
        return ""
    return (
        f"is a symbolic link out of {root} (to {target}); copy the video there, or link the folder "
        "that holds it"
    )


@dataclass(frozen=True)
class FolderContent:
    """The files below a folder.

    Attributes:
        videos: Those that are called like videos, sorted.
        others: All others that are not hidden, sorted, and links that lead in circles.
        hidden: Number of hidden files and folders.
    """

    videos: list[Path]
    others: list[Path]
    hidden: int

    @property
    def images(self) -> list[Path]:
        """Those of the others that are called like images, sorted."""
        return [path for path in self.others if path.suffix.lower() in IMAGE_SUFFIXES]

    def with_clips(self, found: Iterable[Path]) -> "FolderContent":
        """The same, in which images or folders of them are clips as videos are.

        Args:
            found: Images, or folders that hold only images.
        """
        clips = {*found}
        others = [path for path in self.others if not clips & {path, path.parent}]
        return FolderContent(sorted([*self.videos, *clips]), others, self.hidden)

    def unused_videos(self) -> str:
        """What is no video, by ending and count ("3 files that are no videos: 2 .txt, 1 .md")."""
        kinds = [count_endings(self.others)] if self.others else []
        if self.hidden:
            kinds.append(f"{self.hidden} hidden")
        if not kinds:
            return ""
        first = f" (first: {self.others[0]})" if self.others else ""
        return (
            f"{len(self.others) + self.hidden} files that are no videos: {', '.join(kinds)}{first}"
        )


def count_endings(paths: Iterable[Path]) -> str:
    """How many files have which ending, the most frequent first ("2 .txt, 1 .md")."""
    counts = Counter(path.suffix.lower() or "without ending" for path in paths)
    return ", ".join(f"{count} {ending}" for ending, count in counts.most_common())


def list_videos(root: Path) -> FolderContent:
    """All files below a folder, at any depth; linked folders are folders.

    Raises:
        ValueError: If a folder cannot be listed.
    """
    videos: list[Path] = []
    others: list[Path] = []
    hidden = 0
    # Each with the places of the folders on its way: a link to one of them leads in a circle.
    folders: list[tuple[Path, tuple[str, ...]]] = [(root, (os.path.realpath(root),))]
    try:
        while folders:
            folder, way = folders.pop()
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = Path(entry)
                    if entry.name.startswith("."):
                        hidden += 1
                    elif _is_folder(entry):
                        target = os.path.realpath(path)
                        if target in way:
                            others.append(path)
                        else:
                            folders.append((path, (*way, target)))
                    elif _is_video(entry):
                        videos.append(path)
                    else:
                        others.append(path)
    except OSError as error:
        raise ValueError(f"Folder {error.filename} cannot be listed: {error.strerror}.") from error
    return FolderContent(sorted(videos), sorted(others), hidden)


def without_suffix(path: str) -> str:
    """The path without its ending, if that is one of videos or images; any other stays."""
    suffix = Path(path).suffix
    known = suffix.lower() in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
    return path.removesuffix(suffix) if known else path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # Path.is_dir, unlike the entry's, survives a link that leads to itself.
    return Path(entry).is_dir() if entry.is_symlink() else entry.is_dir()


def _is_video(entry: os.DirEntry[str]) -> bool:
    return _ends_in(entry, VIDEO_SUFFIXES)


def _is_image(entry: os.DirEntry[str]) -> bool:
    return _ends_in(entry, IMAGE_SUFFIXES)


def _ends_in(entry: os.DirEntry[str], suffixes: Sequence[str]) -> bool:
    # A broken link is a missing video; a pipe or a device is none at all (opening one can hang).
    return (
        not entry.name.startswith(".")
        and Path(entry).suffix.lower() in suffixes
        and (entry.is_symlink() or entry.is_file())
    )
