"""Attention within segments of one long row: clips of a packed batch, windows of the vision tower.

Several clips are packed into one row without padding, and each clip attends to itself only. No mask
over the whole row (its length squared) is built. Instead each segment is an attention call of its
own, and segments of equal length share a call: nothing is computed across segments, and torch uses
its flash kernels. On a GPU in half precision one kernel takes all segments at once. That has not
been run on a GPU yet; tests replace the kernel.

transformers calls this under the two names below. Training and prefill are packed. Tokens that
continue from a KV cache are padded: their mask is as wide as the prompts but only as high as the
few new tokens, and they use transformers' own sdpa attention.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache, partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rbft.batch import Sequences
from rbft.runtime.transfer import to_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEXT = "rbft_packed"
# transformers passes all windows in one call to attention with "flash" in its name.
VISION = "rbft_flash_windows"
FLASH = "flash_attention_2"
MASK_CHUNK = (
    1 << 26
)  # places of a mask at a time, of new tokens and what they see: 0.2 GB with copies


def use_segment_attention(model: "PreTrainedModel") -> None:
    """Registers the attention of this file and sets it in a backbone with sdpa attention.

    Args:
        model: The backbone; changed in place.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    # A loop over segments would be compiled again for each batch.
    uncompiled: Any = torch.compiler.disable
    AttentionInterface.register(TEXT, uncompiled(partial(text_attention, attend=attend)))
    AttentionInterface.register(VISION, uncompiled(vision_attention))
    AttentionMaskInterface.register(TEXT, text_mask)
    parts = {"text_config": TEXT}
    # A CPU is faster with a call for each window than with sorting them.
    if torch.cuda.is_available():
        parts["vision_config"] = VISION
    # Not while it is loaded: transformers would look for a package of the second name.
    model.set_attn_implementation(parts)


def forward_inputs(text: Sequences, attention: str = "any") -> dict[str, Any]:
    """Arguments of the backbone's forward for token sequences.

    Args:
        text: The sequences.
        attention: Attention of the text model, by its name in transformers' registry.
    """
    if text.packed:
        packed = packed_inputs(attention, text.lengths, text.position_ids)
        return {"input_ids": text.input_ids, **packed}
    masked = text.padded_left and len(set(text.lengths)) > 1
    return {
        "input_ids": text.input_ids,
        "attention_mask": text.attention_mask if masked else None,
        "position_ids": text.position_ids,
    }


def packed_inputs(
    attention: str, lengths: Sequence[int], positions: Int[Tensor, "3 1 tokens"]
) -> dict[str, Any]:
    """Arguments of the backbone's forward that separate the clips of a packed row.

    Args:
        attention: Attention implementation of the backbone's text model, as its config names it.
        lengths: Tokens of each clip.
        positions: Rotary positions of the row; they start anew with each clip.
    """
    if attention == TEXT:
        return {"position_ids": positions, "attention_mask": None, "segments": tuple(lengths)}
    if len(lengths) == 1:
        return {"position_ids": positions, "attention_mask": None}
    if attention == FLASH:
        # Otherwise transformers reads the positions in every block, and waits for the device.
        bounds, longest = _bounds(tuple(lengths), positions.device), max(lengths)
        return {
            "position_ids": positions,
            "attention_mask": None,
            "cu_seq_lens_q": bounds,
            "cu_seq_lens_k": bounds,
            "max_length_q": longest,
            "max_length_k": longest,
        }
    # transformers separates packed clips by text positions that start anew, in a row of their own.
    text = torch.cat([torch.arange(length, device=positions.device) for length in lengths])
    return {"position_ids": torch.cat([text.expand(1, 1, -1), positions]), "attention_mask": None}


