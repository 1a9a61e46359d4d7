import json
import re
from pathlib import Path
from typing import Any

import pytest

from rbft.data.elicited import ElicitedClasses
from rbft.data.rationales import about

MADE_FROM = {"backbone": "3f2a", "words": {"quiet": "calm"}, "versions": {"torch": "2.15"}}
CLASSES = ("quiet", "alarm")
CLIPS = {name: about(f"video {name}", None, None, "Describe, then name it.") for name in "abc"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rationales" / "yard-classes-1234.jsonl"


def opened(path: Path, clips: Any = CLIPS, **changes: Any) -> ElicitedClasses:
    return ElicitedClasses(path, MADE_FROM | changes, clips, CLASSES)


def line(name: str, text: str = "It climbs.", sample: int = 0, **more: Any) -> dict[str, Any]:
    return {"id": name, "rationale": text, "sample": sample, **more}


def answer(name: str | None) -> dict[str, Any]:
    return {"elicited": name, "probabilities": {"quiet": 0.25, "alarm": 0.75}}


def test_what_was_answered_is_found_again(path: Path) -> None:
    file = opened(path)
    assert file.missing([line("b"), line("a")]) == [line("b"), line("a")]
    file.append(0, [(line("a"), answer("alarm")), (line("b", "It sits."), answer(None))])
    file.append(0, [])
    for known in (file, opened(path, versions={"torch": "2.16"})):
        assert known.index(line("a")) == 1
        assert known.index(line("b", "It sits.")) is None
        assert known.missing([line("a"), line("b"), line("b", "It sits.")]) == [line("b")]
        assert not known.knows(line("c"))
    written = json.loads(path.with_name(f"{path.name}.part0").read_text().splitlines()[0])
    assert written["probabilities"] == {"quiet": 0.25, "alarm": 0.75}
    assert (written["id"], written["sample"]) == ("a", 0)


def test_one_question_is_asked_once(path: Path) -> None:
    """The same text of two samples, or of two clips that show the same, leads to one class."""
    twins = {**CLIPS, "c": CLIPS["a"]}
    lines = [line("a"), line("a", "It climbs. ", 1), line("c"), line("b")]
    file = opened(path, twins)
    assert file.missing(lines) == [lines[0], lines[3]]
    file.append(0, [(lines[0], answer("quiet"))])
    assert [file.knows(one) for one in lines] == [True, True, True, False]


@pytest.mark.parametrize(
    "clips",
    [
        {"a": about("another video", None, None, "Describe, then name it.")},
        {"a": about("video a", 1.0, None, "Describe, then name it.")},
        {"a": about("video a", None, 2.0, "Describe, then name it.")},
        {"a": about("video a", None, None, "Another question.")},
    ],
    ids=["video", "start", "end", "prompt"],
)
def test_another_question_has_another_answer(path: Path, clips: Any) -> None:
    opened(path).append(0, [(line("a"), answer("quiet"))])
    assert opened(path).knows(line("a"))
    assert not opened(path, clips).knows(line("a"))
    assert not opened(path).knows(line("a", "It climbs down."))  # as after an edit by hand


def test_two_processes_and_a_kill_leave_one_file(path: Path) -> None:
    first, second = opened(path), opened(path)
    told = line("a", "It is told.", label_conditioned=True)
    first.append(0, [(line("c"), answer("quiet")), (told, answer("alarm"))])
    second.append(1, [(line("b"), answer("quiet")), (line("a"), answer("quiet"))])
    parts = [path.with_name(f"{path.name}.part{rank}") for rank in range(2)]
    with parts[1].open("ab") as stream:
        stream.write(b'{"id": "c", "elicited"')  # cut off by a kill
    kept = parts[0].read_bytes()
    opened(path).recover(["c", "a", "b"])
    found = [json.loads(one) for one in path.read_text().splitlines()]
    assert [one["id"] for one in found] == ["c", "a", "a", "b"]
    assert [one.get("label_conditioned") for one in found] == [None, None, True, None]
    assert not parts[0].exists()
    parts[0].write_bytes(kept)  # a kill between putting the file in place and removing the parts
    content = path.read_bytes()
    opened(path).recover(["c", "a", "b"])
    assert path.read_bytes() == content
    opened(path).recover(["a"])  # nothing is left to join
    assert path.read_bytes() == content


def test_classes_of_something_else_are_refused(path: Path) -> None:
    opened(path).append(0, [(line("a"), answer("quiet"))])
    with pytest.raises(ValueError, match="elicited from something else") as error:
        opened(path, backbone="77aa")
    assert str(error.value) == (
        f"The classes in {path} were elicited from something else than this run asks:\n"
        "  backbone: 3f2a there, 77aa now\n"
        "Remove it and yard-classes-1234.provenance.json; they are elicited anew."
    )
    path.with_suffix(".provenance.json").unlink()
    with pytest.raises(ValueError, match="  backbone: None there, 3f2a now"):
        opened(path)


def test_a_damaged_sidecar_is_named(path: Path) -> None:
    opened(path).append(0, [(line("a"), answer("quiet"))])
    sidecar = path.with_suffix(".provenance.json")
    sidecar.write_text('{"backbone": "3f')
    with pytest.raises(ValueError, match="is no JSON") as error:
        opened(path)
    assert str(error.value) == (
        f"{sidecar} is no JSON, so nothing says what the classes in {path.name} were elicited "
        "from. Remove both; the classes are elicited anew."
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no JSON\n", ", line 1 is no JSON. Remove the line; it is asked again."),
        (
            '{"id": "a"}\n',
            ", line 1 must be a JSON object with id, elicited, video, start, end, prompt, "
            "rationale. Remove the line; it is asked again.",
        ),
        (
            json.dumps({"id": "a", "elicited": "loud", **CLIPS["a"], "rationale": "1"}) + "\n",
            ", line 1 has the elicited class 'loud'; the card's are quiet, alarm. Remove the "
            "line; it is asked again.",
        ),
        (
            "".join(
                json.dumps({"id": "a", "elicited": name, **CLIPS["a"], "rationale": "1"}) + "\n"
                for name in CLASSES
            ),
            ", line 2 has another class behind a rationale of clip a than another line: two runs "
            "wrote at the same time. Remove one of the two lines.",
        ),
    ],
)
def test_damaged_lines_are_named(path: Path, content: str, message: str) -> None:
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}{message}")):
        opened(path)
