"""Two processes do what one does: the same steps, each clip counted once."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.recipe.runs import (
    LOGS,
    PLACES,
    STAGES,
    rationales,
    rbft,
    rbft_process,
    read_json,
    read_lines,
    small,
    weights_file,
)

pytestmark = pytest.mark.recipe
# Odd numbers of clips, and fewer validation clips than processes.
SIZES = ("--data.train_size=13", "--data.val_size=1", "--data.test_size=3")
TWO = ("--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=1")


class Runs:
    """The same experiment in one process and in two."""

    def __init__(self, folder: Path, options: list[str]) -> None:
        self.options = options
        self.one, self.two = folder / "one", folder / "two"
        rbft(self.one, "fit", *options)
        self.process = rbft_process(self.two, "fit", *options, *TWO)


@pytest.fixture(scope="module")
def runs(backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Runs:
    options = small(backbones["qwen2_5_vl"], *SIZES, "--trainer.log_every_n_steps=1")
    return Runs(tmp_path_factory.mktemp("two"), options)


def scalars(folder: Path, stage: str, name: str) -> list[float]:
    """A curve of TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for file in sorted((folder / LOGS / "small" / stage).glob("events*")):
        events = EventAccumulator(str(file)).Reload()
        if name in events.Tags()["scalars"]:
            return [event.value for event in events.Scalars(name)]
    raise AssertionError(f"no curve {name}")


def test_it_ends_well(runs):
    assert runs.process.returncode == 0, runs.process.stderr[-3000:]
    # The table is printed once.
    assert runs.process.stdout.count("after Stage II (labels)") == 1


def test_each_clip_has_one_rationale_and_it_is_the_same(runs):
    one, two = (read_lines(rationales(folder)) for folder in (runs.one, runs.two))
    assert one == two
    assert len(one) == 14
    assert [file.suffix for file in rationales(runs.two).parent.glob("*.jsonl*")] == [".jsonl"]


@pytest.mark.parametrize("stage", STAGES)
def test_losses_and_weights_are_the_same(runs, stage):
    for curve, steps in (("train/loss", 8), ("train/grad_norm", 8), ("val/loss", 2)):
        one, two = (scalars(folder, stage, curve) for folder in (runs.one, runs.two))
        assert len(one) == steps
        assert two == pytest.approx(one, abs=1e-5)
    one, two = (load_file(weights_file(folder, stage)) for folder in (runs.one, runs.two))
    assert set(one) == set(two)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5


@pytest.mark.parametrize("place", PLACES)
def test_each_clip_counts_once_and_the_figures_are_the_same(runs, place):
    one, two = (folder / LOGS / "small" / place for folder in (runs.one, runs.two))
    found, expected = (read_json(folder / "test.json") for folder in (two, one))
    assert found == expected
    assert found["n_scored"] == found["metrics"]["n"] == 3
    for row, known in zip(
        read_lines(two / "test_predictions.jsonl"),
        read_lines(one / "test_predictions.jsonl"),
        strict=True,
    ):
        probabilities = row.pop("probabilities")
        assert probabilities == pytest.approx(known.pop("probabilities"), abs=1e-5)
        assert row == known


def test_predictions_for_fewer_videos_than_processes(runs, cache):
    video = sorted(cache.rglob("*test-0000.mp4"))[0]
    process = rbft_process(runs.two, "predict", *runs.options, *TWO, f"--videos={video}")
    assert process.returncode == 0, process.stderr[-3000:]
    (row,) = read_lines(runs.two / "predictions.jsonl")
    rbft(runs.one, "predict", *runs.options, f"--videos={video}")
    (expected,) = read_lines(runs.one / "predictions.jsonl")
    assert row["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
    assert row["label"] == expected["label"]
