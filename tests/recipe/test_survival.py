"""Runs that are killed go on where they were, and end with the same bits."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from rbft.module import RBFTModule
from tests.recipe.killing import run
from tests.recipe.runs import LOGS, ROOT, STAGES, outcome, rationales, rbft, read_lines, small

pytestmark = pytest.mark.recipe


def log(folder: Path) -> str:
    return (folder / "log.txt").read_text(encoding="utf-8")[-3000:]


class Reference:
    """An uninterrupted run, and the changes to files that it went through."""

    def __init__(self, folder: Path, options: list[str]) -> None:
        self.folder, self.options = folder, options
        assert run(folder, options) == 0, log(folder)
        self.outcome = outcome(folder)
        self.changes: list[str] = json.loads((folder / "changes.json").read_text())

    def check(self, folder: Path) -> None:
        """Lets the run in the folder come to its end, and compares."""
        assert run(folder, self.options) == 0, log(folder)
        assert outcome(folder) == self.outcome
        records = read_lines(rationales(folder))
        assert len({record["id"] for record in records}) == len(records) == 14


def reference_of(
    backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, every: int
) -> Reference:
    options = small(backbones["qwen2_5_vl"], f"--checkpoint_every={every}")
    return Reference(tmp_path_factory.mktemp("reference"), options)


@pytest.fixture(scope="module")
def reference(
    backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, cache: Path
) -> Reference:
    return reference_of(backbones, tmp_path_factory, every=1)


def test_a_run_that_is_killed_in_every_phase(reference, tmp_path):
    """One run, killed again and again on its way through the method."""
    chance = random.Random(0)
    # Which file, at the earliest and latest which change of it since the start, how long after.
    phases = [
        ("logs/rationales", 5, 8, 0.0),  # Stage 0, between two batches
        ("os.rename lightning_logs/rationales", 1, 1, 0.0),  # all written, but not joined
        ("os.remove lightning_logs/rationales", 1, 1, 0.0),  # joined, the parts still there
        ("rationale/checkpoints", 4, 12, 0.03),  # Stage I, in the first epoch or the second
        ("rationale/checkpoints", 2, 4, 0.0),  # the first checkpoint after resuming
        ("rationale/.weights.part", 1, 6, 0.01),  # while the weights are written
        ("rationale/.weights.part", 8, 8, 0.0),  # before they are put in place
        ("rationale/.test.json", 1, 2, 0.0),  # M_inter's results
        ("label/checkpoints", 6, 14, 0.02),  # Stage II
        ("label/.test.json", 2, 2, 0.0),  # the last results
    ]
    for part, first, last, pause in phases:
        number = chance.randint(first, last)
        status = run(tmp_path, reference.options, part, number, chance.random() * pause)
        assert status == -9, f"not killed: {part} {number}\n{log(tmp_path)}"
        assert outcome(tmp_path) != reference.outcome
    reference.check(tmp_path)


def test_a_checkpoint_appears_whole(reference):
    """Written beside its place and renamed: on any file system, a kill leaves no half of one."""
    steps = [f"lightning_logs/small/rationale/checkpoints/.step={n}.ckpt.part" for n in range(1, 9)]
    renamed = [
        change for change in reference.changes if "os.rename" in change and ".ckpt" in change
    ]
    # Host, process and a random token follow, so that no two processes write into one file.
    assert [change.rpartition(".")[0] for change in renamed[:8]] == [
        f"os.rename {s}" for s in steps
    ]
    assert len({change.rpartition("-")[2] for change in renamed}) == len(renamed)


@pytest.mark.long
def test_what_is_drawn_at_random_is_drawn_again(backbones, tmp_path_factory, tmp_path, cache):
    """Adapters with dropout: the third step of a stage drops the same, resumed or not.

    With DoRA on some layers, whose norms are in the checkpoints too.
    """
    lora = ("--model.lora.rank=4", "--model.lora.alpha=8", "--model.lora.dropout=0.2")
    lora += ("--model.lora.use_dora=true", "--model.lora.target_modules=[q_proj,down_proj]")
    options = small(
        backbones["qwen2_5_vl"],
        *lora,
        "--model.vision_learning_rate=0",
        "--model.gradient_checkpointing=true",
        "--checkpoint_every=1",
    )
    adapted = Reference(tmp_path_factory.mktemp("lora"), options)
    for stage in STAGES:
        assert run(tmp_path, options, f"{stage}/checkpoints/.step=3", 1) == -9, log(tmp_path)
    adapted.check(tmp_path)


# A signal, when it comes, what is on disk then, and where the run goes on from.
MOMENTS = {
    "in Stage 0": (signal.SIGINT, "logs/rationales", 6, None),
    "while a checkpoint is written": (signal.SIGUSR1, "rationale/checkpoints/.step=3", 1, 4),
    "after the last step": (signal.SIGTERM, "label/.weights.part", 2, None),
    "in the test": (signal.SIGTERM, "label/.test_predictions", 1, None),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_ends_the_run_in_order(reference, tmp_path, moment):
    """In training after the step and saved, elsewhere at once, and nothing is lost."""
    sent, part, number, step = MOMENTS[moment]
    status = run(tmp_path, reference.options, part, number, sent=sent)
    assert status == 128 + sent, log(tmp_path)
    saved = "everything that is finished is on disk"
    if step is not None:
        saved = tmp_path / LOGS / f"small/rationale/checkpoints/step={step}.ckpt"
        assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    name = "Ctrl-C" if sent == signal.SIGINT else signal.Signals(sent).name
    said = f"\nstopped by {name}; saved: {saved}. The same command goes on"
    assert said in log(tmp_path)
    assert "Traceback" not in log(tmp_path)
    assert (tmp_path / LOGS / "small/label/weights").exists() == (part.startswith("label"))
    reference.check(tmp_path)


def test_ctrl_c_in_a_terminal(reference, tmp_path):
    """It reaches every process of the command, those that decode clips too."""
    started = [sys.executable, "-m", "rbft", "fit", *reference.options, "--data.num_workers=1"]
    how: dict[str, Any] = {"cwd": tmp_path, "start_new_session": True, "text": True}
    how |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    how |= {"env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    with subprocess.Popen(started, **how) as process:  # amid the imports
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=60)[0] == "fit: loading torch and transformers\n"
    assert process.returncode == 130
    checkpoints = tmp_path / LOGS / "small/rationale/checkpoints"
    with subprocess.Popen(started, **how) as process:
        while process.poll() is None and not [*checkpoints.glob("step=*")]:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    assert "The step is finished and saved; Ctrl-C again ends at once." in said
    assert f"\nstopped by Ctrl-C; saved: {checkpoints}/step=" in said
    assert "Traceback" not in said
    assert run(tmp_path, reference.options) == 0, log(tmp_path)
    settings = "small/settings.yaml"  # of the first start, with its worker
    assert {**outcome(tmp_path), settings: ""} == {**reference.outcome, settings: ""}


def test_a_disk_that_is_full(reference, tmp_path):
    """Weights and checkpoints of this size do not fit; what is smaller does."""
    assert run(tmp_path, reference.options, room=500_000) == 2
    wanted = (
        rf"error: {re.escape(str(tmp_path / LOGS))}/small/rationale/checkpoints/step=1\.ckpt "
        r"cannot be written: File too large\. \d+\.\d GB are free there\. Make room;"
    )
    assert re.search(wanted, log(tmp_path))
    assert "Traceback" not in log(tmp_path)
    reference.check(tmp_path)


def test_memory_that_does_not_suffice(reference, tmp_path, monkeypatch, capsys):
    steps = []

    def loss(self: RBFTModule, batch: Any) -> Any:
        steps.append(self)
        if len(steps) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, batch)

    original = RBFTModule.losses
    monkeypatch.setattr(RBFTModule, "losses", loss)
    with pytest.raises(SystemExit, match="2"):
        rbft(tmp_path, "fit", *reference.options)
    wanted = (
        r"^error: Out of memory \(CUDA out of memory\.\)\. At hand: \S+, \S+ "
        r"\(\d+ tokens, padding included\)\. What helps, in this order: data\.batch_size"
    )
    assert re.search(wanted, capsys.readouterr().err, re.MULTILINE)
    monkeypatch.undo()
    (tmp_path / "log.txt").touch()
    reference.check(tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("every", [1, 3])
def test_runs_that_are_killed_at_twenty_random_moments(
    backbones, tmp_path_factory, tmp_path, cache, every
):
    reference = reference_of(backbones, tmp_path_factory, every)
    chance = random.Random(every)
    statuses = []
    for kill in range(20):
        folder = tmp_path / f"{kill}"
        number = chance.randint(1, len(reference.changes))
        pause = chance.choice([0, chance.random() * 0.2])
        statuses.append(run(folder, reference.options, str(LOGS), number, pause))
        reference.check(folder)
    # A pause after one of the last changes outlasts the run.
    assert set(statuses) <= {-9, 0}
    assert statuses.count(-9) >= 18
