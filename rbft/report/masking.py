"""Table 5 of our runs: what masking objects costs, beyond masking as much of anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from rbft.analysis.intervals import Interval
from rbft.report.conditions import Conditions
from rbft.report.gather import Gathered
from rbft.report.results import Result
from rbft.report.scores import BRACKETS, clips_notes, pair
from rbft.report.tables import (
    NONE,
    Row,
    Section,
    Table,
    cells,
    interval,
    metric_title,
    percent,
    probability,
    score,
)


@dataclass(frozen=True)
class MaskedResults:
    """Results with masked frames of one set of weights.

    Attributes:
        run: The run that the weights are of.
        whole: Its results without masks, on the same clips in the same way; None without such.
        kinds: Results by kind of mask: "objects", "random"; of the random control one a draw.
    """

    run: str
    whole: Result | None
    kinds: Mapping[str, tuple[Result, ...]]

    @property
    def results(self) -> list[Result]:
        """All of them."""
        return [one for results in self.kinds.values() for one in results]


def find_masked(gathered: Gathered, conditions: Conditions) -> list[MaskedResults]:
    """Results with masked frames, by the run whose weights they are of.

    That is known by the weights' content: masked frames are scored under an experiment of their
    own, in whose folder the results stand.

    Args:
        gathered: The runs.
        conditions: How their results were scored.
    """
    plain = [one for run in gathered.runs for one in run.results if one.masking is None]
    found: dict[tuple[str, str], tuple[str, Result | None, list[Result]]] = {}
    for run in gathered.runs:
        for one in run.results:
            if one.masking is None:
                continue
            same = [other for other in plain if _weights(other) == _weights(one)]
            same.sort(key=lambda other: other.run != one.run)  # the bare backbone's are everywhere
            alike = [other for other in same if conditions.alike(other, one) and other.scored]
            owner = (alike or same or [one])[0].run
            key = (owner, f"{conditions.of(one).letter} {_weights(one)} {_drawn(one)}")
            found.setdefault(key, (owner, alike[0] if alike else None, []))[2].append(one)
    made = []
    for owner, whole, results in found.values():
        kinds: dict[str, tuple[Result, ...]] = {}
        for one in results:
            kinds[kind_of(one)] = (*kinds.get(kind_of(one), ()), one)
        made.append(MaskedResults(owner, whole, kinds))
    return made


def kind_of(result: Result) -> str:
    """The kind of mask of a result: "objects", "random", or what it says."""
    return str((result.masking or {}).get("kind", "masked"))


def masked(gathered: Gathered, conditions: Conditions) -> Section:
    """Scores with objects masked, and with as much masked at random, against the whole frames."""
    rows, effects, shown = [], [], []
    for one in find_masked(gathered, conditions):
        shown += [*one.results, *([] if one.whole is None else [one.whole])]
        rows += [_masked_row(one.run, result, conditions) for result in one.results]
        effects += _effects(one)
    if not rows:
        return Section("masking", "Masked objects", (), "No run was scored with masked frames.")
    columns = ("run", "step", "masked", "draw", "clips", "n", "coverage %", "area %", "overlap %")
    metrics = shown[0].metrics
    tables = [
        Table(
            "Scores with masked frames",
            (*columns, *map(metric_title, metrics)),
            tuple(rows),
            (BRACKETS, *clips_notes(conditions, shown)),
        )
    ]
    if effects:
        note = (
            "In points on the same clips, with the 95 % interval of the paired bootstrap and p of "
            "McNemar's exact test. Of several random draws: the mean of their differences and of "
            "their intervals' ends, and the median p. Objects - random is what masking objects "
            "costs beyond masking as much of anything."
        )
        columns = ("run", "A - B", "draws", "n", "accuracy", "F1 macro", "p")
        against = Table("What masking costs", columns, tuple(effects), (note,), sortable=False)
        tables.insert(0, against)
    return Section("masking", "Masked objects", tuple(tables))


def _weights(result: Result) -> Any:
    """What tells weights apart; results of before know the run and its step alone."""
    made = result.content.get("made") or {}
    return made.get("weights") or (result.run, result.place)


def _drawn(result: Result) -> str:
    """What must be the same for masks to be compared: boxes, and what is drawn there."""
    masking = result.masking or {}
    return f"{masking.get('boxes')} {masking.get('fill')}"


def _masked_row(run: str, result: Result, conditions: Conditions) -> Row:
    masking = result.masking or {}
    area, overlap = (_share(masking.get(name)) for name in ("area", "overlap"))
    draw = masking.get("repeat")
    line = cells(
        run,
        result.title,
        kind_of(result),
        NONE if draw is None else draw,
        conditions.of(result).letter,
        result.n,
    )
    scores = (score(result, metric) for metric in result.metrics)
    shares = (percent(result.coverage), percent(area), percent(overlap))
    return Row((*line, *shares, *scores), (run, result.run), "ours")


def _share(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _effects(one: MaskedResults) -> list[Row]:
    """Each kind against the whole frames, and objects against the random control."""
    rows = []
    for kind, results in one.kinds.items():
        if one.whole is not None:
            rows.append(_effect(one, f"{kind} - original frames", results, (one.whole,)))
    objects, random = (one.kinds.get(kind, ()) for kind in ("objects", "random"))
    if objects and random:
        rows.append(_effect(one, "objects - random", objects[:1], random))
    return [row for row in rows if row is not None]


def _effect(
    one: MaskedResults, title: str, firsts: Sequence[Result], seconds: Sequence[Result]
) -> Row | None:
    """A - B, the mean over the draws of the side that has several."""
    found = [pair(a, b) for a in firsts for b in seconds if None not in (a.scored, b.scored)]
    if not found:
        return None
    accuracy, macro = (
        _mean_interval([getattr(each, name) for each in found]) for name in ("accuracy", "macro_f1")
    )
    line = cells(one.run, title, len(found), found[0].n)
    p = probability(median(each.p for each in found))
    return Row((*line, interval(accuracy, "+"), interval(macro, "+"), p), (one.run,), "ours")


def _mean_interval(found: Sequence[Interval]) -> Interval:
    return Interval(
        *(fmean(getattr(one, end) for one in found) for end in ("value", "low", "high"))
    )
