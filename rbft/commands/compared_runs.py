"""Rows of a comparison: what finished runs, and answers of other systems, scored and cost."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rbft.analysis.intervals import Cells
from rbft.analysis.paired import check_same_clips
from rbft.analysis.scored import ScoredClips, some
from rbft.runs.folder import CLIPS, PROVENANCE, ZERO_SHOT, Run, read_json
from rbft.runs.record import DIGESTS, SETTINGS
from rbft.runs.usage import Spent, read_usage
from rbft.runtime.digests import hash_file
from rbft.runtime.jsonl import complete_lines
from rbft.stages import stage_names

# Columns in which other systems may have their answer, the first that is there.
ANSWERS = ("prediction", "class", "label")
NO_CLASS = ("", "unparsed")  # answers that are no class, in files that have no null


@dataclass(frozen=True)
class SeedRun:
    """What one run with one seed scored and cost.

    Attributes:
        clips: Its answers about the test clips.
        content: Digest of these clips with their videos; None where nobody knows.
        steps: Optimiser steps of all stages; None for other systems.
        seen: Training clips seen over all stages and epochs.
        epochs: Of all stages.
        spent: Time over all starts; None where it was not noted.
        tokens: Tokens written: rationales learnt from, and answers at test.
        folder: The run's.
    """

    clips: ScoredClips
    content: str | None = None
    steps: int | None = None
    seen: int | None = None
    epochs: int | None = None
    spent: Mapping[str, Spent] | None = None
    tokens: int | None = None
    folder: Path | None = None

    @property
    def scores(self) -> dict[str, float]:
        """`accuracy`, `f1/<class>`, `f1/macro` and `majority`; NaN where undefined.

        On a scale also those of `rbft.analysis.levels.level_scores`.
        """
        clips = self.clips
        cells = Cells(np.ones(len(clips.ids), dtype=int), clips.labels, len(clips.classes))
        names = ["accuracy", *(f"f1/{name}" for name in clips.classes), "f1/macro"]
        found = dict(zip(names, cells.scores(clips.predictions)[0].tolist(), strict=True))
        most = int(np.bincount(clips.labels).max())
        return {**found, "majority": most / len(clips.ids), **clips.level_scores}

    @property
    def total(self) -> Spent | None:
        """Time of all phases."""
        return None if self.spent is None else sum(self.spent.values(), Spent())


@dataclass(frozen=True)
class ComparedRow:
    """A row of a comparison.

    Attributes:
        title: What the table calls it.
        seeds: Its runs by seed.
        source: The experiment file, or the file with another system's answers.
        notes: What else to say about the source.
    """

    title: str
    seeds: Mapping[int, SeedRun]
    source: str
    notes: Mapping[str, Any] = field(default_factory=dict)

    def unlike(self, baseline: "ComparedRow") -> str:
        """In what training differs from the baseline's, a letter each, see `LEGEND`."""
        if any(one.steps is None for one in self.seeds.values()):
            return "?"
        letters = {"s": "steps", "c": "seen", "e": "epochs"}
        return "".join(
            letter
            for letter, name in letters.items()
            if any(
                getattr(self.seeds[seed], name) != getattr(baseline.seeds[seed], name)
                for seed in self.seeds
            )
        )


LEGEND = {
    "s": "another number of optimiser steps",
    "c": "another number of training clips seen",
    "e": "another number of epochs",
    "?": "how it was trained is not known",
}


def final_place(settings: Mapping[str, Any]) -> tuple[list[str], str]:
    """Stages of a run, and the place of its final results.

    Args:
        settings: The run's.
    """
    stages = stage_names(settings["stages"])
    return stages, stages[-1] if stages else ZERO_SHOT


def is_finished(folder: Path) -> bool:
    """Whether a run has its final results; whatever it was made from.

    Args:
        folder: The run's.
    """
    if not (folder / SETTINGS).exists():
        return False
    settings = yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8"))
    stages, place = final_place(settings)
    run = Run(folder)
    return all(run.trained(stage) for stage in stages) and run.results(place).exists()


def read_run(folder: Path) -> SeedRun:
    """What a finished run scored and cost.

    Args:
        folder: The run's.
    """
    settings = yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8"))
    stages, place = final_place(settings)
    run = Run(folder)
    steps = seen = epochs = tokens = 0
    for stage in stages:
        made = read_json(run.weights(stage) / PROVENANCE)
        # Runs of before these were noted went through all epochs.
        passed = made.get("epochs", settings["trainer"]["max_epochs"])
        clips = len(read_json(run.weights(stage) / CLIPS)["train"])
        steps, epochs = steps + made["steps"], epochs + passed
        seen += made.get("clips_seen", passed * clips)
        tokens += made.get("rationale_tokens", 0)
    result = read_json(run.results(place))
    answered = result.get("tokens_written", 0) + result.get("tokens", {}).get("completion", 0)
    return SeedRun(
        ScoredClips.from_file(run.results(place), folder.name),
        read_json(folder / DIGESTS)["clips"]["test"],
        steps,
        seen,
        epochs,
        read_usage(folder) or None,
        tokens + answered,
        folder,
    )


