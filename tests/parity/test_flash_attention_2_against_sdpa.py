"""What flash-attention 2 is told, by transformers' own way to it and a stand-in for its kernels."""

from pathlib import Path

import pytest
import torch

from rbft.backbone.attention import forward_inputs
from tests.examples import (
    answer_of,
    batch_of,
    collator,
    examples,
    is_padded,
    module,
    prompt_of,
    score_answers,
    write_answers,
    writing,
)
from tests.flash import with_flash_attention

ANSWERS = [[64, 292, 376], [64, 292, 71, 68, 376], [376]]


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("count", [1, 4])
def test_loss_and_gradients(
    backbone: Path, monkeypatch: pytest.MonkeyPatch, packing: bool, count: int
) -> None:
    batch = batch_of(collator(backbone, target_stage="rationale", packing=packing), examples(count))
    found = []
    for made in (module(backbone), with_flash_attention(backbone, monkeypatch)[0]):
        loss = made.loss(batch)
        loss.backward()
        grads = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
        found.append((loss.item(), grads))
    (expected, theirs), (loss, ours) = found
    assert loss == pytest.approx(expected, abs=1e-6)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-4)


def test_bounds_are_those_that_transformers_would_find(
    backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would look in positions that begin anew; each block would wait for them."""
    from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

    batch = batch_of(collator(backbone, target_stage="label", packing=True), examples(4))
    answer = answer_of(batch)
    given = forward_inputs(answer, "flash_attention_2")
    anew = forward_inputs(answer)["position_ids"][0]
    (bounds, _), (longest, _) = prepare_fa_kwargs_from_position_ids(anew)
    assert torch.equal(given["cu_seq_lens_q"], bounds)
    assert torch.equal(given["cu_seq_lens_k"], bounds)
    assert given["max_length_q"] == given["max_length_k"] == longest
    assert torch.equal(given["position_ids"], answer.position_ids)


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_scores_and_texts(backbone: Path, monkeypatch: pytest.MonkeyPatch, packing: bool) -> None:
    batch = collator(backbone, prompt_stage="label", packing=packing)(examples(4))
    assert is_padded(prompt_of(batch)) is not packing
    given, settings = (prompt_of(batch), batch.video), writing(backbone, 6)
    theirs = module(backbone).backbone
    ours, varlen = with_flash_attention(backbone, monkeypatch)
    expected = score_answers(theirs, *given, ANSWERS)
    found = score_answers(ours.backbone, *given, ANSWERS)
    assert varlen.calls
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert write_answers(ours.backbone, *given, settings) == write_answers(theirs, *given, settings)
