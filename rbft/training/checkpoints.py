"""Checkpoints from which a stage resumes exactly: written atomically, between two steps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from rbft.runtime.fault_tolerance import Stopped, signals, writing
from rbft.runtime.files import atomically
from rbft.training.fsdp2 import FSDP2, check_trainable


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file beside its final path and renames it.

    Lightning's own class writes to the system's folder for temporary files and moves the file from
    there. On another file system that is a copy, and if it is interrupted, half a file would be the
    newest checkpoint. It also holds the whole file in memory.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Saves to `path`."""
        target = Path(path)
        with writing(target), atomically(target) as part, part.open("wb") as stream:
            torch.save(checkpoint, stream)


class StepCheckpoint(ModelCheckpoint):
    """Saves every `every` optimiser steps, and never in the middle of a global batch.

    It also saves before validation, and when a signal asks the run to end; it then ends the run.

    A run that has just resumed does not know that its step is saved already: Lightning's callback
    would save it again after the next micro-batch, and that checkpoint would lose the gradient of
    the micro-batch.

    Args:
        folder: Folder of the checkpoints; only the newest is kept.
        every: Optimiser steps between two checkpoints.
        made_from: Digests of the training inputs (backbone, clips, card, ...), by name. A run
            resumes from a checkpoint only if they are the same.
    """

    def __init__(
        self, folder: Path, every: int, made_from: Mapping[str, str | None] | None = None
    ) -> None:
        super().__init__(
            folder, filename="{step}", every_n_train_steps=every, save_on_train_epoch_end=False
        )
        self.made_from = dict(made_from or {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Has signals wait for the end of the step from now on."""
        signals.hold()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Saves if the optimiser has just stepped and a checkpoint is due.

        Raises:
            Stopped: If a signal asked the run to end; on all processes after the same step.
        """
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        module: Any = pl_module
        newest = self.best_model_path
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        validates = validation_due(trainer) and sum(trainer.num_val_batches) > 0
        if (validates or module.monitor.stopping) and self.best_model_path == newest:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        if self.best_model_path != newest and trainer.is_global_zero:
            kept = Path(self.best_model_path)
            for path in kept.parent.glob("*.ckpt"):  # of runs that were killed
                if path != kept:
                    trainer.strategy.remove_checkpoint(path)
        if module.monitor.stopping:
            raise Stopped(module.monitor.stopping, Path(self.best_model_path))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets signals end the run at once: all training is saved."""
        signals.release()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Has signals wait again, because training continues."""
        super().on_validation_end(trainer, pl_module)
        signals.hold()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Drops frozen parameters, and adds the batch sizes and that the epoch has begun.

        A run that has resumed between two epochs would save without the latter, and a run that
        resumes from its checkpoints would skip to the wrong batch.
        """
        progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts["ready"] = counts["started"] = counts["processed"] + 1
        checkpoint["rbft_batches"] = _batch_sizes(trainer, pl_module)
        checkpoint["rbft_made_from"] = self.made_from
        if not isinstance(trainer.strategy, FSDP2):  # FSDP2 does it itself
            state, names = checkpoint["state_dict"], trainable_names(pl_module)
            checkpoint["state_dict"] = {name: state[name] for name in state if name in names}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuses a checkpoint that this run cannot resume from.

        Raises:
            ValueError: If the training inputs, the batch sizes or the trainable parameters are
                others than in the checkpoint.
        """
        before = checkpoint.get("rbft_made_from", {})
        names = dict.fromkeys([*before, *self.made_from])
        if changes := [
            f"{name} {before.get(name)} -> {self.made_from.get(name)}"
            for name in names
            if before.get(name) != self.made_from.get(name)
        ]:
            raise ValueError(
                "The checkpoint is of a run that was trained on something else "
                f"({', '.join(changes)}). Resume it with what it began with, or add --restart true."
            )
        found, now = checkpoint["rbft_batches"], _batch_sizes(trainer, pl_module)
        if found != now:
            raise ValueError(
                "The checkpoint counts its place in micro-batches of "
                f"{found['batch_size']} clips on {found['processes']} processes; this run makes "
                f"them of {now['batch_size']} on {now['processes']}. Resume with data.batch_size "
                f"{found['batch_size']} and as many devices, or add --restart true."
            )
        if not isinstance(trainer.strategy, FSDP2):
            check_trainable(set(checkpoint["state_dict"]), trainable_names(pl_module))


def _batch_sizes(trainer: Any, module: Any) -> dict[str, int]:
    return {"batch_size": module.data.batch_size, "processes": trainer.world_size}


def validation_due(trainer: Trainer) -> bool:
    """Whether a validation follows the micro-batch that was just trained on."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def trainable_names(module: LightningModule) -> set[str]:
    """Names of the trainable parameters."""
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}
