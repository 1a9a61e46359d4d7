import contextlib
import errno
import json
import multiprocessing
import os
import signal
import stat
import sys
from pathlib import Path

import pytest

from rbft.runtime.files import (
    TEMPORARY,
    atomically,
    remove_leftovers,
    replace_folder,
    temporary_path,
    write_json,
    write_text,
)

# No thread runs in the server that children are forked from.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["rbft.runtime.files"])
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}
WRITING = os.O_WRONLY | os.O_RDWR
GONE = 2**22 - 1  # more than any process has


def content(folder: Path) -> dict[str, str]:
    """Text of every file by path, hidden ones included."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_text(encoding="utf-8") for file in files}


def folder_of(path: Path, text: str) -> Path:
    """A folder whose files all hold the text."""
    (path / "more").mkdir(parents=True)
    for name in ("model", "rbft.json", "more/card"):
        (path / name).write_text(text, encoding="utf-8")
    return path


def whole(text: str) -> dict[str, str]:
    return dict.fromkeys(("model", "more/card", "rbft.json"), text)


def left_by_kill(target: Path, kind: str = "part") -> Path:
    """The name that a process of this machine which is gone would have taken."""
    part = temporary_path(target, kind)  # type: ignore[arg-type]
    return part.with_name(part.name.replace(f"-{os.getpid()}-", f"-{GONE}-"))


def test_every_temporary_name_is_another(tmp_path, monkeypatch):
    """Two machines that share a disk can have processes of one number."""
    monkeypatch.setattr("os.getpid", lambda: 7)
    names = {temporary_path(tmp_path / "a").name for _ in range(100)}
    assert len(names) == 100
    monkeypatch.setattr("socket.gethostname", lambda: "knoten-1.example.org")
    (name,) = {temporary_path(tmp_path / "weights").name.rpartition("-")[0]}
    assert name == ".weights.part.knoten_1_exa-7"
    assert all(TEMPORARY.fullmatch(name) for name in names)
    assert temporary_path(tmp_path / "a").parent == tmp_path


def test_text_and_json(tmp_path):
    file = tmp_path / "a/b.json"
    write_json(file, {"word": "größer", "n": 1})
    assert json.loads(file.read_text(encoding="utf-8")) == {"word": "größer", "n": 1}
    assert "größer" in file.read_text(encoding="utf-8")
    write_text(file, "one\ntwo \udcff\n")
    assert file.read_bytes() == b"one\ntwo \\udcff\n"
    assert [path.name for path in file.parent.iterdir()] == ["b.json"]


class FaultError(Exception):
    pass


def fail(*_: object, **__: object) -> None:
    raise FaultError


POINTS = {"write": None, "flush": "os.fsync", "rename": "pathlib.Path.replace"}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("before", [False, True])
def test_a_text_file_is_whole_or_as_it_was(tmp_path, monkeypatch, point, before):
    file = tmp_path / "b.txt"
    if before:
        file.write_text("old", encoding="utf-8")

    def half(part: Path, data: bytes) -> None:
        with part.open("wb") as stream:
            stream.write(data[:2])
        raise FaultError

    with monkeypatch.context() as patched:
        patched.setattr(
            POINTS[point] or "pathlib.Path.write_bytes", fail if POINTS[point] else half
        )
        with pytest.raises(FaultError):
            write_text(file, "new")
    assert content(tmp_path) == ({"b.txt": "old"} if before else {})
    write_text(file, "new")
    assert content(tmp_path) == {"b.txt": "new"}


@pytest.mark.parametrize("point", range(9))
@pytest.mark.parametrize("before", [False, True])
def test_a_folder_is_whole_or_as_it_was(tmp_path, monkeypatch, point, before):
    """Each rename or flush fails in turn; after the last one, none is left to fail."""
    target = tmp_path / "weights"
    if before:
        folder_of(target, "old")
    calls = 0

    def counted(name, real):
        def call(*arguments):
            nonlocal calls
            calls += 1
            if calls == point:
                raise FaultError
            return real(*arguments)

        monkeypatch.setattr(name, call)

    counted("pathlib.Path.replace", Path.replace)
    counted("os.fsync", os.fsync)
    failed = False
    try:
        with atomically(target) as part:
            folder_of(part, "new")
            if point == 0:
                raise FaultError
    except FaultError:
        failed = True
    steps = 3 + (3 if before else 1)  # three files, and the folder's renames
    assert failed == (point <= steps + 1)
    old = {f"weights/{name}": text for name, text in whole("old").items()} if before else {}
    new = {f"weights/{name}": text for name, text in whole("new").items()}
    # The last flush is of the names: it fails where all is in place.
    if point > steps:
        remove_leftovers(target)
    assert content(tmp_path) == (old if point <= steps else new)


def test_a_folder_is_readable_for_all(tmp_path):
    made = folder_of(tmp_path / "made", "new")
    (made / "model").chmod(0o600)  # as safetensors writes
    replace_folder(made, tmp_path / "weights")
    assert (tmp_path / "weights/model").stat().st_mode & 0o777 == 0o644
    assert not made.exists()


def kill_at(number: int) -> None:
    """Kills this process before its `number`-th change on the disk."""
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        writes = event == "open" and (arguments[2] or 0) & WRITING
        if event in CHANGES or writes:
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def replace_and_be_killed(target: Path, number: int) -> None:
    kill_at(number)
    with atomically(target) as part:
        folder_of(part, "new")


def replace_text_and_be_killed(target: Path, number: int) -> None:
    kill_at(number)
    write_text(target, "new")


def status(function, *arguments: object) -> int | None:
    process = PROCESSES.Process(target=function, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


@pytest.mark.parametrize("before", [False, True])
def test_a_kill_never_leaves_neither_folder(tmp_path, before):
    outcomes, target = [], tmp_path
    for number in range(1, 100):
        target = tmp_path / str(number) / "weights"
        target.parent.mkdir()
        if before:
            folder_of(target, "old")
        ended = status(replace_and_be_killed, target, number)
        remove_leftovers(target)
        assert not [path for path in target.parent.iterdir() if path != target]
        found = content(target)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        outcomes.append(next((t for t in ("old", "new") if found == whole(t)), found))
        if before:
            assert outcomes[-1] in ("old", "new"), f"kill {number} leaves {found}"
        else:
            assert outcomes[-1] == {}, f"kill {number} leaves {found}"
    assert content(target) == whole("new")
    if before:
        assert outcomes == sorted(outcomes, reverse=True), "the old one comes back"
        assert set(outcomes) == {"old", "new"}
    assert len(outcomes) >= 5


def test_a_kill_leaves_text_whole(tmp_path):
    file, number = tmp_path / "a.txt", 0
    for number in range(1, 10):
        file.write_text("old", encoding="utf-8")
        ended = status(replace_text_and_be_killed, file, number)
        remove_leftovers(file)
        assert content(tmp_path) == {"a.txt": "old" if ended else "new"}
        if not ended:
            break
    assert number > 2


def test_leftovers_of_others_stay(tmp_path):
    run = tmp_path / "run"
    mine = [left_by_kill(run / "label/weights"), left_by_kill(run / "checkpoints/step=1.ckpt")]
    for part in mine:
        folder_of(part, "half")
    files = [left_by_kill(run / "settings.yaml"), left_by_kill(run)]
    others = [
        left_by_kill(tmp_path / "run2"),
        left_by_kill(tmp_path / "ru"),
        run / ".hidden.part",
        run / "label/notes.part.x-1-00000000",
        run / "checkpoints/step=1.ckpt",
    ]
    for file in [*files, *others]:
        file.touch()
    alive = temporary_path(run / "predictions.jsonl")
    parent = alive.with_name(alive.name.replace(f"-{os.getpid()}-", f"-{os.getppid()}-"))
    parent.touch()
    assert set(remove_leftovers(run)) == {
        run,
        run / "label/weights",
        run / "checkpoints/step=1.ckpt",
        run / "settings.yaml",
    }
    assert not any(path.exists() for path in [*mine, *files])
    assert all(path.exists() for path in others)
    assert parent.exists(), "the file of a process that runs is removed"
    assert remove_leftovers(tmp_path / "nothing") == []
    assert remove_leftovers(tmp_path / "no/where") == []


def test_a_file_of_ours_with_leftovers(tmp_path):
    file = tmp_path / "out.jsonl"
    file.write_text("kept", encoding="utf-8")
    left_by_kill(file).touch()
    # Another process that runs has no business here: who asks holds the lock.
    temporary_path(file).touch()
    assert remove_leftovers(file) == [file]
    assert content(tmp_path) == {"out.jsonl": "kept"}


@pytest.mark.parametrize(
    ("left", "expected"), [({"new", "old"}, "new"), ({"old"}, "old"), ({"part", "old"}, "old")]
)
def test_a_folder_that_was_renamed_away_comes_back(tmp_path, left, expected):
    target = tmp_path / "run/weights"
    for kind in left:
        folder_of(left_by_kill(target, kind), kind)
    remove_leftovers(tmp_path / "run")
    assert content(tmp_path / "run") == {f"weights/{n}": t for n, t in whole(expected).items()}


def test_a_folder_in_its_place_wins(tmp_path):
    target = folder_of(tmp_path / "weights", "there")
    for kind in ("new", "old", "part"):
        folder_of(left_by_kill(target, kind), kind)
    remove_leftovers(target)
    assert content(tmp_path) == {f"weights/{n}": t for n, t in whole("there").items()}


@pytest.mark.parametrize(
    ("number", "of_a_folder", "passed_over"),
    [
        (errno.EINVAL, True, True),  # some file systems flush no folders
        (errno.EIO, True, False),
        (errno.EINVAL, False, False),
    ],
)
def test_what_does_not_reach_the_disk_is_an_error(
    tmp_path, monkeypatch, number, of_a_folder, passed_over
):
    flush = os.fsync

    def fail(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == of_a_folder:
            raise OSError(number, os.strerror(number))
        flush(handle)

    monkeypatch.setattr(os, "fsync", fail)
    expected = (
        contextlib.nullcontext() if passed_over else pytest.raises(OSError, match=r"^.Errno ")
    )
    with expected:
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").exists() == of_a_folder
