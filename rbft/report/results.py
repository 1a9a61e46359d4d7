"""Scores that runs have left, checked before anything is shown of them."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rbft.analysis.intervals import for_results, score_intervals
from rbft.analysis.levels import LEVEL_SCORES
from rbft.analysis.scored import SEVERAL, ScoredClips
from rbft.runs.folder import ZERO_SHOT
from rbft.runs.usage import USAGE
from rbft.stages import find_stage, is_stage

RESULTS = re.compile(r"(?P<split>test|val)(-(?P<tag>.+))?\.json")
SKIPPED = ("weights", "checkpoints", USAGE)  # folders within a run that hold no results
NO_SEVERAL = (
    "is of a card with the key several: clips that may have several classes are not in the report; "
    "the file itself has all figures"
)
TITLES = {ZERO_SHOT: "backbone, zero-shot"}


@dataclass(frozen=True)
class Problem:
    """What is damaged or not finished.

    Attributes:
        where: The run, or the file.
        text: What is wrong with it.
    """

    where: str
    text: str


@dataclass(frozen=True)
class Result:
    """Scores of a step of a run.

    Attributes:
        run: Name of the run.
        place: Folder of the step within the run's: a stage, `zero_shot`, `endpoint-<model>`.
        split: The scored split.
        file: The results.
        content: What stands in it.
        scored: The answers; None where the predictions beside the file are missing or damaged.
        rows: The predictions as they stand there.
    """

    run: str
    place: str
    split: str
    file: Path
    content: Mapping[str, Any]
    scored: ScoredClips | None = None
    rows: tuple[Mapping[str, Any], ...] = ()

    @property
    def title(self) -> str:
        """The step in words."""
        return step_title(self.place)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in order."""
        return tuple(self.content["classes"])

    @property
    def masking(self) -> Mapping[str, Any] | None:
        """How the frames were masked; None where they were not."""
        found = self.content.get("masking")
        return found if found is None or isinstance(found, dict) else {"kind": str(found)}

    @property
    def levels(self) -> tuple[float, ...]:
        """The value of each class where they are levels of a scale; empty where not."""
        return tuple(self.content.get("values", {}).values())

    @property
    def metrics(self) -> list[str]:
        """Names of accuracy, F1 of each class and macro F1, as in the results."""
        return ["accuracy", *(f"f1/{name}" for name in self.classes), "f1/macro"]

    def score(self, metric: str) -> float | None:
        """A score from 0 to 1; None where it is undefined.

        Args:
            metric: `accuracy`, `f1/<class>` or `f1/macro`.
        """
        value = self.content["metrics"].get(metric)
        return None if value is None else float(value)

    @cached_property
    def intervals(self) -> Mapping[str, Any]:
        """Ends of the 95 % intervals, of results of before computed from their confusion matrix."""
        stored = self.content.get("intervals")
        if stored:
            return stored
        return for_results(score_intervals(self.confusion, list(self.classes)))

    @property
    def confusion(self) -> np.ndarray:
        """Clips by label (K rows) and prediction (K + 1 columns, the last one no class)."""
        return np.array(self.content["confusion"])

    @property
    def n(self) -> int:
        """Number of scored clips."""
        return int(self.content["n_scored"])

    @property
    def coverage(self) -> float:
        """Share of the clips that was answered with a class."""
        return 1 - self.content["n_unparsed"] / max(1, self.n)


def read_results(folder: Path, name: str, problems: list[Problem]) -> Iterator[Result]:
    """The results of a run that are whole.

    Args:
        folder: The run's.
        name: What the page calls it.
        problems: What is wrong with others is added here.
    """
    for file in sorted(folder.rglob("*.json")):
        inner = file.relative_to(folder).parts
        match = RESULTS.fullmatch(file.name)
        if match is None or len(inner) < 2 or any(part in SKIPPED for part in inner[:-1]):
            continue
        content = read_or_note(file, problems)
        if content is None:
            continue
        where = str(Path(name, *inner))
        if content.get(SEVERAL):
            problems.append(Problem(where, NO_SEVERAL))
            continue
        if wrong := _wrong_in(content):
            problems.append(Problem(where, f"is no complete result: {wrong}"))
            continue
        scored, rows = None, ()
        lines = file.with_name(f"{file.stem}_predictions.jsonl")
        try:
            rows = tuple(json.loads(line) for line in lines.read_text("utf-8").splitlines())
            scored = ScoredClips.from_rows(
                rows, list(content["classes"]), match["split"], f"{name}/{inner[-2]}"
            )
            if not all(isinstance(one, str) for one in scored.ids):
                raise ValueError("have an id that is no text")
            if len(rows) != content["n_scored"]:
                text = f"hold {len(rows)} clips, but {file.name} is about {content['n_scored']}"
                raise ValueError(text)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            scored, rows = None, ()
            said = str(Path(name, *inner[:-1], lines.name))
            problems.append(Problem(said, f"the predictions cannot be used: {reason(error)}"))
        yield Result(name, "/".join(inner[:-1]), match["split"], file, content, scored, rows)


