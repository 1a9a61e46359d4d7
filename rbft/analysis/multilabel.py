"""Clips that may have several classes, or none: scores of each class and over all, thresholds.

Each class is a yes or no of its own. A clip without an answer, as it cannot be decoded, is wrong:
none of its classes is found, no class is taken for one of its, it ranks behind all others, and its
set of classes is not right, not even where it has none.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from rbft.analysis.intervals import LEVEL, RESAMPLES, Interval, percentile_interval, wilson

HALF = 0.5  # the threshold of a class for which none was chosen
LABELS, PREDICTED = "labels", "predicted"  # keys of a row of the predictions
CHUNK = 2_000_000  # resamples times clips that are in memory at a time


@dataclass(frozen=True)
class MultiLabelClips:
    """Answers about clips that may have several classes, a row each.

    Attributes:
        name: Whose answers these are; messages name it.
        split: The split that the clips are of.
        classes: Class names in order.
        ids: Ids of the clips.
        labels: Which classes each clip has.
        probabilities: Probability of each class by itself; NaN for a clip without an answer.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: Bool[np.ndarray, "clips classes"]
    probabilities: Float[np.ndarray, "clips classes"]

    @classmethod
    def from_rows(
        cls, rows: Iterable[Mapping[str, Any]], classes: Sequence[str], split: str, name: str
    ) -> "MultiLabelClips":
        """From rows as they stand in `<split>_predictions.jsonl`.

        Args:
            rows: One a clip: `id`, `labels` (class names) and, where there is an answer,
                `probabilities` by class.
            classes: Class names in order.
            split: The split of the clips.
            name: Whose answers these are.

        Raises:
            ValueError: If there is no row, an id stands twice, the labels are no list of classes,
                or the probabilities are not one number from 0 to 1 for each class.
        """
        rows, classes = list(rows), tuple(classes)
        if not rows:
            raise ValueError(f"{name} has no scored clips.")
        ids = tuple(str(row["id"]) for row in rows)
        if len(set(ids)) < len(ids):
            twice = next(one for one in ids if ids.count(one) > 1)
            raise ValueError(f"{name} has several rows of clip {twice}. Leave one of them.")
        shares = np.full((len(rows), len(classes)), np.nan)
        for place, row in enumerate(rows):
            given = row.get(LABELS)
            if not isinstance(given, list) or not {*given} <= {*classes}:
                raise ValueError(
                    f"{name}: the labels of clip {row['id']} are {given!r}; they must be a list of "
                    f"classes, which are {', '.join(classes)}."
                )
            found = row.get("probabilities")
            if found is None:
                continue
            if {*found} != {*classes} or not all(0 <= share <= 1 for share in found.values()):
                raise ValueError(
                    f"{name}: the probabilities of clip {row['id']} are {found!r}; they must be a "
                    f"number from 0 to 1 for each of {', '.join(classes)}."
                )
            shares[place] = [found[one] for one in classes]
        labels = np.array([[one in row[LABELS] for one in classes] for row in rows])
        return cls(name, split, classes, ids, labels, shares)

    @classmethod
    def from_file(cls, file: Path) -> "MultiLabelClips":
        """From the results of a stage, with the predictions beside them.

        Args:
            file: Such as lightning_logs/<run>/label/test.json.

        Raises:
            ValueError: See `from_rows`.
        """
        found = json.loads(file.read_text(encoding="utf-8"))
        lines = file.with_name(f"{file.stem}_predictions.jsonl").read_text(encoding="utf-8")
        name = "/".join(found[key] for key in ("run", "stage") if key in found) or str(file)
        rows = map(json.loads, lines.splitlines())
        return cls.from_rows(rows, list(found["classes"]), found["split"], name)

    @property
    def answered(self) -> Bool[np.ndarray, " clips"]:
        """Which clips have an answer."""
        return _answered(self.probabilities)

    @property
    def digest(self) -> str:
        """Short hash of ids and labels, whatever the order of the clips."""
        lines = sorted(
            json.dumps([one, [name for name, has in zip(self.classes, own, strict=True) if has]])
            for one, own in zip(self.ids, self.labels.tolist(), strict=True)
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]

    def predicted(self, thresholds: Mapping[str, float]) -> Bool[np.ndarray, "clips classes"]:
        """Which classes each clip is said to have; none without an answer.

        Args:
            thresholds: Least probability of each class that is a yes.
        """
        least = np.array([thresholds[name] for name in self.classes])
        return np.nan_to_num(self.probabilities, nan=-1.0) >= least

    def scores(self, thresholds: Mapping[str, float] | None = None) -> dict[str, float]:
        """The figures, see `multilabel_scores`.

        Args:
            thresholds: See `predicted`; None is one half for each class.
        """
        chosen = dict.fromkeys(self.classes, HALF) if thresholds is None else thresholds
        return multilabel_scores(
            self.labels, self.predicted(chosen), self.probabilities, self.classes
        )


