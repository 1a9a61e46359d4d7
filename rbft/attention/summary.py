"""Scores of maps over clips: means with intervals, paired differences, the table on the screen."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from rbft.analysis.intervals import Interval
from rbft.analysis.means import bootstrap_difference, bootstrap_mean
from rbft.attention.boxes import FrameBoxes
from rbft.attention.maps import slice_frames
from rbft.attention.scores import BOX_SCORES, box_scores, entropy
from rbft.runtime.console import table

# By name what each is; the first ones stand in the table.
SCORES = {
    "lift": "share of the map in boxes / share of the area (1: uniform)",
    "pointing": "peak in a box or a token beside it, share of clips",
    "auroc": "in boxes higher than outside (0.5: chance)",
    "entropy": "0: one token, 1: all alike",
    "drop": "log-odds of the class lost by masking what is looked at most, beyond random cells",
    "mass": "share of the map in boxes",
    "pointing_slices": "peak of each frame pair in a box or a token beside it",
    "pointing_chance": "what a peak at random would score",
    "drop_top": "log-odds lost by masking what is looked at most",
    "drop_random": "log-odds lost by masking as many random cells",
    "video_share": "share of the attention that goes to the video at all",
}
SHOWN = ("lift", "pointing", "auroc", "entropy", "drop")
Scores = dict[str, float]


@dataclass(frozen=True)
class Scored:
    """A run's, or a control's, scores of each clip.

    Attributes:
        name: Of the run or control, as it stands in the output.
        key: The letter that the table has for it.
        clips: Scores by clip.
    """

    name: str
    key: str
    clips: Mapping[str, Scores]

    def of(self, score: str) -> dict[str, float]:
        """One score by clip, of the clips that have it."""
        return {clip: found[score] for clip, found in self.clips.items() if score in found}

    def means(self) -> dict[str, tuple[Interval, int]]:
        """Mean and interval of each score, and its number of clips."""
        found = {}
        for score in SCORES:
            values = [value for value in self.of(score).values() if not math.isnan(value)]
            if values:
                found[score] = (bootstrap_mean(values), len(values))
        return found


def clip_scores(record: Mapping[str, Any], boxes: FrameBoxes | None) -> Scores:
    """All scores of a record.

    Args:
        record: See `rbft.attention.records.Records`.
        boxes: The clip's objects; None where they are not known.
    """
    values = np.array(record["map"])
    found = {"entropy": entropy(values), "video_share": record["video_share"], **record["causal"]}
    if boxes is not None:
        indices = record["frames"]
        found |= box_scores(values, boxes, indices, slice_frames(indices))
    return found


def differences(a: Scored, b: Scored) -> dict[str, dict[str, Any]]:
    """A - B of each score, clip by clip, as it stands in the output.

    Args:
        a: A run.
        b: Another run, or a control.
    """
    found = {}
    for score in SCORES:
        one, clips = bootstrap_difference(a.of(score), b.of(score))
        if clips:
            found[score] = as_dict(one, clips)
    return found


def as_dict(one: Interval, clips: int) -> dict[str, Any]:
    """A mean as it stands in the output: `mean`, `interval` and `n`."""
    return {"mean": one.value, "interval": one.as_dict(), "n": clips}


def scores_table(runs: Sequence[Scored], controls: Mapping[str, Sequence[Scored]]) -> str:
    """The table on the screen: means, the interval below each, and differences between runs.

    Args:
        runs: The runs.
        controls: Those of each run, by its name.
    """
    means = {one.name: one.means() for one in (*runs, *(c for cs in controls.values() for c in cs))}
    columns = [score for score in SHOWN if any(score in found for found in means.values())]
    rows: list[list[str]] = []
    for run in runs:
        for one in (run, *controls.get(run.name, ())):
            rows += _lines(one.key, [means[one.name].get(score) for score in columns])
    for first, second in combinations(runs, 2):
        cells = [bootstrap_difference(second.of(score), first.of(score)) for score in columns]
        shown = [cell if cell[1] else None for cell in cells]
        rows += _lines(f"{second.key} - {first.key}", shown, sign="+")
    legend = [f"{run.key}: {run.name}" for run in runs]
    chance = means[runs[0].name].get("pointing_chance")
    for score in columns:
        by_chance = score == "pointing" and chance is not None
        note = f" (a peak at random: {chance[0].value:.2f})" if by_chance and chance else ""
        legend.append(f"{score}: {SCORES[score]}{note}")
    return "\n".join([table(rows, ["", *columns]), *legend])


def box_note(runs: Sequence[Scored], boxes: Mapping[str, FrameBoxes] | None) -> str:
    """A sentence on clips without the scores that need boxes; empty where all have them.

    Args:
        runs: The runs.
        boxes: By clip; None where no file was given.
    """
    names = ", ".join(BOX_SCORES)
    if boxes is None:
        return f"No --boxes were given: {names} are left out."
    clips = list(runs[0].clips)
    without = [clip for clip in clips if "mass" not in runs[0].clips[clip]]
    if not without:
        return ""
    return (
        f"{len(without)} of {len(clips)} clips have no object in --boxes (first: {without[0]}): "
        f"{names} are of the others."
    )


def _lines(
    key: str, cells: Sequence[tuple[Interval, int] | None], sign: str = ""
) -> list[list[str]]:
    """Two lines of the table: means, and the ends of their intervals."""
    upper, lower = [key], [""]
    for cell in cells:
        upper.append("-" if cell is None else _short(cell[0].value, sign))
        ends = "" if cell is None else f"{_short(cell[0].low, sign)}, {_short(cell[0].high, sign)}"
        lower.append("" if "nan" in ends else ends)
    return [upper, lower] if any(lower) else [upper]


def _short(value: float, sign: str) -> str:
    """A figure in at most five columns, or six from a hundred on."""
    return f"{value:{sign}.{1 if abs(value) >= 9.995 else 2}f}"
