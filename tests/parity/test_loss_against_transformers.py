"""Loss and gradients against transformers' own `labels=`, which runs the head on every token."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from rbft.backbone.attention import forward_inputs
from rbft.batch import Batch
from rbft.collator import Collator
from rbft.data.sampler import TrainSampler
from rbft.module import RBFTModule
from tests.examples import batch_of, collator, examples, module

Gradients = dict[str, Tensor]


def gradients(model: RBFTModule) -> Gradients:
    """Gradients by parameter name, which are taken off the model."""
    found = {name: p.grad for name, p in model.backbone.named_parameters() if p.grad is not None}
    assert len(found) == len(list(model.backbone.parameters()))
    model.zero_grad()
    return found


def ours(model: RBFTModule, *batches: Batch) -> tuple[float, Gradients]:
    loss = 0.0
    for batch in batches:
        share = model.loss(batch)
        share.backward()
        loss += share.item()
    return loss, gradients(model)


def their_loss(model: RBFTModule, batch: Batch) -> Tensor:
    assert batch.answer is not None
    return model.backbone(
        **forward_inputs(batch.answer), **batch.video, labels=batch.answer.labels
    ).loss


def theirs(model: RBFTModule, batch: Batch) -> tuple[float, Gradients]:
    loss = their_loss(model, batch)
    loss.backward()
    return loss.item(), gradients(model)


def distance(one: Gradients, other: Gradients) -> float:
    """The largest difference of any element."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("stage", ["rationale", "label"])
@pytest.mark.parametrize("count", [1, 4])
def test_loss_and_gradients_of_a_padded_batch(backbone: Path, stage: str, count: int) -> None:
    model = module(backbone, stage)
    batch = batch_of(collator(backbone, target_stage=stage), examples(count))
    assert batch.answer is not None
    assert bool((batch.answer.attention_mask == 0).any()) == (count > 1)

    loss, gradient = ours(model, batch)
    their_value, their_gradient = theirs(model, batch)

    assert loss == pytest.approx(their_value, abs=1e-6)
    assert max(float(g.abs().max()) for g in their_gradient.values()) > 0.01
    assert distance(gradient, their_gradient) <= 1e-6


def test_padding_changes_nothing(backbone: Path) -> None:
    model, make = module(backbone), collator(backbone, target_stage="rationale")
    whole = batch_of(make, examples(3))
    alone = [
        make([replace(e, draw=replace(e.draw, total=float(whole.total)))]) for e in examples(3)
    ]

    (loss, gradient), (sum_of_parts, their_gradient) = ours(model, whole), ours(model, *alone)

    assert loss == pytest.approx(sum_of_parts, abs=1e-6)
    assert distance(gradient, their_gradient) <= 1e-6


def micro_batches(
    make: Collator, weights: list[float], batch_size: int, accumulate: int, world: int
) -> list[Batch]:
    """The micro-batches of all processes in an epoch of one optimiser step."""
    tokens = [make.answer_tokens(e.clip, e.rationale) for e in examples(len(weights))]
    batches = []
    for rank in range(world):
        sampler = TrainSampler(
            tokens,
            weights,
            batch_size=batch_size,
            accumulate=accumulate,
            rank=rank,
            world=world,
            seed=0,
        )
        batches += [make(examples(len(weights), draws)) for draws in sampler]
    return batches


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize(
    "weights", [[1.0] * 5, [0.5, 2.0, 0.5, 2.0, 0.25]], ids=["plain", "class_weights"]
)
def test_micro_batches_add_up_to_the_global_batch(
    backbone: Path, weights: list[float], packing: bool
) -> None:
    model, make = module(backbone), collator(backbone, target_stage="rationale")
    learn = replace(make, packing=packing)
    # The weighted mean over all answer tokens, put together from transformers' per-clip means.
    tokens = [make.answer_tokens(e.clip, e.rationale) for e in examples(5)]
    total = sum(w * n for w, n in zip(weights, tokens, strict=True))
    expected = 0.0
    for number, example in enumerate(examples(5)):
        share = weights[number] * tokens[number] / total
        loss = share * their_loss(model, batch_of(make, [example]))
        loss.backward()
        expected += loss.item()
    their_gradient = gradients(model)

    # 8 places for 5 clips: fillers of weight 0 take the others.
    for batch_size, accumulate, world in ((8, 1, 1), (4, 2, 1), (2, 4, 1), (2, 2, 2)):
        batches = micro_batches(learn, weights, batch_size, accumulate, world)
        assert all(float(batch.total) == pytest.approx(total) for batch in batches)
        loss, gradient = ours(model, *batches)
        assert loss == pytest.approx(expected, abs=1e-6)
        assert distance(gradient, their_gradient) <= 1e-6
    assert any((batch.weight == 0).any() for batch in batches)


def test_a_mean_of_means_would_be_another_loss(qwen: Path) -> None:
    model, make = module(qwen), collator(qwen, target_stage="rationale")
    each = [their_loss(model, batch_of(make, [e])).item() for e in examples(3)]
    whole = model.loss(batch_of(make, examples(3))).item()
    assert abs(sum(each) / 3 - whole) > 1e-4


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_wrong_shift_does_not_match(backbone: Path, shift: int) -> None:
    model = module(backbone)
    batch = batch_of(collator(backbone, target_stage="rationale"), examples(1))
    assert batch.targets is not None
    places = batch.targets.logit_indices + shift
    wrong = replace(batch, targets=replace(batch.targets, logit_indices=places))

    (loss, gradient), (their_value, their_gradient) = ours(model, wrong), theirs(model, batch)

    assert abs(loss - their_value) > 1e-2
    assert distance(gradient, their_gradient) > 1e-2
