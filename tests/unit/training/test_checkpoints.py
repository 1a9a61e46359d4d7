"""What a stage resumes from, and that it resumes exactly."""

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from rbft.runtime.fault_tolerance import Stopped, signals
from rbft.training.checkpoints import StepCheckpoint, WholeCheckpoints
from tests.unit.test_module import fit

# Checkpoints of the run before lie in the folder, or it goes on in another.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


@pytest.fixture(autouse=True)
def no_signal() -> Iterator[None]:
    yield
    signals.received, signals.held = None, False


class Keep(Callback):
    """Copies a checkpoint away before it is removed."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        saved = self.folder / f"step={self.step}.ckpt"
        if saved.exists():
            saved.with_suffix(".kept").write_bytes(saved.read_bytes())


def saver(folder: Path, every: int = 1) -> StepCheckpoint:
    return StepCheckpoint(folder / "checkpoints", every)


def test_a_checkpoint_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, target, sizes = WholeCheckpoints(), tmp_path / "new/folder/step=1.ckpt", []
    fsync = os.fsync

    def watched(number: int) -> None:
        if stat.S_ISREG(os.fstat(number).st_mode):  # the folder's turn comes after the renaming
            assert not target.exists() or torch.load(target)["step"] == 1
            sizes.append(os.fstat(number).st_size)
        fsync(number)

    monkeypatch.setattr(os, "fsync", watched)
    for step in (1, 2):
        files.save_checkpoint({"step": step, "weights": torch.ones(9)}, target)
        assert torch.load(target)["step"] == step
        assert [file.name for file in target.parent.iterdir()] == [target.name]
        assert sizes.pop() == target.stat().st_size  # on the disk before it has its name

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ValueError, match="cannot be written: No space left on device"):
        files.save_checkpoint({"step": 3}, target)
    assert torch.load(target)["step"] == 2


class Watch(Callback):
    """Which checkpoints lie there and whether signals wait, at the start of each micro-batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved: dict[tuple[int, int], list[str]] = {}
        self.held: list[bool] = []
        self.held_in_validation: list[bool] = []

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        names = sorted(file.name for file in (self.folder / "checkpoints").glob("*.ckpt"))
        self.saved[trainer.current_epoch, batch_idx] = names
        self.held.append(signals.held)

    def on_validation_batch_start(self, *_: Any, **__: Any) -> None:
        self.held_in_validation.append(signals.held)


@pytest.mark.parametrize("validates", [False, True])
def test_when_it_saves(
    qwen: Path, tmp_path: Path, validates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.ckpt").touch()
    for name in ("step=1.ckpt", "step=99.ckpt"):  # of runs that were killed
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / name).touch()
    watch = Watch(tmp_path)
    fit(
        qwen,
        tmp_path,
        watch,
        saver(tmp_path, every=2),
        counts={"train": 10, **({"val": 1} if validates else {})},
        data={"batch_size": 2},
        max_epochs=2,
        enable_checkpointing=True,
    )
    killed = ["step=1.ckpt", "step=99.ckpt"]
    border = ["step=3.ckpt"] if validates else ["step=2.ckpt"]
    assert watch.saved == {
        **{(0, n): killed for n in range(4)},  # five micro-batches are three steps
        (0, 4): ["step=2.ckpt"],
        **{(1, n): border for n in range(2)},
        **{(1, n): ["step=4.ckpt"] for n in range(2, 5)},
    }
    assert (tmp_path / "mine.ckpt").exists()
    assert set(watch.held) == {True}
    assert set(watch.held_in_validation) == ({False} if validates else set())


