"""JSON Lines that processes of one machine, or of a disk with locks, append to in turns."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rbft.runtime.jsonl import append_lines, complete_lines

try:
    import fcntl
except ImportError:  # Windows: one process at a time
    fcntl = None


class SharedLines:
    """A file that only grows.

    A line that a kill cut off is not read, and is taken off before the next one is added. Not for
    several threads at once.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_until = 0
        self._lines = 0

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Keeps other processes from adding lines; free again when this one ends, however."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as stream:
            if fcntl is not None:
                with suppress(OSError):  # a file system without locks: one process at a time
                    fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def add(self, records: Iterable[Mapping[str, Any]], flush: bool = True) -> None:
        """Adds lines; to be called by who owns the file.

        What this process has added, `news` gives it back once.

        Args:
            records: A line each.
            flush: See `rbft.runtime.jsonl.append_lines`.
        """
        append_lines(self.path, records, flush)

    def news(self) -> list[tuple[int, int, bytes]]:
        """The lines since the last call: number from 1, where the line begins, its bytes.

        Raises:
            ValueError: If the file has shrunk meanwhile.
        """
        try:
            with self.path.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                if size < self._read_until:
                    raise ValueError(
                        f"{self.path} was shortened or replaced while it was in use. Start again."
                    )
                stream.seek(self._read_until)
                content = stream.read()
        except FileNotFoundError:
            return []
        made, begin = [], self._read_until
        for number, line in complete_lines(content):
            made.append((self._lines + number, begin, line))
            begin += len(line) + 1
        self._read_until, self._lines = begin, self._lines + len(made)
        return made
