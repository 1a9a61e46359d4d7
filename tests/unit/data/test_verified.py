"""Which rationale is learnt, where the model must name the right class behind it."""

import json
import shutil
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from rbft.card import Card
from rbft.clip import Clip
from rbft.data.base import Feed, VideoDataModule
from rbft.data.rationales import ByRule, RationaleStore, about
from rbft.data.verified import Verified, verified_beside
from rbft.rationales.selection import HINT as DEFAULT_HINT
from rbft.stages import STAGES
from tests.examples import CARD, Yard, collator

MADE_FROM = {"backbone": "3f2a", "prompt": "Describe.", "generation": {}, "versions": {}}
TRAIN, VAL = [f"train_{n}" for n in range(4)], ["val_0", "val_1"]
LABELS = {name: n % 2 for n, name in enumerate(TRAIN)}  # quiet, alarm, quiet, alarm
HINT = "The class is {word}."


class Relabelled(Yard):
    """A benchmark whose labels a test may correct."""

    labels: dict[str, int]

    def read(self) -> list[Clip]:
        labels = self.labels
        return [replace(clip, label=labels.get(clip.id, clip.label)) for clip in super().read()]


def yard(folder: Path, fallback: str = "drop", labels: Any = None, **more: Any) -> Yard:
    settings = {"rationale_selection": "verified", "rationale_fallback": fallback, **more}
    if fallback == "hint":
        settings = {"rationale_hint": HINT, **settings}
    made = Relabelled(folder / "card.yaml", {"train": 4, "val": 2}, **settings)
    made.labels = labels or {}
    return made


def line(name: str, text: str, sample: int = 0, **more: Any) -> dict[str, Any]:
    written = {"id": name, "rationale": text, "sample": sample, "finish": "stop", "tokens": 3}
    return {**written, "source": "self", **more}


def opened(data: Yard, file: Path, *, by_id: bool = False, samples: int = 2) -> RationaleStore:
    stage = STAGES["rationale"]
    clips = {
        clip.id: about(data.files.digest(clip), None, None, stage.prompt(data.card, clip))
        for clip in data.clips_to_describe()
    }
    selector = verified_beside(file, MADE_FROM, data, samples)
    return RationaleStore(file, MADE_FROM, clips, by_id=by_id, samples=samples, selector=selector)


def selector_of(store: RationaleStore) -> Verified:
    assert isinstance(store.selector, Verified)
    return store.selector


def write(store: RationaleStore, names: list[str] = [*TRAIN, *VAL]) -> None:  # noqa: B006
    for name in names:
        store.append(0, [line(name, f"{name}, text {sample}.", sample) for sample in range(2)])


def elicit(store: RationaleStore, right: set[tuple[str, int]], hinted: bool = False) -> None:
    """Has the model be right behind some samples and wrong behind all others."""
    selector = selector_of(store)
    file = selector.hinted if hinted else store
    assert file is not None
    for one in selector.elicited.missing(selector.to_verify(file.by_clip())):
        label = LABELS[one["id"]]
        index = label if (one["id"], one["sample"]) in right else 1 - label
        answer = {"elicited": CARD.classes[index], "probabilities": {}}
        selector.elicited.append(0, [(one, answer)])
    store.read()


def told(store: RationaleStore) -> RationaleStore:
    hinted = selector_of(store).hinted
    assert hinted is not None
    return hinted


# train_0 is right at once, train_1 with its second sample, train_2 and train_3 never.
RIGHT = {("train_0", 0), ("train_0", 1), ("train_1", 1)}


def learnt(data: Yard, store: RationaleStore, split: str = "train") -> dict[str, str]:
    return data.with_feed(Feed(rationales=store)).rationales(split).texts


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "yard-base-rationale-12.jsonl"


