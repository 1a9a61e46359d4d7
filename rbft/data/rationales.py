"""The rationale file: one JSON line per rationale, written as they come, never twice."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from rbft.rationales.sample import CUT, UNDECODABLE, Sample
from rbft.rationales.sample import STOPPED as STOPPED
from rbft.rationales.selection import select
from rbft.rationales.selection_report import Way
from rbft.runtime.differences import differences
from rbft.runtime.files import write_json
from rbft.runtime.jsonl import JsonLines, append_lines, complete_lines

KEYS = {"id": str, "rationale": str, "finish": str, "tokens": int, "source": str}
# What a rationale was written about. An id is no proof: other videos may have the same ids.
ABOUT = ("video", "start", "end", "prompt")
NOT_DETERMINING = "versions"  # the key of the provenance that may differ

log = logging.getLogger(__name__)
Rationale = TypeVar("Rationale")  # its text, or that and what else is known about it


@dataclass(frozen=True)
class Chosen:
    """The line that each clip takes of its own.

    Attributes:
        lines: By clip id; a clip without one takes nothing, or it is not known yet.
        ways: How each clip got its line, or that it is dropped; clips for which that is not known
            yet have none, nor have any under other rules than `verified`.
    """

    lines: dict[str, dict[str, Any]]
    ways: Mapping[str, Way] = field(default_factory=dict)


# Chooses one of the lines of each clip, which come by number of the sample, at least one.
Selector = Callable[[Mapping[str, Sequence[dict[str, Any]]]], Chosen]


@dataclass(frozen=True)
class ByRule:
    """Chooses by the texts alone, see `rbft.rationales.selection.select`.

    Attributes:
        rule: The rule.
    """

    rule: Literal["first", "consistent"] = "first"

    def __call__(self, written: Mapping[str, Sequence[dict[str, Any]]]) -> Chosen:
        """The line of each clip.

        Raises:
            ValueError: If the writer of a line was told the class.
        """
        samples = [Sample.of(line, None) for lines in written.values() for line in lines]
        chosen = select(samples, self.rule).chosen
        return Chosen({name: by_number(written[name])[one.number] for name, one in chosen.items()})


def by_number(lines: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The lines of a clip by number of the sample."""
    return {line.get("sample", 0): line for line in lines}


