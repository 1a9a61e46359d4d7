"""What stands in TensorBoard's files, read with TensorBoard's own reader."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.backend_context import _sort_and_reduce_to_hparams_limit

from rbft.callbacks.board import COLUMNS, Board


def read(board: Board) -> EventAccumulator:
    board.save()
    return EventAccumulator(board.log_dir).Reload()


def curve(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, round(event.value, 3)) for event in events.Scalars(tag)]


def test_loss_and_accuracy_come_first(tmp_path: Path) -> None:
    board = Board(tmp_path, "house", "label")
    rates = {"lr/language": 1e-5, "lr/language_no_decay": 1e-5, "lr/merger_no_decay": 2e-5}
    for step in (1, 2):
        board.log_metrics(rates, step)
        board.log_metrics({"train/loss": 0.5 / step, "train/grad_norm": 1.0}, step)
        board.log_metrics({"speed/clips_per_second": 3.0}, step)
    scores = {"accuracy": 0.8, "loss": 0.4, "f1/normal": 0.0, "n": 20.0, "majority": 0.6}
    board.log_metrics({f"val/{name}": value for name, value in scores.items()}, 2)
    board.log_metrics({"test/accuracy": 0.7, "test/f1/macro": 0.6}, 2)
    events = read(board)
    groups = list(dict.fromkeys(tag.partition("/")[0] for tag in sorted(events.Tags()["scalars"])))
    assert groups == ["accuracy", "loss", "lr", "speed", "test", "train", "val"]
    assert curve(events, "loss/train") == [(1, 0.5), (2, 0.25)]
    assert curve(events, "accuracy/val") == [(2, 0.8)]
    # What does not move is left out only where it could not.
    assert curve(events, "lr/language") == [(1, 0.0), (2, 0.0)]
    assert curve(events, "val/f1/normal") == [(2, 0.0)]
    lacking = {"val/n", "val/majority", "lr/language_no_decay"}
    assert not lacking & set(events.Tags()["scalars"])
    assert "lr/merger_no_decay" in events.Tags()["scalars"]


def test_counts_are_written_once_they_differ_from_0(tmp_path: Path) -> None:
    board = Board(tmp_path, "house", "label")
    for step, (replaced, epoch) in enumerate([(0, 0), (0, 0), (2, 0), (0, 1)], 1):
        board.log_metrics({"train/replaced": replaced, "epoch": epoch, "val/unparsed": 0.0}, step)
    board.log_metrics({"train/cut_rationales": 0.25}, 0)
    events = read(board)
    assert curve(events, "train/replaced") == [(2, 0.0), (3, 2.0), (4, 0.0)]
    assert curve(events, "train/epoch") == [(3, 0.0), (4, 1.0)]
    assert curve(events, "train/cut_rationales") == [(0, 0.25)]
    assert "val/unparsed" not in events.Tags()["scalars"]


def parts(board: Board) -> dict[str, Any]:
    """The parts of the row, by their tags."""
    content = {}
    for tag, found in read(board).summary_metadata.items():
        if found.plugin_data.plugin_name == metadata.PLUGIN_NAME:
            content[tag] = found.plugin_data.content
    return content


def test_a_row_has_run_and_stage_first_and_nothing_untrue(tmp_path: Path) -> None:
    settings = {"run": "house", "stage": "zero_shot", "backbone": "qwen", "seed": 0}
    scores = {"test/accuracy": 0.7, "test/f1/normal": 0.5, "test/f1/none": float("nan")}
    board = Board(tmp_path, "house", "zero_shot")
    board.log_row(settings, {**scores, "test/n": 20.0, "test/unparsed": 0.0}, 7)
    content = parts(board)
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    # TensorBoard takes the columns from any one of the rows, so that all have all of them.
    assert [one.name for one in experiment.hparam_infos] == list(COLUMNS)
    _sort_and_reduce_to_hparams_limit(experiment)
    assert [one.name for one in experiment.hparam_infos][:2] == ["run", "stage"]
    tags = [one.name.tag for one in experiment.metric_infos]
    assert tags == ["accuracy/test", "test/f1/normal"]
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    found = {
        name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()
    }
    assert found == settings
    assert metadata.SESSION_END_INFO_TAG in content


def test_a_column_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="colour"):
        Board(tmp_path, "house", "label").log_row({"colour": "red"}, {}, 0)


def test_no_file_of_settings_is_left(tmp_path: Path) -> None:
    board = Board(tmp_path, "house", "label")
    board.log_metrics({"train/loss": 1.0}, 1)
    board.finalize("success")
    (file,) = (tmp_path / "house/label").iterdir()
    assert file.name.startswith("events.out.tfevents")
