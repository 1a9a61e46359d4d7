"""From a video file to the frames that the model sees.

Frames are chosen and sized as qwen-vl-utils 0.0.14 does (`fetch_video`), with which Qwen2-VL and
Qwen2.5-VL were tuned. `packet_index.py` lists the frames that a file holds, `readers.py` decodes
them. A `Video` holds the frames with their numbers and the frame rate, from which the model's time
positions are computed.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from rbft.clip import ROUNDING, Images
from rbft.video.frame_settings import FrameSettings
from rbft.video.images import read_images
from rbft.video.listings import known_frames, probe
from rbft.video.packet_index import (
    MAX_ASPECT_RATIO,
    FrameList,
    VideoError,
    VideoInfo,
)
from rbft.video.readers import IndexMismatch, Picture, check_damage, find_reader
from rbft.video.times import TEMPORAL_PATCH, PairTimes, pair_times

__all__ = [
    "FrameMask",
    "Video",
    "VideoError",
    "VideoInfo",
    "decode_video",
    "frame_size",
    "patch_grid",
    "plan_frames",
    "probe",
    "sample_indices",
]

MERGED = 2  # patches per side that the merger joins to one token, in every family
MAX_FRAME_TOKENS = 768


class NoFrames(ValueError):  # noqa: N818
    """No frame lies in the given part of a video."""


@dataclass(frozen=True)
class Video:
    """Frames of a clip and when they are shown.

    Attributes:
        frames: Resized.
        indices: Number of each frame in the file.
        total_frames: Frames of the file, or of the part of it that is used.
        fps: Frames per second of the file.
        masked: What is masked in the frames, as a `FrameMask` reports it; empty where nothing is.
        times: When each frame is shown, in seconds from the first of them. None where that follows
            from its number and `fps`.
    """

    frames: UInt8[Tensor, "frames 3 height width"]
    indices: list[int]
    total_frames: int
    fps: float
    masked: dict[str, Any] = field(default_factory=dict)
    times: list[float] | None = None

    @property
    def shown(self) -> dict[str, Any]:
        """Which frames of the file these are: their numbers and the file's frames per second.

        Their times where these do not follow, and what is masked in them, where anything is.
        """
        shown: dict[str, Any] = {"frames": list(self.indices), "fps": self.fps}
        shown |= {} if self.times is None else {"times": self.times}
        return {**shown, "masked": self.masked} if self.masked else shown

    @property
    def seconds(self) -> list[float]:
        """When each frame is shown, in seconds from the file's start."""
        first = self.indices[0] / self.fps
        if self.times is None:
            return [index / self.fps for index in self.indices]
        return [first + time for time in self.times]

    @property
    def sampled_fps(self) -> float:
        """Sampled frames per second of video time, as qwen-vl-utils computes it."""
        return len(self.indices) / self.total_frames * self.fps

    @property
    def pair_times(self) -> PairTimes:
        """When the frame pairs are shown."""
        return pair_times(self.indices, float(self.fps), self.sampled_fps, self.times)


@runtime_checkable
class FramePainter(Protocol):
    """Draws on the frames of a clip, in their order."""

    def __call__(self, frame: int, picture: Picture) -> Picture:
        """The picture of a frame of that number, drawn on; before it is resized."""
        ...

    @property
    def report(self) -> dict[str, Any]:
        """What was drawn, as JSON can hold it."""
        ...


@runtime_checkable
class FrameMask(Protocol):
    """What is drawn on a clip's frames before they are resized."""

    @property
    def key(self) -> Any:
        """All that the drawing depends on, as JSON can hold it."""
        ...

    def painter(self, indices: Sequence[int], cells: tuple[int, int]) -> FramePainter:
        """What draws on frames of these numbers, in a clip of so many rows and columns of tokens.

        Raises:
            ValueError: If it cannot draw on one of them.
        """
        ...


def decode_video(
    source: Path | Images,
    settings: FrameSettings,
    *,
    start: float | None = None,
    end: float | None = None,
    mask: FrameMask | None = None,
) -> Video:
    """Decodes and resizes the sampled frames of a clip, and as few others as possible.

    The frames of a video are those that FFmpeg gives when it decodes the file from start to end.
    Images are sampled like frames, those that do not follow each other evenly by their times.

    Args:
        source: The video file, a still image, or the images of a clip.
        settings: Which frames, and their size.
        start: See `frame_range`.
        end: See `frame_range`.
        mask: What is drawn on the frames before they are resized; None draws nothing.

    Raises:
        VideoError: If the file gives no clip: missing, empty, truncated, damaged, no video, too
            elongated, or without frames between start and end.
        ValueError: If a setting is out of range, or see `FrameMask.painter`.
    """
    read = find_reader(settings.reader)
    listing = known_frames(source)
    if listing.images is not None:
        read = read_images
    if listing.info.truncated and settings.damaged == "error":
        raise VideoError.of(listing.path, f"is truncated: {listing.info.truncated}.")
    try:
        return _decode(listing, read, settings, start, end, mask)
    except IndexMismatch:
        return _decode(known_frames(source, decode=True), read, settings, start, end, mask)