def test_a_clip_takes_the_first_rationale_that_leads_to_its_class(tmp_path: Path, file: Path):
    data = yard(tmp_path)
    store = opened(data, file)
    write(store)
    assert store.undecided([*TRAIN, *VAL]) == TRAIN
    elicit(store, RIGHT | {("train_3", 1)})
    assert {name: one["sample"] for name, one in store.records.items()} == {
        "train_0": 0,
        "train_1": 1,
        "train_3": 1,
        "val_0": 0,
        "val_1": 0,
    }
    assert store.dropped() == {"train_2"}
    assert store.undecided([*TRAIN, *VAL]) == store.missing([*TRAIN, *VAL]) == []
    assert learnt(data, store) == {
        "train_0": "train_0, text 0.",
        "train_1": "train_1, text 1.",
        "train_3": "train_3, text 1.",
    }


def test_nothing_is_dropped_before_the_model_was_asked(tmp_path: Path, file: Path):
    data = yard(tmp_path)
    store = opened(data, file)
    write(store)
    selector = selector_of(store)
    (one, *_) = selector.to_verify(store.by_clip())
    selector.elicited.append(0, [(one, {"elicited": "alarm"})])  # one of two samples, and wrong
    store.read()
    assert store.dropped() == set()
    assert store.undecided(TRAIN) == TRAIN
    with pytest.raises(ValueError, match="No self-generated rationale for 4 of the 4 clips"):
        learnt(data, store)


def test_labels_of_other_splits_are_never_used(tmp_path: Path, file: Path):
    data = yard(tmp_path, "hint")
    store = opened(data, file)
    write(store)
    selector = selector_of(store)
    assert {one["id"] for one in selector.to_verify(store.by_clip())} == set(TRAIN)
    assert set(selector.labels) == set(selector.elicited.clips) == set(TRAIN)
    assert set(told(store).clips) == set(TRAIN)
    elicit(store, set())
    assert {name: store.records[name]["sample"] for name in VAL} == {"val_0": 0, "val_1": 0}
    assert sorted(learnt(data, store, "val")) == VAL


def test_clips_that_are_dropped_are_replaced_and_named(tmp_path: Path, file: Path, qwen: Path):
    data = yard(tmp_path)
    store = opened(data, file)
    write(store)
    elicit(store, {("train_0", 0), ("train_1", 0), ("train_3", 0)})
    make = collator(qwen, target_stage="rationale")
    data.feed = Feed(rationales=store, collators={"train": make})
    batches: list[Any] = list(data.train_dataloader())
    errors = [error for batch in batches for error in batch.errors if error]
    assert errors == [
        "Video train_2.mp4 has no rationale that leads to its class (data.rationale_selection "
        "verified). In training, clip train_0 takes the place of train_2."
    ]
    assert data.steps(1, 1) == 1


def test_a_class_that_is_left_with_nothing_is_an_error(tmp_path: Path, file: Path):
    data = yard(tmp_path)
    store = opened(data, file)
    write(store)
    elicit(store, {("train_0", 0), ("train_2", 0)})
    with pytest.raises(ValueError, match="leads to that class") as error:
        learnt(data, store)
    assert str(error.value) == (
        "Of none of the 2 training clips of class 'alarm' a rationale leads to that class "
        "(data.rationale_selection verified). Have more drawn (model.rationale_sampling.samples), "
        "set data.rationale_fallback to first or hint, or data.rationale_selection to first."
    )


def test_the_fallback_first_keeps_every_clip(tmp_path: Path, file: Path):
    data = yard(tmp_path, "first")
    store = opened(data, file)
    write(store)
    elicit(store, RIGHT)
    assert learnt(data, store)["train_2"] == "train_2, text 0."
    assert store.chosen.ways == {
        "train_0": "right",
        "train_1": "right",
        "train_2": "first",
        "train_3": "first",
    }
    assert data.with_feed(Feed(rationales=store)).rationales("train").label_conditioned == []


