"""What one process writes down: time and memory of its steps, and what the model got.

Needs torch alone, so that it runs in any trainer's environment.
"""

import json
import os
import resource
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

PARTS = {"merger": "visual.merger.", "vision": "visual.", "head": "lm_head."}


def clock() -> tuple[float, float]:
    """Processor seconds of this process (user and system), and wall seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, time.perf_counter()


def memory(field: str) -> float:
    """Resident memory of this process in GB: now (VmRSS) or at its highest (VmHWM)."""
    # Not ru_maxrss: a child starts with its parent's.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split(f"{field}:")[1].split()[0]) / 1e6


class Recorder:
    """Writes one process's figures down.

    Args:
        file: The JSON file to write.
        steps: Steps after which to write and to end the process, since what comes then (saving,
            scoring) is not timed; 0 leaves both to the caller.
        pad: Id of the padding token.
        compare: Also note loss and gradients (of the last step), and end once both are there.
    """

    def __init__(self, file: Path, steps: int, pad: int, compare: bool = False) -> None:
        self.file, self.steps, self.pad, self.compare = file, steps, pad, compare
        self.ends: list[tuple[float, float]] = []
        self.counts = {"patches": 0, "tokens": 0, "padded": 0, "supervised": 0}
        self.norms: dict[str, float] = {}
        self.loss: float | None = None
        self.resting = 0.0

    def watch(self, model: Any) -> None:
        """Starts the clock, and counts what each forward of the model gets."""
        # Before the hooks of those who replace what the model is given.
        model.register_forward_pre_hook(self._count, with_kwargs=True, prepend=True)
        # Weights that are mapped from their file are resident once they are read.
        for parameter in model.parameters():
            parameter.detach().sum()
        self.start()

    def start(self) -> None:
        """Starts the clock."""
        self.resting = memory("VmRSS")
        self.ends = [clock()]

    def _count(self, model: Any, args: Any, given: dict[str, Any]) -> None:
        ids, labels = given["input_ids"], given.get("labels")
        self.counts["patches"] += len(given.get("pixel_values_videos", ()))
        self.counts["tokens"] += int((ids != self.pad).sum())
        self.counts["padded"] += ids.numel()
        # Who computes the loss outside of the model says where it needs scores, by mask or index.
        answers = given.get("logits_to_keep") if labels is None else labels[..., 1:] != -100
        if isinstance(answers, torch.Tensor):
            is_mask = answers.dtype == torch.bool
            self.counts["supervised"] += int(answers.sum()) if is_mask else answers.numel()

    def gradients(self, model: Any) -> None:
        """Notes the norm of each part's gradient, as it is now, where it is compared."""
        if not self.compare:
            return
        squares = dict.fromkeys([*PARTS, "language"], 0.0)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                part = next((part for part, key in PARTS.items() if key in name), "language")
                squares[part] += float(parameter.grad.double().square().sum())
        self.norms = {part: square**0.5 for part, square in squares.items()}

    def step(self) -> None:
        """A step has ended."""
        self.ends.append(clock())
        self._end(self.compare)

    def logged(self, loss: float) -> None:
        """The loss of the step that has ended is known."""
        self.loss = loss
        self._end(not self.compare)

    def _end(self, waits: bool) -> None:
        if len(self.ends) - 1 == self.steps and not waits:
            self.finish()
            os._exit(0)

    def finish(self, **more: Any) -> None:
        """Writes the file."""
        found = {
            "cpu": [after[0] - before[0] for before, after in pairwise(self.ends)],
            "wall": [after[1] - before[1] for before, after in pairwise(self.ends)],
            "peak": memory("VmHWM"),
            "resting": self.resting,
            "norms": self.norms,
            "loss": self.loss,
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("torch", "transformers")},
            **self.counts,
            **more,
        }
        self.file.write_text(json.dumps(found), encoding="utf-8")