class Ask(Callback):
    """Sends a signal while a micro-batch is computed."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.batch:
            signals(signal.SIGUSR1, None)


@pytest.mark.parametrize(("batch", "step"), [(0, 1), (1, 1), (2, 2), (4, 3)])
def test_a_signal_is_answered_after_the_step(
    qwen: Path, tmp_path: Path, batch: int, step: int
) -> None:
    saved = tmp_path / f"checkpoints/step={step}.ckpt"
    with pytest.raises(Stopped) as found:
        fit(
            qwen,
            tmp_path,
            Ask(batch),
            saver(tmp_path, every=100),
            counts={"train": 10},
            data={"batch_size": 2},  # five micro-batches are three steps
            enable_checkpointing=True,
        )
    assert (found.value.number, found.value.saved) == (signal.SIGUSR1, saved)
    assert torch.load(saved, weights_only=True)["global_step"] == step


def test_a_checkpoint_holds_what_trains(qwen: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"vision_learning_rate": 0.0, "merger_learning_rate": 0.0}
    model = fit(qwen, tmp_path, saver(tmp_path), model=settings, enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "checkpoints/step=1.ckpt", weights_only=True)
    names = {f"backbone.{name}" for name, _ in model.backbone.named_parameters()}
    assert set(checkpoint["state_dict"]) == {name for name in names if ".visual." not in name}
    moments = checkpoint["optimizer_states"][0]["state"]
    assert len(moments) == len(checkpoint["state_dict"])


@pytest.mark.parametrize("frozen", [False, True])
def test_a_run_goes_on_from_it_to_the_same_weights(
    qwen: Path, tmp_path: Path, frozen: bool
) -> None:
    settings: dict[str, Any] = {
        "counts": {"train": 10},
        "data": {"batch_size": 2},
        "model": {"vision_learning_rate": 0.0} if frozen else {},
        "max_epochs": 2,
        "enable_checkpointing": True,
    }
    whole = fit(qwen, tmp_path, saver(tmp_path), Keep(tmp_path / "checkpoints", 2), **settings)
    kept = tmp_path / "checkpoints/step=2.kept"
    (tmp_path / "again").mkdir()
    resumed = fit(qwen, tmp_path / "again", saver(tmp_path / "again"), ckpt_path=kept, **settings)
    for ours, theirs in zip(
        resumed.backbone.parameters(), whole.backbone.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


class Killed(Exception):  # noqa: N818
    """Ends a run at once, as a kill does."""


class Kill(Callback):
    """Kills the run before a micro-batch begins."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.place = (epoch, batch)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == self.place:
            raise Killed