def second_try(folder: Path, file: Path, **more: Any) -> tuple[Yard, RationaleStore]:
    """The second try leads train_2 to its class, and train_3 to another."""
    data = yard(folder, "hint", **more)
    store = opened(data, file)
    write(store)
    elicit(store, RIGHT)
    hinted = told(store)
    assert hinted.missing(selector_of(store).lacking(store.by_clip())) == ["train_2", "train_3"]
    for name in ("train_2", "train_3"):
        hinted.append(0, [line(name, f"{name}, told {sample}.", sample) for sample in range(2)])
    return data, store


def test_the_second_try_is_marked_and_must_lead_to_the_class_itself(tmp_path: Path, file: Path):
    data, store = second_try(tmp_path, file)
    assert store.undecided(TRAIN) == ["train_2", "train_3"]  # the model was not asked yet
    elicit(store, {("train_2", 1)}, hinted=True)
    assert store.records["train_2"]["rationale"] == "train_2, told 1."
    assert store.records["train_2"]["label_conditioned"] is True
    assert store.dropped() == {"train_3"}
    assert {name for name, one in store.records.items() if "label_conditioned" in one} == {
        "train_2"
    }
    lines = [json.loads(one) for one in told(store).lines.part(0).read_text().splitlines()]
    assert [one["label_conditioned"] for one in lines] == [True] * 4
    fed = data.with_feed(Feed(rationales=store))
    assert fed.rationales("train").label_conditioned == ["train_2"]
    assert fed.rationales("train").counts() == {
        "learnt": 3,
        "cut": 0,
        "share_cut": 0.0,
        "label_conditioned": 1,
    }
    report = selector_of(store).report(store.by_clip(), store.chosen.ways, data.card.classes)
    assert (report.asked, report.right) == (8, 3)
    assert report.as_dict() == {
        "selection": "verified",
        "fallback": "hint",
        "samples": 8,
        "right": 3,
        "classes": {
            "quiet": {"right": 1, "hinted": 1, "first": 0, "dropped": 0},
            "alarm": {"right": 1, "hinted": 0, "first": 0, "dropped": 1},
        },
        "label_conditioned": ["train_2"],
        "first": [],
        "dropped": ["train_3"],
    }
    assert str(report).splitlines() == [
        "3 of 8 rationales lead to the right class (37.5%). What the 4 training clips take:",
        "----------------------------------------------",
        "class  right class  label-conditioned  dropped",
        "----------------------------------------------",
        "quiet            1                  1        0",
        "alarm            1                  0        1",
        "----------------------------------------------",
        "label-conditioned: train_2",
        "dropped: train_3",
        "1 rationale is label-conditioned: its writer was told the class, which the paper's never "
        "is. Results do not compare with the paper's.",
    ]


def test_training_asks_without_the_hint(tmp_path: Path):
    data = yard(tmp_path, "hint")
    clip = data.clips("train")[1]
    plain, hinted = STAGES["rationale"], replace(STAGES["rationale"], hint=HINT)
    assert hinted.prompt(CARD, clip) == f"{plain.prompt(CARD, clip)}\nThe class is abnormal."
    assert all(not stage.hint for stage in STAGES.values())


# Two settings must not meet in one file, nor a rationale pass for what it is not.


def test_other_settings_find_nothing_of_the_second_try(tmp_path: Path, file: Path):
    data, store = second_try(tmp_path, file)
    elicit(store, {("train_2", 0), ("train_3", 0)}, hinted=True)
    assert len(data.with_feed(Feed(rationales=store)).rationales("train").label_conditioned) == 2
    for fallback, dropped in (("drop", {"train_2", "train_3"}), ("first", set())):
        other = yard(tmp_path, fallback)
        own = opened(other, file)
        assert own.dropped() == dropped
        assert other.with_feed(Feed(rationales=own)).rationales("train").label_conditioned == []
    first = RationaleStore(file, MADE_FROM, store.clips, samples=2, selector=ByRule("first"))
    assert all("label_conditioned" not in one for one in first.records.values())
    reworded = opened(yard(tmp_path, "hint", rationale_hint="It is {word}."), file)
    assert told(reworded).path != told(store).path
    assert reworded.undecided(TRAIN) == ["train_2", "train_3"]


