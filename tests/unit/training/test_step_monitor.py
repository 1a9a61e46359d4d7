import signal
from collections.abc import Iterator

import pytest
import torch

from rbft.runtime.fault_tolerance import signals
from rbft.training.step_monitor import Step, StepMonitor, signal_of


@pytest.fixture(autouse=True)
def no_signal() -> Iterator[None]:
    yield
    signals.received = None


def fill(monitor: StepMonitor) -> None:
    monitor.add(torch.tensor([4, 1]), torch.tensor(0.5, requires_grad=True))
    monitor.add(torch.tensor([3, 3]), torch.tensor(0.25), replaced=2)


def test_a_step_of_two_micro_batches() -> None:
    monitor = StepMonitor()
    assert monitor.last() is None
    fill(monitor)
    step = monitor.close(7, torch.tensor(3.0), world=1)
    # Norm, loss, replaced clips, and how many processes got each signal.
    assert step.read() == [3.0, 0.75, 2.0, 0.0, 0.0]
    assert step.number == 7
    assert [clips.tolist() for clips, _ in step.batches] == [[4, 1], [3, 3]]
    assert [float(loss) for _, loss in step.batches] == [0.5, 0.25]
    assert not any(loss.requires_grad for _, loss in step.batches)
    assert monitor.last() is step
    assert monitor.last() is None
    # The next begins with nothing.
    monitor.add(torch.tensor([2]), torch.tensor(2.0))
    assert monitor.close(8, torch.tensor(1.0), world=1).read() == [1.0, 2.0, 0.0, 0.0, 0.0]


def test_losses_and_counts_are_summed_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: values.mul_(2))
    monitor = StepMonitor()
    fill(monitor)
    assert monitor.close(1, torch.tensor(3.0), world=2).read() == [3.0, 1.5, 4.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("received", "counts"),
    [(None, [0.0, 0.0]), (signal.SIGTERM, [1.0, 0.0]), (signal.SIGUSR1, [0.0, 1.0])],
)
def test_every_process_learns_of_a_signal(
    received: signal.Signals | None, counts: list[float]
) -> None:
    signals.received = received
    monitor = StepMonitor()
    fill(monitor)
    figures = monitor.close(1, torch.tensor(3.0), world=1).read()
    assert figures[3:] == counts
    assert signal_of(figures) == (received or 0)


class Event:
    """Stands for a device's event."""

    waited = False

    def synchronize(self) -> None:
        self.waited = True


def test_figures_are_read_when_they_are_there() -> None:
    event, figures = Event(), torch.arange(5.0)
    assert Step(1, [], figures, figures, event).read() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert event.waited
