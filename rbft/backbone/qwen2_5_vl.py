"""Qwen2.5-VL: the video's time axis counts real time."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rbft.backbone.qwen2_vl import Qwen2VL
from rbft.video.times import PairTimes


class Qwen2_5VL(Qwen2VL):  # noqa: N801 (the architecture's own name)
    """See `rbft.backbone.family.Family`."""

    model_type = "qwen2_5_vl"

    def time_positions(self, times: PairTimes, config: Any) -> list[float]:
        """Positions of the frame pairs on the time axis, `tokens_per_second` to a second."""
        # The product in this order: it is truncated, and rounding must be that of transformers.
        rate, step = config.vision_config.tokens_per_second, times.step
        if step is not None:
            return [pair * (rate * step) for pair in range(len(times.starts))]
        return [rate * start for start in times.starts]

    def features(
        self, visual: Any, pixels: Float[Tensor, "patches _"], grids: Int[Tensor, "clips 3"]
    ) -> Float[Tensor, "patches width"]:
        """The vision tower's output before the merger, in the patches' order."""
        from transformers.vision_utils import get_vision_window_index

        windowed = super().features(visual, pixels, grids)
        # The tower sorts patches by window, in units that the merger joins to one token.
        order, _ = get_vision_window_index(
            grids, visual.spatial_merge_size, visual.window_size, visual.patch_size
        )
        units = windowed.unflatten(0, (-1, visual.spatial_merge_size**2))
        return units[torch.argsort(order.to(units.device))].flatten(0, 1)

    def tower_inputs(self, grids: Int[Tensor, "clips 3"], config: Any) -> dict[str, Any]:
        """Positions of the patches, and the bounds of frames and windows."""
        from transformers.vision_utils import get_vision_window_index

        vision = config.vision_config
        order, bounds = get_vision_window_index(
            grids, vision.spatial_merge_size, vision.window_size, vision.patch_size
        )
        return {
            **super().tower_inputs(grids, config),
            "video_window_index": order,
            "video_cu_window_seqlens": bounds,
            "video_max_window_seqlen": int(bounds.diff().max()),
        }

    def vision_pairs(self, grid_thw: Sequence[int], config: Any) -> int:
        """Pairs of patches that attend to each other, in windows or, in some blocks, in frames."""
        pairs, rows, columns = grid_thw
        vision = config.vision_config
        side = vision.window_size // vision.patch_size
        whole = pairs * (rows * columns) ** 2
        windows = pairs * _squares(rows, side) * _squares(columns, side)
        wide = len(vision.fullatt_block_indexes)
        return wide * whole + (vision.depth - wide) * windows


def _squares(length: int, side: int) -> int:
    """Sum of squared lengths of the parts of an axis; the last part may be shorter."""
    return length // side * side**2 + (length % side) ** 2
