"""Boxes that somebody else has drawn: a CSV or JSON Lines file."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rbft.masking.boxes import COORDINATES, Box

# Of each clip, boxes by frame; None holds those of every frame.
PlainBoxes = dict[str, dict[int | None, list[Box]]]


def read_plain_file(path: Path) -> PlainBoxes:
    """Reads boxes.

    A line is about one box: `id` of the clip, `x1`, `y1`, `x2`, `y2` in fractions of the frame or,
    where the line has `width` and `height` too, in pixels of a frame of that size; `frame`, its
    number in the file, without which the box is in every frame; `label` and `score` as far as there
    are any. A line without coordinates says that there is nothing. A line of JSON may have several
    `boxes` instead: objects with these keys, or lists of the coordinates, label and score.

    Args:
        path: `.csv` or `.jsonl`.

    Raises:
        ValueError: Naming the line, and what is wrong with it.
    """
    found: PlainBoxes = {}
    for number, row in _rows(path):
        where = f"--file {path}, line {number}"
        name = row.get("id")
        if name in (None, ""):
            raise ValueError(f"{where} has no id: the id of the clip that the box is of.")
        frame = _number(row.get("frame"), f"{where}: frame")
        if frame is not None and (frame < 0 or frame % 1):
            raise ValueError(f"{where}: frame must be 0, 1, 2, ..., got {row['frame']!r}.")
        own = found.setdefault(str(name), {})
        boxes = own.setdefault(None if frame is None else int(frame), [])
        edges = [_number(row.get(key), f"{where}: {key}") for key in COORDINATES]
        if all(edge is None for edge in edges):
            continue
        if any(edge is None for edge in edges):
            raise ValueError(f"{where} must have all of {', '.join(COORDINATES)}, or none.")
        wide, high = (_number(row.get(key), f"{where}: {key}") for key in ("width", "height"))
        x1, y1, x2, y2 = (edge or 0.0 for edge in edges)
        if wide and high:
            x1, y1, x2, y2 = x1 / wide, y1 / high, x2 / wide, y2 / high
        elif max(x1, y1, x2, y2) > 1:
            raise ValueError(
                f"{where}: {max(x1, y1, x2, y2):g} is no fraction of a frame. Pixels need the "
                "frame's width and height beside them."
            )
        score = _number(row.get("score"), f"{where}: score")
        box = Box.clipped(x1, y1, x2, y2, str(row.get("label") or ""), score)
        if box is None:
            raise ValueError(f"{where}: the box has no area within the frame.")
        boxes.append(box)
    return found


def boxes_in(own: Mapping[int | None, list[Box]], frame: int) -> list[Box]:
    """The boxes of a frame: its own, and those of every frame.

    Args:
        own: Those of the clip.
        frame: Number of the frame.
    """
    return [*own.get(frame, []), *own.get(None, [])]


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"--file {path} cannot be read: {error.strerror}.") from error
    if path.suffix == ".csv":
        yield from enumerate(csv.DictReader(text.splitlines()), start=2)
        return
    if path.suffix != ".jsonl":
        raise ValueError(f"--file {path} must be a .csv or a .jsonl file.")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"--file {path}, line {number} is no JSON.") from error
        if not isinstance(row, dict):
            raise ValueError(f"--file {path}, line {number} must be a JSON object.")
        for one in _each(row, f"--file {path}, line {number}"):
            yield number, one


def _each(row: Mapping[str, Any], where: str) -> Iterator[Mapping[str, Any]]:
    """A line about several boxes as lines about one each."""
    if "boxes" not in row:
        yield row
        return
    shared = {name: value for name, value in row.items() if name != "boxes"}
    if not isinstance(row["boxes"], list):
        raise ValueError(f"{where}: boxes must be a list.")
    yield shared  # a frame without boxes was looked at as well
    for one in row["boxes"]:
        if isinstance(one, list):
            one = dict(zip((*COORDINATES, "label", "score"), one, strict=False))
        if not isinstance(one, dict):
            raise ValueError(f"{where}: a box must be an object or a list, got {one!r}.")
        yield {**shared, **one}


def _number(value: Any, where: str) -> float | None:
    """A number; None where there is none."""
    if value in (None, ""):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{where} must be a number, got {value!r}.") from None
