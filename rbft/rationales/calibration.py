"""A judge's mean score, corrected by what people scored: prediction-powered inference."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, fmean, variance
from typing import Any

CONFIDENCE = 0.95
FEWEST = 2

Key = tuple[str, str]  # condition and id


@dataclass(frozen=True)
class Estimate:
    """A mean with an interval.

    Attributes:
        value: The mean.
        low: Lower end of the 95 % interval; the value where one item leaves it open.
        high: Upper end.
        n: Number of items.
        n_human: Number of those that people have scored too, where their scores were used.
    """

    value: float
    low: float
    high: float
    n: int
    n_human: int = 0

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f}, n = {self.n})"


def calibrated_mean(
    judged: Mapping[Key, float],
    human: Mapping[Key, float],
    *,
    tune: bool = True,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Mean of what people would score, from the judge's scores and people's scores of some texts.

    Prediction-powered inference (Angelopoulos et al. 2023): with human scores Y and judge's scores
    f of n texts, and f of N others, mean(Y) + w (mean(f of the others) - mean(f of the n)), with
    variance var(Y - w f) / n + w^2 var(f) / N. The mean is right however biased the judge is; the
    interval narrows as far as the judge agrees with people.

    Args:
        judged: The judge's scores of all texts.
        human: People's scores of some of them, which must have been drawn by lot
            (`draw_for_humans`).
        tune: Take the w with the least variance, cov(Y, f) / ((1 + n / N) var(f)), within 0 to 1
            (Angelopoulos, Duchi and Zrnic 2023); else w is 1.
        confidence: Of the interval.

    Raises:
        ValueError: If people scored fewer than two texts, a score is out of range, or a text that
            the judge did not.
    """
    strangers = [key for key in human if key not in judged]
    if strangers:
        raise ValueError(
            f"{len(strangers)} human scores are of texts that the judge has no score for (first: "
            f"{strangers[0][1]} of '{strangers[0][0]}')."
        )
    if len(human) < FEWEST:
        raise ValueError(
            f"{len(human)} human scores are too few to correct the judge's mean: it takes "
            f"{FEWEST}, and 50 or more for an interval to rely on."
        )
    wrong = [(key, value) for key, value in human.items() if not 0 <= value <= 1]
    if wrong:
        (name, value) = wrong[0][0][1], wrong[0][1]
        raise ValueError(f"The human score of {name} ({value:.10g}) must be from 0 to 1.")
    truth, paired = list(human.values()), [judged[key] for key in human]
    others = [value for key, value in judged.items() if key not in human]
    n, more = len(truth), len(others)
    weight = 0.0
    spread = variance([*paired, *others])
    if more:
        weight = 1.0
        if tune:
            middle_y, middle_f = fmean(truth), fmean(paired)
            products = [(y - middle_y) * (f - middle_f) for y, f in zip(truth, paired, strict=True)]
            covariance = sum(products) / (n - 1)
            weight = covariance / ((1 + n / more) * spread) if spread else 0.0
            weight = min(1.0, max(0.0, weight))
    value = fmean(truth)
    error = variance([y - weight * f for y, f in zip(truth, paired, strict=True)]) / n
    if more:
        value += weight * (fmean(others) - fmean(paired))
        error += weight**2 * spread / more
    return interval_of(value, error, n + more, n, confidence)


def draw_for_humans(keys: Sequence[Key], count: int, seed: int = 0) -> list[Key]:
    """Texts for people to score, drawn by lot; a larger count only adds to them.

    Args:
        keys: Condition and id of all texts.
        count: How many to draw.
        seed: Of the lot.
    """
    lots = {key: hashlib.sha256(json.dumps([seed, *key]).encode()).hexdigest() for key in keys}
    return sorted(lots, key=lambda key: lots[key])[:count]


def load_human_scores(path: Path) -> dict[Key, float]:
    """Reads scores that people gave: JSON lines with `condition`, `id` and `score` (0 to 1).

    A text that several people scored has a line for each, and gets their mean.

    Raises:
        ValueError: If the file cannot be read, or a line is no such object.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"Human scores {path} cannot be read: {error.strerror}.") from error
    found: dict[Key, list[float]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            values: tuple[Any, Any, Any] = record["condition"], record["id"], record["score"]
        except (ValueError, KeyError, TypeError):
            values = None, None, None
        condition, name, score = values
        numeric = isinstance(score, int | float) and not isinstance(score, bool)
        if not (
            isinstance(condition, str) and isinstance(name, str) and numeric and 0 <= score <= 1
        ):
            raise ValueError(
                f"Human scores {path}, line {number}, must be a JSON object with condition (text), "
                f"id (text) and score (a number from 0 to 1); got {line[:80]!r}."
            )
        found.setdefault((condition, name), []).append(float(score))
    return {key: fmean(scores) for key, scores in found.items()}


def mean_of(values: Sequence[float]) -> Estimate:
    """Mean of independent values, at least one; the interval of a single one is that value."""
    spread = variance(values) if len(values) > 1 else 0.0
    return interval_of(fmean(values), spread / len(values), len(values))


def interval_of(
    value: float, variance_of_mean: float, n: int, n_human: int = 0, confidence: float = CONFIDENCE
) -> Estimate:
    """A mean with its normal interval.

    Args:
        value: The mean.
        variance_of_mean: Its variance.
        n: Number of items.
        n_human: Number of those that people have scored too.
        confidence: Of the interval, two-sided.
    """
    half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(variance_of_mean)
    return Estimate(value, value - half, value + half, n, n_human)
