"""Table 5 of our runs: what masking objects costs, beyond masking as much of anything."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rbft.analysis.intervals import Interval
from rbft.analysis.paired import PairedComparison
from rbft.report.conditions import Conditions
from rbft.report.gather import Gathered, GatheredRun
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


def masked(gathered: Gathered, conditions: Conditions) -> Section:
    """Scores with objects masked, and with as much masked at random, against the whole frames."""
    rows, effects, shown = [], [], []
    for run in gathered.runs:
        results = [one for one in run.results if one.masking is not None]
        for kind, repeats in _by_kind(results).items():
            whole = _whole(run, repeats[0], conditions)
            shown += [*repeats, *([] if whole is None else [whole])]
            rows += [_masked_row(one, conditions) for one in repeats]
            if whole is not None:
                found = _effect(repeats, whole)
                effects.append(_effect_row(run.name, kind, repeats, whole, found))
        effects += _objects_against_random(run, results, conditions)
    if not rows:
        return Section("masking", "Masked objects", (), "No run was scored with masked frames.")
    columns = ("run", "step", "masked", "repeat", "clips", "n", "coverage %", "area %", "overlap %")
    metrics = shown[0].metrics
    table = Table(
        "Scores with masked frames",
        (*columns, *map(metric_title, metrics)),
        tuple(rows),
        (BRACKETS, *clips_notes(conditions, shown)),
    )
    against = Table(
        "What masking costs",
        ("run", "step", "A - B", "repeats", "n", "accuracy", "F1 macro", "p"),
        tuple(effects),
        (
            "In points on the same clips, with the 95 % interval of the paired bootstrap and p of "
            "McNemar's exact test. Of several random repeats: their mean, and the mean of their "
            "intervals' ends.",
        ),
        sortable=False,
    )
    return Section("masking", "Masked objects", (against, table))


def _by_kind(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """Results of masked frames by step and kind of mask."""
    found: dict[tuple[str, str], list[Result]] = {}
    for one in results:
        found.setdefault((one.place, kind_of(one)), []).append(one)
    return found


def kind_of(result: Result) -> str:
    """The kind of mask of a result: "objects", "random", or what it says."""
    return str((result.masking or {}).get("kind", "masked"))


def _whole(run: GatheredRun, result: Result, conditions: Conditions) -> Result | None:
    """The results of the whole frames for those of masked ones."""
    found = [
        one
        for one in run.results
        if one.masking is None and one.scored is not None and conditions.alike(one, result)
    ]
    found = [one for one in found if _weights(one) == _weights(result)] or found
    return next((one for one in found if _weights(one) == _weights(result)), None)


def _weights(result: Result) -> Any:
    return (result.content.get("made") or {}).get("weights", result.place)


def _masked_row(result: Result, conditions: Conditions) -> Row:
    masking = result.masking or {}
    area, overlap = (_share(masking, name) for name in ("area", "overlap"))
    repeat = masking.get("repeat")
    line = cells(
        result.run,
        result.title,
        kind_of(result),
        NONE if repeat is None else repeat,
        conditions.of(result).letter,
        result.n,
    )
    shown = (score(result, metric) for metric in result.metrics)
    covered = percent(result.coverage)
    return Row((*line, covered, area, overlap, *shown), (result.run,), "ours")


def _share(masking: Mapping[str, Any], name: str) -> Cell:
    """Realised area or overlap, whichever way it is noted."""
    for key in (name, f"realised_{name}", f"mean_{name}"):
        value = masking.get(key)
        if isinstance(value, Mapping):
            value = value.get("mean")
        if isinstance(value, int | float):
            return percent(float(value))
    return Cell(NONE)


def _effect(repeats: Sequence[Result], whole: Result) -> list[PairedComparison]:
    return [pair(one, whole) for one in repeats if one.scored is not None]


def _mean_interval(found: Sequence[Interval]) -> Interval:
    return Interval(
        *(fmean(getattr(one, end) for one in found) for end in ("value", "low", "high"))
    )


def _effect_row(
    run: str,
    kind: tuple[str, str],
    repeats: Sequence[Result],
    whole: Result,
    found: Sequence[PairedComparison],
    against: str = "original frames",
) -> Row:
    title = f"{kind[1]} masked - {against}"
    line = cells(run, whole.title, title, len(repeats), whole.n)
    if not found:
        return Row((*line, *cells(NONE, NONE, NONE)), (run,), "ours")
    accuracy = _mean_interval([one.accuracy for one in found])
    macro = _mean_interval([one.macro_f1 for one in found])
    p = probability(found[0].p) if len(found) == 1 else Cell(NONE)
    return Row((*line, interval(accuracy, "+"), interval(macro, "+"), p), (run,), "ours")


def _objects_against_random(
    run: GatheredRun, results: Sequence[Result], conditions: Conditions
) -> list[Row]:
    """What masking objects costs beyond masking as much of anything."""
    rows = []
    kinds = _by_kind(results)
    for (place, kind), objects in kinds.items():
        random = kinds.get((place, "random"), [])
        if not kind.startswith("object") or not random or objects[0].scored is None:
            continue
        usable = [
            one for one in random if one.scored is not None and conditions.alike(one, objects[0])
        ]
        found = [pair(objects[0], one) for one in usable]
        title = (place, kind)
        rows.append(_effect_row(run.name, title, random, objects[0], found, "as much at random"))
    return rows
