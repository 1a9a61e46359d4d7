import json
import multiprocessing
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from rbft.runtime.files import temporary_path
from rbft.runtime.lock import Lock, machine

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["rbft.runtime.lock"])
HOURS = 10_000.0
LIMIT = 60  # seconds until a test that hangs fails


def own(path: Path, pipe: Connection, every: float = HOURS) -> None:
    """Holds the lock until told to let go."""
    with Lock(path, "Run folder", every):
        pipe.send(os.getpid())
        pipe.recv()


def own_with_fork(path: Path, pipe: Connection) -> None:
    """Holds the lock, with a forked child as a DataLoader has."""
    with Lock(path, "Run folder", HOURS):
        child = os.fork()
        if not child:
            pipe.recv()
            os._exit(0)
        pipe.send(child)
        signal.pause()


def own_with_program(path: Path, pipe: Connection) -> None:
    """Holds the lock, with another program started, as Lightning starts the other processes."""
    with Lock(path, "Run folder", HOURS):
        program = subprocess.Popen(["sleep", "600"], close_fds=False)
        pipe.send(program.pid)
        signal.pause()


def contend(path: Path, notes: Path, count: int) -> None:
    """Owns the path `count` times, and notes when it begins and when it ends."""
    done = 0
    while done < count:
        try:
            with Lock(path, "Run folder", HOURS):
                for word in ("in", "out"):
                    with notes.open("a") as stream:
                        stream.write(f"{os.getpid()} {word}\n")
                done += 1
        except ValueError:
            time.sleep(0.001)


@contextmanager
def process(function: Callable[..., None], path: Path) -> Iterator[tuple[Any, Connection, int]]:
    """A process that has the lock, the pipe to it, and the number that it has sent."""
    ours, theirs = PROCESSES.Pipe()
    started = PROCESSES.Process(target=function, args=(path, theirs))
    started.start()
    try:
        assert ours.poll(LIMIT), "it does not get the lock"
        yield started, ours, ours.recv()
    finally:
        started.kill()
        started.join()


def kill(started: Any) -> None:
    os.kill(started.pid, signal.SIGKILL)
    started.join(LIMIT)
    assert started.exitcode == -signal.SIGKILL


def never(_: float) -> None:
    raise AssertionError("it waits")


def sleeps(monkeypatch, action: Callable[[int], None] = lambda number: None) -> list[float]:
    """Replaces the waiting by an action; returns what was waited for."""
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        action(len(waited))

    monkeypatch.setattr("rbft.runtime.lock.time.sleep", sleep)
    return waited


def foreign(lock: Lock, **facts: Any) -> dict[str, Any]:
    """Puts a note of another machine there, which has no system's lock here."""
    note = {"host": "knoten7", "machine": "b", "pid": 4711, "command": "python -m rbft fit"}
    note |= {"since": "2026-01-02 03:04:05+00:00", "every": 3.0, "token": "t", **facts}
    lock.file.parent.mkdir(parents=True, exist_ok=True)
    lock.file.write_text(json.dumps(note), encoding="utf-8")
    return note


def note(lock: Lock) -> dict[str, Any]:
    return json.loads(lock.file.read_text(encoding="utf-8"))


def refused(lock: Lock) -> str:
    with pytest.raises(ValueError, match="is in use by") as error, lock:
        pass
    return str(error.value)


def test_one_process_at_a_time(tmp_path):
    run = tmp_path / "logs/run"
    lock = Lock(run, "Run folder")
    with process(own, run) as (started, pipe, pid):
        found = note(lock)
        assert found["pid"] == pid
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d", found["since"])
        text = refused(lock)
        assert text == (
            f"Run folder {run} is in use by process {pid} on {os.uname().nodename} since "
            f"{found['since']} ({found['command']}). Wait until it has ended, or end it; if you "
            f"are sure that it is gone, remove {tmp_path}/logs/.run.lock."
        )
        assert refused(Lock(run, "Run folder", HOURS)) == text, "a refusal frees the lock"
        with Lock(run.with_name("run2"), "Run folder"):
            pass
        pipe.send("enough")
        started.join(LIMIT)
    with lock:
        assert note(lock)["pid"] == os.getpid()
        assert f"in use by process {os.getpid()} on" in refused(Lock(run, "Run folder"))
    assert not lock.file.exists()


