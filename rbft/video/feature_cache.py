"""Outputs of a frozen vision tower on disk: later epochs and stages neither decode nor run it."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from rbft.video.sampling import TEMPORAL_PATCH
from rbft.video.tensor_cache import DiskCache


@dataclass(frozen=True)
class EncodedVideo:
    """A clip as the vision tower has seen it; takes the place of its frames.

    Attributes:
        features: The tower's output for each patch, before the merger, in the patches' order.
        grid: Frame pairs, patch rows and patch columns.
        sampled_fps: Pictures per second of video time that the tower was shown.
    """

    features: Float[Tensor, "patches width"]
    grid: list[int]
    sampled_fps: float

    def seconds_per_pair(self, temporal_patch_size: int = TEMPORAL_PATCH) -> float:
        """Seconds of video time that the model sees as one step in time."""
        return temporal_patch_size / self.sampled_fps


class FeatureCache(DiskCache):
    """Outputs of vision towers."""

    suffix = ".features"
    name = "feature cache"
    otherwise = "the vision tower runs every time"

    def get(self, key: str) -> EncodedVideo | None:
        """What is kept under the key; None where there is nothing."""
        found = self.read(key)
        return None if found is None else EncodedVideo(found[0], **found[1])

    def put(self, key: str, seen: EncodedVideo) -> None:
        """Keeps a clip's features."""
        facts: dict[str, Any] = {"grid": seen.grid, "sampled_fps": seen.sampled_fps}
        self.write(key, seen.features, facts)
