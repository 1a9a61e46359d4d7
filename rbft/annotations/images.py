"""Images as clips: folders and lists of frames, and when each of them is shown."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rbft.annotations.lookup import VIDEO_SUFFIXES, FolderContent, inside
from rbft.annotations.tables import TableRow, shown
from rbft.clip import IMAGE_SUFFIXES, Images

ImagesAre = Literal["clips", "frames"]  # what images in folders are: clips each, or frames of one
HOW_FAST = (
    "nothing says when they are shown. Give the table a column fps (images a second) or times (the "
    "second of each), or set data.image_fps for all."
)


def natural_order(path: Path) -> tuple[Any, ...]:
    """A key that sorts names by the numbers in them: 2.png before 10.png."""
    parts = re.split(r"(\d+)", path.name)
    return tuple(int(part) if part.isdecimal() else part.casefold() for part in parts), path.name


def images_in(folder: Path) -> list[Path]:
    """The images right in a folder, in the order of the numbers in their names; hidden ones not.

    Raises:
        ValueError: If it cannot be listed.
    """
    try:
        files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise ValueError(f"Folder {folder} cannot be listed: {error.strerror}.") from error
    found = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()]
    return sorted(found, key=natural_order)


def is_frame_folder(folder: Path) -> bool:
    """Whether a folder holds images, and neither videos nor folders.

    Raises:
        ValueError: If it cannot be listed.
    """
    if not images_in(folder):
        return False
    return not any(
        path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES
        for path in folder.iterdir()
        if not path.name.startswith(".")
    )


def with_images(content: FolderContent, images: ImagesAre | None) -> FolderContent:
    """What a folder holds, in which images are clips where the user says so.

    Args:
        content: The files of the folder, at any depth.
        images: clips makes each image a clip, frames each folder that holds images, and neither
            videos nor folders. None leaves images alone.

    Raises:
        ValueError: If a folder cannot be listed.
    """
    found = content.images if images is not None else []
    if images == "frames":
        found = [folder for folder in {path.parent for path in found} if is_frame_folder(folder)]
    return content.with_clips(found)


def images_of(
    path: Path,
    files: Sequence[Path],
    *,
    fps: float | None = None,
    times: Sequence[float] | None = None,
) -> Images:
    """The images of a clip, with what says when they are shown.

    Args:
        path: Their folder, or the first of a list.
        files: The images; a single one needs no time.
        fps: Images per second.
        times: The second of each, from anywhere on; comes before `fps`.

    Raises:
        ValueError: If nothing says when they are shown, or a number is out of range.
    """
    if times is not None:
        try:
            return Images.timed(path, files, times)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if len(files) == 1:
        return Images(path, tuple(files), 1.0)
    if fps is None:
        raise ValueError(f"{path} is {len(files)} images, and {HOW_FAST}")
    return Images(path, tuple(files), fps)


def listed_images(row: TableRow, column: str | None) -> list[str] | None:
    """The paths in a cell that holds a list of images; None where it holds one path.

    Args:
        row: The row.
        column: Its column of paths; None where it has none.

    Raises:
        ValueError: If the list is empty, or holds what is no path of an image.
    """
    found = _list_in(row, column)
    if found is None:
        return None
    if not found:
        raise ValueError(f"{row.where}: {column} is an empty list; a clip needs an image.")
    for one in found:
        if not isinstance(one, str) or Path(one).suffix.lower() not in IMAGE_SUFFIXES:
            raise ValueError(
                f"{row.where}: {column} lists {shown(one)}, which is no image; allowed are paths "
                f"that end in {', '.join(IMAGE_SUFFIXES)}."
            )
    return found


def listed_times(row: TableRow, column: str | None) -> list[float] | None:
    """The seconds in a cell that holds a list of them; None where it is empty.

    Args:
        row: The row.
        column: Its column of times; None where it has none.

    Raises:
        ValueError: If it holds something else.
    """
    value = None if column is None else row.values.get(column)
    if value is None or value == "":
        return None
    found = _list_in(row, column)
    numbers = found is not None and all(
        isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one)
        for one in found
    )
    if found is None or not numbers:
        raise ValueError(
            f"{row.where}: {column} is {shown(value)}; it must be a list of seconds, one for each "
            "image: [0, 0.5, 2]."
        )
    return [float(one) for one in found]


def frames_per_second(row: TableRow, column: str | None) -> float | None:
    """The cell that says how many images a second there are; None where it is empty.

    Args:
        row: The row.
        column: Its column; None where it has none.

    Raises:
        ValueError: If it is no number above 0.
    """
    text = row.text(column, default="")
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(
            f"{row.where}: {column} is {shown(text)}; it must be images per second, above 0."
        )
    return number


def images_of_row(
    root: Path,
    path: Path,
    names: Sequence[str] | None,
    times: Sequence[float] | None,
    fps: float | None,
) -> Images | None:
    """The images that a row's path is; None where it is a file, as videos and stills are.

    Args:
        root: Paths count from here.
        path: The row's, from the root on.
        names: The images where it lists some.
        times: The second of each, see `images_of`.
        fps: Images per second, see `images_of`.

    Raises:
        ValueError: If it is a folder without images, or nothing says when they are shown.
    """
    if names is not None:
        return images_of(path, [inside(root, name) for name in names], fps=fps, times=times)
    if path.suffix.lower() in VIDEO_SUFFIXES or not path.is_dir():
        return None
    files = images_in(path)
    if not files:
        raise ValueError(
            f"{path} is a folder and holds no image; allowed are files that end in "
            f"{', '.join(IMAGE_SUFFIXES)}. Or name the video in it."
        )
    return images_of(path, files, fps=fps, times=times)


def _list_in(row: TableRow, column: str | None) -> list[Any] | None:
    """A list as JSON and parquet hold it, or as text that is one."""
    value = None if column is None else row.values.get(column)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, list) else None
