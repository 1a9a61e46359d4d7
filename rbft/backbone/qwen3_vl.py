"""Qwen3-VL, dense and with experts: the time stands in the text, features enter three blocks more.

Before the tokens of each frame pair the prompt says when it is shown, `<0.5 seconds>`, and the
positions of a pair are those of an image. Besides the vision tower's last hidden state, merged,
some earlier ones enter the language model: each is merged on its own, and added to the video tokens
behind one of its first blocks ("DeepStack").
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rbft.backbone.positions import position_ids_of_pairs
from rbft.backbone.qwen2_vl import Qwen2VL, split_tokens
from rbft.video.times import PairTimes

START, PAD, END = "<|vision_start|>", "<|video_pad|>", "<|vision_end|>"


class Qwen3VL(Qwen2VL):
    """See `rbft.backbone.family.Family`."""

    model_type = "qwen3_vl"
    # transformers 4.57 does so, with which the weights were published. 5.10 to 5.23 leave a pair of
    # vision_start and vision_end around all frame pairs.
    prompt_rule: str | None = "a time before each frame pair, nothing around all of them"
    says_times = True

    def part(self, name: str) -> str:
        """The part of a parameter, by its in-memory name."""
        return "merger" if "visual.deepstack_merger_list." in name else super().part(name)

    def mergers(self, config: Any) -> list[str]:
        """That of the last hidden state, and one for each earlier one."""
        number = len(config.vision_config.deepstack_visual_indexes)
        return ["merger", *(f"deepstack_merger_list.{place}" for place in range(number))]

    def prompt_text(self, text: str, times: PairTimes) -> str:
        """The turn with the time before each frame pair."""
        pairs = "".join(f"<{middle:.1f} seconds>{START}{PAD}{END}" for middle in times.middles)
        # A template may have the placeholder alone, see `chat_template`.
        placeholder = START + PAD + END if START + PAD + END in text else PAD
        before, _, after = text.partition(placeholder)
        return before + pairs + after

    def chat_template(self, template: str) -> str:
        """The backbone's own, with the placeholder alone: what replaces it has nothing around it.

        So in transformers from 5.10 on, and in vLLM.
        """
        return template.replace(START + PAD + END, PAD)

    def position_ids(
        self, input_ids: Int[Tensor, " tokens"], grid_thw: list[int], times: PairTimes, config: Any
    ) -> Int[Tensor, "3 tokens"]:
        """Rotary positions of one sequence with one video."""
        del times
        merge_size = config.vision_config.spatial_merge_size
        return position_ids_of_pairs(input_ids, config.video_token_id, grid_thw, merge_size)

    def features(
        self, visual: Any, pixels: Float[Tensor, "patches _"], grids: Int[Tensor, "clips 3"]
    ) -> Float[Tensor, "patches width"]:
        """The vision tower's last hidden state and the earlier ones that are merged, side by side.

        In the patches' order.
        """
        earlier: list[Tensor] = []
        hooks = [
            visual.blocks[place].register_forward_hook(
                lambda block, given, out: earlier.append(out)
            )
            for place in visual.deepstack_visual_indexes
        ]
        try:
            last = visual(pixels.to(visual.dtype), grid_thw=grids).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([last, *earlier], dim=-1)

    def feature_states(self, config: Any) -> int:
        """The last one and those that are merged on their own."""
        return 1 + len(config.vision_config.deepstack_visual_indexes)

    def merge(self, visual: Any, features: Sequence[Float[Tensor, "_ width"]]) -> Any:
        """The tokens of each clip, and what is added to them in the language model's blocks."""
        from transformers.models.qwen3_vl import modeling_qwen3_vl as reference

        mergers = [visual.merger, *visual.deepstack_merger_list]
        states = torch.cat(list(features)).chunk(len(mergers), dim=-1)
        tokens, *deepstack = (
            split_tokens(visual, merger(state.contiguous()), features)
            for merger, state in zip(mergers, states, strict=True)
        )
        return reference.BaseModelOutputWithDeepstackFeatures(
            pooler_output=tokens, deepstack_features=deepstack
        )

    def tower_inputs(self, grids: Int[Tensor, "clips 3"], config: Any) -> dict[str, Any]:
        """Positions of the patches, learnt positions to interpolate, and the bounds of frames."""
        from transformers.vision_utils import get_vision_interpolation_indices_and_weights

        vision = config.vision_config
        indices, weights = get_vision_interpolation_indices_and_weights(
            grids,
            int(vision.num_position_embeddings**0.5),
            mode="bilinear",
            align_corners=True,
            spatial_merge_size=vision.spatial_merge_size,
        )
        return {
            **super().tower_inputs(grids, config),
            "video_interp_indices": indices,
            "video_interp_weights": weights,
        }


class Qwen3VLMoe(Qwen3VL):
    """Qwen3-VL with experts, of which a few process each token.

    Adapters are added to attention alone: the experts are no linear layers of their own.
    """

    model_type = "qwen3_vl_moe"
