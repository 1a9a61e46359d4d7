"""Scores with masks on disk, put together for a table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import yaml

from rbft.analysis.intervals import Interval
from rbft.analysis.masked import (
    MaskedRun,
    cost_difference,
    for_json,
    masking_cost,
    over_draws,
    scores_of,
)
from rbft.analysis.scored import ScoredClips, some
from rbft.commands.compared_runs import final_place
from rbft.masking.settings import MASKING
from rbft.runs.folder import Run, read_json
from rbft.runs.record import SETTINGS, digest
from rbft.runtime.console import table

APART = ("weights", "stage", MASKING)  # what results of one comparison may differ in
FRAMES = {"shapes": "in the objects' shapes", "cells": "in cells", "short": "with too little room"}


@dataclass
class MaskedResults:
    """The results of one run that belong together: all but what is masked is equal.

    Attributes:
        name: The run's.
        asked: Digest of what they have in common: clips, frames, words, question.
        alike: Digest of what they have in common with those of other runs that compare: clips,
            frames, words, boxes, fill.
        fill: What was drawn in the place of what is masked.
        original: The result without masks.
        objects: The result with objects masked.
        random: The results of the random draws, by seed and number.
    """

    name: str
    asked: str
    alike: str
    fill: str
    original: Path | None = None
    objects: Path | None = None
    random: dict[tuple[int, int], Path] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """What there is no result of, in words."""
        there = {
            "without masks": self.original,
            "with objects masked": self.objects,
            "with random masks": self.random,
        }
        return [name for name, one in there.items() if not one]

    def read(self) -> MaskedRun:
        """The answers, with all clips."""
        assert self.original is not None
        assert self.objects is not None
        draws = [self.random[key] for key in sorted(self.random)]
        return MaskedRun(
            self.name,
            ScoredClips.from_file(self.original, f"{self.name}, original frames"),
            ScoredClips.from_file(self.objects, f"{self.name}, objects masked"),
            tuple(
                ScoredClips.from_file(file, f"{self.name}, random masked ({n})")
                for n, file in enumerate(draws, start=1)
            ),
        )

    @property
    def files(self) -> dict[str, Any]:
        """Where the results stand."""
        draws = [str(self.random[key]) for key in sorted(self.random)]
        return {"original": str(self.original), "objects": str(self.objects), "random": draws}

    def facts(self) -> dict[str, Any]:
        """What was masked: of the objects, and of all draws."""
        assert self.objects is not None
        draws = [read_json(self.random[key])[MASKING] for key in sorted(self.random)]
        return {"objects": read_json(self.objects)[MASKING], "random": draws}

    @property
    def unmatched(self) -> list[str]:
        """Clips of which less could be masked at random than the objects take."""
        ids = [one for draw in self.facts()["random"] for one in draw["unmatched"]]
        return sorted(set(ids))


def find_masked(logs: Path, weights: str, split: str, name: str) -> list[MaskedResults]:
    """The results of weights with masks, wherever under the logs they were written.

    Args:
        logs: Folder of all runs.
        weights: Fingerprint of the weights.
        split: The scored split.
        name: What to call the run.
    """
    groups: dict[str, MaskedResults] = {}
    originals: dict[str, Path] = {}
    for file in sorted(logs.glob(f"*/*/{split}*.json")):
        made = _made(file)
        if made.get("weights") != weights:
            continue
        common = {key: value for key, value in made.items() if key not in APART}
        asked, masking = digest([common, made.get("stage")]), made.get(MASKING)
        if masking is None:
            originals.setdefault(asked, file)
            continue
        alike = digest([common, masking["boxes"], masking["fill"]])
        one = MaskedResults(name, asked, alike, masking["fill"])
        one = groups.setdefault(digest([alike, asked]), one)
        if masking["kind"] == "objects":
            one.objects = file
        else:
            one.random[masking["seed"], masking["repeat"]] = file
    for one in groups.values():
        one.original = originals.get(one.asked)
    return list(groups.values())


def weights_of(folder: Path, split: str) -> str:
    """Fingerprint of the weights that a run's own result is of.

    Args:
        folder: The run's.
        split: The scored split.

    Raises:
        ValueError: If it is no run, or has no result.
    """
    if not (folder / SETTINGS).is_file():
        raise ValueError(
            f"--runs: {folder} is no run: it holds no {SETTINGS}. Give the folders of finished "
            'runs, or their names: "[smarthome_qwen2, smarthome_qwen2_direct]".'
        )
    settings = yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8"))
    _, place = final_place(settings)
    file = Run(folder).results(place, split)
    if not file.is_file():
        raise ValueError(
            f"--runs: the run {folder} has no result {file.relative_to(folder)}. Run fit, or "
            f"python -m rbft {'test' if split == 'test' else 'validate'}, with its --config."
        )
    return read_json(file)["made"]["weights"]


def cost_table(runs: Sequence[MaskedResults]) -> tuple[str, dict[str, Any]]:
    """The paper's Table 5 of runs that were masked alike, and the differences that it is about.

    Args:
        runs: Complete results; the first run is what the others are compared with.

    Returns:
        The table, no wider than a terminal, and all figures for JSON.

    Raises:
        ValueError: If the runs were not scored on the same clips.
    """
    unmatched = sorted({name for one in runs for name in one.unmatched})
    read = [one.read().without(unmatched) for one in runs]
    classes = read[0].original.classes
    names = ["accuracy", *(f"f1/{name}" for name in classes), "f1/macro"]
    shown = names if len(classes) < 4 else ["accuracy", "f1/macro"]
    rows, said, figures = [], [], []
    for one, run in zip(runs, read, strict=True):
        draws, cost = over_draws(run), masking_cost(run)
        plain = {"original": scores_of(run.original), "objects": scores_of(run.objects)}
        rows.append([one.name, *[""] * len(shown)])
        rows.append(["  original frames", *(_percent(plain["original"][name]) for name in shown)])
        spread = [f"{_percent(draws[name].mean)}{_sd(draws[name].sd)}" for name in shown]
        rows.append([f"  random masked ({len(run.random)})", *spread])
        rows.append(["  objects masked", *(_percent(plain["objects"][name]) for name in shown)])
        said += [
            f"{one.name}, objects - random:",
            f"  accuracy {_points(cost.accuracy)}, macro F1 {_points(cost.macro_f1)}",
            f"  McNemar's p{_p(cost.p)}",
        ]
        random = {name: found.as_dict() for name, found in draws.items()}
        own = {"run": one.name, "scores": {**plain, "random": random}, "cost": cost.as_dict()}
        own["masking"], own["files"] = one.facts(), one.files
        figures.append(own)
    apart = [cost_difference(run, read[0]) for run in read[1:]]
    for one in apart:
        said += [
            f"{one.a} - {one.b}, objects - random:",
            f"  accuracy {_points(one.accuracy)}, macro F1 {_points(one.macro_f1)}",
        ]
    headers = ["", *(name.replace("f1/", "F1 ") for name in shown)]
    lines = [
        table(rows, headers),
        f"In per cent, {len(read[0].original.ids)} clips; random: mean ± sd of the draws. "
        "Below: in",
        "points, with 95 % intervals (paired bootstrap over clips); negative is a loss.",
        *said,
        *_what_was_masked(runs[0]),
    ]
    if unmatched:
        lines.append(
            f"Left out: {some(unmatched, 'clip')}, in which the objects take more than is left."
        )
    made = {
        "fill": runs[0].fill,
        "boxes": runs[0].facts()["objects"]["boxes"],
        "clips": read[0].original.digest,
        "n": len(read[0].original.ids),
        "left_out": unmatched,
        "runs": figures,
        "differences": [one.as_dict() for one in apart],
    }
    return "\n".join(lines), for_json(made)


def _what_was_masked(one: MaskedResults) -> list[str]:
    """How much of the frames, and how the random masks were found."""
    facts = one.facts()
    objects, draws = facts["objects"], facts["random"]
    if objects["area"] is None:
        return ["No clip could be decoded."]
    frames = {name: sum(draw["frames"][name] for draw in draws) for name in FRAMES}
    total = max(1, sum(frames.values()))
    found = ", ".join(
        f"{100 * count / total:.0f} % {FRAMES[name]}" for name, count in frames.items() if count
    )
    ratios, overlaps = ([draw[name] or 0.0 for draw in draws] for name in ("area_ratio", "overlap"))
    every = sum(objects["frames"].values())
    return [
        f"Objects: {100 * objects['area']:.1f} % of the frame, masked ({one.fill}); "
        f"{objects['frames']['empty']} of {every} frames have none.",
        f"Random masks: {fmean(ratios):.4f} times as much, {100 * fmean(overlaps):.2f} % of it on "
        "objects;",
        f"  frames: {found or 'none'}.",
    ]


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _sd(value: float) -> str:
    return "" if math.isnan(value) else f"±{100 * value:.1f}"


def _points(found: Interval) -> str:
    return found.percent(sign="+")


def _p(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f": {values[0]:.3g}"
    least, most = min(values), max(values)
    return f", median of {len(values)} draws: {median(values):.3g} ({least:.3g} to {most:.3g})"


def _made(file: Path) -> dict[str, Any]:
    """What determines a result; empty where the file is none."""
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return {}
    return found.get("made") or {} if isinstance(found, dict) else {}
