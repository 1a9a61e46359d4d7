"""How far class probabilities can be believed, for each final result."""

from rbft.report.conditions import Conditions
from rbft.report.gather import Gathered
from rbft.report.results import Result
from rbft.report.tables import Cell, Row, Section, Table, cells, percent


def calibration_section(gathered: Gathered, conditions: Conditions) -> Section:
    """ECE, Brier score and negative log-likelihood of final results that have probabilities."""
    rows, shown = [], []
    for run in gathered.runs:
        found = None if run.final is None else run.final.content.get("calibration")
        if run.final is None or not isinstance(found, dict) or "ece" not in found:
            continue
        shown.append(run.final)
        figures = [
            Cell(f"{found[name]:.3f}", float(found[name])) for name in ("ece", "brier", "nll")
        ]
        line = cells(run.name, run.final.title, conditions.of(run.final).letter, found["n"])
        rows.append(Row((*line, *figures, accuracy_gap(run.final)), (run.name,), "ours"))
    if not rows:
        return Section("calibration", "Calibration", (), "No result has class probabilities.")
    columns = ("run", "step", "clips", "n", "ECE", "Brier", "NLL", "confidence - accuracy")
    notes = (
        "ECE over 15 bins (too high for few clips), Brier score from 0 to 2, mean negative "
        "log-probability of the label in nats; the last column is in points, above 0 where the "
        "probabilities are too sure.",
        *(f"clips {line}" for line in conditions.legend(shown)),
    )
    table = Table("Calibration of the class probabilities", columns, tuple(rows), notes)
    return Section("calibration", "Calibration", (table,))


def accuracy_gap(result: Result) -> Cell:
    """Mean confidence minus accuracy over the bins."""
    bins = result.content["calibration"].get("bins", [])
    total = sum(one["n"] for one in bins)
    if not total:
        return percent(None)
    gap = sum(one["n"] * (one["confidence"] - one["accuracy"]) for one in bins) / total
    return Cell(f"{100 * gap:+.1f}", float(gap))