def test_a_killed_owner_is_gone_at_once(tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr("rbft.runtime.lock.time.sleep", never)
    with process(own, run) as (started, _, _):
        kill(started)
        with Lock(run, "Run folder") as lock:
            assert note(lock)["pid"] == os.getpid()


@pytest.mark.parametrize("function", [own_with_fork, own_with_program])
def test_children_do_not_keep_the_lock_of_a_killed_owner(tmp_path, monkeypatch, function):
    run = tmp_path / "run"
    monkeypatch.setattr("rbft.runtime.lock.time.sleep", never)
    with process(function, run) as (started, _, child):
        try:
            kill(started)
            os.kill(child, 0)  # it lives
            with Lock(run, "Run folder"):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_forked_child_does_not_let_go_of_it(tmp_path):
    run = tmp_path / "run"
    lock = Lock(run, "Run folder")
    with lock:
        child = os.fork()
        if not child:
            lock.__exit__(None, None, None)
            os._exit(0)
        os.waitpid(child, 0)
        assert note(lock)["pid"] == os.getpid()
        with pytest.raises(ValueError, match="is in use"), Lock(run, "Run folder"):
            pass


def test_many_at_once(tmp_path):
    """Also where the file is removed between one process's opening and locking it."""
    notes = tmp_path / "notes"
    arguments = (tmp_path / "run", notes, 20)
    started = [PROCESSES.Process(target=contend, args=arguments) for _ in range(4)]
    for one in started:
        one.start()
    for one in started:
        one.join(LIMIT)
        assert one.exitcode == 0
    lines = notes.read_text().splitlines()
    assert len(lines) == 4 * 20 * 2
    for first, second in zip(lines[::2], lines[1::2], strict=True):
        assert first.endswith(" in")
        assert second == first.replace(" in", " out")


def test_a_lock_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyError), Lock(tmp_path / "a/b/run", "Run folder"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with Lock(tmp_path / "a/run", "Run folder") as lock:
        lock.path.mkdir()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["run"]


def test_two_names_of_one_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with Lock(tmp_path / "run", "Run folder"):
        assert refused(Lock(tmp_path / "link", "Run folder")).startswith(
            f"Run folder {tmp_path}/link is in use by process {os.getpid()} on "
        )


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "RANK", "SLURM_PROCID"])
def test_only_the_first_process_of_a_run_takes_it(tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "0")
    with Lock(tmp_path / "run", "Run folder"):
        monkeypatch.setenv(variable, "1")
        with Lock(tmp_path / "run", "Run folder"):
            pass
        assert (tmp_path / ".run.lock").exists()
    assert not (tmp_path / ".run.lock").exists()


