"""Backbone families: what rbft must know of an architecture and cannot ask transformers.

A family is chosen by `model_type` in the backbone's config.json, never by the folder's name. To
add one, write a file beside this one and enter it in `FAMILIES`.
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
        """Rotary positions of one sequence with one video, by the rule the weights learnt."""
        ...

    def features(
        self, visual: Any, pixels: Float[Tensor, "patches _"], grids: Int[Tensor, "clips 3"]
    ) -> Float[Tensor, "patches width"]:
        """The vision tower's output before the merger, in the patches' order."""
        ...

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """Decoder and vision blocks, the units that sharding gathers at a time."""
        ...

    def tower_inputs(self, grids: Int[Tensor, "clips 3"], config: Any) -> dict[str, Any]:
        """What the vision tower computes from the grids, ahead of time and on the processor.

        transformers takes it as arguments of the backbone's forward; without it, it would wait for
        the device in every step to read the grids.
        """
        ...

    def vision_pairs(self, grid_thw: Sequence[int], config: Any) -> int:
        """Pairs of patches that attend to each other, over all blocks of the vision tower."""
        ...


FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (qwen2_vl.Qwen2VL(), qwen2_5_vl.Qwen2_5VL())
}
