"""The table at the end of a run: accuracy and F1 after each step of the method."""

from collections.abc import Sequence
from typing import Any

from rbft.inference.metrics import macro_f1, percent
from rbft.rationales.selection_report import told_note
from rbft.runs.folder import TOLD, ZERO_SHOT
from rbft.runtime.console import table
from rbft.stages import STAGES

TITLES = {ZERO_SHOT: "backbone, zero-shot"}


def title_of(name: str) -> str:
    """The title of a row of the table, by the name of the results."""
    if name in STAGES:
        return f"after {STAGES[name].paper}"
    return TITLES.get(name, name)


def result_table(scored: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Accuracy and F1 per class after each scored step and of the majority class.

    A step that has learnt label-conditioned rationales is marked with * and named below.

    Args:
        scored: Title and results of each step, all of the same split and settings.
    """
    if not scored:
        return "No results yet."
    first = scored[0][1]
    classes = list(first["classes"])
    headers = ["", "accuracy", *(f"F1 {name}" for name in classes), "F1 macro", "unparsed", "clips"]
    total = sum(first["classes"].values())
    most = max(first["classes"].values())
    counts = list(first["classes"].values())
    leader = counts.index(most)
    f1 = [
        2 * most / (total + most) if place == leader else 0.0 if count else None
        for place, count in enumerate(counts)
    ]
    rows = [
        [
            "majority class",
            percent(most / total),
            *map(percent, f1),
            percent(macro_f1(f1)),
            "0",
            str(total),
        ]
    ]
    notes = []
    for title, result in scored:
        if told := result.get(TOLD):
            notes.append(f"* {title}: {told_note(told)}")
            title = f"{title} *"
        metrics = result["metrics"]
        rows.append(
            [
                title,
                percent(metrics["accuracy"]),
                *(percent(metrics[f"f1/{name}"]) for name in classes),
                percent(metrics["f1/macro"]),
                str(result["n_unparsed"]),
                str(result["n_scored"]),
            ]
        )
    return "\n".join([table(rows, headers), *notes])
