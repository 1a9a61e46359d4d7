"""Losses beyond the paper's against log-probabilities of full forwards, one answer at a time."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from rbft.backbone.attention import forward_inputs
from rbft.batch import Batch
from rbft.collator import Collator
from rbft.data.dataset import Example
from rbft.data.sampler import SampleSlot
from rbft.inference.generation import extend, prefill, score_candidates
from rbft.module import RBFTModule
from rbft.stages import ELICITED, LABEL, STAGES
from tests.examples import CARD, batch_of, collator, examples, module

CLASSES = len(CARD.words)
SOFT = ([0.9, 0.1], [0.25, 0.75], [0.5, 0.5])

packings = pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])


def token_nll(model: RBFTModule, batch: Batch) -> list[Float[Tensor, " answer"]]:
    """-log P of each answer token of each clip, from the logits of all tokens of a padded batch."""
    answer = batch.answer
    assert answer is not None
    assert not answer.packed or len(batch) == 1
    logits = model.backbone(**forward_inputs(answer), **batch.video).logits[:, :-1].log_softmax(-1)
    labels = answer.labels[:, 1:]
    own = -logits.gather(2, labels.clamp(min=0)[..., None])[..., 0]
    return [row[mask] for row, mask in zip(own, labels != -100, strict=True)]


def answer_nll(model: RBFTModule, make: Collator, example: Example, label: int) -> Tensor:
    """-log P(class answer) about one clip, as a sum over its own tokens."""
    alone = replace(example, clip=replace(example.clip, label=label), soft_label=None)
    (nll,) = token_nll(model, make([alone]))
    word = make.part_ids(list(CARD.words.values())[label], last=True)
    return nll[-len(word) :].sum()


def gradients(model: RBFTModule) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.backbone.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def check_gradients(model: RBFTModule, loss: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(loss, expected, atol=2e-6, rtol=1e-5)
    loss.backward()
    ours = gradients(model)
    expected.backward()
    theirs = gradients(model)
    assert ours.keys() == theirs.keys()
    assert max(float(g.abs().max()) for g in theirs.values()) > 1e-3
    for name, own in ours.items():
        torch.testing.assert_close(own, theirs[name], atol=2e-6, rtol=1e-4)


@packings
@pytest.mark.parametrize("stage", ["rationale_class", "class_rationale"])
@pytest.mark.parametrize("weight", [5.0, 0.25])
def test_class_tokens_by_their_weight(
    backbone: Path, stage: str, weight: float, packing: bool
) -> None:
    model = module(backbone, stage, answer_weight=weight)
    plain = collator(backbone, target_stage=stage)
    made = [replace(e, draw=replace(e.draw, weight=0.5 + e.draw.index)) for e in examples(3)]
    batch = batch_of(replace(model.collator, packing=packing), made)

    sums, counts, class_sums, class_counts = [], [], [], []
    for example, nll in zip(made, token_nll(model, batch_of(plain, made)), strict=True):
        last = stage == "rationale_class"
        assert example.clip.label is not None
        word = plain.part_ids(list(CARD.words.values())[example.clip.label], last=last)
        of_class = torch.zeros(len(nll), dtype=torch.bool)
        of_class[slice(-len(word), None) if last else slice(len(word))] = True
        weights = torch.where(of_class, weight, 1.0) * example.draw.weight
        sums.append((nll * weights).sum())
        counts.append(weights.sum())
        class_sums.append((nll * of_class).sum() * example.draw.weight)
        class_counts.append(of_class.sum() * example.draw.weight)
    expected = torch.stack(sums).sum() / torch.stack(counts).sum()

    loss, parts = model.losses(batch)
    assert parts is not None
    torch.testing.assert_close(batch.total, torch.stack(counts).sum())
    torch.testing.assert_close(parts[1, 0], torch.stack(class_sums).sum().detach())
    torch.testing.assert_close(parts[1, 1], torch.stack(class_counts).sum())
    # Both parts together, each by its weight, are the loss.
    whole = (parts[0, 0] + weight * parts[1, 0]) / (parts[0, 1] + weight * parts[1, 1])
    torch.testing.assert_close(whole, loss.detach())
    check_gradients(model, loss, expected)


def test_equal_weights_are_the_stage_of_the_paper(qwen: Path) -> None:
    made = examples(3)
    weighed, plain = (
        module(qwen, "rationale_class", **settings) for settings in ({"answer_weight": 1.0}, {})
    )
    batch = batch_of(plain.collator, made)
    assert batch.targets is not None
    assert batch.targets.weights is None
    assert weighed.loss(batch).item() == plain.loss(batch).item()


@packings
@pytest.mark.parametrize("stage", ["label_reward", "rationale_class_reward"])
@pytest.mark.parametrize("costs", [None, {"alarm": {"quiet": 7.0}}], ids=["accuracy", "costs"])
def test_expected_cost(backbone: Path, stage: str, costs: dict | None, packing: bool) -> None:
    model = module(backbone, stage, costs=costs)
    make = replace(model.collator, packing=packing)
    made = [replace(e, draw=replace(e.draw, weight=0.5 + e.draw.index)) for e in examples(3)]
    asked = LABEL if stage == "label_reward" else ELICITED
    alone = collator(backbone, target_stage=asked.name)

    expected = []
    for example in made:
        nats = torch.stack([-answer_nll(model, alone, example, k) for k in range(CLASSES)])
        label = example.clip.label
        assert label is not None
        matrix = torch.tensor([[0.0, 1.0], [7.0 if costs else 1.0, 0.0]])
        expected.append(example.draw.weight * (nats.softmax(0) * matrix[label]).sum())
    total = sum(e.draw.weight for e in made)

    batch = batch_of(make, made)
    assert batch.total.item() == total
    loss, parts = model.losses(batch)
    assert parts is None
    check_gradients(model, loss, torch.stack(expected).sum() / total)


@pytest.mark.parametrize("stage", ["label_reward", "rationale_class_reward"])
def test_its_probabilities_are_those_that_classify(qwen: Path, stage: str) -> None:
    """1 - expected accuracy is what scoring with the KV cache finds, behind the same rationale."""
    model, made = module(qwen, stage), examples(3)
    asked = STAGES[stage].classifier
    batch = replace(model.collator, target_stage=None, prompt_stage=asked)(made)
    assert batch.prompt is not None
    with torch.no_grad():
        (read,) = prefill(model.backbone, [batch.prompt], model.vision(batch))
        if asked.elicits:
            texts = [model.collator.part_ids((e.rationale or "").strip(), last=False) for e in made]
            read = extend(model.backbone, read, texts)
        words = model.collator.class_answers(asked)
        shares = score_candidates(model.backbone, read, words).softmax(-1)
        right = shares.gather(1, batch.label[:, None]).mean()
        loss = model.loss(batch_of(model.collator, made))
    torch.testing.assert_close(loss, 1 - right, atol=2e-6, rtol=0)


@packings
def test_soft_labels(backbone: Path, packing: bool) -> None:
    model = module(backbone, "label_distilled")
    alone = collator(backbone, target_stage="label")
    words = [len(ids) for ids in alone.class_answers(LABEL)]
    made = [
        replace(e, soft_label=soft, draw=replace(e.draw, weight=1.0 + e.draw.index))
        for e, soft in zip(examples(3), SOFT, strict=True)
    ]
    expected, total = [], 0.0
    for example in made:
        soft, weight = example.soft_label, example.draw.weight
        assert soft is not None
        nats = torch.stack([answer_nll(model, alone, example, k) for k in range(CLASSES)])
        expected.append(weight * (torch.tensor(soft) * nats).sum())
        total += weight * sum(s * n for s, n in zip(soft, words, strict=True))

    batch = batch_of(replace(model.collator, packing=packing), made)
    assert batch.total.item() == pytest.approx(total)
    check_gradients(model, model.loss(batch), torch.stack(expected).sum() / total)


def test_a_certain_teacher_is_the_label(qwen: Path) -> None:
    made = examples(3)
    sure = [replace(e, soft_label=[float(e.clip.label == k) for k in range(2)]) for e in made]
    taught, labelled = module(qwen, "label_distilled"), module(qwen, "label")
    learnt = taught.loss(batch_of(taught.collator, sure))
    torch.testing.assert_close(learnt, labelled.loss(batch_of(labelled.collator, made)))


@packings
def test_turns_are_the_two_stages_of_the_paper(qwen: Path, packing: bool) -> None:
    model = module(qwen, "alternating")
    make = replace(model.collator, packing=packing)
    for turn, stage in enumerate(("rationale", "label")):
        own = module(qwen, stage)
        draws = [SampleSlot(n, turn=turn) for n in range(3)]
        theirs = batch_of(replace(own.collator, packing=packing), examples(3))
        ours = batch_of(make, examples(3, draws))
        assert ours.total == theirs.total
        assert model.loss(ours).item() == own.loss(theirs).item()


def test_micro_batches_of_expected_cost_add_up(qwen: Path) -> None:
    model, made = module(qwen, "label_reward"), examples(4)
    whole = batch_of(model.collator, made)
    total = float(whole.total)
    parts = [
        model.collator(
            [replace(e, draw=replace(e.draw, total=total)) for e in made[first : first + 2]]
        )
        for first in (0, 2)
    ]
    loss = sum(model.loss(part).item() for part in parts)
    assert loss == pytest.approx(model.loss(whole).item(), abs=1e-6)