def _decode(
    listing: FrameList,
    read: Callable[[FrameList, list[int]], Iterator[Picture]],
    settings: FrameSettings,
    start: float | None,
    end: float | None,
    mask: FrameMask | None,
) -> Video:
    """`decode_video` of a file whose frames are listed.

    Raises:
        IndexMismatch: If decoding gives other frames.
    """
    info, uneven = listing.info, None
    try:
        if listing.images is not None and listing.images.seconds is not None:
            uneven = sample_uneven(listing.seconds, info.duration, settings, start=start, end=end)
            indices, used, rate = uneven.indices, uneven.used, uneven.fps
        elif settings.sampling == "time":
            indices, used, rate = sample_times(
                listing.seconds, info.duration, settings, start=start, end=end
            )
        else:
            first, last = frame_range(info.frames, info.fps, start, end)
            used, rate = last - first + 1, info.fps
            indices = sample_indices(info.frames, info.fps, settings, start=start, end=end)
    except NoFrames as error:
        raise VideoError.of(listing.path, f"has no such part: {error}") from error
    size = _frame_size(info, len(indices), settings)
    if settings.damaged == "error":
        check_damage(listing, indices)
    # Resized in small batches into one tensor: all frames of a long clip in full resolution would
    # not fit into memory.
    frames = torch.empty((len(indices), 3, *size), dtype=torch.uint8)
    cells = size[0] // settings.side, size[1] // settings.side
    painter = None if mask is None else mask.painter(indices, cells)
    batch, done = [], 0
    for picture in read(listing, indices):
        frame = indices[done + len(batch)]
        batch.append(picture if painter is None else painter(frame, picture))
        if len(batch) == 16 or done + len(batch) == len(indices):
            own = slice(done, done + len(batch))
            frames[own] = _resize(torch.from_numpy(np.stack(batch)), size)
            batch, done = [], own.stop
    assert done == len(indices)
    masked = {} if painter is None else painter.report
    times = even_times(len(indices), used, rate) if settings.sampling == "time" else None
    times = times if uneven is None else uneven.times
    return Video(frames, indices, used, rate, masked, times)


def plan_frames(
    info: VideoInfo,
    settings: FrameSettings,
    *,
    start: float | None = None,
    end: float | None = None,
) -> tuple[list[int], tuple[int, int]]:
    """The frames that stand for a clip and the size they get, without decoding any.

    Args:
        info: What is known about the file.
        settings: Which frames, and their size. When each frame is shown is not known here: with
            `sampling` time, only the number of frames, and so the size, is that of `decode_video`.
        start: See `frame_range`.
        end: See `frame_range`.

    Returns:
        Frame numbers, and height and width in pixels.

    Raises:
        ValueError: See `sample_indices` and `frame_size`.
    """
    rate = info.fps if settings.sampling == "frame" else info.frames / info.duration
    indices = sample_indices(info.frames, rate, settings, start=start, end=end)
    return indices, _frame_size(info, len(indices), settings)


def patch_grid(frames: int, size: tuple[int, int], side: int = 28) -> tuple[int, int, int]:
    """Frame pairs, patch rows and patch columns of a clip.

    Args:
        frames: Number of frames.
        size: Height and width in pixels.
        side: Pixels per side of a token, see `FrameSettings`.
    """
    return frames // TEMPORAL_PATCH, size[0] * MERGED // side, size[1] * MERGED // side


class SampledTimes(NamedTuple):
    """Frames that are chosen by their times, which are uneven.

    Attributes:
        indices: Their numbers.
        used: Frames of the part that they stand for.
        fps: The average rate of these.
        times: When each is shown, in seconds from the first of them; None where that follows from
            number and rate.
    """

    indices: list[int]
    used: int
    fps: float
    times: list[float] | None


