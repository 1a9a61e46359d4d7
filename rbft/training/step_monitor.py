"""Loss, gradient norm and counts of an optimiser step over all processes, read a step later.

On a GPU the host queues work far ahead of the device. To read a number of the current step, the
host would have to wait for the device, and the device would then have to wait for the host. The
numbers of the previous step have been computed long before.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import Trainer
from torch import Tensor

from rbft.runtime.fault_tolerance import SIGNALS, signals
from rbft.training.fsdp2 import all_gather_objects

FIRST_SIGNAL = 3  # among the figures of a step
FIRST_PART = FIRST_SIGNAL + len(SIGNALS)
MicroBatch = tuple[Sequence[str], Float[Tensor, ""]]


@dataclass(frozen=True)
class Step:
    """One optimiser step of this process.

    Attributes:
        number: Its number, from 1.
        batches: This process's micro-batches: the ids of their clips, their losses.
        figures: Gradient norm, loss, replaced clips, processes that got each signal and, where a
            stage learns rationale and class, the loss of each, over all processes; on the device.
        copy: The same on the way into the host's memory.
        ready: The device's event after which the copy is there; None where it is there at once.
    """

    number: int
    batches: list[MicroBatch]
    figures: Float[Tensor, " figures"]
    copy: Float[Tensor, " figures"]
    ready: Any

    def read(self) -> list[float]:
        """The figures; waits for the gradients of this step, not for work queued after them."""
        if self.ready is not None:
            self.ready.synchronize()
        return self.copy.tolist()


class StepMonitor:
    """Collects the figures of a step from its micro-batches, and looks at them one step later.

    Attributes:
        stopping: The signal that has asked the run to end after this step, 0 for none; the same on
            all processes.
    """

    def __init__(self) -> None:
        self.stopping = 0
        self._batches: list[MicroBatch] = []
        self._parts: list[Float[Tensor, "parts 2"]] = []
        self._replaced = 0
        self._closed: Step | None = None

    def add(
        self,
        clips: Sequence[str],
        loss: Float[Tensor, ""],
        replaced: int = 0,
        parts: Float[Tensor, "parts 2"] | None = None,
    ) -> None:
        """Takes a micro-batch.

        Args:
            clips: Ids of its clips.
            loss: Its share of the global batch's loss.
            replaced: Number of its clips that replace one that cannot be decoded.
            parts: Sum over tokens and number of tokens of the loss of each part of the answer;
                None where the answers have one part.
        """
        self._batches.append((clips, loss.detach()))
        self._parts += [] if parts is None else [parts.detach()]
        self._replaced += replaced

    def close(self, trainer: Trainer, norm: Float[Tensor, ""]) -> Step:
        """Ends a step, without waiting for the device; collective.

        Args:
            trainer: The Trainer, about to take the step.
            norm: Gradient norm over all processes.
        """
        loss = torch.stack([loss for _, loss in self._batches]).sum().float()
        counts = [self._replaced, *(signals.received == signal for signal in SIGNALS)]
        own = torch.stack([loss, *(loss.new_full((), float(count)) for count in counts)])
        parts = torch.stack(self._parts).sum(0).float() if self._parts else loss.new_empty(0, 2)
        both = torch.cat([own, parts.flatten()])
        if trainer.world_size > 1:
            torch.distributed.all_reduce(both)
        own, parts = both[: len(own)], both[len(own) :].view(-1, 2)
        figures = torch.cat([norm.float()[None], own, parts[:, 0] / parts[:, 1].clamp(min=1e-9)])
        copy, ready = figures.to("cpu", non_blocking=figures.is_cuda), None
        if figures.is_cuda:
            ready = torch.Event(figures.device)
            ready.record()
        step = Step(trainer.global_step + 1, self._batches, figures, copy, ready)
        self._closed, self._batches, self._parts, self._replaced = step, [], [], 0
        if trainer.world_size == 1:  # nobody else to agree with
            self.stopping = signals.received or 0
        return step

    def check_last(self, trainer: Trainer) -> None:
        """Ends the run if the step that was closed last was not finite; notes a signal.

        To be called before the next step is taken, and before anything is saved or scored.

        Raises:
            ValueError: If loss or gradients were not finite, on all processes.
        """
        step, self._closed = self._closed, None
        if step is None:
            return
        norm, loss, *_ = figures = step.read()
        # Gradients that overflow in half precision are the gradient scaler's business.
        if not math.isfinite(loss if is_scaled(trainer) else norm):
            _refuse(step, norm, trainer)
        self.stopping = self.stopping or _signal_of(figures)


def is_scaled(trainer: Trainer) -> bool:
    """Whether a gradient scaler looks after steps whose gradients overflow."""
    return trainer.precision == "16-mixed"


def _refuse(step: Step, norm: float, trainer: Trainer) -> None:
    mine = [(name, not math.isfinite(loss)) for names, loss in step.batches for name in names]
    found = all_gather_objects(trainer.world_size, mine)
    guilty = [name for name, broken in found if broken]
    what = "gradient norm" if not guilty else "loss"
    names = ", ".join(dict.fromkeys(guilty or [name for name, _ in found]))
    if not trainer.is_global_zero:
        raise SystemExit(2)  # the first process speaks for all
    raise ValueError(
        f"The {what} of step {step.number} is not finite (gradient norm {norm:g}), with the "
        f"clips {names}. The step was not taken and the last checkpoint is untouched. Look at "
        "these clips, lower model.learning_rate or set trainer.precision to 32-true; then "
        "start again with --restart true or under another name."
    )


def _signal_of(figures: list[float]) -> int:
    """The signal that a process has got, 0 for none; the same on all of them."""
    counts = figures[FIRST_SIGNAL:]
    return next((int(n) for n, count in zip(SIGNALS, counts, strict=False) if count), 0)
