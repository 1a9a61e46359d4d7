"""Outputs of a frozen vision tower on disk: later epochs and stages skip decoding and tower."""

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from rbft.video.cache_files import FEATURES
from rbft.video.sampling import TEMPORAL_PATCH
from rbft.video.tensor_cache import DiskCache


@dataclass(frozen=True)
class EncodedVideo:
    """The vision tower's output for a clip, which is used in place of its frames.

    Attributes:
        features: The tower's output for each patch, before the merger, in the patches' order.
        grid: Frame pairs, patch rows and patch columns.
        sampled_fps: Frames per second of video time that went into the tower.
        shown: Which frames of the file went into the tower, see `rbft.video.sampling.Video`; empty
            where an older version has kept the output.
    """

    features: Float[Tensor, "patches width"]
    grid: list[int]
    sampled_fps: float
    shown: dict[str, Any] = field(default_factory=dict)

    def seconds_per_pair(self, temporal_patch_size: int = TEMPORAL_PATCH) -> float:
        """Seconds of video time that the model sees as one step in time."""
        return temporal_patch_size / self.sampled_fps


class FeatureCache(DiskCache):
    """A `DiskCache` of vision tower outputs."""

    suffix = FEATURES
    name = "feature cache"
    fallback = "the vision tower runs every time"

    def get(self, key: str) -> EncodedVideo | None:
        """The features kept under the key; None where there are none."""
        found = self.read(key)
        return None if found is None else EncodedVideo(found[0], **found[1])

    def put(self, key: str, video: EncodedVideo) -> None:
        """Keeps a clip's features under the key."""
        metadata: dict[str, Any] = {"grid": video.grid, "sampled_fps": video.sampled_fps}
        metadata |= {"shown": video.shown} if video.shown else {}
        self.write(key, video.features, metadata)
