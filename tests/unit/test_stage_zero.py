import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule

from rbft.data.rationales import RationaleStore, about
from rbft.data.sampler import SampleSlot
from rbft.inference.generation import prefill
from rbft.inference.sampling import RationaleSampling
from rbft.rationale_module import RationaleWriter, Written
from rbft.stage_zero import check_prompts, group_by_missing_prompts
from rbft.video.sampling import Video
from tests.examples import (
    CARD,
    Damaged,
    clips,
    collator,
    examples,
    fed,
    prompt_of,
    rationale_module,
    trainer,
)
from tests.tiny import tiny_backbone

END, OTHER_END = 376, 70

ABOUT = {f"train_{n}": about(f"video {n}", None, None, "Describe it.") for n in range(5)}


@pytest.fixture
def two_ends(tmp_path: Path) -> Path:
    """A backbone of whose answers a second id is the end, which is no special token."""
    folder = tiny_backbone(tmp_path / "qwen2_5_vl", "qwen2_5_vl")
    config = {"eos_token_id": [END, OTHER_END], "repetition_penalty": 1.05}
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


def test_what_a_rationale_s_line_says(two_ends: Path, tmp_path: Path):
    """How it ended, its tokens with the end and its text without; clips repeated have no line."""
    draws = [SampleSlot(0), SampleSlot(1), SampleSlot(2), SampleSlot(3), SampleSlot(0, 0.0)]
    made = examples(4, draws[:4])
    made = [*made, replace(made[0], draw=draws[4])]
    made[3] = replace(made[3], error="Video train_3.mp4 is damaged.")
    batch = collator(two_ends, prompt_stage="rationale")(made)
    texts = ["It climbs.", "It climbs. ", "\nIt climbs.", "", "It climbs."]
    ids = [[75] * size for size in (4, 5, 6, 0, 4)]
    written = Written(ids, texts, [True, True, False, True, True])
    store = RationaleStore(tmp_path / "texts.jsonl", {}, ABOUT)
    worker, model = trainer(tmp_path), LightningModule()
    RationaleWriter([store]).on_predict_batch_end(worker, model, [written], batch, 0)
    lines = (tmp_path / "texts.jsonl.part0").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert [(r["id"], r["rationale"], r["finish"], r["tokens"]) for r in found] == [
        ("train_0", "It climbs.", "stop", 4),
        ("train_1", "It climbs.", "stop", 5),
        ("train_2", "It climbs.", "length", 6),
        ("train_3", "", "undecodable", 0),
    ]
    assert {record["source"] for record in found} == {"self"}
    # The frames that were described, by their numbers in the file; none where there were none.
    frames = [one.video.indices for one in made[:3] if isinstance(one.video, Video)]
    assert [r.get("frames") for r in found] == [*frames, None]
    assert [r.get("fps") for r in found] == [10.0, 10.0, 10.0, None]
    assert store.cut() == {"train_2"}
    assert store.undecodable() == {"train_3"}


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_how_the_model_s_own_texts_end(two_ends: Path, tmp_path: Path, finish: str):
    model = rationale_module(two_ends, max_new_tokens=3)
    if finish == "stop":
        batch = collator(two_ends, prompt_stage="rationale")(examples(5))
        (read,) = prefill(model.backbone, [prompt_of(batch)], batch.video)
        with torch.no_grad():  # the second end becomes the likeliest token
            model.backbone.lm_head.weight[OTHER_END] = read.hidden.mean(0).sign()
    yard = Damaged(tmp_path / "card.yaml", {"train": 5}, damaged=["train_1"], eval_batch_size=2)
    yard.feed = replace(yard.feed, predict_clips=yard.clips("train"))
    store = RationaleStore(tmp_path / "texts.jsonl", {}, ABOUT)
    worker = trainer(tmp_path, callbacks=[RationaleWriter([store])])
    worker.predict(model, fed(yard, model), return_predictions=False)
    ends = {name: (r["finish"], r["tokens"]) for name, r in store.records.items()}
    assert ends.pop("train_1") == ("undecodable", 0)
    assert set(ends) == {"train_0", "train_2", "train_3", "train_4"}
    assert set(ends.values()) == {("stop", 1) if finish == "stop" else ("length", 3)}


DRAWN = RationaleSampling(temperature=1.0, top_p=0.95, samples=3, seed=1)


