"""What a teacher says about training clips; tests/recipe/test_beyond_the_paper.py has it say it."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import rbft.distillation
from rbft.data.base import VideoDataModule
from rbft.data.elicited import ElicitedClasses
from rbft.data.rationales import RationaleStore, about
from rbft.distillation import soft_labels
from rbft.inputs import Inputs, Writer
from tests.examples import CARD, clips

TEACHER = Writer(Path("weights"))
QUIET, ALARM = CARD.classes


def inputs(
    monkeypatch: pytest.MonkeyPatch, folder: Path, said: dict[str, list[float | None]]
) -> Any:
    """A teacher that gives the first class these probabilities, one for each rationale."""
    train = clips(len(said))
    known = {clip.id: about(clip.id, None, None, "Why?") for clip in [*train, *clips(1, "val")]}
    lines = {
        name: [
            {"id": name, "rationale": f"{name} {number}.", "sample": number}
            for number in range(len(shares))
        ]
        for name, shares in {**said, "val_0": [0.5]}.items()
    }
    file = ElicitedClasses(folder / "classes.jsonl", {}, known, CARD.classes)
    answers = []
    for name, shares in said.items():
        for line, share in zip(lines[name], shares, strict=True):
            answer: dict[str, Any] = {"elicited": None, "error": "damaged"}
            if share is not None:
                # Not in the card's order.
                answer = {"elicited": QUIET, "probabilities": {ALARM: 1 - share, QUIET: share}}
            answers.append((line, answer))
    file.append(0, answers)
    monkeypatch.setattr(rbft.distillation, "_elicited", lambda *_: file)

    store = Mock(spec=RationaleStore)
    store.by_clip.return_value = lines
    made = Mock(spec=Inputs)
    made.data = Mock(spec=VideoDataModule)
    made.data.clips = lambda split: train if split == "train" else clips(1, "val")
    made.rationale_store.return_value = store
    return made


def test_the_mean_over_a_clip_s_rationales_in_the_card_s_order(monkeypatch, tmp_path):
    made = inputs(monkeypatch, tmp_path, {"train_0": [0.75, 0.25, 0.5], "train_1": [0.9, 0.5, 0.4]})
    found = soft_labels(made, TEACHER)
    assert found == {
        "train_0": pytest.approx([0.5, 0.5]),
        "train_1": pytest.approx([0.6, 0.4]),
    }  # and nothing about the validation clip
    made.rationale_store.assert_called_once_with(writer=TEACHER)


def test_a_clip_that_cannot_be_decoded_has_none(monkeypatch, tmp_path):
    made = inputs(monkeypatch, tmp_path, {"train_0": [None], "train_1": [0.9]})
    assert set(soft_labels(made, TEACHER)) == {"train_1"}