def test_a_corrected_label_has_a_second_try_of_its_own(tmp_path: Path, file: Path):
    """What was written under the hint of the old label is left alone, and train_0 turns wrong."""
    _, store = second_try(tmp_path, file)
    elicit(store, {("train_2", 0), ("train_3", 0)}, hinted=True)
    corrected = opened(yard(tmp_path, "hint", {"train_0": 1, "train_2": 1}), file)
    assert told(corrected).path == told(store).path
    # Both were taken for "alarm" behind all samples of train_2, which is now right.
    assert corrected.chosen.ways["train_2"] == "right"
    assert corrected.undecided(TRAIN) == ["train_0"]
    assert told(corrected).missing(["train_0", "train_2", "train_3"]) == ["train_0", "train_2"]
    assert [one["id"] for one in told(corrected).others] == ["train_2", "train_2"]


def test_told_texts_do_not_pass_for_own_ones(tmp_path: Path, file: Path):
    data, store = second_try(tmp_path, file)
    elicit(store, {("train_2", 0), ("train_3", 0)}, hinted=True)
    hinted = told(store)
    hinted.merge(TRAIN)
    own = tmp_path / "mine.jsonl"
    shutil.copy(hinted.path, own)  # without provenance: each line still says what it is about
    assert opened(data, own, by_id=True).missing(TRAIN) == TRAIN
    shutil.copy(hinted.lines.sidecar, own.with_suffix(".provenance.json"))
    with pytest.raises(ValueError, match=r"hint: \"The class is {word}.\" in the file, null now"):
        opened(data, own, by_id=True)
    # And the reverse: the clip's own text is none of the second try.
    shutil.copy(file.with_name(f"{file.name}.part0"), hinted.path)
    again = opened(data, file)
    assert told(again).missing(["train_2"]) == ["train_2"]


def test_a_mark_that_is_lost_does_not_make_a_text_an_own_one(tmp_path: Path, file: Path):
    data, store = second_try(tmp_path, file)
    elicit(store, {("train_2", 0)}, hinted=True)
    part = told(store).lines.part(0)
    part.write_text(part.read_text().replace(', "label_conditioned": true', ""))
    assert "label_conditioned" not in part.read_text()
    again = opened(data, file)
    assert data.with_feed(Feed(rationales=again)).rationales("train").label_conditioned == [
        "train_2"
    ]


def test_a_line_of_one_s_own_that_is_marked_must_be_asked_for(tmp_path: Path):
    file = tmp_path / "mine.jsonl"
    rows = [line(name, f"{name}.", label_conditioned=name == "train_1") for name in TRAIN]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    clips = {name: about("v", None, None, "P") for name in TRAIN}
    for rule in ("first", "consistent"):
        plain = RationaleStore(file, {}, clips, by_id=True, selector=ByRule(rule))
        with pytest.raises(ValueError, match="1 of 4 rationales are label-conditioned"):
            _ = plain.records
    for fallback in ("drop", "first"):
        refused = opened(yard(tmp_path, fallback), file, by_id=True, samples=1)
        elicited = selector_of(refused).elicited
        if not elicited.found:
            right = {name: {"elicited": CARD.classes[LABELS[name]]} for name in TRAIN}
            elicited.append(0, [(row, right[row["id"]]) for row in rows])
        with pytest.raises(ValueError, match="1 of 4 rationales are label-conditioned"):
            _ = refused.records
    data = yard(tmp_path, "hint")
    asked = opened(data, file, by_id=True, samples=1)
    assert data.with_feed(Feed(rationales=asked)).rationales("train").label_conditioned == [
        "train_1"
    ]
    assert asked.chosen.ways["train_1"] == "hinted"


