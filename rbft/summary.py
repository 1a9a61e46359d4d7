"""The table at the end: what each step of the method is worth on the scored split."""

import json
from typing import Any

from rbft.run import ZERO_SHOT, Run
from rbft.screen import table
from rbft.stages import STAGES

TITLES = {ZERO_SHOT: "backbone, zero-shot"}


def _title(place: str) -> str:
    if place in STAGES:
        return f"after {STAGES[place].paper}"
    return TITLES.get(place, place)


def result_table(run: Run, stages: list[str], split: str = "test") -> str:
    """Accuracy and F1 per class after each scored step, beside the majority class.

    Args:
        run: The run.
        stages: Its stages, in order.
        split: The scored split.
    """
    scored: list[tuple[str, dict[str, Any]]] = []
    for place in dict.fromkeys([ZERO_SHOT, *stages]):
        file = run.results(place, split)
        if file.exists():
            scored.append((_title(place), json.loads(file.read_text(encoding="utf-8"))))
    if not scored:
        return "No results yet."
    first = scored[0][1]
    classes = list(first["classes"])
    headers = ["", "accuracy", *(f"F1 {name}" for name in classes), "F1 macro", "unparsed", "clips"]
    total = sum(first["classes"].values())
    most = max(first["classes"].values())
    f1 = [200 * n / (total + n) if n == most else 0.0 for n in first["classes"].values()]
    if list(first["classes"].values()).count(most) > 1:
        leader = list(first["classes"].values()).index(most)
        f1 = [value if place == leader else 0.0 for place, value in enumerate(f1)]
    rows = [
        [
            "majority class",
            f"{100 * most / total:.2f}",
            *(f"{value:.2f}" for value in f1),
            f"{sum(f1) / len(f1):.2f}",
            "0",
            str(total),
        ]
    ]
    for title, result in scored:
        metrics = result["metrics"]
        rows.append(
            [
                title,
                f"{100 * metrics['accuracy']:.2f}",
                *(f"{100 * metrics[f'f1/{name}']:.2f}" for name in classes),
                f"{100 * metrics['f1/macro']:.2f}",
                str(result["n_unparsed"]),
                str(result["n_scored"]),
            ]
        )
    return table(rows, headers)
