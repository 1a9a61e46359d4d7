"""From probabilities to a decision: where a miss and a false alarm do not cost the same.

One class is the positive one. A clip is decided positive where the probability of that class
reaches a threshold, and else gets the likeliest of the other classes. The threshold is chosen on
clips that the model has neither been trained nor is tested on.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rbft.analysis.calibration import refuse_test
from rbft.analysis.intervals import Interval, wilson
from rbft.analysis.scored import ScoredClips
from rbft.runtime.ranges import check_ranges


@dataclass(frozen=True)
class Wanted:
    """What the decision is to be like: costs of the two errors, or a recall.

    Args:
        positive: The class that must not be missed.
        miss: Cost of a clip of that class that is decided otherwise.
        false_alarm: Cost of a clip of another class that is decided positive.
        recall: Share of the positive clips that shall be found, above 0 to 1; of the thresholds
            that find as many, the one with the fewest false alarms is taken. With it, leave the
            costs out.
        f1: Where the card lets a clip have several classes (its key several): choose for each class
            the threshold with the greatest F1. It stands alone.
    """

    positive: str = ""  # required, but the parser's message would not say of what
    miss: float | None = None
    false_alarm: float | None = None
    recall: float | None = None
    f1: bool = False

    def __post_init__(self) -> None:
        if self.f1:
            others = (self.positive or None, self.miss, self.false_alarm, self.recall)
            if any(one is not None for one in others):
                raise ValueError(
                    "decision.f1 chooses a threshold for each class by its F1. Leave positive, "
                    "miss, false_alarm and recall out, or f1."
                )
            return
        if not self.positive:
            raise ValueError(
                "decision.positive is not set: name the class that must not be missed, such as "
                "--decision.positive abnormal."
            )
        costs = (self.miss, self.false_alarm)
        if (self.recall is None) == (costs == (None, None)) or (None in costs) != (
            costs == (None, None)
        ):
            raise ValueError(
                "A threshold follows either from miss and false_alarm, what the two errors cost, "
                f"or from recall; got miss {self.miss}, false_alarm {self.false_alarm}, recall "
                f"{self.recall}."
            )
        check_ranges("decision.", vars(self))


@dataclass(frozen=True)
class Decided:
    """What decisions at a threshold come to on some clips.

    Attributes:
        n: Number of clips.
        positives: How many are of the positive class.
        misses: Clips of that class that were decided otherwise.
        false_alarms: Clips of other classes that were decided positive.
        recall: Share of the positive clips that were found, with Wilson's interval.
        precision: Share of the alarms that are right, with Wilson's interval.
        cost: Mean cost of a clip; None where no costs were given.
    """

    n: int
    positives: int
    misses: int
    false_alarms: int
    recall: Interval
    precision: Interval
    cost: float | None

    def as_dict(self) -> dict[str, Any]:
        """The figures for JSON, null where undefined."""
        return _for_json(asdict(self))


@dataclass(frozen=True)
class Threshold:
    """A chosen threshold and what it was chosen from.

    Attributes:
        wanted: What the decision was to be like.
        threshold: Least probability of the positive class that is decided positive; above 1 where
            nothing is.
        split: Of the clips that it was chosen on.
        chosen_on: Whose answers about them.
        digest: Of the clips' ids and labels.
        decided: What it comes to on these clips. It was chosen there, so on others expect
            somewhat worse; `cross_fit` estimates how much.
    """

    wanted: Wanted
    threshold: float
    split: str
    chosen_on: str
    digest: str
    decided: Decided

    def as_dict(self) -> dict[str, Any]:
        """The figures for JSON, null where undefined."""
        found = _for_json(asdict(self))
        del found["wanted"]["f1"]  # of several thresholds
        return found


def choose_threshold(scored: ScoredClips, wanted: Wanted, *, held_out: bool = False) -> Threshold:
    """The threshold that is best on clips of the validation split.

    Args:
        scored: Clips with probabilities; those without are left out.
        wanted: Costs or recall. Of thresholds that cost the same, the one closest to what the
            costs say for well calibrated probabilities, false_alarm / (miss + false_alarm).
        held_out: Says that each clip of the training split was answered by weights that were not
            trained on it (the folds of a cross-fit); such clips are refused without it.

    Raises:
        ValueError: If the clips are of the test split, or of the training split without
            `held_out`; no clip has probabilities; the class is none of theirs, or no clip, or
            every clip, is of it.
    """
    refuse_test(scored, "A threshold")
    if scored.split == "train" and not held_out:
        raise ValueError(
            f"A threshold cannot be chosen on clips that the weights were trained on, but "
            f"{scored.name} is of the training split. Choose it on a validation split "
            "(data.val_fraction carves one), or on answers by weights of other folds."
        )
    probability, positive = _positive(scored.with_probabilities(), wanted)
    threshold = _best(probability, positive, wanted)
    return Threshold(
        wanted,
        threshold,
        scored.split,
        scored.name,
        scored.digest,
        _decided(probability >= threshold, positive, wanted),
    )


def cross_fit(
    scored: ScoredClips,
    wanted: Wanted,
    folds: int = 5,
    seed: int = 0,
    *,
    held_out: bool = False,
) -> Decided:
    """What a threshold chosen as `choose_threshold` does comes to on clips it was not chosen on.

    Each fold is decided with the threshold that the other folds give. Folds have as many positive
    clips each, to one.

    Args:
        scored: See `choose_threshold`.
        wanted: Costs or recall.
        folds: How many, from 2 to the number of clips of the rarer side.
        seed: Of the draw of the folds.
        held_out: See `choose_threshold`.

    Raises:
        ValueError: See `choose_threshold`, or if there are too many folds.
    """
    choose_threshold(scored, wanted, held_out=held_out)  # refuses what cannot be chosen on
    probability, positive = _positive(scored.with_probabilities(), wanted)
    fewest = int(min(positive.sum(), (~positive).sum()))
    if not 2 <= folds <= fewest:
        raise ValueError(
            f"The number of folds ({folds}) must be from 2 to {fewest}, as many clips as there "
            f"are of the rarer of '{wanted.positive}' and the rest."
        )
    drawer, fold = np.random.default_rng(seed), np.empty(len(positive), dtype=int)
    for side in (positive, ~positive):
        places = drawer.permutation(np.flatnonzero(side))
        fold[places] = np.arange(len(places)) % folds
    alarms = np.zeros(len(positive), dtype=bool)
    for one in range(folds):
        inside = fold == one
        alarms[inside] = probability[inside] >= _best(
            probability[~inside], positive[~inside], wanted
        )
    return _decided(alarms, positive, wanted)


def decide(
    probabilities: Float[np.ndarray, "clips classes"],
    classes: tuple[str, ...],
    positive: str,
    threshold: float,
) -> Int[np.ndarray, " clips"]:
    """Index of the class that each clip is decided to be.

    Args:
        probabilities: Of each class.
        classes: Class names in order.
        positive: The positive class.
        threshold: Its least probability that is decided positive.
    """
    place = classes.index(positive)
    others = probabilities.copy()
    others[:, place] = -np.inf
    alarm = probabilities[:, place] >= threshold
    return np.where(alarm, place, others.argmax(axis=1))


def at_threshold(scored: ScoredClips, positive: str, threshold: float) -> ScoredClips:
    """The same clips with what they are decided to be; answers without probabilities stay.

    Args:
        scored: Clips with probabilities.
        positive: The positive class.
        threshold: Its least probability that is decided positive.
    """
    assert scored.probabilities is not None
    none = np.isnan(scored.probabilities[:, 0])
    decided = decide(np.nan_to_num(scored.probabilities), scored.classes, positive, threshold)
    return replace(scored, predictions=np.where(none, scored.predictions, decided))


def evaluate(scored: ScoredClips, chosen: Threshold) -> Decided:
    """What a chosen threshold comes to on other clips, such as those of the test split.

    Args:
        scored: Clips with probabilities; one without, as it cannot be decoded, is no alarm.
        chosen: The threshold.

    Raises:
        ValueError: If no clip has probabilities, or no clip, or every clip, is of the positive
            class.
    """
    probability, positive = _positive(scored, chosen.wanted)
    return _decided(probability >= chosen.threshold, positive, chosen.wanted)


def of_answers(scored: ScoredClips, wanted: Wanted) -> Decided:
    """What the answers themselves come to, the likeliest classes.

    Args:
        scored: Clips with answers.
        wanted: The positive class, and the costs if there are any.

    Raises:
        ValueError: See `evaluate`.
    """
    _, positive = _positive(scored, wanted)
    alarms = scored.predictions == scored.classes.index(wanted.positive)
    return _decided(alarms, positive, wanted)


def _positive(
    scored: ScoredClips, wanted: Wanted
) -> tuple[Float[np.ndarray, " clips"], np.ndarray]:
    """Probability of the positive class, NaN for clips without; and which clips are of it."""
    if wanted.positive not in scored.classes:
        raise ValueError(
            f"The positive class '{wanted.positive}' is none of {', '.join(scored.classes)}, the "
            f"classes of {scored.name}."
        )
    scored.with_probabilities()  # refuses where no clip has any
    assert scored.probabilities is not None
    place = scored.classes.index(wanted.positive)
    positive = scored.labels == place
    if positive.all() or not positive.any():
        raise ValueError(
            f"{scored.name} has {int(positive.sum())} clips of '{wanted.positive}' among "
            f"{len(positive)}: no threshold follows from one side alone."
        )
    return scored.probabilities[:, place], positive


def _best(probability: Float[np.ndarray, " clips"], positive: np.ndarray, wanted: Wanted) -> float:
    """The best threshold: halfway between two probabilities that occur, or one for all or none."""
    levels = np.unique(probability)
    candidates = np.concatenate([[0.0], (levels[:-1] + levels[1:]) / 2, [math.nextafter(1, 2)]])
    ordered_positive = np.sort(probability[positive])
    ordered_negative = np.sort(probability[~positive])
    misses = np.searchsorted(ordered_positive, candidates, side="left")
    alarms = len(ordered_negative) - np.searchsorted(ordered_negative, candidates, side="left")
    if wanted.recall is not None:
        found = (len(ordered_positive) - misses) / len(ordered_positive)
        # The highest has the fewest false alarms; of 0.9 * 10 found clips rounding takes none.
        return float(candidates[found >= wanted.recall - 1e-12].max())
    assert wanted.miss is not None
    assert wanted.false_alarm is not None
    costs = wanted.miss * misses + wanted.false_alarm * alarms
    least = candidates[costs <= costs.min() * (1 + 1e-12)]
    calibrated = wanted.false_alarm / (wanted.miss + wanted.false_alarm)
    return float(least[np.abs(least - calibrated).argmin()])


def _decided(alarms: np.ndarray, positive: np.ndarray, wanted: Wanted) -> Decided:
    misses, false = int((positive & ~alarms).sum()), int((alarms & ~positive).sum())
    n, positives = len(positive), int(positive.sum())
    cost = None
    if wanted.miss is not None and wanted.false_alarm is not None:
        cost = (wanted.miss * misses + wanted.false_alarm * false) / n
    return Decided(
        n,
        positives,
        misses,
        false,
        wilson(positives - misses, positives),
        wilson(positives - misses, positives - misses + false),
        cost,
    )


def _for_json(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: _for_json(value) for name, value in found.items()}
    return None if isinstance(found, float) and math.isnan(found) else found