def stage_zero(
    folder: Path, place: Path, size: int, sampling: RationaleSampling, *names: str, **settings: Any
) -> list[RationaleStore]:
    """Rationales of five clips, the second of which cannot be decoded, in batches of `size`."""
    names = names or ("rationale",)
    cards = [CARD.using(name) for name in names]
    model = rationale_module(folder, *cards, max_new_tokens=8, **settings)
    model.sampling = sampling
    abouts = [
        {f"train_{n}": about(f"video {n}", None, None, name) for n in range(5)} for name in names
    ]
    model.abouts += abouts
    yard = Damaged(place / "card.yaml", {"train": 5}, damaged=["train_1"], eval_batch_size=size)
    yard.feed = replace(yard.feed, predict_clips=yard.clips("train"))
    stores = [
        RationaleStore(place / f"{name}.jsonl", {}, own, samples=sampling.samples)
        for name, own in zip(names, abouts, strict=True)
    ]
    worker = trainer(place, callbacks=[RationaleWriter(stores)])
    worker.predict(model, fed(yard, model), return_predictions=False)
    return stores


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_all_samples_of_a_clip_whatever_the_batches(two_ends: Path, tmp_path: Path, packing: bool):
    (whole,) = stage_zero(two_ends, tmp_path / "5", 5, DRAWN, packing=packing)
    clips_read = ["train_0", "train_2", "train_3", "train_4"]
    drawn = [(name, number) for name in clips_read for number in range(3)]
    lines = [*map(json.loads, (tmp_path / "5/rationale.jsonl").read_text().splitlines())]
    found = [(line["id"], line["sample"]) for line in lines]
    assert found == [*drawn[:3], ("train_1", 0), *drawn[3:]]
    assert whole.undecodable() == {"train_1"}
    texts = {(one["id"], one["sample"]): one["rationale"] for one in whole.all_records()}
    assert len({texts["train_0", number] for number in range(3)}) == 3
    for size in (1, 2):
        (again,) = stage_zero(two_ends, tmp_path / str(size), size, DRAWN, packing=packing)
        assert again.written == whole.written
    (fewer,) = stage_zero(two_ends, tmp_path / "1 sample", 2, replace(DRAWN, samples=1))
    assert {name: one["rationale"] for name, one in fewer.records.items()} == {
        name: text for (name, number), text in texts.items() if number == 0
    }
    (other,) = stage_zero(two_ends, tmp_path / "seed", 5, replace(DRAWN, seed=2))
    assert all(other.texts()[name] != whole.texts()[name] for name in clips_read)


def test_the_samples_of_a_clip_stand_together_before_they_are_joined(
    two_ends: Path, tmp_path: Path
):
    """A kill within a write then cuts through one clip alone."""
    batch = collator(two_ends, prompt_stage="rationale")(examples(3))
    written = [
        Written([[75, END]] * 3, [f"It climbs {n}."] * 3, [True] * 3, sample=n) for n in range(2)
    ]
    store = RationaleStore(tmp_path / "texts.jsonl", {}, ABOUT, samples=2)
    worker, model = trainer(tmp_path), LightningModule()
    RationaleWriter([store]).on_predict_batch_end(worker, model, written, batch, 0)
    lines = map(json.loads, (tmp_path / "texts.jsonl.part0").read_text().splitlines())
    assert [(line["id"], line["sample"]) for line in lines] == [
        (f"train_{clip}", number) for clip in range(3) for number in range(2)
    ]


def test_samples_of_several_prompts(two_ends: Path, tmp_path: Path):
    """Those that a pass for each prompt writes."""
    both = stage_zero(two_ends, tmp_path / "both", 2, DRAWN, "rationale", "less")
    for store, name in zip(both, ("rationale", "less"), strict=True):
        (alone,) = stage_zero(two_ends, tmp_path / name, 2, DRAWN, name)
        assert alone.written == store.written
    assert both[0].texts() != both[1].texts()


def test_clips_that_lack_the_same_are_described_together():
    one, two, three, four = clips(4)
    missing = {
        "rationale": [one.id, four.id],
        "less": [one.id, two.id, four.id],
        "least": [],
    }
    assert group_by_missing_prompts(missing, [one, two, three, four]) == {
        ("rationale", "less"): [one, four],
        ("less",): [two],
    }
    assert group_by_missing_prompts({"rationale": []}, [one]) == {}


def test_prompts_of_the_card_in_any_order():
    check_prompts(["less"], CARD)
    check_prompts(["less", "rationale"], CARD)


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["rationale", "lest"], "rationale, lest"),
        (["less", "less"], "less, less"),
        (["label"], "label"),  # asks for the class
        ([], ""),
    ],
)
def test_other_prompts_are_refused(names, shown):
    with pytest.raises(ValueError, match="--prompts") as error:
        check_prompts(names, CARD)
    assert str(error.value) == (
        f"--prompts [{shown}] must name rationale prompts of the card 'yard', each once; it has "
        "rationale, less."
    )
