"""Likelihoods by parts against torch's own cross-entropy: the same bits, less memory."""

import pytest
import torch
from torch import Tensor, nn

from rbft import likelihood
from rbft.likelihood import token_nll

TOKENS, VOCABULARY = 21, 50


@pytest.fixture(autouse=True)
def parts_of_four_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "PART", 4 * VOCABULARY + 1)


def scored(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, a head, targets and weights."""
    make = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, 8, generator=make).to(dtype).requires_grad_()
    head = torch.randn(VOCABULARY, 8, generator=make).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=make)
    return hidden, head, targets, torch.rand(TOKENS, generator=make)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradients_are_those_of_torch(dtype: torch.dtype):
    found, expected = [], []
    for results, nll_of in (
        (found, token_nll),
        (expected, lambda x, y: nn.functional.cross_entropy(x.float(), y, reduction="none")),
    ):
        hidden, head, targets, weights = scored(dtype)
        nll = nll_of(nn.functional.linear(hidden, head), targets)
        (nll * weights).sum().backward()
        results += [nll.detach(), hidden.grad, head.grad]
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)
    assert found[0].dtype == torch.float32


def test_without_gradients_the_scores_stay_as_they_are():
    hidden, head, targets, _ = scored(torch.float32)
    with torch.no_grad():
        logits = nn.functional.linear(hidden, head)
        before = logits.clone()
        nll = token_nll(logits, targets)
    assert torch.equal(nll, nn.functional.cross_entropy(before, targets, reduction="none"))
    assert torch.equal(logits, before)


def test_the_gradient_takes_the_place_of_the_scores():
    hidden, head, targets, _ = scored(torch.float32)
    logits = nn.functional.linear(hidden, head)
    places = []
    logits.register_hook(lambda gradient: places.append(gradient.data_ptr()))
    loss = token_nll(logits, targets).sum()
    loss.backward(retain_graph=True)
    assert places == [logits.data_ptr()]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
