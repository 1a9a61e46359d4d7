from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

import rbft.callbacks.throughput
from rbft.callbacks.throughput import Throughput
from rbft.module import RBFTModule
from tests.examples import CARD, MODULE_SETTINGS, Yard, fed, trainer


class Keep(Callback):
    """Keeps what the callback logs."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {"clips_per_second": [], "waiting_share": []}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        log = pl_module.log

        def keep(name: str, value: Any, **settings: Any) -> None:
            if name.startswith("speed/"):
                self.values[name.removeprefix("speed/")].append(float(value))
            log(name, value, **settings)

        pl_module.log = keep


@pytest.mark.parametrize(("every", "windows"), [(1, 2), (2, 1)])
def test_speed_is_logged_per_window_of_steps(
    qwen: Path, tmp_path: Path, every: int, windows: int
) -> None:
    keep = Keep()
    yard = Yard(tmp_path / "card.yaml", {"train": 8}, batch_size=2, global_batch_size=4)
    model = RBFTModule(str(qwen), CARD, stage="label", **MODULE_SETTINGS)
    run = trainer(tmp_path, callbacks=[Throughput(), keep], log_every_n_steps=every)
    run.accumulate_grad_batches = yard.accumulation(1)  # type: ignore[attr-defined]
    run.fit(model, fed(yard, model))
    assert [len(values) for values in keep.values.values()] == [windows, windows]


def test_clips_and_waiting_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    stopped = SimpleNamespace(perf_counter=lambda: clock.now)
    monkeypatch.setattr(rbft.callbacks.throughput, "time", stopped)
    monkeypatch.setattr(Trainer, "world_size", 3)
    monkeypatch.setattr(Trainer, "global_step", 0)
    run, model, logged = trainer(tmp_path, log_every_n_steps=2), LightningModule(), []
    monkeypatch.setattr(model, "log", lambda name, value: logged.append((name, value)))
    speed = Throughput()

    def micro_batch(number: int, comes: float, ends: float, clips: int) -> None:
        clock.now = comes
        speed.on_train_batch_start(run, model, None, number)
        clock.now = ends
        speed.on_train_batch_end(run, model, None, [None] * clips, number)

    clock.now = 10.0  # what passed before the epoch does not count
    speed.on_train_epoch_start(run, model)
    micro_batch(0, comes=13.0, ends=14.0, clips=2)
    monkeypatch.setattr(Trainer, "global_step", 1)
    micro_batch(1, comes=14.5, ends=17.0, clips=1)
    window = [("speed/clips_per_second", 3 * 3 / 7), ("speed/waiting_share", 3.5 / 7)]
    assert logged == window
    micro_batch(2, comes=17.0, ends=18.0, clips=2)
    micro_batch(3, comes=19.0, ends=21.0, clips=2)
    assert logged[2:] == [("speed/clips_per_second", 3 * 4 / 4), ("speed/waiting_share", 1 / 4)]


def test_nothing_is_logged_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, model, logged = trainer(tmp_path), LightningModule(), []
    monkeypatch.setattr(model, "log", lambda name, value: logged.append((name, value)))
    speed = Throughput()
    speed.on_train_batch_end(run, model, None, [None], 0)
    assert not logged
