"""Outputs of a frozen vision tower on disk: later epochs and stages skip decoding and tower."""

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from rbft.video.cache_files import FEATURES
from rbft.video.tensor_cache import DiskCache
from rbft.video.times import PairTimes, pair_times


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

    @property
    def pair_times(self) -> PairTimes:
        """When the frame pairs are shown."""
        rate, shown = self.sampled_fps, self.shown
        if not shown:
            return pair_times(range(2 * self.grid[0]), rate, rate)
        return pair_times(shown["frames"], shown["fps"], rate, shown.get("times"))


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
