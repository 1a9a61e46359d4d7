"""StageHandoff: a finished stage leaves its weights as a plain `from_pretrained` folder."""

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from rbft.run import PROVENANCE, replace_folder, write_json
from rbft.sharding import full_state
from rbft.survival import writing


class StageHandoff(Callback):
    """Saves weights, processor, card and provenance when training has ended.

    The folder appears whole or not at all, so that its presence marks the stage as finished.

    Args:
        target: The weights folder, `lightning_logs/<experiment>/<stage>/weights`.
        provenance: What the weights were made from.
    """

    def __init__(self, target: Path, provenance: dict[str, Any]) -> None:
        self.target, self.provenance = target, provenance

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
        part = self.target.with_name(f".{self.target.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        module.backbone.save_pretrained(part, state_dict=state)
        module.processor.save_pretrained(part)
        module.card.save(part / "card.yaml")
        made: dict[str, Any] = {**self.provenance, "steps": module.trainer.global_step}
        if module.stage.needs_rationales:
            made["rationales"] = module.data.rationale_counts()
        write_json(part / PROVENANCE, made)
        replace_folder(part, self.target)
        # Checkpoints only resume; the stage is done.
        shutil.rmtree(self.target.parent / "checkpoints", ignore_errors=True)
