"""Two runs on the same clips: is the difference more than the clips that happened to be drawn?

Comparing clip by clip says more than two intervals side by side: what is hard for both runs
cancels.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rbft.analysis.intervals import (
    LEVEL,
    RESAMPLES,
    Cells,
    Interval,
    check_level,
    check_resamples,
    percentile_interval,
)
from rbft.analysis.scored import ScoredClips, some

LARGEST = 50_000  # clips up to which the power is computed


@dataclass(frozen=True)
class PairedComparison:
    """How run A differs from run B on the same clips.

    Attributes:
        a: Name of A.
        b: Name of B.
        n: Number of clips.
        digest: Of their ids and labels.
        only_a: Clips that A alone has right.
        only_b: Clips that B alone has right.
        p: Exact McNemar's test, two-sided.
        mid_p: The same with mid-p, which is less conservative.
        accuracy: A - B, with the bootstrap's interval.
        macro_f1: A - B, with the bootstrap's interval.
    """

    a: str
    b: str
    n: int
    digest: str
    only_a: int
    only_b: int
    p: float
    mid_p: float
    accuracy: Interval
    macro_f1: Interval

    @property
    def discordant(self) -> float:
        """Share of the clips that one of the two alone has right; `clips_needed` asks for it."""
        return (self.only_a + self.only_b) / self.n

    def as_dict(self) -> dict[str, Any]:
        """The figures for JSON."""
        return asdict(self)


def check_same_clips(a: ScoredClips, b: ScoredClips) -> None:
    """Refuses two runs that were not scored on the same clips with the same labels.

    The order of the clips does not matter, nor that of the classes.

    Raises:
        ValueError: Naming what differs: the classes, clips of A alone, clips of B alone, labels.
    """
    if set(a.classes) != set(b.classes):
        raise ValueError(
            f"{a.name} and {b.name} cannot be compared: the classes are {', '.join(a.classes)} "
            f"and {', '.join(b.classes)}."
        )
    if a.digest == b.digest:
        return
    in_a, in_b = set(a.ids), set(b.ids)
    labels_a = dict(zip(a.ids, (a.classes[label] for label in a.labels), strict=True))
    labels_b = dict(zip(b.ids, (b.classes[label] for label in b.labels), strict=True))
    parts = []
    if alone := [one for one in a.ids if one not in in_b]:
        parts.append(f"{some(alone, 'clip')} only in {a.name}")
    if alone := [one for one in b.ids if one not in in_a]:
        parts.append(f"{some(alone, 'clip')} only in {b.name}")
    if others := [one for one in a.ids if one in in_b and labels_a[one] != labels_b[one]]:
        first = others[0]
        parts.append(
            f"{some(others, 'clip')} with other labels ({first}: {labels_a[first]} and "
            f"{labels_b[first]})"
        )
    raise ValueError(
        f"{a.name} and {b.name} were not scored on the same clips: {'; '.join(parts)}. Score both "
        "on the same split of the same annotations."
    )


def mcnemar(only_a: int, only_b: int, *, mid_p: bool = False) -> float:
    """P of McNemar's exact test, two-sided: is A right as often as B?

    Of the clips that one of the two alone has right, each is as likely A's as B's if they are
    equally good: a binomial test (McNemar 1947). Mid-p takes half the probability of what was
    seen (Fagerland, Lydersen and Laake 2013); it keeps the level nearly always, with more power.

    Args:
        only_a: Clips that A alone has right.
        only_b: Clips that B alone has right.
        mid_p: Take mid-p.

    Raises:
        ValueError: If a count is negative.
    """
    if min(only_a, only_b) < 0:
        raise ValueError(f"Numbers of clips ({only_a}, {only_b}) must be 0 or more.")
    total, fewer = only_a + only_b, min(only_a, only_b)
    halves = 1 << total  # in whole numbers, so that nothing is rounded before the end
    tail = term = 1
    for k in range(1, fewer + 1):
        term = term * (total - k + 1) // k
        tail += term
    if mid_p:
        # 2 (P(X <= fewer) - P(X = fewer) / 2)
        return min(1.0, (2 * tail - term) / halves)
    return min(1.0, 2 * tail / halves)


def compare_pair(
    a: ScoredClips,
    b: ScoredClips,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedComparison:
    """A - B on the same clips: exact McNemar, and the paired bootstrap of two differences.

    The bootstrap draws clips with both answers, see `rbft.analysis.intervals.bootstrap_scores`.

    Args:
        a: A run.
        b: What it is compared with.
        level: Of the intervals, two-sided.
        resamples: How many are drawn.
        seed: Of the draws.

    Raises:
        ValueError: If the clips are not the same, see `check_same_clips`, or level or resamples
            are out of range.
    """
    check_level(level)
    check_resamples(resamples)
    check_same_clips(a, b)
    b = b.in_order_of(a.ids)
    classes = len(a.classes)
    answers_b = _in_classes_of(a, b)
    # Clips that are alike in label and both answers, counted.
    alike, counts = np.unique(
        np.column_stack([a.labels, a.predictions, answers_b]), axis=0, return_counts=True
    )
    labels, from_a, from_b = alike.T
    cells = Cells(counts, labels, classes)

    def differences(drawn: Int[np.ndarray, "resamples cells"] | None) -> Float[np.ndarray, "r 2"]:
        return (cells.scores(from_a, drawn) - cells.scores(from_b, drawn))[:, [0, -1]]

    (found,) = differences(None)
    drawn = np.concatenate([differences(one) for one in cells.resamples(resamples, seed)])
    right_b = answers_b == a.labels
    only_a, only_b = int((a.right & ~right_b).sum()), int((right_b & ~a.right).sum())
    return PairedComparison(
        a.name,
        b.name,
        len(a.ids),
        a.digest,
        only_a,
        only_b,
        mcnemar(only_a, only_b),
        mcnemar(only_a, only_b, mid_p=True),
        percentile_interval(float(found[0]), drawn[:, 0], level),
        percentile_interval(float(found[1]), drawn[:, 1], level),
    )


def mcnemar_power(
    clips: int, difference: float, discordant: float, alpha: float = 0.05, *, mid_p: bool = False
) -> float:
    """Probability that McNemar's exact test sees a difference in accuracy on so many clips.

    Exact: summed over how many clips the two runs differ on and how these fall.

    Args:
        clips: Number of clips.
        difference: True difference of the accuracies, as a share: 0.05 for five points.
        discordant: Share of the clips that one of the two alone has right, at least the
            difference; `PairedComparison.discordant` says what was seen.
        alpha: Level of the test, two-sided.
        mid_p: With mid-p.

    Raises:
        ValueError: If a value is out of range.
    """
    _check_difference(difference, discordant, alpha)
    if clips < 1:
        raise ValueError(f"The number of clips ({clips}) must be 1 or more.")
    share_a = (discordant + abs(difference)) / (2 * discordant)
    middle, spread = clips * discordant, math.sqrt(clips * discordant * (1 - discordant))
    # Beyond seven standard deviations nothing is left to add.
    first = max(0, math.floor(middle - 7 * spread))
    last = min(clips, math.ceil(middle + 7 * spread))
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, clips + 1)))])  # of factorials
    totals = _binomial(clips, discordant, logs)
    power = 0.0
    for total in range(first, last + 1):
        half = _binomial(total, 0.5, logs)
        p = 2 * np.cumsum(half) - (half if mid_p else 0)
        fewer = min(int(np.searchsorted(p, alpha, side="right")), (total + 1) // 2)
        falls = _binomial(total, share_a, logs)
        rejected = falls[:fewer].sum() + falls[total + 1 - fewer :].sum()
        power += float(totals[total] * rejected)
    return min(1.0, power)


def clips_needed(
    difference: float,
    discordant: float,
    alpha: float = 0.05,
    power: float = 0.8,
    *,
    mid_p: bool = False,
) -> int:
    """Clips that it takes to see a difference in accuracy between two runs on the same clips.

    The smallest number from which on McNemar's exact test has the power, up to the last small
    saw-tooth of the exact power.

    Args:
        difference: True difference of the accuracies, as a share: 0.05 for five points.
        discordant: Share of the clips that one of the two alone has right.
        alpha: Level of the test, two-sided.
        power: Probability that the test shall see it.
        mid_p: With mid-p.

    Raises:
        ValueError: If a value is out of range, or more than 50,000 clips are needed.
    """
    _check_difference(difference, discordant, alpha)
    if not 0 < power < 1:
        raise ValueError(f"The power ({power:.10g}) must be above 0 and below 1.")
    low, high = 0, 8
    while mcnemar_power(high, difference, discordant, alpha, mid_p=mid_p) < power:
        low, high = high, 2 * high
        if high > LARGEST:
            raise ValueError(
                f"A difference of {difference:.10g} takes more than {LARGEST} clips. Ask for a "
                "larger one."
            )
    while high - low > 1:
        middle = (low + high) // 2
        if mcnemar_power(middle, difference, discordant, alpha, mid_p=mid_p) < power:
            low = middle
        else:
            high = middle
    return high


def _in_classes_of(a: ScoredClips, b: ScoredClips) -> Int[np.ndarray, " clips"]:
    """B's answers as indices of A's classes."""
    places = [*(a.classes.index(name) for name in b.classes), len(a.classes)]
    return np.array(places)[b.predictions]


def _binomial(
    total: int, share: float, logs: Float[np.ndarray, " numbers"]
) -> Float[np.ndarray, " counts"]:
    """Probabilities of 0 to total successes.

    Args:
        total: Number of draws.
        share: Probability of a success.
        logs: Logarithms of the factorials from 0 on.
    """
    k = np.arange(total + 1)
    if share in (0, 1):
        return (k == total * share).astype(float)
    choose = logs[total] - logs[k] - logs[total - k]
    return np.exp(choose + k * math.log(share) + (total - k) * math.log1p(-share))


def _check_difference(difference: float, discordant: float, alpha: float) -> None:
    if not 0 < abs(difference) <= discordant <= 1:
        raise ValueError(
            f"The difference ({difference:.10g}) must not be 0 nor, in size, above the share of "
            f"clips that one run alone has right ({discordant:.10g}), which must be at most 1."
        )
    if not 0 < alpha < 1:
        raise ValueError(f"The level of the test ({alpha:.10g}) must be above 0 and below 1.")
