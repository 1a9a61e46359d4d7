"""Boxes on disk: one JSON line for each frame of a video, found once and used by all runs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rbft.masking.boxes import Box
from rbft.runtime.differences import differences
from rbft.runtime.files import write_json
from rbft.runtime.jsonl import JsonLines, append_lines, complete_lines

NOT_DETERMINING = "versions"
KEY = ("video", "frame")
Frame = tuple[str, int | None]  # digest of the video, number of the frame in its file


class BoxFile:
    """Boxes in `path`, what they were made from in `<stem>.provenance.json` beside it.

    A line is about a frame of a video, which is known by its content: the same frame of two clips,
    or of two ways to sample a video, is looked at once. It has the `id` of a clip, the video's
    digest, the number of the frame in the file, and its `boxes`, each as `Box.as_list` writes it.
    A line without frame is about the whole video: the `names` of its objects, or the `error` of one
    that cannot be decoded.

    Lines are appended to a part file; `merge` puts them in order. A line that a crash cut off is
    dropped, and its frame is looked at again.

    Args:
        path: The JSONL file; it need not exist.
        made_from: What determines the boxes: who names objects, who finds them, which frames. None
            takes the file as it is.

    Raises:
        ValueError: If the file was made from something else, or a line is damaged.
    """

    def __init__(self, path: Path, made_from: Mapping[str, Any] | None = None) -> None:
        self.path, self.lines = path, JsonLines(path)
        self.made_from = None if made_from is None else json.loads(json.dumps(made_from))
        self.read()
        if self.made_from is not None:
            self._check_made_from(self.made_from)

    def knows(self, video: str, frame: int | None) -> bool:
        """Whether somebody has looked at a frame.

        Args:
            video: Digest of the video.
            frame: Number of the frame; None for what is about the whole video.
        """
        return (video, frame) in self.found

    def boxes(self, video: str) -> dict[int, tuple[Box, ...]]:
        """Boxes of each frame of a video that somebody has looked at.

        Args:
            video: Digest of the video.
        """
        return {
            frame: tuple(Box.of_list(values) for values in line["boxes"])
            for frame, line in self._of_video(video).items()
            if frame is not None
        }

    def whole(self, video: str) -> Mapping[str, Any]:
        """What is known about a whole video: `names`, or an `error`; empty where nothing is."""
        return self.found.get((video, None), {})

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Adds lines; they are on disk when this returns."""
        new = {(line["video"], line["frame"]): dict(line) for line in records}
        if not new:
            return
        assert not new.keys() & self.found.keys(), "looked at twice"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.made_from is not None and not self.lines.sidecar.exists():
            write_json(self.lines.sidecar, self.made_from)
        append_lines(self.lines.part(0), new.values())
        self._add(new)

    def merge(self, order: Sequence[str]) -> None:
        """Joins the parts into the file, clip by clip and frame by frame.

        Args:
            order: Ids of clips in the order that the file takes; others follow by name.
        """
        self.read()
        place = {name: number for number, name in enumerate(order)}

        def rank(line: Mapping[str, Any]) -> tuple[Any, ...]:
            frame = -1 if line["frame"] is None else line["frame"]
            return place.get(line["id"], len(place)), line["id"], line["video"], frame

        self.lines.join(sorted(self.found.values(), key=rank))

    def recover(self, order: Sequence[str]) -> None:
        """Joins parts that a run which was killed has left; otherwise does nothing."""
        if self.lines.parts():
            self.merge(order)

    def sidecar(self) -> dict[str, Any]:
        """What the boxes were made from; empty where nobody noted it.

        Raises:
            ValueError: If the file that says so is damaged.
        """
        sidecar = self.lines.sidecar
        try:
            return json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.exists() else {}
        except ValueError as error:
            raise ValueError(
                f"{sidecar} is no JSON, so nothing says what the boxes in {self.path.name} were "
                "made from. Remove both; the boxes are found anew."
            ) from error

    def read(self) -> None:
        """Reads what is on disk now."""
        self.found: dict[Frame, dict[str, Any]] = {}
        self.videos: dict[str, dict[int | None, dict[str, Any]]] = {}
        for file in self.lines.files():
            for number, content in complete_lines(file.read_bytes()):
                where = f"{file}, line {number}"
                line = _parse(content, where)
                key = (line["video"], line["frame"])
                if self.found.get(key, line) != line:
                    raise ValueError(
                        f"{where} says something else about frame {line['frame']} of clip "
                        f"{line['id']} than another line: two runs wrote at the same time. Remove "
                        "one of the two lines."
                    )
                self._add({key: line})

    def _add(self, lines: Mapping[Frame, dict[str, Any]]) -> None:
        self.found |= lines
        for (video, frame), line in lines.items():
            self.videos.setdefault(video, {})[frame] = line

    def _of_video(self, video: str) -> Mapping[int | None, dict[str, Any]]:
        return self.videos.get(video, {})

    def _check_made_from(self, made_from: Mapping[str, Any]) -> None:
        if not self.lines.files():
            return
        before, now = (
            {name: value for name, value in one.items() if name != NOT_DETERMINING}
            for one in (self.sidecar(), made_from)
        )
        if changes := differences(before, now):
            lines = [f"  {name}: {old} there, {new} now" for name, (old, new) in changes.items()]
            raise ValueError(
                f"The boxes in {self.path} were made from something else than now:\n"
                + "\n".join(lines)
                + f"\nGive another --output, or remove it and {self.lines.sidecar.name}; the boxes "
                "are found anew."
            )


def _parse(content: bytes, where: str) -> dict[str, Any]:
    again = "Remove the line; its frame is looked at again."
    try:
        line = json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{where} is no JSON. {again}") from error
    if not isinstance(line, dict) or not all(name in line for name in ("id", *KEY, "boxes")):
        raise ValueError(f"{where} must be a JSON object with id, video, frame, boxes. {again}")
    try:
        for values in line["boxes"]:
            Box.of_list(values)
    except ValueError as error:
        raise ValueError(f"{where}: {error} {again}") from error
    return line
