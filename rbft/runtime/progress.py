"""How far a long step is: one line on a terminal, elsewhere a plain line now and then."""

import math
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from rbft.runtime.console import note, width

REDRAWN = 0.2  # seconds between two looks of the line on a terminal
PLAIN = 10  # plain lines of a step, as far as they are so far apart:
APART = 5.0  # seconds
LONGEST = 60.0  # seconds without a plain line
BAR = 10  # columns of the bar, where there is room for it
T = TypeVar("T")

# What a line says, each with the order in which it is left out where the terminal is too narrow;
# 0 stays.
Facts = Sequence[tuple[str, int]]


class ProgressLine:
    """A line that is drawn anew on a terminal, and written now and then into files and logs.

    Args:
        title: What is going on, "Stage I (rationales)"; what stands in brackets is left out where
            the terminal is narrow.
        total: Steps to do.
        done: Steps that are done already.
        shown: Whether it is shown; the run's log file has the plain lines in any case.
        stream: Where it is shown, a text file; None takes standard error.
    """

    def __init__(
        self,
        title: str,
        total: int,
        done: int = 0,
        *,
        shown: bool = True,
        stream: Any = None,
    ) -> None:
        self.title, self.total, self.done, self.shown = title, total, done, shown
        self.stream = sys.stderr if stream is None else stream
        self.drawn, self.written, self.closed = -math.inf, -math.inf, False
        self.bar: Any = None
        if shown and self.stream.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=total,
                initial=done,
                file=self.stream,
                bar_format="{desc}",
                leave=True,
                nrows=20,  # a terminal that does not know its height has none, and gets no bars
            )

    def say(self, text: str) -> None:
        """Shows on a terminal what is going on before and between steps: "loading weights"."""
        if self.bar is not None:
            self._draw([(text, 0)])

    def update(self, done: int, facts: Callable[[], Facts]) -> None:
        """Notes how far it is, and shows it if it is time to.

        Args:
            done: Steps that are done.
            facts: Gives what the line says; called only where it is shown.
        """
        now = time.monotonic()
        every = max(1, math.ceil(self.total / PLAIN))
        crossed = done // every > self.done // every
        self.done = done
        if self.bar is not None and now - self.drawn >= REDRAWN:
            self.bar.n, self.drawn = min(done, self.total), now
            self._draw(facts())
        since = now - self.written
        if since >= LONGEST or (crossed and since >= APART):
            self.written = now
            self._write(facts())

    def close(self, facts: Facts = ()) -> None:
        """Ends the line.

        Args:
            facts: What it says in the end; without, what it said last stays.
        """
        if self.closed:
            return
        self.closed = True
        if facts:
            self._write(facts)
        if self.bar is not None:
            if facts:
                self.bar.n = self.total
                self._draw(facts)
            self.bar.close()

    def _write(self, facts: Facts) -> None:
        line = f"{self.title}: {', '.join(text for text, _ in facts)}"
        note(line)
        if self.shown and self.bar is None:
            encoding = getattr(self.stream, "encoding", None) or "utf-8"
            self.stream.write(line.encode(encoding, "replace").decode(encoding) + "\n")
            self.stream.flush()

    def _draw(self, facts: Facts) -> None:
        room = shutil.get_terminal_size().columns - 1
        text = fitted(self.title, facts, room)
        wide = width(text) + BAR + 1 <= room
        self.bar.bar_format = f"{{bar:{BAR}}} {{desc}}" if wide else "{desc}"
        self.bar.set_description_str(text, refresh=True)


def fitted(title: str, facts: Facts, room: int) -> str:
    """A line of at most so many columns, as far as leaving out what may be left out does it.

    Args:
        title: What is going on.
        facts: What is said of it.
        room: Columns.
    """
    left = list(facts)
    text = f"{title}: {', '.join(one for one, _ in left)}"
    if width(text) > room:
        title = title.partition(" (")[0]
        text = f"{title}: {', '.join(one for one, _ in left)}"
    for order in sorted({order for _, order in facts if order}):
        if width(text) <= room:
            break
        left = [fact for fact in left if fact[1] != order]
        text = f"{title}: {', '.join(one for one, _ in left)}"
    while width(text) > room:
        text = text[:-1]
    return text


def track(
    items: Iterable[T],
    title: str,
    total: int,
    unit: str,
    *,
    shown: bool = True,
    delay: float = 2.0,
    more: Callable[[], str] | None = None,
) -> Iterator[T]:
    """Passes items on and shows how many there were.

    Args:
        items: What is worked on, one after the other.
        title: What is done with them: "Scanning videos".
        total: Number of items.
        unit: What one is: "clip".
        shown: Whether it is shown.
        delay: Seconds of which nothing is shown, since little work needs no line.
        more: Gives what else is said.
    """
    started, line, done = time.monotonic(), None, 0
    try:
        for done, item in enumerate(items, 1):
            yield item
            passed = time.monotonic() - started
            if line is None and (passed < delay or not shown):
                continue
            line = line or ProgressLine(title, total, done - 1)
            said = more() if more is not None else ""
            line.update(done, partial(_counted, done, total, unit, passed, said))
        if line is not None:
            line.close([(f"{done} {unit}s in {clock(time.monotonic() - started)}", 0)])
    finally:
        if line is not None:
            line.close()


def _counted(done: int, total: int, unit: str, passed: float, said: str) -> Facts:
    left = clock((total - done) * passed / done)
    facts = [(f"{done}/{total} {unit}s", 0), (f"{speed(done / passed)} {unit}s/s", 2), (said, 1)]
    return [*((text, order) for text, order in facts if text), (f"{left} left", 0)]


def clock(seconds: float) -> str:
    """Seconds as 0:42, 12:30 or 1:02:33."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, second = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{second:02}" if hours else f"{minutes}:{second:02}"


def speed(per_second: float) -> str:
    """A rate with two digits that count: 0.053, 3.2, 120."""
    if per_second >= 10 or per_second <= 0:
        return f"{per_second:.0f}"
    return f"{per_second:.{max(1, 1 - math.floor(math.log10(per_second)))}f}"
