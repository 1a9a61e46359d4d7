"""A folder kept within a size; tests/unit/video/test_frame_cache.py has many processes at it."""

import os
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import rbft.video.tensor_cache as diskcache
from rbft.video.tensor_cache import DiskCache, file_key

VALUES = torch.zeros(100)


class SmallCache(DiskCache):
    suffix = ".x"
    name = "small cache"
    fallback = "nothing is kept"


@pytest.fixture
def entry_size(tmp_path: Path) -> int:
    """Bytes of a file that holds `VALUES`."""
    cache = SmallCache(tmp_path / "one", 1 << 20)
    cache.write("0", VALUES, {})
    return cache.size()


def fill(cache: SmallCache, names: range) -> None:
    """Writes `VALUES` under each number, so that the lowest was used longest ago."""
    for number in names:
        cache.write(str(number), VALUES, {})
        if cache.path(str(number)).exists():
            os.utime(cache.path(str(number)), (number, number))


def kept(cache: SmallCache) -> list[int]:
    return sorted(int(file.stem) for file in cache.folder.glob("*.x"))


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One number for every time that a folder is listed."""
    made: list[int] = []
    list_files = DiskCache._files

    def count(self: DiskCache) -> Any:
        made.append(len(made))
        return list_files(self)

    monkeypatch.setattr(DiskCache, "_files", count)
    return made


@pytest.mark.parametrize("words", ["", "a", "ab" * 20, "x" * 63])
def test_values_begin_where_a_processor_reads_them_fastest(tmp_path: Path, words: str) -> None:
    cache = SmallCache(tmp_path, 1 << 20)
    cache.write("0", VALUES, {"words": words})
    assert (cache.size() - VALUES.nbytes) % 64 == 0
    assert cache.size() - VALUES.nbytes <= 192
    found = cache.read("0")
    assert found is not None
    assert torch.equal(found[0], VALUES)
    assert found[1] == {"words": words}


def test_the_size_is_kept_to_the_byte(tmp_path: Path, entry_size: int) -> None:
    for size, expected in ((entry_size - 1, []), (entry_size, [0])):
        cache = SmallCache(tmp_path / str(size), size)
        fill(cache, range(1))
        assert kept(cache) == expected
    full = SmallCache(tmp_path / "full", 20 * entry_size)
    fill(full, range(20))
    assert kept(full) == [*range(20)]
    # A byte too little: a tenth of the folder is freed besides, the oldest first.
    tight = SmallCache(tmp_path / "tight", 20 * entry_size - 1)
    fill(tight, range(20))
    assert kept(tight) == [*range(2, 20)]
    assert SmallCache(tmp_path, 0).max_bytes == 0


def test_a_full_folder_is_emptied_by_a_tenth(
    tmp_path: Path, entry_size: int, listings: list[int]
) -> None:
    cache = SmallCache(tmp_path / "full", 400 * entry_size)
    fill(cache, range(400))
    fresh = cache.folder / "another_process.part"
    fresh.touch()
    os.utime(fresh)
    cache.write("400", VALUES, {})
    assert kept(cache) == [*range(41, 401)]
    assert fresh.exists()
    # Room for 39 more, of which this process may take a sixteenth: two, before it looks again.
    before = len(listings)
    seen = []
    for number in range(401, 405):
        cache.write(str(number), VALUES, {})
        seen.append(len(listings) - before)
    assert seen == [0, 0, 1, 1]


def test_when_the_folder_is_listed(tmp_path: Path, entry_size: int, listings: list[int]) -> None:
    """After a sixteenth of the room that was found; ten thousand clips make no ten thousand."""
    cache = SmallCache(tmp_path / "new", 64 * entry_size)
    when = []
    for number in range(1, 36):
        before = len(listings)
        cache.write(str(number), VALUES, {})
        when += [number] * (len(listings) - before)
    assert when == [1, 5, 9, 13, 17, 20, 23, 26, 29, 32, 35]


def test_sixteen_writers_together_stay_within_the_size(tmp_path: Path) -> None:
    """Each may use up its share of the room that it has seen before it looks again."""
    assert diskcache.SHARE * 16 == 1
    made = [SmallCache(tmp_path, 100_000) for _ in range(16)]
    for number in range(200):
        made[number % 16].write(str(number), VALUES, {})
        assert made[0].size() <= 100_000


def test_what_is_abandoned_after_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(diskcache, "time", SimpleNamespace(time=lambda: now))
    for age in (3599, 3600, 3601):
        (tmp_path / f"{age}.part").touch()
        os.utime(tmp_path / f"{age}.part", (now - age, now - age))
    SmallCache(tmp_path, 1 << 20).write("0", VALUES, {})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0.x", "3599.part", "3600.part"]


def test_a_write_that_is_broken_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(diskcache.Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        SmallCache(tmp_path, 1 << 20).write("0", VALUES, {})
    assert not list(tmp_path.iterdir())


def test_a_key_does_not_depend_on_the_order_of_facts(tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    file.touch()
    assert file_key(file, {"a": 1, "b": 2}) == file_key(file, {"b": 2, "a": 1})
    assert file_key(file, {"a": 1, "b": 2}) != file_key(file, {"a": 2, "b": 1})


def test_a_key_changes_with_the_start_the_middle_and_the_end_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    for size in (1, 20_000, 200_001):
        keys = []
        for place in (None, 0, size // 2, size - 1):
            content = bytearray(size)
            if place is not None:
                content[place] = 1
            with file.open("r+b" if file.exists() else "wb") as stream:  # the same inode
                stream.write(content)
                stream.truncate()
            os.utime(file, ns=(0, 10**18))
            keys.append(file_key(file))
        assert len(set(keys)) == (2 if size == 1 else 4)
    with pytest.raises(OSError, match="Is no file"):
        file_key(tmp_path)


def test_damaged_values_are_found_and_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = torch.arange(1000.0)
    SmallCache(tmp_path, 1 << 20).write("0", values, {})
    (entry,) = tmp_path.iterdir()
    good = entry.read_bytes()
    begin = len(good) - values.nbytes
    for place in (begin, begin + values.nbytes // 2, len(good) - 1):
        entry.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        caplog.clear()
        assert SmallCache(tmp_path, 1 << 20).read("0") is None
        assert caplog.messages == [
            f"Small cache: {entry} is damaged (its values do not match their checksum) and is "
            "made anew."
        ]
        assert not entry.exists()


def test_values_are_checked_once_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = SmallCache(tmp_path, 1 << 20)
    cache.write("0", VALUES, {})
    checked = []
    crc32 = zlib.crc32

    def count(data: Any) -> int:
        checked.append(len(data))
        return crc32(data)

    monkeypatch.setattr(diskcache, "zlib", SimpleNamespace(crc32=count))
    for _ in range(3):
        assert cache.read("0") is not None
    assert checked.count(VALUES.nbytes) == 1
    # What another process has put in the place of a removed file is new to this one.
    other = SmallCache(tmp_path, 1 << 20)
    cache.path("0").unlink()
    assert cache.read("0") is None
    other.write("0", VALUES, {})
    checked.clear()
    assert cache.read("0") is not None
    assert checked.count(VALUES.nbytes) == 1


def test_a_file_that_is_cut_while_it_is_used_kills_nobody(tmp_path: Path) -> None:
    cache = SmallCache(tmp_path, 1 << 30)
    cache.write("0", torch.ones(1 << 20, dtype=torch.uint8), {})
    found = cache.read("0")
    # A mapped file that has been cut ends the process by SIGBUS, this one too.
    assert str(cache.path("0")) not in Path("/proc/self/maps").read_text()
    os.truncate(cache.path("0"), 4096)
    assert found is not None
    assert int(found[0].sum()) == 1 << 20


def test_a_file_that_is_cut_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = SmallCache(tmp_path, 1 << 20)
    cache.write("0", VALUES, {})
    monkeypatch.setattr(diskcache.np, "fromfile", lambda *_: VALUES.numpy().view("uint8")[:-1])
    with pytest.raises(ValueError, match="wrong size"):
        diskcache.read_entry(cache.path("0"), check=False)
