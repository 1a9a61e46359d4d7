"""Which videos are meant: files, folders, patterns and lists of files."""

import glob
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rbft.annotations.lookup import VIDEO_SUFFIXES, count_endings, list_videos
from rbft.annotations.tables import read_table, read_text, shown

LISTS = (".txt", ".csv")
PATH_COLUMNS = ("path", "file_name", "video", "video_path")
WILDCARDS = "*?["
COMMENT = "#"
# A drive of Windows has one letter. A path has lost one of the slashes.
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)


def find_videos(given: Sequence[Path]) -> tuple[list[tuple[str, Path]], list[str]]:
    """Which videos are meant, and what in the folders is none.

    Args:
        given: Video files, folders (all videos in them, at any depth, sorted), patterns (`*`, `?`,
            `[...]`, `**` for any depth) where the shell has left them, and lists: a .txt file with
            one path a line, where lines that begin with # say nothing, or a .csv table with a
            column `path` (or file_name, video, video_path) and, if you like, `id`. Paths in a list
            count from the list's folder. A listed file need not exist.

    Returns:
        Name and path of the videos, in order, and a note for each folder or pattern that holds
        other files, and for videos that are named twice.

    Raises:
        ValueError: If a given path does not exist or is a URL, a pattern fits nothing, a list
            cannot be read, or nothing is found.
    """
    found: list[tuple[str, Path]] = []
    notes: list[str] = []
    for path in given:
        refuse_url(path, "--videos ")
        for one in _matches(path, notes):
            found += _videos_of(one, notes)
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
    counts = Counter(path for _, path in found)
    if again := len(found) - len(counts):
        twice = counts.most_common(1)[0][0]
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


def _videos_of(path: Path, notes: list[str]) -> list[tuple[str, Path]]:
    """Name and path of the videos that a file, a folder or a list stands for."""
    if path.is_dir():
        content = list_videos(path)
        if others := content.unused_videos():
            notes.append(f"--videos {path}: left alone {others}.")
        return [(str(file), file) for file in content.videos]
    if path.suffix.lower() in LISTS:
        return list(_listed(path))
    return [(str(path), path)]


def _listed(file: Path) -> Iterator[tuple[str, Path]]:
    if file.suffix.lower() == ".txt":
        for number, line in enumerate(read_text(file).splitlines(), 1):
            if (name := line.strip()) and not name.startswith(COMMENT):
                refuse_url(Path(name), f"{file}, line {number}: ")
                path = file.parent / name
                yield str(path), path
        return
    for row in read_table(file):
        column = next((name for name in PATH_COLUMNS if name in row.values), None)
        if column is None:
            raise ValueError(
                f"{row.where}: no column {' or '.join(PATH_COLUMNS)}; the columns there are "
                f"{', '.join(map(shown, row.values))}."
            )
        refuse_url(Path(row.text(column)), f"{row.where}: ")
        path = file.parent / row.text(column)
        yield row.text("id", default=str(path)), path
