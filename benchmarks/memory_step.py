"""Where the memory of rbft's own step goes: resident size of a training process by phase.

Run: python benchmarks/memory_step.py [--stages label rationale]
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from launch import launch
from lightning.pytorch import Callback, LightningModule, Trainer
from record import memory
from table import machine
from torch import Tensor
from train_step import EPOCHS, TITLES, Setting, prepare, step_options, watched
from world import TINY, Size, make_world

from rbft.cli import main as rbft
from rbft.runtime.console import print_rank_zero, table
from rbft.stages import STAGES


class Phases(Callback):
    """Notes resident memory at the end of each phase, and its highest within.

    Args:
        file: The JSON file to write.
        steps: Optimiser steps; the last one measures what autograd keeps instead.
    """

    def __init__(self, file: str, steps: int) -> None:
        self.file, self.steps, self.step = Path(file), steps, 1
        self.found: dict[str, list[list[float]]] = {}
        self.kept: dict[int, int] = {}
        self.hooks: Any = None

    def _note(self, phase: str) -> None:
        row = [memory(field) for field in ("VmRSS", "RssFile", "VmHWM")]
        if self.step < self.steps:
            self.found.setdefault(phase, []).append(row)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts anew

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before the weights are loaded."""
        self._note("libraries, settings and clips' list")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Weights are mapped from their file, and are there once they are read."""
        for parameter in pl_module.parameters():
            parameter.detach().sum()
        self._note("weights loaded")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A batch is there."""
        self._note(f"{self._name}: clips read")
        if self.step == self.steps:
            weights = {p.untyped_storage().data_ptr() for p in pl_module.parameters()}

            def keep(tensor: Tensor) -> Tensor:
                place = tensor.untyped_storage()
                if place.data_ptr() not in weights:
                    self.kept[place.data_ptr()] = place.nbytes()
                return tensor

            self.hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
            self.hooks.__enter__()

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """The forward pass is done."""
        if self.hooks is not None:
            self.hooks.__exit__()
        self._note(f"{self._name}: forward pass")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The backward pass is done."""
        self._note(f"{self._name}: backward pass")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is done; after the last one, writes the file."""
        self._note(f"{self._name}: clipping and AdamW")
        if self.step == self.steps:
            kept = sum(self.kept.values()) / 1e9
            found = {"phases": self.found, "kept": kept}
            self.file.write_text(json.dumps(found), encoding="utf-8")
            trainer.should_stop = True
        self.step += 1

    @property
    def _name(self) -> str:
        return "first step" if self.step == 1 else "later steps"


def main() -> None:
    """Trains two epochs of each stage in a process of its own, and prints a table."""
    parser = step_options(str(__doc__).splitlines()[0])
    parser.add_argument("--clips", type=int, default=6, help="training clips (default 6)")
    given = parser.parse_args()
    print_rank_zero(machine("torch", "transformers"))
    with tempfile.TemporaryDirectory() as folder:
        size = TINY if given.tiny else Size(clips=given.clips)
        world = make_world(Path(folder).resolve(), size)
        for name in given.stages:
            setting = Setting(world, STAGES[name], given.batch, EPOCHS, checkpointing=False)
            prepare(setting)
            file, steps = str(setting.folder / "memory.json"), EPOCHS * size.clips // given.batch
            asked = watched(setting, "memory_step.Phases", file=file, steps=steps)
            spec = {"record": {"file": file}, "command": asked}
            found = launch(
                sys.executable, ["memory_step.py", "--of"], spec, setting.folder / "spec.json"
            )
            rows = [
                # Of later steps the highest; batches differ in length.
                [phase, *(f"{max(column):.2f}" for column in zip(*noted, strict=True))]
                for phase, noted in found["phases"].items()
            ]
            headers = [f"{TITLES[name]}, GB at the end of", "resident", "files", "highest in it"]
            print_rank_zero(table(rows, headers))
            print_rank_zero(
                f"kept for the backward pass by a step's forward pass: {found['kept']:.2f} GB"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--of"]:
        told = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
        sys.argv = sys.argv[:1]  # Lightning compares
        rbft(told["command"])
    else:
        main()