def test_a_clip_whose_second_try_cannot_be_decoded_is_dropped(tmp_path: Path, file: Path):
    store = opened(yard(tmp_path, "hint"), file)
    write(store)
    elicit(store, RIGHT)
    lost = {"rationale": "", "finish": "undecodable", "tokens": 0, "error": "It is damaged."}
    told(store).append(0, [{**line("train_2", ""), **lost}])
    store.read()
    assert store.dropped() == {"train_2"}
    assert store.undecided(TRAIN) == ["train_3"]


def test_other_words_are_another_question(tmp_path: Path, file: Path):
    store = opened(yard(tmp_path), file)
    write(store)
    elicit(store, RIGHT)
    words = dict(CARD.words) | {"quiet": "silent"}
    replace(CARD, words=words).save(tmp_path / "other.yaml")
    assert Card.load(tmp_path / "other.yaml").words == words
    settings = {"rationale_selection": "verified"}
    other = opened(Yard(tmp_path / "other.yaml", {"train": 4, "val": 2}, **settings), file)
    assert selector_of(other).elicited.path != selector_of(store).elicited.path
    assert other.undecided(TRAIN) == TRAIN


def test_human_references_stand_in_for_nothing_that_is_dropped(tmp_path: Path, file: Path):
    """Which clips take a human reference does not depend on which are dropped."""

    class Annotated(Yard):
        def read(self) -> list[Clip]:
            return [replace(clip, reference=f"Human {clip.id}.") for clip in super().read()]

    def half(selection: str) -> Yard:
        settings = {"rationale_selection": selection, "rationale_ratio": 0.5}
        return Annotated(tmp_path / "card.yaml", {"train": 4, "val": 2}, **settings)

    data = half("verified")
    store = opened(data, file)
    write(store)
    every = RationaleStore(file, MADE_FROM, store.clips, samples=2)
    before = learnt(half("first"), every)
    own = {name for name, text in before.items() if not text.startswith("Human")}
    assert len(own) == 2
    gone = min(own)
    elicit(store, {(name, 0) for name in TRAIN if name != gone})
    after = learnt(data, store)
    assert after == {name: text for name, text in before.items() if name != gone}


# Settings


SECOND = {"rationale_selection": "verified", "rationale_fallback": "hint"}


def test_defaults_are_null(tmp_path: Path):
    """So that a run that was started before there were these settings goes on."""
    plain = Yard(tmp_path / "card.yaml", {"train": 2})
    assert (plain.rationale_selection, plain.rationale_fallback) == ("first", "drop")
    parameters = signature(VideoDataModule.__init__).parameters
    for name in ("rationale_fallback", "rationale_hint"):
        assert parameters[name].default is None
    # The text of the help is that of the code.
    assert DEFAULT_HINT in " ".join((VideoDataModule.__doc__ or "").split())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"rationale_fallback": "hint"},
            "data.rationale_fallback is hint, but data.rationale_selection is first, which leaves "
            "no clip without a rationale. Set data.rationale_selection to verified, or "
            "data.rationale_fallback to null.",
        ),
        (
            {"rationale_hint": "It is {word}."},
            "data.rationale_hint is given, but data.rationale_fallback is null, which tells "
            "nobody. Set data.rationale_fallback to hint, or data.rationale_hint to null.",
        ),
        (
            {**SECOND, "rationale_hint": "Look again."},
            "data.rationale_hint ('Look again.') must hold {word}, where the class word stands, "
            "and no other field. Write {{ and }} for plain braces.",
        ),
        (
            {**SECOND, "rationale_hint": "{word} of {text}"},
            "data.rationale_hint ('{word} of {text}') must hold {word}, where the class word "
            "stands, and no other field. Write {{ and }} for plain braces.",
        ),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=r"data\.rationale_") as error:
        Yard(tmp_path / "card.yaml", {"train": 2}, **settings)
    assert str(error.value) == message
