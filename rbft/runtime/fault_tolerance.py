"""What ends a run before its time: signals, and errors that are nobody's mistake in the code."""

import errno
import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch import Trainer
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from rbft.runtime.console import REPORT
from rbft.runtime.files import os_error_text

# SLURM sends the first before it takes a job off a node, and by --signal=SIGUSR1@90 the second
# before the time is up; the third is Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
PACKAGE = Path(__file__).parents[1]
AGAIN = "The same command goes on from there."
PATIENCE = 60.0  # seconds


class Stopped(BaseException):
    """A signal has asked the run to end. No error: what handles errors lets it pass.

    Args:
        number: The signal.
        saved: The checkpoint that was written because of it.
    """

    def __init__(self, number: int, saved: Path | None = None) -> None:
        super().__init__(number, saved)
        self.number, self.saved = number, saved

    @property
    def status(self) -> int:
        """Exit status, by the shell's convention."""
        return 128 + self.number

    def __str__(self) -> str:
        interrupted = self.number == signal.SIGINT
        name = "Ctrl-C" if interrupted else signal.Signals(self.number).name
        where = "everything that is finished is on disk" if self.saved is None else self.saved
        return f"stopped by {name}; saved: {where}. {AGAIN}"


class Signals:
    """Notes a signal, and ends the run at once unless it is held until something is saved."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.held = False
        self.process = os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Takes a signal; a second one changes nothing, but a second Ctrl-C ends the process."""
        if os.getpid() != self.process:
            _end_of_worker(number)
        elif self.received is None:
            self.received = number
            if not self.held:
                raise Stopped(number)
            if number == signal.SIGINT and not int(os.environ.get("LOCAL_RANK", 0)):
                # The handler may have come amid a write to the buffered stream.
                os.write(2, b"\nThe step is finished and saved; Ctrl-C again ends at once.\n")
        elif number == self.received == signal.SIGINT:
            os._exit(128 + number)  # files are written whole or not at all

    def hold(self) -> None:
        """From here on, a signal waits."""
        self.held = True

    def release(self) -> None:
        """From here on, a signal ends the run; one that waits does so now."""
        self.held = False
        if self.received is not None:
            raise Stopped(self.received)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes SIGTERM, SIGUSR1 and SIGINT from whoever had them."""
        self.received, self.held, self.process = None, False, os.getpid()
        if threading.current_thread() is not threading.main_thread():
            yield  # Python lets only the main thread take signals
            return
        before = {number: signal.signal(number, self) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _end_of_worker(number: int) -> None:
    """What a signal does in a process that was forked, such as one that decodes clips."""
    if number != signal.SIGINT:  # which a terminal sends to all; workers end when the run does
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


signals = Signals()


def take_signals(trainer: Trainer) -> None:
    """Takes the handling of signals from a Trainer.

    Lightning saves wherever in a step the signal comes, or broadcasts from within the handler,
    where other processes are at another collective; and it asks all processes before every
    micro-batch, waiting for the device. rbft asks once per optimiser step
    and waits for no answer, see `rbft.training.step_monitor`.
    """
    parts: Sequence[tuple[object, str]] = (
        (trainer._signal_connector, "register_signal_handlers"),
        (trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor"),
    )
    for owner, name in parts:
        assert hasattr(owner, name)
        setattr(owner, name, _nothing)


def _nothing() -> None:
    pass


def leave_process_group() -> None:
    """Ends the processes' group when all have come to the end."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def exit_process(status: int) -> None:
    """Ends the process early, if it is one of several; otherwise does nothing.

    Without the interpreter's own end, in which the threads of collectives whose other side is gone
    abort or wait.
    """
    started_by_lightning = "LOCAL_RANK" in os.environ and not (
        "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ
    )
    if started_by_lightning and _get_rank():
        # Lightning kills the first process when it sees another end first; its status and
        # message are the ones that count. This one ends with it.
        time.sleep(PATIENCE)
    if not torch.distributed.is_initialized():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def format_fatal_error(error: BaseException) -> str | None:
    """What to tell the user of what ended the run; None if it takes a traceback to understand."""
    if isinstance(error, Stopped):
        return str(error)
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        path = Path(str(error.filename or "."))
        return f"error: {path} cannot be written: {error.strerror}. {_room(path)}"
    if isinstance(error, OSError) and (text := os_error_text(error)) is not None:
        return f"error: {text}"
    if isinstance(error, MisconfigurationException):
        return f"error: Lightning refuses the settings of the Trainer: {error}"
    if not isinstance(error, ValueError):
        return None
    *_, last = traceback.extract_tb(error.__traceback__)
    # Our own messages say all there is to say; a library's needs its traceback.
    return f"error: {error}" if Path(last.filename).is_relative_to(PACKAGE) else None


def note_report(error: BaseException, beside: str) -> None:
    """Has a traceback end with where to go with it; once, and only where there will be one.

    Args:
        error: What ended the run.
        beside: What belongs to a report beside the traceback.
    """
    noted = any(one.startswith(REPORT) for one in getattr(error, "__notes__", ()))
    if not noted and format_fatal_error(error) is None:
        error.add_note(f"{REPORT} {beside}.")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says what is wrong when something large cannot be written.

    Args:
        path: The file or folder.

    Raises:
        ValueError: Instead of what the libraries raise.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise ValueError(f"{path} cannot be written: {reason}. {_room(path)}") from error


def _reason(error: BaseException) -> str | None:
    """The system's words, where it is what has refused to write."""
    if isinstance(error, CheckpointException):
        return next(filter(None, (_reason(cause) for cause, _ in error.failures.values())), None)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, SafetensorError):
        return str(error)
    return None if error.__context__ is None else _reason(error.__context__)


def _room(path: Path) -> str:
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    return (
        f"{free:.1f} GB are free there. Make room; what was saved before is untouched and the "
        "same command goes on from there."
    )


@contextmanager
def explain_errors(clips: Callable[[], str]) -> Iterator[None]:
    """Says in the user's words what ends a step that is no mistake in the code.

    Args:
        clips: Names the clips of the batch at hand, and their tokens.

    Raises:
        ValueError: For memory that does not suffice and workers that are killed, and for what
            rbft raises in a worker.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ValueError(
            f"Out of memory ({next(iter(str(error).splitlines()), 'no more to be had')}). At hand: "
            f"{clips()}. What helps, in this order: data.batch_size and data.eval_batch_size 1, "
            "model.gradient_checkpointing true, fewer frames or pixels (data.max_frames, "
            "data.max_pixels), trainer.strategy fsdp2 on several GPUs, an overlay of "
            "experiments/hardware. Started again, the run goes on from its last checkpoint."
        ) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or "exited unexpectedly" not in str(error):
            raise
        raise ValueError(
            "A process that decodes clips was killed, by the system for want of memory or by "
            f"someone ({str(error).splitlines()[0]}). If memory is short, lower data.num_workers. "
            "Started again, the run goes on from its last checkpoint."
        ) from error
    except ValueError as error:
        # torch puts the worker's traceback, as text, into a new error.
        found = re.fullmatch(
            r'Caught ValueError in DataLoader worker.*File "([^"]+)", line [^\n]*\n'
            r"(?:[ \t][^\n]*\n)*ValueError: (.*)",
            str(error),
            re.DOTALL,
        )
        if found is None or not Path(found[1]).is_relative_to(PACKAGE):
            raise
        raise ValueError(found[2].strip()) from error
