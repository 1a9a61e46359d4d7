"""The three-axis rotary positions of the Qwen-VL backbones.

The backbones were pretrained with one rule: the text after a video starts one past the largest
position used so far, on any axis. transformers up to 5.2, vLLM and Qwen's own trainer follow it;
transformers 5.3 to 5.23 start the text at max(height, width) of the grid instead, so that for clips
longer than a few seconds the question shares its positions with the video's time axis. rbft
computes the positions itself, with the rule the weights were trained with, and passes them
to every forward call (training, scoring and cached generation alike).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

POSITION_RULE = "text after a video starts at the largest position so far + 1"


def video_positions(
    grid_thw: Sequence[int], start: int, merge_size: int, times: Sequence[float]
) -> Int[Tensor, "3 tokens"]:
    """Positions (time, height, width) of one video's tokens in raster order.

    Args:
        grid_thw: The video's patch grid: frame pairs, patch rows, patch columns.
        start: First position of the video on every axis.
        merge_size: Patches that the merger joins per side (2 in every Qwen-VL).
        times: Positions of the frame pairs from the first on: for Qwen2.5-VL `tokens_per_second`
            times their seconds, for Qwen2-VL their numbers.

    Returns:
        One column per video token, that is after the merger.
    """
    rows, columns = grid_thw[1] // merge_size, grid_thw[2] // merge_size
    # Truncated after the product, as in vLLM: 2.29 s per pair at 2 positions a second is 0, 4, 9.
    whole = torch.tensor(times, dtype=torch.float64).long()
    axes = torch.meshgrid(whole, torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack(axes).reshape(3, -1) + start


def position_ids(
    input_ids: Int[Tensor, " tokens"],
    video_token_id: int,
    grid_thw: Sequence[int],
    merge_size: int,
    times: Sequence[float],
) -> Int[Tensor, "3 tokens"]:
    """Positions of one unpadded sequence with one video.

    Args:
        input_ids: The token ids, with the placeholder tokens of the video.
        video_token_id: The placeholder's id.
        grid_thw: The video's patch grid, see `video_positions`.
        merge_size: See `video_positions`.
        times: See `video_positions`.

    Returns:
        Positions (time, height, width), one column per token.

    Raises:
        ValueError: If the number of placeholder tokens does not match the grid.
    """
    is_video = _check_video(input_ids, video_token_id, grid_thw, merge_size)
    expected = int(is_video.sum())
    before = int(is_video.int().argmax())
    after = len(input_ids) - before - expected
    video = video_positions(grid_thw, before, merge_size, times)
    head = torch.arange(before).expand(3, -1)
    tail = (torch.arange(after) + int(video.max()) + 1).expand(3, -1)
    return torch.cat([head, video, tail], dim=1)


def position_ids_of_pairs(
    input_ids: Int[Tensor, " tokens"],
    video_token_id: int,
    grid_thw: Sequence[int],
    merge_size: int,
) -> Int[Tensor, "3 tokens"]:
    """Positions of one unpadded sequence with one video whose frame pairs stand apart, as images.

    Args:
        input_ids: See `position_ids`.
        video_token_id: See `position_ids`.
        grid_thw: See `video_positions`.
        merge_size: See `video_positions`.

    Returns:
        Positions (time, height, width), one column per token.

    Raises:
        ValueError: See `position_ids`; or if not every frame pair is a run of its own.
    """
    is_video = _check_video(input_ids, video_token_id, grid_thw, merge_size)
    pair = video_positions([1, *grid_thw[1:]], 0, merge_size, [0.0])
    starts = (is_video & ~is_video.roll(1)).nonzero()[:, 0].tolist()
    if len(starts) != grid_thw[0]:
        raise ValueError(
            f"The video tokens stand in {len(starts)} runs, but the video has {grid_thw[0]} frame "
            "pairs, and each must be a run of its own."
        )
    parts, place, position = [], 0, 0
    for start in starts:
        text = torch.arange(start - place).expand(3, -1) + position
        position += start - place
        parts += [text, pair + position]
        position += int(pair.max()) + 1
        place = start + pair.shape[1]
    tail = torch.arange(len(input_ids) - place).expand(3, -1) + position
    return torch.cat([*parts, tail], dim=1)


def _check_video(
    input_ids: Int[Tensor, " tokens"],
    video_token_id: int,
    grid_thw: Sequence[int],
    merge_size: int,
) -> Bool[Tensor, " tokens"]:
    """Which tokens are the video's, as many as its grid says."""
    is_video = input_ids == video_token_id
    expected = grid_thw[0] * (grid_thw[1] // merge_size) * (grid_thw[2] // merge_size)
    if int(is_video.sum()) != expected:
        raise ValueError(
            f"The sequence holds {int(is_video.sum())} video tokens, but the video's grid "
            f"{tuple(grid_thw)} gives {expected}. Never cut a sequence inside the video: lower "
            "data.max_frames or data.max_pixels instead."
        )
    return is_video
