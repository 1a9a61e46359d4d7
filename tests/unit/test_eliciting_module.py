import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule

from rbft.data.elicited import ElicitedClasses
from rbft.data.rationales import about
from rbft.data.sampler import SampleSlot
from rbft.eliciting_module import ElicitedWriter, ElicitingModule
from tests.examples import CARD, Damaged, examples, fed, module, rationale, trainer

CLIPS = {f"train_{n}": about(f"video {n}", None, None, "Name it.") for n in range(5)}


def record(name: str, text: str, sample: int) -> dict[str, Any]:
    return {"id": name, "rationale": text, "sample": sample}


def texts(yard: Damaged) -> dict[str, list[dict[str, Any]]]:
    """Three of the first clip, two of the second, one of the others."""
    return {
        clip.id: [
            record(clip.id, f"{rationale(clip)} {'So ' * number}", number)
            for number in range(max(1, 3 - place))
        ]
        for place, clip in enumerate(yard.clips("train"))
    }


def elicit(folder: Path, place: Path, size: int, *, packing: bool = True) -> list[dict[str, Any]]:
    """Classes behind the rationales of five clips, the second of which cannot be decoded."""
    yard = Damaged(place / "card.yaml", {"train": 5}, damaged=["train_1"], eval_batch_size=size)
    yard.feed = replace(yard.feed, predict_clips=yard.clips("train"))
    model = module(folder, "rationale_class")
    made = texts(yard)
    asking = ElicitingModule(model.loader, CARD, made, packing=packing)
    asking.backbone = model.backbone
    file = ElicitedClasses(place / "classes.jsonl", {}, CLIPS, CARD.classes)
    worker = trainer(place, callbacks=[ElicitedWriter(file, made)])
    worker.predict(asking.eval(), fed(yard, asking), return_predictions=False)
    assert not file.lines.parts()
    assert file.missing([one for own in made.values() for one in own]) == []
    return [json.loads(line) for line in file.path.read_text().splitlines()]


def test_neither_batches_nor_packing_count(qwen: Path, tmp_path: Path) -> None:
    whole = elicit(qwen, tmp_path / "5", 5)
    numbers = [(line["id"], line["sample"]) for line in whole]
    assert numbers == [
        *[("train_0", number) for number in range(3)],
        ("train_1", 0),
        ("train_1", 1),
        ("train_2", 0),
        ("train_3", 0),
        ("train_4", 0),
    ]
    assert len({line["probabilities"]["quiet"] for line in whole if line["id"] == "train_0"}) == 3
    for size, packing in ((1, True), (2, False)):
        again = elicit(qwen, tmp_path / str(size), size, packing=packing)
        assert [line["elicited"] for line in again] == [line["elicited"] for line in whole]
        for line, other in zip(again, whole, strict=True):
            if line["id"] != "train_1":
                expected = pytest.approx(other["probabilities"], abs=1e-5)
                assert line["probabilities"] == expected


def test_a_clip_that_cannot_be_decoded_is_right_behind_nothing(
    qwen: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lost = [line for line in elicit(qwen, tmp_path, 2) if line["id"] == "train_1"]
    error = "Video train_1.mp4 is damaged."
    assert [(line["elicited"], line["error"]) for line in lost] == [(None, error)] * 2
    assert all("probabilities" not in line for line in lost)
    assert [one.getMessage() for one in caplog.records if "train_1" in one.getMessage()] == [
        f"{error} No class can be elicited behind the rationales of clip train_1, which count as "
        f"wrong. To try again, take its lines out of {tmp_path / 'classes.jsonl'}."
    ]


def test_a_clip_that_is_repeated_to_even_out_processes_is_not_written(
    qwen: Path, tmp_path: Path
) -> None:
    """By the process whose own it is: both might round otherwise."""
    made = examples(2, [SampleSlot(1), SampleSlot(0, 0.0)])
    lines = {name: [record(name, f"{name}.", 0)] for name in ("train_0", "train_1")}
    model = module(qwen, "rationale_class")
    asking = ElicitingModule(model.loader, CARD, lines, packing=True)
    asking.backbone = model.backbone
    batch = asking.eval().collator(made)
    file = ElicitedClasses(tmp_path / "classes.jsonl", {}, CLIPS, CARD.classes)
    worker = trainer(tmp_path)
    outputs = asking.predict_step(batch)
    writer = ElicitedWriter(file, lines)
    writer.on_predict_batch_end(worker, LightningModule(), outputs, batch, 0)
    written = file.lines.part(0).read_text().splitlines()
    assert [json.loads(line)["id"] for line in written] == ["train_1"]


def test_scores_that_are_not_finite_name_the_clip(qwen: Path, tmp_path: Path) -> None:
    lines = {"train_0": [record("train_0", "It climbs.", 0)]}
    model = module(qwen, "rationale_class")
    model.backbone.lm_head.weight.data.fill_(float("nan"))
    asking = ElicitingModule(model.loader, CARD, lines, packing=True)
    asking.backbone = model.backbone
    with pytest.raises(ValueError, match="scores are not finite for the clip train_0:"):
        asking.eval().predict_step(asking.collator(examples(1)))
