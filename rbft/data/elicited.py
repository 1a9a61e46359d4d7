"""The class that the model names behind each rationale: one JSON line each, never asked twice."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rbft.data.rationales import NOT_DETERMINING
from rbft.runs.folder import TOLD
from rbft.runtime.differences import differences
from rbft.runtime.files import write_json
from rbft.runtime.jsonl import JsonLines, append_lines, complete_lines

# What the model was asked: a text about another video, or another text, is another question.
ASKED = ("video", "start", "end", "prompt", "rationale")


class ElicitedClasses:
    """Elicited classes in `path`, what they were made from in `<stem>.provenance.json` beside it.

    A line is known by its content: the video's digest, the segment, the digest of the question
    (P+R+C) as it was put, and that of the rationale's text. So a text that was edited is asked
    again, and the same text of two samples is asked once. The line also has the clip's `id`, the
    `sample`, the class's name as `elicited` (null where the video could not be decoded) and the
    `probabilities` of all classes.

    Every process appends to a part file of its own; `merge` joins the parts. A line that a crash
    cut off is dropped, and its rationale is asked about again.

    Args:
        path: The JSONL file; it need not exist.
        made_from: What determines the classes besides: backbone, frames, class words.
        clips: What is asked about each clip that is verified, by id, see
            `rbft.data.rationales.about`.
        classes: Names of the classes, in the card's order.

    Raises:
        ValueError: If the file was made from something else, or a line is damaged.
    """

    def __init__(
        self,
        path: Path,
        made_from: Mapping[str, Any],
        clips: Mapping[str, Mapping[str, Any]],
        classes: Sequence[str],
    ) -> None:
        self.path, self.lines = path, JsonLines(path)
        self.made_from = json.loads(json.dumps(made_from))
        self.clips, self.classes = clips, list(classes)
        self.read()
        self._check_made_from()

    def knows(self, record: Mapping[str, Any]) -> bool:
        """Whether the class behind a rationale is known.

        Args:
            record: The rationale's line in its file.
        """
        return self._key(record) in self.found

    def index(self, record: Mapping[str, Any]) -> int | None:
        """The class behind a rationale as an index into the classes; None for no class.

        Args:
            record: As for `knows`, which must be true of it.
        """
        name = self.found[self._key(record)]["elicited"]
        return None if name is None else self.classes.index(name)

    def probabilities(self, record: Mapping[str, Any]) -> list[float] | None:
        """Probability of each class behind a rationale, in the card's order.

        None for a video that could not be decoded.

        Args:
            record: As for `knows`, which must be true of it.
        """
        found = self.found[self._key(record)].get("probabilities")
        return None if found is None else [found[name] for name in self.classes]

    def missing(self, records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Those of the rationales that the model must be asked about, each question once."""
        asked = {self._key(record): record for record in reversed(list(records))}
        return [record for key, record in reversed(asked.items()) if key not in self.found]

    def append(
        self, rank: int, answers: Iterable[tuple[Mapping[str, Any], dict[str, Any]]]
    ) -> None:
        """Adds answers to a process's part file; they are on disk when this returns.

        Args:
            rank: The process.
            answers: The line of each rationale, and what was answered: `elicited`, and
                `probabilities` by class name or the `error` of a video that cannot be decoded.
        """
        new = {}
        for record, answer in answers:
            key = self._key(record)
            assert key not in self.found, "asked twice"
            who = {name: record[name] for name in ("id", "sample", TOLD) if name in record}
            new[key] = {**who, **answer, **dict(zip(ASKED, key, strict=True))}
        if not new:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.lines.sidecar.exists():
            write_json(self.lines.sidecar, self.made_from)
        append_lines(self.lines.part(rank), new.values())
        self.found |= new

    def merge(self, order: Sequence[str]) -> None:
        """Joins the parts into the file; by one process, when all have written.

        Args:
            order: Ids of clips in the order that the file takes; others follow by name.
        """
        self.read()
        place = {name: number for number, name in enumerate(order)}

        def rank(line: Mapping[str, Any]) -> tuple[Any, ...]:
            own = place.get(line["id"], len(place))
            return own, line["id"], line.get(TOLD, False), line.get("sample", 0), *_order(line)

        self.lines.join(sorted(self.found.values(), key=rank))

    def recover(self, order: Sequence[str]) -> None:
        """Joins parts that a run which was killed has left; otherwise does nothing."""
        if self.lines.parts():
            self.merge(order)

    def read(self) -> None:
        """Reads what is on disk now."""
        self.found: dict[tuple[Any, ...], dict[str, Any]] = {}
        for file in self.lines.files():
            for number, line in complete_lines(file.read_bytes()):
                record = self._parse(line, f"{file}, line {number}")
                key = tuple(record[name] for name in ASKED)
                if self.found.setdefault(key, record) != record:
                    raise ValueError(
                        f"{file}, line {number} has another class behind a rationale of clip "
                        f"{record['id']} than another line: two runs wrote at the same time. "
                        "Remove one of the two lines."
                    )

    def _key(self, record: Mapping[str, Any]) -> tuple[Any, ...]:
        about = self.clips[record["id"]]
        text = record["rationale"].strip()
        text = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
        return (*(about[name] for name in ASKED[:-1]), text)

    def _parse(self, line: bytes, where: str) -> dict[str, Any]:
        try:
            record = json.loads(line.decode("utf-8"))
        except ValueError as error:
            raise ValueError(f"{where} is no JSON. Remove the line; it is asked again.") from error
        wanted = ("id", "elicited", *ASKED)
        if not isinstance(record, dict) or any(name not in record for name in wanted):
            raise ValueError(
                f"{where} must be a JSON object with {', '.join(wanted)}. Remove the line; it is "
                "asked again."
            )
        if record["elicited"] is not None and record["elicited"] not in self.classes:
            raise ValueError(
                f"{where} has the elicited class {record['elicited']!r}; the card's are "
                f"{', '.join(self.classes)}. Remove the line; it is asked again."
            )
        return record

    def _check_made_from(self) -> None:
        if not self.lines.files():
            return
        found, sidecar = {}, self.lines.sidecar
        try:
            if sidecar.exists():
                found = json.loads(sidecar.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{sidecar} is no JSON, so nothing says what the classes in {self.path.name} were "
                "elicited from. Remove both; the classes are elicited anew."
            ) from error
        before, now = (
            {name: value for name, value in one.items() if name != NOT_DETERMINING}
            for one in (found, self.made_from)
        )
        if changes := differences(before, now):
            lines = [f"  {name}: {old} there, {new} now" for name, (old, new) in changes.items()]
            raise ValueError(
                f"The classes in {self.path} were elicited from something else than this run "
                "asks:\n" + "\n".join(lines) + f"\nRemove it and {sidecar.name}; they "
                "are elicited anew."
            )


def _order(line: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(line[name]) for name in ASKED)
