import math
import signal
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import Trainer

from rbft.runtime.fault_tolerance import signals
from rbft.training.step_monitor import Step, StepMonitor


@pytest.fixture(autouse=True)
def no_signal() -> Iterator[None]:
    yield
    signals.received = None


def runner(step: int = 0, world: int = 1, precision: str = "32-true") -> Any:
    """Stands for a Trainer."""
    facts = {"global_step": step, "world_size": world, "precision": precision}
    return Mock(spec=Trainer, is_global_zero=True, **facts)


def fill(monitor: StepMonitor) -> None:
    monitor.add(["e", "b"], torch.tensor(0.5, requires_grad=True))
    monitor.add(["d", "d"], torch.tensor(0.25), replaced=2)


def test_a_step_of_two_micro_batches() -> None:
    monitor = StepMonitor()
    fill(monitor)
    step = monitor.close(runner(6), torch.tensor(3.0))
    # Norm, loss, replaced clips, and how many processes got each signal.
    assert step.read() == [3.0, 0.75, 2.0, 0.0, 0.0, 0.0]
    assert step.number == 7
    assert [clips for clips, _ in step.batches] == [["e", "b"], ["d", "d"]]
    assert [float(loss) for _, loss in step.batches] == [0.5, 0.25]
    assert not any(loss.requires_grad for _, loss in step.batches)
    # The next begins with nothing.
    monitor.add(["c"], torch.tensor(2.0))
    assert monitor.close(runner(7), torch.tensor(1.0)).read() == [1.0, 2.0, 0.0, 0.0, 0.0, 0.0]


def test_losses_and_counts_are_summed_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: values.mul_(2))
    monitor = StepMonitor()
    fill(monitor)
    step = monitor.close(runner(world=2), torch.tensor(3.0))
    assert step.read() == [3.0, 1.5, 4.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("received", "counts"),
    [
        (None, [0.0, 0.0, 0.0]),
        (signal.SIGTERM, [1.0, 0.0, 0.0]),
        (signal.SIGUSR1, [0.0, 1.0, 0.0]),
        (signal.SIGINT, [0.0, 0.0, 1.0]),
    ],
)
def test_every_process_learns_of_a_signal(
    received: signal.Signals | None, counts: list[float]
) -> None:
    signals.received = received
    monitor = StepMonitor()
    fill(monitor)
    assert monitor.close(runner(), torch.tensor(3.0)).read()[3:] == counts
    assert monitor.stopping == (received or 0)


def test_several_processes_stop_by_what_they_have_agreed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signal that only this process has seen so far ends nothing before the sum is read."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: None)
    monitor, several = StepMonitor(), runner(world=2)
    fill(monitor)
    signals.received = signal.SIGTERM
    monitor.close(several, torch.tensor(3.0))
    assert monitor.stopping == 0
    monitor.check_last(several)
    assert monitor.stopping == signal.SIGTERM


@pytest.mark.parametrize(
    ("norm", "loss", "precision", "message"),
    [
        (
            math.nan,
            math.inf,
            "32-true",
            "The loss of step 1 is not finite (gradient norm nan), "
            "with the clips e, b. The step was not taken",
        ),
        (
            math.inf,
            1.0,
            "32-true",
            "The gradient norm of step 1 is not finite (gradient norm inf), "
            "with the clips e, b, d. The step was not taken",
        ),
        (math.nan, math.inf, "16-mixed", "The loss of step 1 is not finite"),
        (math.inf, 1.0, "16-mixed", None),  # the scaler passes over it
    ],
)
def test_a_step_that_is_not_finite_is_told_once(
    norm: float, loss: float, precision: str, message: str | None
) -> None:
    monitor, one = StepMonitor(), runner(precision=precision)
    monitor.check_last(one)  # nothing there yet
    monitor.add(["e", "b"], torch.tensor(loss))
    monitor.add(["d", "d"], torch.tensor(0.25))
    monitor.close(one, torch.tensor(norm))
    if message is not None:
        with pytest.raises(ValueError, match="is not finite") as found:
            monitor.check_last(one)
        assert message in str(found.value)
    monitor.check_last(one)


class Event:
    """Stands for a device's event."""

    waited = False

    def synchronize(self) -> None:
        self.waited = True


def test_figures_are_read_when_they_are_there() -> None:
    event, figures = Event(), torch.arange(5.0)
    assert Step(1, [], figures, figures, event).read() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert event.waited
