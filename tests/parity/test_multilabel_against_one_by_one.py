"""Several classes a clip against transformers' loss and full forwards of one question at a time."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rbft.backbone.attention import TEXT, VISION, forward_inputs
from rbft.data.dataset import Example
from rbft.data.sampler import SampleSlot
from rbft.inference.classifier import ClassifiedEach
from rbft.inference.generation import decode_texts, greedy_decode, prefill
from rbft.training.loss import token_nll
from tests.examples import answer_of, batch_of, collator, fed, prompt_of, trainer
from tests.parity.test_answers_against_full_forwards import full_forward
from tests.parity.test_packing_against_one_by_one import check, gradients, reference
from tests.several import PETS, Pets, pet_collator, pet_examples, pet_module, question

PACKING = pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
DRAWS = [SampleSlot(3, 0.5), SampleSlot(6, 2.0), SampleSlot(0, 1.0), SampleSlot(5, 0.0)]
CLASSES = range(len(PETS.words))


def alone(folder: Path, example: Example, place: int, target: bool) -> Any:
    """The batch of one question about one clip, as a card of two classes makes it."""
    card, clip = question(place, example.clip)
    stages = ("label", None) if target else (None, "label")
    make = replace(collator(folder, *stages), card=card)
    return make([replace(example, clip=clip)])


@PACKING
def test_loss_and_gradients(backbone: Path, packing: bool) -> None:
    """The mean over the tokens of all answers, each clip by its weight."""
    model = pet_module(backbone)
    batch = batch_of(pet_collator(backbone, "label", packing=packing), pet_examples(4, DRAWS))
    assert len(answer_of(batch).lengths) == 4 * 3
    assert (len(answer_of(batch).input_ids) == 1) is packing
    model.backbone.set_attn_implementation({"vision_config": VISION, "text_config": TEXT})
    seen: list[int] = []
    model.backbone.model.visual.register_forward_pre_hook(
        lambda _, args, given: seen.append(len((*args, *given.values())[0])), with_kwargs=True
    )
    loss = model.loss(batch)
    loss.backward()
    assert seen == [len(batch.video["pixel_values_videos"])]  # each clip once

    theirs, value, total, parts = reference(backbone), 0.0, 0.0, []
    for example in pet_examples(4, DRAWS):
        for place in CLASSES:
            one = alone(backbone, example, place, target=True)
            count = int((one.answer.labels != -100).sum())
            total += example.draw.weight * count
            parts.append((one, example.draw.weight * count))
    for one, tokens in parts:
        own = theirs(**forward_inputs(one.answer), **one.video, labels=one.answer.labels).loss
        share = tokens / total * own
        share.backward()
        value += share.item()
    assert loss.item() == pytest.approx(value, abs=1e-6)
    check(gradients(model.backbone), gradients(theirs))


def expected_scores(folder: Path, model: Any, made: list[Example]) -> Tensor:
    """Log-probability of yes and no to each question about each clip, a forward for each."""
    found = []
    for example in made:
        for place in CLASSES:
            one = alone(folder, example, place, target=False)
            ids, positions = prompt_of(one).input_ids[0].tolist(), prompt_of(one).position_ids[:, 0]
            make = collator(folder)
            answers = [make.part_ids(word, last=True) for word in PETS.answers]
            found += [full_forward(model, ids, positions, own, one.video) for own in answers]
    return torch.tensor(found).view(len(made), len(PETS.words), 2)


@PACKING
def test_probabilities(backbone: Path, packing: bool) -> None:
    model, made = pet_module(backbone, packing=packing), pet_examples(4)
    batch = model.collators()["test"](made)
    assert len(batch.extra_prompts) == 2
    assert min(batch.shared) > 8  # the video and what stands before it
    found = model.classify(batch)
    assert isinstance(found, ClassifiedEach)
    expected = expected_scores(backbone, model.backbone, made)
    torch.testing.assert_close(found.scores, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.probabilities, expected.softmax(-1)[..., 0])
    assert found.rationales is None


@pytest.mark.parametrize("stage", ["label", "rationale"])
def test_validation(qwen: Path, tmp_path: Path, stage: str) -> None:
    """Loss of the stage and figures of the questions; a clip that is lost has no likelihood."""
    yard = Pets(tmp_path, {"val": 6}, damaged=["val_3"], eval_batch_size=4)
    model = pet_module(qwen, stage)
    served: Any = fed(yard, model)
    (logged,) = trainer(tmp_path).validate(model, served, verbose=False)
    dataset = served.val_dataloader().dataset
    seen = [one for n in range(6) if not (one := dataset[SampleSlot(n)]).error]
    assert len(seen) == 5

    nll, tokens = 0.0, 0
    with torch.no_grad():
        for example in seen:
            if stage == "label":
                batches = [alone(qwen, example, place, target=True) for place in CLASSES]
            else:
                batches = [pet_collator(qwen, stage)([example])]
            for one in batches:
                answer = answer_of(one)
                logits = model.backbone(**forward_inputs(answer), **one.video).logits
                labels = answer.labels[0]
                places = (labels != -100).nonzero()[:, 0]
                nll += float(token_nll(logits[0, places - 1].clone(), labels[places]).sum())
                tokens += len(places)
    assert logged["val/loss"] == pytest.approx(nll / tokens, abs=1e-5)

    shares = expected_scores(qwen, model.backbone, seen).softmax(-1)[..., 0]
    said = shares >= 0.5
    has = torch.tensor([[k in (one.clip.labels or ()) for k in CLASSES] for one in seen])
    assert logged["val/accuracy"] == pytest.approx(float((said == has).all(1).sum()) / 6)
    hits = (said & has).sum(0)
    # Clip 3 has the first two classes, which are missed.
    have = has.sum(0) + torch.tensor([1, 1, 0])
    f1 = 2 * hits / (have + said.sum(0))
    names = list(PETS.words)
    assert [logged[f"val/f1/{name}"] for name in names] == pytest.approx(f1.tolist())
    assert logged["val/f1/micro"] == pytest.approx(
        float(2 * hits.sum() / (have + said.sum(0)).sum())
    )
    assert logged["val/unparsed"] == pytest.approx(1 / 6)


def test_a_rationale_beside_the_classes(qwen: Path) -> None:
    """The question of rationales follows those about the classes."""
    model = pet_module(qwen)
    batch = model.collators(rationale=True)["predict"](pet_examples(2))
    assert len(batch.extra_prompts) == 3
    found = model.classify(batch)
    only = replace(pet_collator(qwen, prompt="rationale"), packing=model.packing)(pet_examples(2))
    plain = pet_module(qwen, "rationale")
    (read,) = prefill(plain.backbone, [prompt_of(only)], plain.vision(only))
    written = greedy_decode(plain.backbone, read, plain.generation)
    texts = decode_texts(written, plain.processor.tokenizer, plain.generation)
    assert found.rationales == texts
    torch.testing.assert_close(
        found.probabilities,
        model.classify(model.collators()["test"](pet_examples(2))).probabilities,
    )
