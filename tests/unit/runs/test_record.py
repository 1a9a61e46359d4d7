import hashlib
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from rbft.data.content import describe_clips
from rbft.runs.record import (
    FREE_SETTINGS,
    Record,
    card_differences,
    check_card,
    check_clips,
    check_settings,
    clip_differences,
    comparable,
    digest,
    scoring_of,
    scoring_settings,
    setting_differences,
    trained_on,
)
from rbft.runtime.differences import flat
from rbft.runtime.files import write_json
from tests.examples import CARD, Yard

MADE = {
    "frames": {"fps": 1.0},
    "answer": "score",
    "precision": "32-true",
    "card": "c",
    "clips": "d",
    "stage": "label",
    "weights": "w",
}


def clip(name, video, start=None, end=None):
    return {"id": name, "video": video, "start": start, "end": end}


def test_clips_by_content(tmp_path: Path) -> None:
    yard = Yard(tmp_path / "card.yaml", {"train": 3, "val": 1, "test": 2})
    found = describe_clips(yard)
    assert {split: [clip["id"] for clip in clips] for split, clips in found.items()} == {
        "train": ["train_0", "train_1", "train_2"],
        "val": ["val_0"],
        "test": ["test_0", "test_1"],
    }
    assert found["train"][1] == {
        "id": "train_1",
        "label": "alarm",
        "video": yard.files.digest(yard.clips("train")[1]),
        "start": None,
        "end": None,
        "reference": None,
        "text": digest("Clip 1."),
    }
    assert clip_differences(found, describe_clips(yard)) == []
    other = Yard(tmp_path / "card.yaml", {"train": 3, "val": 1, "test": 2})
    other.all_clips[0] = replace(other.all_clips[0], reference="A bear.")
    assert clip_differences(found, describe_clips(other)) == [
        f"1 train clip has another reference (train_0: None -> {digest('A bear.')})"
    ]


@pytest.mark.parametrize(("before", "now"), [("abc", "cab"), ("cab", "abc"), ("bac", "xbca")])
def test_the_order_of_the_clips_that_stayed(before: str, now: str) -> None:
    old, new = ({"train": [clip(name, name) for name in names]} for names in (before, now))
    assert clip_differences(old, new)[-1] == "the train clips are in another order"
    assert clip_differences(old, old) == []


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2, None]}) == digest({"b": [2, None], "a": 1})
    assert digest(["a", "b"]) != digest(["b", "a"])
    # Results and weights of earlier versions hold such digests.
    assert digest({"b": "é"}) == hashlib.sha256(b'{"b": "\\u00e9"}').hexdigest()[:16]
    assert digest("\udcff") != digest("\udcfe")  # a byte of a file name that is no UTF-8


def test_cards_differ_by_key() -> None:
    assert card_differences(asdict(CARD), asdict(CARD)) == []
    longer = replace(CARD, words={**CARD.words, "vague": "unclear"}, persona="Owner")
    assert card_differences(asdict(CARD), asdict(longer)) == [
        'persona: "Guard" -> "Owner"',
        'words.vague: null -> "unclear"',
    ]


def test_what_decides_a_score() -> None:
    settings = {
        "data.init_args.fps": 1.0,
        "data.init_args.max_frames": 8,
        "data.init_args.batch_size": 2,
        "model.answer": "score",
        "model.max_new_tokens": 64,
        "model.learning_rate": 1e-5,
        "trainer.precision": None,
    }
    found = scoring_settings(settings)
    assert found == {
        "frames": {
            "fps": 1.0,
            "num_frames": None,
            "min_pixels": None,
            "max_pixels": None,
            "min_frames": None,
            "max_frames": 8,
        },
        "answer": "score",
        "max_new_tokens": 64,
        "quantize": None,
        "precision": "32-true",
    }
    assert scoring_settings({**settings, "model.learning_rate": 1.0}) == found
    # What older results do not say was so.
    news = {"data.init_args.sampling": "frame", "data.init_args.damaged": "error"}
    assert scoring_settings({**settings, **news}) == found
    for name, value in (
        ("data.init_args.fps", 2.0),
        ("data.init_args.max_frames", 4),
        ("data.init_args.sampling", "time"),
        ("data.init_args.damaged", "use"),
        ("model.answer", "generate"),
        ("model.quantize", "4bit"),
        ("trainer.precision", "bf16-true"),
    ):
        assert scoring_settings({**settings, name: value}) != found


