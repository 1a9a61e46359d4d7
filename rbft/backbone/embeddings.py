"""Video tokens among the embeddings of text, copied to places that are known beforehand.

transformers looks for the places on the device, and counts them there: the host waits for the
vision tower to finish, in every forward pass and, where the merger trains, in the backward pass
once more.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PLACES = "video_places"  # argument of the backbone's forward


def copy_video_tokens(model: Any) -> None:
    """Has a backbone that is told the places copy its video tokens there; else it looks for them.

    Args:
        model: The backbone; changed in place.
    """
    model.model.register_forward_pre_hook(_embed, with_kwargs=True)


@contextmanager
def states_in_one_row(model: Any) -> Iterator[None]:
    """Has a backbone hand its head the hidden states of all rows as one row, in this context.

    `logits_to_keep` then takes places among all rows' tokens, in padded batches too. By a mask, its
    other way to say places in several rows, they would be counted on the device, with a wait.

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
    """Puts embeddings in the place of token ids and video, before the model's own forward."""
    if (places := given.pop(PLACES, None)) is None:
        return args, given
    # What the tower takes besides patches, see `Family.tower_inputs`, goes by names of its own.
    text = {name: value for name, value in given.items() if not name.startswith("video_")}
    tower = {name: given[name] for name in given.keys() - text.keys()}
    embeddings = model.get_input_embeddings()(text.pop("input_ids"))
    pixels, encoded = text.pop("pixel_values_videos", None), text.pop("mm_encoder_outputs", None)
    if encoded is None:
        video = model.get_video_features(pixels, return_dict=True, **tower)
    else:
        video = encoded["video"]
    tokens = torch.cat(video.pooler_output).to(embeddings.device, embeddings.dtype)
    rows = embeddings.flatten(0, 1).index_copy(0, places, tokens)
    return args, {**text, "inputs_embeds": rows.view_as(embeddings)}
