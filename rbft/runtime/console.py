"""Text for the terminal, and the run's log file: lines and tables of the first process only."""

import logging
import sys
import time
import unicodedata
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TextIO

COLUMNS = 80  # of a terminal
REPORT = "This looks like a fault of rbft, not of yours: report it with this traceback and"

_log: TextIO | None = None
# What was said before a run's folder was known; the run's log begins with it.
_early: deque[str] = deque(maxlen=200)


def print_rank_zero(text: str) -> None:
    """Prints a line or a table; characters that the terminal has not become question marks."""
    if "torch" not in sys.modules:  # a command of one process, which is not made to wait for it
        _write(text)
        return
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    rank_zero_only(_write)(text)


def _write(text: str) -> None:
    note(text)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    with _beside_a_bar():
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")
        sys.stdout.flush()


def _beside_a_bar() -> Any:
    """Takes progress lines off the terminal while something else is written to it."""
    library = sys.modules.get("tqdm.std")
    return nullcontext() if library is None else library.tqdm.external_write_mode(file=sys.stdout)


def note(text: str) -> None:
    """Writes into the run's log file, not to the screen; kept for it where none is open yet."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    lines = "".join(f"{stamp}  {line}\n" for line in text.splitlines())
    if _log is None:
        _early.append(lines)
        return
    with suppress(OSError):  # a full disk: the run itself says so where it matters
        _log.write(lines)
        _log.flush()


@contextmanager
def logged_to(file: Path, title: str, explain: Callable[[BaseException], str]) -> Iterator[None]:
    """Adds everything that is said in the block to a file, each line with its time.

    Warnings of libraries stand there too. What was said before the block in this process comes
    first.

    Args:
        file: The log file; its folder is made.
        title: The first line.
        explain: What is said of an exception that ends the block.
    """
    global _log
    early = [*_early]
    _early.clear()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        _log = file.open("a", encoding="utf-8", errors="backslashreplace")
    show = warnings.showwarning

    def shown(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        note(f"{category.__name__}: {message}")
        show(message, category, *rest, **more)

    warnings.showwarning = shown
    root, kept = logging.getLogger(), _Kept(logging.WARNING)
    root.addHandler(kept)
    try:
        note(title)
        if _log is not None:
            with suppress(OSError):
                _log.writelines(early)
        yield
    except BaseException as error:
        note(explain(error))
        raise
    finally:
        warnings.showwarning = show
        root.removeHandler(kept)
        if _log is not None:
            with suppress(OSError):
                _log.close()
        _log = None
        _early.clear()


class _Kept(logging.Handler):
    """Writes what modules log into the run's log file, and to the screen where nobody else does."""

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a record."""
        said = f"{record.levelname.lower()}: {record.getMessage()}"
        note(said)
        if logging.getLogger().handlers == [self]:
            with _beside_a_bar():
                sys.stderr.write(f"{said}\n")


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
