"""Qwen2-VL: the video's time axis counts frame pairs."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from rbft.backbone.positions import position_ids


class Qwen2VL:
    """See `rbft.backbone.family.Family`."""

    model_type = "qwen2_vl"

    def part(self, name: str) -> str:
        """The part of a parameter, by its in-memory name."""
        # Files have older names (`visual.*`, `model.layers.*`), which this does not match.
        if "visual.merger." in name:
            return "merger"
        return "vision" if "visual." in name else "language"

    def time_step(self, seconds_per_pair: float, config: Any) -> float:
        """Positions from one frame pair to the next."""
        del seconds_per_pair, config
        return 1.0

    def position_ids(
        self,
        input_ids: Int[Tensor, " tokens"],
        grid_thw: list[int],
        seconds_per_pair: float,
        config: Any,
    ) -> Int[Tensor, "3 tokens"]:
        """Rotary positions of one sequence with one video."""
        return position_ids(
            input_ids,
            config.video_token_id,
            grid_thw,
            config.vision_config.spatial_merge_size,
            self.time_step(seconds_per_pair, config),
        )

    def features(
        self, visual: Any, pixels: Float[Tensor, "patches _"], grids: Int[Tensor, "clips 3"]
    ) -> Float[Tensor, "patches width"]:
        """The vision tower's output before the merger, in the patches' order."""
        return visual(pixels.to(visual.dtype), grid_thw=grids).last_hidden_state

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """Decoder and vision blocks."""
        stacks = ("model.language_model.layers", "model.visual.blocks")
        return [block for stack in stacks for block in model.get_submodule(stack).children()]

    def tower_inputs(self, grids: Int[Tensor, "clips 3"], config: Any) -> dict[str, Any]:
        """Positions of the patches, and the bounds of frames."""
        from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids

        bounds = get_vision_cu_seqlens(grids)
        merge = config.vision_config.spatial_merge_size
        return {
            "video_position_ids": get_vision_position_ids(grids, merge),
            "video_cu_seqlens": bounds,
            "video_max_seqlen": int(bounds.diff().max()),
        }

    def vision_pairs(self, grid_thw: Sequence[int], config: Any) -> int:
        """Pairs of patches of the same frame pair, over all blocks; they attend to each other."""
        pairs, rows, columns = grid_thw
        return config.vision_config.depth * pairs * (rows * columns) ** 2
