"""Means of a figure over clips, and of its paired difference, with bootstrap intervals."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from rbft.analysis.intervals import (
    CHUNK,
    LEVEL,
    RESAMPLES,
    Interval,
    check_level,
    check_resamples,
    percentile_interval,
)


def bootstrap_mean(
    values: Sequence[float], level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean over clips with the percentile interval of resampled clips.

    Args:
        values: The figure of each clip; NaN is a clip without one, and does not count.
        level: Of the interval, two-sided.
        resamples: How many are drawn.
        seed: Of the draws.

    Returns:
        NaN where there is no clip; of a single clip the interval is undefined.

    Raises:
        ValueError: If level or resamples are out of range.
    """
    check_level(level)
    check_resamples(resamples)
    found = np.array([value for value in values if not math.isnan(value)], dtype=float)
    if len(found) < 2:
        value = float(found[0]) if len(found) else math.nan
        return Interval(value, math.nan, math.nan, level)
    drawer = np.random.default_rng(seed)
    step = max(1, CHUNK // len(found))
    draws = [
        found[drawer.integers(len(found), size=(min(step, resamples - start), len(found)))].mean(1)
        for start in range(0, resamples, step)
    ]
    return percentile_interval(float(found.mean()), np.concatenate(draws), level)


def bootstrap_difference(
    a: Mapping[str, float],
    b: Mapping[str, float],
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Interval, int]:
    """The mean over clips of A - B, paired: clips are drawn with both figures.

    Args:
        a: The figure of A by clip; NaN is a clip without one.
        b: The figure of B by clip.
        level: Of the interval, two-sided.
        resamples: How many are drawn.
        seed: Of the draws.

    Returns:
        The difference, and the number of clips that have both figures.

    Raises:
        ValueError: If level or resamples are out of range.
    """
    both = [a[clip] - b[clip] for clip in a if clip in b]
    both = [value for value in both if not math.isnan(value)]
    return bootstrap_mean(both, level, resamples, seed), len(both)
