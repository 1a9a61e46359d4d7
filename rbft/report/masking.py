"""Table 5 of our runs: what masking objects costs, beyond masking as much of anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rbft.analysis.intervals import Interval
from rbft.analysis.masked import MaskedRun, cost_difference, masking_cost
from rbft.report.conditions import Conditions
from rbft.report.gather import Gathered
from rbft.report.results import Result
from rbft.report.scores import BRACKETS, clips_notes, pair
from rbft.report.tables import (
    NONE,
    Cell,
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
        alike: What must be the same for two runs to be compared: clips, way to score, masks.
        whole: Its results without masks, on the same clips in the same way; None without such.
        kinds: Results by kind of mask: "objects", "random"; of the random control one a draw.
    """

    run: str
    alike: str
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
    found: dict[tuple[Any, ...], tuple[str, str, Result | None, list[Result]]] = {}
    for run in gathered.runs:
        for one in run.results:
            if one.masking is None:
                continue
            same = [other for other in plain if _weights(other) == _weights(one)]
            same.sort(key=lambda other: other.run != one.run)  # the bare backbone's are everywhere
            alike = [other for other in same if conditions.alike(other, one) and other.scored]
            owner = (alike or same or [one])[0].run
            how = f"{conditions.of(one).letter} {_drawn(one)}"
            key = (owner, how, _weights(one))
            found.setdefault(key, (owner, how, alike[0] if alike else None, []))[3].append(one)
    made = []
    for owner, how, whole, results in found.values():
        kinds: dict[str, tuple[Result, ...]] = {}
        for one in results:
            kinds[kind_of(one)] = (*kinds.get(kind_of(one), ()), one)
        made.append(MaskedResults(owner, how, whole, kinds))
    return made


def kind_of(result: Result) -> str:
    """The kind of mask of a result: "objects", "random", or what it says."""
    return str((result.masking or {}).get("kind", "masked"))


def masked(gathered: Gathered, conditions: Conditions) -> Section:
    """Scores with objects masked, and with as much masked at random, against the whole frames."""
    rows, effects, shown = [], [], []
    found = find_masked(gathered, conditions)
    for one in found:
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
    effects += _between(found)
    if effects:
        note = (
            "In points on the same clips, with the 95 % interval of the paired bootstrap, in which "
            "the random draws are averaged, and the median p of McNemar's exact test. Objects - "
            "random is what masking objects costs beyond masking as much of anything."
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
    """What masking costs a run: whole where all three ways were scored, else as far as known."""
    run = _answers(one)
    if run is None:
        return [
            _row((one.run,), f"{kind} - original frames", found.n, 1, found.accuracy, found.p)
            for kind, results in one.kinds.items()
            if one.whole is not None and len(results) == 1
            if None not in (results[0].scored, one.whole.scored)
            for found in [pair(results[0], one.whole)]
        ]
    cost, draws = masking_cost(run), len(run.random)
    names = (one.run,)
    return [
        _row(names, "objects - original frames", cost.n, 1, cost.objects),
        _row(names, "random - original frames", cost.n, draws, cost.random),
        _row(names, "objects - random", cost.n, draws, cost.accuracy, cost.p_median, cost.macro_f1),
    ]


def _between(masked: Sequence[MaskedResults]) -> list[Row]:
    """How much more masking objects, beyond random masks, costs one run than another."""
    whole = [(one, run) for one in masked if (run := _answers(one)) is not None]
    rows = []
    for place, (a, answers_a) in enumerate(whole):
        for b, answers_b in whole[place + 1 :]:
            alike = a.alike == b.alike and answers_a.original.digest == answers_b.original.digest
            if alike:
                found = cost_difference(answers_b, answers_a)
                title = "objects - random, of A - of B"
                draws = min(len(answers_a.random), len(answers_b.random))
                figures = (found.accuracy, None, found.macro_f1)
                rows.append(_row((b.run, a.run), title, found.n, draws, *figures))
    return rows


def _answers(one: MaskedResults) -> MaskedRun | None:
    """The answers in all three ways, without clips in which too little was masked at random."""
    objects, random = (one.kinds.get(kind, ()) for kind in ("objects", "random"))
    if one.whole is None or one.whole.scored is None or len(objects) != 1 or not random:
        return None
    scored = [result.scored for result in (*objects, *random)]
    known = [answers for answers in scored if answers is not None]
    if len(known) < len(scored):
        return None
    noted = [(result.masking or {}).get("unmatched") for result in random]
    left_out = {name for names in noted if isinstance(names, list) for name in map(str, names)}
    run = MaskedRun(one.run, one.whole.scored, known[0], tuple(known[1:]))
    try:
        return run.without(sorted(left_out))
    except ValueError:  # in no clip was as much masked at random
        return None


def _row(
    names: tuple[str, ...],
    title: str,
    n: int,
    draws: int,
    accuracy: Interval,
    p: float | None = None,
    macro: Interval | None = None,
) -> Row:
    shown = (
        interval(accuracy, "+"),
        Cell(NONE) if macro is None else interval(macro, "+"),
        Cell(NONE) if p is None else probability(p),
    )
    return Row((*cells(" - ".join(names), title, draws, n), *shown), names, "ours")
