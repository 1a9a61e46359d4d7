"""A table before it is HTML or Markdown, and how figures are written in one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rbft.analysis.intervals import Interval
from rbft.report.results import Result

NONE = "-"


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: What it shows.
        value: What it is sorted by where that is not its text.
    """

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        cells: One for each column.
        runs: Names of the runs that it is about; none for rows that no filter hides.
        kind: "paper", "ours", "majority" or empty; how it looks.
    """

    cells: tuple[Cell, ...]
    runs: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: Its heading.
        columns: Titles of the columns.
        rows: The rows.
        notes: Sentences below it.
        sortable: Whether a reader may order it by a column; rows that belong together stay so.
        folded: Whether it is shown only when asked for.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    sortable: bool = True
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """Tables that belong together.

    Attributes:
        key: Short name, part of links.
        title: Its heading.
        tables: The tables.
        about: A sentence or two on how to read them.
    """

    key: str
    title: str
    tables: tuple[Table, ...] = ()
    about: str = ""
    notes: tuple[str, ...] = field(default=())


def cells(*texts: Any) -> tuple[Cell, ...]:
    """Cells of texts and numbers as they are; None is a dash."""
    return tuple(
        one
        if isinstance(one, Cell)
        else Cell(NONE)
        if one is None
        else Cell(str(one), float(one) if isinstance(one, int | float) else None)
        for one in texts
    )


def score(result: Result, metric: str) -> Cell:
    """A score in per cent with its interval, "71.3 [66.0, 76.1]".

    Args:
        result: Has both.
        metric: `accuracy`, `f1/<class>` or `f1/macro`.
    """
    value, ends = result.score(metric), result.intervals.get(metric) or {}
    if value is None:
        return Cell(NONE)
    text = f"{100 * value:.1f}"
    if ends.get("low") is not None:
        text += f" [{100 * ends['low']:.1f}, {100 * ends['high']:.1f}]"
    return Cell(text, value)


def interval(found: Interval, sign: str = "") -> Cell:
    """A figure with its interval in per cent; a dash where it is undefined."""
    if math.isnan(found.value):
        return Cell(NONE)
    if math.isnan(found.low):
        return Cell(f"{100 * found.value:{sign}.1f}", found.value)
    return Cell(found.percent(1, sign), found.value)


def percent(value: float | None, decimals: int = 1) -> Cell:
    """A share in per cent; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return Cell(NONE)
    return Cell(f"{100 * value:.{decimals}f}", value)


def probability(value: float) -> Cell:
    """P of a test."""
    if math.isnan(value):
        return Cell(NONE)
    return Cell("<0.001" if value < 0.001 else f"{value:.3f}", value)


def metric_title(metric: str) -> str:
    """A metric as a column's title."""
    return f"F1 {metric[3:]}" if metric.startswith("f1/") else metric


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