@pytest.mark.parametrize("name", ["frames", "answer", "precision", "card", "clips"])
def test_results_that_were_made_otherwise_are_not_alike(name: str) -> None:
    assert comparable(MADE, {**MADE, "weights": "x", "stage": "rationale_class"})
    assert not comparable(MADE, {**MADE, name: "other"})
    assert not comparable({}, MADE)  # of an earlier version


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (clip("b", "v1"), True),  # a copy under another id
        (clip("a", "v2"), False),  # another video of the same id
        (clip("b", "v1", 10.0, 20.0), False),
        (clip("b", "v1", 12.0, 20.0), False),
        (clip("b", "v1", 1.0, 4.0), False),
        (clip("b", "v1", 9.0, 20.0), True),
        (clip("b", "v1", 0.0, 5.0), False),
        (clip("b", "v1", None, 5.5), True),
        (clip("b", "v1", None, -3.0), True),
        (clip("b", "v1", None, -7.5), False),  # 12 s: it ends at 4.5 s
        (clip("b", "v1", None, 5.0005), False),  # a rounding error
    ],
)
def test_a_clip_that_was_trained_on(other, same) -> None:
    train = [clip("a", "v1", 5.0, 10.0), clip("c", "v3")]
    found = trained_on(train, [clip("x", "v9"), other], {"v1": 12.0, "v9": None})
    assert found == ([other["id"]] if same else [])


def test_a_segment_that_ends_before_an_unknown_end_counts_as_trained_on() -> None:
    train = [clip("a", "v1", 5.0, 10.0)]
    assert trained_on(train, [clip("b", "v1", None, -7.5)], {"v1": None}) == ["b"]


SETTINGS = {
    "name": "yard",
    "model": {"learning_rate": 1e-5, "attention": "sdpa"},
    "trainer": {"devices": 1, "max_epochs": 1, "callbacks": None},
}


def changed(**values):
    model = {**SETTINGS["model"], **values.pop("model", {})}
    trainer = {**SETTINGS["trainer"], **values.pop("trainer", {})}
    return {**SETTINGS, **values, "model": model, "trainer": trainer}


@pytest.fixture
def started(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    return file


def test_settings_by_dotted_name():
    assert flat({"a": 1, "b": {"c": None, "d": {"e": [1]}}, "f": {}}) == {
        "a": 1,
        "b.c": None,
        "b.d.e": [1],
    }


def test_a_run_goes_on_under_the_same_settings(started, tmp_path):
    check_settings(started, changed())
    check_settings(tmp_path / "none.yaml", changed())


def test_what_decides_only_where_and_how_fast_may_change(started):
    check_settings(
        started,
        changed(
            name="other",
            restart=True,
            model={"attention": "eager"},
            trainer={"devices": 4, "callbacks": [{"class_path": "X"}]},
        ),
    )
    assert "trainer.devices" in FREE_SETTINGS


def test_what_decides_the_result_may_not_change(started):
    with pytest.raises(ValueError, match="was started with other settings") as error:
        check_settings(
            started,
            changed(model={"learning_rate": 1e-4, "stage": "label"}, trainer={"devices": 2}),
        )
    assert str(error.value) == (
        f"The run {started.parent} was started with other settings:\n"
        "  model.learning_rate: 1e-05 -> 0.0001\n"
        "  model.stage: None -> label\n"
        "Give the experiment another name, or add --restart true to throw away what the run has "
        "left so far."
    )


def test_settings_that_an_earlier_version_did_not_note(started):
    """A run of before `keep` goes on, but not with the best weights."""
    check_settings(started, changed(keep="last", keep_metric="val/loss", patience=None))
    with pytest.raises(ValueError, match=r"\n  keep: last -> best\n"):
        check_settings(started, changed(keep="best", keep_metric="val/loss", patience=None))


def test_a_setting_of_the_data_that_an_earlier_version_did_not_note(started):
    data = "data.init_args.rationale_selection"
    assert setting_differences({}, nested(data, "first")) == []
    assert setting_differences({}, nested(data, "consistent")) == [f"{data}: first -> consistent"]


def test_options_of_adapters_that_an_earlier_version_did_not_note():
    before = {"rank": 8, "alpha": 16, "dropout": 0.0}
    plain = {"use_dora": False, "use_rslora": False}
    plain |= {"target_modules": None, "layers_to_transform": None}
    for old, new in ((before, {**before, **plain}), (None, None), ({**before, **plain}, before)):
        assert setting_differences({"model": {"lora": old}}, {"model": {"lora": new}}) == []
    for name, value in (("use_dora", True), ("target_modules", ["q_proj"])):
        now = {**before, **plain, name: value}
        assert setting_differences({"model": {"lora": before}}, {"model": {"lora": now}}) == [
            f"model.lora.{name}: {plain[name]} -> {value}"
        ]


def nested(name: str, value: str) -> dict[str, Any]:
    """A setting as the settings file holds it."""
    first, _, rest = name.partition(".")
    return {first: nested(rest, value) if rest else value}


def entries(*names, **changes):
    facts = {"label": "quiet", "start": None, "end": None, "reference": None, "text": None}
    return [{"id": name, "video": f"video {name}", **facts, **changes} for name in names]


def test_a_run_on_other_clips_is_refused(tmp_path):
    """With `skip`, a file that appears between a kill and the restart would change the batches."""
    file = tmp_path / "yard" / "clips.json"
    clips = {"train": entries(*"abc"), "val": [], "test": entries("d")}
    check_clips(file, clips)
    write_json(file, clips)
    check_clips(file, clips)
    text = (
        f"The run {tmp_path}/yard was started with other clips: 4 train clips came (e, f, g); 1 "
        "train clip went (b); 1 test clip went (d). Put files and annotations back as they were. "
        "Give the experiment another name, or add --restart true to throw away what the run has "
        "left so far."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        check_clips(file, {"train": entries(*"acefgh"), "val": [], "test": []})


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (entries(*"cab"), "the train clips are in another order. Put"),
        (
            [*entries("a", label="alarm"), *entries(*"bc")],
            "1 train clip has another label (a: quiet -> alarm). Put",
        ),
        (
            [*entries(*"ab", video="v"), *entries("c")],
            "2 train clips have another video (a: video a -> v, b: video b -> v). Put",
        ),
        (
            [*entries("a", start=1.0, end=2.0), *entries(*"bc")],
            "1 train clip has another segment (a: None to None -> 1.0 to 2.0). Put",
        ),
        ([*entries(*"ab"), *entries("c", reference="r1")], "has another reference (c: None -> r1)"),
        ([*entries(*"ab"), *entries("c", text="t1")], "has another text (c: None -> t1)"),
    ],
)
def test_clips_are_more_than_their_ids(tmp_path, now, expected):
    file = tmp_path / "clips.json"
    write_json(file, {"train": entries(*"abc"), "val": [], "test": []})
    with pytest.raises(ValueError, match=re.escape(expected)):
        check_clips(file, {"train": now, "val": [], "test": []})


