"""How far a score may be from the truth: intervals over the clips that it was measured on.

The clips are taken as drawn independently from those that the score shall speak for. What training
with another seed would change is not in these intervals, see `rbft.analysis.seeds`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int

LEVEL = 0.95
RESAMPLES = 10_000
CHUNK = 2_000_000  # resamples times cells that are in memory at a time


@dataclass(frozen=True)
class Interval:
    """A figure and the interval around it, all in the figure's own unit; NaN where undefined.

    Attributes:
        value: The figure.
        low: Lower end.
        high: Upper end.
        level: Share of such intervals that hold the true value.
    """

    value: float
    low: float
    high: float
    level: float = LEVEL

    def as_dict(self) -> dict[str, float | None]:
        """Lower and upper end for JSON, null where undefined."""
        ends = {"low": self.low, "high": self.high}
        return {name: None if math.isnan(end) else end for name, end in ends.items()}

    def percent(self, decimals: int = 1, sign: str = "") -> str:
        """The figure and its interval in per cent, "71.3 [66.0, 76.1]"; a dash if undefined.

        Args:
            decimals: Digits behind the point.
            sign: "+" writes the sign of positive figures too, for differences.
        """
        if math.isnan(self.value):
            return "-"
        ends = f"{100 * self.low:{sign}.{decimals}f}, {100 * self.high:{sign}.{decimals}f}"
        return f"{100 * self.value:{sign}.{decimals}f} [{ends}]"


def wilson(correct: int, n: int, level: float = LEVEL) -> Interval:
    """Wilson's score interval of a share such as the accuracy (Wilson 1927).

    It stays within 0 and 1 and is open at 0 and all right answers, where the normal interval
    has no width.

    Args:
        correct: Number of right answers, 0 to n.
        n: Number of clips; of none, the share is undefined and its interval 0 to 1.
        level: Of the interval, two-sided.

    Raises:
        ValueError: If the counts or the level are out of range.
    """
    check_level(level)
    if not 0 <= correct <= n:
        raise ValueError(f"Right answers ({correct}) must be from 0 to the number of clips ({n}).")
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, level)
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = correct / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Exactly 0 and 1 at the ends, which rounding misses.
    low = 0.0 if correct == 0 else middle - half
    high = 1.0 if correct == n else middle + half
    return Interval(share, low, high, level)


def bootstrap_scores(
    confusion: Int[np.ndarray, "classes predictions"],
    classes: Sequence[str],
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentile bootstrap over clips of accuracy, F1 of each class and macro F1.

    Drawing n clips with replacement draws the cells of the confusion matrix from a multinomial
    distribution, so that clips need not be drawn one by one. Not stratified: how many clips of
    each class there are varies as it would in another test split. In a resample that has no clip
    of a class the class has no F1 and the macro F1 is of the others, as everywhere in rbft.

    Args:
        confusion: Clips by label (K rows) and prediction (K + 1 columns, the last one answers
            that are no class).
        classes: Class names in order.
        level: Of the intervals, two-sided.
        resamples: How many are drawn.
        seed: Of the draws; the same counts and seed give the same intervals.

    Returns:
        `accuracy`, `f1/<class>` and `f1/macro`, as in the results; NaN for the F1 of a class
        without clips, and for everything where there are no clips at all.

    Raises:
        ValueError: If level or resamples are out of range.
    """
    check_level(level)
    check_resamples(resamples)
    size = len(classes)
    labels, predictions = (part.ravel() for part in np.indices(confusion.shape))
    cells = Cells(confusion.ravel(), labels, size)
    scores = cells.scores(predictions)
    drawn = [cells.scores(predictions, counts) for counts in cells.resamples(resamples, seed)]
    names = ["accuracy", *(f"f1/{name}" for name in classes), "f1/macro"]
    return {
        name: percentile_interval(float(scores[0, place]), draws, level)
        for place, (name, draws) in enumerate(zip(names, np.concatenate(drawn).T, strict=True))
    }


