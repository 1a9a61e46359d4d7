"""What runs have left on disk; what is missing or damaged is named, and nothing ends there."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rbft.analysis.intervals import for_results, score_intervals
from rbft.analysis.scored import ScoredClips
from rbft.report.curves import Curve, read_curves
from rbft.runs.folder import CLIPS, PROVENANCE, ZERO_SHOT, Run
from rbft.runs.record import SETTINGS
from rbft.runs.usage import USAGE, Spent, read_usage
from rbft.runtime.differences import flat
from rbft.stages import STAGES

RESULTS = re.compile(r"(?P<split>test|val)(-(?P<tag>.+))?\.json")
NOT_RUNS = ("rationales", "compare", "attention")  # folders beside the runs
SKIPPED = ("weights", "checkpoints", USAGE)  # folders within a run that hold no results
ATTENTION = "attention.json"
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
        said = STAGES[self.place].paper if self.place in STAGES else TITLES.get(self.place)
        return said or self.place

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in order."""
        return tuple(self.content["classes"])

    @property
    def masking(self) -> Mapping[str, Any] | None:
        """How the frames were masked; None where they were not."""
        return self.content.get("masking")

    @property
    def metrics(self) -> list[str]:
        """Names of accuracy, F1 of each class and macro F1, as in the results."""
        return ["accuracy", *(f"f1/{name}" for name in self.classes), "f1/macro"]

    def score(self, metric: str) -> float | None:
        """A score from 0 to 1; None where it is undefined.

        Args:
            metric: `accuracy`, `f1/<class>` or `f1/macro`.
        """
        return self.content["metrics"].get(metric)

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


@dataclass(frozen=True)
class Stage:
    """What a stage has left.

    Attributes:
        name: Its name.
        made: What made its weights, `rbft.json`; None where it is not trained.
        curves: Step and value by tag.
    """

    name: str
    made: Mapping[str, Any] | None
    curves: Mapping[str, Curve]


@dataclass(frozen=True)
class GatheredRun:
    """A run as far as it is there.

    Attributes:
        name: What the page calls it.
        folder: Its folder.
        settings: All settings by dotted name; None where none are noted.
        stages: Names of its stages in order.
        steps: Folders that have curves or weights, by name.
        results: Scores, those of masked frames among them.
        spent: Time and memory by phase.
        clips: The clips of each split by id, see `rbft.data.content.describe_clips`.
        state: "finished", or what is missing.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any] | None
    stages: tuple[str, ...]
    steps: Mapping[str, Stage]
    results: tuple[Result, ...]
    spent: Mapping[str, Spent]
    clips: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    state: str = "finished"

    @property
    def benchmark(self) -> str:
        """Name of the benchmark's class; empty where it is not noted."""
        return str(self.setting("data.class_path") or "").rpartition(".")[2]

    @property
    def backbone(self) -> str:
        """The backbone's name or path; empty where it is not noted."""
        return str(self.setting("model.backbone") or "")

    @property
    def last(self) -> str:
        """Place of the final results."""
        return self.stages[-1] if self.stages else ZERO_SHOT

    @property
    def final(self) -> Result | None:
        """The final results on the test split, made as the run makes them."""
        found = [one for one in self.results if one.masking is None and one.split == "test"]
        own = [one for one in found if one.place == self.last and one.file.stem == "test"]
        if not own and self.settings is None:  # only scored: the one there is
            own = [one for one in found if one.file.stem == "test"]
        return own[0] if own else None

    def setting(self, name: str) -> Any:
        """A setting by its dotted name; None where it is not noted."""
        return None if self.settings is None else self.settings.get(name)