def test_a_run_whose_clips_are_known_by_id_only(tmp_path):
    file = tmp_path / "clips.json"
    write_json(file, {"train": ["a"], "val": [], "test": []})
    with pytest.raises(ValueError, match="was left by an earlier version, which noted ids only"):
        check_clips(file, {"train": entries("a"), "val": [], "test": []})


def test_a_run_with_another_card_is_refused(tmp_path):
    file = tmp_path / "yard" / "card.yaml"
    check_card(file, CARD)
    file.parent.mkdir()
    CARD.save(file)
    check_card(file, CARD)
    swapped = replace(CARD, words={"quiet": "abnormal", "alarm": "normal"})
    with pytest.raises(ValueError, match="was started with another card") as error:
        check_card(file, replace(swapped, prompts={**CARD.prompts, "less": "Describe it."}))
    assert str(error.value) == (
        f"The run {file.parent} was started with another card:\n"
        '  words.quiet: "normal" -> "abnormal"\n'
        '  words.alarm: "abnormal" -> "normal"\n'
        '  prompts.less: "Describe the walls." -> "Describe it."\n'
        f"Put the card back as it was ({file}). Give the experiment another name, or add --restart "
        "true to throw away what the run has left so far."
    )
    turned = replace(CARD, words=dict(reversed(CARD.words.items())))
    with pytest.raises(ValueError, match="order of words: quiet, alarm -> alarm, quiet"):
        check_card(file, turned)


def recorded(**changes):
    clips = {"train": entries("a"), "val": [], "test": entries("b")}
    parts = {"settings": yaml.safe_dump(SETTINGS), "card": CARD, "clips": clips}
    return Record(**{**parts, "backbone": "abc", "weights": None, **changes})


def test_a_run_is_known_by_all_that_it_is_made_from(tmp_path):
    recorded().check(tmp_path)  # nothing is noted yet
    assert recorded().keep(tmp_path, anew=False) == []
    recorded().check(tmp_path)
    for change, message in (
        ({"settings": yaml.safe_dump({**SETTINGS, "stages": []})}, "other settings"),
        ({"card": replace(CARD, persona="Owner")}, "another card"),
        ({"clips": {"train": [], "val": [], "test": []}}, "other clips"),
        ({"backbone": "xyz"}, "a model.backbone with the digest abc, which is xyz now"),
        ({"weights": "xyz"}, "a model.weights with the digest None, which is xyz now"),
    ):
        with pytest.raises(ValueError, match=f"was started (with|from) {message}"):
            recorded(**change).check(tmp_path)


def test_what_is_noted_stays_until_it_is_noted_anew(tmp_path):
    recorded().keep(tmp_path, anew=True)
    (tmp_path / "clips.json").unlink()  # as a kill would leave it
    other = recorded(backbone="xyz", settings=yaml.safe_dump({**SETTINGS, "stages": []}))
    assert other.keep(tmp_path, anew=False) == []
    assert (tmp_path / "clips.json").exists()
    recorded().check(tmp_path)
    assert other.keep(tmp_path, anew=True) == ["stages: None -> []"]
    other.check(tmp_path)


def test_what_the_scores_of_a_run_are_made_from(tmp_path):
    assert scoring_of(tmp_path, "test") is None
    record = recorded()
    record.keep(tmp_path, anew=True)
    found = scoring_of(tmp_path, "test")
    assert found is not None
    assert found["clips"] == record.digests["clips"]["test"] != record.digests["clips"]["train"]
    assert found["card"] == CARD.digest
    assert found["precision"] == "32-true"