class RationaleStore:
    """Rationales in `path`, what they were made from in `<stem>.provenance.json` beside it.

    Each line says what it is about: the digest of the video, the segment, the digest of the prompt
    as it was asked. Only lines about the given clips are used; all others stay in the file. Where
    several rationales are written about a clip, each line has the number of its `sample`, from 0; a
    line without one is number 0. A clip has its rationales when it has all of them.

    Every process appends to a part file of its own; `merge` joins the parts. A line that a crash
    cut off is dropped; its clip counts as missing again.

    Args:
        path: The JSONL file; it need not exist.
        provenance: What determines the rationales: backbone, prompt text, frames, generation.
            What an existing file was made from must be equal, up to library `versions`.
        clips: The clips that may have a rationale, by id: for each what `about` returns.
        by_id: Use lines that do not say which video they are about, for the clip of their id. For
            files that the user names.
        samples: How many rationales a clip is to have. Lines of higher numbers stay in the file.
        selector: Chooses which of them is used.

    Attributes:
        written: The lines about the clips, by id and number of the sample.
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
        samples: int = 1,
        selector: Selector = ByRule(),
    ) -> None:
        self.path, self.provenance = path, json.loads(json.dumps(provenance))
        self.lines = JsonLines(path)
        self.clips, self.by_id = clips, by_id
        self.samples, self.selector = samples, selector
        self.read()
        self._check_provenance()

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Those of the ids that lack a rationale, or one of several, in order."""
        return [name for name in ids if not self._complete(name)]

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        """The line that is used of each clip that has all of its rationales, by id."""
        return self.chosen.lines

    @property
    def chosen(self) -> Chosen:
        """What the selector chose; the one line of a clip that could not be decoded stays."""
        if self._chosen is None:
            lost = {name: lines[0] for name, lines in self._lost().items()}
            chosen = self.selector(self.by_clip())
            lines = {**lost, **chosen.lines}
            self._chosen = Chosen(
                {name: lines[name] for name in self.written if name in lines}, chosen.ways
            )
        return self._chosen

    def dropped(self) -> set[str]:
        """Clips that take none of their rationales."""
        return {name for name, way in self.chosen.ways.items() if way == "dropped"}

    def undecided(self, ids: Iterable[str]) -> list[str]:
        """Those of the ids that have rationales of which it is not known yet which one is used."""
        chosen, dropped = self.records, self.dropped()
        return [
            name
            for name in ids
            if self._complete(name) and name not in chosen and name not in dropped
        ]

    def by_clip(self) -> dict[str, list[dict[str, Any]]]:
        """The lines of each clip that has all of its rationales, by number of the sample.

        Clips that could not be decoded are left out.
        """
        lost = self._lost()
        return {
            name: self._own(name)
            for name in self.written
            if self._complete(name) and name not in lost
        }

    def all_records(self) -> list[dict[str, Any]]:
        """All lines of the clips that have all of their rationales, clip after clip, by number."""
        return [line for name in self.written if self._complete(name) for line in self._own(name)]

    def _own(self, name: str) -> list[dict[str, Any]]:
        """The lines of a clip that count, by number."""
        found = self.written.get(name, {})
        return [found[number] for number in sorted(found) if number < self.samples]

    def _complete(self, name: str) -> bool:
        own = self._own(name)
        return len(own) == self.samples or any(one["finish"] == UNDECODABLE for one in own)

    def _lost(self) -> dict[str, list[dict[str, Any]]]:
        """The lines that say that their clip could not be decoded."""
        found = {
            name: [one for one in self._own(name) if one["finish"] == UNDECODABLE]
            for name in self.written
        }
        return {name: lines for name, lines in found.items() if lines}

    def texts(self) -> dict[str, str]:
        """Rationale by clip id."""
        lost = self._lost()
        return {n: record["rationale"] for n, record in self.records.items() if n not in lost}

    def undecodable(self) -> set[str]:
        """Clips that were to have a rationale, but whose video could not be decoded."""
        return set(self._lost())

    def cut(self) -> set[str]:
        """Clips whose rationale the limit of tokens cut off."""
        return {n for n, record in self.records.items() if record["finish"] == CUT}

    def append(self, rank: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Adds records to a process's part file; they are on disk when this returns.

        Of a clip that lacks some of its samples, as a kill may leave it, those it has stay as they
        are and only the others are added.

        Args:
            rank: The process.
            records: Each with `id`, `rationale`, `finish` ("stop", "length" where the limit of
                tokens cut it, or "undecodable" where there was no video to describe), `tokens` (its
                length) and `source` (who wrote it: "self" is the backbone), and with `sample`
                where a clip has several. What they are about is added.

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
        made = {_number(record): {**record, **self.clips[record["id"]]} for record in records}
        assert len(made) == len(records), "a clip stands twice in the batch"
        assert not any(self._complete(name) for name, _ in made), "a clip is written again"
        new = {
            (name, number): record
            for (name, number), record in made.items()
            if number not in self.written.get(name, {})
        }
        if not new:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.lines.sidecar.exists():
            write_json(self.lines.sidecar, self.provenance)
        self._sizes[part] = append_lines(part, new.values())
        for (name, number), record in new.items():
            self.written.setdefault(name, {})[number] = record
        self._chosen = None

    def merge(self, order: Sequence[str]) -> None:
        """Joins the parts into the file; by one process, when all have written.

        Args:
            order: Ids in the order that the file takes; other clips follow by name.
        """
        self.read()
        place = {name: number for number, name in enumerate(order)}
        ids = sorted(self.written, key=lambda name: (place.get(name, len(place)), name))
        lines = [line for name in ids for _, line in sorted(self.written[name].items())]
        self.lines.join([*lines, *self.others])

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
                        f"Rationale file {file} has another rationale for {_name(record)} than "
                        f"{self.path} or its other parts: two runs wrote at the same time. Remove "
                        f"{file}."
                    )
        self.written: dict[str, dict[int, dict[str, Any]]] = {}
        self.others: list[dict[str, Any]] = []
        unproven: dict[str, None] = {}
        self._chosen: Chosen | None = None
        # Lines that say what they are about win over those that do not.
        for record in sorted(found.values(), key=lambda record: "video" not in record):
            (name, number), silent = _number(record), "video" not in record
            if name not in self.clips:
                used = False
            elif silent:
                used = self.by_id and (name not in self.written or name in unproven)
            else:
                used = _about(record) == _about(self.clips[name])
            if not used:
                self.others.append(record)
                continue
            if silent:
                unproven[name] = None
            self.written.setdefault(name, {})[number] = record
        self.unproven = list(unproven)

    def _check_provenance(self) -> None:
        if not self.lines.sidecar.exists():
            if any(map(self._complete, self.written)):
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


def _number(record: Mapping[str, Any]) -> tuple[str, int]:
    """Clip and number of the sample."""
    return record["id"], record.get("sample", 0)


def _name(record: Mapping[str, Any]) -> str:
    """How messages call it."""
    number = f", sample {record['sample']}" if "sample" in record else ""
    return f"the clip {record['id']}{number}"


def _parse(content: bytes, path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Record by id, what it is about and number of the sample."""
    records: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, line in complete_lines(content):
        where = f"Rationale file {path}, line {number}"
        try:
            record = json.loads(line.decode("utf-8"))
        except ValueError as error:
            shown = line[:60].decode("utf-8", errors="backslashreplace")
            raise ValueError(f"{where} is no JSON: {shown!r}. Mend or remove the line.") from error
        _check(record, where)
        key = (*_number(record), *_about(record))
        if key in records:
            raise ValueError(
                f"{where} has a second rationale for {_name(record)}. Remove one of the two lines."
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
    number = record.get("sample", 0)
    if type(number) is not int or number < 0:
        raise ValueError(f"{where} must have a sample of 0 or more (int), or none; got {number!r}.")