# 10 clips in micro-batches of one and global batches of four: steps end with 4, 8 and 10.
@pytest.mark.parametrize(
    ("kills", "steps"),
    [
        # What comes after a resume is no end of a step: saved there, two clips' gradients are lost.
        ([(0, 5), (0, 6)], [1, 1]),
        # Resumed between two epochs, and again in the second.
        ([(1, 0), (1, 5)], [3, 4]),
        ([(1, 0), (2, 0), (2, 4)], [3, 6, 7]),
    ],
    ids=["within a global batch", "after an epoch", "after two epochs"],
)
def test_a_run_that_is_killed_again_ends_in_the_same_weights(
    qwen: Path, tmp_path: Path, kills: list[tuple[int, int]], steps: list[int]
) -> None:
    settings: dict[str, Any] = {
        "counts": {"train": 10},
        "data": {"batch_size": 1},
        "max_epochs": 3,
        "enable_checkpointing": True,
    }
    whole = fit(qwen, tmp_path, **{**settings, "enable_checkpointing": False})
    newest = None
    for place, step in zip(kills, steps, strict=True):
        with pytest.raises(Killed):
            fit(qwen, tmp_path, saver(tmp_path), Kill(*place), ckpt_path=newest, **settings)
        (newest,) = (tmp_path / "checkpoints").glob("*.ckpt")
        assert newest.name == f"step={step}.ckpt"
    resumed = fit(qwen, tmp_path, saver(tmp_path), ckpt_path=newest, **settings)
    for ours, theirs in zip(
        resumed.backbone.parameters(), whole.backbone.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_checkpoints_of_other_settings_are_refused(qwen: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"enable_checkpointing": True}
    fit(qwen, tmp_path, saver(tmp_path), data={"batch_size": 2}, **settings)
    made = tmp_path / "checkpoints/step=1.ckpt"
    settings |= {"ckpt_path": made, "max_epochs": 2}
    with pytest.raises(ValueError, match="The checkpoint") as found:
        fit(qwen, tmp_path, saver(tmp_path), data={"batch_size": 4}, **settings)
    assert str(found.value) == (
        "The checkpoint counts its place in micro-batches of 2 clips on 1 processes; this run "
        "makes them of 4 on 1. Resume with data.batch_size 2 and as many devices, or add "
        "--restart true."
    )
    with pytest.raises(
        ValueError,
        match=r"^The checkpoint holds \d+ trained parameters, but \d+ train now \(only now: none; "
        r"only in the checkpoint: backbone\.model\.visual\.blocks\.0\.attn\.proj\.bias, ",
    ):
        fit(
            qwen,
            tmp_path,
            saver(tmp_path),
            data={"batch_size": 2},
            model={"vision_learning_rate": 0.0},
            **settings,
        )


def test_a_checkpoint_of_something_else_is_refused(qwen: Path, tmp_path: Path) -> None:
    def save(**made_from: str) -> StepCheckpoint:
        return StepCheckpoint(tmp_path / "checkpoints", 1, made_from)

    settings: dict[str, Any] = {"enable_checkpointing": True}
    fit(qwen, tmp_path, save(card="c1", rationales="r1"), **settings)
    made = tmp_path / "checkpoints/step=1.ckpt"
    settings |= {"ckpt_path": made, "max_epochs": 2}
    with pytest.raises(ValueError, match="The checkpoint is of a run") as found:
        fit(qwen, tmp_path, save(card="c2", rationales="r1"), **settings)
    assert str(found.value) == (
        "The checkpoint is of a run that was trained on something else (card c1 -> c2). Resume it "
        "with what it began with, or add --restart true."
    )
    with pytest.raises(ValueError, match=r"\(rationales r1 -> None\)"):
        fit(qwen, tmp_path, save(card="c1"), **settings)
    fit(qwen, tmp_path, save(card="c1", rationales="r1"), **settings)


class Dropout(Callback):
    """Puts dropout into the decoder's blocks, as LoRA has it."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        for block in pl_module.family.blocks(pl_module.backbone)[:2]:
            block.mlp.down_proj.register_forward_pre_hook(drop)


def drop(module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return nn.functional.dropout(inputs[0], 0.5, module.training)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_drawn_at_random_is_drawn_again(
    qwen: Path, tmp_path: Path, checkpointing: bool
) -> None:
    """Dropout is a function of the place in training, so that nothing of it must be saved."""
    settings: dict[str, Any] = {
        "counts": {"train": 10},
        "data": {"batch_size": 2},
        "model": {"gradient_checkpointing": checkpointing},
        "max_epochs": 2,
        "enable_checkpointing": True,
    }
    keep = Keep(tmp_path / "checkpoints", 2)
    whole = fit(qwen, tmp_path, saver(tmp_path), keep, Dropout(), **settings)
    torch.manual_seed(99)  # whatever the process has drawn before
    again = tmp_path / "again"
    again.mkdir()
    kept = tmp_path / "checkpoints/step=2.kept"
    resumed = fit(qwen, again, saver(again), Dropout(), ckpt_path=kept, **settings)
    plain = fit(qwen, again, **{**settings, "enable_checkpointing": False})
    same = [
        [
            torch.equal(ours, theirs)
            for ours, theirs in zip(
                other.backbone.parameters(), whole.backbone.parameters(), strict=True
            )
        ]
        for other in (resumed, plain)
    ]
    assert all(same[0])
    assert not any(same[1]), "there was no dropout"


def test_gradient_checkpointing_draws_the_same(qwen: Path, tmp_path: Path) -> None:
    made = [
        fit(qwen, tmp_path, Dropout(), model={"gradient_checkpointing": on}) for on in (False, True)
    ]
    for ours, theirs in zip(*(model.backbone.parameters() for model in made), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
