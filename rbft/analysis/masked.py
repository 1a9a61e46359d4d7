"""What masking objects costs a run beyond masking as much of anything (Table 5).

A drop under masked objects alone says little: a model can lose as much where any part of the frame
is missing. So objects are compared with the random control clip by clip, the control's draws being
averaged, and runs by the difference of these differences.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rbft.analysis.intervals import LEVEL, RESAMPLES, Cells, Interval, percentile_interval
from rbft.analysis.paired import check_same_clips, compare_pair
from rbft.analysis.scored import ScoredClips
from rbft.analysis.seeds import Summary, summary


@dataclass(frozen=True)
class MaskedRun:
    """A run's answers about the same clips, shown in three ways.

    Attributes:
        name: The run's.
        original: About the frames as they are.
        objects: With objects masked.
        random: With as much of anything else masked, one for each draw.
    """

    name: str
    original: ScoredClips
    objects: ScoredClips
    random: tuple[ScoredClips, ...]

    def without(self, ids: Sequence[str]) -> "MaskedRun":
        """The same without some clips, all in one order.

        Args:
            ids: Of clips of which less could be masked at random than the objects take.

        Raises:
            ValueError: If the answers are not about the same clips, or none is left.
        """
        left = set(ids)
        kept = [one for one in self.original.ids if one not in left]
        if not kept:
            raise ValueError(
                f"{self.name}: in every clip the objects take more than half of a frame, so that "
                "nothing as large can be masked elsewhere. Mask fewer objects."
            )
        for one in (self.objects, *self.random):
            check_same_clips(self.original, one)
        original, objects, *random = (
            one.in_order_of(kept) for one in (self.original, self.objects, *self.random)
        )
        return MaskedRun(self.name, original, objects, tuple(random))


@dataclass(frozen=True)
class MaskingCost:
    """What masking costs a run, in shares; negative is a loss.

    Attributes:
        name: The run's.
        n: Number of clips.
        accuracy: Objects masked - random masked (mean of the draws), with the paired bootstrap's
            interval over clips.
        macro_f1: The same for the macro F1.
        objects: Accuracy with objects masked - with nothing masked.
        random: Accuracy with random masks - with nothing masked.
        p: Exact McNemar's test of objects against each draw, two-sided.
    """

    name: str
    n: int
    accuracy: Interval
    macro_f1: Interval
    objects: Interval
    random: Interval
    p: tuple[float, ...]

    @property
    def p_median(self) -> float:
        """Median of the draws' p."""
        return median(self.p)

    def as_dict(self) -> dict[str, Any]:
        """The figures for JSON."""
        return {**for_json(asdict(self)), "p_median": self.p_median}


@dataclass(frozen=True)
class CostDifference:
    """How much more masking objects, beyond random masks, costs run A than run B.

    Attributes:
        a: Name of A.
        b: Name of B.
        n: Number of clips.
        accuracy: (objects - random) of A - (objects - random) of B, with the paired bootstrap's
            interval; negative where A loses more.
        macro_f1: The same for the macro F1.
    """

    a: str
    b: str
    n: int
    accuracy: Interval
    macro_f1: Interval

    def as_dict(self) -> dict[str, Any]:
        """The figures for JSON."""
        return for_json(asdict(self))


