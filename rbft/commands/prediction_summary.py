"""What `predict` shows at its end: the first rows, and what failed."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rbft.analysis.multilabel import LABELS
from rbft.runtime.console import COLUMNS, table, width

SHOWN = 5  # rows, and failures
LONGEST_CLASS = 24


def first_rows(rows: Sequence[Mapping[str, Any]], model: str) -> str:
    """A table of the first predictions, and whose they are.

    Args:
        rows: Rows of a file of predictions, those with an error among them.
        model: Which weights made them.
    """
    good = [row for row in rows if "error" not in row][:SHOWN]
    cells = []
    for row in good:
        if LABELS in row:
            found = ", ".join(row[LABELS]) or "(none of the classes)"
            shares = (f"{row['probabilities'][name]:.4f}" for name in row[LABELS])
            where = _relative(row["path"]) + _seconds(row)
            cells.append([where, shorten(found, LONGEST_CLASS), ", ".join(shares)])
            continue
        share = row.get("probabilities", {}).get(row["label"])
        label = "(no class)" if row["label"] is None else row["label"]
        shown = "" if share is None else f"{share:.4f}"
        cells.append([_relative(row["path"]) + _seconds(row), shorten(label, LONGEST_CLASS), shown])
    headers = ["video", "class", "probability"]
    taken = sum(max(width(cell[n]) for cell in [headers, *cells]) for n in (1, 2)) + 4
    cells = [[shorten(cell[0], COLUMNS - taken), *cell[1:]] for cell in cells]
    first, *more = f"Weights: {model}".splitlines()
    whose = [shorten(line, COLUMNS) for line in (first, *(f"         {line}" for line in more))]
    return "\n".join([*whose, table(cells, headers, "llr")])


def failures(rows: Sequence[Mapping[str, Any]], what: str = "videos") -> str:
    """Which videos could not be predicted, and why; empty where all could.

    Args:
        rows: Rows of a file of predictions.
        what: What a row is about.
    """
    failed = [row for row in rows if "error" in row]
    if not failed:
        return ""
    lines = [f"{len(failed)} of {len(rows)} {what} could not be predicted:"]
    for row in failed[:SHOWN]:
        lines += textwrap.wrap(
            row["error"],
            COLUMNS,
            initial_indent="  ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    if len(failed) > SHOWN:
        lines.append(f"  and {len(failed) - SHOWN} more: see `error` in the file.")
    return "\n".join(lines)


def shorten(text: str, columns: int) -> str:
    """The text, or beginning and end of it within so many columns of the screen.

    Args:
        text: Any text.
        columns: At least 5.
    """
    if width(text) <= columns:
        return text
    end = (columns - 3) * 2 // 3  # the end of a path tells more than its beginning
    return f"{_fit(text, columns - 3 - end)}...{_fit(text[::-1], end)[::-1]}"


def _fit(text: str, columns: int) -> str:
    """As much of the text's beginning as fits."""
    taken = 0
    for place, letter in enumerate(text):
        taken += width(letter)
        if taken > columns:
            return text[:place]
    return text


def _seconds(row: Mapping[str, Any]) -> str:
    """Which seconds of the file a row is about; empty where it is about all of it."""
    return f", {row['start']:.10g} to {row['end']:.10g} s" if "end" in row else ""


def _relative(path: str) -> str:
    """A path from here, where that is shorter."""
    here = Path.cwd()
    found = Path(path)
    return str(found.relative_to(here)) if found.is_relative_to(here) else path
