"""The table of a comparison, and the same figures for files."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rbft.analysis.paired import PairedComparison, compare_pair
from rbft.analysis.seeds import SeedDifference, paired_difference, summary
from rbft.commands.compared_runs import LEGEND, ComparedRow
from rbft.runtime.console import table, width

WIDEST = 80  # columns of a terminal
NARROWEST = 12  # columns of a title, before figures are left out


@dataclass(frozen=True)
class Difference:
    """What a row differs from the baseline in its score, as shares.

    Attributes:
        mean: Mean difference over seeds.
        low: Lower end of the 95 % interval.
        high: Upper end.
        p: Two-sided.
        wins: Seeds in which the row is above the baseline.
        n: Number of seeds.
    """

    mean: float
    low: float
    high: float
    p: float
    wins: int
    n: int


def difference(row: ComparedRow, baseline: ComparedRow, metric: str) -> Difference:
    """A row minus the baseline: over seeds, or over clips where there is one seed.

    Args:
        row: A row.
        baseline: What it is compared with.
        metric: `accuracy`, `f1/macro` or `f1/<class>`.
    """
    a, b = ({seed: one.scores[metric] for seed, one in of.seeds.items()} for of in (row, baseline))
    over: SeedDifference = paired_difference(a, b)
    if over.n > 1:
        return Difference(over.mean, over.low, over.high, over.p, over.wins, over.n)
    low = high = p = math.nan
    if metric in ("accuracy", "f1/macro"):
        (seed,) = a
        found: PairedComparison = compare_pair(row.seeds[seed].clips, baseline.seeds[seed].clips)
        interval = found.accuracy if metric == "accuracy" else found.macro_f1
        low, high = interval.low, interval.high
        p = found.p if metric == "accuracy" else math.nan
    return Difference(over.mean, low, high, p, over.wins, over.n)


def comparison_table(rows: Sequence[ComparedRow], baseline: ComparedRow, metric: str) -> str:
    """The table and its legend, no line wider than a terminal.

    Args:
        rows: All of them, the baseline among them.
        baseline: One of the rows.
        metric: `accuracy`, `f1/macro` or `f1/<class>`.
    """
    on_gpu = any(
        one.total is not None and one.total.gpu_seconds
        for row in rows
        for one in row.seeds.values()
    )
    headers = [metric, "difference", "p", "wins", "steps", "GPU h" if on_gpu else "CPU h", "tokens"]
    lines = [_cells(row, baseline, metric, on_gpu) for row in rows]
    majority = [one.scores["majority"] for one in baseline.seeds.values()]
    lines.append([_spread(majority), *[""] * (len(headers) - 1)])
    left_out = []
    while (room := _room(headers, lines)) < NARROWEST:
        left_out.append(headers.pop())
        lines = [line[:-1] for line in lines]
    shown = _titles(rows, room)
    titles = [*shown, "majority class"]
    made = table(
        [[title, *line] for title, line in zip(titles, lines, strict=True)], ["", *headers]
    )
    whole = [f"{short}: {row.title}" for short, row in zip(shown, rows, strict=True)]
    whole = whole if shown[0].startswith("1 ") else []
    legend = [*whole, *_legend(rows, baseline, left_out)]
    return "\n".join([made, *(_shortened(line, WIDEST) for line in legend)])


def f1_table(rows: Sequence[ComparedRow]) -> str:
    """Macro F1 and F1 of each class, in per cent, as many classes as fit in a terminal.

    Args:
        rows: All of them.
    """
    (*_, first) = rows[0].seeds.values()
    names = ["f1/macro", *(f"f1/{name}" for name in first.clips.classes)]
    headers = [f"F1 {name[3:]}" for name in names]
    lines = [
        [_spread([one.scores[name] for one in row.seeds.values()]) for name in names]
        for row in rows
    ]
    hidden = 0
    while (room := _room(headers, lines)) < NARROWEST and len(headers) > 1:
        headers, lines, hidden = headers[:-1], [line[:-1] for line in lines], hidden + 1
    shown = _titles(rows, room)
    made = table([[title, *line] for title, line in zip(shown, lines, strict=True)], ["", *headers])
    return f"{made}\n{hidden} more classes stand in the files." if hidden else made


def as_dict(rows: Sequence[ComparedRow], baseline: ComparedRow, metric: str) -> dict[str, Any]:
    """All figures for JSON: per row and seed, and over seeds.

    Args:
        rows: All of them.
        baseline: One of the rows.
        metric: The metric of the table.
    """
    made = []
    for row in rows:
        names = [name for name in next(iter(row.seeds.values())).scores if name != "majority"]
        over = {name: summary([one.scores[name] for one in row.seeds.values()]) for name in names}
        apart = None
        if row is not baseline:
            both = [name for name in names if name in next(iter(baseline.seeds.values())).scores]
            apart = {name: _plain(vars(difference(row, baseline, name))) for name in both}
        made.append(
            {
                "title": row.title,
                "source": row.source,
                **row.notes,
                "unlike_baseline": list(row.unlike(baseline)) if row is not baseline else [],
                "scores": {name: one.as_dict() for name, one in over.items()},
                "minus_baseline": apart,
                "seeds": {str(seed): _of_seed(one) for seed, one in row.seeds.items()},
            }
        )
    return {"baseline": baseline.title, "metric": metric, "legend": LEGEND, "rows": made}


def as_csv(rows: Sequence[ComparedRow]) -> str:
    """A line for each row and seed.

    Args:
        rows: All of them.
    """
    stream, lines = io.StringIO(), []
    for row in rows:
        for seed, one in row.seeds.items():
            figures = {k: v for k, v in _of_seed(one).items() if k not in ("scores", "spent")}
            total = one.total
            spent = {} if total is None else vars(total)
            lines.append({"title": row.title, "seed": seed, **one.scores, **figures, **spent})
    columns = dict.fromkeys(name for line in lines for name in line)
    writer = csv.DictWriter(stream, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def _cells(row: ComparedRow, baseline: ComparedRow, metric: str, on_gpu: bool) -> list[str]:
    runs = list(row.seeds.values())
    score = _spread([one.scores[metric] for one in runs])
    if row is baseline:
        compared = ["", "", ""]
    else:
        found = difference(row, baseline, metric)
        compared = [_apart(found), _p(found.p), f"{found.wins}/{found.n}"]
    steps, tokens = [one.steps for one in runs], [one.tokens for one in runs]
    marks = row.unlike(baseline)
    shown = "-" if None in steps else f"{fmean(steps):.0f}"  # type: ignore[arg-type]
    if marks:
        shown = f"{shown} {marks}"
    totals = [one.total for one in runs]
    hours = "-"
    if None not in totals:
        kind = "gpu_seconds" if on_gpu else "processor_seconds"
        hours = _number(fmean(getattr(total, kind) for total in totals) / 3600)
    wrote = "-" if None in tokens else _thousands(fmean(tokens))  # type: ignore[arg-type]
    return [score, *compared, shown, hours, wrote]


def _legend(
    rows: Sequence[ComparedRow], baseline: ComparedRow, left_out: Sequence[str]
) -> list[str]:
    seeds = len(baseline.seeds)
    how = (
        f"over {seeds} seeds, with half the 95 % t interval; p of the paired t test"
        if seeds > 1
        else "of one seed, with the paired bootstrap's 95 % interval; McNemar's p"
    )
    lines = [f"difference: to {baseline.title}", f"  {how}."]
    marks = {mark for row in rows for mark in row.unlike(baseline)}
    if marks:
        lines.append("unlike the baseline, so that more than the method differs:")
        lines += [f"  {mark}: {text}" for mark, text in LEGEND.items() if mark in marks]
    lines.append("steps, hours and tokens: mean over seeds, all stages; a dash is unknown.")
    for row in rows:
        if all(one.folder is None for one in row.seeds.values()):
            lines.append(f"{row.title}: answers from {row.source}")
    if left_out:
        lines.append(f"no room for: {', '.join(reversed(left_out))}; they stand in the files.")
    return lines


def _of_seed(one: Any) -> dict[str, Any]:
    return {
        "scores": _plain(one.scores),
        "steps": one.steps,
        "clips_seen": one.seen,
        "epochs": one.epochs,
        "tokens": one.tokens,
        "spent": None if one.spent is None else {k: vars(v) for k, v in one.spent.items()},
        "clips": one.clips.digest,
        "folder": None if one.folder is None else str(one.folder),
    }


def _plain(figures: dict[str, Any]) -> dict[str, Any]:
    """For JSON: null instead of NaN."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in figures.items()
    }


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation in per cent."""
    if any(math.isnan(value) for value in values):
        return "-"
    found = summary(values)
    return f"{100 * found.mean:.1f}" + (f"±{100 * found.sd:.1f}" if found.n > 1 else "")


def _apart(found: Difference) -> str:
    """A difference in points: with half the interval over seeds, with its ends over clips."""
    if math.isnan(found.mean):
        return "-"
    text = f"{100 * found.mean:+.1f}"
    if math.isnan(found.low):
        return text
    if found.n > 1:
        return f"{text}±{50 * (found.high - found.low):.1f}"
    return f"{text} [{100 * found.low:+.1f},{100 * found.high:+.1f}]"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "<.001" if value < 0.001 else f"{value:.3f}"


def _number(value: float) -> str:
    return f"{value:.2g}" if value < 1 else f"{value:.3g}"


def _thousands(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"


def _room(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> int:
    """Columns that are left for titles."""
    widths = [max(map(width, column)) for column in zip(headers, *lines, strict=True)]
    return WIDEST - sum(widths) - 2 * len(widths)


def _titles(rows: Sequence[ComparedRow], room: int) -> list[str]:
    """Titles that fit; with numbers, where those of two rows would be the same otherwise."""
    shown = [_shortened(row.title, room) for row in rows]
    if len(set(shown)) == len(shown):
        return shown
    return [f"{n} {_shortened(row.title, room - 3)}" for n, row in enumerate(rows, start=1)]


def _shortened(text: str, most: int) -> str:
    """The text, its middle left out where it is too wide: names often differ at their ends."""
    if width(text) <= most:
        return text
    head, tail = list(text[: len(text) // 2]), list(text[len(text) // 2 :])
    while width("".join(head)) + width("".join(tail)) + 2 > most:
        if width("".join(head)) >= width("".join(tail)):
            head.pop()
        else:
            tail.pop(0)
    return f"{''.join(head)}..{''.join(tail)}"
