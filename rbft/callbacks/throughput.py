"""How fast, and how much of the time is spent waiting for data."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Logs clips per second and the share of time that training waits for the next batch."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.clips, self.waited, self.started = 0, 0.0, time.perf_counter()
        self.ended = self.started

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._reset()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is here: what passed since the last one ended was waiting."""
        self.waited += time.perf_counter() - self.ended

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs over the window since the last logged step, without waiting for the device."""
        self.ended = time.perf_counter()
        self.clips += len(batch) * trainer.world_size
        passed = self.ended - self.started
        if (
            trainer.global_step
            and (batch_idx + 1)
            % (
                trainer.log_every_n_steps * trainer.accumulate_grad_batches  # type: ignore[attr-defined]
            )
            == 0
        ):
            pl_module.log("speed/clips_per_second", self.clips / passed)
            pl_module.log("speed/waiting_share", self.waited / passed)
            self._reset()
