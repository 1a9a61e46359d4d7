"""The three-axis rotary positions of Qwen2-VL and Qwen2.5-VL.

The backbones were pretrained with one rule: the text after a video starts one past the largest
position used so far, on any axis. transformers up to 5.2, vLLM and Qwen's own trainer follow it;
transformers 5.3 to 5.23 start the text at max(height, width) of the grid instead, so that for clips
longer than a few seconds the question shares its positions with the video's time axis. rbft
computes the positions itself, with the rule the weights were trained with, and passes them
to every forward call (training, scoring and cached generation alike).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

POSITION_RULE = "text after a video starts at the largest position so far + 1"


def video_positions(
    grid_thw: Sequence[int], start: int, merge_size: int, time_step: float
) -> Int[Tensor, "3 tokens"]:
    """Positions (time, height, width) of one video's tokens in raster order.

    Args:
        grid_thw: The video's patch grid: frame pairs, patch rows, patch columns.
        start: First position of the video on every axis.
        merge_size: Patches that the merger joins per side (2 in every Qwen-VL).
        time_step: Positions from one frame pair to the next: for Qwen2.5-VL
            `tokens_per_second` times the seconds per frame pair, for Qwen2-VL 1.

    Returns:
        One column per video token, that is after the merger.
    """
    frames, rows, columns = grid_thw[0], grid_thw[1] // merge_size, grid_thw[2] // merge_size
    # Truncated after the product, as in vLLM: 2.29 s per pair at 2 positions a second is 0, 4, 9.
    times = (torch.arange(frames, dtype=torch.float64) * time_step).long()
    axes = torch.meshgrid(times, torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack(axes).reshape(3, -1) + start


def position_ids(
    input_ids: Int[Tensor, " tokens"],
    video_token_id: int,
    grid_thw: Sequence[int],
    merge_size: int,
    time_step: float,
) -> Int[Tensor, "3 tokens"]:
    """Positions of one unpadded sequence with one video.

    Args:
        input_ids: The token ids, with the placeholder tokens of the video.
        video_token_id: The placeholder's id.
        grid_thw: The video's patch grid, see `video_positions`.
        merge_size: See `video_positions`.
        time_step: See `video_positions`.

    Returns:
        Positions (time, height, width), one column per token.

    Raises:
        ValueError: If the number of placeholder tokens does not match the grid.
    """
    is_video = input_ids == video_token_id
    expected = grid_thw[0] * (grid_thw[1] // merge_size) * (grid_thw[2] // merge_size)
    if int(is_video.sum()) != expected:
        raise ValueError(
            f"The sequence holds {int(is_video.sum())} video tokens, but the video's grid "
            f"{tuple(grid_thw)} gives {expected}. Never cut a sequence inside the video: lower "
            "data.max_frames or data.max_pixels instead."
        )
    before = int(is_video.int().argmax())
    after = len(input_ids) - before - expected
    video = video_positions(grid_thw, before, merge_size, time_step)
    head = torch.arange(before).expand(3, -1)
    tail = (torch.arange(after) + int(video.max()) + 1).expand(3, -1)
    return torch.cat([head, video, tail], dim=1)
