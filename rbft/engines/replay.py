"""Every answer of a server, kept by what was asked: a result outlives the model that gave it."""

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rbft.engines.chat import digest
from rbft.engines.request import STORED, Answer
from rbft.engines.shared_file import SharedLines
from rbft.runtime.files import atomically
from rbft.runtime.jsonl import json_line

KEYS = {"key": str, "id": str, "asked": dict, "answer": dict, "time": str}
FIELDS = frozenset(Answer("", "answered").record())


@dataclass(frozen=True)
class Taken:
    """What became of the answers of another store.

    Attributes:
        added: Answers that were new.
        known: Answers that were there.
        differing: Keys under which another text was there, which stays.
    """

    added: int
    known: int
    differing: tuple[str, ...]


class ReplayStore:
    """Answers by their requests' key, one JSON line each; lines are added and never changed.

    A line says what was asked (`Chat.asked`: model, prompt, digest of the frames, sampling, number
    of the sample), and its key is the digest of that, so a line that was edited is noticed. Answers
    by another model than the one asked for, refusals and empty answers are kept too, marked by
    their status. Several processes may use one file. The texts stay on disk, and a place for each
    key in memory.

    Args:
        path: The file; it need not exist.

    Raises:
        ValueError: If a line is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = SharedLines(path)
        self._lock = threading.Lock()
        self._places: dict[str, tuple[int, int, bool]] = {}  # offset, length, answered
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def refresh(self) -> None:
        """Learns of the answers that other processes have added since."""
        with self._lock:
            self._refresh()

    def get(self, key: str, id: str) -> Answer | None:
        """The answer to what has this key, as that to a request with this id.

        Of several the first that the model which was asked gave, else the last.
        """
        line = self._line(key)
        return None if line is None else Answer.of_record(line["answer"], id=id, key=key)

    def add(self, asked: Mapping[str, Any], answer: Answer) -> None:
        """Keeps an answer; it is on disk when this returns.

        Args:
            asked: What determines it, see `Chat.asked`.
            answer: What a server has answered.
        """
        assert answer.status in STORED, answer.status
        record = {
            "key": digest(asked),
            "id": answer.id,
            "asked": asked,
            "answer": answer.record(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with self._lock, self._file.owned():
            self._file.add([record])
            self._refresh()

    def lines(self) -> Iterator[dict[str, Any]]:
        """The line of each key, in the order of the keys."""
        for key in sorted(self._places):
            line = self._line(key)
            assert line is not None
            yield line

    def export(self, path: Path, keys: Iterable[str] | None = None) -> int:
        """Writes a store of its own, one line a key: what a result needs to be made again.

        Args:
            path: The file; an older one is replaced.
            keys: Of which requests; None takes all.

        Returns:
            How many answers it holds.

        Raises:
            ValueError: If a key is not in the store.
        """
        if path.resolve() == self.path.resolve():
            raise ValueError(f"{path} is the store itself. Name another file to export to.")
        wanted = sorted(self._places if keys is None else set(keys))
        if missing := [key for key in wanted if key not in self._places]:
            raise ValueError(
                f"{len(missing)} of {len(wanted)} answers are not in {self.path} (first: "
                f"{missing[0]})."
            )
        with atomically(path) as part, part.open("wb") as stream:
            for key in wanted:
                line = self._line(key)
                assert line is not None
                stream.write(json_line(line).encode())
        return len(wanted)

    def take(self, path: Path) -> Taken:
        """Adds the answers of another store's file; what is there already stays as it is.

        Raises:
            ValueError: If the file does not exist or a line is damaged.
        """
        if not path.is_file():
            raise ValueError(f"Replay store {path} does not exist.")
        other, added, known, differing = ReplayStore(path), [], 0, []
        with self._lock, self._file.owned():
            self._refresh()
            for line in other.lines():
                mine = self._line(line["key"])
                if mine is None or (not _answered(mine) and _answered(line)):
                    added.append(line)
                elif mine["answer"]["text"] == line["answer"]["text"]:
                    known += 1
                else:
                    differing.append(line["key"])
            if added:
                self._file.add(added)
                self._refresh()
        return Taken(len(added), known, tuple(differing))

    def _line(self, key: str) -> dict[str, Any] | None:
        place = self._places.get(key)
        if place is None:
            return None
        with self.path.open("rb") as stream:
            stream.seek(place[0])
            return json.loads(stream.read(place[1]))

    def _refresh(self) -> None:
        for number, begin, line in self._file.news():
            record = _parse(line, f"{self.path}, line {number}")
            known = self._places.get(record["key"])
            if known is None or not known[2]:
                self._places[record["key"]] = (begin, len(line), _answered(record))


def _answered(record: Mapping[str, Any]) -> bool:
    return record["answer"]["status"] == "answered"


def _parse(line: bytes, where: str) -> dict[str, Any]:
    """A line of a store.

    Raises:
        ValueError: If it is damaged or was edited.
    """
    try:
        record = json.loads(line)
    except ValueError:  # also what is no UTF-8
        record = None
    problem = ""
    if not isinstance(record, dict):
        problem = "it is no JSON object"
    elif wrong := [k for k, kind in KEYS.items() if not isinstance(record.get(k), kind)]:
        problem = f"{', '.join(wrong)} is missing or of another type"
    elif unknown := sorted(FIELDS ^ record["answer"].keys()):
        problem = f"the answer's {', '.join(unknown)} is missing or unknown"
    elif record["answer"]["status"] not in STORED:
        problem = f"status {record['answer']['status']!r} is none of {', '.join(sorted(STORED))}"
    elif digest(record["asked"]) != record["key"]:
        problem = "its key is not the digest of what was asked: it was changed by hand"
    if problem or record is None:
        raise ValueError(
            f"{where} is no answer of a replay store: {problem}. Remove the line (it will be asked "
            "again) or take the file from a backup."
        )
    return record
