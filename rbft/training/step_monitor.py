"""Loss, gradient norm and counts of an optimiser step over all processes, read a step later.

On a GPU the host queues work far ahead of the device. To read a number of the current step, the
host would have to wait for the device, and the device would then have to wait for the host. The
numbers of the previous step have been computed long before.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rbft.runtime.fault_tolerance import SIGNALS, signals

MicroBatch = tuple[Int[Tensor, " clips"], Float[Tensor, ""]]


@dataclass(frozen=True)
class Step:
    """One optimiser step of this process.

    Attributes:
        number: Its number, from 1.
        batches: Of each micro-batch the indices of its clips in the split, and its loss.
        figures: Gradient norm, loss, number of replaced clips, and for each signal the number of
            processes that received it; over all processes, on the device.
        copy: A copy in CPU memory, which may still be under way.
        ready: Event on the device after which the copy is complete; None if it is already.
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
    """Collects the figures of a step from its micro-batches until the host reads them."""

    def __init__(self) -> None:
        self._batches: list[MicroBatch] = []
        self._replaced = 0
        self._closed: Step | None = None

    def add(self, clips: Int[Tensor, " clips"], loss: Float[Tensor, ""], replaced: int = 0) -> None:
        """Adds a micro-batch of the current step.

        Args:
            clips: Indices of its clips in the split.
            loss: Its share of the global batch's loss.
            replaced: Number of its clips that replace one that cannot be decoded.
        """
        self._batches.append((clips, loss.detach()))
        self._replaced += replaced

    def close(self, number: int, norm: Float[Tensor, ""], world: int) -> Step:
        """Ends the current step without waiting for the device; collective.

        Args:
            number: The step's number, from 1.
            norm: Gradient norm over all processes.
            world: Number of processes.
        """
        loss = torch.stack([loss for _, loss in self._batches]).sum().float()
        counts = [self._replaced, *(signals.received == signal for signal in SIGNALS)]
        own = torch.stack([loss, *(loss.new_full((), float(count)) for count in counts)])
        if world > 1:
            torch.distributed.all_reduce(own)
        figures = torch.cat([norm.float()[None], own])
        copy, ready = figures.to("cpu", non_blocking=figures.is_cuda), None
        if figures.is_cuda:
            ready = torch.Event(figures.device)
            ready.record()
        self._closed = Step(number, self._batches, figures, copy, ready)
        self._batches, self._replaced = [], 0
        return self._closed

    def last(self) -> Step | None:
        """The step that ended last, or None if it was returned before."""
        step, self._closed = self._closed, None
        return step


def signal_of(figures: list[float]) -> int:
    """The signal that any process received, 0 for none; the same on all processes."""
    return next((int(n) for n, count in zip(SIGNALS, figures[3:], strict=True) if count), 0)
