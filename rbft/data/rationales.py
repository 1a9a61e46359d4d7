"""The rationale file: one JSON line per clip, written as they come, never twice."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

KEYS = ("id", "rationale", "finish", "tokens", "source")


class RationaleStore:
    """Rationales in `path`, what they were made from in `<stem>.provenance.json` beside it.

    Every process appends to a part file of its own; `merge` joins the parts. A line that a crash
    cut off is dropped when the store is opened.

    Args:
        path: The JSONL file; it need not exist.
        provenance: What determines the rationales. Everything but `versions` must be equal to
            what an existing file was made from.

    Raises:
        ValueError: If the file was made from something else, or a line is damaged.
    """

    def __init__(self, path: Path, provenance: dict[str, Any]) -> None:
        self.path, self.provenance = path, json.loads(json.dumps(provenance))
        self._check_provenance()
        self.records = {r["id"]: r for file in self._files() for r in _read(file)}

    @property
    def _sidecar(self) -> Path:
        return self.path.with_suffix(".provenance.json")

    def _files(self) -> list[Path]:
        parts = sorted(self.path.parent.glob(f"{self.path.name}.part*"))
        return [self.path, *parts] if self.path.exists() else parts

    def _check_provenance(self) -> None:
        if not self._sidecar.exists():
            return
        found = json.loads(self._sidecar.read_text(encoding="utf-8"))
        for key in sorted({*found, *self.provenance} - {"versions"}):
            if found.get(key) != self.provenance.get(key):
                raise ValueError(
                    f"Rationale file {self.path} was made with {key} {found.get(key)!r}, but this "
                    f"run has {self.provenance.get(key)!r}. Set data.rationale_file to another "
                    "file, or remove this one to have it written anew."
                )

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Those of the ids that have no rationale yet, in order."""
        return [name for name in ids if name not in self.records]

    def texts(self) -> dict[str, str]:
        """Rationale by clip id."""
        return {name: record["rationale"] for name, record in self.records.items()}

    def append(self, rank: int, records: Sequence[dict[str, Any]]) -> None:
        """Adds records to a process's part file; they are on disk when this returns.

        Args:
            rank: The process.
            records: Dicts with id, rationale, finish (stop or length), tokens and source.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._sidecar.exists() and rank == 0:
            _replace(self._sidecar, json.dumps(self.provenance, indent=2, ensure_ascii=False))
        part = self.path.with_name(f"{self.path.name}.part{rank}")
        _cut_torn_line(part)
        with part.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
            stream.flush()
            os.fsync(stream.fileno())
        self.records |= {record["id"]: record for record in records}

    def merge(self, order: Sequence[str]) -> None:
        """Joins the parts into the file; on one process, when all have finished.

        Args:
            order: Ids in the order that the file takes; others follow.
        """
        files = self._files()
        self.records = {r["id"]: r for file in files for r in _read(file)}
        place = {name: number for number, name in enumerate(order)}
        ids = sorted(self.records, key=lambda name: (place.get(name, len(place)), name))
        lines = [json.dumps(self.records[name], ensure_ascii=False) + "\n" for name in ids]
        _replace(self.path, "".join(lines))
        for file in files:
            if file != self.path:
                file.unlink()


def mix(
    own: dict[str, str], human: dict[str, str], ratio: float, ids: Sequence[str], seed: int
) -> dict[str, str]:
    """The rationale of every clip: a share self-generated, the rest written by humans.

    Args:
        own: Self-generated rationale by id.
        human: Human rationale by id.
        ratio: Share of the ids that take their own, by hash of id and seed.
        ids: All clips.
        seed: Seed of the choice.

    Raises:
        ValueError: If a clip lacks the rationale that it should take.
    """

    def rank(name: str) -> str:
        return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()

    chosen = set(sorted(ids, key=rank)[: round(ratio * len(ids))])
    for source, texts, wanted in (
        ("self-generated", own, [name for name in ids if name in chosen]),
        ("human", human, [name for name in ids if name not in chosen]),
    ):
        lacking = [name for name in wanted if name not in texts]
        if lacking:
            advice = (
                "Run: python -m rbft rationalize --config <experiment>"
                if source == "self-generated"
                else "Set data.rationale_ratio to 1.0, or choose a benchmark with references."
            )
            raise ValueError(
                f"No {source} rationale for {len(lacking)} of {len(ids)} clips (first: "
                f"{lacking[0]}). {advice}"
            )
    return {name: own[name] if name in chosen else human[name] for name in ids}


def _read(path: Path) -> list[dict[str, Any]]:
    text = path.read_bytes().decode("utf-8", errors="replace")
    lines = text.split("\n")
    records, seen = [], set()
    # What stands after the last line break was cut off by a crash.
    for number, line in enumerate(lines[:-1], start=1):
        where = f"Rationale file {path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is no JSON: {line[:60]!r}. Remove the line.") from error
        if not isinstance(record, dict) or any(key not in record for key in KEYS):
            raise ValueError(f"{where} must have the keys {', '.join(KEYS)}; got {line[:60]!r}.")
        if record["id"] in seen:
            raise ValueError(f"{where} repeats the clip {record['id']}. Remove one of the lines.")
        seen.add(record["id"])
        records.append(record)
    return records


def _cut_torn_line(path: Path) -> None:
    if path.exists():
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            path.write_bytes(content[: content.rfind(b"\n") + 1])


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)
