"""Training clips whose rationale breaks `data.rationale_rules` are replaced, and counted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rbft.batch import IGNORED
from rbft.clip import Clip
from rbft.data.rationales import UNDECODABLE
from rbft.rationales.quality import QualityRules
from tests.examples import Texts, Yard, clips, collator, rationale

SORRY = "I'm sorry, I cannot help with that."
RULES = QualityRules(refusals=True)


def yard(folder: Path, refused: list[str], *, rules: QualityRules | None = RULES, **more: Any):
    """Eight training clips and two to validate on, some of whose rationales are refusals."""
    made = Yard(folder / "card.yaml", {"train": 8, "val": 2}, rationale_rules=rules, **more)
    texts = {
        clip.id: SORRY if clip.id in refused else rationale(clip) * (number + 1)
        for number, clip in enumerate([*clips(8), *clips(2, "val")])
    }
    made.feed = replace(made.feed, rationales=Texts(texts))
    return made


def test_without_rules_all_rationales_are_trained_on(tmp_path: Path) -> None:
    made = yard(tmp_path, ["train_1"], rules=None)
    assert len(made.rationales("train").texts) == 8
    assert made.rationales("train").texts["train_1"] == SORRY
    assert made.rationales("train").report is None
    without_effect, without = (yard(tmp_path, [], rules=one) for one in (QualityRules(), None))
    assert without_effect.rationales("train").samples == without.rationales("train").samples


def test_those_that_break_a_rule_are_left_out_of_training_alone(tmp_path: Path) -> None:
    made = yard(tmp_path, ["train_1", "train_6", "val_0"])
    assert sorted(made.rationales("train").texts) == [f"train_{n}" for n in (0, 2, 3, 4, 5, 7)]
    assert made.rationales("val").texts["val_0"] == SORRY
    assert made.rationales("train").counts()["learnt"] == 6
    report = made.rationales("train").report
    assert report is not None
    assert report.dropped == {"refusal": ["train_1", "train_6"]}
    assert report.clips == {"quiet": (4, 3), "alarm": (4, 3)}


def test_steps_and_the_loss_s_denominator_stay_as_they_are(tmp_path: Path, qwen: Path) -> None:
    """The next clip of the class stands in, as for one that cannot be decoded."""
    made, every = yard(tmp_path, ["train_1", "train_3", "train_6"]), yard(tmp_path, [])
    make = collator(qwen, target_stage="rationale")
    made.feed = replace(made.feed, collators={"train": make})
    assert made.steps(1, 1) == every.steps(1, 1) == 2
    epoch: list[Any] = list(made.train_dataloader())
    stand_ins, labels = {}, []
    for batch in epoch:
        labels += batch.label.tolist()
        for index, error in zip(batch.index.tolist(), batch.errors, strict=True):
            if error:
                assert "has a rationale that breaks data.rationale_rules. In training" in error
                lost = error.rpartition(" of ")[2].rstrip(".")
                stand_ins[lost] = made.clips("train")[index].id
    assert stand_ins == {"train_1": "train_5", "train_3": "train_5", "train_6": "train_0"}
    assert sorted(labels) == [0] * 4 + [1] * 4  # as many of each class as without rules
    for first in (0, 4):  # global batches of four
        batches = epoch[first : first + 4]
        tokens = sum(
            float(((b.answer.labels != IGNORED).sum(-1) * b.weight).sum()) for b in batches
        )
        assert {float(batch.total) for batch in batches} == {tokens}


def test_human_references_keep_the_rules_too(tmp_path: Path) -> None:
    """What is judged is the mix that training takes, not what was written beside it."""

    class Referenced(Yard):
        def read(self) -> list[Clip]:
            bad = {"train_2"}
            return [
                replace(clip, reference=SORRY if clip.id in bad else f"Seen: {clip.id}.")
                for clip in super().read()
            ]

    made = Referenced(tmp_path / "card.yaml", {"train": 8}, rationale_rules=RULES)
    # The refusals that the model wrote are not taken at 0 %, and so break nothing.
    made.feed = replace(made.feed, rationales=Texts({f"train_{n}": SORRY for n in range(8)}))
    made.rationale_ratio = 0.0
    assert sorted(made.rationales("train").texts) == [f"train_{n}" for n in (0, 1, 3, 4, 5, 6, 7)]


def test_a_clip_that_could_not_be_decoded_is_said_to_be_that(tmp_path: Path, qwen: Path) -> None:
    made = yard(tmp_path, ["train_1"])
    store = made.feed.rationales
    assert store is not None
    texts = {name: text for name, text in store.texts().items() if name != "train_2"}
    made.feed = replace(made.feed, rationales=Texts(texts, (), {"train_2"}))
    made.feed = replace(made.feed, collators={"train": collator(qwen, target_stage="rationale")})
    errors = [e for batch in made.train_dataloader() for e in batch.errors if e]
    assert len(errors) == 2
    (undecodable,) = [error for error in errors if "place of train_2" in error]
    assert "could not be decoded when rationales were written" in undecodable
    assert UNDECODABLE not in undecodable


def test_a_class_that_is_left_with_none_is_named(tmp_path: Path) -> None:
    made = yard(tmp_path, [f"train_{n}" for n in (1, 3, 5, 7)])
    with pytest.raises(
        ValueError,
        match=r"^No rationale of class 'alarm' keeps data\.rationale_rules: its 4 clips lose all "
        r"theirs \(refusal 4\)\. Loosen these rules, name them in "
        r"data\.rationale_rules\.only_flag, or have the rationales written anew\.$",
    ):
        made.rationales("train")
