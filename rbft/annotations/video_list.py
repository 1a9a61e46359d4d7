"""Which videos are meant: files, folders and lists of files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rbft.annotations.lookup import VIDEO_SUFFIXES, list_videos
from rbft.annotations.tables import read_table, read_text, shown

LISTS = (".txt", ".csv")
PATH_COLUMNS = ("path", "file_name", "video", "video_path")


def find_videos(given: Sequence[Path]) -> tuple[list[tuple[str, Path]], list[str]]:
    """Which videos are meant, and what in the folders is none.

    Args:
        given: Video files, folders (all videos in them, at any depth, sorted), and lists: a .txt
            file with one path a line, or a .csv table with a column `path` (or file_name, video,
            video_path) and, if you like, `id`. Paths in a list count from the list's folder. A
            listed file need not exist.

    Returns:
        Name and path of the videos, in order, and a note for each folder that holds other files.

    Raises:
        ValueError: If a given path does not exist, a list cannot be read, or nothing is found.
    """
    found: list[tuple[str, Path]] = []
    notes: list[str] = []
    for path in given:
        if not path.exists():
            raise ValueError(f"--videos {path} does not exist. Give video files or folders.")
        if path.is_dir():
            content = list_videos(path)
            found += [(str(file), file) for file in content.videos]
            if others := content.unused_videos():
                notes.append(f"--videos {path}: left alone {others}.")
        elif path.suffix.lower() in LISTS:
            found += _listed(path)
        else:
            found.append((str(path), path))
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
    return found, notes


def _listed(file: Path) -> Iterator[tuple[str, Path]]:
    if file.suffix.lower() == ".txt":
        for line in read_text(file).splitlines():
            if name := line.strip():
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
        path = file.parent / row.text(column)
        yield row.text("id", default=str(path)), path
