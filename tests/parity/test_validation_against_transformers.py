"""Loss and classes of a validation that reads each clip once, against plain forwards of each."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rbft.backbone.attention import forward_inputs
from rbft.data.dataset import Example
from rbft.data.sampler import SampleSlot
from rbft.module import RBFTModule
from tests.examples import (
    PAPER_STAGES,
    Damaged,
    answer_of,
    collator,
    fed,
    module,
    prompt_of,
    trainer,
)

VAL = 5
WORDS = [[269, 376], [64, 292, 376]]  # normal, abnormal, with the end of the turn


def validate(
    folder: Path, work: Path, stage: str, **settings: Any
) -> tuple[RBFTModule, Damaged, dict[str, float], list[int]]:
    """Module, benchmark, what was logged, and the patches that the vision tower was shown."""
    yard = Damaged(work / "card.yaml", {"val": VAL}, damaged=["val_3"], eval_batch_size=2)
    made, patches = module(folder, stage, **settings), []
    made.backbone.model.visual.register_forward_pre_hook(
        lambda _, args, given: patches.append(len((*args, *given.values())[0])), with_kwargs=True
    )
    served: Any = fed(yard, made)
    (values,) = trainer(work).validate(made, served, verbose=False)
    return made, served, {name: float(value) for name, value in values.items()}, patches


def val_examples(yard: Damaged) -> list[Example]:
    dataset = yard.val_dataloader().dataset  # type: ignore[union-attr]
    return [dataset[SampleSlot(index)] for index in range(VAL)]


@torch.no_grad()
def expected_loss(folder: Path, made: RBFTModule, examples: list[Example], stage: str) -> float:
    """Nats per answer token of all clips, from transformers' mean over each clip's."""
    make, nll, tokens = collator(folder, target_stage=stage), 0.0, 0
    for example in examples:
        batch = make([example])
        answer = answer_of(batch)
        count = int((answer.labels != -100).sum())
        loss = made.backbone(**forward_inputs(answer), **batch.video, labels=answer.labels).loss
        nll, tokens = nll + float(loss) * count, tokens + count
    return nll / tokens


@torch.no_grad()
def expected_class(folder: Path, made: RBFTModule, example: Example) -> int:
    """The class whose word is likeliest after the classification query, by a forward for each."""
    batch = collator(folder, prompt_stage="label")([example])
    prompt = prompt_of(batch)

    def score(word: list[int]) -> Tensor:
        ids = torch.cat([prompt.input_ids, torch.tensor([word])], dim=1)
        last = prompt.position_ids[:, :, -1:]
        positions = torch.cat([prompt.position_ids, last + torch.arange(1, len(word) + 1)], dim=2)
        labels = torch.cat([torch.full_like(prompt.input_ids, -100), torch.tensor([word])], dim=1)
        return (
            -len(word)
            * made.backbone(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                position_ids=positions,
                labels=labels,
                **batch.video,
            ).loss
        )

    return int(torch.stack([score(word) for word in WORDS]).argmax())


@pytest.mark.parametrize("answer", ["score", "generate"])
@pytest.mark.parametrize("stage", PAPER_STAGES)
def test_the_loss_is_transformers_own(
    backbone: Path, tmp_path: Path, stage: str, answer: str
) -> None:
    made, yard, logged, _ = validate(backbone, tmp_path, stage, answer=answer)
    every = val_examples(yard)
    seen = [example for example in every if not example.error]
    assert len(seen) == VAL - 1
    expected = expected_loss(backbone, made, seen, stage)
    assert logged["val/loss"] == pytest.approx(expected, abs=1e-5)
    # What cannot be decoded would have made a difference.
    assert expected_loss(backbone, made, every, stage) != pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("stage", ["label", "rationale"])
def test_the_classes_are_those_of_full_forwards(backbone: Path, tmp_path: Path, stage: str) -> None:
    made, yard, logged, _ = validate(backbone, tmp_path, stage)
    right = [
        expected_class(backbone, made, example) == example.clip.label
        for example in val_examples(yard)
        if not example.error
    ]
    assert logged["val/accuracy"] == pytest.approx(sum(right) / VAL)
    assert logged["val/unparsed"] == pytest.approx(1 / VAL)
    assert logged["val/n"] == VAL


@pytest.mark.parametrize("answer", ["score", "generate"])
@pytest.mark.parametrize("stage", PAPER_STAGES)
def test_the_vision_tower_sees_each_clip_once(
    backbone: Path, tmp_path: Path, stage: str, answer: str
) -> None:
    _, yard, _, patches = validate(backbone, tmp_path, stage, answer=answer)
    batch = collator(backbone, prompt_stage="label")(val_examples(yard))
    assert sum(patches) == len(batch.video["pixel_values_videos"])
    assert len(patches) == 3  # batches of 2, 2 and 1
