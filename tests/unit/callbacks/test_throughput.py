import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from rbft.callbacks.throughput import Throughput
from rbft.data.base import Clip
from rbft.data.video import Video
from rbft.module import RBFTModule
from tests.examples import CARD, MODULE_SETTINGS, Yard, trainer

WAIT = 0.05


class Slow(Yard):
    def decode(self, clip: Clip) -> Video:
        time.sleep(WAIT)
        return super().decode(clip)


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


def measure(benchmark: type[Yard], folder: Path, work: Path, **settings: Any) -> Keep:
    keep = Keep()
    yard = benchmark(work / "card.yaml", {"train": 8}, batch_size=2, global_batch_size=4)
    model = RBFTModule(str(folder), CARD, stage="label", **MODULE_SETTINGS)
    run = trainer(work, callbacks=[Throughput(), keep], **settings)
    run.accumulate_grad_batches = yard.accumulation(1)  # type: ignore[attr-defined]
    run.fit(model, yard)
    return keep


@pytest.mark.parametrize(("every", "windows"), [(1, 2), (2, 1)])
def test_speed_is_logged_per_window_of_steps(
    qwen: Path, tmp_path: Path, every: int, windows: int
) -> None:
    kept = measure(Yard, qwen, tmp_path, log_every_n_steps=every).values
    assert len(kept["clips_per_second"]) == len(kept["waiting_share"]) == windows
    assert all(value > 0 for value in kept["clips_per_second"])
    assert all(0 <= value <= 1 for value in kept["waiting_share"])


def test_waiting_for_frames_is_seen(qwen: Path, tmp_path: Path) -> None:
    kept = measure(Slow, qwen, tmp_path).values
    # 4 clips a step wait at least 4 x 0.05 s: no more than 20 clips a second.
    assert all(value < 1 / WAIT for value in kept["clips_per_second"])
    assert all(value > 0.2 for value in kept["waiting_share"])
