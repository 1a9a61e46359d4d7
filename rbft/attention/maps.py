"""From the attention of one token to a map over the video: frame pairs, rows and columns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rbft.attention.capture import Rows, capture_heads, capture_last_rows, rollout_row
from rbft.video.times import TEMPORAL_PATCH

Kind = Literal["mean", "relative", "rollout"]
Map = Float[np.ndarray, "slices rows columns"]


@dataclass(frozen=True)
class VideoMap:
    """What one token looks at in a video.

    Attributes:
        values: Of each video token, all together 1: a slice is a pair of frames, rows and columns
            are those of the tokens (28 x 28 pixels each).
        video_share: Share of the token's attention that goes to the video at all.
    """

    values: Map
    video_share: float

    def relative_to(self, other: "VideoMap") -> "VideoMap":
        """This map divided by another one of the same video, all together 1 again.

        What every prompt looks at, such as attention sinks, cancels.
        """
        least = np.finfo(np.float32).tiny
        ratio = self.values / np.maximum(other.values, least)
        return VideoMap(ratio / ratio.sum(), self.video_share)


def read_map(
    model: Any,
    layers: Sequence[int] | None,
    video: Bool[Tensor, " tokens"],
    grid: Sequence[int],
    forward: Callable[[], Any],
) -> tuple[VideoMap, Any]:
    """The map of the last token of a prompt, and what the forward returns.

    Args:
        model: The backbone.
        layers: The mean over these layers and all heads; None takes rollout through all layers.
        video: Which of the prompt's tokens are the video's.
        grid: Frame pairs, token rows and token columns.
        forward: Runs the backbone on the prompt, in one row.
    """
    if layers is None:
        with capture_heads(model) as heads:
            made = forward()
        row = rollout_row(heads)
    else:
        with capture_last_rows(model, layers) as rows:
            made = forward()
        row = mean_row(rows)
    return video_map(row, video, grid), made


def mean_row(rows: Rows) -> Float[Tensor, " tokens"]:
    """The mean over layers and heads."""
    return torch.stack([weights.mean(0) for weights in rows.values()]).mean(0)


def video_map(
    row: Float[Tensor, " tokens"], video: Bool[Tensor, " tokens"], grid: Sequence[int]
) -> VideoMap:
    """The map of a token's attention.

    Args:
        row: Attention to each token of the prompt.
        video: Which of them are the video's, in raster order: frame pair, row, column.
        grid: Frame pairs, token rows and token columns.
    """
    seen = row[video].double().cpu().numpy()
    share = float(seen.sum())
    return VideoMap((seen / share).reshape(tuple(grid)), share)


def token_grid(patches: Sequence[int], merge_size: int) -> tuple[int, int, int]:
    """Frame pairs, token rows and token columns of a video's patch grid.

    Args:
        patches: Frame pairs, patch rows and patch columns.
        merge_size: Patches that the merger joins per side.
    """
    pairs, rows, columns = patches
    return pairs, rows // merge_size, columns // merge_size


def slice_frames(indices: Sequence[int], pair: int = TEMPORAL_PATCH) -> list[list[int]]:
    """Which of a clip's frames each slice of a map stands for.

    Args:
        indices: Number of each frame in its file. A file of one frame shows it twice, and an odd
            number of frames is filled up with the last one: such copies are left out.
        pair: Frames to a slice.

    Returns:
        For each slice the places of its frames among `indices`, at least one.
    """
    slices = [range(at, min(at + pair, len(indices))) for at in range(0, len(indices), pair)]
    return [
        [n for n in places if n == places[0] or indices[n] != indices[n - 1]] for places in slices
    ]