def test_the_new_owner_removes_leftovers(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for target in (run, run / "label.json", tmp_path / ".run.lock"):
        temporary_path(target).touch()
    other = temporary_path(tmp_path / "run2")
    other.touch()
    with Lock(run, "Run folder"):
        assert not list(run.iterdir())
        assert set(tmp_path.iterdir()) == {run, other, tmp_path / ".run.lock"}


def test_an_owner_on_another_machine_that_lives(tmp_path, monkeypatch, capsys):
    """The system's lock does not reach it, but its signs of life come."""
    lock = Lock(tmp_path / "run", "Run folder")
    foreign(lock)
    before = lock.file.read_text()
    waited = sleeps(monkeypatch, lambda number: os.utime(lock.file) if number == 3 else None)
    os.utime(lock.file, (1, 1))
    assert refused(lock) == (
        f"Run folder {tmp_path}/run is in use by process 4711 on knoten7 since 2026-01-02 "
        "03:04:05+00:00 (python -m rbft fit). Wait until it has ended, or end it; if you are sure "
        f"that it is gone, remove {tmp_path}/.run.lock."
    )
    assert waited == [3.0, 3.0, 3.0]
    assert lock.file.read_text() == before
    assert capsys.readouterr().out == (
        f"Run folder {tmp_path}/run was in use by process 4711 on knoten7 since 2026-01-02 "
        "03:04:05+00:00 (python -m rbft fit). Waiting 9 s to see whether that process still runs.\n"
    )


def test_an_owner_on_another_machine_that_is_gone(tmp_path, monkeypatch, capsys):
    lock = Lock(tmp_path / "run", "Run folder", HOURS)
    foreign(lock)
    waited = sleeps(monkeypatch)
    with lock:
        assert waited == [3.0] * 4  # the last one in case a third machine takes over as well
        assert note(lock)["pid"] == os.getpid()
    assert not lock.file.exists()
    out = capsys.readouterr().out
    assert out.endswith(f"\nIt does not; {tmp_path}/run is taken over.\n")


@pytest.mark.parametrize("fact", ["host", "machine"])
def test_a_machine_is_known_by_name_and_start(tmp_path, monkeypatch, fact):
    """Containers can share a machine, machines a name."""
    lock = Lock(tmp_path / "run", "Run folder", HOURS)
    ours = {"host": os.uname().nodename, "machine": machine()}
    assert re.fullmatch(r"[0-9a-f-]{36}", machine())
    foreign(lock, **ours)
    waited = sleeps(monkeypatch)
    with lock:
        assert waited == []
    foreign(lock, **{**ours, fact: "other"})
    with lock:
        assert waited


def test_two_machines_take_over_at_once(tmp_path, monkeypatch):
    lock = Lock(tmp_path / "run", "Run folder")
    foreign(lock)

    def act(number: int) -> None:
        if number == 4:
            foreign(lock, token="u", pid=12)

    sleeps(monkeypatch, act)
    assert "is in use by process 12 on knoten7 since" in refused(lock)
    assert note(lock)["token"] == "u"


def test_an_owner_that_ends_while_it_is_watched(tmp_path, monkeypatch):
    lock = Lock(tmp_path / "run", "Run folder", HOURS)
    foreign(lock)
    waited = sleeps(monkeypatch, lambda number: lock.file.unlink() if number == 2 else None)
    with lock:
        assert note(lock)["pid"] == os.getpid()
    assert waited == [3.0] * 3


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_a_note_that_was_cut_off(tmp_path, monkeypatch, text):
    lock = Lock(tmp_path / "run", "Run folder", 2.0)
    lock.file.write_text(text)
    waited = sleeps(monkeypatch, lambda number: os.utime(lock.file))
    os.utime(lock.file, (1, 1))
    assert refused(lock).startswith(
        f"Run folder {tmp_path}/run is in use by another process, which has just begun. Wait until"
    )
    assert waited == [2.0]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it never comes"
        time.sleep(0.001)


def test_the_owner_gives_signs_of_life(tmp_path):
    with Lock(tmp_path / "run", "Run folder", 0.001) as lock:
        for _ in range(3):
            os.utime(lock.file, (1, 1))
            until(lambda: lock.file.stat().st_mtime != 1)
    thread = lock._living
    assert thread is not None
    assert not thread.is_alive()


def test_an_owner_that_stood_still_says_so(tmp_path, caplog):
    with Lock(tmp_path / "run", "Run folder", 0.001) as lock:
        part = lock.file.with_name("other")
        part.write_text(json.dumps(foreign(Lock(tmp_path / "x", "x"), token="u")))
        part.replace(lock.file)
        until(lambda: bool(caplog.messages))
    assert caplog.messages == [
        f"Run folder {tmp_path}/run was taken over by process 4711 on knoten7 since 2026-01-02 "
        "03:04:05+00:00 (python -m rbft fit) while this process stood still. End one of the two."
    ]
    assert note(lock)["token"] == "u", "the other's lock is removed"


def no_flock(*_: object) -> None:
    raise OSError(38, "Function not implemented")


@pytest.mark.parametrize("how", ["no fcntl", "no flock", "no links either"])
def test_without_the_systems_lock(tmp_path, monkeypatch, how):
    """Windows, and some file systems: the note and the signs of life alone."""
    if how == "no fcntl":
        monkeypatch.setattr("rbft.runtime.lock.fcntl", None)
    else:
        monkeypatch.setattr("rbft.runtime.lock.fcntl.flock", no_flock)
    if how == "no links either":
        monkeypatch.setattr("os.link", no_flock)
    run = tmp_path / "run"
    with Lock(run, "Run folder", HOURS) as first:
        os.utime(first.file, (1, 1))
        waited = sleeps(monkeypatch, lambda number: os.utime(first.file))
        assert f"is in use by process {os.getpid()} on" in refused(Lock(run, "Run folder"))
        assert waited == [HOURS]
        # As if it were gone.
        monkeypatch.setattr("rbft.runtime.lock.time.sleep", waited.append)
        with Lock(run, "Run folder") as second:
            assert note(second)["token"] == second._note["token"]
        assert len(waited) == 5
        assert not first.file.exists()
    assert not second.file.exists()


def test_the_file_is_never_seen_without_its_note(tmp_path, monkeypatch):
    seen = []
    real = os.link

    def link(source: Path, target: Path) -> None:
        seen.append(json.loads(Path(source).read_text())["pid"])
        real(source, target)

    monkeypatch.setattr("os.link", link)
    with Lock(tmp_path / "run", "Run folder") as lock:
        assert note(lock)["pid"] == os.getpid()
    assert seen == [os.getpid()]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_another_user(tmp_path, monkeypatch):
    """Whose file cannot be opened for writing."""
    lock = Lock(tmp_path / "run", "--output")
    foreign(lock)
    real = os.open

    def closed(path: Any, flags: int, *mode: int) -> int:
        if path == lock.file and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *mode)

    monkeypatch.setattr("rbft.runtime.lock.os.open", closed)
    assert refused(lock).startswith(f"--output {tmp_path}/run is in use by process 4711 on knoten7")


def test_an_interrupted_wait_frees_the_lock(tmp_path, monkeypatch):
    lock = Lock(tmp_path / "run", "Run folder", HOURS)
    foreign(lock)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        sleeps(patched, interrupt)
        with pytest.raises(KeyboardInterrupt), lock:
            pass
    with suppress(FileNotFoundError):
        lock.file.unlink()
    with lock:
        pass


def test_a_place_where_no_file_can_be_made_is_refused() -> None:
    """Not waited for: the kernel says of /proc that a file there does not exist."""
    with pytest.raises(ValueError, match=r"^--output /proc/a cannot be written: No such file or "):
        Lock(Path("/proc/a"), "--output").__enter__()
