import errno
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset

from rbft.runtime.fault_tolerance import (
    SIGNALS,
    Signals,
    Stopped,
    explain_errors,
    format_fatal_error,
    note_report,
    take_signals,
    writing,
)
from tests.examples import clips

# Signals


def listen(listener: Signals, work: Callable[[], None]) -> None:
    with listener.listening():
        work()


def wait_for(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(1)


def test_a_signal_ends_the_run_at_once() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(Stopped) as stopped:
        listen(Signals(), lambda: wait_for(signal.SIGUSR1))
    assert stopped.value.status == 138
    assert str(stopped.value) == (
        "stopped by SIGUSR1; saved: everything that is finished is on disk. The same command goes "
        "on from there."
    )
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_that_comes_while_it_is_held_waits() -> None:
    listener = Signals()
    reached = []

    def work() -> None:
        listener.hold()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)  # a second one changes nothing
        reached.append(listener.received)
        listener.release()

    with pytest.raises(Stopped) as stopped:
        listen(listener, work)
    assert reached == [signal.SIGTERM]
    assert stopped.value.number == signal.SIGTERM


def test_a_second_signal_does_not_disturb_the_end() -> None:
    ended = []

    def work() -> None:
        try:
            wait_for(signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            ended.append(True)

    with pytest.raises(Stopped):
        listen(Signals(), work)
    assert ended == [True]


HELD = """
import os, signal, time
from rbft.runtime.fault_tolerance import signals

def sent_to_a_worker(number):
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        os.write(tell, b"1")
        time.sleep(2)
        os._exit(7)
    os.read(ready, 1)  # a signal amid the fork would be lost
    os.kill(child, number)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

with signals.listening():
    signals.hold()
    sent_to_a_worker(signal.SIGINT)
    sent_to_a_worker(signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    print(signals.received, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""


def test_ctrl_c_waits_once_and_a_second_one_ends_the_process() -> None:
    found = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, timeout=60)
    # A worker is not ended by what a terminal sends to all, but by the loader that ends it.
    assert found.stdout.split() == ["7", str(-signal.SIGTERM), str(int(signal.SIGINT))]
    assert found.stderr == "\nThe step is finished and saved; Ctrl-C again ends at once.\n"
    assert found.returncode == 128 + signal.SIGINT


def test_ctrl_c_by_its_name() -> None:
    assert str(Stopped(signal.SIGINT)).startswith("stopped by Ctrl-C; saved: ")


def test_listening_again_forgets_the_signal_of_before() -> None:
    listener = Signals()
    with pytest.raises(Stopped):
        listen(listener, lambda: wait_for(signal.SIGTERM))
    listen(listener, listener.release)
    assert listener.received is None


def test_a_thread_listens_to_nothing() -> None:
    listener, ended = Signals(), []

    def work() -> None:
        with listener.listening():
            ended.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == [signal.getsignal(signal.SIGTERM)]


def test_lightning_handles_no_signals(tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    take_signals(trainer)
    before = signal.getsignal(signal.SIGTERM)
    trainer._signal_connector.register_signal_handlers()
    assert signal.getsignal(signal.SIGTERM) is before
    assert not trainer.received_sigterm


def test_a_process_ends_with_the_one_that_started_it() -> None:
    child = (
        "import os, time; from rbft.runtime.parent import die_with_parent; "
        "os.environ['LOCAL_RANK'] = '1'; die_with_parent(0.05); print(os.getpid(), flush=True); "
        "time.sleep(60)"
    )
    parent = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], "
        "stdout=subprocess.PIPE, text=True); print(child.stdout.readline(), flush=True)"
    )
    found = subprocess.run(
        [sys.executable, "-c", parent, child], capture_output=True, text=True, timeout=60
    )
    stat = Path(f"/proc/{int(found.stdout)}/stat")
    for _ in range(100):
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("the child lives on")


# Errors


def save_nowhere(what: str, target: Path) -> None:
    """Writes 400 kB where a file may have 1 kB."""
    tensors = {"a": torch.zeros(100_000)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with writing(target):
            if what == "torch":
                with target.open("wb") as stream:
                    torch.save(tensors, stream)
            else:
                save_file(tensors, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("what", ["torch", "safetensors"])
def test_a_full_disk(tmp_path: Path, what: str) -> None:
    target = tmp_path / "weights"
    wanted = (
        rf"{re.escape(str(target))} cannot be written: .*File too large.*\. \d+\.\d GB are "
        r"free there\. Make room; what was saved before is untouched and the same command goes on"
    )
    with pytest.raises(ValueError, match=wanted):
        save_nowhere(what, target)


def test_a_full_disk_while_a_small_file_is_written() -> None:
    text = format_fatal_error(OSError(errno.ENOSPC, "No space left on device", "logs/test.json"))
    assert text is not None
    assert text.startswith("error: logs/test.json cannot be written: No space left on device. ")
    assert format_fatal_error(PermissionError(errno.EACCES, "Permission denied")) is None


def test_a_place_that_cannot_be_written_is_named() -> None:
    text = format_fatal_error(PermissionError(errno.EACCES, "Permission denied", "logs"))
    assert text == (
        "error: logs cannot be read or written: Permission denied. Correct that, or name another "
        "place: trainer.default_root_dir for runs, --output for what a command writes, $RBFT_CACHE "
        "for what is cached."
    )


def test_what_lightning_refuses_is_said_in_a_line() -> None:
    text = format_fatal_error(MisconfigurationException("No supported gpu backend found!"))
    assert text == (
        "error: Lightning refuses the settings of the Trainer: No supported gpu backend found!"
    )


def test_a_traceback_ends_with_where_to_go_with_it() -> None:
    error = RuntimeError("broken")
    note_report(error, "a.yaml")
    note_report(error, "b.yaml")
    assert error.__notes__ == [
        "This looks like a fault of rbft, not of yours: report it with this traceback and a.yaml."
    ]
    explained = OSError(errno.ENOSPC, "No space left on device", "logs")
    note_report(explained, "a.yaml")
    assert not hasattr(explained, "__notes__")


def test_other_errors_keep_their_traceback() -> None:
    assert format_fatal_error(RuntimeError("broken")) is None
    with pytest.raises(ValueError, match="three") as found:
        int("three")
    assert format_fatal_error(found.value) is None


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_out_of_memory(error: Exception) -> None:
    wanted = (
        r"Out of memory \((CUDA out of memory\.|no more to be had)\)\. At hand: a, b \(77 tokens\)"
        r"\. What helps, in this order: data\.batch_size and data\.eval_batch_size 1, model\."
    )
    with pytest.raises(ValueError, match=wanted), explain_errors(lambda: "a, b (77 tokens)"):
        raise error


class Items(Dataset[int]):
    """Clips that end the worker which reads them."""

    def __init__(self, end: str) -> None:
        self.end = end

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        if self.end == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.end == "own":
            # What rbft raises in a worker.
            from rbft.data.splits import check_classes

            check_classes(clips(2)[:1], ["normal", "abnormal"], "Yard")
        return int("three")


def read(end: str) -> None:
    with explain_errors(lambda: "none"):
        list(DataLoader(Items(end), num_workers=1))


def test_a_worker_that_is_killed() -> None:
    wanted = (
        r"A process that decodes clips was killed, by the system for want of memory or by someone "
        r"\(DataLoader worker \(pid\(s\) \d+\) exited unexpectedly\)\. If memory is short, lower "
        r"data\.num_workers\."
    )
    with pytest.raises(ValueError, match=wanted):
        read("killed")


def test_what_rbft_raises_in_a_worker_reads_as_it_does_elsewhere() -> None:
    with pytest.raises(ValueError, match=r"^Yard: class 'abnormal' has no training clip") as found:
        read("own")
    text = format_fatal_error(found.value)
    assert text is not None
    assert "\n" not in text


def test_what_others_raise_in_a_worker_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="Caught ValueError in DataLoader worker") as found:
        read("other")
    assert format_fatal_error(found.value) is None
