import hashlib
import logging
import os
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from rbft.runtime import digests
from rbft.runtime.digests import DigestCache, default_cache, file_digest, folder_digest, hash_file

LONG_AGO = 1_600_000_000_000_000_000  # nanoseconds


def settle(path: Path, mtime_ns: int = LONG_AGO) -> Path:
    """Gives a file a time of change that is not a moment ago."""
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return settle(path)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose bytes were read."""
    names: list[str] = []

    def counted(path: Path) -> str:
        names.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(digests, "hash_file", counted)
    return names


def test_the_digest_is_that_of_all_bytes(tmp_path: Path) -> None:
    content = os.urandom(3_000_001)
    file = write(tmp_path / "a", content)
    expected = hashlib.sha256(content).hexdigest()[:32]
    assert hash_file(file) == expected
    assert file_digest(file, tmp_path / "cache") == expected


def test_a_file_is_read_once(tmp_path: Path, read: list[str]) -> None:
    file, cache = write(tmp_path / "a", b"1"), tmp_path / "cache" / "digests.jsonl"
    first = DigestCache(cache)
    made = first.digest(file)
    assert first.digest(file) == made
    assert DigestCache(cache).digest(file) == made, "another process"
    link = tmp_path / "link"
    link.symlink_to(file)
    assert DigestCache(cache).digest(link) == made
    assert read == ["a"]


@pytest.mark.parametrize("change", ["time", "size", "inode", "content"])
def test_a_changed_file_is_read_again(tmp_path: Path, read: list[str], change: str) -> None:
    cache = DigestCache(tmp_path / "digests.jsonl")
    file = write(tmp_path / "a", b"1")
    before = cache.digest(file)
    if change == "time":
        file.write_bytes(b"2")
        settle(file, LONG_AGO + 1)
    elif change == "size":
        write(file, b"22")
    elif change == "content":
        with file.open("r+b") as stream:
            stream.write(b"2")
        settle(file)
    else:  # as rsync and cp -p leave it: the same size and time
        write(tmp_path / "new", b"2").replace(file)
    assert cache.digest(file) == hash_file(file) != before
    assert read == ["a", "a"]


def test_a_file_that_changed_a_moment_ago_may_change_again_unseen(
    tmp_path: Path, read: list[str]
) -> None:
    cache, now = DigestCache(tmp_path / "digests.jsonl"), time.time_ns()
    file = settle(write(tmp_path / "a", b"1"), now)
    cache.digest(file)
    file.write_bytes(b"2")
    settle(file, now)  # within the same tick
    assert cache.digest(file) == hash_file(file)
    assert not cache.file.exists()


def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a", b"1")

    def slowly(path: Path) -> str:
        made = hash_file(path)
        path.write_bytes(b"22")
        return made

    cache = DigestCache(tmp_path / "digests.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(digests, "hash_file", slowly)
        cache.digest(file)
    assert not cache.file.exists()
    assert cache.digest(settle(file)) == hash_file(file)


def test_damaged_lines_are_made_anew(
    tmp_path: Path, read: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    file, other = write(tmp_path / "a", b"1"), write(tmp_path / "b", b"2")
    log = tmp_path / "digests.jsonl"
    made = DigestCache(log).digest(file)
    whole = log.read_bytes()
    log.write_bytes(b'\xff\n[]\n7\n{"path": "a"}\n' + whole.replace(made.encode(), b"12") + b'{"pa')
    with caplog.at_level(logging.INFO):
        assert DigestCache(log).digest(file) == made
    assert read == ["a", "a"]
    assert caplog.messages == [
        f"5 damaged lines of {log} are left out; their files are read again."
    ]
    # What was noted behind a line that a kill cut off is found.
    cache = DigestCache(log)
    cache.digest(file)
    cache.digest(other)
    DigestCache(log).digest(other)
    assert read == ["a", "a", "b"]


def test_no_wrong_letter_is_believed(tmp_path: Path, read: list[str]) -> None:
    file, log = write(tmp_path / "a", b"1"), tmp_path / "digests.jsonl"
    made = DigestCache(log).digest(file)
    good = log.read_bytes()
    places = [place for place, letter in enumerate(good) if letter != ord("\n")]
    for place in places:
        log.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert DigestCache(log).digest(file) == made
    assert len(read) == 1 + len(places)


def test_a_line_that_is_being_written_is_read_when_it_is_whole(
    tmp_path: Path, read: list[str]
) -> None:
    file, log = write(tmp_path / "a", b"1"), tmp_path / "digests.jsonl"
    DigestCache(log).digest(file)
    whole = log.read_bytes()
    log.write_bytes(whole[:-20])
    cache = DigestCache(log)
    cache._read_news()
    log.write_bytes(whole)
    cache.digest(file)
    assert read == ["a"]


def test_a_cache_that_was_cleared(tmp_path: Path, read: list[str]) -> None:
    file, log = write(tmp_path / "a", b"1"), tmp_path / "digests.jsonl"
    cache = DigestCache(log)
    for name in "bcd":
        cache.digest(write(tmp_path / name, b"2"))
    log.unlink()
    DigestCache(log).digest(file)
    cache.digest(file)
    assert read == ["b", "c", "d", "a"]


def test_a_folder_that_cannot_be_written_costs_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = write(tmp_path / "file", b"")
    cache = DigestCache(blocked / "digests.jsonl")
    for name in "ab":
        file = write(tmp_path / name, name.encode())
        assert cache.digest(file) == hash_file(file)
    assert caplog.messages == [
        f"Content digests cannot be kept in {blocked}/digests.jsonl (File exists); files are read "
        "again each time."
    ]


def note_many(log: Path, folder: Path, ready: Any) -> None:
    cache = DigestCache(log)
    ready.wait()
    for file in sorted(folder.iterdir()):
        cache.digest(file)


def test_many_processes_at_once(tmp_path: Path, read: list[str]) -> None:
    folder, log = tmp_path / "files", tmp_path / "digests.jsonl"
    folder.mkdir()
    files = [write(folder / f"{number:03}", b"%d" % number) for number in range(200)]
    processes = get_context("spawn")
    ready = processes.Barrier(2)
    running = [processes.Process(target=note_many, args=(log, folder, ready)) for _ in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join()
        assert process.exitcode == 0
    cache = DigestCache(log)
    assert [cache.digest(file) for file in files] == [hash_file(file) for file in files]
    assert read == []


def test_a_folder_s_digest(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        write(tmp_path / name, content)

    def digest(*names: str, facts: tuple[str, ...] = ()) -> str:
        return folder_digest(tmp_path, names, facts, cache)

    assert len(digest("a", "b")) == 32
    assert digest("a", "b") == digest("b", "a")
    variants = [digest("a", "b"), digest("a"), digest("c"), digest("a", facts=("b",))]
    write(tmp_path / "a", b"22")
    assert len({*variants, digest("a", "b")}) == 5


def test_names_that_are_no_text(tmp_path: Path, read: list[str]) -> None:
    """On Linux a name is bytes; from Latin-1 it is no UTF-8."""
    file = write(tmp_path / os.fsdecode(b"caf\xe9.mp4"), b"1")
    made = file_digest(file, tmp_path / "cache")
    assert DigestCache(tmp_path / "cache" / "digests.jsonl").digest(file) == made
    assert len(read) == 1


def test_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBFT_CACHE", str(tmp_path / "mine"))
    assert default_cache() == tmp_path / "mine"
    file_digest(write(tmp_path / "a", b"1"))
    assert (tmp_path / "mine" / "digests.jsonl").exists()
    monkeypatch.setenv("RBFT_CACHE", "")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert default_cache() == tmp_path / ".cache" / "rbft"


def test_a_long_read_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("rbft.runtime.digests.ANNOUNCED_BYTES", 10)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(8))
        os.utime(tmp_path / name, (1, 1))
    cache = tmp_path / "cache"
    folder_digest(tmp_path, ["a"], cache_folder=cache)
    assert capsys.readouterr().out == ""
    folder_digest(tmp_path, ["a", "b"], cache_folder=cache)  # 8 bytes are known
    assert capsys.readouterr().out == ""
    folder_digest(tmp_path, ["a", "b"], cache_folder=tmp_path / "other")
    assert capsys.readouterr().out == (
        f"Reading {tmp_path} once (0.0 GB), to know its weights by their content.\n"
    )
