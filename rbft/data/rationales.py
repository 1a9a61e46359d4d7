"""The rationale file: one JSON line per clip, written as they come, never twice."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rbft.rationales.sample import CUT, UNDECODABLE
from rbft.rationales.sample import STOPPED as STOPPED
from rbft.runtime.differences import differences
from rbft.runtime.files import write_json
from rbft.runtime.jsonl import JsonLines, append_lines, complete_lines

KEYS = {"id": str, "rationale": str, "finish": str, "tokens": int, "source": str}
# What a rationale was written about. An id is no proof: other videos may have the same ids.
ABOUT = ("video", "start", "end", "prompt")
NOT_DETERMINING = "versions"  # the key of the provenance that may differ

log = logging.getLogger(__name__)
Rationale = TypeVar("Rationale")  # its text, or that and what else is known about it


class RationaleStore:
    """Rationales in `path`, what they were made from in `<stem>.provenance.json` beside it.

    Each line says what it is about: the digest of the video, the segment, the digest of the prompt
    as it was asked. Only lines about the given clips are used; all others stay in the file.

    Every process appends to a part file of its own; `merge` joins the parts. A line that a crash
    cut off is dropped; its clip counts as missing again.

    Args:
        path: The JSONL file; it need not exist.
        provenance: What determines the rationales: backbone, prompt text, frames, generation.
            What an existing file was made from must be equal, up to library `versions`.
        clips: The clips that may have a rationale, by id: for each what `about` returns.
        by_id: Use lines that do not say which video they are about, for the clip of their id. For
            files that the user names.

    Attributes:
        records: The lines about the clips, by id.
        others: Lines about something else.
        unproven: Ids of the clips whose line does not say which video it is about.

    Raises:
        ValueError: If the file was made from something else, or a line is damaged.
    """

    def __init__(
        self,
        path: Path,
        provenance: dict[str, Any],
        clips: Mapping[str, Mapping[str, Any]],
        *,
        by_id: bool = False,
    ) -> None:
        self.path, self.provenance = path, json.loads(json.dumps(provenance))
        self.lines = JsonLines(path)
        self.clips, self.by_id = clips, by_id
        self.read()
        self._check_provenance()

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Those of the ids that have no rationale yet, in order."""
        return [name for name in ids if name not in self.records]

    def texts(self) -> dict[str, str]:
        """Rationale by clip id."""
        lost = self.undecodable()
        return {n: record["rationale"] for n, record in self.records.items() if n not in lost}

    def undecodable(self) -> set[str]:
        """Clips that were to have a rationale, but whose video could not be decoded."""
        return {n for n, record in self.records.items() if record["finish"] == UNDECODABLE}

    def cut(self) -> set[str]:
        """Clips whose rationale the limit of tokens cut off."""
        return {n for n, record in self.records.items() if record["finish"] == CUT}

    def append(self, rank: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Adds records to a process's part file; they are on disk when this returns.

        Args:
            rank: The process.
            records: Each with `id`, `rationale`, `finish` ("stop", "length" where the limit of
                tokens cut it, or "undecodable" where there was no video to describe), `tokens` (its
                length) and `source` (who wrote it: "self" is the backbone). What they are about is
                added.

        Raises:
            ValueError: If another run is writing to the same file.
        """
        if not records:
            return
        part = self.lines.part(rank)
        size = part.stat().st_size if part.exists() else 0
        if size and size != self._sizes.get(part, 0):
            raise ValueError(
                f"Another run is writing rationales to {self.path}. Wait until it has ended and "
                "start this one again; it will use what is there."
            )
        for record in records:
            _check(record, "A new rationale")
        new = {record["id"]: {**record, **self.clips[record["id"]]} for record in records}
        assert len(new) == len(records), "a clip stands twice in the batch"
        assert not new.keys() & self.records.keys(), "a clip is written again"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.lines.sidecar.exists():
            write_json(self.lines.sidecar, self.provenance)
        self._sizes[part] = append_lines(part, new.values())
        self.records |= new

    def merge(self, order: Sequence[str]) -> None:
        """Joins the parts into the file; by one process, when all have written.

        Args:
            order: Ids in the order that the file takes; other clips follow by name.
        """
        self.read()
        place = {name: number for number, name in enumerate(order)}
        ids = sorted(self.records, key=lambda name: (place.get(name, len(place)), name))
        self.lines.join([*(self.records[name] for name in ids), *self.others])

    def recover(self, order: Sequence[str]) -> None:
        """Joins parts that a run which was killed has left; otherwise does nothing."""
        if self.lines.parts():
            self.merge(order)

    def read(self) -> None:
        """Reads what is on disk now."""
        self._sizes: dict[Path, int] = {}
        found: dict[tuple[Any, ...], dict[str, Any]] = {}
        for file in self.lines.files():
            content = file.read_bytes()
            self._sizes[file] = len(content)
            if file == self.path and content and not content.endswith(b"\n"):
                content += b"\n"  # an editor's doing: rbft puts this file in place whole
            for key, record in _parse(content, file).items():
                if found.setdefault(key, record) != record:
                    raise ValueError(
                        f"Rationale file {file} has another rationale for the clip {key[0]} than "
                        f"{self.path} or its other parts: two runs wrote at the same time. Remove "
                        f"{file}."
                    )
        self.records: dict[str, dict[str, Any]] = {}
        self.others: list[dict[str, Any]] = []
        self.unproven: list[str] = []
        # Lines that say what they are about win over those that do not.
        for record in sorted(found.values(), key=lambda record: "video" not in record):
            name, silent = record["id"], "video" not in record
            if name in self.clips and name not in self.records and (silent and self.by_id):
                self.unproven.append(name)
                self.records[name] = record
            elif name in self.clips and _about(record) == _about(self.clips[name]) and not silent:
                self.records[name] = record
            else:
                self.others.append(record)

    def _check_provenance(self) -> None:
        if not self.lines.sidecar.exists():
            if self.records:
                log.warning(
                    "Rationale file %s has no %s beside it, so rbft cannot tell what it was made "
                    "from; it is used as it is.",
                    self.path,
                    self.lines.sidecar.name,
                )
            return
        try:
            found = json.loads(self.lines.sidecar.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{self.lines.sidecar} is no JSON. Remove it if you know what {self.path.name} was "
                "made from, or remove both to have the rationales written anew."
            ) from error
        changes = {
            key: [json.dumps(value, ensure_ascii=False) for value in pair]
            for key, pair in sorted(differences(found, self.provenance).items())
        }
        for key in [key for key in changes if key.split(".")[0] == NOT_DETERMINING]:
            file, now = changes.pop(key)
            log.info("Rationale file %s was written with %s %s, now %s.", self.path, key, file, now)
        if changes:
            lines = [
                f"  {key}: {file} in the file, {now} now" for key, (file, now) in changes.items()
            ]
            raise ValueError(
                f"Rationale file {self.path} was made from something else than this run asks for:\n"
                + "\n".join(lines)
                + "\nSet data.rationale_file to another file, or remove this one and "
                f"{self.lines.sidecar.name} to have it written anew."
            )


def mix(
    own: Mapping[str, Rationale],
    human: Mapping[str, Rationale],
    ratio: float,
    ids: Sequence[str],
    seed: int,
) -> dict[str, Rationale]:
    """The rationale of every clip: a share self-generated, the rest written by humans (Table 4).

    Args:
        own: Self-generated rationale by id.
        human: Human rationale by id.
        ratio: Share of the ids that take their own: the round(ratio * len(ids)) with the smallest
            hashes of seed and id, so that a larger ratio only adds to them.
        ids: All clips.
        seed: Seed of the choice.

    Raises:
        ValueError: If a clip lacks the rationale that it should take.
    """

    def rank(name: str) -> str:
        return hashlib.sha256(f"{seed}:{name}".encode(errors="surrogatepass")).hexdigest()

    chosen = set(sorted(ids, key=rank)[: round(ratio * len(ids))])
    for source, texts, wanted, advice in (
        (
            "self-generated",
            own,
            [name for name in ids if name in chosen],
            "Run python -m rbft rationalize with the same settings.",
        ),
        (
            "human",
            human,
            [name for name in ids if name not in chosen],
            "Set data.rationale_ratio to 1.0, or add the references to the annotations.",
        ),
    ):
        lacking = [name for name in wanted if name not in texts]
        if lacking:
            raise ValueError(
                f"No {source} rationale for {len(lacking)} of the {len(wanted)} clips that should "
                f"take one (first: {lacking[0]}). {advice}"
            )
    return {name: own[name] if name in chosen else human[name] for name in ids}


def about(
    video: str, start: float | None, end: float | None, prompt: str
) -> dict[str, str | float | None]:
    """What a rationale is about, as it stands in its line.

    Args:
        video: Digest of the video file's content.
        start: Seconds from the file's start at which the clip begins, None for the start.
        end: Seconds at which it ends, None for the end.
        prompt: What is asked about the clip, with everything filled in.
    """
    asked = hashlib.sha256(prompt.encode(errors="surrogatepass")).hexdigest()[:16]
    return {"video": video, "start": start, "end": end, "prompt": asked}


def _about(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record.get(key) for key in ABOUT)


def _parse(content: bytes, path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Record by id and what it is about."""
    records: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, line in complete_lines(content):
        where = f"Rationale file {path}, line {number}"
        try:
            record = json.loads(line.decode("utf-8"))
        except ValueError as error:
            shown = line[:60].decode("utf-8", errors="backslashreplace")
            raise ValueError(f"{where} is no JSON: {shown!r}. Mend or remove the line.") from error
        _check(record, where)
        key = (record["id"], *_about(record))
        if key in records:
            raise ValueError(
                f"{where} has a second rationale for the clip {record['id']}. Remove one of the "
                "two lines."
            )
        records[key] = record
    return records


def _check(record: Any, where: str) -> None:
    wanted = ", ".join(f"{key} ({kind.__name__})" for key, kind in KEYS.items())
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} must be a JSON object with {wanted}; got {record!r}.")
    for key, kind in KEYS.items():
        if type(record.get(key)) is not kind:
            raise ValueError(f"{where} must have {wanted}; {key} is {record.get(key)!r}.")
