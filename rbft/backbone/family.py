"""Backbone families: facts about an architecture that transformers does not provide.

A family is chosen by `model_type` in the backbone's config.json, never by the folder's name. To
add one, write a module in this folder and add it to `FAMILIES`.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from rbft.backbone import qwen2_5_vl, qwen2_vl, qwen3_5, qwen3_vl
from rbft.video.times import PairTimes

PARTS = ("language", "merger", "vision")


@runtime_checkable
class Family(Protocol):
    """One architecture.

    Attributes:
        model_type: As config.json says it.
        prompt_rule: How a clip stands in the prompt, where software does it in several ways: it is
            noted with weights and rationales. None where there is one way.
        says_times: Whether a prompt says when the clip's frames are shown.
        targets: The linear layers that adapters are added to, as peft's regular expression.
        packs: Whether clips may stand behind each other in one row.
    """

    model_type: str
    prompt_rule: str | None
    says_times: bool
    targets: str
    packs: bool

    def part(self, name: str) -> str:
        """The part ("language", "merger" or "vision") of a parameter, by its in-memory name."""
        ...

    def mergers(self, config: Any) -> list[str]:
        """Modules that make up the merger, by the end of their names."""
        ...

    def prompt_text(self, text: str, times: PairTimes) -> str:
        """What the chat template made of a turn, with the clip as the weights have learnt it.

        Args:
            text: The turn with one video placeholder.
            times: When the clip's frame pairs are shown.

        Returns:
            The text with one placeholder for each run of video tokens; all runs are as long.
        """
        ...

    def chat_template(self, template: str) -> str:
        """The chat template that makes a user turn, in rbft and in software that gets the weights.

        Args:
            template: The backbone's own, or what this has made of it.
        """
        ...

    def position_ids(
        self, input_ids: Int[Tensor, " tokens"], grid_thw: list[int], times: PairTimes, config: Any
    ) -> Int[Tensor, "3 tokens"]:
        """Rotary positions of one sequence with one video, by the rule of the pretraining."""
        ...

    def features(
        self, visual: Any, pixels: Float[Tensor, "patches _"], grids: Int[Tensor, "clips 3"]
    ) -> Float[Tensor, "patches width"]:
        """What the merger reads of the vision tower, in the patches' order."""
        ...

    def feature_states(self, config: Any) -> int:
        """Of how many of the vision tower's hidden states `features` consists."""
        ...

    def merge(self, visual: Any, features: Sequence[Float[Tensor, "_ width"]]) -> Any:
        """What the vision tower gives the language model, from the `features` of each clip.

        Returns:
            An object such as transformers' `get_video_features` returns, for `mm_encoder_outputs`.
        """
        ...

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """Blocks of decoder and vision tower, the units that FSDP shards and unshards."""
        ...

    def tower_inputs(self, grids: Int[Tensor, "clips 3"], config: Any) -> dict[str, Any]:
        """Precomputes on the CPU what the vision tower derives from the grids.

        transformers takes these as arguments of the backbone's forward. Without them it waits for
        the device in every step to read the grids.
        """
        ...

    def vision_pairs(self, grid_thw: Sequence[int], config: Any) -> int:
        """Pairs of patches that attend to each other, over all blocks of the vision tower."""
        ...


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        qwen2_vl.Qwen2VL(),
        qwen2_5_vl.Qwen2_5VL(),
        qwen3_vl.Qwen3VL(),
        qwen3_vl.Qwen3VLMoe(),
        qwen3_5.Qwen3_5(),
    )
}


def token_side(config: Any) -> int:
    """Pixels per side of a video token: patch size times the patches per side that are merged."""
    vision = config.vision_config
    return vision.patch_size * vision.spatial_merge_size


def linear_layers(text: Any) -> int:
    """Layers of linear attention, which have a state of fixed size in the place of keys and values.

    Args:
        text: Configuration of the language model.
    """
    return (getattr(text, "layer_types", None) or []).count("linear_attention")
