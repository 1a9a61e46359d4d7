"""Qwen2-VL: the video's time axis counts frame pairs."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rbft.backbone.positions import position_ids
from rbft.video.times import PairTimes

# Of the language model's blocks. The whole path: bare names (gate_proj, ...) and peft's
# "all-linear" match the vision tower too.
TARGETS = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"


class Qwen2VL:
    """See `rbft.backbone.family.Family`."""

    model_type = "qwen2_vl"
    prompt_rule: str | None = None
    says_times = False
    targets = TARGETS
    packs = True

    def part(self, name: str) -> str:
        """The part of a parameter, by its in-memory name."""
        # Files have older names (`visual.*`, `model.layers.*`), which this does not match.
        if "visual.merger." in name:
            return "merger"
        return "vision" if "visual." in name else "language"

    def mergers(self, config: Any) -> list[str]:
        """The one module."""
        del config
        return ["merger"]

    def prompt_text(self, text: str, times: PairTimes) -> str:
        """The turn as it is: one run of video tokens."""
        del times
        return text

    def chat_template(self, template: str) -> str:
        """The backbone's own."""
        return template

    def time_positions(self, times: PairTimes, config: Any) -> list[float]:
        """Positions of the frame pairs on the time axis, before they are truncated."""
        del config
        return [float(pair) for pair in range(len(times.starts))]

    def position_ids(
        self, input_ids: Int[Tensor, " tokens"], grid_thw: list[int], times: PairTimes, config: Any
    ) -> Int[Tensor, "3 tokens"]:
        """Rotary positions of one sequence with one video."""
        return position_ids(
            input_ids,
            config.video_token_id,
            grid_thw,
            config.vision_config.spatial_merge_size,
            self.time_positions(times, config),
        )

    def features(
        self, visual: Any, pixels: Float[Tensor, "patches _"], grids: Int[Tensor, "clips 3"]
    ) -> Float[Tensor, "patches width"]:
        """The vision tower's output before the merger, in the patches' order."""
        return visual(pixels.to(visual.dtype), grid_thw=grids).last_hidden_state

    def feature_states(self, config: Any) -> int:
        """The last one alone."""
        del config
        return 1

    def merge(self, visual: Any, features: Sequence[Float[Tensor, "_ width"]]) -> Any:
        """The merger's tokens of each clip."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        tokens = visual.merger(torch.cat(list(features)))
        return BaseModelOutputWithPooling(pooler_output=split_tokens(visual, tokens, features))

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


def split_tokens(
    visual: Any, tokens: Float[Tensor, "tokens width"], features: Sequence[Tensor]
) -> Any:
    """The merger's tokens of each clip.

    Args:
        visual: The vision tower.
        tokens: The tokens of all clips.
        features: What they were made from, patches of each clip.
    """
    return tokens.split([len(own) // visual.spatial_merge_size**2 for own in features])
