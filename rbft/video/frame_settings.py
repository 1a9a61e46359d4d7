"""Which frames of a video are taken, and at what size."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class FrameSettings:
    """How frames are sampled from a video, resized and decoded.

    The order of the fields is that of the settings in rationale files.

    Attributes:
        fps: Frames to take per second of video time.
        num_frames: Frames to take, rounded to an even number, instead of `fps`.
        min_pixels: Smaller frames are enlarged to this area (height x width).
        max_pixels: Larger frames are reduced to this area; the aspect ratio is kept.
        min_frames: Fewest frames to take, as far as the clip has them.
        max_frames: Most frames to take; longer clips are sampled more thinly.
        reader: The library that decodes: pyav, decord or torchcodec; None for PyAV.
        sampling: Frames evenly spaced by their number (frame, as qwen-vl-utils does), or by the
            time at which they are shown (time).
        damaged: Whether a truncated file, or frames that are decoded with errors, are an error
            or are used as they are.
        side: Pixels per side of a token, of which height and width are multiples: the patch size
            times the patches per side that the merger joins. 28 for Qwen2-VL and Qwen2.5-VL, 32 for
            Qwen3-VL; it comes from the backbone.
    """

    fps: float
    num_frames: int | None = None
    min_pixels: int
    max_pixels: int
    min_frames: int = 4
    max_frames: int = 768
    reader: str | None = None
    sampling: Literal["frame", "time"] = "frame"
    damaged: Literal["error", "use"] = "error"
    side: int = 28


def determining(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those frame settings that determine the frames, by name; the reader is not among them.

    Settings that were added since, with a default that changes nothing, are left out where they
    have that default: digests and cache keys of before stay valid.
    """
    same = {"sampling": "frame", "damaged": "error", "side": 28}
    return {
        name: value
        for name, value in settings.items()
        if name != "reader" and not (name in same and value == same[name])
    }