def multilabel_scores(
    labels: Bool[np.ndarray, "clips classes"],
    predicted: Bool[np.ndarray, "clips classes"],
    probabilities: Float[np.ndarray, "clips classes"],
    classes: Sequence[str],
) -> dict[str, float]:
    """Figures of answers about each class, from 0 to 1.

    With scikit-learn: `accuracy_score`, `f1_score` with `average` None, "micro" and "macro", and
    `average_precision_score` of sets of classes; but a class that no clip has, has no F1 and no
    average precision (they would be 0), and the means over the classes leave it out. What is taken
    for such a class counts in the micro F1.

    Args:
        labels: Which classes each clip has.
        predicted: Which it is said to have.
        probabilities: Probability of each class; NaN for a clip without an answer.
        classes: Class names in order.

    Returns:
        `accuracy`, the share of the clips whose set of classes is exactly right; `f1/<class>`, NaN
        for a class that no clip has; `f1/macro`, the mean over the others; `f1/micro`, over all
        answers about all classes; `ap/<class>`, the average precision; `ap/macro`, its mean over
        the classes (mAP); `unparsed`, the share of clips without an answer; `majority`, the
        accuracy of always answering with the most frequent set of classes; `n`, the number of
        clips.
    """
    n = len(labels)
    answered = _answered(probabilities)
    right = (labels == predicted).all(axis=1) & answered
    hits, said = (labels & predicted).sum(axis=0), predicted.sum(axis=0)
    have = labels.sum(axis=0)
    f1 = [
        _share(2 * hit, own + of) if own else math.nan
        for hit, own, of in zip(hits.tolist(), have.tolist(), said.tolist(), strict=True)
    ]
    precision = [
        average_precision(probabilities[:, place], labels[:, place])
        for place in range(len(classes))
    ]
    _, sets = np.unique(labels, axis=0, return_counts=True)
    return {
        "accuracy": _share(right.sum(), n),
        **{f"f1/{name}": value for name, value in zip(classes, f1, strict=True)},
        "f1/macro": _mean(f1),
        "f1/micro": _share(2 * hits.sum(), have.sum() + said.sum()),
        **{f"ap/{name}": value for name, value in zip(classes, precision, strict=True)},
        "ap/macro": _mean(precision),
        "unparsed": _share((~answered).sum(), n),
        "majority": _share(sets.max(initial=0), n),
        "n": float(n),
    }


def average_precision(
    probability: Float[np.ndarray, " clips"], positive: Bool[np.ndarray, " clips"]
) -> float:
    """Mean of the precision over the clips of a class, ranked by its probability.

    The precision at each clip of the class is that among all clips of the same or a greater
    probability: clips that share one share their rank. It is scikit-learn's
    `average_precision_score`.

    Args:
        probability: Of the class; NaN for a clip without an answer, which comes last.
        positive: Which clips have the class.

    Returns:
        From 0 to 1; NaN where no clip has the class.
    """
    if not positive.any():
        return math.nan
    ranked = np.nan_to_num(probability, nan=-np.inf)
    levels, group = np.unique(-ranked, return_inverse=True)
    clips = np.bincount(group, minlength=len(levels))
    found = np.bincount(group[positive], minlength=len(levels))
    return float((found * found.cumsum() / clips.cumsum()).sum() / found.sum())


def best_threshold(
    probability: Float[np.ndarray, " clips"], positive: Bool[np.ndarray, " clips"]
) -> float:
    """The threshold of a class with the greatest F1.

    Args:
        probability: Of the class.
        positive: Which clips have it.

    Returns:
        Halfway between two probabilities that occur, or 0 for all clips; of several as good the
        one closest to one half. One half where no clip has the class.
    """
    if not positive.any():
        return HALF
    levels = np.unique(probability)
    candidates = np.concatenate([[0.0], (levels[:-1] + levels[1:]) / 2])
    have, all_of = np.sort(probability[positive]), np.sort(probability)
    hits = len(have) - np.searchsorted(have, candidates, side="left")
    said = len(all_of) - np.searchsorted(all_of, candidates, side="left")
    f1 = 2 * hits / (len(have) + said)
    best = candidates[f1 >= f1.max() * (1 - 1e-12)]
    return float(best[np.abs(best - HALF).argmin()])


