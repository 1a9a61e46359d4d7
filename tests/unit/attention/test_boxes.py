import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rbft.attention.boxes import clip_coverage, hit_cells, read_boxes
from rbft.masking.boxes import Box


def written(tmp_path: Path, *lines: Any) -> Path:
    file = tmp_path / "boxes.jsonl"
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    file.write_text("\n".join(texts), encoding="utf-8")
    return file


BEAR = {"x1": 0.1, "y1": 0.2, "x2": 0.5, "y2": 1, "label": "bear"}


def test_boxes_by_clip_and_frame(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        {"id": "a", "video": "1f", "frame": 0, "boxes": [BEAR, [0, 0, 0.5, 0.5, "bin", 0.9]]},
        {"id": "a", "frame": 4, "boxes": []},
        {"id": "a", "frame": None, "boxes": [], "names": ["bear"]},
        "",
        {"id": "b", "frame": 0, "boxes": [{**BEAR, "label": "car", "score": 0.5}]},
    )
    bear, box = Box(0.1, 0.2, 0.5, 1.0, "bear"), Box(0.0, 0.0, 0.5, 0.5, "bin")
    car = Box(0.1, 0.2, 0.5, 1.0, "car")
    assert read_boxes(file) == {"a": {0: [bear, box], 4: []}, "b": {0: [car]}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 must be a JSON object with id, frame and boxes, got '{'."),
        ({"id": "a", "boxes": []}, "line 2 must be a JSON object with id, frame and boxes, got "),
        (
            {"id": "a", "frame": 0, "boxes": []},
            "line 2 is a second one about frame 0 of a. Remove one.",
        ),
        (
            {"id": "a", "frame": 1, "boxes": [{"x1": 0}]},
            "line 2: a box must have x1, y1, x2, y2 in shares of width and height, with 0 <= x1 < "
            "x2 <= 1 and 0 <= y1 < y2 <= 1, got {'x1': 0}.",
        ),
        (
            {"id": "a", "frame": 1, "boxes": [{**BEAR, "x2": 55}]},
            "line 2: a box must have x1, y1, x2, y2 in shares of width and height, with 0 <= x1 < "
            "x2 <= 1 and 0 <= y1 < y2 <= 1, got [0.1, 0.2, 55, 1, 'bear'].",
        ),
        (
            {"id": "a", "frame": 1, "boxes": [{**BEAR, "y1": 1}]},
            "line 2: a box must have x1, y1, x2, y2 in shares of width and height, with 0 <= x1 < "
            "x2 <= 1 and 0 <= y1 < y2 <= 1, got [0.1, 1, 0.5, 1, 'bear'].",
        ),
    ],
)
def test_lines_that_cannot_be_read(tmp_path: Path, line: Any, message: str) -> None:
    file = written(tmp_path, {"id": "a", "frame": 0, "boxes": [BEAR]}, line)
    with pytest.raises(ValueError, match=f"^{re.escape(f'--boxes {file}, {message}')}"):
        read_boxes(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    message = f"--boxes {tmp_path / 'no'} cannot be read: No such file or directory."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read_boxes(tmp_path / "no")


def test_a_slice_is_the_mean_of_its_frames_that_somebody_looked_at() -> None:
    left, right = Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 1.0, 1.0)
    known = {0: [left], 4: [right, left], 8: [], 12: [right]}
    found = clip_coverage(known, [0, 4, 8, 9, 20, 24], [[0, 1], [2, 3], [4, 5]], 1, 2)
    np.testing.assert_allclose(found[0], [[1.0, 0.5]])
    np.testing.assert_allclose(found[1], [[0.0, 0.0]])  # frame 9 is not known
    assert np.isnan(found[2]).all()


def test_a_hit_may_be_a_token_beside_the_box() -> None:
    # From 1.9 to 2.4 of 6 columns: middles from 0.9 to 3.4 are those of columns 1 and 2.
    box = Box(1.9 / 6, 0.45, 2.4 / 6, 0.55)
    hit = hit_cells([box], 3, 6)
    assert hit[1].tolist() == [False, True, True, False, False, False]
    assert hit.any(axis=1).tolist() == [True, True, True]
    exact = hit_cells([box], 3, 6, tolerance=0.0)
    assert not exact.any()  # no middle lies in it
    assert hit_cells([], 2, 2).sum() == 0
    assert math.isclose(hit_cells([Box(0.0, 0.0, 1.0, 1.0)], 2, 2).mean(), 1)
