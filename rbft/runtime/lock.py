"""One process at a time owns a run folder, an output file or a rationale file."""

import json
import logging
import os
import shlex
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4
from weakref import WeakSet

from lightning.fabric.utilities.rank_zero import _get_rank

from rbft.runtime.console import print_rank_zero
from rbft.runtime.files import remove_leftovers, temporary_path

try:
    import fcntl
except ImportError:  # Windows: the note in the lock file alone
    fcntl = None

EVERY = 5.0  # seconds between two signs of life
TRIES = 100  # to make the lock file in a folder that is there
MISSED = 3  # signs of life after which an owner on another machine counts as gone
SHOWN = 300  # characters of the owner's command
# A program that the owner starts must not inherit the open file, and with it the system's lock.
CLOSE = getattr(os, "O_CLOEXEC", 0)
OPEN, CREATE = os.O_RDWR | CLOSE, os.O_CREAT | os.O_EXCL

log = logging.getLogger(__name__)


class Lock:
    """Owns a path until the `with` block or the process ends, however the process ends.

    The lock is the operating system's (`flock`) on a hidden file beside the path, so it is free as
    soon as its process is gone, killed or not. Where that lock does not reach other machines of a
    shared disk, or does not exist, a note in the file tells who owns it, and the owner touches the
    file every few seconds. Who gets the system's lock but finds a note from another machine waits
    for such a sign of life, and takes over if none comes.

    The new owner removes what killed processes have left, see
    `rbft.runtime.files.remove_leftovers`. Of the processes of one run only the first takes the
    lock.

    Args:
        path: A file or folder that one process at a time may write; it need not exist.
        what: How messages call it: "Run folder", "--output".
        every: Seconds between two signs of life.

    Raises:
        ValueError: On entering, if another process owns the path.
    """

    def __init__(self, path: Path, what: str, every: float = EVERY) -> None:
        self.path, self.what, self.every = path, what, every
        real = path.resolve()  # two names of one folder are one folder
        self.file = real.with_name(f".{real.name}.lock")
        self._made: list[Path] = []
        self._handle: int | None = None
        self._refused = 0
        self._ended = threading.Event()
        self._living: threading.Thread | None = None
        self._note: dict[str, Any] = {}

    def __enter__(self) -> "Lock":
        if _get_rank():
            return self
        self._note = {
            "host": socket.gethostname(),
            "machine": machine(),
            "pid": os.getpid(),
            "command": shlex.join(sys.argv)[:SHOWN],
            "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
            "every": self.every,
            "token": uuid4().hex,
        }
        self._made = [place for place in self.file.parents if not place.exists()]
        _held.add(self)
        try:
            while not self._acquire():  # its owner has ended and removed it meanwhile
                self._close()
        except BaseException:
            self._close()
            self._tidy()
            raise
        self._ended.clear()
        self._living = threading.Thread(target=self._live, daemon=True, name="lock")
        self._living.start()
        try:
            remove_leftovers(self.file)
            remove_leftovers(self.path)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle is None:  # not the first process, or a fork of the owner
            return
        self._ended.set()
        assert self._living is not None
        self._living.join()  # it uses the open file
        ours = self._still_ours()
        if ours and fcntl is not None:  # before another process can own what is removed
            self.file.unlink(missing_ok=True)
        self._close()
        if ours and fcntl is None:  # Windows removes no file that is open
            self.file.unlink(missing_ok=True)
        self._tidy()

    def _acquire(self) -> bool:
        """Tries once.

        Returns:
            Whether it succeeded; False if the file was removed meanwhile.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            if self._create():
                return True
            self._handle = os.open(self.file, OPEN)
        except FileNotFoundError:
            return False
        except PermissionError:  # another user's
            raise ValueError(self._refusal(self._read())) from None
        locked = self._flock()
        if not self._same_file():
            return False
        found, mine = self._read(), self._note
        if locked and (found["host"], found["machine"]) == (mine["host"], mine["machine"]):
            # The system has freed the lock of a process on this machine: it has ended.
            self._write()
            return True
        self._wait_for_a_sign(found)
        if not self._same_file():
            return False
        self._write()
        # Two machines may have come to the same conclusion: the one that wrote last is the owner.
        time.sleep(found["every"])
        now = self._read()
        if now["token"] != mine["token"]:
            raise ValueError(self._refusal(now))
        return True

    def _create(self) -> bool:
        """Makes the lock file with note and lock, unless there is one."""
        # Complete under another name first, so that nobody finds the file without its note.
        part = temporary_path(self.file)
        try:
            self._handle = os.open(part, OPEN | CREATE, 0o666)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not self.file.parent.is_dir():
                raise  # whoever made the folder has removed it
            self._refused += 1
            if isinstance(error, FileNotFoundError) and self._refused < TRIES:
                raise  # it may have been made again meanwhile
            raise ValueError(
                f"{self.what} {self.path} cannot be written: {error.strerror}. Name a place that "
                "can be."
            ) from error
        try:
            self._flock()
            self._write()
            try:
                os.link(part, self.file)
            except FileExistsError:
                self._close()
                return False
            except FileNotFoundError:  # the new owner took it for a leftover
                raise
            except OSError:  # a file system without links
                self._close()
                try:
                    self._handle = os.open(self.file, OPEN | CREATE, 0o666)
                except FileExistsError:
                    return False
                self._flock()
                self._write()
            return True
        finally:
            part.unlink(missing_ok=True)

    def _wait_for_a_sign(self, found: dict[str, Any]) -> None:
        """Watches the file for some intervals of its owner.

        Raises:
            ValueError: If the owner lives.
        """
        print_rank_zero(
            f"{self.what} {self.path} was in use by {_owner(found)}. Waiting "
            f"{MISSED * found['every']:g} s to see whether that process still runs."
        )
        before = self._sign()
        for _ in range(MISSED):
            time.sleep(found["every"])
            if self._sign() not in (before, None):
                raise ValueError(self._refusal(self._read()))
        print_rank_zero(f"It does not; {self.path} is taken over.")

    def _sign(self) -> int | None:
        # Over a network only opening a file asks the server for its time of change anew.
        try:
            handle = os.open(self.file, os.O_RDONLY | CLOSE)
        except FileNotFoundError:
            return None
        try:
            return os.fstat(handle).st_mtime_ns
        finally:
            os.close(handle)

    def _live(self) -> None:
        """Touches the file until the lock is released; the owner's daemon thread."""
        while not self._ended.wait(self.every):
            found = self._read()
            if found["token"] not in (self._note["token"], None):
                log.warning(
                    "%s %s was taken over by %s while this process stood still. End one of the "
                    "two.",
                    self.what,
                    self.path,
                    _owner(found),
                )
                return
            with suppress(OSError):
                assert self._handle is not None
                os.utime(self._handle)

    def _read(self) -> dict[str, Any]:
        """The note in the file; what it does not tell is filled in."""
        unknown = dict.fromkeys(("host", "machine", "pid", "command", "since", "token"))
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            return {**unknown, "every": self.every, **found}
        except (
            OSError,
            ValueError,
            TypeError,
        ):
            # A process has just begun, or was killed when it had.
            return {**unknown, "every": self.every}

    def _write(self) -> None:
        assert self._handle is not None
        text = json.dumps(self._note, indent=2) + "\n"
        os.lseek(self._handle, 0, os.SEEK_SET)
        os.truncate(self._handle, 0)
        os.write(self._handle, text.encode())
        os.fsync(self._handle)

    def _same_file(self) -> bool:
        """Whether the file that is open still stands under its name."""
        assert self._handle is not None
        try:
            return os.path.samestat(os.fstat(self._handle), self.file.stat())
        except FileNotFoundError:
            return False

    def _still_ours(self) -> bool:
        return self._same_file() and self._read()["token"] == self._note["token"]

    def _flock(self) -> bool:
        """Takes the system's lock.

        Returns:
            Whether there is such a lock; some file systems have none.

        Raises:
            ValueError: If another process has it.
        """
        assert self._handle is not None
        if fcntl is None:
            return False
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(self._refusal(self._read())) from None
        except OSError:  # ENOLCK, ENOTSUP, ENOSYS or EINVAL, by file system
            return False
        return True

    def _close(self) -> None:
        """Closes the file, which frees the system's lock."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def _tidy(self) -> None:
        """Where nothing has been written, no folder stays behind."""
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()

    def _refusal(self, found: dict[str, Any]) -> str:
        return (
            f"{self.what} {self.path} is in use by {_owner(found)}. Wait until it has ended, or "
            f"end it; if you are sure that it is gone, remove {self.file}."
        )


def machine() -> str:
    """What tells this machine, since it was started, from others of the same name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _owner(found: dict[str, Any]) -> str:
    if found["pid"] is None:
        return "another process, which has just begun"
    return f"process {found['pid']} on {found['host']} since {found['since']} ({found['command']})"


# A forked process, such as one that decodes clips, shares the owner's open file, and with it the
# system's lock, which would outlive an owner that is killed.
_held: WeakSet[Lock] = WeakSet()


def _close_in_fork() -> None:
    for lock in list(_held):
        lock._close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_fork)
