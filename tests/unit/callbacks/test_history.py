"""The table of a run's training, over kills, and its curves."""

import csv
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from rbft.callbacks.history import History, draw_curves, read_history
from rbft.module import RBFTModule
from tests.examples import CARD, MODULE_SETTINGS, Yard, fed, trainer


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def height(picture: Path) -> int:
    with Image.open(picture) as image:
        return image.size[1]


def test_it_has_a_row_for_each_step(tmp_path: Path) -> None:
    file = tmp_path / "run" / "history.csv"
    one = History(file, "rationale")
    one.begin(0)
    one.add(1, {"train/loss": 2.0})
    assert rows(file) == [{"stage": "rationale", "step": "1", "train/loss": "2.0"}]
    one.add(2, {"train/loss": 1.0, "lr/head": 0.5})
    one.add(2, {"val/loss": 4.0})
    two = History(file, "label")
    two.begin(0)
    two.add(1, {"lr/head": 0.3})
    assert [tuple(row.values()) for row in rows(file)] == [
        ("rationale", "1", "", "2.0", ""),
        ("rationale", "2", "0.5", "1.0", "4.0"),
        ("label", "1", "0.3", "", ""),
    ]
    assert list(rows(file)[0]) == ["stage", "step", "lr/head", "train/loss", "val/loss"]


def test_a_stage_that_goes_on_takes_out_what_is_trained_again(tmp_path: Path) -> None:
    file = tmp_path / "history.csv"
    one = History(file, "rationale")
    one.begin(0)
    for step in range(1, 6):
        one.add(step, {"train/loss": float(step), "val/loss": 0.5})
    with file.open("a") as stream:
        stream.write("rationale,6")  # cut off by a kill
    again = History(file, "rationale")
    again.add(3, {"val/loss": 0.25})  # a validation that is repeated, before training begins
    again.begin(3)
    again.add(4, {"train/loss": 40.0})
    assert [(row["step"], row["train/loss"], row["val/loss"]) for row in rows(file)] == [
        ("1", "1.0", "0.5"),
        ("2", "2.0", "0.5"),
        ("3", "3.0", "0.25"),
        ("4", "40.0", ""),
    ]
    History(file, "label").begin(0)
    assert len(rows(file)) == 4
    History(file, "rationale").begin(0)
    assert rows(file) == []


@pytest.mark.parametrize("every", [1, 2])
def test_it_equals_what_training_logs(qwen: Path, tmp_path: Path, every: int) -> None:
    batches = {"global_batch_size": 2, "batch_size": 2}
    yard = Yard(tmp_path / "card.yaml", {"train": 6, "val": 2, "test": 2}, **batches)
    module = RBFTModule(str(qwen), CARD, stage="label", **MODULE_SETTINGS)
    csv_logger = CSVLogger(tmp_path, name="theirs", version="")
    history = History(tmp_path / "history.csv", "label")
    own = [LearningRateMonitor("step"), history]
    run = trainer(
        tmp_path, logger=[csv_logger], callbacks=own, max_epochs=2, log_every_n_steps=every
    )
    run.fit(module, fed(yard, module))
    found = rows(history.file)
    assert [row["step"] for row in found if row["train/loss"]] == [
        str(step) for step in range(every, 7, every)
    ]
    assert [row["step"] for row in found if row["val/loss"]] == ["3", "6"]
    # Lightning's own logger counts from 0 and has a row for each call.
    theirs = rows(tmp_path / "theirs" / "metrics.csv")
    for name, column in [("train/loss", "train/loss"), ("train/grad_norm", "train/grad_norm")]:
        assert _column(found, name, 0) == _column(theirs, column, 1)
    assert _column(found, "val/loss", 0) == _column(theirs, "val/loss", 1)
    rate = next(name for name in theirs[0] if name.startswith("lr/language"))
    assert _column(found, rate, 0).items() <= _column(theirs, rate, 1).items()


def _column(table: list[dict[str, str]], name: str, first: int) -> dict[int, float]:
    return {int(row["step"]) + first: float(row[name]) for row in table if row[name]}


def test_the_curves_of_all_stages_are_drawn(tmp_path: Path) -> None:
    file, picture = tmp_path / "history.csv", tmp_path / "curves.png"
    assert read_history(file) == ([], [])
    assert not draw_curves(file, picture)
    assert not picture.exists()
    for stage in ("rationale", "label"):
        one = History(file, stage)
        one.begin(0)
        for step in range(1, 5):
            one.add(step, {"train/loss": 1.0 / step, "val/accuracy": 0.5})
    assert draw_curves(file, picture)
    low = height(picture)
    for step in range(5, 9):
        one.add(step, {"train/loss": 1.0, "train/grad_norm": 2.0})
    assert draw_curves(file, picture)
    assert height(picture) > low  # a panel more
