"""Answers on a scale: how far they are off, and whether they rank clips as their labels do.

The classes are levels of one scale then, each with a number (`values` on the card).
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from rbft.analysis.intervals import LEVEL, RESAMPLES, Cells, Interval, percentile_interval

MAE, MAE_ANSWER, SPEARMAN = "mae", "mae/answer", "spearman"
LEVEL_SCORES = (MAE, MAE_ANSWER, SPEARMAN)  # names in the results
TITLES = {MAE: "MAE", MAE_ANSWER: "MAE of the answer", SPEARMAN: "Spearman"}


def level_scores(
    expected: Float[np.ndarray, " clips"],
    answered: Float[np.ndarray, " clips"],
    true: Float[np.ndarray, " clips"],
) -> dict[str, float]:
    """Mean absolute errors, in the unit of the scale, and the rank correlation.

    Clips without an answer have no value; the figures are about the others.

    Args:
        expected: The expected value of each clip, or the value of the answer where it was written
            without probabilities; NaN where there is no answer.
        answered: The value of the answered level; NaN where there is no answer.
        true: The value of the clip's level.

    Returns:
        `mae` of the expected value, `mae/answer` of the answered level, and `spearman`, the rank
        correlation of expected and true values, with the mean rank for equal ones; NaN where it is
        undefined.
    """
    have = ~np.isnan(expected)
    expected, answered, true = (values[have] for values in (expected, answered, true))
    if not len(true):
        return dict.fromkeys(LEVEL_SCORES, math.nan)
    return {
        MAE: float(np.abs(expected - true).mean()),
        MAE_ANSWER: float(np.abs(answered - true).mean()),
        SPEARMAN: spearman(expected, true),
    }


def spearman(a: Float[np.ndarray, " clips"], b: Float[np.ndarray, " clips"]) -> float:
    """Spearman's rank correlation; equal values have the mean of their ranks.

    NaN where one of the two has the same value throughout.
    """
    one, other = _ranks(a), _ranks(b)
    one, other = one - one.mean(), other - other.mean()
    scale = math.sqrt(float((one**2).sum() * (other**2).sum()))
    if not scale:
        return math.nan
    return min(1.0, max(-1.0, float((one * other).sum()) / scale))


def level_intervals(
    expected: Float[np.ndarray, " clips"],
    answered: Float[np.ndarray, " clips"],
    true: Float[np.ndarray, " clips"],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """The percentile bootstrap over clips of `level_scores`.

    Args:
        expected: See `level_scores`.
        answered: See `level_scores`.
        true: See `level_scores`.
        resamples: How many are drawn, of the clips that have an answer.
        seed: Of the draws.
    """
    found = level_scores(expected, answered, true)
    have = ~np.isnan(expected)
    expected, answered, true = (values[have] for values in (expected, answered, true))
    clips = len(true)
    cells = Cells(np.ones(clips, dtype=int), np.zeros(clips, dtype=int), 1)
    drawn: dict[str, list[np.ndarray]] = {name: [np.empty(0)] for name in LEVEL_SCORES}
    for counts in cells.resamples(resamples if clips else 0, seed):
        drawn[MAE].append(counts @ np.abs(expected - true) / clips)
        drawn[MAE_ANSWER].append(counts @ np.abs(answered - true) / clips)
        drawn[SPEARMAN].append(_correlations(counts, _drawn_ranks(counts, expected), true))
    return {
        name: percentile_interval(found[name], np.concatenate(draws), LEVEL)
        for name, draws in drawn.items()
    }


def _correlations(
    counts: Int[np.ndarray, "resamples clips"],
    one: Float[np.ndarray, "resamples clips"],
    values: Float[np.ndarray, " clips"],
) -> Float[np.ndarray, " resamples"]:
    """The correlation of ranks with those of values, in each resample; NaN where undefined."""
    other = _drawn_ranks(counts, values)
    # The mean rank is the same in every resample.
    one, other = (ranks - (counts.sum(1, keepdims=True) + 1) / 2 for ranks in (one, other))
    scale = np.sqrt((counts * one**2).sum(1) * (counts * other**2).sum(1))
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: one of the two is constant
        return (counts * one * other).sum(1) / scale


def _drawn_ranks(
    counts: Int[np.ndarray, "resamples clips"], values: Float[np.ndarray, " clips"]
) -> Float[np.ndarray, "resamples clips"]:
    """Rank of each clip's value in each resample, in which clips stand so many times."""
    _, places = np.unique(values, return_inverse=True)
    order = np.argsort(places, kind="stable")
    starts = np.flatnonzero(np.diff(places[order], prepend=-1))
    alike = np.add.reduceat(counts[:, order], starts, axis=1)
    last = alike.cumsum(axis=1)
    return (last - (alike - 1) / 2)[:, places]


def constant_scores(levels: Sequence[float], counts: Sequence[int]) -> dict[str, float]:
    """The scores of always answering the median level of the clips, which errs least on average.

    Args:
        levels: The value of each class.
        counts: Clips of each.
    """
    true = np.repeat(np.array(levels, dtype=float), counts)
    # A level that is there, not the middle between two.
    middle = np.full(len(true), np.sort(true)[(len(true) - 1) // 2] if len(true) else math.nan)
    return level_scores(middle, middle, true)


def _ranks(values: Float[np.ndarray, " clips"]) -> Float[np.ndarray, " clips"]:
    """Rank of each value from 1, the mean rank of equal ones."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places]
