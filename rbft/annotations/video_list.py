"""Which videos are meant: files, folders, patterns and lists of files."""

import glob
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rbft.annotations.images import (
    ImagesAre,
    frames_per_second,
    images_of,
    images_of_row,
    listed_images,
    listed_times,
    with_images,
)
from rbft.annotations.lookup import VIDEO_SUFFIXES, count_endings, list_videos
from rbft.annotations.tables import TableRow, read_table, read_text, shown
from rbft.clip import Images

LISTS = (".txt", ".csv")
PATH_COLUMNS = ("path", "file_name", "video", "video_path")
WILDCARDS = "*?["
COMMENT = "#"
# A drive of Windows has one letter. A path has lost one of the slashes.
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)


Found = tuple[str, Path | Images]  # name, and file or images


def find_videos(
    given: Sequence[Path], images: ImagesAre | None = None, image_fps: float | None = None
) -> tuple[list[Found], list[str]]:
    """Which videos are meant, and what in the folders is none.

    Args:
        given: Video files, folders (all videos in them, at any depth, sorted), patterns (`*`, `?`,
            `[...]`, `**` for any depth) where the shell has left them, and lists: a .txt file with
            one path a line, where lines that begin with # say nothing, or a .csv table with a
            column `path` (or file_name, video, video_path) and, if you like, `id`. Paths in a list
            count from the list's folder. A listed file need not exist; it may be a still image, or
            a folder or list of images, with `times` or `fps` in a table.
        images: What images in folders are, see `rbft.data.base.VideoDataModule`.
        image_fps: Images per second of folders that do not say.

    Returns:
        Name and path or images of the videos, in order, and a note for each folder or pattern that
        holds other files, and for videos that are named twice.

    Raises:
        ValueError: If a given path does not exist or is a URL, a pattern fits nothing, a list
            cannot be read, or nothing is found.
    """
    found: list[Found] = []
    notes: list[str] = []
    for path in given:
        refuse_url(path, "--videos ")
        for one in _matches(path, notes):
            found += _videos_of(one, notes, images, image_fps)
    if not found:
        raise ValueError(
            " ".join(
                [
                    "--videos holds no video files; looked for those that end in "
                    f"{', '.join(VIDEO_SUFFIXES)}. A file that is named itself may be called "
                    "anything.",
                    *notes,
                ]
            )
        )
    counts = Counter(source for _, source in found)
    if again := len(found) - len(counts):
        most = counts.most_common(1)[0][0]
        twice = most.name if isinstance(most, Images) else most
        files = f"{again} file{'s' * (again > 1)}"
        notes.append(f"--videos names {files} again (first: {twice}); each counts once.")
    return found, notes


def refuse_url(path: Path, where: str = "") -> None:
    """Refuses what is no file but an address.

    Args:
        path: What was given.
        where: Begins the message.

    Raises:
        ValueError: If it is a URL.
    """
    if (url := URL.match(str(path))) and not path.exists():
        raise ValueError(
            f"{where}{url[1]}://{url[2]} is a URL, and videos are read from the disk. Download it "
            "first and give the file."
        )


def _matches(path: Path, notes: list[str]) -> list[Path]:
    """The path itself, or what fits it where it is a pattern."""
    path = path.expanduser() if str(path).startswith("~") else path
    if path.exists():
        return [path]
    if not any(sign in str(path) for sign in WILDCARDS):
        raise ValueError(f"--videos {path} does not exist. Give video files or folders.")
    matches = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207, absolute too
    if not matches:
        raise ValueError(f"--videos {path}: no file fits this pattern.")
    if path.suffix and not any(sign in path.suffix for sign in WILDCARDS):
        return matches  # files of this ending are asked for
    if "**" in str(path):
        matches = [one for one in matches if not one.is_dir()]  # what they hold is among the rest
    others = [
        one for one in matches if not one.is_dir() and one.suffix.lower() not in VIDEO_SUFFIXES
    ]
    if others:
        notes.append(
            f"--videos {path}: left alone {len(others)} files that are no videos: "
            f"{count_endings(others)} (first: {others[0]})."
        )
    return [one for one in matches if one not in set(others)]


def _videos_of(
    path: Path, notes: list[str], images: ImagesAre | None, image_fps: float | None
) -> list[Found]:
    """Name and path of the videos that a file, a folder or a list stands for."""
    if path.is_dir():
        content = with_images(list_videos(path), images)
        if not content.videos and content.images and images is None:
            raise ValueError(
                f"--videos {path} holds {len(content.images)} images and no video. Say what they "
                "are: --data.images clips (each is one), or frames (those of a folder are one, "
                "with --data.image_fps)."
            )
        if others := content.unused_videos():
            notes.append(f"--videos {path}: left alone {others}.")
        return [_found(str(file), file, image_fps) for file in content.videos]
    if path.suffix.lower() in LISTS:
        return list(_listed(path, image_fps))
    return [(str(path), path)]


def _found(name: str, path: Path, image_fps: float | None) -> Found:
    """A video or still, or the images of a folder."""
    return name, images_of_row(path.parent, path, None, None, image_fps) or path


def _listed(file: Path, image_fps: float | None) -> Iterator[Found]:
    if file.suffix.lower() == ".txt":
        for number, line in enumerate(read_text(file).splitlines(), 1):
            if (name := line.strip()) and not name.startswith(COMMENT):
                refuse_url(Path(name), f"{file}, line {number}: ")
                path = file.parent / name
                yield _found(str(path), path, image_fps)
        return
    for row in read_table(file):
        column = next((name for name in PATH_COLUMNS if name in row.values), None)
        if column is None:
            raise ValueError(
                f"{row.where}: no column {' or '.join(PATH_COLUMNS)}; the columns there are "
                f"{', '.join(map(shown, row.values))}."
            )
        listed = listed_images(row, column)
        first = row.text(column) if listed is None else listed[0]
        refuse_url(Path(first), f"{row.where}: ")
        path = file.parent / first
        try:
            found = _images_of_row(row, file.parent, path, listed, image_fps)
        except ValueError as error:
            raise ValueError(f"{row.where}: {error}") from error
        name = str(path) if found is None else found.name
        yield row.text("id", default=name), found or path


def _images_of_row(
    row: TableRow, folder: Path, path: Path, listed: list[str] | None, image_fps: float | None
) -> Images | None:
    """The images of a row, which may lie anywhere, as videos may; None where its path is a file."""
    if listed is None and not path.is_dir():
        return None
    times, fps = listed_times(row, "times"), frames_per_second(row, "fps")
    fps = image_fps if fps is None else fps
    if listed is None:
        return images_of_row(folder, path, None, times, fps)
    return images_of(path, [folder / name for name in listed], fps=fps, times=times)
