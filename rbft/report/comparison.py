"""What `compare` has left, as a table."""

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from rbft.analysis.intervals import Interval
from rbft.report.results import has_numbers
from rbft.report.tables import NONE, Cell, Row, Table, cells, interval, probability


def is_comparison(content: Mapping[str, Any]) -> bool:
    """Whether it is what `compare` writes, as far as the table shows it.

    Args:
        content: Of a file.
    """
    rows, metric, legend = (content.get(name) for name in ("rows", "metric", "legend"))
    if not isinstance(content.get("baseline"), str) or not isinstance(metric, str):
        return False
    if not isinstance(rows, list) or not isinstance(legend, dict):
        return False
    if not all(isinstance(text, str) for text in legend.values()):
        return False
    return all(isinstance(row, dict) and _is_row(row, metric) for row in rows)


def _is_row(row: Mapping[str, Any], metric: str) -> bool:
    seeds, scores, apart = (row.get(name) for name in ("seeds", "scores", "minus_baseline"))
    unlike = row.get("unlike_baseline")
    if not isinstance(row.get("title"), str) or not isinstance(unlike, list):
        return False
    if not all(isinstance(mark, str) for mark in unlike):
        return False
    if not isinstance(seeds, dict) or not seeds or not isinstance(scores, dict):
        return False
    if not all(
        has_numbers(one, ("steps",), none=True) and isinstance(one.get("folder"), str | None)
        for one in seeds.values()
    ):
        return False
    if not has_numbers(scores.get(metric, {}), ("mean", "sd"), none=True):
        return False
    if apart is None:
        return True
    found = apart.get(metric, {}) if isinstance(apart, dict) else None
    return found == {} or (
        has_numbers(found, ("mean", "wins", "n"))
        and has_numbers(found, ("low", "high", "p"), none=True)
    )


def compared_table(content: Mapping[str, Any]) -> Table:
    """The table of a comparison, as `compare` has computed it.

    Args:
        content: What it has written, see `is_comparison`.
    """
    metric, baseline = content["metric"], content["baseline"]
    rows = []
    for one in content["rows"]:
        found = (one["scores"] or {}).get(metric) or {}
        mean, sd = found.get("mean"), found.get("sd")
        value = Cell(NONE)
        if mean is not None:
            value = Cell(f"{100 * mean:.1f}" + (f" ± {100 * sd:.1f}" if sd else ""), float(mean))
        apart = (one.get("minus_baseline") or {}).get(metric)
        shown: tuple[Cell, ...] = cells(NONE, NONE, NONE)
        if apart:
            low, high, p = (
                math.nan if apart.get(name) is None else float(apart[name])
                for name in ("low", "high", "p")
            )
            shown = (
                interval(Interval(float(apart["mean"]), low, high), "+"),
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
