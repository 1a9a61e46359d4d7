import re
from pathlib import Path

import pytest

from rbft.masking.boxes import Box
from rbft.masking.plain_file import boxes_in, read_plain_file


def test_a_table_and_json_lines_say_the_same(tmp_path: Path) -> None:
    table, lines = tmp_path / "boxes.csv", tmp_path / "boxes.jsonl"
    table.write_text(
        "id,frame,x1,y1,x2,y2,label,score,width,height\n"
        "a,5,0.5,0.5,0.25,1,dog,0.75,,\n"
        "a,,64,0,128,48,sign,,128,96\n"
        "b,,,,,,,,,\n"
    )
    lines.write_text(
        '{"id": "a", "frame": 5, "x1": 0.5, "y1": 0.5, "x2": 0.25, "y2": 1, "label": "dog", '
        '"score": 0.75}\n'
        '{"id": "a", "x1": 64, "y1": 0, "x2": 128, "y2": 48, "label": "sign", "width": 128, '
        '"height": 96}\n\n'
        '{"id": "b"}'
    )
    several = tmp_path / "several.jsonl"
    several.write_text(
        '{"id": "a", "frame": 5, "boxes": [[0.25, 0.5, 0.5, 1.0, "dog", 0.75]]}\n'
        '{"id": "a", "boxes": [{"x1": 0.5, "y1": 0, "x2": 1, "y2": 0.5, "label": "sign"}]}\n'
        '{"id": "b", "frame": null, "boxes": []}\n'
    )
    dog, sign = Box(0.25, 0.5, 0.5, 1.0, "dog", 0.75), Box(0.5, 0.0, 1.0, 0.5, "sign")
    for file in (table, lines, several):
        found = read_plain_file(file)
        assert found == {"a": {5: [dog], None: [sign]}, "b": {None: []}}
        assert boxes_in(found["a"], 5) == [dog, sign]
        assert boxes_in(found["a"], 7) == [sign]
        assert boxes_in(found["b"], 0) == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (",0,0,0,1,1", "line 2 has no id: the id of the clip that the box is of."),
        ("a,1.5,0,0,1,1", "line 2: frame must be 0, 1, 2, ..., got '1.5'."),
        ("a,-1,0,0,1,1", "line 2: frame must be 0, 1, 2, ..., got '-1'."),
        ("a,0,0,0,1,", "line 2 must have all of x1, y1, x2, y2, or none."),
        ("a,0,0,0,1,high", "line 2: y2 must be a number, got 'high'."),
        ("a,0,0,0,1,1,20", "line 2: 20 is no fraction of a frame. Pixels need the frame's width"),
        ("a,0,0.5,0,0.5,1", "line 2: the box has no area within the frame."),
    ],
)
def test_what_is_wrong_with_a_line_is_said(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "boxes.csv"
    header = "id,frame,x1,y1,x2,y2"
    if row.count(",") > 5:
        header, row = "id,frame,x1,y1,y2,x2", row.rsplit(",", 2)[0] + ",20"
    path.write_text(f"{header}\n{row}\n")
    with pytest.raises(ValueError, match=re.escape(f"--file {path}, {message}")):
        read_plain_file(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "boxes.txt"
    with pytest.raises(ValueError, match=r"boxes.txt cannot be read: No such file"):
        read_plain_file(path)
    path.touch()
    with pytest.raises(ValueError, match=r"boxes.txt must be a .csv or a .jsonl file."):
        read_plain_file(path)
    lines = tmp_path / "boxes.jsonl"
    for text, said in (
        ("{", " is no JSON."),
        ("[]", " must be a JSON object."),
        ('{"id": "a", "boxes": 3}', ": boxes must be a list."),
        ('{"id": "a", "boxes": [3]}', ": a box must be an object or a list, got 3."),
    ):
        lines.write_text(text)
        with pytest.raises(ValueError, match=re.escape(f"boxes.jsonl, line 1{said}")):
            read_plain_file(lines)