def choose_thresholds(clips: MultiLabelClips) -> dict[str, float]:
    """For each class the threshold with the greatest F1, see `best_threshold`.

    Args:
        clips: Of the validation split; those without an answer are left out.

    Raises:
        ValueError: If the clips are of another split, or none has an answer.
    """
    if clips.split != "val":
        raise ValueError(
            f"Thresholds are chosen on the validation split, but {clips.name} is of {clips.split}. "
            "Carve one from the training clips: data.val_fraction."
        )
    if not clips.answered.any():
        raise ValueError(f"{clips.name} has no clip with an answer to choose thresholds on.")
    return _choose(clips, clips.answered)


def cross_fit(clips: MultiLabelClips, folds: int = 5, seed: int = 0) -> dict[str, float]:
    """Figures of thresholds on clips that they were not chosen on.

    Each fold is decided with the thresholds that the other folds give.

    Args:
        clips: See `choose_thresholds`.
        folds: How many, from 2 to the number of clips.
        seed: Of the draw of the folds.

    Raises:
        ValueError: If there are too many folds.
    """
    count = len(clips.ids)
    if not 2 <= folds <= count:
        raise ValueError(f"The number of folds ({folds}) must be from 2 to {count}, as many clips.")
    fold = np.random.default_rng(seed).permutation(count) % folds
    predicted = np.zeros_like(clips.labels)
    for one in range(folds):
        chosen = _choose(clips, clips.answered & (fold != one))
        predicted[fold == one] = clips.predicted(chosen)[fold == one]
    return multilabel_scores(clips.labels, predicted, clips.probabilities, clips.classes)


def multilabel_intervals(
    labels: Bool[np.ndarray, "clips classes"],
    predicted: Bool[np.ndarray, "clips classes"],
    answered: Bool[np.ndarray, " clips"],
    classes: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """95 % intervals over the clips: Wilson's of the accuracy, the bootstrap's of F1.

    In a resample that has no clip of a class the class has no F1 and the macro F1 is of the
    others. The average precision has none.

    Args:
        labels: Which classes each clip has.
        predicted: Which it is said to have.
        answered: Which clips have an answer.
        classes: Class names in order.
        resamples: How many are drawn.
        seed: Of the draws.
    """
    right = int(((labels == predicted).all(axis=1) & answered).sum())
    made = {"accuracy": wilson(right, len(labels))}
    if not len(labels):
        return made
    # Clips that are alike are drawn together.
    rows = np.concatenate([labels, predicted], axis=1)
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    own, said = np.split(kinds, 2, axis=1)
    figures = _f1_figures(own, said)
    drawer, drawn, left = np.random.default_rng(seed), [], resamples
    while left:
        size = min(left, max(1, CHUNK // len(counts)))
        drawn.append(figures(drawer.multinomial(len(labels), counts / len(labels), size)))
        left -= size
    value = figures(counts[None])[0]
    names = [*(f"f1/{name}" for name in classes), "f1/macro", "f1/micro"]
    for place, (name, draws) in enumerate(zip(names, np.concatenate(drawn).T, strict=True)):
        made[name] = percentile_interval(float(value[place]), draws, LEVEL)
    return made


def _f1_figures(
    labels: Bool[np.ndarray, "kinds classes"], predicted: Bool[np.ndarray, "kinds classes"]
) -> Callable[[Int[np.ndarray, "draws kinds"]], Float[np.ndarray, "draws figures"]]:
    """F1 of each class, macro and micro, from how often each kind of clip is drawn."""

    def figures(counts: Int[np.ndarray, "draws kinds"]) -> Float[np.ndarray, "draws figures"]:
        # In floating point, exact for whole numbers of this size, since BLAS has no integers.
        drawn = counts.astype(float)
        hits, have, said = (
            drawn @ kinds.astype(float) for kinds in (labels & predicted, labels, predicted)
        )
        f1 = np.where(have > 0, 2 * hits / np.maximum(1, have + said), np.nan)
        defined = (have > 0).sum(axis=1)
        macro = np.where(defined > 0, np.nansum(f1, axis=1) / np.maximum(1, defined), np.nan)
        whole = have.sum(axis=1) + said.sum(axis=1)
        micro = np.where(whole > 0, 2 * hits.sum(axis=1) / np.maximum(1, whole), np.nan)
        return np.column_stack([f1, macro, micro])

    return figures


def _answered(
    probabilities: Float[np.ndarray, "clips classes"],
) -> Bool[np.ndarray, " clips"]:
    return np.logical_not(np.isnan(probabilities).sum(axis=1))


def _choose(clips: MultiLabelClips, used: Bool[np.ndarray, " clips"]) -> dict[str, float]:
    return {
        name: best_threshold(clips.probabilities[used, place], clips.labels[used, place])
        for place, name in enumerate(clips.classes)
    }


def _share(part: Any, whole: Any) -> float:
    return float(part / whole) if whole else math.nan


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
