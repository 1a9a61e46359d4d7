"""The attention of single tokens, taken while the backbone runs on its own fast attention.

sdpa and flash kernels do not return their weights, and eager attention's would be tokens squared
for every head of every layer. Here the attention function that the backbone calls anyway is
wrapped: it returns what it always does, and the weights of one row are computed beside it, in 32
bits.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rbft.backbone.blocks import stacks

CHUNK = 1 << 24  # weights that are in memory at a time, over heads, rows and tokens

Rows = dict[int, Float[Tensor, "heads tokens"]]
# Queries, keys, and the factor of their products.
HeadPair = tuple[
    Float[Tensor, "heads tokens width"], Float[Tensor, "few_heads tokens width"], float
]


@contextmanager
def capture_last_rows(model: Any, layers: Collection[int]) -> Iterator[Rows]:
    """Context in which the attention of the last token of every forward is kept.

    That token predicts the first token of the answer. It attends to all tokens, so its row needs no
    mask. Of several forwards, the last one counts.

    Args:
        model: The backbone, with any attention but eager; its outputs do not change.
        layers: Decoder layers, counted from 0.

    Yields:
        By layer the weights of each head, filled by the forward of one prompt in one row.
    """
    found: Rows = {}

    def keep(layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        last = torch.tensor([query.shape[1] - 1], device=query.device)
        found[layer] = attention_rows(query, key, scaling, last)[:, 0]

    with _watch(model, layers, keep):
        yield found


@contextmanager
def capture_heads(model: Any) -> Iterator[dict[int, HeadPair]]:
    """Context in which queries and keys of every decoder layer are kept, for `rollout_row`.

    They grow with the number of tokens, not with its square.

    Args:
        model: The backbone, with any attention but eager; its outputs do not change.

    Yields:
        By layer the queries and keys, rotated, and the factor of their products.
    """
    found: dict[int, HeadPair] = {}

    def keep(layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        found[layer] = (query, key, scaling)

    with _watch(model, range(len(stacks(model)[0])), keep):
        yield found


@contextmanager
def _watch(
    model: Any, layers: Collection[int], keep: Callable[[int, Tensor, Tensor, float], None]
) -> Iterator[None]:
    """Calls `keep` with queries and keys of some decoder layers in each forward."""
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = model.config.text_config._attn_implementation
    assert name != "eager", "eager attention returns its weights itself"
    decoder = stacks(model)[0]
    # The vision tower may use the same function.
    place = {decoder[layer].self_attn: layer for layer in layers}
    own: Any = ALL_ATTENTION_FUNCTIONS[name]

    def watched(module: Any, query: Tensor, key: Tensor, *args: Any, **settings: Any) -> Any:
        if (layer := place.get(module)) is not None:
            assert len(query) == 1, "a prompt in a row of its own"
            keep(layer, query[0].detach(), key[0].detach(), settings["scaling"])
        return own(module, query, key, *args, **settings)

    # Under the name that it has: whatever else goes by that name (masks, packing) stays as it is.
    AttentionInterface.register(name, watched)
    try:
        yield
    finally:
        AttentionInterface.register(name, own)


def attention_rows(
    query: Float[Tensor, "heads tokens width"],
    key: Float[Tensor, "few_heads seen width"],
    scaling: float,
    rows: Int[Tensor, " rows"],
) -> Float[Tensor, "heads rows seen"]:
    """Causal attention weights of some tokens, in 32 bits.

    Args:
        query: Queries; of fewer tokens than the keys where they continue from a KV cache.
        key: Keys; with fewer heads than the queries, each is shared by several (GQA).
        scaling: Factor of the products.
        rows: Which of the queries.
    """
    few, seen = key.shape[:2]
    with torch.autocast(query.device.type, enabled=False):  # it would compute in half precision
        heads = query[:, rows].float().unflatten(0, (few, -1))
        scores = torch.einsum("kgrd,knd->kgrn", heads, key.float()).flatten(0, 1) * scaling
        at = rows + seen - query.shape[1]
        later = torch.arange(seen, device=query.device) > at[:, None]
        return scores.masked_fill(later, float("-inf")).softmax(-1)


def rollout_row(
    heads: Mapping[int, HeadPair], chunk: int | None = None
) -> Float[Tensor, " tokens"]:
    """Attention rollout of the last token: how much of it comes from each token of the input.

    Abnar and Zuidema (2020): the product over layers of (I + A) / 2, with A the mean over heads. Of
    that product only the last row is wanted, so a vector goes from the last layer to the first,
    with the rows of A made some at a time.

    Args:
        heads: Queries and keys of all layers, see `capture_heads`.
        chunk: Rows at a time; None takes what `CHUNK` has room for.

    Returns:
        Shares that add up to 1.
    """
    first = next(iter(heads.values()))[0]
    count, tokens = first.shape[:2]
    step = chunk or max(1, CHUNK // (count * tokens))
    shares = torch.zeros(tokens, device=first.device)
    shares[-1] = 1.0
    for layer in sorted(heads, reverse=True):
        query, key, scaling = heads[layer]
        passed = torch.zeros_like(shares)
        for rows in shares.nonzero()[:, 0].split(step):  # most are 0 in the last layer
            weights = attention_rows(query, key, scaling, rows).mean(0)
            with torch.autocast(query.device.type, enabled=False):
                passed += shares[rows] @ weights
        shares = (shares + passed) / 2
    return shares