def check_rows(rows: Sequence[ComparedRow], baseline: ComparedRow) -> None:
    """Refuses rows that were not scored on the clips of the baseline, seed by seed.

    Raises:
        ValueError: Naming the two, and what differs.
    """
    for row in rows:
        for seed, one in row.seeds.items():
            other = baseline.seeds[seed]
            check_same_clips(one.clips, other.clips)
            if None not in (one.content, other.content) and one.content != other.content:
                raise ValueError(
                    f"{one.clips.name} and {other.clips.name} were scored on clips of the same ids "
                    f"and labels, but not of the same videos (digests {one.content} and "
                    f"{other.content}). Give all --configs the same benchmark and --vary."
                )


def read_others(file: Path, baseline: ComparedRow) -> ComparedRow:
    """Answers of another system about the baseline's test clips.

    Args:
        file: JSON Lines or CSV with a line a clip: `id`, the class as `prediction`, `class` or
            `label`, and, where there are, `probabilities` by class, or columns
            `probability_<class>`. Without a class, the likeliest one counts.
        baseline: Has labels and clips.

    Raises:
        ValueError: If a clip is missing or unknown or an answer cannot be read, or if the
            baseline's seeds have different test clips.
    """
    runs = list(baseline.seeds.values())
    if len({(one.clips.digest, one.content) for one in runs}) > 1:
        raise ValueError(
            f"--others {file} answers about one set of test clips, but {baseline.title} has others "
            "for each seed. Leave --others out, or the setting that draws test clips out of --vary."
        )
    clips = runs[0].clips
    rows = _rows(file)
    found = {str(row.get("id")): row for row in rows}
    if len(found) < len(rows):
        ids = [str(row.get("id")) for row in rows]
        twice = [one for one in found if ids.count(one) > 1]
        raise ValueError(f"--others {file} has several lines of {some(twice, 'clip')}.")
    known = set(clips.ids)
    missing = [one for one in clips.ids if one not in found]
    strange = [one for one in found if one not in known]
    if missing or strange:
        parts = [f"{some(missing, 'test clip')} missing"] * bool(missing)
        parts += [f"{some(strange, 'unknown clip')}"] * bool(strange)
        raise ValueError(
            f"--others {file} must have one line for each of the {len(known)} test clips of "
            f"{baseline.title} and no other: {', '.join(parts)}. Its ids must be those of "
            f"{runs[0].folder}."
        )
    made = []
    for one, label in zip(clips.ids, clips.labels.tolist(), strict=True):
        answer = _answer(found[one], clips.classes, f"--others {file}, clip {one}")
        made.append({"id": one, "label": clips.classes[label], **answer})
    scored = ScoredClips.from_rows(made, clips.classes, clips.split, file.name, clips.levels)
    run = SeedRun(scored)
    notes = {"digest": hash_file(file), "lines": len(rows)}
    return ComparedRow(file.stem, dict.fromkeys(baseline.seeds, run), str(file), notes)


def check_others(file: Path) -> None:
    """Refuses a file of another system that cannot be read; its clips are looked at later.

    Raises:
        ValueError: Naming the file, and the line.
    """
    _rows(file)


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"--others {file} cannot be read: {error.strerror}.") from error
    if file.suffix == ".csv":
        return list(csv.DictReader(content.decode("utf-8-sig").splitlines()))
    if file.suffix != ".jsonl":
        raise ValueError(f"--others {file} must be a .jsonl or a .csv file.")
    ended = content if content.endswith(b"\n") else content + b"\n"
    rows = []
    for number, line in complete_lines(ended):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"--others {file}, line {number} is no JSON.") from error
        if not isinstance(row, dict):
            raise ValueError(f"--others {file}, line {number} must be an object, got {row!r}.")
        rows.append(row)
    return rows


def _answer(row: Mapping[str, Any], classes: Sequence[str], where: str) -> dict[str, Any]:
    """Prediction and, where there are, probabilities."""
    made: dict[str, Any] = {}
    shares: Any = row.get("probabilities")
    named: dict[str, Any] = {name: row.get(f"probability_{name}") for name in classes}
    if shares is None and all(value not in (None, "") for value in named.values()):
        shares = named
    if shares is not None:
        try:
            made["probabilities"] = {name: float(share) for name, share in shares.items()}
        except (AttributeError, TypeError, ValueError):
            raise ValueError(
                f"{where}: probabilities must be a number for each class, got {shares!r}."
            ) from None
    column = next((name for name in ANSWERS if name in row), None)
    if column is None and "probabilities" not in made:
        raise ValueError(
            f"{where} has no answer: there is no {', '.join(ANSWERS)} and no probabilities, only "
            f"{', '.join(row)}."
        )
    if column is None:
        said = max(made["probabilities"], key=lambda name: made["probabilities"][name])
    else:
        said = None if row[column] in NO_CLASS else row[column]
    if said is not None and said not in classes:
        raise ValueError(
            f"{where}: the answer is {said!r}, which is none of the classes {', '.join(classes)}. "
            "Write an answer that is no class as null, or leave it empty."
        )
    return {"prediction": said, **made}
