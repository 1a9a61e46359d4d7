"""Text for the terminal: tables and lines, printed by the first process only."""

import sys
from collections.abc import Sequence

from lightning.pytorch.utilities.rank_zero import rank_zero_only


@rank_zero_only
def say(text: str) -> None:
    """Prints a line or a table."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """A plain table: the first column left, the others right.

    Args:
        rows: Cells.
        headers: One for each column.
    """
    cells = [list(headers), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        first, *others = row
        return "  ".join(
            [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]
        ).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([rule, line(cells[0]), rule, *(line(row) for row in cells[1:]), rule])
