"""Attention within segments of one long row: clips of a packed batch, windows of the vision tower.

Several clips stand in one row without padding, and each attends to itself alone. Instead of a
mask over the whole row (its length squared), every segment is a call of its own, and segments of
equal length are one call: nothing is computed across segments, no mask is built, and torch
takes its flash kernels. On a GPU in half precision one kernel takes all segments at once; that has
not been run on a GPU yet, tests put a stand-in in the kernel's place.

transformers calls this under the two names below. Training and the reading of prompts are packed.
What goes on from cached prompts is padded, with a mask as wide as the prompts are long but only as
high as the few new tokens; it goes the way of transformers' own sdpa.
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
from rbft.runtime.transfer import send

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEXT = "rbft_packed"
# "flash" in the name has the vision tower hand over all windows at once (transformers asks for it).
VISION = "rbft_flash_windows"
FLASH = "flash_attention_2"
MASK_CHUNK = (
    1 << 26
)  # places of a mask at a time, of new tokens and what they see: 0.2 GB with copies


def attend_in_segments(model: "PreTrainedModel") -> None:
    """Has a backbone with sdpa attention call the two functions of this file.

    Args:
        model: The backbone; changed in place.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    # What is done for each segment would be compiled anew for each batch.
    apart: Any = torch.compiler.disable
    AttentionInterface.register(TEXT, apart(partial(text_attention, attend=attend)))
    AttentionInterface.register(VISION, apart(vision_attention))
    AttentionMaskInterface.register(TEXT, text_mask)
    parts = {"text_config": TEXT}
    # A processor is faster with a call for each window than with sorting them.
    if torch.cuda.is_available():
        parts["vision_config"] = VISION
    # Not when it is loaded: transformers would look for a package by the name of the second.
    model.set_attn_implementation(parts)


def forward_inputs(text: Sequences, attention: str = "any") -> dict[str, Any]:
    """Arguments of the backbone's forward for token sequences.

    Args:
        text: The sequences.
        attention: Attention of the text model, by its name in transformers' registry.
    """
    if text.packed:
        apart = packed_inputs(attention, text.lengths, text.position_ids)
        return {"input_ids": text.input_ids, **apart}
    masked = text.padded_left and len(set(text.lengths)) > 1
    return {
        "input_ids": text.input_ids,
        "attention_mask": text.attention_mask if masked else None,
        "position_ids": text.position_ids,
    }


def packed_inputs(
    attention: str, lengths: Sequence[int], positions: Int[Tensor, "3 1 tokens"]
) -> dict[str, Any]:
    """Arguments of the backbone's forward that keep the clips of a packed row apart.

    Args:
        attention: Attention implementation of the backbone's text model, as its config names it.
        lengths: Tokens of each clip.
        positions: Rotary positions of the row, each clip's its own.
    """
    if attention == TEXT:
        return {"position_ids": positions, "attention_mask": None, "segments": tuple(lengths)}
    if len(lengths) == 1:
        return {"position_ids": positions, "attention_mask": None}
    if attention == FLASH:
        # Else it would look in the positions, in every block, and wait for the device each time.
        bounds, longest = _bounds(tuple(lengths), positions.device), max(lengths)
        return {
            "position_ids": positions,
            "attention_mask": None,
            "cu_seq_lens_q": bounds,
            "cu_seq_lens_k": bounds,
            "max_length_q": longest,
            "max_length_k": longest,
        }
    # transformers tells packed clips apart by positions that start anew, in a row of their own.
    text = torch.cat([torch.arange(length, device=positions.device) for length in lengths])
    return {"position_ids": torch.cat([text.expand(1, 1, -1), positions]), "attention_mask": None}


def tower_inputs(attention: str, given: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """What the vision tower is told ahead of time, each where this attention reads it.

    Args:
        attention: Attention implementation of the vision tower, as its config names it.
        given: See `rbft.backbone.family.Family.tower_inputs`; bounds of windows and frames in the
            processor's memory, where all but flash-attention read them.
        device: Where the tower runs.
    """
    if attention != FLASH:
        return given
    return {
        name: _bounds(tuple(held.diff().tolist()), device) if "_cu_" in name else held
        for name, held in given.items()
    }


def text_mask(*args: Any, **settings: Any) -> Bool[Tensor, "rows 1 tokens seen"] | None:
    """The mask of transformers' sdpa, in which padding before a prompt sees the whole row.

    transformers has it see nothing. What attention makes of such a token differs by kernel and may
    be NaN, and NaN in its keys and values reaches the tokens that do not see it: 0 x NaN. Nothing
    that counts sees the padding, so what it sees itself changes no result.

    A mask that is given is taken to hide something: to look would be to wait for the device.
    Whoever knows that there is no padding gives none.
    """
    from transformers.masking_utils import sdpa_mask

    if settings.get("attention_mask") is not None:
        settings["allow_is_causal_skip"] = False
    mask = sdpa_mask(*args, **settings)
    # A single token that goes on from what is cached is no padding.
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
    """The decoder's attention: causal, and within each of the row's segments if it has several."""
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
    """A few new tokens after many: heads that share keys stand behind each other as more tokens.

    transformers repeats keys and values for each of the heads that share them, seven times the
    cache of a block.
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
    # From a batch they come in the processor's memory: nothing waits for the device here.
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
        key: Keys; their heads may be fewer and are then shared.
        value: Values.
        segments: Tokens of each segment, in order; they add up to the row.
        scaling: Factor of the scores.
        dropout: Share of the weights that are dropped.
        causal: Whether a token only sees itself and those before it in its segment.
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
    """Where each segment begins, and the end of the last; the same for all blocks of a forward."""
    with torch.inference_mode(False):
        return send(torch.tensor([0, *segments]).cumsum(0, dtype=torch.int32), device)


@lru_cache(maxsize=64)
def _groups(
    segments: tuple[int, ...], device: torch.device
) -> tuple[list[tuple[int, int]], Tensor | None, Tensor | None]:
    """Segments by length.

    Returns:
        Length and number of each group, the tokens in the order of the groups, and the way back, on
        the device; None where the groups stand together already.
    """
    groups = [(length, segments.count(length)) for length in dict.fromkeys(segments)]
    if [length for length, count in groups for _ in range(count)] == list(segments):
        return groups, None, None
    starts = list(zip(accumulate(segments, initial=0), segments, strict=False))
    with torch.inference_mode(False):  # training may ask for the same ones after scoring
        order = torch.cat(
            [
                torch.arange(start, start + length)
                for length, _ in groups
                for start, own in starts
                if own == length
            ]
        )
        return groups, send(order, device), send(order.argsort(), device)


def _kernel_dtype(device: torch.device, dtype: torch.dtype, width: int) -> torch.dtype | None:
    """The precision of the kernel that takes all segments at once, None where it cannot run."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")  # the kernel is not on autocast's list
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
    return varlen_attn if "enable_gqa" in arguments else partial(_shares_unasked, varlen_attn)


def _shares_unasked(
    kernel: Callable[..., Any], *heads: Any, enable_gqa: bool, **settings: Any
) -> Any:
    """The kernel of torch 2.11, which is not told that keys are shared: it counts the heads."""
    del enable_gqa
    return kernel(*heads, **settings)
