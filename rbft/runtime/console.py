"""Text for the terminal: tables and lines, printed by the first process only."""

import sys
import unicodedata
from collections.abc import Sequence


def print_rank_zero(text: str) -> None:
    """Prints a line or a table; characters that the terminal has not become question marks."""
    # Here, since it imports torch, which takes seconds and is not needed to make tables.
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    rank_zero_only(_write)(text)


def _write(text: str) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")
    sys.stdout.flush()


def table(rows: Sequence[Sequence[str]], headers: Sequence[str], align: str | None = None) -> str:
    """A plain table with rules of hyphens, which every terminal and log file has.

    Args:
        rows: Cells, one for each header.
        headers: Column titles.
        align: One letter a column, "l" or "r". None puts the first column left, the others right.

    Returns:
        Lines without trailing blanks, no line break at the end.
    """
    sides = align or "l" + "r" * (len(headers) - 1)
    lines = [headers, *rows]
    columns = list(zip(*lines, strict=True))
    widths = [max(map(width, column)) for column in columns]

    def line(cells: Sequence[str]) -> str:
        padded = []
        for cell, size, side in zip(cells, widths, sides, strict=True):
            space = " " * (size - width(cell))
            padded.append(cell + space if side == "l" else space + cell)
        return "  ".join(padded).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([rule, line(headers), rule, *map(line, rows), rule])


def width(text: str) -> int:
    """Columns that the text takes in a terminal: two for wide East Asian characters and emoji."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )
