"""The table at the end of a run: accuracy and F1 after each step of the method."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rbft.analysis.intervals import for_results, score_intervals
from rbft.analysis.levels import LEVEL_SCORES, constant_scores
from rbft.analysis.levels import TITLES as TITLES_OF_LEVELS
from rbft.analysis.scored import SEVERAL
from rbft.inference.metrics import macro_f1, percent
from rbft.rationales.selection_report import told_note
from rbft.runs.folder import TOLD, ZERO_SHOT
from rbft.runtime.console import COLUMNS, table, width
from rbft.stages import find_stage, is_stage

TITLES = {ZERO_SHOT: "backbone, zero-shot"}
# Intervals are shortened and left out until the table fits into the columns of a terminal.
# Which figures have intervals, and with how many decimals; the first that fits is taken.
EVERY, WHOLE, MAIN = ("accuracy", "f1/"), ("accuracy", "f1/macro"), ("accuracy",)
LAYOUTS = ((EVERY, 0), (WHOLE, 1), (WHOLE, 0), (MAIN, 1), (MAIN, 0))


def title_of(name: str) -> str:
    """The title of a row of the table, by the name of the results."""
    return find_stage(name).paper if is_stage(name) else TITLES.get(name, name)


def result_table(scored: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Accuracy and F1 per class after each scored step and of the majority class.

    Accuracy, macro F1 and, as far as 80 columns hold them, the F1 of each class have their 95 %
    interval in brackets; the results have all of them. Below stand the number of clips and the
    coverage, the share of them that was answered with a class; the others count as wrong.
    A step that has learnt label-conditioned rationales is marked with * and named below. Where
    clips may have several classes, the accuracy is that of whole sets of classes, micro F1 and mean
    average precision (mAP) stand beside the macro F1, and the majority is the most frequent set.
    Where the classes are levels of a scale, a second table has the errors in its unit and the rank
    correlation, beside those of always answering the median level.

    Args:
        scored: Title and results of each step, all of the same split and settings.
    """
    if not scored:
        return "No results yet."
    marked = [(f"{name} *" if one.get(TOLD) else name, one) for name, one in scored]
    layouts = [_draw(marked, *layout) for layout in LAYOUTS]
    fitting = [text for text in layouts if max(map(width, text.splitlines())) <= COLUMNS]
    made = [fitting[0] if fitting else layouts[-1], *_below(scored), *_notes(scored)]
    return "\n".join([*made, *_level_table(marked)])


def _draw(
    scored: Sequence[tuple[str, dict[str, Any]]], bracketed: Sequence[str], decimals: int
) -> str:
    """The table.

    Args:
        scored: Title and results of each step.
        bracketed: How the names of the figures begin that have intervals.
        decimals: Digits behind the point of the intervals' ends.
    """
    first = scored[0][1]
    classes = list(first["classes"])
    headers = ["", "accuracy", *(f"F1 {name}" for name in classes), "F1 macro"]
    names = ["accuracy", *(f"f1/{name}" for name in classes), "f1/macro"]
    if first.get(SEVERAL):
        headers += ["F1 micro", "mAP"]
        names += ["f1/micro", "ap/macro"]
        titles, clips = ["most frequent set"], first["n_scored"]
        majority = [first["majority"][name] for name in names]
    else:
        titles, clips = ["majority class"], sum(first["classes"].values())
        majority = _majority(list(first["classes"].values()))
    titles += [title for title, _ in scored]
    numbers = [str(clips), *(str(one["n_scored"]) for _, one in scored)]
    columns, align = [titles], "l"
    for name, of_majority in zip(names, majority, strict=True):
        column = [percent(of_majority)] + [percent(one["metrics"][name]) for _, one in scored]
        ends = [""] + [_bracket(one, name, decimals) for _, one in scored]
        bare = not any(map(name.startswith, bracketed)) or not any(ends)
        align += "r" if bare else "l"  # the title above the figures, not above the brackets
        if not bare:
            figure, bracket = max(map(len, column)), max(map(len, ends))
            column = [
                f"{value:>{figure}} {end:>{bracket}}"
                for value, end in zip(column, ends, strict=True)
            ]
        columns.append(column)
    if len(set(numbers)) > 1:
        headers.append("clips")
        columns.append(numbers)
        align += "r"
    return table(list(zip(*columns, strict=True)), headers, align)


def _level_table(scored: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Errors in the unit of the scale, where classes are levels of one; else nothing."""
    first = scored[0][1]
    if "values" not in first:
        return []
    levels = [*first["values"].values()]
    median = constant_scores(levels, list(first["classes"].values()))
    rows = [["median level", *(_figure(median[name]) for name in LEVEL_SCORES)]]
    for title, one in scored:
        ends = [_intervals(one).get(name, {"low": None}) for name in LEVEL_SCORES]
        rows.append(
            [title]
            + [
                _figure(one["metrics"].get(name)) + _level_bracket(own)
                for name, own in zip(LEVEL_SCORES, ends, strict=True)
            ]
        )
    scale = f"levels, {min(levels):g} to {max(levels):g}"
    headers = [scale, *(TITLES_OF_LEVELS[name] for name in LEVEL_SCORES)]
    return ["", table(rows, headers)]


def _level_bracket(ends: Mapping[str, float | None]) -> str:
    return "" if ends["low"] is None else f" [{ends['low']:.2f}, {ends['high']:.2f}]"


def _figure(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _majority(counts: Sequence[int]) -> list[float | None]:
    """Accuracy, F1 of each class and macro F1 of always answering the most frequent class."""
    total, most = sum(counts), max(counts)
    leader = counts.index(most)
    f1 = [
        2 * most / (total + most) if place == leader else 0.0 if count else None
        for place, count in enumerate(counts)
    ]
    return [most / total, *f1, macro_f1(f1)]


def _bracket(result: Mapping[str, Any], name: str, decimals: int) -> str:
    """The interval of a figure; nothing where it has none."""
    ends = _intervals(result).get(name, {"low": None})
    if ends["low"] is None:
        return ""
    return f"[{100 * ends['low']:.{decimals}f}, {100 * ends['high']:.{decimals}f}]"


def _intervals(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Those of the results; of results without, from their confusion matrix if they have one."""
    if "intervals" in result or "confusion" not in result:
        return result.get("intervals") or {}
    return for_results(score_intervals(np.array(result["confusion"]), list(result["classes"])))


def _below(scored: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Number of clips, coverage of the rows, and what those cost that write before they answer."""
    numbers = {one["n_scored"] for _, one in scored}
    lacking = [(title, one) for title, one in scored if one["n_unparsed"]]
    said = [f"{one} clips" for one in numbers if len(numbers) == 1]
    said += ["coverage 100 %"] * (not lacking)
    lines = [f"{', '.join(said).capitalize()}."] * bool(said)
    if any(_intervals(one) for _, one in scored):
        lines = [" ".join([*lines, "In brackets: 95 % interval."])]
    for title, one in lacking:
        none, count = one["n_unparsed"], one["n_scored"]
        lines.append(
            f"Coverage of {title}: {100 - 100 * none / count:.1f} % ({none} of {count} without "
            f"{'an answer' if one.get(SEVERAL) else 'a class'})."
        )
    for title, one in scored:
        if written := one.get("tokens_written"):
            each = written / max(1, one["n_scored"])
            lines.append(f"{title}: {each:.1f} tokens written about a clip to answer.")
    return lines


def _notes(scored: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """What is said of each marked row."""
    return [f"* {name}: {told_note(one[TOLD])}" for name, one in scored if one.get(TOLD)]
