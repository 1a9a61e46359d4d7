"""When the frame pairs of a clip are shown, as positions and text of a prompt say it."""

from collections.abc import Sequence
from dataclasses import dataclass

TEMPORAL_PATCH = 2  # the model joins frames to pairs
MOST = 0.05  # seconds that count as even in any case: a list of images may have few a minute


@dataclass(frozen=True)
class PairTimes:
    """Times of a clip's frame pairs, in seconds from its first frame.

    Attributes:
        starts: When each pair begins, as the positions of Qwen2.5-VL count it: qwen-vl-utils takes
            a clip of n frames to last n times the distance of two, not n - 1 times.
        middles: Mean of the times at which the two frames of each pair are shown, which Qwen3-VL
            reads as text.
        step: Seconds from one pair to the next; None where they are uneven.
    """

    starts: tuple[float, ...]
    middles: tuple[float, ...]
    step: float | None


def pair_times(
    indices: Sequence[int],
    fps: float,
    sampled_fps: float,
    times: Sequence[float] | None = None,
) -> PairTimes:
    """Times of a clip's frame pairs.

    Args:
        indices: Number of each sampled frame in the file.
        fps: Frames per second of the file.
        sampled_fps: Sampled frames per second, as qwen-vl-utils computes it.
        times: When each frame is shown, in seconds from the first; None takes its number over
            `fps`. Where they are uneven by more than a frame of the file, pairs start at them.
    """
    shown = [(index - indices[0]) / fps for index in indices] if times is None else list(times)
    if len(shown) % TEMPORAL_PATCH:  # the processor repeats the last frame
        shown.append(shown[-1])
    pairs = range(0, len(shown), TEMPORAL_PATCH)
    middles = tuple((shown[first] + shown[first + 1]) / 2 for first in pairs)
    if times is not None and not _is_even(shown, min(1 / fps, MOST)):
        # Stretched as those of evenly spaced frames are.
        stretch = (len(shown) - 1) / sampled_fps / shown[-1]
        return PairTimes(tuple(shown[first] * stretch for first in pairs), middles, None)
    step = TEMPORAL_PATCH / sampled_fps
    return PairTimes(tuple(pair * step for pair in range(len(pairs))), middles, step)


def _is_even(shown: Sequence[float], tolerance: float) -> bool:
    """Whether times lie no further than `tolerance` from evenly spaced ones."""
    gap = shown[-1] / max(1, len(shown) - 1)
    return all(abs(time - place * gap) <= tolerance for place, time in enumerate(shown))
