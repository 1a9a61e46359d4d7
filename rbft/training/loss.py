"""Negative log-likelihoods of tokens, in little more memory than the logits themselves.

With cross_entropy, autograd holds 12 bytes for each answer token and each of 152,000 vocabulary
entries: the log-softmax in 32 bits and two gradients of it. Here the logits are processed in chunks
of tokens, forward and backward, and their gradient is written over them. The operations on each
number are the same, so the bits are too.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

LOGITS_CHUNK = (
    1 << 22
)  # logits at a time: 16 MiB in 32 bits, which malloc reuses for the next chunk
HEAD_CHUNK = 1 << 13  # of the head's weights at a time: 120 MB in 32 bits for a 7B model


def token_nll(
    logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """-log softmax(logits)[target] of each token, in float32.

    For 500 tokens of 152,064 logits, forward and backward take at most 192 MiB in bfloat16 and 337
    in float32, as cross_entropy of such chunks 443 and 580, of all logits at once 870 and 870.

    Args:
        logits: Scores before softmax. The backward pass overwrites them with their gradient, and
            autograd refuses a second one.
        targets: Token ids.
    """
    if logits.requires_grad and torch.is_grad_enabled():
        return _TokenNLL.apply(logits, targets)  # type: ignore[return-value]
    return torch.cat([_nll(*chunk) for chunk in _chunks(logits, targets)])


@torch.no_grad()
def head_log_probabilities(
    head: nn.Linear,
    hidden: Float[Tensor, "tokens width"],
    targets: Int[Tensor, "tokens answers"],
) -> Float[Tensor, "tokens answers"]:
    """Log softmax(head(hidden))[target], computed in float32 in every precision.

    Processes the vocabulary in chunks, so that the head's weights are never copied whole to 32
    bits.

    Args:
        head: The head of the language model, without bias.
        hidden: The last hidden state before each target.
        targets: Token ids.
    """
    assert head.bias is None
    found = torch.zeros_like(targets, dtype=torch.float32)
    normalizers = []
    # Autocast would compute in half precision.
    with torch.autocast(hidden.device.type, enabled=False):
        states = hidden.float()
        for start, weights in zip(
            range(0, len(head.weight), HEAD_CHUNK), head.weight.split(HEAD_CHUNK), strict=True
        ):
            logits = states @ weights.float().T
            normalizers.append(logits.logsumexp(-1))
            here = (targets >= start) & (targets < start + len(weights))
            own = logits.gather(1, (targets - start).clamp(0, len(weights) - 1))
            found = own.where(here, found)
    return found - torch.stack(normalizers).logsumexp(0)[:, None]


class _TokenNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        return torch.cat([_nll(*chunk) for chunk in _chunks(logits, targets)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        for scores, ids, factors in _chunks(logits.detach(), targets, *gradients):
            with torch.enable_grad():
                own = scores.detach().requires_grad_()
                nll = _nll(own, ids)
            scores.copy_(torch.autograd.grad(nll, own, factors)[0])
        return logits, None


def _chunks(logits: Tensor, *others: Tensor) -> Any:
    size = max(1, LOGITS_CHUNK // logits.shape[1])
    return zip(*(tensor.split(size) for tensor in (logits, *others)), strict=True)


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.float(), targets, reduction="none")
