"""`--keep best` on the command line: killed or not, and with sharded weights, the same is kept."""

import csv
import signal
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.recipe.killing import run, run_two
from tests.recipe.runs import EXPERIMENTS, LOGS, outcome, rbft, read_json, small, weights_file

pytestmark = pytest.mark.recipe
BEST = ("--stages=[label]", "--score_each_stage=false", "--keep=best", "--keep_metric=val/accuracy")


@pytest.fixture(scope="module")
def options(backbones: dict[str, Path]) -> list[str]:
    # So slow that no answer changes: of equal scores the first counts.
    rates = [f"--model.{part}learning_rate=1e-7" for part in ("", "merger_", "vision_")]
    more = ("--trainer.max_epochs=3", "--data.val_size=4", *rates)
    logger = ("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv")
    return small(backbones["qwen2_5_vl"], *BEST, *more, *logger)


@pytest.fixture(scope="module")
def whole(options: list[str], tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder, options) == 0
    return folder


def kept(folder: Path) -> dict:
    return read_json(folder / LOGS / "small/label/weights/rbft.json")["kept"]


def test_the_best_weights_are_not_the_last(whole):
    found = kept(whole)
    assert found["metric"] == "val/accuracy"
    scores = {one["step"]: one["score"] for one in found["validations"]}
    assert list(scores) == [4, 8, 12]
    assert found["score"] == max(scores.values()) == scores[found["step"]]
    assert found["step"] == 4
    log = (whole / "log.txt").read_text(encoding="utf-8")
    assert f"Kept the weights of step {found['step']} of 12: val/accuracy 0." in log


def test_a_logger_of_the_user_stands_beside_tensorboard(whole):
    trained, scored = (whole / "csv/small/label" / f"version_{n}" for n in range(2))
    for folder in (trained, scored):
        hparams = yaml.safe_load((folder / "hparams.yaml").read_text(encoding="utf-8"))
        assert (hparams["run"], hparams["stage"]) == ("small", "label")
    with (trained / "metrics.csv").open(newline="") as stream:
        curve = [float(row["val/loss"]) for row in csv.DictReader(stream) if row.get("val/loss")]
    assert len(curve) == 3
    with (scored / "metrics.csv").open(newline="") as stream:
        cells = [
            float(value)
            for row in csv.DictReader(stream)
            for name, value in row.items()
            if name.startswith("test/confusion/") and value
        ]
    assert sum(cells) == 5  # test clips
    assert list((whole / LOGS / "small/label").glob("events*"))


def test_killed_at_every_delicate_place(whole, options, tmp_path):
    for part, number in (
        ("os.rename*best.pt", 1),
        ("os.rename*validations.json", 1),
        ("os.rename*validations.json", 2),  # the first one is what the kill before had lost
        ("open*label/.weights.part", 1),
    ):
        status = run(tmp_path, options, part, number, sent=signal.SIGKILL)
        assert status == -9, (tmp_path / "log.txt").read_text(encoding="utf-8")[-2000:]
    assert run(tmp_path, options) == 0
    assert outcome(tmp_path) == outcome(whole)


@pytest.mark.long
def test_sharded_weights(whole, options, tmp_path):
    """Two processes, killed once: the same step is kept, and its weights."""
    hardware = f"--config={EXPERIMENTS / 'hardware/eight_80gb_gpus.yaml'}"
    double = [hardware, *options, "--trainer.devices=2", "--data.batch_size=1"]
    assert run_two(tmp_path, double, part="os.rename*validations.json", number=2) != 0
    assert run_two(tmp_path, double) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    one, two = kept(whole), kept(tmp_path)
    assert (two["step"], two["score"]) == (one["step"], one["score"])
    first, second = (load_file(weights_file(folder, "label")) for folder in (whole, tmp_path))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0.05, atol=2e-3)


def test_refusals(options, tmp_path, capsys):
    for more, said in (
        ("--data.val_size=0", "error: keep is best, but Miniature has no validation split, and"),
        ("--keep_metric=f1", "error: keep_metric is 'f1'; allowed are val/loss, val/accuracy, "),
        ("--patience=0", "error: patience (0) must be 1 or more; it counts validations"),
    ):
        with pytest.raises(SystemExit):
            rbft(tmp_path, "fit", *options, more)
        assert said in capsys.readouterr().err
    assert not (tmp_path / LOGS / "small").exists()
