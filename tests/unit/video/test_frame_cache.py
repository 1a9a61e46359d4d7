import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rbft.video.frame_cache as module
from rbft.video.frame_cache import FrameCache, clip_key
from rbft.video.frame_settings import FrameSettings
from rbft.video.sampling import Video, VideoError, decode_video
from rbft.video.tensor_cache import file_key, read_entry
from tests.videos import make_video

SETTINGS = FrameSettings(fps=2.0, min_pixels=784, max_pixels=84 * 84)
PLENTY = 1 << 30


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [make_video(folder / f"{n}.mp4", frames=10 + n, fps=5) for n in range(6)]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were decoded rather than read."""
    calls: list[Path] = []

    def decode(path: Path, settings: FrameSettings, **part: Any) -> Video:
        calls.append(path)
        return decode_video(path, settings, **part)

    monkeypatch.setattr(module, "decode_video", decode)
    return calls


def same(a: Video, b: Video) -> bool:
    return torch.equal(a.frames, b.frames) and (a.indices, a.total_frames, a.fps) == (
        b.indices,
        b.total_frames,
        b.fps,
    )


def _used(file: Path, seconds_ago: float) -> None:
    then = time.time() - seconds_ago
    os.utime(file, (then, then))


def entries(cache: FrameCache) -> list[Path]:
    return sorted(cache.folder.glob("*.clip"))


def test_a_clip_is_decoded_once(
    tmp_path: Path, paths: list[Path], decoded: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    cache = FrameCache(tmp_path / "a" / "b", PLENTY)
    first = cache.get_or_decode(paths[0], SETTINGS)
    second = cache.get_or_decode(paths[0], SETTINGS)
    assert decoded == [paths[0]]
    assert same(first, second)
    assert second.frames.dtype == torch.uint8
    assert FrameCache(cache.folder, PLENTY).get_or_decode(paths[0], SETTINGS).fps == 5
    assert len(decoded) == 1
    assert not caplog.messages


def test_what_was_read_may_be_changed_without_changing_the_cache(
    tmp_path: Path, paths: list[Path]
) -> None:
    cache = FrameCache(tmp_path, PLENTY)
    first = cache.get_or_decode(paths[0], SETTINGS)
    cache.get_or_decode(paths[0], SETTINGS).frames.zero_()
    assert same(cache.get_or_decode(paths[0], SETTINGS), first)


def test_what_makes_another_entry(
    tmp_path: Path, paths: list[Path], decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(paths[0].read_bytes())
    cache = FrameCache(tmp_path / "cache", PLENTY)

    def expect_decodes(count: int, *, start: float | None = None, **settings: Any) -> None:
        decoded.clear()
        cache.get_or_decode(path, replace(SETTINGS, **settings), start=start)
        assert len(decoded) == count

    expect_decodes(1)
    expect_decodes(0)
    expect_decodes(0, reader="pyav")  # gives the same frames
    expect_decodes(1, fps=1.0)
    expect_decodes(1, max_pixels=56 * 56)
    expect_decodes(1, start=0.2)
    expect_decodes(1, num_frames=4)
    os.utime(path, ns=(0, 10**18))
    expect_decodes(1)
    path.write_bytes(paths[1].read_bytes())
    os.utime(path, ns=(0, 10**18))
    expect_decodes(1)
    # Another file of the same size and time in its place, as rsync and cp -p leave it.
    (tmp_path / "new").write_bytes(path.read_bytes())
    os.utime(tmp_path / "new", ns=(0, 10**18))
    (tmp_path / "new").replace(path)
    expect_decodes(1)
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    expect_decodes(1)
    monkeypatch.chdir(tmp_path)
    path = Path("clip.mp4")
    expect_decodes(0)


def test_errors_pass_through_and_leave_nothing(tmp_path: Path) -> None:
    cache = FrameCache(tmp_path / "cache", PLENTY)
    (tmp_path / "empty.mp4").touch()
    for name, words in (("missing.mp4", "does not exist"), ("empty.mp4", "is empty")):
        with pytest.raises(VideoError, match=words):
            cache.get_or_decode(tmp_path / name, SETTINGS)
    assert cache.size() == 0
    with pytest.raises(ValueError, match=r"size \(-1 bytes\) must not be negative"):
        FrameCache(tmp_path, -1)


def test_damaged_entries_are_decoded_anew(
    tmp_path: Path, paths: list[Path], decoded: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    cache = FrameCache(tmp_path, PLENTY)
    expected = cache.get_or_decode(paths[0], SETTINGS)
    (entry,) = entries(cache)
    whole = entry.read_bytes()
    header = whole.index(b"}") + 1
    cases = [b"", whole[:10], whole[: header // 2], whole[:header], whole[:-1], whole + b"x"]
    cases += [b"x" + whole[1:], bytes(len(whole))]
    draw = random.Random(0)
    for _ in range(40):  # a flipped bit anywhere in the header
        changed = bytearray(whole)
        changed[draw.randrange(header)] ^= 1 << draw.randrange(8)
        cases.append(bytes(changed))
    for number, content in enumerate(cases, start=1):
        entry.write_bytes(content)
        decoded.clear()
        assert same(cache.get_or_decode(paths[0], SETTINGS), expected)
        assert decoded == [paths[0]]
        assert len(caplog.messages) == number
        assert f"{entry} is damaged" in caplog.messages[-1]
        assert entry.read_bytes() == whole


def test_the_least_recently_used_are_removed(
    tmp_path: Path, paths: list[Path], decoded: list[Path]
) -> None:
    cache = FrameCache(tmp_path, PLENTY)
    for age, path in enumerate(paths[:4]):
        cache.get_or_decode(path, SETTINGS)
        newest = max(entries(cache), key=lambda entry: entry.stat().st_mtime)
        _used(newest, 100 - age)
    cache.get_or_decode(paths[0], SETTINGS)  # used again
    bounded = FrameCache(tmp_path, cache.size())
    bounded.get_or_decode(paths[4], SETTINGS)
    assert bounded.size() <= bounded.max_bytes
    decoded.clear()
    for path in (paths[0], paths[3], paths[4]):
        bounded.get_or_decode(path, SETTINGS)
    assert not decoded
    bounded.get_or_decode(paths[1], SETTINGS)
    assert decoded == [paths[1]]


def test_a_clip_larger_than_the_cache_is_not_kept(tmp_path: Path, paths: list[Path]) -> None:
    cache = FrameCache(tmp_path, 1000)
    assert same(cache.get_or_decode(paths[0], SETTINGS), decode_video(paths[0], SETTINGS))
    assert cache.size() == 0


def test_clear_removes_only_what_is_ours(tmp_path: Path, paths: list[Path]) -> None:
    cache = FrameCache(tmp_path, PLENTY)
    cache.clear()
    cache.get_or_decode(paths[0], SETTINGS)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "torn.part").write_bytes(b"abc")
    assert cache.size() > 3
    cache.clear()
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    assert cache.size() == 0
    assert FrameCache(tmp_path / "none", PLENTY).size() == 0


def test_abandoned_files_are_removed(tmp_path: Path, paths: list[Path]) -> None:
    cache = FrameCache(tmp_path, PLENTY)
    for name, age in (("old.part", 7200), ("new.part", 10), ("old.clip", 7200)):
        (tmp_path / name).write_bytes(b"abc")
        _used(tmp_path / name, age)
    cache.get_or_decode(paths[0], SETTINGS)
    assert [file.name for file in tmp_path.glob("*.part")] == ["new.part"]
    assert (tmp_path / "old.clip").exists(), "old, but whole, and there is room"


def test_a_folder_that_cannot_be_written_costs_one_line(
    tmp_path: Path, paths: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()  # permissions would not stop a superuser
    cache = FrameCache(tmp_path / "file" / "cache", PLENTY)
    for path in paths[:3]:
        assert same(cache.get_or_decode(path, SETTINGS), decode_video(path, SETTINGS))
    assert caplog.messages == [
        f"Frame cache: {tmp_path}/file/cache cannot be written (Not a directory); clips are "
        "decoded every time."
    ]
    assert cache.size() == 0
    cache.clear()


def test_a_read_only_folder_is_read(
    tmp_path: Path, paths: list[Path], decoded: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    cache = FrameCache(tmp_path, PLENTY)
    cache.get_or_decode(paths[0], SETTINGS)
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("a superuser may write anywhere")
    decoded.clear()
    for path in paths[:3]:
        cache.get_or_decode(path, SETTINGS)
    tmp_path.chmod(0o700)
    assert decoded == paths[1:3]
    assert len(caplog.messages) == 1


def test_a_full_disk_costs_one_line(
    tmp_path: Path,
    paths: list[Path],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    cache = FrameCache(tmp_path, PLENTY)
    monkeypatch.setattr(module.Path, "replace", full)
    for path in paths[:3]:
        assert same(cache.get_or_decode(path, SETTINGS), decode_video(path, SETTINGS))
    assert len(caplog.messages) == 1
    assert "(No space left on device)" in caplog.messages[0]
    assert not list(tmp_path.iterdir())


def _fill(folder: Path, paths: list[Path], max_bytes: int, seed: int) -> int:
    cache = FrameCache(folder, max_bytes)
    draw = random.Random(seed)
    wrong = 0
    for _ in range(40):
        path = draw.choice(paths)
        if draw.random() < 0.05:
            cache.clear()
        expected = int(path.stem) + 10
        video = cache.get_or_decode(path, SETTINGS)
        wrong += video.total_frames != expected or not video.frames.any()
    return wrong


def _fill_at_once(folder: Path, paths: list[Path], max_bytes: int) -> None:
    with ProcessPoolExecutor(4, get_context("fork")) as workers:
        jobs = [workers.submit(_fill, folder, paths, max_bytes, seed) for seed in range(4)]
        assert [job.result() for job in jobs] == [0] * 4


def _in_a_fresh_process(target: Callable[..., None], *arguments: Any) -> None:
    """Runs in a process that may fork: it has no threads yet."""
    process = get_context("spawn").Process(target=target, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode == 0


def test_many_processes_at_once(tmp_path: Path, paths: list[Path]) -> None:
    one = FrameCache(tmp_path / "one", PLENTY)
    one.get_or_decode(paths[0], SETTINGS)
    bound = 3 * one.size()  # half of the clips: every process also removes
    _in_a_fresh_process(_fill_at_once, tmp_path / "all", paths, bound)
    cache = FrameCache(tmp_path / "all", bound)
    assert cache.size() <= bound + 4 * one.size()
    assert not list(cache.folder.glob("*.part"))
    for entry in entries(cache):
        read_entry(entry)


def _large(video: Video) -> Video:
    # Long writes, so that most kills fall into one.
    frames = video.frames.repeat(40, 1, 1, 1)
    return Video(frames, video.indices, video.total_frames, video.fps)


def _digest(frames: Tensor) -> str:
    return hashlib.sha256(frames.numpy().tobytes()).hexdigest()


def _write_for_ever(folder: Path, paths: list[Path]) -> None:
    videos = [_large(decode_video(path, SETTINGS)) for path in paths]
    cache = FrameCache(folder, PLENTY)
    (folder / "ready").touch()
    while True:
        for number, video in enumerate(videos):
            facts = {"indices": video.indices, "total_frames": 1, "fps": 1.0}
            cache.write(str(number), video.frames, facts)


def _kill_writers(folder: Path, paths: list[Path], kills: int) -> None:
    draw = random.Random(0)
    read, torn = [], 0
    for _ in range(kills):
        writer = get_context("fork").Process(target=_write_for_ever, args=(folder, paths))
        writer.start()
        while not (folder / "ready").exists():
            assert writer.is_alive()
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.1))
        while not list(folder.glob("*.part")):  # in the middle of a write
            assert writer.is_alive()
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        (folder / "ready").unlink()
        for unfinished in folder.glob("*.part"):
            torn += 1
            unfinished.unlink()
        for entry in folder.glob("*.clip"):
            read.append((int(entry.stem), _digest(read_entry(entry)[0])))
    (folder / "found").write_text(json.dumps([read, torn]))


def test_no_torn_entry_is_read_after_a_kill(tmp_path: Path, paths: list[Path]) -> None:
    _in_a_fresh_process(_kill_writers, tmp_path, paths, 12)
    read, torn = json.loads((tmp_path / "found").read_text())
    assert torn > 0
    expected = [_digest(_large(decode_video(path, SETTINGS)).frames) for path in paths]
    assert len(read) > 12
    assert all(digest == expected[number] for number, digest in read)


def test_the_key_knows_what_decides_the_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"video")
    key = clip_key(path, SETTINGS)
    assert clip_key(path, replace(SETTINGS, reader="pyav")) == key
    others = [
        clip_key(path, replace(SETTINGS, **{name: value}))
        for name, value in {
            "fps": 1.0,
            "num_frames": 8,
            "min_pixels": 785,
            "max_pixels": 7055,
            "min_frames": 2,
            "max_frames": 32,
            "sampling": "time",
            "damaged": "use",
        }.items()
    ]
    others += [clip_key(path, replace(SETTINGS, reader=name)) for name in ("decord", "torchcodec")]
    others += [clip_key(path, SETTINGS, start=0.5), clip_key(path, SETTINGS, end=0.5)]
    others += [clip_key(path, SETTINGS, "a tower")]
    assert len({key, *others}) == len(others) + 1


def test_what_a_key_is_made_of(tmp_path: Path) -> None:
    """Another name or default for a setting would make everybody's cache anew."""
    path = tmp_path / "a.mp4"
    path.write_bytes(b"video")
    made_of = {
        "fps": 2.0,
        "num_frames": None,
        "min_pixels": 784,
        "max_pixels": 7056,
        "min_frames": 4,
        "max_frames": 768,
        "start": None,
        "end": 1.5,
    }
    assert clip_key(path, SETTINGS, "a tower", end=1.5) == file_key(path, 2, made_of, "a tower")
    by_decord = replace(SETTINGS, reader="decord", sampling="time", damaged="use")
    made_of |= {"reader": "decord", "sampling": "time", "damaged": "use"}
    assert clip_key(path, by_decord, end=1.5) == file_key(path, 2, made_of)
