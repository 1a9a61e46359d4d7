"""StageHandoff: a finished stage leaves its weights as a plain `from_pretrained` folder."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

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
    """

    def __init__(
        self, target: Path, provenance: dict[str, Any], notes: Mapping[str, Any] | None = None
    ) -> None:
        self.target, self.provenance, self.notes = target, provenance, notes or {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the folder on the first process; the others wait."""
        module: Any = pl_module
        if trainer.interrupted:
            return
        state = full_state(trainer.strategy)  # all processes take part
        if trainer.is_global_zero:
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
            made: dict[str, Any] = {**self.provenance, "steps": module.trainer.global_step}
            if module.stage.needs_rationales:
                made["rationales"] = module.data.rationale_counts()
            write_json(part / PROVENANCE, made)
        # Checkpoints only resume; the stage is done, now that its weights are in place.
        shutil.rmtree(self.target.parent / "checkpoints", ignore_errors=True)
