"""Negative log-likelihoods of tokens, in little more than the memory of the scores themselves.

Autograd would hold, for each answer token and each of 152,000 vocabulary entries, the logarithm in
32 bits and two gradients of it at once: 12 bytes. Here the scores are taken a few tokens at a time,
forward and backward, and their gradient is written over them. Every number is computed by the same
operations, so the bits are the same.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

PART = 1 << 22  # scores at a time: 16 MiB in 32 bits, which malloc keeps for the next part
ROWS = 1 << 13  # of the head's weights at a time: 120 MB in 32 bits for a 7B model


def token_nll(
    logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """-log softmax(logits)[target] of each token, in float32.

    Args:
        logits: Scores before softmax, which this function takes over: after the backward pass they
            hold their own gradient. A second backward pass is refused by autograd.
        targets: The tokens' ids.
    """
    if logits.requires_grad and torch.is_grad_enabled():
        return _TokenNLL.apply(logits, targets)  # type: ignore[return-value]
    return torch.cat([_nll(*part) for part in _parts(logits, targets)])


@torch.no_grad()
def head_log_probabilities(
    head: nn.Linear,
    hidden: Float[Tensor, "tokens width"],
    targets: Int[Tensor, "tokens answers"],
) -> Float[Tensor, "tokens answers"]:
    """Log softmax(head(hidden))[target], computed in float32 whatever the model is computed in.

    A part of the vocabulary at a time, so that no copy of the head's weights is made in 32 bits.

    Args:
        head: The language model's head, without bias.
        hidden: Last hidden state before each token that is looked up.
        targets: Ids of the tokens that are looked up.
    """
    assert head.bias is None
    found = torch.zeros_like(targets, dtype=torch.float32)
    sums = []
    # Autocast would go back to half precision.
    with torch.autocast(hidden.device.type, enabled=False):
        states = hidden.float()
        for start, weights in zip(
            range(0, len(head.weight), ROWS), head.weight.split(ROWS), strict=True
        ):
            logits = states @ weights.float().T
            sums.append(logits.logsumexp(-1))
            here = (targets >= start) & (targets < start + len(weights))
            own = logits.gather(1, (targets - start).clamp(0, len(weights) - 1))
            found = own.where(here, found)
    return found - torch.stack(sums).logsumexp(0)[:, None]


class _TokenNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        return torch.cat([_nll(*part) for part in _parts(logits, targets)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        for scores, ids, factors in _parts(logits.detach(), targets, *gradients):
            with torch.enable_grad():
                own = scores.detach().requires_grad_()
                nll = _nll(own, ids)
            scores.copy_(torch.autograd.grad(nll, own, factors)[0])
        return logits, None


def _parts(logits: Tensor, *others: Tensor) -> Any:
    size = max(1, PART // logits.shape[1])
    return zip(*(tensor.split(size) for tensor in (logits, *others)), strict=True)


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.float(), targets, reduction="none")
