"""Whether probabilities mean what they say: calibration, and a temperature that mends it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from rbft.analysis.intervals import Interval, wilson
from rbft.analysis.scored import ScoredClips

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 15
LEAST = float(np.finfo(np.float32).tiny)  # what a probability of 0 in a file counts as
COLDEST, HOTTEST = 0.01, 100.0
TEST = "test"


@dataclass(frozen=True)
class Bin:
    """Clips whose likeliest class has a probability in a bin.

    Attributes:
        low: Lower end of the bin; above it.
        high: Upper end; included.
        n: Number of clips.
        confidence: Mean probability of their likeliest class.
        accuracy: Share for which that class is right, with Wilson's interval.
    """

    low: float
    high: float
    n: int
    confidence: float
    accuracy: Interval


@dataclass(frozen=True)
class Calibration:
    """How well the probabilities of a split fit what happened.

    Attributes:
        n: Clips with probabilities; the figures are about these alone.
        ece: Expected calibration error, 0 to 1: the gap between confidence and accuracy of each
            bin, averaged over the clips (Naeini et al. 2015; Guo et al. 2017). Biased upwards
            where there are few clips.
        brier: Sum over the classes of the squared error of the probabilities, averaged over the
            clips, 0 to 2 (Brier 1950); twice what is usual for two classes.
        nll: Mean negative log-probability of the label, in nats.
        bins: The reliability table; bins without clips are left out.
    """

    n: int
    ece: float
    brier: float
    nll: float
    bins: tuple[Bin, ...]

    def as_dict(self) -> dict[str, Any]:
        """The figures for JSON."""
        return {
            **{name: value for name, value in asdict(self).items() if name != "bins"},
            "bins": [
                {
                    "low": one.low,
                    "high": one.high,
                    "n": one.n,
                    "confidence": one.confidence,
                    "accuracy": one.accuracy.value,
                    "interval": one.accuracy.as_dict(),
                }
                for one in self.bins
            ],
        }


def calibration(scored: ScoredClips, bins: int = BINS) -> Calibration:
    """ECE, Brier score, negative log-likelihood and the reliability table.

    Args:
        scored: Clips with probabilities; those without are left out.
        bins: Bins of equal width over the probability of the likeliest class.

    Raises:
        ValueError: If no clip has probabilities, or bins is not 1 or more.
    """
    if bins < 1:
        raise ValueError(f"The number of bins ({bins}) must be 1 or more.")
    clips = scored.with_probabilities()
    shares = clips.probabilities
    assert shares is not None
    rows = np.arange(len(clips.ids))
    confidence, right = shares.max(axis=1), shares.argmax(axis=1) == clips.labels
    # (low, high]: a confidence on an edge belongs to the bin below it.
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    table = tuple(
        Bin(
            one / bins,
            (one + 1) / bins,
            int(inside.sum()),
            float(confidence[inside].mean()),
            wilson(int(right[inside].sum()), int(inside.sum())),
        )
        for one in range(bins)
        if (inside := place == one).any()
    )
    truth = np.zeros_like(shares)
    truth[rows, clips.labels] = 1
    return Calibration(
        len(rows),
        sum(one.n * abs(one.confidence - one.accuracy.value) for one in table) / len(rows),
        float(((shares - truth) ** 2).sum(axis=1).mean()),
        float(-np.log(shares[rows, clips.labels].clip(LEAST)).mean()),
        table,
    )


def reliability_figure(found: Mapping[str, Any]) -> "Figure":
    """The reliability diagram: accuracy of each bin over its mean confidence, with intervals.

    Below it, how many clips are in each bin. Points on the diagonal are well calibrated.

    Args:
        found: `Calibration.as_dict`, as it stands in a results file.
    """
    from matplotlib.figure import Figure

    bins = found["bins"]
    confidence, accuracy = ([one[name] for one in bins] for name in ("confidence", "accuracy"))
    below = [one["accuracy"] - one["interval"]["low"] for one in bins]
    above = [one["interval"]["high"] - one["accuracy"] for one in bins]
    # Figure, not pyplot: nothing global, no display.
    figure = Figure(figsize=(3.6, 4.2), dpi=120, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    upper.errorbar(confidence, accuracy, yerr=[below, above], fmt="o", markersize=4, capsize=2)
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    upper.set_title(
        f"ECE {found['ece']:.3f}, Brier {found['brier']:.3f}, n = {found['n']}", fontsize="medium"
    )
    lower.bar(
        [one["low"] for one in bins],
        [one["n"] for one in bins],
        [one["high"] - one["low"] for one in bins],
        align="edge",
    )
    lower.set(xlabel="probability of the likeliest class", ylabel="clips")
    return figure


def with_temperature(
    probabilities: Float[np.ndarray, "clips classes"], temperature: float
) -> Float[np.ndarray, "clips classes"]:
    """The softmax of the log-probabilities divided by a temperature; above 1 it is less certain.

    Args:
        probabilities: Of each class; 0 counts as the smallest normal 32-bit number.
        temperature: Above 0.
    """
    scores = np.log(probabilities.clip(LEAST)) / temperature
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def fit_temperature(scored: ScoredClips) -> float:
    """The temperature with the least negative log-likelihood (Guo et al. 2017).

    One number for all classes: which class is the likeliest stays the same.

    Args:
        scored: Clips of the validation split, with probabilities.

    Returns:
        From 0.01 to 100; an end where the best lies beyond it, as where every answer is right.

    Raises:
        ValueError: If the clips are of the test split, or none has probabilities.
    """
    refuse_test(scored, "A temperature")
    clips = scored.with_probabilities()
    assert clips.probabilities is not None
    scores = np.log(clips.probabilities.clip(LEAST))
    label_scores = scores[np.arange(len(clips.ids)), clips.labels]

    def slope(sharpness: float) -> float:
        """Derivative of the negative log-likelihood by 1 / temperature; it only grows."""
        weights = np.exp(sharpness * (scores - scores.max(axis=1, keepdims=True)))
        weights /= weights.sum(axis=1, keepdims=True)
        return float(((weights * scores).sum(axis=1) - label_scores).mean())

    low, high = 1 / HOTTEST, 1 / COLDEST
    if slope(low) >= 0:
        return HOTTEST
    if slope(high) <= 0:
        return COLDEST
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 1 / high


def refuse_test(scored: ScoredClips, what: str) -> None:
    """Refuses clips of the test split.

    Args:
        scored: The clips that something is to be chosen on.
        what: What is chosen, as the message begins.

    Raises:
        ValueError: If they are of the test split.
    """
    if scored.split == TEST:
        raise ValueError(
            f"{what} is never chosen on the test split, whose scores would then be too good, but "
            f"{scored.name} is of it. Score a validation split (python -m rbft validate; "
            "data.val_fraction carves one) and choose it there."
        )
