"""A threshold of the user's in place of the likeliest class: chosen, noted with a run, found again.

What a miss and a false alarm cost, or what recall is wanted, is said in the settings (`decision`).
The threshold is chosen on the validation split once the last stage is scored.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbft.analysis.intervals import Interval, score_intervals
from rbft.analysis.multilabel import MultiLabelClips, choose_thresholds
from rbft.analysis.multilabel import cross_fit as cross_fit_thresholds
from rbft.analysis.scored import ScoredClips
from rbft.analysis.thresholds import (
    Decided,
    Wanted,
    at_threshold,
    choose_threshold,
    cross_fit,
    evaluate,
    of_answers,
)
from rbft.data.base import VideoDataModule
from rbft.inference.metrics import for_json, percent
from rbft.runs.folder import read_json
from rbft.runtime.console import table
from rbft.runtime.files import write_json

DECISION = "decision.json"  # in a stage's folder, beside its weights, or in an exported folder
THRESHOLDS = "thresholds"  # the key of one for each class, where clips may have several
SHOWN = ("accuracy", "f1/macro", "f1/micro")
FOLDS = 5


@dataclass(frozen=True)
class Decision:
    """A threshold that was chosen for weights.

    Attributes:
        positive: The class that has the threshold.
        threshold: Its least probability that is decided positive.
        file: Where it stands.
    """

    positive: str
    threshold: float
    file: Path

    @property
    def determining(self) -> dict[str, Any]:
        """What of it decides an answer."""
        return {"positive": self.positive, "threshold": self.threshold}

    @property
    def chosen(self) -> tuple[str, float]:
        """The class and the threshold."""
        return self.positive, self.threshold

    @property
    def said(self) -> str:
        """The decision in words."""
        return f"A video is '{self.positive}' from a probability of {self.threshold:.4g} on"


@dataclass(frozen=True)
class ClassThresholds:
    """The thresholds that were chosen for weights whose clips may have several classes.

    Attributes:
        chosen: The least probability of each class that is a yes.
        file: Where they stand.
    """

    chosen: Mapping[str, float]
    file: Path

    @property
    def determining(self) -> dict[str, Any]:
        """What of them decides an answer."""
        return {THRESHOLDS: dict(self.chosen)}

    @property
    def said(self) -> str:
        """The decision in words."""
        return f"A video has a class from these probabilities on: {shown_thresholds(self.chosen)}"


def check_decision(wanted: Wanted, data: VideoDataModule, answer: str) -> None:
    """Refuses settings that no threshold could be chosen with, before anything is trained.

    Args:
        wanted: The costs or the recall.
        data: The benchmark.
        answer: How a clip gets its class, `model.answer`.

    Raises:
        ValueError: If the class is not on the card, answers are written, the validation split is
            missing or of one side alone, or the card's clips have one class and several were
            expected, or the other way round.
    """
    classes = data.card.classes
    if (data.card.several is not None) != wanted.f1:
        if wanted.f1:
            raise ValueError(
                "decision.f1 chooses a threshold for each class of a card with the key several, "
                f"but with card '{data.card.name}' a clip has one class. Set decision.positive "
                "and what its errors cost, or the recall that is wanted."
            )
        raise ValueError(
            f"decision.positive is '{wanted.positive}', but card '{data.card.name}' has the key "
            "several: a clip may have several classes, each with a threshold of its own. Set "
            "decision.f1 to true in its place."
        )
    if wanted.f1:
        if not data.clips("val"):
            raise ValueError(
                "decision needs a validation split to choose the thresholds on, but "
                f"{type(data).__name__} has none. Set data.val_fraction to carve one from the "
                "training clips; the test split is never used for it."
            )
        return
    if wanted.positive not in classes:
        raise ValueError(
            f"decision.positive is '{wanted.positive}', but the card's classes are "
            f"{', '.join(classes)}."
        )
    if answer != "score":
        raise ValueError(
            f"decision needs the probabilities of the classes, but model.answer is {answer}. Set "
            "it to score, or add --decision null."
        )
    clips = data.clips("val")
    positives = sum(clip.label == classes.index(wanted.positive) for clip in clips)
    if not 0 < positives < len(clips):
        found = f"{positives} of {len(clips)} clips are of '{wanted.positive}'"
        raise ValueError(
            "decision needs a validation split with clips of both sides, to choose the threshold "
            f"on, but in that of {type(data).__name__} "
            f"{found if clips else 'there are no clips'}. Set data.val_fraction to carve one from "
            "the training clips; the test split is never used for it."
        )


def write_decision(file: Path, wanted: Wanted, val: Path, test: Path, weights: str) -> str:
    """Chooses the threshold and writes it, with what it comes to.

    Args:
        file: Where it goes.
        wanted: The costs or the recall.
        val: Results of the validation split, which it is chosen on.
        test: Results of the test split, with these weights.
        weights: Fingerprint of the weights.

    Returns:
        What is shown on the screen.

    Raises:
        ValueError: See `rbft.analysis.thresholds.choose_threshold`.
    """
    known, others = ScoredClips.from_file(val), ScoredClips.from_file(test)
    chosen = choose_threshold(known, wanted)
    rarer = min(chosen.decided.positives, chosen.decided.n - chosen.decided.positives)
    expected = cross_fit(known, wanted, min(FOLDS, rarer)) if rarer > 1 else None
    decided = at_threshold(others, wanted.positive, chosen.threshold)
    scores = score_intervals(decided.confusion, decided.classes)
    before, after = of_answers(others, wanted), evaluate(others, chosen)
    write_json(
        file,
        {
            "weights": weights,
            **chosen.as_dict(),
            "cross_fitted": None if expected is None else expected.as_dict(),
            "test": {
                "likeliest": before.as_dict(),
                "threshold": after.as_dict(),
                "metrics": {name: one.as_dict() | _value(one) for name, one in scores.items()},
                "confusion": decided.confusion.tolist(),
            },
        },
    )
    said = f"{describe(chosen.as_dict())},\nchosen on {chosen.decided.n} val clips:"
    rows = [_row("val, threshold (chosen here)", chosen.decided)]
    if expected is not None:
        rows.append(_row("val, threshold of other folds", expected))
    rows += [_row("test, likeliest class", before), _row("test, threshold", after)]
    headers = ["", "misses", "false alarms", "recall", "mean cost"]
    return f"{said}\n{table(rows, headers)}\nThe threshold and its figures: {file}"


def write_thresholds(file: Path, wanted: Wanted, val: Path, test: Path, weights: str) -> str:
    """Chooses a threshold for each class and writes them, with what they come to.

    Args:
        file: Where they go.
        wanted: What is wanted, noted with them.
        val: Results of the validation split, which they are chosen on.
        test: Results of the test split, with these weights.
        weights: Fingerprint of the weights.

    Returns:
        What is shown on the screen.

    Raises:
        ValueError: See `rbft.analysis.multilabel.choose_thresholds`.
    """
    known, others = MultiLabelClips.from_file(val), MultiLabelClips.from_file(test)
    chosen = choose_thresholds(known)
    folds = min(FOLDS, len(known.ids))
    scores = {
        "val": {"half": known.scores(), THRESHOLDS: known.scores(chosen)},
        "test": {"half": others.scores(), THRESHOLDS: others.scores(chosen)},
    }
    if folds > 1:
        scores["val"]["cross_fitted"] = cross_fit_thresholds(known, folds)
    figures = {
        split: {kind: for_json(one) for kind, one in kinds.items()}
        for split, kinds in scores.items()
    }
    write_json(
        file,
        {
            "weights": weights,
            "wanted": {"f1": wanted.f1},
            THRESHOLDS: chosen,
            "split": known.split,
            "chosen_on": known.name,
            "digest": known.digest,
            "n": len(known.ids),
            **figures,
        },
    )
    titles = {
        "half": "one half",
        THRESHOLDS: "thresholds",
        "cross_fitted": "thresholds of other folds",
    }
    rows = [
        [f"{split}, {title}", *(percent(scores[split][kind][name]) for name in SHOWN)]
        for split in scores
        for kind, title in titles.items()
        if kind in scores[split]
    ]
    said = shown_thresholds(chosen)
    counts = known.labels.sum(axis=0).tolist()
    lacking = [name for name, count in zip(known.classes, counts, strict=True) if not count]
    none = (
        f" No val clip has {', '.join(lacking)}: one half stays the threshold of that."
        if lacking
        else ""
    )
    headers = ["", "accuracy", "F1 macro", "F1 micro"]
    return (
        f"Thresholds with the greatest F1 on {len(known.ids)} val clips: {said}.{none}\n"
        f"{table(rows, headers)}\nThe thresholds and their figures: {file}"
    )


def shown_thresholds(chosen: Mapping[str, float]) -> str:
    """Thresholds in words.

    Args:
        chosen: The least probability of each class.
    """
    return ", ".join(f"{name} {value:.4g}" for name, value in chosen.items())


def find_decision(weights: Path, fingerprint: str) -> Decision | ClassThresholds | None:
    """The threshold that was chosen for weights, in their folder (an export) or beside it.

    Args:
        weights: A weights folder.
        fingerprint: Its fingerprint.

    Raises:
        ValueError: If it was chosen for other weights.
    """
    inside, beside = weights / DECISION, weights.parent / DECISION
    if not inside.exists() and not beside.exists():
        return None
    file = inside if inside.exists() else beside
    found = read_json(file)
    if found["weights"] != fingerprint:
        raise ValueError(
            f"The threshold in {file} was chosen for other weights than {weights}. Choose it anew "
            "with python -m rbft test and the same decision, or remove the file."
        )
    if THRESHOLDS in found:
        return ClassThresholds(found[THRESHOLDS], file)
    return Decision(found["wanted"]["positive"], found["threshold"], file)


def describe(found: Mapping[str, Any]) -> str:
    """A threshold in words.

    Args:
        found: What stands in its file.
    """
    wanted = Wanted(**found["wanted"])
    reason = f"recall {wanted.recall:g}" if wanted.recall is not None else ""
    if wanted.miss is not None and wanted.false_alarm is not None:
        reason = f"a miss costs {wanted.miss:g}, a false alarm {wanted.false_alarm:g}"
    return f"'{wanted.positive}' from a probability of {found['threshold']:.4g} on ({reason})"


def _row(title: str, decided: Decided) -> list[str]:
    cost = "-" if decided.cost is None else f"{decided.cost:.3g}"
    alarms = f"{decided.false_alarms}/{decided.n - decided.positives}"
    misses = f"{decided.misses}/{decided.positives}"
    return [title, misses, alarms, decided.recall.percent(0), cost]


def _value(interval: Interval) -> dict[str, float | None]:
    return {"value": None if math.isnan(interval.value) else interval.value}
