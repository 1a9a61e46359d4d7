"""The order in which rationales are verified, ended after each line and started again."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rbft import verification
from rbft.data.rationales import RationaleStore
from rbft.inputs import Inputs
from rbft.verification import selection_report, verify
from tests.examples import CARD, Yard
from tests.unit.data.test_verified import line, opened, yard

TRAIN = [f"train_{n}" for n in range(4)]
# Behind which texts the model names "quiet", the class of train_0 and train_2.
QUIET = {
    *("train_0, own 0.", "train_1, own 0.", "train_3, own 0.", "train_3, own 1."),
    *("train_2, told 1.", "train_3, told 0.", "train_3, told 1."),
}
# So train_0 is right with its first text, train_1 with its second, train_2 once it was told, and
# train_3 never.
WAYS = {"train_0": "right", "train_1": "right", "train_2": "hinted", "train_3": "dropped"}
TOLD = 2 * 2  # texts of the second try
BESIDE = ("classes", "hinted")


class KilledError(Exception):
    """Ends a run between two lines."""


class Backbone:
    """Stands for the passes of the backbone: writes a line at a time, until it is killed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left, self.done = 10**6, Counter[tuple[str, ...]]()
        self.hints: list[str] = []
        monkeypatch.setattr(verification, "elicit_pass", self.elicit)
        monkeypatch.setattr(verification, "write_pass", self.write)
        monkeypatch.setattr(verification, "wait_for_all", lambda *_: None)

    def pause(self) -> None:
        if not self.left:
            raise KilledError

    def tick(self, *what: str) -> None:
        self.pause()
        self.left -= 1
        self.done[what] += 1

    def elicit(
        self, inputs: Inputs, data: Any, elicited: Any, records: Sequence[Any], weights: Any
    ) -> None:
        for record in records:
            self.tick("elicit", record["id"], record["rationale"])
            name = CARD.classes[0 if record["rationale"] in QUIET else 1]
            elicited.append(0, [(record, {"elicited": name, "probabilities": {}})])
        self.pause()  # all lines are there, but not joined
        elicited.merge(TRAIN)

    def write(
        self, inputs: Inputs, stores: Any, cards: Any, clips: Any, hint: str, writer: Any
    ) -> None:
        self.hints.append(hint)
        (store,) = stores
        for clip in clips:
            for number in range(2):
                if number not in store.written.get(clip.id, {}):
                    self.tick("write", clip.id, str(number))
                    store.append(0, [line(clip.id, f"{clip.id}, told {number}.", number)])
        self.pause()
        store.merge(TRAIN)


def started(data: Yard, file: Path) -> RationaleStore:
    """A run as it begins: Stage 0's own texts are there."""
    store = opened(data, file)
    names = store.missing([clip.id for clip in data.clips_to_describe()])
    for name in names:
        store.append(0, [line(name, f"{name}, own {number}.", number) for number in range(2)])
    store.recover(TRAIN)
    return store


def run(data: Yard, file: Path) -> RationaleStore:
    store, inputs = started(data, file), object.__new__(Inputs)
    for name, value in (("data", data), ("trainer", None), ("model", None)):
        object.__setattr__(inputs, name, value)
    verify(inputs, data, store)
    return store


@pytest.fixture
def backbone(monkeypatch: pytest.MonkeyPatch) -> Backbone:
    return Backbone(monkeypatch)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.json*"))}


def test_ended_after_any_line_it_ends_the_same(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(yard(tmp_path / "whole", "hint"), tmp_path / "whole" / "texts.jsonl")
    assert whole.chosen.ways == WAYS
    steps = backbone.done.total()
    assert steps == len(TRAIN) * 2 + TOLD * 2
    assert set(backbone.done.values()) == {1}
    expected = files(tmp_path / "whole")
    for step in range(steps + 1):
        folder, backbone.done = tmp_path / str(step), Counter()
        data = yard(folder, "hint")
        backbone.left = step
        with pytest.raises(KilledError):
            run(data, folder / "texts.jsonl")
        backbone.left = 10**6
        again = run(data, folder / "texts.jsonl")
        assert again.chosen.ways == WAYS
        assert backbone.done.total() == steps, "something was done twice, or not at all"
        assert files(folder) == expected
    done = backbone.done.total()
    run(yard(tmp_path / "whole", "hint"), tmp_path / "whole" / "texts.jsonl")
    assert backbone.done.total() == done


def test_what_is_said(tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(verification, "print_rank_zero", said.append)
    file = tmp_path / "texts.jsonl"
    data = yard(tmp_path, "hint")
    store = run(data, file)
    (classes,), (hinted,) = (tmp_path.glob(f"texts-{what}-*.jsonl") for what in BESIDE)
    assert said[:-1] == [
        f"Stage 0: 8 rationales to verify into {classes}",
        "Stage 0: 2 clips have no rationale that leads to their class; a second try, 2 each, "
        f"label-conditioned, goes into {hinted}",
        f"Stage 0: 4 rationales to verify into {classes}",
    ]
    assert said[-1] == f"data.rationale_selection (rationale): {selection_report(data, store)}"
    assert backbone.hints == ["The class is {word}."]
    said.clear()
    run(data, file)
    assert said[:-1] == [
        f"Stage 0: the classes behind 8 of 8 rationales reused from {classes}",
        f"Stage 0: the classes behind 4 of 4 rationales reused from {classes}",
    ]


@pytest.mark.parametrize("fallback", ["drop", "first"])
def test_without_a_hint_nothing_is_written_again(
    tmp_path: Path, backbone: Backbone, fallback: str
) -> None:
    store = run(yard(tmp_path, fallback), tmp_path / "texts.jsonl")
    assert {what[0] for what in backbone.done} == {"elicit"}
    assert {what[1] for what in backbone.done} == set(TRAIN)
    way = "dropped" if fallback == "drop" else "first"
    assert store.chosen.ways == {**WAYS, "train_2": way, "train_3": way}


def test_nothing_is_asked_where_no_own_rationale_is_learnt(
    tmp_path: Path, backbone: Backbone
) -> None:
    store = run(yard(tmp_path, "hint", rationale_ratio=0.0), tmp_path / "texts.jsonl")
    assert not backbone.done
    assert selection_report(yard(tmp_path, "hint"), store) is None