def sample_uneven(
    seconds: Sequence[float],
    duration: float,
    settings: FrameSettings,
    *,
    start: float | None = None,
    end: float | None = None,
) -> SampledTimes:
    """The frames of `sample_times`, with the times at which they are shown.

    A frame that is taken several times is shown at its own time first, then at those at which it
    still is.

    Args:
        seconds: See `sample_times`.
        duration: See `sample_times`.
        settings: See `sample_times`.
        start: See `sample_times`.
        end: See `sample_times`.

    Raises:
        ValueError: See `sample_times`.
    """
    indices, used, rate, targets = _by_time(seconds, duration, settings, start, end)
    begin = seconds[indices[0]]
    times = [
        max(seconds[index], target if place and indices[place - 1] == index else 0.0) - begin
        for place, (index, target) in enumerate(zip(indices, targets, strict=True))
    ]
    followed = ((index - indices[0]) / rate for index in indices)
    if all(abs(one - other) <= ROUNDING for one, other in zip(times, followed, strict=True)):
        return SampledTimes(indices, used, rate, None)
    return SampledTimes(indices, used, rate, times)


def even_times(frames: int, used: int, fps: float) -> list[float]:
    """Evenly spaced times of so many frames of a part of a video, the first and last included.

    Args:
        frames: Frames that stand for the part.
        used: Frames that the part has.
        fps: Their average rate.

    Returns:
        Seconds from the first frame.
    """
    return np.linspace(0, (used - 1) / fps, frames).tolist()


def frame_range(
    total_frames: int, native_fps: float, start: float | None, end: float | None
) -> tuple[int, int]:
    """First and last frame of a part of a video, both included.

    Args:
        total_frames: Frames in the file.
        native_fps: Frames per second of the file.
        start: Seconds from the file's start, None for the first frame.
        end: Seconds from the file's start, negative from its end; None for the last frame.

    Raises:
        ValueError: If no frame lies between start and end.
    """
    duration = total_frames / native_fps
    first, last = 0, total_frames - 1
    if start is not None:
        first = math.ceil(max(0.0, min(start, duration)) * native_fps)
    if end is not None:
        if end < 0:
            end += duration
        last = min(math.floor(max(0.0, min(end, duration)) * native_fps), last)
    if first > last:
        raise NoFrames(
            f"no frame lies between start {start} s and end {end} s; the file has {duration:.2f} s "
            f"({total_frames} frames at {native_fps:.2f} per second)."
        )
    return first, last


def sample_indices(
    total_frames: int,
    native_fps: float,
    settings: FrameSettings,
    *,
    start: float | None = None,
    end: float | None = None,
) -> list[int]:
    """Numbers of the frames that stand for a clip: evenly spaced, the first and last included.

    Equals qwen-vl-utils (`calculate_video_frame_range`, `smart_nframes`, `linspace(...).round()`)
    wherever it has an answer. Where it has none: a clip of one frame shows that frame twice, and
    a `num_frames` above what the clip has repeats frames.

    Args:
        total_frames: Frames in the file.
        native_fps: Frames per second of the file.
        settings: How many frames to take.
        start: See `frame_range`.
        end: See `frame_range`.

    Returns:
        An even number of frame numbers, ascending.

    Raises:
        ValueError: If a setting is out of range or the part holds no frame.
    """
    first, last = frame_range(total_frames, native_fps, start, end)
    count = _frame_count(last - first + 1, native_fps, settings)
    return torch.linspace(first, last, count).round().long().tolist()


def sample_times(
    seconds: Sequence[float],
    duration: float,
    settings: FrameSettings,
    *,
    start: float | None = None,
    end: float | None = None,
) -> tuple[list[int], int, float]:
    """Numbers of the frames that are shown at evenly spaced times, the first and last included.

    As many as `sample_indices` takes. Where the frame rate varies, a frame that is shown for long
    is taken several times, and frames that are shown for a moment are skipped. With a constant
    frame rate they are those of `sample_indices`, up to rounding.

    Args:
        seconds: When each frame of the file is shown, from the first one on, ascending.
        duration: Seconds that all of them are shown for.
        settings: How many frames to take.
        start: Seconds from the file's start; a frame before it that is still shown does not count.
        end: Seconds from the file's start, negative from its end.

    Returns:
        Frame numbers, the number of frames in the part, and their average rate by the time
        stamps.

    Raises:
        ValueError: If a setting is out of range or the part holds no frame.
    """
    indices, used, rate, _ = _by_time(seconds, duration, settings, start, end)
    return indices, used, rate