@dataclass(frozen=True)
class Cells:
    """Clips that are alike in label and predictions, counted; resampling need only draw counts.

    Attributes:
        counts: Clips of each cell.
        labels: Index of the class of each cell.
        classes: Number of classes, K.
    """

    counts: Int[np.ndarray, " cells"]
    labels: Int[np.ndarray, " cells"]
    classes: int

    def resamples(self, number: int, seed: int) -> Iterator[Int[np.ndarray, "resamples cells"]]:
        """Counts of the cells in resamples with replacement, some resamples at a time.

        Args:
            number: How many resamples.
            seed: Of the draws.
        """
        total = int(self.counts.sum())
        shares = self.counts / max(1, total)
        filled = np.flatnonzero(self.counts)
        drawer = np.random.default_rng(seed)
        step = max(1, CHUNK // max(1, len(self.counts)))
        for start in range(0, number, step):
            rows = min(step, number - start)
            counts = np.zeros((rows, len(self.counts)), dtype=np.int64)
            if total:
                counts[:, filled] = drawer.multinomial(total, shares[filled], size=rows)
            yield counts

    def scores(
        self,
        predictions: Int[np.ndarray, " cells"],
        counts: Int[np.ndarray, "resamples cells"] | None = None,
    ) -> Float[np.ndarray, "resamples figures"]:
        """Accuracy, F1 of each class and macro F1.

        Args:
            predictions: Index of the answer in each cell, K for one that is no class.
            counts: Clips of each cell in each resample; None takes the cells' own, as one row.

        Returns:
            K + 2 columns; NaN where undefined.
        """
        # In floating point, exact for whole numbers of this size, since BLAS has no integers.
        drawn = (self.counts[None] if counts is None else counts).astype(float)
        right = (predictions == self.labels).astype(float)
        index = np.arange(self.classes)
        actual = (self.labels[:, None] == index).astype(float)
        predicted = (predictions[:, None] == index).astype(float)
        clips = drawn @ actual
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: undefined
            accuracy = (drawn @ right) / drawn.sum(axis=1)
            f1 = 2 * (drawn @ (actual * right[:, None])) / (clips + drawn @ predicted)
            f1[clips == 0] = np.nan
            present = (clips > 0).sum(axis=1)
            macro = np.nansum(f1, axis=1) / present
        return np.column_stack([accuracy, f1, macro])


def percentile_interval(
    value: float, draws: Float[np.ndarray, " resamples"], level: float
) -> Interval:
    """The interval between the quantiles of bootstrap draws.

    Args:
        value: The figure of the clips themselves.
        draws: The figure of each resample; NaN where it is undefined there.
        level: Of the interval, two-sided.
    """
    draws = draws[~np.isnan(draws)]
    if math.isnan(value) or not len(draws):
        return Interval(math.nan, math.nan, math.nan, level)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), level)


def score_intervals(
    confusion: Int[np.ndarray, "classes predictions"], classes: Sequence[str]
) -> dict[str, Interval]:
    """The intervals that stand beside printed and stored scores, by name as in the results.

    Wilson's for `accuracy`, the bootstrap's for `f1/<class>` and `f1/macro`.

    Args:
        confusion: Clips by label and prediction, see `bootstrap_scores`.
        classes: Class names in order.
    """
    correct = int(np.diagonal(confusion).sum())
    return {
        **bootstrap_scores(confusion, classes),
        "accuracy": wilson(correct, int(confusion.sum())),
    }


def for_results(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    """Intervals as they stand in a results file."""
    return {name: interval.as_dict() for name, interval in intervals.items()}


def check_level(level: float) -> None:
    """Refuses the level of an interval that is out of range."""
    if not 0 < level < 1:
        raise ValueError(f"The level of an interval ({level}) must be above 0 and below 1.")


def check_resamples(resamples: int) -> None:
    """Refuses a number of resamples that is out of range."""
    if resamples < 1:
        raise ValueError(f"The number of resamples ({resamples}) must be 1 or more.")
