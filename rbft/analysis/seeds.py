"""Runs over several seeds: mean, spread, paired differences, and how many seeds it takes.

Differences are taken seed by seed, since a seed gives both runs the same clips and order. That
the seeds' differences are close to normally distributed is assumed; with fewer than five seeds
this cannot be looked at, and intervals are wide.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np

from rbft.analysis.distributions import t_quantile, t_two_sided
from rbft.analysis.intervals import LEVEL, check_level

MOST = 100_000  # seeds up to which the power is computed
NODES = 200  # of the integral over the standard deviation
ROUNDING = 1e-12  # standard deviation, as a share of the values, that is rounding alone


@dataclass(frozen=True)
class Summary:
    """A figure over seeds.

    Attributes:
        mean: Over the seeds.
        sd: Standard deviation of a single seed, with n - 1; NaN for one seed.
        n: Number of seeds.
    """

    mean: float
    sd: float
    n: int

    def as_dict(self) -> dict[str, float | None]:
        """The figures for JSON, null where undefined."""
        return _for_json(asdict(self))


@dataclass(frozen=True)
class SeedDifference:
    """A - B over the same seeds.

    Attributes:
        mean: Mean difference.
        sd: Standard deviation of the difference of a seed; NaN for one seed.
        n: Number of seeds.
        low: Lower end of the t interval of the mean; NaN for one seed.
        high: Upper end.
        t: Student's t; NaN for one seed, infinite where all differences are alike and not 0.
        p: Of the paired t test, two-sided; NaN for one seed.
        wins: Seeds in which A is above B.
        ties: Seeds in which both are the same.
        level: Of the interval.
    """

    mean: float
    sd: float
    n: int
    low: float
    high: float
    t: float
    p: float
    wins: int
    ties: int
    level: float = LEVEL

    def as_dict(self) -> dict[str, float | None]:
        """The figures for JSON, null where undefined."""
        return _for_json(asdict(self))


def summary(values: Sequence[float]) -> Summary:
    """Mean and standard deviation.

    Args:
        values: The figure of each seed.

    Raises:
        ValueError: If there is none.
    """
    if not values:
        raise ValueError("There is no seed to take a mean over.")
    return Summary(fmean(values), stdev(values) if len(values) > 1 else math.nan, len(values))


def paired_difference(
    a: Mapping[int, float], b: Mapping[int, float], level: float = LEVEL
) -> SeedDifference:
    """A - B seed by seed, with Student's t interval and p.

    Args:
        a: A's figure by seed.
        b: B's figure by seed.
        level: Of the interval, two-sided.

    Raises:
        ValueError: If the seeds are not the same, or there is none.
    """
    check_level(level)
    if set(a) != set(b):
        raise ValueError(
            f"Differences are taken seed by seed, but only one side has the seeds "
            f"{', '.join(map(str, sorted(set(a) ^ set(b))))}. Run them with the other too."
        )
    differences = [a[seed] - b[seed] for seed in sorted(a)]
    found = summary(differences)
    wins, ties = sum(one > 0 for one in differences), sum(one == 0 for one in differences)
    if found.n == 1:
        nan = math.nan
        return SeedDifference(found.mean, nan, 1, nan, nan, nan, nan, wins, ties, level)
    mean, sd = found.mean, found.sd
    if sd <= ROUNDING * max(map(abs, [*a.values(), *b.values()])):
        sd = 0.0  # 0.7 - 0.6 and 0.8 - 0.7 differ in the last bit alone
    error = sd / math.sqrt(found.n)
    half = t_quantile(level, found.n - 1) * error
    if error:
        t = mean / error
        p = t_two_sided(t, found.n - 1)
    else:
        t, p = (math.copysign(math.inf, mean), 0.0) if mean else (0.0, 1.0)
    return SeedDifference(mean, sd, found.n, mean - half, mean + half, t, p, wins, ties, level)


def paired_power(seeds: int, difference: float, sd: float, alpha: float = 0.05) -> float:
    """Probability that the paired t test over so many seeds sees a difference.

    That of Student's noncentral t distribution, integrated over the standard deviation seen.

    Args:
        seeds: Number of seeds, 2 or more.
        difference: True mean difference.
        sd: True standard deviation of the difference of a seed, above 0.
        alpha: Level of the test, two-sided.

    Raises:
        ValueError: If a value is out of range.
    """
    _check_power(difference, sd, alpha, 0.5)
    if seeds < 2:
        raise ValueError(f"The number of seeds ({seeds}) must be 2 or more for a t test.")
    freedom = seeds - 1
    shift = abs(difference) / sd * math.sqrt(seeds)
    critical = t_quantile(1 - alpha, freedom)
    # The seen standard deviation, as a share of the true one, has a chi distribution; the test
    # rejects where a normal variable around the shift passes the critical t times it.
    wide = 10 / math.sqrt(2 * freedom)
    low, high = max(0.0, 1 - wide), 1 + wide
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    share = (low + high) / 2 + (high - low) / 2 * nodes
    log_density = math.log(2) + freedom / 2 * math.log(freedom / 2) - math.lgamma(freedom / 2)
    density = np.exp(log_density + (freedom - 1) * np.log(share) - freedom * share**2 / 2)
    rejects = np.array(
        [_above(critical * one - shift) + _above(critical * one + shift) for one in share]
    )
    return min(1.0, float((weights * density * rejects).sum() * (high - low) / 2))


def seeds_needed(difference: float, sd: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Seeds that it takes to see a mean difference with the paired t test.

    Args:
        difference: True mean difference, in the unit of sd.
        sd: Standard deviation of the difference of a seed; `SeedDifference.sd` says what was seen.
        alpha: Level of the test, two-sided.
        power: Probability that the test shall see it.

    Returns:
        The smallest number of seeds, 2 or more.

    Raises:
        ValueError: If a value is out of range, or it takes more than 100,000 seeds.
    """
    _check_power(difference, sd, alpha, power)
    low, high = 1, 2
    while paired_power(high, difference, sd, alpha) < power:
        low, high = high, 2 * high
        if high > MOST:
            raise ValueError(
                f"A difference of {difference:.10g} with a standard deviation of {sd:.10g} takes "
                f"more than {MOST} seeds. Ask for a larger one."
            )
    while high - low > 1:
        middle = (low + high) // 2
        if paired_power(middle, difference, sd, alpha) < power:
            low = middle
        else:
            high = middle
    return high


def _above(z: float) -> float:
    """Probability of a normal variable above z."""
    return math.erfc(z / math.sqrt(2)) / 2


def _check_power(difference: float, sd: float, alpha: float, power: float) -> None:
    if difference == 0 or not math.isfinite(difference):
        raise ValueError(
            f"The difference to see ({difference:.10g}) must be a finite number other than 0."
        )
    if not sd > 0 or math.isinf(sd):
        raise ValueError(
            f"The standard deviation of a seed's difference ({sd:.10g}) must be above 0. It takes "
            "two seeds or more to estimate one."
        )
    for name, value in (("level of the test", alpha), ("power", power)):
        if not 0 < value < 1:
            raise ValueError(f"The {name} ({value:.10g}) must be above 0 and below 1.")


def _for_json(figures: dict[str, Any]) -> dict[str, float | None]:
    return {
        name: value if isinstance(value, int) or math.isfinite(value) else None
        for name, value in figures.items()
    }
