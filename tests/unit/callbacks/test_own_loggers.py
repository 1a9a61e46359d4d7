"""What the user's own loggers get: names, settings, tables, and an end."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger

from rbft.callbacks.own_loggers import OwnLoggers, given_loggers, with_names
from rbft.inference.metrics import ClassificationMetrics
from tests.examples import Yard, fed, module, trainer
from tests.several import Pets, pet_module


class Diary(Logger):
    """A logger as a user may write one."""

    name = version = None  # type: ignore[assignment]

    def __init__(self, tables: bool = False) -> None:
        super().__init__()
        self.hparams: list[Any] = []
        self.metrics: list[tuple[dict[str, float], int | None]] = []
        self.tables: dict[str, Any] = {}
        self.finished = 0
        if tables:
            self.log_table = self._log_table
            self._experiment = SimpleNamespace(finish=self._finish)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.hparams.append(params)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics.append((metrics, step))

    def _log_table(self, key: str, columns: list[str], data: list[list[Any]]) -> None:
        self.tables[key] = (columns, data)

    def _finish(self) -> None:
        self.finished += 1


def setting(kind: type, **arguments: Any) -> Namespace:
    return Namespace(
        class_path=f"{kind.__module__}.{kind.__qualname__}", init_args=Namespace(**arguments)
    )


def test_names_say_run_and_stage():
    given = setting(CSVLogger, save_dir="x", name="lightning_logs", version=None)
    made = with_names(given, "house", "label")
    assert made.init_args == Namespace(save_dir="x", name="house/label", version=None)
    assert given.init_args.name == "lightning_logs"  # the settings stay as they are
    made = with_names(setting(MLFlowLogger, experiment_name="lightning_logs"), "house", "label")
    assert made.init_args == Namespace(experiment_name="house", run_name="house/label")


def test_a_name_that_the_user_gives_stays():
    made = with_names([setting(CSVLogger, save_dir="x", name="mine")], "house", "label")
    assert made[0].init_args.name == "mine"
    assert [with_names(one, "house", "label") for one in (None, True, False)] == [None, True, False]


def test_a_logger_without_names_is_left_alone():
    bare = Namespace(class_path=f"{Diary.__module__}.Diary")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(__import__("sys").modules, Diary.__module__, SimpleNamespace(Diary=Diary))
        assert with_names(bare, "house", "label").init_args == Namespace()


def test_the_forms_that_the_trainer_takes():
    one, two = Diary(), Diary()
    assert given_loggers(None) == given_loggers(True) == given_loggers(False) == []
    assert given_loggers(one) == [one]
    assert given_loggers((one, two)) == [one, two]


def test_settings_and_tables_of_a_scored_split(qwen: Path, tmp_path: Path):
    plain, full = Diary(), Diary(tables=True)
    callback = OwnLoggers([plain, full], {"run": "house", "stage": "label"})
    yard, made = Yard(tmp_path / "card.yaml", {"test": 4}), module(qwen, "label")
    board = TensorBoardLogger(tmp_path, "board")
    scored = trainer(tmp_path, callbacks=[callback], logger=[board, plain, full])
    scored.test(made, fed(yard, made), verbose=False)
    assert plain.hparams == full.hparams == [{"run": "house", "stage": "label"}]
    assert isinstance(made.test_metrics, ClassificationMetrics)
    confusion = made.test_metrics.confusion().tolist()
    names = ["quiet", "alarm", "unparsed"]
    columns, rows = full.tables["test/confusion"]
    assert columns == ["label", *names]
    assert rows == [["quiet", *confusion[0]], ["alarm", *confusion[1]]]
    assert sum(map(sum, confusion)) == 4
    columns, rows = full.tables["test/metrics"]
    assert columns == ["metric", "value"]
    logged = {name: value for metrics, _ in plain.metrics for name, value in metrics.items()}
    assert dict(rows)["accuracy"] == pytest.approx(logged["test/accuracy"])
    cells = {name: value for name, value in logged.items() if "confusion" in name}
    assert cells == {
        f"test/confusion/{label}/{answer}": confusion[row][column]
        for row, label in enumerate(("quiet", "alarm"))
        for column, answer in enumerate(names)
    }
    assert full.finished == 0
    callback.close()
    assert full.finished == 1


def test_clips_with_several_classes_have_no_confusion_matrix(qwen: Path, tmp_path: Path):
    plain, full = Diary(), Diary(tables=True)
    yard, made = Pets(tmp_path, {"test": 2}), pet_module(qwen)
    callback = OwnLoggers([plain, full], {"run": "house"})
    board = TensorBoardLogger(tmp_path, "board")
    scored = trainer(tmp_path, callbacks=[callback], logger=[board, plain, full])
    scored.test(made, fed(yard, made), verbose=False)
    assert full.tables.keys() == {"test/metrics"}
    figures = dict(full.tables["test/metrics"][1])
    assert figures["n"] == 2
    assert {"f1/cat", "f1/micro", "ap/macro", "accuracy"} <= figures.keys()
    assert not [name for metrics, _ in plain.metrics for name in metrics if "confusion" in name]