def tower_inputs(attention: str, given: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Precomputed arguments of the vision tower, on the device where this attention reads them.

    Args:
        attention: Attention implementation of the vision tower, as its config names it.
        given: From `rbft.backbone.family.Family.tower_inputs`, in CPU memory, where all attention
            but flash-attention reads the bounds of windows and frames.
        device: Where the tower runs.
    """
    if attention != FLASH:
        return given
    return {
        name: _bounds(tuple(held.diff().tolist()), device) if "_cu_" in name else held
        for name, held in given.items()
    }


def text_mask(*args: Any, **settings: Any) -> Bool[Tensor, "rows 1 tokens seen"] | None:
    """The mask of transformers' sdpa, except that padding before a prompt attends to the whole row.

    In transformers' mask it attends to nothing. The output of such a token differs between kernels
    and may be NaN, and NaN in its values reaches tokens that do not attend to it, as 0 x NaN. No
    real token attends to padding, so this changes no result.

    A given attention mask is assumed to mask something, because looking would wait for the device.
    Callers without padding give none.
    """
    from transformers.masking_utils import sdpa_mask

    if settings.get("attention_mask") is not None:
        settings["allow_is_causal_skip"] = False
    mask = sdpa_mask(*args, **settings)
    # A single token that continues from the KV cache is not padding.
    if mask is None or mask.shape[2] == 1:
        return mask
    # In place: it has as many entries as tokens squared.
    return mask.contiguous().logical_or_(~mask.any(-1, keepdim=True))


def text_attention(
    module: nn.Module,
    query: Float[Tensor, "rows heads tokens width"],
    key: Float[Tensor, "rows few_heads seen width"],
    value: Float[Tensor, "rows few_heads seen width"],
    attention_mask: Tensor | None,
    *,
    attend: Callable[..., Tensor],
    segments: Iterable[int] = (),
    **settings: Any,
) -> tuple[Tensor, None]:
    """Causal attention of the decoder, within each segment if the row has several."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    lengths = tuple(segments)
    scaling, dropout = settings["scaling"], settings["dropout"]
    if attention_mask is not None and 1 < query.shape[2] < key.shape[2]:
        made = _attend_to_cache(query, key, value, attention_mask, scaling, dropout)
        return made, None
    if len(lengths) < 2:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    made = attend(query, key, value, lengths, scaling=scaling, dropout=dropout, causal=True)
    return made, None


def _attend_to_cache(
    query: Float[Tensor, "rows heads tokens width"],
    key: Float[Tensor, "rows few_heads seen width"],
    value: Float[Tensor, "rows few_heads seen width"],
    mask: Bool[Tensor, "rows 1 tokens seen"],
    scaling: float,
    dropout: float,
) -> Float[Tensor, "rows tokens heads width"]:
    """Attention of a few new tokens to many: query heads that share keys become more tokens.

    transformers repeats keys and values for each query head, which takes seven times the KV cache
    of a block.
    """
    few, groups = key.shape[1], query.shape[1] // key.shape[1]
    size = max(1, MASK_CHUNK // (groups * mask.shape[2] * mask.shape[3]))  # rows at a time
    whole = (query.unflatten(1, (few, groups)).flatten(2, 3), key, value, mask)
    made = [
        nn.functional.scaled_dot_product_attention(
            *heads,
            attn_mask=own.repeat(1, 1, groups, 1),
            dropout_p=dropout,
            scale=scaling,
        )
        for *heads, own in zip(*(tensor.split(size) for tensor in whole), strict=True)
    ]
    rows = torch.cat(made).unflatten(2, (groups, -1))
    return rows.flatten(1, 2).transpose(1, 2).contiguous()


def vision_attention(
    module: nn.Module,
    query: Float[Tensor, "1 heads patches width"],
    key: Float[Tensor, "1 heads patches width"],
    value: Float[Tensor, "1 heads patches width"],
    attention_mask: None,
    *,
    cu_seq_lens_q: Int[Tensor, " bounds"],
    max_length_q: int,
    scaling: float,
    dropout: float = 0.0,
    **settings: Any,
) -> tuple[Tensor, None]:
    """The vision tower's attention: within each window or frame."""
    del module, attention_mask, settings
    dtype = _kernel_dtype(query.device, query.dtype, query.shape[-1])
    if dtype is not None and not dropout and cu_seq_lens_q.device == query.device:
        return _varlen(
            query,
            key,
            value,
            cu_seq_lens_q,
            max_length_q,
            scaling=scaling,
            causal=False,
            dtype=dtype,
        ), None
    # A batch has them in CPU memory: this does not wait for the device.
    segments = tuple(cu_seq_lens_q.diff().tolist())
    return attend(query, key, value, segments, scaling=scaling, dropout=dropout, causal=False), None


def attend(
    query: Float[Tensor, "1 heads tokens width"],
    key: Float[Tensor, "1 few_heads tokens width"],
    value: Float[Tensor, "1 few_heads tokens width"],
    segments: tuple[int, ...],
    *,
    scaling: float,
    dropout: float,
    causal: bool,
) -> Float[Tensor, "1 tokens heads width"]:
    """Attention of a row within each of its segments.

    Args:
        query: Queries.
        key: Keys; with fewer heads than the queries, each is shared by several (GQA).
        value: Values.
        segments: Tokens of each segment, in order; they add up to the row.
        scaling: Factor of the attention scores.
        dropout: Dropout of the attention weights.
        causal: Whether a token attends only to itself and earlier tokens of its segment.
    """
    dtype = _kernel_dtype(query.device, query.dtype, query.shape[-1])
    if dtype is not None and not dropout:
        bounds = _bounds(segments, query.device)
        longest = max(segments)
        return _varlen(
            query, key, value, bounds, longest, scaling=scaling, causal=causal, dtype=dtype
        )
    groups, order, back = _groups(segments, query.device)

    def by_length(heads: Tensor) -> tuple[Tensor, ...]:
        rows = heads[0].transpose(0, 1)  # contiguous, as the projections left them
        if order is not None:
            rows = rows.index_select(0, order)
        parts = rows.split([length * count for length, count in groups])
        return tuple(
            part.unflatten(0, (count, length)).transpose(1, 2)
            for part, (length, count) in zip(parts, groups, strict=True)
        )

    made = [
        nn.functional.scaled_dot_product_attention(
            *heads,
            scale=scaling,
            dropout_p=dropout,
            is_causal=causal,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for heads in zip(by_length(query), by_length(key), by_length(value), strict=True)
    ]
    rows = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in made])
    return (rows if back is None else rows.index_select(0, back))[None]


@lru_cache(maxsize=8)
def _bounds(segments: tuple[int, ...], device: torch.device) -> Int[Tensor, " bounds"]:
    """Start of each segment and end of the last; cached for all blocks of a forward pass."""
    with torch.inference_mode(False):
        return to_device(torch.tensor([0, *segments]).cumsum(0, dtype=torch.int32), device)


@lru_cache(maxsize=64)
def _groups(
    segments: tuple[int, ...], device: torch.device
) -> tuple[list[tuple[int, int]], Tensor | None, Tensor | None]:
    """Groups segments of equal length.

    Returns:
        Length and number of segments of each group; on the device, the index that sorts the tokens
        by group, and its inverse. Both are None if the tokens are sorted already.
    """
    groups = [(length, segments.count(length)) for length in dict.fromkeys(segments)]
    if [length for length, count in groups for _ in range(count)] == list(segments):
        return groups, None, None
    starts = list(zip(accumulate(segments, initial=0), segments, strict=False))
    with torch.inference_mode(False):  # training may use the cached ones after scoring
        order = torch.cat(
            [
                torch.arange(start, start + length)
                for length, _ in groups
                for start, own in starts
                if own == length
            ]
        )
        return groups, to_device(order, device), to_device(order.argsort(), device)


def _kernel_dtype(device: torch.device, dtype: torch.dtype, width: int) -> torch.dtype | None:
    """The dtype of the kernel that takes all segments at once; None if it cannot run."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")  # autocast does not know the kernel
    fits = dtype in (torch.float16, torch.bfloat16) and width % 8 == 0 and width <= 256
    return dtype if fits and _varlen_attn() is not None else None


def _varlen(
    query: Float[Tensor, "1 heads tokens width"],
    key: Float[Tensor, "1 few_heads tokens width"],
    value: Float[Tensor, "1 few_heads tokens width"],
    bounds: Int[Tensor, " bounds"],
    longest: int,
    *,
    scaling: float,
    causal: bool,
    dtype: torch.dtype,
) -> Float[Tensor, "1 tokens heads width"]:
    rows = [heads[0].transpose(0, 1).to(dtype).contiguous() for heads in (query, key, value)]
    kernel = _varlen_attn()
    assert kernel is not None
    return kernel(
        *rows,
        bounds,
        bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=query.shape[1] != key.shape[1],
    )[None]


@cache
def _varlen_attn() -> Callable[..., Any] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch before 2.10, or a build without the kernel
        return None
    arguments = inspect.signature(varlen_attn).parameters
    if "window_size" not in arguments:  # torch 2.10, which takes no scale either
        return None
    return varlen_attn if "enable_gqa" in arguments else partial(_ignore_enable_gqa, varlen_attn)


def _ignore_enable_gqa(
    kernel: Callable[..., Any], *heads: Any, enable_gqa: bool, **settings: Any
) -> Any:
    """Calls the kernel of torch 2.11, which has no such argument and compares the head counts."""
    del enable_gqa
    return kernel(*heads, **settings)
