"""A file that passes the scan and cannot be decoded is replaced or counted, never silently."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from rbft.batch import IGNORED
from rbft.callbacks.pictures import Pictures
from rbft.callbacks.results import ResultsWriter
from rbft.clip import Clip
from rbft.data.dataset import REPLACEMENTS, ClipDataset, Example, replacements
from rbft.data.rationales import UNDECODABLE, RationaleStore, about
from rbft.data.sampler import SampleSlot
from rbft.module import RBFTModule
from rbft.rationale_module import RationaleWriter
from rbft.video.sampling import Video, VideoError
from tests.examples import (
    CARD,
    MODULE_SETTINGS,
    Damaged,
    Texts,
    clips,
    collator,
    fed,
    module,
    random_video,
    rationale,
    rationale_module,
    trainer,
)


def reason(clip: Clip) -> str:
    return f"Video {clip.path} is damaged."


def dataset(damaged: Sequence[int], tokens: list[int] | None, size: int = 6) -> ClipDataset:
    def see(clip: Clip) -> tuple[Video, str]:
        if int(clip.id.rpartition("_")[2]) in damaged:
            raise VideoError.of(clip.path, "is damaged.")
        return random_video(clip.id, (2, 28, 28)), ""

    made = clips(size)
    return ClipDataset(
        made, see, {clip.id: "text" for clip in made}, None if tokens is None else [tokens]
    )


# In training


def test_the_next_clip_of_the_class_takes_the_place() -> None:
    data = dataset([1, 3], tokens=[1, 6, 1, 1, 1, 4])
    got = data[SampleSlot(1, weight=2.0, total=50.0)]
    assert got.clip.id == "train_5"
    assert got.draw == SampleSlot(5, 2.0 * 6 / 4, 50.0)  # as many weighted tokens as were counted
    assert got.error == (
        "Video train_1.mp4 is damaged. In training, clip train_5 takes the place of train_1."
    )
    assert data[SampleSlot(3)].clip.id == "train_5"
    assert data[SampleSlot(5)].error == ""
    again = dataset([5], tokens=[1] * 6)
    assert again[SampleSlot(5)].clip.id == "train_1"


def test_a_clip_without_rationale_is_replaced_too() -> None:
    data = dataset([], tokens=[1] * 6)
    del data.rationales["train_0"]  # type: ignore[attr-defined]
    got = data[SampleSlot(0)]
    assert got.draw == SampleSlot(0 + 2)
    assert (got.clip.id, got.rationale) == ("train_2", "text")
    assert "train_0.mp4 could not be decoded when rationales were written." in got.error


def test_replacing_is_bounded() -> None:
    size = 2 * (REPLACEMENTS + 2)
    data = dataset(range(0, size - 2, 2), tokens=[1] * size, size=size)
    with pytest.raises(
        ValueError,
        match=r"^Video train_0\.mp4 is damaged\. No other clip can take the place of train_0: the "
        r"next ones of its class cannot be decoded either \(train_2, .*\)\. Mend or remove",
    ) as error:
        _ = data[SampleSlot(0)]
    assert str(error.value).count("train_") == REPLACEMENTS + 2
    with pytest.raises(ValueError, match=r"either \(none\)"):
        _ = dataset([0], tokens=[1], size=1)[SampleSlot(0)]


@pytest.mark.parametrize("stage", ["rationale", "label"])
def test_the_loss_stays_normalised(tmp_path: Path, qwen: Path, stage: str) -> None:
    """The weighted answer tokens of each global batch are what its loss is divided by."""
    yard = Damaged(
        tmp_path / "card.yaml", {"train": 8}, damaged=["train_3", "train_6"], class_weights=True
    )
    yard.feed = replace(yard.feed, collators={"train": collator(qwen, target_stage=stage)})
    for epoch in (list(yard.train_dataloader()),):
        for first in range(0, len(epoch), 4):
            batches: list[Any] = epoch[first : first + 4]
            tokens = sum(
                ((batch.answer.labels != IGNORED).sum(-1) * batch.weight).sum() for batch in batches
            )
            assert float(tokens) == pytest.approx(float(batches[0].total))
        assert sum(bool(error) for batch in epoch for error in batch.errors) == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("cut", [[], ["train_0", "train_5"]])
def test_a_clip_that_stage_0_could_not_describe_has_its_share(
    tmp_path: Path, qwen: Path, cut: list[str]
) -> None:
    """The one in its place weighs 1, as if it stood there itself, and the total is exact."""
    yard = Damaged(tmp_path / "card.yaml", {"train": 8}, damaged=["train_1"], class_weights=True)
    texts = {clip.id: rationale(clip) * (number + 1) for number, clip in enumerate(clips(8))}
    # train_3 lacks one too, so that train_5 is the next of the class of train_1.
    lost = {"train_1", "train_3", "train_6"}
    yard.feed = replace(
        yard.feed, rationales=Texts({n: t for n, t in texts.items() if n not in lost}, cut, lost)
    )  # type: ignore[arg-type]
    make = collator(qwen, target_stage="rationale")
    yard.feed = replace(yard.feed, collators={"train": make})
    epoch: list[Any] = list(yard.train_dataloader())
    assert yard.rationales("train").counts()["learnt"] == 5
    tokens, stand_ins = 0, []
    for batch in epoch:
        own = (batch.answer.labels != IGNORED).sum(-1)
        tokens += int((own * batch.weight).sum())
        stand_ins += [
            yard.clips("train")[index].id
            for index, error in zip(batch.index.tolist(), batch.errors, strict=True)
            if error
        ]
        assert batch.weight.tolist() == [1.0] * len(batch)
    assert sorted(stand_ins) == ["train_0", "train_5", "train_5"]
    expected = [0, 5, 2, 5, 4, 5, 0, 7]
    whole = [make.answer_tokens(clips(8)[n], texts[f"train_{n}"]) for n in expected]
    ends = sum(f"train_{n}" in cut for n in expected)
    assert tokens == sum(whole) - ends
    for first in (0, 4):  # global batches of four
        totals = {float(batch.total) for batch in epoch[first : first + 4]}
        counted = sum(
            float(((b.answer.labels != IGNORED).sum(-1) * b.weight).sum())
            for b in epoch[first : first + 4]
        )
        assert totals == {counted}


def test_a_clip_whose_class_has_no_rationale_at_all(tmp_path: Path) -> None:
    yard = Damaged(tmp_path / "card.yaml", {"train": 4}, damaged=[])
    texts = {"train_0": "word", "train_2": "word"}
    lost = {"train_1", "train_3"}
    yard.feed = replace(yard.feed, rationales=Texts(texts, (), lost))
    from tests.unit.data.test_base import Ids

    yard.feed = replace(yard.feed, collators={"train": Ids(needs_rationales=True)})
    with pytest.raises(ValueError, match=r"No other clip can take the place of train_[13]: "):
        list(yard.train_dataloader())


class Logged(Callback):
    def __init__(self) -> None:
        self.replaced: list[float] = []

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        self.replaced.append(float(trainer.callback_metrics.get("train/replaced", 0)))


def test_replaced_clips_are_counted_and_named(
    tmp_path: Path, qwen: Path, caplog: pytest.LogCaptureFixture
) -> None:
    yard = Damaged(
        tmp_path / "card.yaml",
        {"train": 8, "val": 2},
        damaged=["train_0", "train_3", "val_1"],
        batch_size=4,
    )
    model = RBFTModule(str(qwen), CARD, stage="label", **MODULE_SETTINGS)
    logged = Logged()
    with caplog.at_level(logging.WARNING):
        fitter = trainer(tmp_path, callbacks=[logged, Pictures("", {})])
        fitter.fit(model, fed(yard, model))
    assert sum(logged.replaced) == 2
    named = [record.getMessage() for record in caplog.records if "place of" in record.getMessage()]
    assert sorted(name.split()[1] for name in named) == ["train_0.mp4", "train_3.mp4"]
    assert float(fitter.callback_metrics["val/unparsed"]) == 0.5
    assert torch.isfinite(fitter.callback_metrics["val/loss"])


# In test


def test_an_undecodable_clip_is_wrong_and_named(
    tmp_path: Path, qwen: Path, caplog: pytest.LogCaptureFixture
) -> None:
    yard = Damaged(tmp_path / "card.yaml", {"test": 4}, damaged=["test_2"], eval_batch_size=3)
    writer = ResultsWriter(tmp_path / "label/test.json", "test", {})
    model, callbacks = module(qwen), [writer, Pictures("", {})]
    trainer(tmp_path, callbacks=callbacks).test(model, fed(yard, model), verbose=False)
    result = json.loads((tmp_path / "label/test.json").read_text())
    assert (result["n_undecodable"], result["undecodable"]) == (1, ["test_2"])
    assert (result["n_scored"], result["n_unparsed"]) == (4, 1)
    assert [row[-1] for row in result["confusion"]] == [1, 0]
    lines = (tmp_path / "label/test_predictions.jsonl").read_text().splitlines()
    assert json.loads(lines[2]) == {
        "id": "test_2",
        "label": "quiet",
        "prediction": None,
        "error": "Video test_2.mp4 is damaged.",
    }
    assert "1 of 4 test clips cannot be decoded and count as wrong" in caplog.text


# When rationales are written


def test_stage_0_notes_what_it_could_not_describe(
    tmp_path: Path, qwen: Path, caplog: pytest.LogCaptureFixture
) -> None:
    yard = Damaged(tmp_path / "card.yaml", {"train": 4}, damaged=["train_1"])
    names = ("texts.jsonl", "others.jsonl")
    clips = {c.id: about(yard.files.digest(c), None, None, "") for c in yard.clips("train")}
    stores = [RationaleStore(tmp_path / name, {}, clips) for name in names]
    worker = trainer(tmp_path, callbacks=[RationaleWriter(stores)])
    model = rationale_module(qwen, CARD, CARD.using("less"))
    yard.feed = replace(yard.feed, predict_clips=yard.clips("train"))
    worker.predict(model, fed(yard, model), return_predictions=False)
    for name in names:
        store = RationaleStore(tmp_path / name, {}, clips)
        yard.feed = replace(yard.feed, rationales=store)
        assert store.undecodable() == {"train_1"}
        assert store.missing([clip.id for clip in yard.clips("train")]) == []
        assert store.records["train_1"]["finish"] == UNDECODABLE
        assert set(yard.rationales("train").texts) == {"train_0", "train_2", "train_3"}
        assert f"To try again, take its line out of {tmp_path / name}." in caplog.text
    assert "Clip train_1 has no rationale; in training another takes its place." in caplog.text
    yard.damaged = []
    data = ClipDataset(
        yard.clips("train"), yard.reader.load, yard.rationales("train").texts, [[1, 1, 1, 1]]
    )
    got: Example = data[SampleSlot(1)]
    assert got.clip.id == "train_3"


def test_a_clip_with_the_same_classes_takes_the_place_first() -> None:
    """Few clips have the very same; then the next ones that have others do."""
    owned = [(0, 1), (0,), (), (0, 1), (1,)]
    made = [replace(c, label=None, labels=own) for c, own in zip(clips(5), owned, strict=True)]
    assert replacements(made, 0, None) == [3, 1, 2, 4]
    assert replacements(made, 4, None) == [0, 1, 2, 3]
    assert replacements(made, 0, {made[2].id: "x"}) == [2]
