"""Tables of scores: every result, over seeds, differences on the same clips, masked frames."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np

from rbft.analysis.intervals import Cells, Interval
from rbft.analysis.paired import PairedComparison, compare_pair
from rbft.analysis.seeds import SeedDifference, paired_difference, summary
from rbft.report.conditions import Conditions
from rbft.report.gather import Gathered, GatheredRun, Result
from rbft.report.groups import Group, seeds_of
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

DIRECT = ("label",)  # the stages of Direct-SFT
MOST_PAIRS = 40
BRACKETS = (
    "In brackets: 95 % interval, Wilson's for the accuracy and the bootstrap's over clips for F1."
)


def overview(gathered: Gathered) -> Section:
    """The runs, and what is missing of them."""
    rows = []
    for run in gathered.runs:
        final = run.final
        accuracy = Cell(NONE) if final is None else score(final, "accuracy")
        stages = ", ".join(run.stages) or ("none (zero-shot)" if run.settings else NONE)
        seeds = seeds_of(run) or NONE
        line = cells(run.name, run.benchmark or None, run.backbone or None, stages, seeds)
        rows.append(Row((*line, accuracy, Cell(run.state)), (run.name,)))
    columns = ("run", "benchmark", "backbone", "stages", "seed", "test accuracy", "state")
    tables = [Table("Runs", columns, tuple(rows), (BRACKETS,))]
    if gathered.problems:
        found = tuple(Row(cells(one.where, one.text)) for one in gathered.problems)
        tables.append(Table("Damaged or not finished", ("where", "what"), found))
    return Section("runs", "Runs", tuple(tables))


def all_scores(gathered: Gathered, conditions: Conditions) -> Section:
    """Every result, a table for each set of classes."""
    found = [one for run in gathered.runs for one in run.results if one.masking is None]
    tables = []
    for classes in dict.fromkeys(one.classes for one in found):
        results = [one for one in found if one.classes == classes]
        metrics = results[0].metrics
        rows = [
            Row(
                (
                    *cells(one.run, _step(one), one.split, conditions.of(one).letter, one.n),
                    percent(one.coverage),
                    *(score(one, metric) for metric in metrics),
                ),
                (one.run,),
                "ours",
            )
            for one in results
        ]
        for condition in conditions.used(results):
            rows.append(_majority(condition.first, condition.letter, metrics))
        columns = ("run", "step", "split", "clips", "n", "coverage %", *map(metric_title, metrics))
        notes = (BRACKETS, *_clips_notes(conditions, results))
        tables.append(Table(f"Classes {', '.join(classes)}", columns, tuple(rows), notes))
    about = (
        "In per cent. An answer that is no class counts as wrong; coverage is the share of others."
    )
    return Section("scores", "Scores", tuple(tables), about)


def over_seeds(gathered: Gathered, groups: Sequence[Group], conditions: Conditions) -> Section:
    """Mean and spread of runs that differ in seeds alone, and what `compare` has left."""
    several = [one for one in groups if len(one.runs) > 1]
    tables = []
    for classes in dict.fromkeys(one.finals[0].classes for one in several):
        of_classes = [one for one in several if one.finals[0].classes == classes]
        metrics = of_classes[0].finals[0].metrics
        rows = []
        for group in of_classes:
            letter = conditions.of(group.finals[0]).letter
            values = [_of_seeds(group.finals, metric) for metric in metrics]
            n, seeds = group.finals[0].n, ", ".join(group.seeds)
            covered = fmean(one.coverage for one in group.finals)
            line = cells(group.title, len(group.runs), seeds, letter, n)
            rows.append(Row((*line, percent(covered), *values), group.names, "ours"))
        columns = (
            "runs",
            "seeds",
            "which",
            "clips",
            "n",
            "coverage %",
            *map(metric_title, metrics),
        )
        finals = [final for group in of_classes for final in group.finals]
        notes = (
            "Mean ± standard deviation of a single seed (n - 1), final results on the test split, "
            "of runs that differ in nothing but seeds; "
            "in brackets Student's 95 % interval of the mean.",
            *_clips_notes(conditions, finals),
        )
        tables.append(Table(f"Over seeds: {', '.join(classes)}", columns, tuple(rows), notes))
    tables += [_compared(one) for one in gathered.comparisons.values() if _is_comparison(one)]
    about = (
        ""
        if tables
        else "No two runs differ in nothing but seeds. python -m rbft compare makes such."
    )
    return Section("seeds", "Seeds", tuple(tables), about)


def differences(groups: Sequence[Group], conditions: Conditions) -> Section:
    """Differences between final results that were scored alike, and between the steps of a run."""
    rows, results, left_out = [], [], 0
    pairs = _pairs(groups, conditions)
    for a, b in pairs[:MOST_PAIRS]:
        if len(a.runs) > 1 and set(a.seeds) == set(b.seeds) and len(set(a.seeds)) == len(a.seeds):
            rows.append(_seed_row(a, b, conditions))
        else:
            rows.append(_clip_row(a.finals[0], b.finals[0], a.names[:1] + b.names[:1], conditions))
        results += [*a.finals, *b.finals]
    left_out = len(pairs) - MOST_PAIRS
    steps = []
    for group in groups:
        for run in group.runs:
            steps += _steps(run, conditions)
    columns = ("A", "B", "clips", "compared over", "accuracy", "F1 macro", "p")
    notes = [
        "A - B in points, with the 95 % interval of the paired bootstrap over clips and p of "
        "McNemar's exact test; over seeds Student's t interval and p of the paired t test.",
        *_clips_notes(conditions, results),
    ]
    if left_out > 0:
        notes.append(f"{left_out} more pairs are left out; name fewer runs with --runs.")
    tables = []
    if rows:
        tables.append(Table("Between runs", columns, tuple(rows), tuple(notes)))
    if steps:
        note = "A - B in points on the same clips of the same run: what each step has added."
        tables.append(Table("Within a run", columns, tuple(steps), (note,)))
    about = "" if tables else "No two results were scored on the same clips in the same way."
    return Section("differences", "Differences", tuple(tables), about)


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
        (BRACKETS, *_clips_notes(conditions, shown)),
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


def _step(result: Result) -> str:
    own = result.split
    return result.title + (f" ({result.file.stem})" if result.file.stem != own else "")


def _clips_notes(conditions: Conditions, results: Sequence[Result]) -> list[str]:
    return [f"clips {line}" for line in conditions.legend(results)] if results else []


def _majority(result: Result, letter: str, metrics: Sequence[str]) -> Row:
    """What always answering the most frequent class scores."""
    counts = np.array(list(result.content["classes"].values()), dtype=int)
    labels = np.arange(len(counts))
    always = np.full(len(counts), int(counts.argmax()))
    (found,) = Cells(counts, labels, len(counts)).scores(always).tolist()
    line = cells("majority class", NONE, result.split, letter, result.n)
    values = dict(zip(result.metrics, found, strict=True))
    return Row((*line, percent(1.0), *(percent(values[name]) for name in metrics)), (), "majority")


def of_seeds(results: Sequence[Result], metric: str) -> Cell:
    """Mean over seeds, spread and t interval; of one run its score and interval.

    Args:
        results: One a seed.
        metric: The score.
    """
    return score(results[0], metric) if len(results) == 1 else _of_seeds(results, metric)


def _of_seeds(results: Sequence[Result], metric: str) -> Cell:
    values = [one.score(metric) for one in results]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return Cell(NONE)
    found = summary(known)
    over: SeedDifference = paired_difference(
        dict(enumerate(known)), dict.fromkeys(range(len(known)), 0.0)
    )
    text = f"{100 * found.mean:.1f} ± {100 * found.sd:.1f}"
    return Cell(f"{text} [{100 * over.low:.1f}, {100 * over.high:.1f}]", found.mean)


def _is_comparison(content: Any) -> bool:
    """Whether it is what `compare` writes."""
    return isinstance(content, dict) and all(
        isinstance(row, dict) and isinstance(row.get("seeds"), dict) and "scores" in row
        for row in content.get("rows", [None])
    )


def _compared(content: Mapping[str, Any]) -> Table:
    """The table of a comparison, as `compare` has computed it."""
    metric, baseline = content["metric"], content["baseline"]
    rows = []
    for one in content["rows"]:
        found = (one["scores"] or {}).get(metric) or {}
        mean, sd = found.get("mean"), found.get("sd")
        value = Cell(NONE)
        if mean is not None:
            value = Cell(f"{100 * mean:.1f}" + (f" ± {100 * sd:.1f}" if sd else ""), mean)
        apart = (one.get("minus_baseline") or {}).get(metric)
        shown: tuple[Cell, ...] = cells(NONE, NONE, NONE)
        if apart:
            nan = math.nan
            low, high = (nan if apart[end] is None else apart[end] for end in ("low", "high"))
            p = nan if apart["p"] is None else apart["p"]
            shown = (
                interval(Interval(apart["mean"], low, high), "+"),
                probability(p),
                *cells(f"{apart['wins']}/{apart['n']}"),
            )
        seeds = list(one["seeds"].values())
        steps = [seed.get("steps") for seed in seeds]
        mean_steps = Cell(NONE) if None in steps else Cell(f"{fmean(steps):.0f}", fmean(steps))
        unlike = ", ".join(content.get("legend", {}).get(m, m) for m in one["unlike_baseline"])
        runs = tuple(
            str(seed["folder"]).replace("\\", "/").rpartition("/")[2]
            for seed in seeds
            if seed.get("folder")
        )
        line = cells(one["title"], len(seeds))
        rows.append(Row((*line, value, *shown, mean_steps, Cell(unlike or NONE)), runs, "ours"))
    columns = (
        "experiment",
        "seeds",
        metric,
        "difference",
        "p",
        "wins",
        "steps",
        "unlike the baseline",
    )
    notes = (
        f"As python -m rbft compare has computed it; differences are to {baseline}, paired by "
        "seed, with the 95 % interval.",
    )
    return Table(f"Comparison with {baseline}", columns, tuple(rows), notes)


def _pairs(groups: Sequence[Group], conditions: Conditions) -> list[tuple[Group, Group]]:
    """Every two groups that were scored alike, Direct-SFT second where one of the two is that."""
    found = []
    for place, one in enumerate(groups):
        for other in groups[place + 1 :]:
            a, b = one.finals[0], other.finals[0]
            if not conditions.alike(a, b) or None in (a.scored, b.scored):
                continue
            swap = one.runs[0].stages == DIRECT != other.runs[0].stages
            swap = swap or (not one.runs[0].stages and bool(other.runs[0].stages))
            found.append((other, one) if swap else (one, other))
    return found


def _seed_row(a: Group, b: Group, conditions: Conditions) -> Row:
    """The paired difference over seeds."""
    found, order = {}, list(a.seeds)
    for metric in ("accuracy", "f1/macro"):
        sides = []
        for group in (a, b):
            scores = [one.score(metric) for one in group.finals]
            sides.append(
                {order.index(seed): v for seed, v in zip(group.seeds, scores, strict=True)}
            )
        if any(value is None for side in sides for value in side.values()):
            found[metric] = None
        else:
            found[metric] = paired_difference(*sides)
    shown = [
        Cell(NONE) if one is None else interval(Interval(one.mean, one.low, one.high), "+")
        for one in found.values()
    ]
    over = found["accuracy"]
    letter = conditions.of(a.finals[0]).letter
    line = cells(a.title, b.title, letter, f"{len(a.runs)} seeds")
    p = Cell(NONE) if over is None else probability(over.p)
    return Row((*line, *shown, p), a.names + b.names, "ours")


def _clip_row(a: Result, b: Result, names: tuple[str, ...], conditions: Conditions) -> Row:
    found = _pair(a, b)
    letter = conditions.of(a).letter
    titles = (a.run, b.run) if a.run != b.run else (f"{a.run}: {a.title}", f"{b.title}")
    line = cells(*titles, letter, f"{found.n} clips")
    shown = (interval(found.accuracy, "+"), interval(found.macro_f1, "+"), probability(found.p))
    return Row((*line, *shown), tuple(dict.fromkeys(names)), "ours")


def _pair(a: Result, b: Result) -> PairedComparison:
    assert a.scored is not None
    assert b.scored is not None
    return compare_pair(a.scored, b.scored)


def _steps(run: GatheredRun, conditions: Conditions) -> list[Row]:
    """Each step of a run against the one before it."""
    own = {one.place: one for one in run.results if one.masking is None and one.file.stem == "test"}
    order = [own[place] for place in ("zero_shot", *run.stages) if place in own]
    return [
        _clip_row(after, before, (run.name,), conditions)
        for before, after in pairwise(order)
        if conditions.alike(before, after) and None not in (before.scored, after.scored)
    ]


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
    return [_pair(one, whole) for one in repeats if one.scored is not None]


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
        found = [_pair(objects[0], one) for one in usable]
        title = (place, kind)
        rows.append(_effect_row(run.name, title, random, objects[0], found, "as much at random"))
    return rows