def _wrong_in(content: Mapping[str, Any]) -> str:
    """What a results file lacks; empty where it has all that the page shows."""
    made = content.get("made") or {}
    if not isinstance(made, dict) or not isinstance(made.get("endpoint") or {}, dict):
        return "made is no object"
    kinds = {"metrics": dict, "confusion": list, "classes": dict, "n_scored": int}
    for key, kind in {**kinds, "n_unparsed": int}.items():
        if not isinstance(content.get(key), kind):
            return f"{key} is missing"
    size = len(content["classes"])
    try:
        confusion = np.array(content["confusion"], dtype=int)
    except (ValueError, TypeError):
        return "confusion is no table of counts"
    if size < 2 or confusion.shape != (size, size + 1) or confusion.sum() != content["n_scored"]:
        return "confusion does not fit classes and n_scored"
    if list(content["classes"].values()) != confusion.sum(axis=1).tolist():
        return "the counts of classes are not those of confusion"
    names = ["accuracy", *(f"f1/{name}" for name in content["classes"]), "f1/macro"]
    if not all(_is_number(content["metrics"].get(name), none=True) for name in names):
        return f"metrics has no number for each of {', '.join(names)}"
    shown = content["metrics"].get("accuracy")
    right = np.diagonal(confusion).sum() / max(1, content["n_scored"])
    if shown is None or abs(shown - right) > 1e-4:
        return f"the accuracy is {shown}, but its confusion matrix has {right:.4f}"
    if (values := content.get("values")) is not None:
        if not has_numbers(values, content["classes"]) or len(values) != size:
            return "values has no number for each class"
        if not all(_is_number(content["metrics"].get(name), none=True) for name in LEVEL_SCORES):
            return f"metrics has no number for each of {', '.join(LEVEL_SCORES)}"
    intervals = content.get("intervals") or {}
    if not isinstance(intervals, dict):
        return "intervals is no object"
    for name, ends in intervals.items():
        both = isinstance(ends, dict) and [ends.get("low"), ends.get("high")]
        if both != [None, None] and not has_numbers(ends, ("low", "high")):
            return f"intervals has no two ends for {name}"
    return _wrong_in_calibration(content.get("calibration"))


def _wrong_in_calibration(found: Any) -> str:
    """What a reliability table lacks; empty where it is whole, or there is none."""
    if found is None:
        return ""
    if not has_numbers(found, ("n", "ece", "brier", "nll")) or not found.get("bins"):
        return "calibration is not whole"
    for one in found["bins"]:
        figures = ("low", "high", "n", "confidence", "accuracy")
        ends = ("low", "high")
        whole = has_numbers(one, figures) and has_numbers(one.get("interval"), ends)
        if not whole or one["n"] < 1:
            return "calibration has a bin that is not whole"
    return ""


def has_numbers(found: Any, names: Iterable[str], *, none: bool = False) -> bool:
    """Whether it is an object with a finite number for each name.

    Args:
        found: Anything out of a JSON file.
        names: Keys.
        none: Whether null will do, or no such key.
    """
    return isinstance(found, dict) and all(_is_number(found.get(name), none=none) for name in names)


def _is_number(value: Any, *, none: bool = False) -> bool:
    """Whether it is a finite number, or null where that is allowed."""
    if value is None:
        return none
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    return whole and math.isfinite(value)


def clip_note(found: Any) -> bool:
    """Whether it says what a clip or a text about one is: id, and if at all, video and segment.

    Args:
        found: An entry of a run's clips, or a line of a rationale file.
    """
    if not isinstance(found, dict) or not isinstance(found.get("id"), str):
        return False
    segment = all(_is_number(found.get(name), none=True) for name in ("start", "end"))
    return segment and isinstance(found.get("video"), str | None)


def step_title(place: str) -> str:
    """A step of a run in words.

    Args:
        place: Its folder within the run's.
    """
    return find_stage(place).paper if is_stage(place) else TITLES.get(place, place)


def read_or_note(file: Path, problems: list[Problem]) -> dict[str, Any] | None:
    """The object of a JSON file; None, and a problem more, where it cannot be read.

    Args:
        file: The file.
        problems: What is wrong is added here.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(Problem(str(file), f"cannot be read: {reason(error)}"))
        return None
    if not isinstance(content, dict):
        problems.append(Problem(str(file), "cannot be read: it holds no object"))
        return None
    return content


def reason(error: Exception) -> str:
    """What went wrong, on one line."""
    said = error.strerror if isinstance(error, OSError) else str(error)
    return (said or type(error).__name__).splitlines()[0].rstrip(".")
