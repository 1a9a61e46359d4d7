"""How much of each token of a clip its objects cover, by boxes from a file."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rbft.masking.boxes import COORDINATES, Box
from rbft.runtime.jsonl import complete_lines

# Boxes by the number of the frame in its file; a frame that is not there was not looked at.
FrameBoxes = Mapping[int, Sequence[Box]]


def read_boxes(file: Path) -> dict[str, dict[int, list[Box]]]:
    """Boxes by clip and frame.

    Args:
        file: JSON Lines as `mask` writes them: `id`, `frame` (its number in the file) and `boxes`,
            lists of x1, y1, x2, y2 (shares of width and height) and label, or objects with these
            keys. Other keys, and lines about no frame (null), are passed over. A frame with an
            empty list has no object.

    Raises:
        ValueError: If the file or a line cannot be read.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"--boxes {file} cannot be read: {error.strerror}.") from error
    found: dict[str, dict[int, list[Box]]] = {}
    for number, line in complete_lines(content if content.endswith(b"\n") else content + b"\n"):
        if not line.strip():
            continue
        where = f"--boxes {file}, line {number}"
        try:
            row = json.loads(line)
            clip, frame, given = str(row["id"]), row["frame"], list(row["boxes"])
            if frame is None:
                continue
            frame = int(frame)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{where} must be a JSON object with id, frame and boxes, got "
                f"{line.decode(errors='replace')[:80]!r}."
            ) from error
        frames = found.setdefault(clip, {})
        if frame in frames:
            raise ValueError(f"{where} is a second one about frame {frame} of {clip}. Remove one.")
        frames[frame] = [_box(one, where) for one in given]
    return found


def _box(given: Any, where: str) -> Box:
    try:
        if isinstance(given, dict):
            given = [*(given[name] for name in COORDINATES), given.get("label", "")]
        x1, y1, x2, y2, label, *_ = [*given, ""]
        return Box(float(x1), float(y1), float(x2), float(y2), str(label))
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{where}: a box must have {', '.join(COORDINATES)} in shares of width and height, "
            f"with 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1, got {given!r}."
        ) from None


def coverage(boxes: Sequence[Box], rows: int, columns: int) -> Float[np.ndarray, "rows columns"]:
    """How much of each cell of a grid some box covers, 0 to 1; where boxes overlap, once.

    Exact: the grid and the boxes cut the frame into rectangles that are covered or not.

    Args:
        boxes: Boxes of one frame.
        rows: Of the grid.
        columns: Of the grid.
    """
    xs = np.unique([*np.arange(columns + 1) / columns, *(x for b in boxes for x in (b.x1, b.x2))])
    ys = np.unique([*np.arange(rows + 1) / rows, *(y for b in boxes for y in (b.y1, b.y2))])
    inside = np.zeros((len(ys) - 1, len(xs) - 1))
    for box in boxes:
        down = (ys[:-1] >= box.y1) & (ys[1:] <= box.y2)
        across = (xs[:-1] >= box.x1) & (xs[1:] <= box.x2)
        inside[np.ix_(down, across)] = 1
    areas = inside * np.diff(ys)[:, None] * np.diff(xs)
    starts_y = np.searchsorted(ys, np.arange(rows) / rows)
    starts_x = np.searchsorted(xs, np.arange(columns) / columns)
    cells = np.add.reduceat(np.add.reduceat(areas, starts_y, axis=0), starts_x, axis=1)
    return np.clip(cells * rows * columns, 0.0, 1.0)


def clip_coverage(
    known: FrameBoxes,
    indices: Sequence[int],
    slices: Sequence[Sequence[int]],
    rows: int,
    columns: int,
) -> Float[np.ndarray, "slices rows columns"]:
    """How much of each token of a clip its objects cover, the mean over the frames of its slice.

    Args:
        known: Boxes by frame number.
        indices: Number of each of the clip's frames.
        slices: Which of them each slice stands for, see `rbft.attention.maps.slice_frames`.
        rows: Of tokens.
        columns: Of tokens.

    Returns:
        NaN in slices none of whose frames has boxes known.
    """
    made = np.full((len(slices), rows, columns), math.nan)
    for place, frames in enumerate(slices):
        looked = [known[indices[n]] for n in frames if indices[n] in known]
        if looked:
            made[place] = np.mean([coverage(boxes, rows, columns) for boxes in looked], axis=0)
    return made


def hit_cells(boxes: Sequence[Box], rows: int, columns: int, tolerance: float = 1.0) -> np.ndarray:
    """Cells whose middle lies in a box, or beside one within a tolerance.

    Args:
        boxes: Boxes of one frame.
        rows: Of the grid.
        columns: Of the grid.
        tolerance: In cells, to every side.
    """
    y = (np.arange(rows) + 0.5)[:, None]
    x = np.arange(columns) + 0.5
    hit = np.zeros((rows, columns), dtype=bool)
    for box in boxes:
        down = (y >= box.y1 * rows - tolerance) & (y <= box.y2 * rows + tolerance)
        across = (x >= box.x1 * columns - tolerance) & (x <= box.x2 * columns + tolerance)
        hit |= down & across
    return hit