def _by_time(
    seconds: Sequence[float],
    duration: float,
    settings: FrameSettings,
    start: float | None,
    end: float | None,
) -> tuple[list[int], int, float, list[float]]:
    """What `sample_times` gives, and the times at which frames were looked for."""
    begin = max(0.0, start or 0.0)
    stop = duration if end is None else end + duration if end < 0 else end
    first, last = bisect_left(seconds, begin), bisect_right(seconds, stop) - 1
    if first > last:
        raise NoFrames(
            f"no frame lies between start {start} s and end {end} s; the file has {duration:.2f} s "
            f"({len(seconds)} frames)."
        )
    used = last - first + 1
    span = seconds[last] - seconds[first]
    rate = (used - 1) / span if span else len(seconds) / duration
    count = _frame_count(used, rate, settings)
    # The frame shown at a time; the next one where it is less than half the median gap away.
    gaps = sorted(b - a for a, b in pairwise(seconds[first : last + 1]))
    ahead = gaps[(len(gaps) - 1) // 2] / 2 if gaps else 0.0
    times = np.linspace(seconds[first], seconds[last], count).tolist()
    indices = [bisect_right(seconds, time + ahead, first, last + 1) - 1 for time in times]
    return indices, used, rate, times


def _frame_count(used: int, native_fps: float, settings: FrameSettings) -> int:
    """Frames to take of a part with `used` frames."""
    num_frames, fps, max_frames = settings.num_frames, settings.fps, settings.max_frames
    if num_frames is not None:
        count = round(num_frames / TEMPORAL_PATCH) * TEMPORAL_PATCH
        if count < TEMPORAL_PATCH:
            raise ValueError(f"data.num_frames ({num_frames}) must be at least 2, or null.")
        return count
    if fps <= 0:
        raise ValueError(f"data.fps ({fps}) must be above 0.")
    if max_frames < TEMPORAL_PATCH:
        raise ValueError(f"data.max_frames ({max_frames}) must be at least 2.")
    fewest = math.ceil(settings.min_frames / TEMPORAL_PATCH) * TEMPORAL_PATCH
    most = max_frames // TEMPORAL_PATCH * TEMPORAL_PATCH
    asked = min(max(used / native_fps * fps, fewest), most, used)
    # Only a clip of one frame comes below a pair.
    return max(math.floor(asked / TEMPORAL_PATCH) * TEMPORAL_PATCH, TEMPORAL_PATCH)


def frame_size(
    height: int,
    width: int,
    num_frames: int,
    *,
    min_pixels: int,
    max_pixels: int,
    max_video_tokens: int = 115_200,
    side: int = 28,
) -> tuple[int, int]:
    """Size that frames are resized to: the aspect ratio is kept up to rounding.

    Equals qwen-vl-utils (`fetch_video`, `smart_resize`). The paper's "360 x 420" is such a budget
    of 151,200 pixels per frame, not a box.

    Args:
        height: Height in pixels.
        width: Width in pixels.
        num_frames: Frames of the clip; many of them make each smaller.
        min_pixels: Smaller frames are enlarged to this area.
        max_pixels: Larger frames are reduced to this area. At most 768 tokens per frame pair.
        max_video_tokens: Tokens of the whole clip (the default is 90 % of 128,000). It gives way
            where it would leave less than 1.05 x `min_pixels` per frame.
        side: Pixels per side of a token, see `FrameSettings`.

    Returns:
        Height and width, multiples of `side`.

    Raises:
        ValueError: If `min_pixels` exceeds `max_pixels`, or one side is more than 200 times the
            other.
    """
    if min_pixels > max_pixels:
        raise ValueError(
            f"data.min_pixels ({min_pixels}) must not exceed data.max_pixels ({max_pixels})."
        )
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"Frames of {width} x {height} pixels cannot be used: one side may be at most "
            f"{MAX_ASPECT_RATIO} times the other."
        )
    share = max_video_tokens * side**2 / num_frames * TEMPORAL_PATCH
    limit = max(min(MAX_FRAME_TOKENS * side**2, share), int(min_pixels * 1.05))
    budget = min(max_pixels, limit)
    rows = max(side, round(height / side) * side)
    columns = max(side, round(width / side) * side)
    if rows * columns > budget:
        shrink = math.sqrt(height * width / budget)
        # qwen-vl-utils returns 0 for the short side of very elongated frames.
        rows = max(side, math.floor(height / shrink / side) * side)
        columns = max(side, math.floor(width / shrink / side) * side)
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / side) * side
        columns = math.ceil(width * grow / side) * side
    return rows, columns


def _frame_size(info: VideoInfo, num_frames: int, settings: FrameSettings) -> tuple[int, int]:
    return frame_size(
        info.height,
        info.width,
        num_frames,
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
        side=settings.side,
    )


def _resize(
    pictures: UInt8[Tensor, "frames height width 3"], size: tuple[int, int]
) -> UInt8[Tensor, "frames 3 new_height new_width"]:
    pictures = pictures.permute(0, 3, 1, 2)
    if pictures.shape[2:] != size:
        pictures = torch.nn.functional.interpolate(pictures, size, mode="bicubic", antialias=True)
    return pictures
