"""What TensorBoard is given: loss and accuracy first, no lines that say nothing, rows of stages."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import TensorBoardLogger

from rbft.runs.tags import tag_of

FACTS = ("n", "majority")  # of a split, the same at every step; results files and tables have them
# 0 from beginning to end in most runs: what goes wrong, and the epoch where there is one.
COUNTS = ("replaced", "cut_rationales", "unparsed", "epoch")
FIRST_COLUMNS = ("run", "stage")
NO_DECAY = "_no_decay"  # weights with the learning rate of the others of their part
# Columns of the HParams tab, and whether they are numbers.
COLUMNS = {
    "run": False,
    "stage": False,
    "backbone": False,
    "benchmark": False,
    "learning_rate": True,
    "epochs": True,
    "rationale_prompt": False,
    "rationale_ratio": True,
    "seed": True,
}


class Board(TensorBoardLogger):
    """TensorBoard's files of one stage, or of one scored place, of a run.

    Metrics get the tags of `rbft.runs.tags`. Lines that cannot vary, or are the same as others,
    are left out, and counts as long as they are 0. A learning rate that stays the same, or an F1
    that is always 0, is written: that it does not move says something about the run.

    Args:
        logs: Folder of all runs.
        run: Name of the run.
        place: The stage, or what is scored.
    """

    def __init__(self, logs: Path, run: str, place: str) -> None:
        super().__init__(logs, run, place, default_hp_metric=False)
        self._zeros: dict[str, int | None] = {}  # the last step of counts that were always 0
        self._shown: set[str] = set()  # counts that were something else

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | int], step: int | None = None) -> None:
        """Writes metrics under their tags, but for those that say nothing.

        Args:
            metrics: Value by name.
            step: Number of the optimiser step.
        """
        for name, value in metrics.items():
            kind = name.rpartition("/")[2]
            twin = kind.endswith(NO_DECAY) and name.removesuffix(NO_DECAY) in metrics
            if kind in FACTS or twin:
                continue
            if kind in COUNTS and name not in self._shown:
                if not value:
                    self._zeros[name] = step
                    continue
                self._shown.add(name)
                if name in self._zeros:  # where the line begins to rise
                    super().log_metrics({tag_of(name): 0.0}, self._zeros[name])
            super().log_metrics({tag_of(name): value}, step)

    @rank_zero_only
    def save(self) -> None:
        """Hands what was written to the disk; `settings.yaml` of the run has its settings."""
        self.experiment.flush()

    @rank_zero_only
    def log_row(self, settings: Mapping[str, Any], metrics: Mapping[str, float], step: int) -> None:
        """Writes a row of the HParams tab.

        Args:
            settings: What is known of the row, by the names of `COLUMNS`; a row of the bare
                backbone has no epochs.
            metrics: Its scores by name, which are logged already.
            step: Number of the optimiser steps that made the weights.
        """
        from tensorboard.compat.proto import summary_pb2
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        # Made by protobuf when they are imported, so that nothing is known of what they hold.
        api: Any = api_pb2
        plugin: Any = plugin_data_pb2
        summary: Any = summary_pb2
        # As torch's writer does, but with all columns in every row: TensorBoard takes them from any
        # one of the rows. It shows those first that are said to differ, and five of them at first.
        types = api.DATA_TYPE_STRING, api.DATA_TYPE_FLOAT64
        columns = [
            api.HParamInfo(name=name, type=types[number], differs=name in FIRST_COLUMNS)
            for name, number in COLUMNS.items()
        ]
        start = plugin.SessionStartInfo()
        for name, value in settings.items():
            kind = "number_value" if COLUMNS[name] else "string_value"
            setattr(start.hparams[name], kind, value)
        scores = [tag_of(name) for name, value in metrics.items() if _is_score(name, value)]
        infos = [api.MetricInfo(name=api.MetricName(tag=tag)) for tag in scores]
        experiment = api.Experiment(hparam_infos=columns, metric_infos=infos)
        end = plugin.SessionEndInfo(status=api.STATUS_SUCCESS)
        writer = self.experiment._get_file_writer()
        for tag, part in (
            (metadata.EXPERIMENT_TAG, {"experiment": experiment}),
            (metadata.SESSION_START_INFO_TAG, {"session_start_info": start}),
            (metadata.SESSION_END_INFO_TAG, {"session_end_info": end}),
        ):
            content = plugin.HParamsPluginData(**part, version=metadata.PLUGIN_DATA_VERSION)
            data = {"plugin_name": metadata.PLUGIN_NAME, "content": content.SerializeToString()}
            about = summary.SummaryMetadata(plugin_data=data)
            value = summary.Summary.Value(tag=tag, metadata=about)
            writer.add_summary(summary.Summary(value=[value]), step)


def _is_score(name: str, value: float) -> bool:
    return name.rpartition("/")[2] not in (*FACTS, *COUNTS) and not math.isnan(value)
