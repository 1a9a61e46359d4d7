"""Predictions of any videos, as JSON lines that appear one by one, and as a table."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rbft.analysis.multilabel import LABELS
from rbft.callbacks.answer_rows import prediction_row
from rbft.clip import Clip
from rbft.runtime.differences import differences
from rbft.runtime.files import write_json, write_text
from rbft.runtime.jsonl import JsonLines, append_lines, complete_lines

SECONDS = ("start", "end")  # of a window
Place = tuple[str, float | None, float | None]  # path and seconds


class PredictionWriter(Callback):
    """Writes a line per video as it comes, and takes up what an interrupted run left.

    A line holds id, path, digest of the video, start and end where it is about a window of it,
    label, the probability of each class, the margin between the two most probable ones, and as far
    as there is: what the model wrote (`text`), its `rationale`, or the `error` of a video that
    cannot be decoded. A line about a file whose content has changed since does not count. In the
    end the lines stand in the order of the videos, and the same as a table in a .csv file beside
    them. With several processes each writes into a part file of its own until then.

    Args:
        output: The file of JSON lines.
        clips: All videos, in order; `todo` are those that have no line yet, or only an error.
        classes: Names of the classes.
        made_from: What determines the predictions, kept beside the output. What an existing
            output was made from must be equal.
        content: Gives the digest of a clip's file; None where it cannot be read.
        threshold: A class, and its probability from which on it is the label; the likeliest class
            stands beside it then, as `likeliest`. Where a video may have several classes, the least
            probability of each.
        several: Whether a video may have several classes, or none: `labels`, a list, stands in the
            place of `label` and `margin` then, in the table parted by "; ".
        levels: The value of each class, where they are levels of a scale; the expected value stands
            in the lines then, as `expected`.

    Raises:
        ValueError: If the output was made from something else, by something else, or of videos
            that are not among these.
    """

    def __init__(
        self,
        output: Path,
        clips: Sequence[Clip],
        classes: Sequence[str],
        made_from: dict[str, Any],
        content: Callable[[Clip], str | None],
        threshold: tuple[str, float] | Mapping[str, float] | None = None,
        several: bool = False,
        levels: Sequence[float] = (),
    ) -> None:
        self.several = several
        if output.suffix != ".jsonl":
            raise ValueError(
                f"--output {output} must end in .jsonl; the same as a table goes to "
                f"{output.with_suffix('.csv').name} beside it."
            )
        self.output, self.classes, self.threshold = output, list(classes), threshold
        self.levels = levels
        self.lines = JsonLines(output)
        first: dict[Place, Clip] = {}
        files: dict[str, Clip] = {}
        for clip in clips:
            first.setdefault(_place(clip), clip)
            files.setdefault(clip.name, clip)
        self.clips = list(first.values())
        self.videos = {path: content(clip) for path, clip in files.items()}
        self.made_from = json.loads(json.dumps(made_from))
        self._check(self._read(stale=True))
        rows = self._read()
        self.todo = [
            clip for clip in self.clips if "error" in rows.get(_place(clip), {"error": ""})
        ]

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes what the predictions are made from, and takes off a line that was cut off."""
        if trainer.is_global_zero:
            write_json(self.lines.sidecar, self.made_from)
        alone = trainer.world_size == 1
        self.file = self.output if alone else self.lines.part(trainer.global_rank)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the batch to disk before the next one begins."""
        rows = [
            self._row(outputs, batch, place)
            for place, weight in enumerate(batch.weight.tolist())
            if weight
        ]
        append_lines(self.file, rows)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the lines in order on the first process, when all have written."""
        trainer.strategy.barrier("predicted")
        if trainer.is_global_zero:
            self.finish()
        trainer.strategy.barrier("joined")

    def finish(self) -> list[dict[str, Any]]:
        """Joins the lines in the order of the videos and writes the table.

        Returns:
            The lines. Those about videos that could not be decoded have an `error`.
        """
        found = self._read()
        rows = [found[_place(clip)] for clip in self.clips]
        columns = ["id", "path", "video"]
        columns += list(SECONDS) * any(clip.end is not None for clip in self.clips)
        columns += [LABELS if self.several else "label"]
        columns += [f"probability_{name}" for name in self.classes]
        if self.several:
            columns += ["rationale", "error"]
        else:
            columns += ["expected"] * bool(self.levels)
            columns += ["likeliest"] * (self.threshold is not None)
            columns += ["margin", "text", "rationale", "error"]
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            shares = row.get("probabilities", {}).items()
            own = {LABELS: "; ".join(row[LABELS] or [])} if self.several else {}
            own |= {f"probability_{name}": share for name, share in shares}
            writer.writerow({**row, **own})
        text = table.getvalue().encode(errors="backslashreplace").decode()
        write_text(self.output.with_suffix(".csv"), text)
        self.lines.join(rows)
        return rows

    def _row(self, outputs: Any, batch: Any, place: int) -> dict[str, Any]:
        clip = batch.clips[place]
        path = clip.name
        row: dict[str, Any] = {"id": clip.id, "path": path, "video": self.videos[path]}
        row |= {} if clip.end is None else {"start": clip.start, "end": clip.end}
        return row | prediction_row(
            outputs, batch, place, self.classes, self.threshold, self.levels
        )

    def _read(self, *, stale: bool = False) -> "dict[Place, dict[str, Any]]":
        """Line by path and seconds; a prediction wins over an error, then the later one.

        Args:
            stale: Also lines about files whose content has changed since.
        """
        rows: dict[Place, dict[str, Any]] = {}
        for file in self.lines.files():
            for number, line in complete_lines(file.read_bytes()):
                try:
                    row = json.loads(line)
                    path = row["path"]
                    place = path, row.get("start"), row.get("end")
                except (ValueError, TypeError, KeyError) as error:
                    raise ValueError(
                        f"{file}, line {number} is no prediction. Remove the line, or name "
                        "another --output."
                    ) from error
                if not stale and row.get("video") != self.videos.get(path):
                    continue  # another video stood there
                if place not in rows or "error" not in row or "error" in rows[place]:
                    rows[place] = row
        return rows

    def _check(self, rows: "dict[Place, dict[str, Any]]") -> None:
        if not rows:
            return
        before = {}
        if self.lines.sidecar.exists():
            before = json.loads(self.lines.sidecar.read_text(encoding="utf-8"))
        different = [
            f"{key}: {old} -> {new}"
            for key, (old, new) in sorted(differences(before, self.made_from).items())
        ]
        advice = f"Name another --output, or remove {self.output}."
        if different:
            raise ValueError(
                f"--output {self.output} holds predictions that were made otherwise "
                f"({'; '.join(different)}). {advice}"
            )
        foreign = list(dict.fromkeys(path for path, _, _ in rows if path not in self.videos))
        if foreign:
            raise ValueError(
                f"--output {self.output} holds predictions of {len(foreign)} videos that are not "
                f"among --videos (first: {foreign[0]}). {advice}"
            )


def _place(clip: Clip) -> Place:
    return clip.name, clip.start, clip.end
