"""Qwen2.5-VL: the video's time axis counts real time."""

from typing import Any

from rbft.families.qwen2_vl import Qwen2VL


class Qwen2_5VL(Qwen2VL):  # noqa: N801 (the architecture's own name)
    """See `rbft.families.Family`."""

    model_type = "qwen2_5_vl"

    def time_step(self, seconds_per_pair: float, config: Any) -> float:
        """Positions from one frame pair to the next, `tokens_per_second` to a second."""
        return config.vision_config.tokens_per_second * seconds_per_pair
