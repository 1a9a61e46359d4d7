import json
import re
from pathlib import Path
from typing import Any

import pytest

from rbft.masking.box_file import BoxFile
from rbft.masking.boxes import Box

MADE_FROM = {"localiser": "truth", "frames": {"fps": 1.0}, "versions": {"torch": "2.15"}}
BOX = Box(0.125, 0.25, 0.5, 0.75, "dog", 0.5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "boxes" / "yard.jsonl"


def line(clip: str, frame: int | None, *boxes: Box, **more: Any) -> dict[str, Any]:
    own = [box.as_list() for box in boxes]
    return {"id": clip, "video": f"video {clip}", "frame": frame, "boxes": own, **more}


def test_what_was_found_is_found_again(path: Path) -> None:
    file = BoxFile(path, MADE_FROM)
    file.append([line("a", 0, BOX), line("a", 5)])
    file.append([line("b", None, error="cannot be decoded")])
    file.append([])
    later = MADE_FROM | {"versions": {"torch": "2.16"}}
    for known in (file, BoxFile(path, later), BoxFile(path)):
        assert known.boxes("video a") == {0: (BOX,), 5: ()}
        assert known.boxes("video c") == known.boxes("video b") == {}
        assert known.knows("video a", 5)
        assert not known.knows("video a", 3)
        assert known.whole("video b")["error"] == "cannot be decoded"
        assert known.whole("video a") == {}
        assert known.sidecar() == MADE_FROM


def test_a_kill_at_any_byte_leaves_the_same_file(path: Path) -> None:
    lines = [line("b", 3, BOX), line("b", 0), line("a", None, error="?"), line("a", 2, BOX)]
    whole = path.with_name("whole.jsonl")
    BoxFile(whole, MADE_FROM).append(lines)
    content = whole.with_name("whole.jsonl.part0").read_bytes()
    BoxFile(whole, MADE_FROM).merge(["a", "b"])
    order = [(one["id"], one["frame"]) for one in map(json.loads, whole.read_text().splitlines())]
    assert order == [("a", None), ("a", 2), ("b", 0), ("b", 3)]
    for end in range(0, len(content), 7):
        part = path.with_name(f"{path.name}.part0")
        part.write_bytes(content[:end])
        path.with_suffix(".provenance.json").write_text(json.dumps(MADE_FROM))
        file = BoxFile(path, MADE_FROM)
        file.recover(["a", "b"])
        file.append(one for one in lines if not file.knows(one["video"], one["frame"]))
        file.merge(["a", "b"])
        assert path.read_bytes() == whole.read_bytes(), end
        assert not part.exists()
        part.write_bytes(content)  # killed between putting the file in place and removing the part
        BoxFile(path, MADE_FROM).recover(["a", "b"])
        assert path.read_bytes() == whole.read_bytes()
        path.unlink()


def test_recovering_joins_what_is_left_and_nothing_else(path: Path) -> None:
    file = BoxFile(path, MADE_FROM)
    file.recover([])
    assert not path.exists()
    file.append([line("a", 0)])
    file.recover([])
    assert not path.with_name(f"{path.name}.part0").exists()
    before = path.stat().st_ino
    file.recover([])
    assert path.stat().st_ino == before  # not written again


def test_boxes_of_something_else_are_refused(path: Path) -> None:
    BoxFile(path, MADE_FROM).append([line("a", 0)])
    message = (
        f"The boxes in {path} were made from something else than now:\n"
        "  localiser: truth there, detector now\n"
        "Give another --output, or remove it and yard.provenance.json; the boxes are found anew."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        BoxFile(path, MADE_FROM | {"localiser": "detector"})
    path.with_suffix(".provenance.json").write_text("{")
    message = (
        f"{path.with_suffix('.provenance.json')} is no JSON, so nothing says what the boxes in "
        "yard.jsonl were made from. Remove both; the boxes are found anew."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        BoxFile(path, MADE_FROM)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no JSON\n", "line 1 is no JSON. Remove the line; its frame is looked at again."),
        (
            '{"id": "a"}\n',
            "line 1 must be a JSON object with id, video, frame, boxes. Remove the line; its frame "
            "is looked at again.",
        ),
        (
            '{"id": "a", "video": "v", "frame": 0, "boxes": [[0.0, 0.0, 2.0, 1.0, "", null]]}\n',
            "line 1: A box (0, 0, 2, 1) must lie within the frame",
        ),
        (
            '{"id": "a", "video": "v", "frame": 0, "boxes": []}\n'
            '{"id": "a", "video": "v", "frame": 0, "boxes": [[0.0, 0.0, 1.0, 1.0, "", null]]}\n',
            "line 2 says something else about frame 0 of clip a than another line: two runs wrote "
            "at the same time. Remove one of the two lines.",
        ),
    ],
)
def test_damaged_lines_are_named(path: Path, content: str, message: str) -> None:
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}, {message}")):
        BoxFile(path)
