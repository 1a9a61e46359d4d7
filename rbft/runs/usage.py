"""What a run has spent: time and memory of every process, over all its starts."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from rbft.runs.folder import read_json
from rbft.runtime.files import write_json

USAGE = "usage"  # folder within a run's
EVERY = 10.0  # seconds of spending that a kill can lose
LOOK = 1.0  # seconds below which Stage 0 has written nothing but looked what there is


@dataclass(frozen=True)
class Spent:
    """Time that was spent, and the most memory that was held; runs of before have no memory noted.

    Attributes:
        seconds: By the clock, added up over processes.
        processor_seconds: Of the processor, with processes that decode clips.
        gpu_seconds: The same as `seconds` for processes on a GPU.
        memory_bytes: Most memory of a process since it began; 0 where that is not known.
        gpu_memory_bytes: Most memory that torch held for tensors on one GPU since then.
    """

    seconds: float = 0.0
    processor_seconds: float = 0.0
    gpu_seconds: float = 0.0
    memory_bytes: float = 0.0
    gpu_memory_bytes: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            self.seconds + other.seconds,
            self.processor_seconds + other.processor_seconds,
            self.gpu_seconds + other.gpu_seconds,
            max(self.memory_bytes, other.memory_bytes),
            max(self.gpu_memory_bytes, other.gpu_memory_bytes),
        )


class Usage:
    """Notes what this process spends on a run, in a file of its own that a kill leaves behind.

    Args:
        folder: The run's.
        every: Seconds after which the note is renewed; a kill loses at most as many.
    """

    def __init__(self, folder: Path, every: float = EVERY) -> None:
        self.file = folder / USAGE / f"{os.getpid()}-{uuid4().hex[:8]}.json"
        self.every = every
        self.phases: dict[str, Spent] = {}

    @contextmanager
    def phase(self, name: str, least: float = 0.0) -> Iterator[None]:
        """Counts what is spent in the block.

        Args:
            name: What it is spent on: rationales, training or scoring.
            least: Seconds below which it is not noted.
        """
        import torch  # here, since the report reads these notes without it

        before = self.phases.get(name, Spent())
        clock, processor = time.perf_counter(), _processor_seconds()
        ended = threading.Event()

        def note() -> None:
            passed = time.perf_counter() - clock
            if passed < least:
                return
            on_gpu, held = 0.0, 0.0
            if torch.cuda.is_initialized():
                on_gpu, held = passed, float(torch.cuda.max_memory_allocated())
            spent = Spent(passed, _processor_seconds() - processor, on_gpu, _most_memory(), held)
            self.phases[name] = before + spent
            rounded = {
                phase: {kind: round(value, 3) for kind, value in vars(spent).items()}
                for phase, spent in self.phases.items()
            }
            with suppress(OSError):  # a full disk: the run itself says so where it matters
                write_json(self.file, rounded)

        def keep_noting() -> None:
            while not ended.wait(self.every):
                note()

        thread = threading.Thread(target=keep_noting, daemon=True, name="usage")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()  # or the two would write at once
            note()


def read_usage(folder: Path) -> dict[str, Spent]:
    """What all processes of all starts of a run have spent, by phase.

    Args:
        folder: The run's.
    """
    found: dict[str, Spent] = {}
    for file in sorted((folder / USAGE).glob("[!.]*.json")):
        content: dict[str, Any] = read_json(file)
        for name, spent in content.items():
            found[name] = found.get(name, Spent()) + Spent(
                **{kind: float(value) for kind, value in spent.items()}
            )
    return found


def _processor_seconds() -> float:
    """Of this process, and of those of its children that have ended."""
    return sum(os.times()[:4])


def _most_memory() -> float:
    """Most bytes that this process has held since it began; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
