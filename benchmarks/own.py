"""Runs an rbft command as a user does, with a recorder among the Trainer's callbacks.

Run by the other scripts: python benchmarks/own.py SPEC.json, which holds the command's arguments
and the recorder's.
"""

import json
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from record import Recorder

from rbft.cli import main


class Clock(Callback):
    """Tells a recorder of every optimiser step, or every batch that is scored or written.

    Args:
        file: See `Recorder`.
        steps: See `Recorder`.
        pad: See `Recorder`.
        compare: See `Recorder`.
    """

    def __init__(self, file: str, steps: int, pad: int, compare: bool = False) -> None:
        self.recorder = Recorder(Path(file), steps, pad, compare)
        self.stepped = 0

    def _watch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.recorder.watch(pl_module.backbone)

    def _step(self, *_: Any) -> None:
        self.recorder.step()

    on_train_start = on_test_start = on_predict_start = _watch
    on_test_batch_end = on_predict_batch_end = _step

    def _finish(self, *_: Any) -> None:
        if not self.recorder.steps:
            self.recorder.finish()

    on_test_end = on_predict_end = _finish

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Gradients are whole."""
        self.recorder.gradients(pl_module.backbone)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts optimiser steps, not micro-batches."""
        if trainer.global_step != self.stepped:
            self.stepped = trainer.global_step
            self.recorder.step()
            self.recorder.logged(float(outputs["loss"]))


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    clock = {"class_path": "own.Clock", "init_args": given["record"]}
    sys.argv = sys.argv[:1]  # Lightning compares
    main([*given["command"], f"--trainer.callbacks={json.dumps([clock])}"])
