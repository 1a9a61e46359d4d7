"""The metrics of a run's training as a table, `history.csv`, and its curves as a picture."""

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rbft.runtime.files import write_text
from rbft.stages import find_stage

HISTORY, CURVES = "history.csv", "curves.png"
FIRST_COLUMNS = ["stage", "step"]
# What is drawn: title of the panel, and how the names of its metrics are found in the table.
PANELS = (
    ("loss", ("train/loss", "val/loss")),
    ("validation, per cent", ("val/accuracy", "val/f1/macro")),
    ("gradient norm", ("train/grad_norm",)),
    ("clips per second", ("speed/clips_per_second",)),
)


class History(Callback):
    """Adds a row for each logged optimiser step of a stage to the run's table.

    A row is on disk before the step's checkpoint is. A stage that resumes takes out the rows of
    steps that are trained again, one that begins anew all of its rows. Not a logger: those are
    given a step's metrics behind its checkpoint, and a run that ends there would lose them.

    Args:
        file: The table, of the run.
        stage: Name of the stage.
    """

    def __init__(self, file: Path, stage: str) -> None:
        self.file, self.stage = file, stage
        self.columns: list[str] = []
        self.begun = False
        self.row: dict[str, Any] = {}  # the last one, which a validation adds to
        self.place = 0  # where it begins in the file, in bytes

    def begin(self, step: int) -> None:
        """Takes out what is trained again; a second call does nothing.

        Args:
            step: Steps that were trained before, 0 at the beginning.
        """
        if self.begun:
            return
        self.begun = True
        columns, rows = read_history(self.file)
        self.columns = columns or [*FIRST_COLUMNS]
        kept = [r for r in rows if r["stage"] != self.stage or int(r["step"]) <= step]
        self._write(kept)
        self.row = dict(kept[-1]) if kept else {}
        self.place -= len(self._line(self.row)) if kept else 0

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a row, or more to the last one.

        Args:
            step: The step, from 1.
            metrics: Value by name.
        """
        self.begin(step)  # a validation that is repeated comes before training begins
        place = {"stage": self.stage, "step": str(step)}
        same = bool(self.row) and all(self.row[name] == value for name, value in place.items())
        self.row = {**(self.row if same else place), **metrics}
        if new := [name for name in self.row if name not in self.columns]:
            self.columns = [*FIRST_COLUMNS, *sorted({*self.columns, *new} - {*FIRST_COLUMNS})]
            _, rows = read_history(self.file)
            self._write(rows[:-1] if same else rows)
        elif not same:
            self.place = self.file.stat().st_size
        with self.file.open("r+b") as stream:
            stream.truncate(self.place)
            stream.seek(self.place)
            stream.write(self._line(self.row))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes out rows of steps that are trained again."""
        if trainer.is_global_zero:
            self.begin(trainer.global_step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Notes the learning rates of the step; afterwards they are those of the next one."""
        self.before = trainer.global_step
        groups = trainer.optimizers[0].param_groups
        self.rates = {f"lr/{group['name']}": float(group["lr"]) for group in groups}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes the row of a step that is whole."""
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step > self.before and step % every == 0 and trainer.is_global_zero:
            self.add(step, {**self.rates, **_found(trainer, ("train/", "speed/"))})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the metrics of the validation."""
        if trainer.is_global_zero and trainer.state.fn == "fit":
            self.add(trainer.global_step, _found(trainer, ("val/",)))

    def _line(self, row: Mapping[str, Any]) -> bytes:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self.columns, lineterminator="\n").writerow(row)
        return text.getvalue().encode()

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        head = ",".join(self.columns) + "\n"
        text = head.encode() + b"".join(map(self._line, rows))
        write_text(self.file, text.decode())
        self.place = len(text)


def _found(trainer: Trainer, kinds: tuple[str, ...]) -> dict[str, float]:
    """The logged metrics of these kinds."""
    found = trainer.callback_metrics.items()
    return {name: float(value) for name, value in found if name.startswith(kinds)}


def read_history(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and whole rows of a run's table; none where there is no table.

    Args:
        file: The table. A last row that a kill has cut off is left out.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError:
        return [], []
    whole = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(whole, newline=""))
    return [*(reader.fieldnames or [])], list(reader)


def draw_curves(file: Path, picture: Path) -> bool:
    """Draws the curves of all stages, side by side in the order of their training.

    Args:
        file: The table.
        picture: The PNG to write.

    Returns:
        Whether there was anything to draw.
    """
    _, rows = read_history(file)
    panels = [(title, names, _series(rows, names)) for title, names in PANELS]
    panels = [(title, found) for title, _, found in panels if found]
    if not panels:
        return False
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 1.0 + 1.7 * len(panels)), dpi=110)
    figure.set_layout_engine("constrained")
    places = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    ends: dict[str, int] = {}
    for row in rows:
        ends[row["stage"]] = max(ends.get(row["stage"], 0), int(row["step"]))
    stages = list(ends)
    starts = dict(zip(stages, accumulate([0, *ends.values()]), strict=False))
    for panel, (title, found) in zip(places, panels, strict=True):
        for number, (name, of_stage) in enumerate(found.items()):
            for stage, points in of_stage.items():
                panel.plot(
                    [starts[stage] + step for step, _ in points],
                    [value for _, value in points],
                    marker="o" if name.startswith("val/") or len(points) == 1 else None,
                    markersize=3,
                    linewidth=1.2,
                    color=f"C{number}",
                    label=name if stage == next(iter(of_stage)) else None,
                )
        for stage in stages[1:]:
            panel.axvline(starts[stage], color="#999999", linewidth=0.8, linestyle=":")
        panel.set_ylabel(title, fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.25)
        if len(found) > 1:
            panel.legend(fontsize=7)
    for stage in stages:
        places[0].annotate(
            find_stage(stage).paper,
            (starts[stage], 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=7,
            color="#555555",
        )
    places[0].set_xlim(0, sum(ends.values()) + 0.5)
    places[-1].set_xlabel("optimiser step, all stages", fontsize=8)
    places[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    with suppress(OSError):  # a full disk: the run itself says so where it matters
        figure.savefig(picture)
    return True


def _series(
    rows: Sequence[Mapping[str, str]], names: Sequence[str]
) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Points of each metric by stage; rates of accuracy and F1 in per cent."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for name in names:
        factor = 100 if name.startswith(("val/accuracy", "val/f1")) else 1
        for row in rows:
            if row.get(name):
                point = (int(row["step"]), factor * float(row[name]))
                found.setdefault(name, {}).setdefault(row["stage"], []).append(point)
    return found
