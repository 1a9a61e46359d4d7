"""Likelihoods by parts against torch's own cross-entropy: the same bits, less memory."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rbft.training import loss as likelihood
from rbft.training.loss import head_log_probabilities, token_nll

TOKENS, VOCABULARY = 21, 50


@pytest.fixture(autouse=True)
def parts_of_four_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "LOGITS_CHUNK", 4 * VOCABULARY + 1)


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


# The head in 32 bits


class Largest(TorchDispatchMode):
    """Notes how many numbers in 32 bits the largest tensor holds that is made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dtype == torch.float32:
            self.numbers = max(self.numbers, out.numel())
        return out


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [7, VOCABULARY, 1000])
def test_log_probabilities_of_a_head_in_parts(
    rows: int, dtype: torch.dtype, autocast: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(likelihood, "HEAD_CHUNK", rows)
    hidden, weights, targets, _ = scored(dtype)
    head = nn.Linear(8, VOCABULARY, bias=False, dtype=dtype)
    head.weight = nn.Parameter(weights.detach())
    several = torch.stack([targets, targets.flip(0), torch.arange(TOKENS)], dim=1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), Largest() as made:
        found = head_log_probabilities(head, hidden, several)
    expected = (hidden.double() @ weights.double().T).log_softmax(-1).gather(1, several)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
    assert (found.double() - expected).abs().mean() < 1e-6
    if rows == 7 and dtype == torch.bfloat16:  # no copy of all weights
        assert made.numbers < weights.numel()
