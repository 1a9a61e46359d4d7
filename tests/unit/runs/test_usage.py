"""Time that a run has spent, over processes and starts."""

import json
import time
from pathlib import Path

import pytest

from rbft.runs.usage import Spent, Usage, read_usage


def work(seconds: float) -> None:
    """Keeps the processor busy."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_what_is_spent_is_added_up_over_starts(tmp_path: Path):
    for _ in range(2):
        usage = Usage(tmp_path)
        with usage.phase("training"):
            work(0.2)
        with usage.phase("scoring"):
            time.sleep(0.2)
        with usage.phase("training"):
            work(0.1)
    found = read_usage(tmp_path)
    assert found["training"].processor_seconds == pytest.approx(0.6, abs=0.15)
    assert found["scoring"].processor_seconds < 0.15
    assert found["scoring"].seconds >= 0.4
    assert found["training"].gpu_seconds == 0


def test_a_kill_loses_only_the_last_seconds(tmp_path: Path):
    usage = Usage(tmp_path, every=0.05)
    with usage.phase("training"):
        time.sleep(0.4)
        assert 0.05 <= read_usage(tmp_path)["training"].seconds <= 0.4  # what a kill would leave


def test_a_look_is_not_noted(tmp_path: Path):
    usage = Usage(tmp_path)
    with usage.phase("rationales", least=1.0):
        pass
    assert list(tmp_path.iterdir()) == []
    with usage.phase("scoring"):
        pass
    assert [*read_usage(tmp_path)] == ["scoring"]


def test_an_error_is_noted_too_and_halves_of_files_are_not_read(tmp_path: Path):
    usage = Usage(tmp_path)
    with pytest.raises(ZeroDivisionError), usage.phase("training"):
        raise ZeroDivisionError
    (tmp_path / "usage" / ".x.json.part.host-1-00000000.json").write_text("{")
    (tmp_path / "usage" / "gpu.json").write_text(
        json.dumps({"training": {"seconds": 5, "processor_seconds": 9, "gpu_seconds": 5}})
    )
    found = read_usage(tmp_path)["training"]
    assert found.gpu_seconds == 5
    assert 5 <= found.seconds < 6
    assert Spent(1.0, 2.0, 3.0) + Spent(1.0, 1.0, 1.0) == Spent(2.0, 3.0, 4.0)


def test_a_full_disk_does_not_end_the_run(tmp_path: Path):
    (tmp_path / "usage").touch()  # no folder can be made there
    usage = Usage(tmp_path)
    with usage.phase("training"):
        pass
    assert usage.phases["training"].seconds >= 0


def test_the_most_memory_that_a_process_held_is_noted(tmp_path: Path):
    usage = Usage(tmp_path)
    with usage.phase("training"):
        held = bytearray(200_000_000)
        held[::4096] = b"x" * len(held[::4096])
    found = read_usage(tmp_path)["training"]
    del held
    assert 200e6 < found.memory_bytes < 100e9
    assert found.gpu_memory_bytes == 0
    older = Spent(1.0, memory_bytes=found.memory_bytes / 2)
    assert (found + older).memory_bytes == (older + found).memory_bytes == found.memory_bytes
