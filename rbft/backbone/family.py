"""Backbone families: facts about an architecture that transformers does not provide.

A family is chosen by `model_type` in the backbone's config.json, never by the folder's name. To
add one, write a module in this folder and add it to `FAMILIES`.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from rbft.backbone import qwen2_5_vl, qwen2_vl

PARTS = ("language", "merger", "vision")


@runtime_checkable
class Family(Protocol):
    """One architecture."""

    model_type: str

    def part(self, name: str) -> str:
        """The part ("language", "merger" or "vision") of a parameter, by its in-memory name."""
        ...

    def position_ids(
        self,
        input_ids: Int[Tensor, " tokens"],
        grid_thw: list[int],
        seconds_per_pair: float,
        config: Any,
    ) -> Int[Tensor, "3 tokens"]:
        """Rotary positions of one sequence with one video, by the rule of the pretraining."""
        ...

    def features(
        self, visual: Any, pixels: Float[Tensor, "patches _"], grids: Int[Tensor, "clips 3"]
    ) -> Float[Tensor, "patches width"]:
        """The vision tower's output before the merger, in the patches' order."""
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
    family.model_type: family for family in (qwen2_vl.Qwen2VL(), qwen2_5_vl.Qwen2_5VL())
}