def masking_cost(
    run: MaskedRun, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> MaskingCost:
    """What masking costs a run.

    Args:
        run: Its answers, of the same clips in the same order, see `MaskedRun.without`.
        level: Of the intervals, two-sided.
        resamples: How many are drawn.
        seed: Of the draws.
    """
    found, drawn = _scores([run], resamples, seed)
    beyond, objects, random = (
        [_difference(one, 0, *pair) for one in (found, drawn)]
        for pair in (("objects", "random"), ("objects", "original"), ("random", "original"))
    )

    def interval(of: Sequence[Float[np.ndarray, "_ 2"]], column: int) -> Interval:
        return percentile_interval(float(of[0][0, column]), of[1][:, column], level)

    return MaskingCost(
        run.name,
        len(run.original.ids),
        interval(beyond, 0),
        interval(beyond, 1),
        interval(objects, 0),
        interval(random, 0),
        tuple(compare_pair(run.objects, one, level, 1).p for one in run.random),
    )


def cost_difference(
    a: MaskedRun, b: MaskedRun, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> CostDifference:
    """How much more masking objects, beyond random masks, costs A than B.

    Args:
        a: A run's answers, see `masking_cost`.
        b: Another's, about the same clips in any order.
        level: Of the intervals, two-sided.
        resamples: How many are drawn.
        seed: Of the draws.

    Raises:
        ValueError: If the clips are not the same.
    """
    check_same_clips(a.original, b.original)
    ids = a.original.ids
    b = MaskedRun(
        b.name,
        b.original.in_order_of(ids),
        b.objects.in_order_of(ids),
        tuple(one.in_order_of(ids) for one in b.random),
    )
    both = [
        _difference(one, 0, "objects", "random") - _difference(one, 1, "objects", "random")
        for one in _scores([a, b], resamples, seed)
    ]
    accuracy, macro = (
        percentile_interval(float(both[0][0, column]), both[1][:, column], level)
        for column in range(2)
    )
    return CostDifference(a.name, b.name, len(ids), accuracy, macro)


def over_draws(run: MaskedRun) -> dict[str, Summary]:
    """Mean and spread over the random draws of accuracy, F1 of each class and macro F1.

    Args:
        run: The run's answers.
    """
    each = [scores_of(one) for one in run.random]
    return {name: summary([one[name] for one in each]) for name in each[0]}


def scores_of(clips: ScoredClips) -> dict[str, float]:
    """Accuracy, F1 of each class and macro F1; NaN where undefined.

    Args:
        clips: Somebody's answers.
    """
    cells = Cells(np.ones(len(clips.ids), dtype=int), clips.labels, len(clips.classes))
    names = ["accuracy", *(f"f1/{name}" for name in clips.classes), "f1/macro"]
    return dict(zip(names, cells.scores(clips.predictions)[0].tolist(), strict=True))


# Accuracy and macro F1, a row for each resample, by the run's place and the way it was shown.
Scores = dict[tuple[int, str], Float[np.ndarray, "_ 2"]]


def _scores(runs: Sequence[MaskedRun], resamples: int, seed: int) -> tuple[Scores, Scores]:
    """Of the clips themselves, and of resamples of them that are the same for all runs."""
    first = runs[0].original
    columns: dict[tuple[int, str, int], Int[np.ndarray, " clips"]] = {}
    for place, run in enumerate(runs):
        shown = (("original", [run.original]), ("objects", [run.objects]), ("random", run.random))
        for how, answers in shown:
            for draw, one in enumerate(answers):
                order = [*(first.classes.index(name) for name in one.classes), len(first.classes)]
                columns[place, how, draw] = np.array(order)[one.predictions]
    alike, counts = np.unique(
        np.column_stack([first.labels, *columns.values()]), axis=0, return_counts=True
    )
    labels, *answers = alike.T
    cells = Cells(counts, labels, len(first.classes))

    def scores(drawn: Int[np.ndarray, "resamples cells"] | None) -> Scores:
        each: dict[tuple[int, str], list[np.ndarray]] = {}
        for (place, how, _), own in zip(columns, answers, strict=True):
            each.setdefault((place, how), []).append(cells.scores(own, drawn)[:, [0, -1]])
        return {key: np.mean(own, axis=0) for key, own in each.items()}

    drawn = [scores(one) for one in cells.resamples(resamples, seed)]
    joined = {key: np.concatenate([one[key] for one in drawn]) for key in drawn[0]}
    return scores(None), joined


def _difference(scores: Scores, run: int, how: str, other: str) -> Float[np.ndarray, "_ 2"]:
    return scores[run, how] - scores[run, other]


def for_json(figures: Any) -> Any:
    """Nested figures with null instead of NaN."""
    if isinstance(figures, dict):
        return {name: for_json(value) for name, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [for_json(value) for value in figures]
    return None if isinstance(figures, float) and not math.isfinite(figures) else figures
