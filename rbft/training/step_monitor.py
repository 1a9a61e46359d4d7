"""How an optimiser step went, over its micro-batches and processes; read a step later.

On a GPU the host queues work far ahead of the device. To look at a number of the step that it is
queueing, it would have to wait until the device has caught up, and the device then for the host.
The numbers of the step before have long been there.
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
    """One optimiser step as this process has seen it.

    Attributes:
        number: Its number, from 1.
        batches: This process's micro-batches: their clips' indices in the split, their losses.
        figures: Gradient norm, loss, replaced clips and processes that got each signal, over all
            processes; on the device.
        copy: The same on the way into the host's memory.
        ready: The device's event after which the copy is there; None where it is there at once.
    """

    number: int
    batches: list[MicroBatch]
    figures: Float[Tensor, " figures"]
    copy: Float[Tensor, " figures"]
    ready: Any

    def read(self) -> list[float]:
        """The figures; waits for this step's gradients, not for what was queued after them."""
        if self.ready is not None:
            self.ready.synchronize()
        return self.copy.tolist()


class StepWatch:
    """Gathers what the micro-batches of a step show and keeps it until the host asks."""

    def __init__(self) -> None:
        self._batches: list[MicroBatch] = []
        self._replaced = 0
        self._closed: Step | None = None

    def add(self, clips: Int[Tensor, " clips"], loss: Float[Tensor, ""], replaced: int = 0) -> None:
        """Takes a micro-batch.

        Args:
            clips: Indices of its clips in the split.
            loss: Its share of the global batch's loss.
            replaced: How many of its clips stand for one that cannot be decoded.
        """
        self._batches.append((clips, loss.detach()))
        self._replaced += replaced

    def close(self, number: int, norm: Float[Tensor, ""], world: int) -> Step:
        """Ends a step, without waiting for the device; collective.

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
        """The step that was closed last; once."""
        step, self._closed = self._closed, None
        return step


def signal_of(figures: list[float]) -> int:
    """The signal that a process has got, 0 for none; the same on all of them."""
    return next((int(n) for n, count in zip(SIGNALS, figures[3:], strict=True) if count), 0)
