"""Video tokens copied to known places against transformers, which looks for them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from rbft.backbone.attention import forward_inputs
from rbft.backbone.embeddings import VIDEO_INDICES
from rbft.inference.generation import prefill
from rbft.stages import STAGES
from tests.examples import CARD, answer_of, batch_of, collator, examples, module, prompt_of


def trained(model: Any, given: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits = model(**given, use_cache=False).logits
    logits.sin().sum().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("packing", [False, True])
def test_logits_and_gradients(backbone: Path, packing: bool) -> None:
    model = module(backbone).backbone
    batch = batch_of(collator(backbone, target_stage="rationale", packing=packing), examples(4))
    answer = answer_of(batch)
    given = {**forward_inputs(answer, model.config.text_config._attn_implementation), **batch.video}
    expected, gradients = trained(model, given)
    found, own = trained(model, {**given, **batch.tower, VIDEO_INDICES: answer.video_indices})
    assert torch.equal(found, expected)
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(own[name], gradient), name


def test_padded_logits_are_those_of_a_model_that_rbft_did_not_load(backbone: Path) -> None:
    theirs = AutoModelForImageTextToText.from_pretrained(backbone, dtype=torch.float32).eval()
    batch = batch_of(collator(backbone, target_stage="rationale"), examples(4))
    answer = answer_of(batch)
    given, real = {**forward_inputs(answer), **batch.video}, answer.attention_mask == 1
    found = module(backbone).backbone(**given, **{VIDEO_INDICES: answer.video_indices}).logits
    torch.testing.assert_close(found[real], theirs(**given).logits[real], atol=1e-5, rtol=0)


def test_places_that_are_not_known_are_looked_for(qwen: Path) -> None:
    model, batch = module(qwen).backbone, collator(qwen, prompt_stage="label")(examples(2))
    given = {**forward_inputs(prompt_of(batch)), **batch.video, **batch.tower}
    places = prompt_of(batch).video_indices
    found, expected = (model(**given, **{VIDEO_INDICES: p}).logits for p in (None, places))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("packing", [False, True])
def test_prompts_that_begin_alike(backbone: Path, packing: bool) -> None:
    """The beginning, cut from prompts, shows the video at places of its own."""
    make = collator(backbone, prompt_stage="label", packing=packing)
    make = replace(make, extra_prompts=((STAGES["rationale"], CARD),))
    model, batch = module(backbone).backbone, make(examples(4))
    prompts = [prompt_of(batch), *batch.extra_prompts]
    unknown = [replace(prompt, video_indices=None) for prompt in prompts]
    for ours, theirs in zip(
        prefill(model, prompts, batch.video, batch.shared),
        prefill(model, unknown, batch.video, batch.shared),
        strict=True,
    ):
        assert torch.equal(ours.hidden, theirs.hidden)


def test_a_count_that_does_not_fit_is_an_error(qwen: Path) -> None:
    model, batch = module(qwen).backbone, collator(qwen, prompt_stage="label")(examples(2))
    prompt = prompt_of(batch)
    assert prompt.video_indices is not None
    with pytest.raises((RuntimeError, IndexError), match="index_copy"):
        model(**forward_inputs(prompt), **batch.video, **{VIDEO_INDICES: prompt.video_indices[:-1]})
