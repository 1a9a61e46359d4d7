"""Copies video tokens into the embeddings of the text at positions that are known beforehand.

transformers finds and counts the positions on the device. The host then waits for the vision tower
to finish in every forward pass and, if the merger is trainable, again in the backward pass.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# Arguments of the backbone's forward: where video tokens stand, and which stands there where a clip
# stands in several sequences.
VIDEO_INDICES, VIDEO_SOURCES = "video_places", "video_sources"
# Argument of the language model's forward, for families that add features behind its first blocks.
DEEPSTACK = "video_deepstack"


def copy_video_tokens(model: Any) -> None:
    """Has a backbone copy video tokens to the positions that `VIDEO_INDICES` gives, if it does.

    Args:
        model: The backbone; changed in place.
    """
    model.model.register_forward_pre_hook(_embed, with_kwargs=True)
    language_model = model.model.language_model
    if hasattr(language_model, "_deepstack_process"):
        language_model.register_forward_pre_hook(_pass_deepstack, with_kwargs=True)
        language_model._deepstack_process = _add_rows


@contextmanager
def flatten_hidden_states(model: Any) -> Iterator[None]:
    """Context in which the head of a backbone gets the hidden states of all rows as one row.

    `logits_to_keep` is then an index into the tokens of all rows, in padded batches too. As a mask,
    the other form for several rows, it would be counted on the device, and the host would wait.

    Args:
        model: The backbone.
    """

    def flatten(module: Any, given: Any, out: Any) -> None:
        out.last_hidden_state = out.last_hidden_state.flatten(0, 1)[None]

    hook = model.model.register_forward_hook(flatten)
    try:
        yield
    finally:
        hook.remove()


def _embed(
    model: Any, args: tuple[Any, ...], given: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Replaces token ids and video by embeddings, before the model's own forward."""
    sources = given.pop(VIDEO_SOURCES, None)
    if (places := given.pop(VIDEO_INDICES, None)) is None:
        return args, given
    # The other inputs of the tower, see `Family.tower_inputs`, have names that begin like this.
    text = {name: value for name, value in given.items() if not name.startswith("video_")}
    tower = {name: given[name] for name in given.keys() - text.keys()}
    embeddings = model.get_input_embeddings()(text.pop("input_ids"))
    pixels, encoded = text.pop("pixel_values_videos", None), text.pop("mm_encoder_outputs", None)
    if encoded is None:
        video = model.get_video_features(pixels, return_dict=True, **tower)
    else:
        video = encoded["video"]

    def tokens(clips: Sequence[Tensor] | Tensor) -> Tensor:
        # transformers before 5.18 gives what DeepStack adds for all clips together.
        each = clips if isinstance(clips, Tensor) else torch.cat(list(clips))
        each = each.to(embeddings.device, embeddings.dtype)
        return each if sources is None else each[sources]

    rows = embeddings.flatten(0, 1).index_copy(0, places, tokens(video.pooler_output))
    if deepstack := getattr(video, "deepstack_features", None):
        text[DEEPSTACK] = (places, [tokens(level) for level in deepstack])
    return args, {**text, "inputs_embeds": rows.view_as(embeddings)}


def _pass_deepstack(
    language_model: Any, args: tuple[Any, ...], given: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Gives the language model what is added to its video tokens, under transformers' names."""
    if (added := given.pop(DEEPSTACK, None)) is not None:
        given["visual_pos_masks"], given["deepstack_visual_embeds"] = added
    return args, given


def _add_rows(
    hidden: Float[Tensor, "rows tokens width"],
    places: Tensor,
    added: Float[Tensor, "video width"],
) -> Float[Tensor, "rows tokens width"]:
    """Adds features to the video tokens, in the place of transformers' own function.

    Args:
        hidden: Hidden states of all tokens.
        places: Indices of the video tokens among all rows' tokens; or a mask of them, as
            transformers gives it, whose places are counted on the device.
        added: What is added to each of them.
    """
    if places.dtype == torch.bool:
        places = places.flatten().nonzero()[:, 0].to(hidden.device)
    rows = hidden.flatten(0, 1).index_add(0, places, added.to(hidden.device, hidden.dtype))
    return rows.view_as(hidden)
