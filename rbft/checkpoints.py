"""Checkpoints from which a stage resumes exactly: whole files, between two optimiser steps."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and then renames it.

    Lightning's own writes into the system's folder for temporary files and moves it from there; on
    another file system that is a copy, and what a kill leaves of it would be the newest checkpoint.
    It also holds the whole file in memory.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Saves to `path`."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        torch.save(checkpoint, part)
        part.replace(target)


class StepCheckpoint(ModelCheckpoint):
    """Saves every so many optimiser steps, and never in the middle of a global batch.

    A run that has just resumed does not know that its step is saved already: Lightning's callback
    would save it again after the next micro-batch, whose gradient such a checkpoint loses.

    Args:
        folder: Where the checkpoints go; only the newest is kept.
        every: Optimiser steps between two checkpoints.
    """

    def __init__(self, folder: Path, every: int) -> None:
        super().__init__(
            folder, filename="{step}", every_n_train_steps=every, save_on_train_epoch_end=False
        )

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Saves if the optimiser has just stepped and it is time."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        newest = self.best_model_path
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.best_model_path != newest and trainer.is_global_zero:
            kept = Path(self.best_model_path)
            for path in kept.parent.glob("*.ckpt"):  # of runs that were killed
                if path != kept:
                    trainer.strategy.remove_checkpoint(path)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Notes that the epoch has begun.

        Lightning forgets it in a run that has resumed between two epochs, and such a run's
        checkpoints would then skip to the wrong batch.
        """
        progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts["ready"] = counts["started"] = counts["processed"] + 1
