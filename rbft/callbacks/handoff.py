"""StageHandoff: a finished stage leaves its weights as a plain `from_pretrained` folder."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from rbft.callbacks.best import BestWeights
from rbft.runs.folder import PROVENANCE
from rbft.runtime.fault_tolerance import writing
from rbft.runtime.files import atomically, write_json
from rbft.training.fsdp2 import full_state


class StageHandoff(Callback):
    """Saves weights, processor, card and provenance when training has ended.

    The folder appears atomically, so that its presence marks the stage as finished.

    Args:
        target: The weights folder, `lightning_logs/<experiment>/<stage>/weights`.
        provenance: What the weights were made from.
        notes: Contents of further JSON files in the folder, by name.
        best: Has kept the weights of the best validation, which are saved then; None saves the
            last.
    """

    def __init__(
        self,
        target: Path,
        provenance: dict[str, Any],
        notes: Mapping[str, Any] | None = None,
        best: BestWeights | None = None,
    ) -> None:
        self.target, self.provenance, self.notes = target, provenance, notes or {}
        self.best = best

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the folder on the first process; the others wait."""
        module: Any = pl_module
        if trainer.interrupted:
            return
        state = full_state(trainer.strategy)  # all processes take part
        if trainer.is_global_zero:
            if self.best is not None:
                state = self.best.restore(module, state)
            with writing(self.target):
                self._write(module, state)
        trainer.strategy.barrier("handoff")

    def _write(self, module: Any, state: dict[str, Tensor] | None) -> None:
        with atomically(self.target) as part:
            module.backbone.save_pretrained(part, state_dict=state)
            module.processor.save_pretrained(part)
            module.card.save(part / "card.yaml")
            for name, content in self.notes.items():
                write_json(part / name, content)
            trainer = module.trainer
            made: dict[str, Any] = {**self.provenance, "steps": trainer.global_step}
            made |= _amount(trainer, module.data)
            if module.stage.needs_rationales:
                made["rationales"] = module.data.rationales("train").counts()
            if self.best is not None:
                made["kept"] = self.best.summary
            write_json(part / PROVENANCE, made)
        # Checkpoints only resume; the stage is done, now that its weights are in place.
        shutil.rmtree(self.target.parent / "checkpoints", ignore_errors=True)


def _amount(trainer: Trainer, data: Any) -> dict[str, int]:
    """How much was trained on: whole epochs, and clips seen, each as often as it was."""
    loop = trainer.fit_loop.epoch_loop
    batches, per_epoch = loop.total_batch_idx + 1, int(trainer.num_training_batches)
    together = data.batch_size * trainer.world_size
    clips = min(len(data.clips("train")), per_epoch * together)
    epochs, more = divmod(batches, per_epoch)
    return {"epochs": epochs, "clips_seen": epochs * clips + min(more * together, clips)}
