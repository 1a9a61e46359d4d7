"""Likelihoods weighted by annotators' votes, against transformers' own of each class."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rbft.backbone.attention import forward_inputs
from rbft.clip import Clip
from rbft.data.dataset import Example
from rbft.module import RBFTModule
from rbft.stages import STAGES
from tests.examples import CARD, MODULE_SETTINGS, batch_of, examples

WORDS = {"quiet": "normal", "alarm": "abnormal", "vague": "hard to say"}
# Of the third clip the label has fewer votes than another, of the last none at all.
VOTES = ((2.0, 1.0, 0.0), (0.0, 3.0, 0.0), (1.0, 1.0, 2.0), (0.5, 0.0, 1.5))
WEIGHTS = (1.0, 0.5, 2.0, 1.5)
SIZES = (2, 1, 3, 2)  # classes that have votes
CARRIERS = (0, 1, 0, 2)  # the class beside which the rationale is learnt

packings = pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])


def model_of(folder: Path, stage: str, **settings: Any) -> RBFTModule:
    card = replace(CARD, words=WORDS)
    made = RBFTModule(str(folder), card, stage=stage, **{**MODULE_SETTINGS, **settings})
    made.configure_model()
    return made.eval()


def voted(votes: tuple[tuple[float, ...], ...] = VOTES) -> list[Example]:
    found = []
    for one, own, weight in zip(examples(len(votes)), votes, WEIGHTS, strict=False):
        clip = replace(one.clip, votes=own)
        draw = replace(one.draw, weight=weight)
        found.append(replace(one, clip=clip, draw=draw, soft_label=clip.soft_label(3)))
    return found


def transformers_model(folder: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()


def nll(reference: Any, model: RBFTModule, example: Example, label: int) -> Tensor:
    """-log P of each answer token, had the clip that label alone."""
    make = replace(model.collator, packing=False)
    alone = replace(example, clip=replace(example.clip, label=label), soft_label=None)
    batch = make([alone])
    answer = batch.answer
    assert answer is not None
    made = reference(**forward_inputs(answer), **batch.video, labels=answer.labels)
    labels = answer.labels[0, 1:]
    tokens = -made.logits[0, :-1].log_softmax(-1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
    found = tokens[labels != -100]
    torch.testing.assert_close(found.mean(), made.loss)
    return found


def class_tokens(model: RBFTModule, label: int) -> int:
    return len(model.collator.class_answers(model.stage.turn(1))[label])


def by_hand(
    reference: Any, model: RBFTModule, made: list[Example], weight: float
) -> tuple[Tensor, Tensor]:
    """The loss, and sum and number of the class's tokens."""
    total, count, of_class, class_count = torch.zeros(()), 0.0, torch.zeros(()), 0.0
    first = model.stage.turn(1).parts[0] == "class"
    for example, carrier in zip(made, CARRIERS, strict=True):
        votes, own = example.clip.votes, example.draw.weight
        assert votes is not None
        for label, number in enumerate(votes):
            if not number:
                continue
            share, size = own * number / sum(votes), class_tokens(model, label)
            every = nll(reference, model, example, label)
            word = every[:size] if first else every[-size:]
            rest = every[size:] if first else every[:-size]
            of_class, class_count = of_class + share * word.sum(), class_count + share * size
            if label == carrier:
                total, count = total + own * rest.sum(), count + own * len(rest)
    loss = (total + weight * of_class) / (count + weight * class_count)
    return loss, torch.stack([of_class.detach(), torch.tensor(class_count)])


def check_gradients(model: RBFTModule, reference: Any, loss: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(loss, expected, atol=2e-6, rtol=1e-5)
    loss.backward()
    expected.backward()
    theirs = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
    ours = {n: p.grad for n, p in model.backbone.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    assert max(float(g.abs().max()) for g in theirs.values()) > 1e-3
    for name, own in ours.items():
        torch.testing.assert_close(own, theirs[name], atol=2e-6, rtol=1e-4)


@packings
def test_each_class_by_its_share(backbone: Path, packing: bool) -> None:
    check_shares(backbone, "label", packing)


@packings
@pytest.mark.parametrize("stage", ["rationale_class", "class_rationale", "alternating"])
def test_beside_a_rationale_and_in_turns(qwen: Path, stage: str, packing: bool) -> None:
    check_shares(qwen, stage, packing)


def check_shares(folder: Path, stage: str, packing: bool) -> None:
    weight = 3.0 if len(STAGES[stage].parts) > 1 else 1.0
    model, reference = model_of(folder, stage, answer_weight=weight), transformers_model(folder)
    made = voted()
    if stage == "alternating":  # the turn of labels
        made = [replace(e, draw=replace(e.draw, turn=1)) for e in made]
    batch = batch_of(replace(model.collator, packing=packing), made)
    assert batch.answer is not None
    assert len(batch.answer.lengths) == sum(SIZES)  # a class without votes is not read
    loss, parts = model.losses(batch)
    expected, of_class = by_hand(reference, model, made, weight)
    if parts is not None:
        torch.testing.assert_close(parts[1], of_class)
    check_gradients(model, reference, loss, expected)


@packings
@pytest.mark.parametrize("stage", ["label", "rationale_class", "class_rationale"])
def test_votes_that_agree_are_the_label_to_the_bit(qwen: Path, stage: str, packing: bool) -> None:
    model = model_of(qwen, stage)
    agreed = voted(((4.0, 0.0, 0.0), (0.0, 1.0, 0.0), (2.5, 0.0, 0.0)))
    hard = [replace(e, soft_label=None) for e in agreed]
    make = replace(model.collator, packing=packing)
    one, other = batch_of(make, agreed), batch_of(make, hard)
    assert one.total.item() == other.total.item()
    ours, theirs = (model.losses(batch) for batch in (one, other))
    assert ours[0].item() == theirs[0].item()
    gradients = []
    for loss, _ in (ours, theirs):
        loss.backward()
        named = model.backbone.named_parameters()
        gradients.append({n: p.grad.clone() for n, p in named if p.grad is not None})
        model.zero_grad()
    assert all(torch.equal(gradients[0][name], own) for name, own in gradients[1].items())


def test_a_rationale_is_learnt_as_without_votes(qwen: Path) -> None:
    made = voted()
    hard = [replace(e, soft_label=None) for e in made]
    for stage in ("rationale", "alternating"):
        model = model_of(qwen, stage)
        ours, theirs = (model.loss(batch_of(model.collator, own)).item() for own in (made, hard))
        assert ours == theirs


def test_micro_batches_add_up(qwen: Path) -> None:
    model, made = model_of(qwen, "rationale_class", answer_weight=2.0), voted()
    whole = batch_of(model.collator, made)
    halves = [
        model.collator(
            [replace(e, draw=replace(e.draw, total=float(whole.total))) for e in made[place:][:2]]
        )
        for place in (0, 2)
    ]
    loss, parts = model.losses(whole)
    found = [model.losses(half) for half in halves]
    torch.testing.assert_close(sum(one.item() for one, _ in found), loss.item())
    assert parts is not None
    both = torch.stack([own for _, own in found if own is not None])
    torch.testing.assert_close(both.sum(0), parts)


def test_shares() -> None:
    clip = partial(Clip, "a", Path("a.mp4"), 1, "train")
    assert clip(votes=(1.0, 2.0, 1.0)).soft_label(3) == [0.25, 0.5, 0.25]
    assert clip(votes=(0.2, 0.0, 0.2)).soft_label(3) == [0.5, 0.0, 0.5]
    assert clip().soft_label(3) == [0.0, 1.0, 0.0]
