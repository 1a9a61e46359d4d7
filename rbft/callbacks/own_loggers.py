"""Loggers that the user gives (`trainer.logger`): their names, settings, tables and end."""

import inspect
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger


def with_names(setting: Any, run: str, stage: str) -> Any:
    """The setting `trainer.logger` with run and stage in the loggers' names.

    Args:
        setting: None, true, false, a logger's class with its arguments, or a list of these.
        run: Name of the run.
        stage: Name of the stage or of the place that is scored.

    Returns:
        The same with arguments that are called like names filled in, where the user has left them
        as the class has them.
    """
    if isinstance(setting, list | tuple):
        return [with_names(one, run, stage) for one in setting]
    if not isinstance(setting, Namespace) or "class_path" not in setting:
        return setting
    made = setting.clone()
    owner, _, kind = made.class_path.rpartition(".")
    parameters = inspect.signature(getattr(import_module(owner), kind)).parameters
    arguments = made.get("init_args") or Namespace()
    # W&B and CSV; MLflow; MLflow and Comet; W&B.
    names = {"name": f"{run}/{stage}", "run_name": f"{run}/{stage}"}
    for name, value in {**names, "experiment_name": run, "group": run}.items():
        if name in parameters and arguments.get(name) in (None, parameters[name].default):
            arguments[name] = value
    made["init_args"] = arguments
    return made


def given_loggers(loggers: Logger | Iterable[Logger] | bool | None) -> list[Logger]:
    """The user's loggers as a list.

    Args:
        loggers: As the Trainer takes them.
    """
    if loggers is None or isinstance(loggers, bool):
        return []
    return [loggers] if isinstance(loggers, Logger) else list(loggers)


class OwnLoggers(Callback):
    """Hands the user's loggers what TensorBoard has besides curves: settings and tables.

    Loggers with a method `log_table` (W&B) get the metrics and the confusion matrix of a scored
    split as tables, all others the cells of the matrix as numbers
    (`test/confusion/<label>/<prediction>`).

    Args:
        loggers: The user's.
        hparams: Settings that tell runs apart; run and stage are among them.
    """

    def __init__(self, loggers: list[Logger], hparams: Mapping[str, Any]) -> None:
        self.loggers, self.hparams = loggers, dict(hparams)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hands over the settings."""
        self._log_hparams(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hands over the settings."""
        self._log_hparams(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hands over the metrics and the confusion matrix as tables."""
        module: Any = pl_module
        figures = {name: float(value) for name, value in module.test_metrics.compute().items()}
        several = module.card.several is not None
        confusion = [] if several else module.test_metrics.confusion().tolist()  # collective too
        if not trainer.is_global_zero:
            return
        split = module.data.feed.scored_split
        classes = () if several else module.card.classes
        columns = ["label", *classes, "unparsed"]
        rows = [[label, *row] for label, row in zip(classes, confusion, strict=True)]
        cells = {
            f"{split}/confusion/{label}/{answer}": float(count)
            for label, *row in rows
            for answer, count in zip(columns[1:], row, strict=True)
        }
        for logger in self.loggers:
            log_table = getattr(logger, "log_table", None)
            if log_table is None:
                if cells:
                    logger.log_metrics(cells, module.trained_steps)
                continue
            if rows:
                log_table(f"{split}/confusion", columns=columns, data=rows)
            metrics = [[name, value] for name, value in figures.items()]
            log_table(f"{split}/metrics", columns=["metric", "value"], data=metrics)

    def close(self) -> None:
        """Ends runs that stay open in the process, as those of W&B: the next stage's is another."""
        for logger in self.loggers:
            # Not the property `experiment`, which would begin a run where none has begun.
            finish = getattr(getattr(logger, "_experiment", None), "finish", None)
            if finish is not None:
                finish()

    def _log_hparams(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            for logger in self.loggers:
                logger.log_hyperparams(self.hparams)
