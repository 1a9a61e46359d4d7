"""Two processes do what one does: the same steps, each clip counted once, killed or not."""

import math
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from rbft.runs.tags import tag_of
from tests.recipe.killing import run_two
from tests.recipe.runs import (
    EXPERIMENTS,
    LOGS,
    STAGES,
    VIDEO_INDICES,
    outcome,
    rationales,
    rbft,
    rbft_process,
    read_json,
    read_lines,
    small,
    weights_file,
)

pytestmark = pytest.mark.recipe
# Odd numbers of clips to train on and to test, and fewer to validate on than processes. Stage 0
# describes the first and the last, an even number; test_several_prompts.py has an odd one.
SIZES = ("--data.train_size=13", "--data.val_size=1", "--data.test_size=3")
ADAPTER = LOGS / "small/label/weights/adapter_model.safetensors"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


# What each kind of run has before and after the options of one process.
KINDS = {
    "ddp": ([], ["--trainer.strategy=ddp"]),
    # The paper's overlay itself, but for its GPUs and its precision; the strategy is its own.
    "fsdp2": (
        [f"--config={EXPERIMENTS / 'hardware/eight_80gb_gpus.yaml'}"],
        ["--model.gradient_checkpointing=0.5"],  # of two blocks the first
    ),
}


class Runs:
    """The same experiment in one process and in two."""

    def __init__(self, one: Path, two: Path, options: list[str], kind: str) -> None:
        self.one, self.two, self.options = one, two, options
        self.base = next(o.split("=")[1] for o in options if o.startswith("--model.backbone="))
        before, after = KINDS[kind]
        self.double = [*before, *options, "--trainer.devices=2", "--data.batch_size=1", *after]
        self.double += ["--checkpoint_every=1"]
        self.status = run_two(two, self.double, note=True)
        self.log = (two / "log.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def options(backbones: dict[str, Path]) -> list[str]:
    return small(backbones["qwen2_5_vl"], *SIZES, "--trainer.log_every_n_steps=1")


@pytest.fixture(scope="module")
def one(options: list[str], tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("one")
    rbft(folder, "fit", *options)
    return folder


@pytest.fixture(scope="module")
def sharded(one: Path, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(one, tmp_path_factory.mktemp("fsdp2"), options, "fsdp2")


@pytest.fixture(scope="module", params=KINDS)
def runs(
    request: pytest.FixtureRequest,
    one: Path,
    options: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Runs:
    if request.param == "fsdp2":
        return request.getfixturevalue("sharded")
    return Runs(one, tmp_path_factory.mktemp(request.param), options, request.param)


def scalars(folder: Path, stage: str, name: str) -> list[float]:
    """A metric's curve in TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for file in sorted((folder / LOGS / "small" / stage).glob("events*")):
        events = EventAccumulator(str(file)).Reload()
        if tag_of(name) in events.Tags()["scalars"]:
            return [event.value for event in events.Scalars(tag_of(name))]
    raise AssertionError(f"no curve {name}")


def test_it_ends_well(runs):
    assert runs.status == 0, runs.log[-3000:]
    # The table is printed once.
    assert runs.log.count("\nStage II (labels) ") == 1


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
    assert {tensor.dtype for tensor in one.values()} == {tensor.dtype for tensor in two.values()}
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5


def leaves(value: Any, *place: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """What stands in nested JSON, each with its place."""
    if not isinstance(value, dict | list):
        yield place, value
        return
    for key, own in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(own, *place, key)


@pytest.mark.parametrize("place", VIDEO_INDICES)
def test_each_clip_counts_once_and_the_figures_are_the_same(runs, place):
    one, two = (folder / LOGS / "small" / place for folder in (runs.one, runs.two))
    found, expected = (read_json(folder / "test.json") for folder in (two, one))
    weights = [result["made"].pop("weights") for result in (found, expected)]
    # Sums over processes round otherwise, and the digest sees every bit.
    assert (weights[0] == weights[1]) == (place == "zero_shot")
    two_processes, alone = (result.pop("calibration") for result in (found, expected))
    figures = dict(leaves(two_processes))
    assert figures == {
        place: pytest.approx(value, abs=1e-5) if isinstance(value, float) else value
        for place, value in leaves(alone)
    }
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


def test_what_was_trained_in_shares_is_exported_whole(sharded, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    rbft(sharded.one, "export", *sharded.options, f"--output={one}")
    rbft(sharded.two, "export", *sharded.options, f"--output={two}")
    assert sorted(path.name for path in two.iterdir()) == sorted(
        path.name for path in one.iterdir()
    )
    expected, found = (
        AutoModelForImageTextToText.from_pretrained(folder).state_dict() for folder in (one, two)
    )
    base = AutoModelForImageTextToText.from_pretrained(sharded.base).state_dict()
    assert set(found) == set(expected) == set(base)
    assert max(float((found[name] - expected[name]).abs().max()) for name in found) < 1e-5
    assert not any(torch.equal(found[name], base[name]) for name in found)


@pytest.mark.long
def test_predictions_for_fewer_videos_than_processes(sharded, cache):
    video = sorted(cache.rglob("*test-0000.mp4"))[0]
    process = rbft_process(sharded.two, "predict", *sharded.double, f"--videos={video}")
    assert process.returncode == 0, process.stderr[-3000:]
    (row,) = read_lines(sharded.two / "predictions.jsonl")
    rbft(sharded.one, "predict", *sharded.options, f"--videos={video}")
    (expected,) = read_lines(sharded.one / "predictions.jsonl")
    assert row["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
    assert row["label"] == expected["label"]


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Between two models, over all weights."""
    return math.sqrt(sum(float((one[n] - other[n]).double().square().sum()) for n in one))


@pytest.mark.long
def test_in_half_precision_as_the_overlay_has_it(options, tmp_path, cache):
    """bf16-mixed: FSDP2 rounds weights and states, one process what enters each product."""
    label = [*options, "--stages=[label]", "--score_each_stage=false"]
    half = [*label, "--trainer.precision=bf16-mixed"]
    exact, one, two = (tmp_path / name for name in ("exact", "one", "two"))
    rbft(exact, "fit", *label)
    rbft(one, "fit", *half)
    both = Runs(one, two, half, "fsdp2")
    assert both.status == 0, both.log[-3000:]
    for curve, steps, tolerance in (
        ("train/loss", 8, 5e-4),
        ("train/grad_norm", 8, 5e-3),
        ("val/loss", 2, 5e-4),
    ):
        known, expected, found = (scalars(folder, "label", curve) for folder in (exact, one, two))
        assert len(found) == steps
        assert found == pytest.approx(expected, rel=tolerance)
        # It was half precision: in 32 bits the two agree to 1e-5.
        assert max(abs(a - b) for a, b in zip(found, known, strict=True)) > 5e-5
    start = load_file(Path(both.base) / "model.safetensors")
    expected, found = (load_file(weights_file(folder, "label")) for folder in (one, two))
    assert set(found) == set(expected) == set(start)
    # The shares are in 32 bits, which small updates need.
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert all((tensor != tensor.bfloat16().float()).any() for tensor in found.values())
    # Of the way that training went, a small part.
    assert distance(found, expected) < 0.05 * distance(expected, start)
    for row, known in zip(
        *(
            read_lines(folder / LOGS / "small/label/test_predictions.jsonl")
            for folder in (two, one)
        ),
        strict=True,
    ):
        assert row["prediction"] == known["prediction"]
        assert row["probabilities"] == pytest.approx(known["probabilities"], abs=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("dora", ["false", "true"])
def test_adapters_are_the_same(dora, options, tmp_path, cache):
    """LoRA and DoRA with the merger, where all weights are in shares."""
    lora = ["--stages=[label]", "--score_each_stage=false", "--model.lora.rank=8"]
    lora += ["--model.vision_learning_rate=0", f"--model.lora.use_dora={dora}"]
    one, two = tmp_path / "one", tmp_path / "two"
    rbft(one, "fit", *options, *lora)
    both = Runs(one, two, [*options, *lora], "fsdp2")
    assert both.status == 0, both.log[-3000:]
    for curve in ("train/loss", "train/grad_norm", "val/loss"):
        expected, found = (scalars(folder, "label", curve) for folder in (one, two))
        assert found == pytest.approx(expected, abs=1e-5)
    expected, found = (load_file(folder / ADAPTER) for folder in (one, two))
    assert set(found) == set(expected)
    assert {".lora_A." in name for name in found} == {True, False}
    assert any("magnitude" in name for name in found) == (dora == "true")
    assert any("merger" in name for name in found)
    assert max(float((found[name] - expected[name]).abs().max()) for name in found) < 1e-5


class LostOnOne(Callback):
    """The second process's loss is not finite in the second step, with finite gradients."""

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 1 and trainer.global_rank == 1:
            losses = pl_module.losses
            pl_module.losses = lambda batch: (losses(batch)[0] + math.inf, None)


def log(folder: Path) -> str:
    return (folder / "log.txt").read_text(encoding="utf-8")[-3000:]


def test_a_signal_to_the_second_process_ends_both_in_order(sharded, tmp_path):
    """While the next checkpoint is half there; torchrun takes over what Lightning has started."""
    saved = tmp_path / LOGS / "small/rationale/checkpoints"
    part = "rationale/checkpoints/.step=2.ckpt.part*/__1_0"
    status = run_two(tmp_path, sharded.double, 1, part, 1, sent=signal.SIGTERM)
    assert status == 128 + signal.SIGTERM, log(tmp_path)
    assert f"stopped by SIGTERM; saved: {saved / 'step=3.ckpt'}." in log(tmp_path)
    assert [path.name for path in saved.iterdir()] == ["step=3.ckpt"]
    assert run_two(tmp_path, sharded.double, launcher=TORCHRUN) == 0, log(tmp_path)
    assert outcome(tmp_path) == outcome(sharded.two)


@pytest.mark.long
def test_a_run_of_two_is_ended_in_every_way_and_nothing_is_lost(sharded, tmp_path):
    """One run, ended again and again on its way; each time both processes end."""
    saved = tmp_path / LOGS / "small/rationale/checkpoints"

    lost = f"--trainer.callbacks={__name__}.{LostOnOne.__name__}"
    assert run_two(tmp_path, [*sharded.double, lost]) == 2, log(tmp_path)
    assert log(tmp_path).count("error: The loss of step 2 is not finite (gradient norm nan)") == 1
    assert [path.name for path in saved.iterdir()] == ["step=1.ckpt"]

    # The second process dies with a checkpoint half there, then the first with the weights.
    part = "rationale/checkpoints/.step=5.ckpt.part*/__1_0"
    assert run_two(tmp_path, sharded.double, 1, part, 1) != 0
    assert (saved / "step=4.ckpt").is_dir()
    assert run_two(tmp_path, sharded.double, 0, "rationale/.weights.part", 3) != 0
    assert not saved.with_name("weights").exists()

    assert run_two(tmp_path, sharded.double) == 0, log(tmp_path)
    ours, theirs = outcome(tmp_path), outcome(sharded.two)
    settings = "small/settings.yaml"  # of the first start, with the callback
    assert {**ours, settings: ""} == {**theirs, settings: ""}


@pytest.mark.long
def test_a_restart_under_torchrun_removes_the_old_run_before_any_process_looks(sharded, tmp_path):
    old = tmp_path / LOGS / "small"
    (old / "rationale/weights").mkdir(parents=True)
    (old / "rationale/weights/rbft.json").touch()  # as if the stage were finished
    (old / "settings.yaml").write_text("name: other\n")
    again = [*sharded.double, "--restart=true"]
    assert run_two(tmp_path, again, launcher=TORCHRUN) == 0, log(tmp_path)
    ours, theirs = outcome(tmp_path), outcome(sharded.two)
    settings = "small/settings.yaml"  # names the restart
    assert {**ours, settings: ""} == {**theirs, settings: ""}


@pytest.mark.long
def test_runs_of_two_that_are_killed_at_random_moments(sharded, tmp_path):
    changes = [read_json(sharded.two / f"changes.{rank}.json") for rank in range(2)]
    chance = random.Random(0)
    for kill in range(8):
        folder, rank = tmp_path / f"{kill}", chance.randrange(2)
        number, pause = chance.randint(1, len(changes[rank])), chance.random() * 0.2
        assert run_two(folder, sharded.double, rank, str(LOGS), number, pause) != 0
        assert run_two(folder, sharded.double) == 0, log(folder)
        assert outcome(folder) == outcome(sharded.two)