@dataclass(frozen=True)
class Gathered:
    """All that the report is about.

    Attributes:
        runs: The runs.
        problems: What is damaged or not finished.
        comparisons: What `compare` has left, by file.
        attention: What `attention` has left, by file.
        rationales: Lines of rationale files, by file.
    """

    runs: tuple[GatheredRun, ...]
    problems: tuple[Problem, ...]
    comparisons: Mapping[Path, Mapping[str, Any]] = field(default_factory=dict)
    attention: Mapping[Path, Mapping[str, Any]] = field(default_factory=dict)
    rationales: Mapping[Path, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    def run(self, name: str) -> GatheredRun:
        """The run of that name."""
        return next(one for one in self.runs if one.name == name)


def gather(logs: Path, names: Sequence[str] | None = None) -> Gathered:
    """Reads what runs have left.

    Args:
        logs: Folder of the runs.
        names: Runs by name or folder; None takes all of `logs`.

    Raises:
        ValueError: If there is no run, or none of a name.
    """
    problems: list[Problem] = []
    folders = _find(logs, names)
    repeated = {one.name for one in folders if [f.name for f in folders].count(one.name) > 1}
    runs = tuple(
        _read_run(folder, str(folder) if folder.name in repeated else folder.name, problems)
        for folder in folders
    )
    known = {one.name for one in runs} | {one.folder.name for one in runs}
    beside = sorted({folder.parent for folder in folders} | {logs})
    comparisons = {}
    for file in _every(beside, "compare/*.json"):
        content = _read(file, problems)
        if content is not None and names is None:
            comparisons[file] = content
    attention = {}
    within = [folder for folder in folders if logs not in folder.parents]
    for file in _every([logs, *within], f"**/{ATTENTION}"):
        content = _read(file, problems)
        if content is not None and (names is None or _about(content) & known):
            attention[file] = content
    rationales = {}
    for file in _every(beside, "rationales/*.jsonl"):
        rationales[file] = _read_lines(file, problems)
    return Gathered(runs, tuple(problems), comparisons, attention, rationales)


def _about(attention: Mapping[str, Any]) -> set[str]:
    """Names of the runs of an attention folder."""
    return {Path(str(one)).name for one in _list(attention.get("runs"))}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _find(logs: Path, names: Sequence[str] | None) -> list[Path]:
    """Folders of the runs."""
    there = {}
    if logs.is_dir():
        folders = sorted((one for one in logs.iterdir() if one.is_dir()), key=_natural)
        there = {one.name: one for one in folders if one.name not in NOT_RUNS and _is_run(one)}
    if names is None:
        if not there:
            raise ValueError(
                f"{logs} holds no run. Train one (python -m rbft fit), or name another --logs."
            )
        return list(there.values())
    found = []
    for name in names:
        folder = there.get(str(name), Path(name))
        if not folder.is_dir() or not _is_run(folder):
            raise ValueError(
                f"--runs names '{name}', which is neither a run of {logs} nor the folder of one; "
                f"there are {', '.join(there) or 'none'}."
            )
        found.append(folder)
    if not found:
        raise ValueError(f"--runs is empty. Name runs of {logs}, or leave it out to take all.")
    return list(dict.fromkeys(found))


def _is_run(folder: Path) -> bool:
    if (folder / SETTINGS).exists():
        return True
    inner = [one for one in folder.iterdir() if one.is_dir() and one.name not in SKIPPED]
    return any(RESULTS.fullmatch(file.name) for one in inner for file in one.glob("*.json"))


def _natural(path: Path) -> list[Any]:
    """Sorts run_2 before run_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _every(folders: Iterable[Path], pattern: str) -> list[Path]:
    found = (file for folder in folders if folder.is_dir() for file in folder.glob(pattern))
    return sorted(dict.fromkeys(one for one in found if not one.name.startswith(".")))


def _read_run(folder: Path, name: str, problems: list[Problem]) -> GatheredRun:
    """A run; what is wrong with it goes to the problems."""
    settings = _read_settings(folder / SETTINGS, problems)
    stages = () if settings is None else tuple(map(str, _list(settings.get("stages"))))
    order = [ZERO_SHOT, *stages]
    results = tuple(
        sorted(
            _results(folder, name, problems),
            key=lambda one: (_place(one.place, order), one.split, one.file.stem),
        )
    )
    found = _steps(folder, name, problems)
    steps = {one: found[one] for one in sorted(found, key=lambda one: _place(one, order))}
    try:
        spent = read_usage(folder)
    except (ValueError, TypeError, AttributeError, OSError) as error:
        spent = {}
        problems.append(Problem(f"{name}/{USAGE}", f"cannot be read: {_reason(error)}"))
    clips = _read_clips(folder / CLIPS, problems)
    flattened = None if settings is None else flat(settings)
    read = GatheredRun(name, folder, flattened, stages, steps, results, spent, clips)
    state = _state(read)
    if state != "finished":
        problems.append(Problem(name, state))
    return GatheredRun(name, folder, flattened, stages, steps, results, spent, clips, state)


def _place(name: str, order: Sequence[str]) -> tuple[int, str]:
    """Steps come in the order of the method, others behind them."""
    return (order.index(name) if name in order else len(order), name)


def _state(run: GatheredRun) -> str:
    if run.settings is None:
        return "has no settings.yaml: it was scored, not trained, or its folder is damaged"
    untrained = [
        name for name in run.stages if name not in run.steps or run.steps[name].made is None
    ]
    if untrained:
        checkpoint = Run(run.folder).checkpoint(untrained[0])
        at = f" (checkpoint {checkpoint.name})" if checkpoint else ""
        return f"is not finished: {_paper(untrained[0])} is not trained{at}"
    if run.final is None:
        return f"is not finished: the test split is not scored after {_paper(run.last)}"
    return "finished"


def _paper(place: str) -> str:
    return STAGES[place].paper if place in STAGES else TITLES.get(place, place)


def _results(folder: Path, name: str, problems: list[Problem]) -> Iterable[Result]:
    for file in sorted(folder.rglob("*.json")):
        inner = file.relative_to(folder).parts
        match = RESULTS.fullmatch(file.name)
        if match is None or len(inner) < 2 or any(part in SKIPPED for part in inner[:-1]):
            continue
        content = _read(file, problems)
        if content is None:
            continue
        where = str(Path(name, *inner))
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
            if len(rows) != content["n_scored"]:
                text = f"hold {len(rows)} clips, but {file.name} is about {content['n_scored']}"
                raise ValueError(text)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            scored, rows = None, ()
            said = str(Path(name, *inner[:-1], lines.name))
            problems.append(Problem(said, f"the predictions cannot be used: {_reason(error)}"))
        yield Result(name, "/".join(inner[:-1]), match["split"], file, content, scored, rows)


def _wrong_in(content: Any) -> str:
    """What a results file lacks; empty where it has all that the page shows."""
    if not isinstance(content, dict):
        return "it holds no object"
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
    shown = content["metrics"].get("accuracy")
    right = np.diagonal(confusion).sum() / max(1, content["n_scored"])
    if not isinstance(shown, int | float) or abs(shown - right) > 1e-4:
        return f"the accuracy is {shown}, but its confusion matrix has {right:.4f}"
    return ""


def _steps(folder: Path, name: str, problems: list[Problem]) -> dict[str, Stage]:
    """What each folder within a run's has left."""
    found = {}
    for inner in sorted(one for one in folder.iterdir() if one.is_dir()):
        made, events = None, sorted(inner.glob("events.out.tfevents.*"))
        if (inner / "weights" / PROVENANCE).exists():
            made = _read(inner / "weights" / PROVENANCE, problems)
        curves, damaged = read_curves(events)
        problems += [Problem(f"{name}/{inner.name}", text) for text in damaged]
        if events or made is not None:
            found[inner.name] = Stage(inner.name, made, curves)
    return found


def _read_settings(file: Path, problems: list[Problem]) -> dict[str, Any] | None:
    if not file.exists():
        return None
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
        if isinstance(content, dict):
            return content
        problems.append(Problem(str(file), "holds no settings"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(Problem(str(file), f"cannot be read: {_reason(error)}"))
    return None


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _read_clips(file: Path, problems: list[Problem]) -> dict[str, dict[str, Any]]:
    content = _read(file, problems) if file.exists() else None
    if not isinstance(content, dict):
        return {}
    return {
        split: {one["id"]: one for one in _list(clips) if isinstance(one, dict) and "id" in one}
        for split, clips in content.items()
    }


def _read(file: Path, problems: list[Problem]) -> Any:
    """Content of a JSON file; None, and a problem, where it cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(Problem(str(file), f"cannot be read: {_reason(error)}"))
        return None


def _read_lines(file: Path, problems: list[Problem]) -> list[Mapping[str, Any]]:
    """Lines of a JSON Lines file; those that are damaged are counted."""
    rows, damaged = [], 0
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        problems.append(Problem(str(file), f"cannot be read: {_reason(error)}"))
        return []
    for line in filter(bytes.strip, lines):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            damaged += 1
    if damaged:
        count = f"{damaged} of {damaged + len(rows)} lines"
        problems.append(Problem(str(file), f"{count} cannot be read and are left out"))
    return rows


def _reason(error: Exception) -> str:
    said = error.strerror if isinstance(error, OSError) else str(error)
    return (said or type(error).__name__).splitlines()[0].rstrip(".")
