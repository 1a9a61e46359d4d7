"""Tables of scores: every result, over seeds, differences on the same clips."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean

import numpy as np

from rbft.analysis.intervals import Cells, Interval
from rbft.analysis.levels import LEVEL_SCORES, TITLES, constant_scores
from rbft.analysis.paired import PairedComparison, compare_pair
from rbft.analysis.seeds import SeedDifference, paired_difference, summary
from rbft.report.comparison import compared_table
from rbft.report.conditions import Conditions
from rbft.report.gather import Gathered, GatheredRun
from rbft.report.groups import Group, seeds_of
from rbft.report.results import Result
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
    tables = [Table("What there is", columns, tuple(rows), (BRACKETS,))]
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
        notes = (BRACKETS, *clips_notes(conditions, results))
        tables.append(Table(f"Classes {', '.join(classes)}", columns, tuple(rows), notes))
        tables += _level_tables([one for one in results if one.levels], conditions)
    about = (
        "In per cent. An answer that is no class counts as wrong; coverage is the share of others."
    )
    return Section("scores", "Scores", tuple(tables), about)


def _level_tables(results: Sequence[Result], conditions: Conditions) -> list[Table]:
    """Errors on the scale of the classes, a table for each scale."""
    tables = []
    for levels in dict.fromkeys(one.levels for one in results):
        own = [one for one in results if one.levels == levels]
        rows = [
            Row(
                (
                    *cells(one.run, _step(one), one.split, conditions.of(one).letter, one.n),
                    percent(one.coverage),
                    *(_figure(one.score(name), one.intervals.get(name)) for name in LEVEL_SCORES),
                ),
                (one.run,),
                "ours",
            )
            for one in own
        ]
        for condition in conditions.used(own):
            counts = [*condition.first.content["classes"].values()]
            median = constant_scores(levels, counts)
            line = cells("median level", None, condition.first.split, condition.letter, sum(counts))
            figures = (_figure(median[name]) for name in LEVEL_SCORES)
            rows.append(Row((*line, percent(1.0), *figures)))
        titles = (TITLES[name] for name in LEVEL_SCORES)
        columns = ("run", "step", "split", "clips", "n", "coverage %", *titles)
        scale = ", ".join(f"{name} {value:g}" for name, value in own[0].content["values"].items())
        about = (
            f"In the unit of the scale ({scale}). MAE is the mean absolute error of the value that "
            "the class probabilities expect, Spearman its rank correlation with the label's; clips "
            "without an answer have none. The median level errs least of all constant answers. In "
            "brackets: 95 % interval of the bootstrap over clips.",
        )
        title = f"Levels {min(levels):g} to {max(levels):g}: {', '.join(own[0].classes)}"
        tables.append(Table(title, columns, tuple(rows), about))
    return tables


def _figure(value: float | None, ends: Mapping[str, float | None] | None = None) -> Cell:
    if value is None or math.isnan(value):
        return Cell(NONE)
    text = f"{value:.3f}"
    if ends is not None and ends["low"] is not None:
        text += f" [{ends['low']:.3f}, {ends['high']:.3f}]"
    return Cell(text, value)


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
            *clips_notes(conditions, finals),
        )
        tables.append(Table(f"Over seeds: {', '.join(classes)}", columns, tuple(rows), notes))
    tables += [compared_table(one) for one in gathered.comparisons.values()]
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
        of_a, of_b = (dict(zip(one.seeds, one.finals, strict=True)) for one in (a, b))
        common = [seed for seed in of_a if seed in of_b]
        if len(common) > 1:
            rows.append(_seed_row(a, b, common, conditions))
        else:
            one, other = a.finals[0], b.finals[0]
            if common:
                one, other = of_a[common[0]], of_b[common[0]]
            rows.append(_clip_row(one, other, (one.run, other.run), conditions))
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
        *clips_notes(conditions, results),
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


def _step(result: Result) -> str:
    own = result.split
    return result.title + (f" ({result.file.stem})" if result.file.stem != own else "")


def clips_notes(conditions: Conditions, results: Sequence[Result]) -> list[str]:
    """What the letters of the column "clips" stand for.

    Args:
        conditions: The ways in which results were scored.
        results: Those of the table.
    """
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
    low, high = max(0.0, over.low), min(1.0, over.high)  # a share, however few seeds there are
    return Cell(f"{text} [{100 * low:.1f}, {100 * high:.1f}]", found.mean)


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


def _seed_row(a: Group, b: Group, common: Sequence[str], conditions: Conditions) -> Row:
    """The paired difference over the seeds that both have."""
    sides = [dict(zip(group.seeds, group.finals, strict=True)) for group in (a, b)]
    results = [[side[seed] for seed in common] for side in sides]
    shown, p = [], Cell(NONE)
    for metric in ("accuracy", "f1/macro"):
        values = [[one.score(metric) for one in of_side] for of_side in results]
        known = [[one for one in of_side if one is not None] for of_side in values]
        if min(map(len, known)) < len(common):
            shown.append(Cell(NONE))
            continue
        found = paired_difference(dict(enumerate(known[0])), dict(enumerate(known[1])))
        shown.append(interval(Interval(found.mean, found.low, found.high), "+"))
        if metric == "accuracy":
            p = probability(found.p)
    letter = conditions.of(results[0][0]).letter
    seeds = f"{len(common)} seeds ({', '.join(common)})"
    names = tuple(one.run for of_side in results for one in of_side)
    return Row((*cells(a.title, b.title, letter, seeds), *shown, p), names, "ours")


def _clip_row(a: Result, b: Result, names: tuple[str, ...], conditions: Conditions) -> Row:
    found = pair(a, b)
    letter = conditions.of(a).letter
    titles = (a.run, b.run) if a.run != b.run else (f"{a.run}: {a.title}", f"{b.title}")
    line = cells(*titles, letter, f"{found.n} clips")
    shown = (interval(found.accuracy, "+"), interval(found.macro_f1, "+"), probability(found.p))
    return Row((*line, *shown), tuple(dict.fromkeys(names)), "ours")


def pair(a: Result, b: Result) -> PairedComparison:
    """A - B on the same clips, both with their answers."""
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
