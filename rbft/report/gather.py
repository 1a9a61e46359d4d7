"""What runs have left on disk; what is missing or damaged is named, and nothing ends there."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rbft.report.comparison import is_comparison
from rbft.report.curves import Curve, read_curves
from rbft.report.results import (
    NO_SEVERAL,
    RESULTS,
    SKIPPED,
    Problem,
    Result,
    clip_note,
    read_or_note,
    read_results,
    reason,
    step_title,
)
from rbft.runs.folder import CLIPS, PROVENANCE, ZERO_SHOT, Run
from rbft.runs.record import SETTINGS
from rbft.runs.usage import USAGE, Spent, read_usage
from rbft.runtime.differences import flat
from rbft.stages import stage_names

NOT_RUNS = ("rationales", "compare", "attention")  # folders beside the runs
ATTENTION = "attention.json"
SCORED = "scored only"  # under a name that no fit has


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
        state: "finished", "scored only", or what is missing.
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
        content = read_or_note(file, problems)
        if content is not None and not is_comparison(content):
            problems.append(Problem(str(file), "is not what compare writes, and is left out"))
        elif content is not None and names is None:
            comparisons[file] = content
    attention = {}
    within = [folder for folder in folders if logs not in folder.parents]
    for file in _every([logs, *within], f"**/{ATTENTION}"):
        content = read_or_note(file, problems)
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
    before = len(problems)
    settings = _read_settings(folder / SETTINGS, problems)
    listed = [] if settings is None else [str(name) for name in _list(settings.get("stages"))]
    stages = tuple(stage_names(listed))
    order = [ZERO_SHOT, *stages]
    results = tuple(
        sorted(
            read_results(folder, name, problems),
            key=lambda one: (_place(one.place, order), one.split, one.file.stem),
        )
    )
    found = _steps(folder, name, problems)
    steps = {one: found[one] for one in sorted(found, key=lambda one: _place(one, order))}
    try:
        spent = read_usage(folder)
    except (ValueError, TypeError, AttributeError, OSError) as error:
        spent = {}
        problems.append(Problem(f"{name}/{USAGE}", f"cannot be read: {reason(error)}"))
    clips = _read_clips(folder / CLIPS, problems)
    flattened = None if settings is None else flat(settings)
    read = GatheredRun(name, folder, flattened, stages, steps, results, spent, clips)
    state = _state(read)
    if any(one.text == NO_SEVERAL for one in problems[before:]):
        state = "not shown: its clips may have several classes"
    elif state not in ("finished", SCORED):
        problems.append(Problem(name, state))
    elif len(problems) > before:
        state = "finished, with damaged files"
    return GatheredRun(name, folder, flattened, stages, steps, results, spent, clips, state)


def _place(name: str, order: Sequence[str]) -> tuple[int, str]:
    """Steps come in the order of the method, others behind them."""
    return (order.index(name) if name in order else len(order), name)


def _state(run: GatheredRun) -> str:
    if run.settings is None:
        return SCORED
    untrained = [
        name for name in run.stages if name not in run.steps or run.steps[name].made is None
    ]
    if untrained:
        checkpoint = Run(run.folder).checkpoint(untrained[0])
        at = f" (checkpoint {checkpoint.name})" if checkpoint else ""
        return f"is not finished: {step_title(untrained[0])} is not trained{at}"
    if run.final is None:
        return f"is not finished: the test split is not scored after {step_title(run.last)}"
    return "finished"


def _steps(folder: Path, name: str, problems: list[Problem]) -> dict[str, Stage]:
    """What each folder within a run's has left."""
    found = {}
    for inner in sorted(one for one in folder.iterdir() if one.is_dir()):
        made, events = None, sorted(inner.glob("events.out.tfevents.*"))
        if (inner / "weights" / PROVENANCE).exists():
            made = read_or_note(inner / "weights" / PROVENANCE, problems)
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
        problems.append(Problem(str(file), f"cannot be read: {reason(error)}"))
    return None


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _read_clips(file: Path, problems: list[Problem]) -> dict[str, dict[str, Any]]:
    content = read_or_note(file, problems) if file.exists() else None
    if not isinstance(content, dict):
        return {}
    return {
        split: {one["id"]: one for one in _list(clips) if clip_note(one)}
        for split, clips in content.items()
    }


def _read_lines(file: Path, problems: list[Problem]) -> list[Mapping[str, Any]]:
    """Lines of a JSON Lines file; those that are damaged are counted."""
    rows, damaged = [], 0
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        problems.append(Problem(str(file), f"cannot be read: {reason(error)}"))
        return []
    for line in filter(bytes.strip, lines):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if clip_note(row):
            rows.append(row)
        else:
            damaged += 1
    if damaged:
        count = f"{damaged} of {damaged + len(rows)} lines"
        problems.append(Problem(str(file), f"{count} cannot be read and are left out"))
    return rows
