"""JSON Lines that several processes append to, and that a kill at any moment leaves readable."""

import glob
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rbft.runtime.files import write_text

# What no UTF-8 can hold (halves of characters, as in file names of other encodings), and what
# readers other than ours take for the end of a line.
ESCAPED = re.compile("[\ud800-\udfff\u0085\u2028\u2029]")


def json_line(record: Mapping[str, Any]) -> str:
    """A record as a line, its end included; only what must be is escaped."""
    line = json.dumps(record, ensure_ascii=False)
    return ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", line) + "\n"


class JsonLines:
    """A JSON Lines file, and the parts to which processes append until they are joined.

    What was made from what stands in `<stem>.provenance.json` beside it.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def sidecar(self) -> Path:
        """Where it stands what the lines were made from."""
        return self.path.with_suffix(".provenance.json")

    def part(self, rank: int) -> Path:
        """The file to which a process appends."""
        return self.path.with_name(f"{self.path.name}.part{rank}")

    def parts(self) -> list[Path]:
        """The parts that are there."""
        return sorted(self.path.parent.glob(f"{glob.escape(self.path.name)}.part[0-9]*"))

    def files(self) -> list[Path]:
        """The file, if it is there, and its parts."""
        return [self.path, *self.parts()] if self.path.exists() else self.parts()

    def join(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Puts the file in place atomically and removes the parts; by one process.

        Killed in between, the parts hold once more what the file has: reading must allow for that.
        """
        write_text(self.path, "".join(map(json_line, records)))
        for part in self.parts():
            part.unlink()


def complete_lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line, counted from 1; what a crash cut off is left out."""
    return enumerate(content.split(b"\n")[:-1], start=1)


def append_lines(file: Path, records: Iterable[Mapping[str, Any]], flush: bool = True) -> int:
    """Adds lines, which are on disk when this returns; takes off a line that was cut off.

    Args:
        file: The file; it need not exist.
        records: A line each.
        flush: Wait for the disk. Without it a kill of the process loses nothing, and a failure of
            the machine what came last.

    Returns:
        The file's size in bytes.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+") as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.truncate(file.read_bytes().rfind(b"\n") + 1)
        stream.write("".join(map(json_line, records)).encode())
        stream.flush()
        if flush:
            os.fsync(stream.fileno())
        return stream.tell()
