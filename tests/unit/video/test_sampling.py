import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from importlib.util import find_spec
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rbft.video.frame_settings import FrameSettings
from rbft.video.packet_index import list_frames
from rbft.video.readers import READERS
from rbft.video.sampling import (
    Video,
    VideoError,
    VideoInfo,
    decode_video,
    frame_size,
    probe,
    sample_indices,
    sample_times,
)
from tests.rights import folder_for_all, without_rights
from tests.videos import make_video, numbers, picture


def _can_read(reader: str) -> bool:
    try:
        return find_spec(reader) is not None and __import__(reader) is not None
    except (ImportError, OSError, RuntimeError):  # torchcodec without FFmpeg
        return False


READER_NAMES = ["pyav", *(name for name in ("decord", "torchcodec") if _can_read(name))]
SETTINGS = FrameSettings(fps=2.0, min_pixels=28 * 28, max_pixels=150_000)
SLOW = replace(SETTINGS, fps=1.0)
UNEVEN = list(accumulate(random.Random(0).randrange(10, 300) for _ in range(40)))
B_FRAMES = {"g": "12", "bf": "3"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=20:bframes=0"}

# Ending and arguments of make_video.
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("mp4", {}),
    "sound": ("mp4", {"audio": True}),
    "ntsc": ("mp4", {"fps": Fraction(30000, 1001)}),
    "b_frames": ("mp4", {"options": B_FRAMES}),
    "one_group": ("mkv", {"options": {"g": "250", "bf": "3"}}),
    "open_groups": (
        "mp4",
        {
            "codec": "libx265",
            "options": {"x265-params": "log-level=error:keyint=12:open-gop=1:bframes=3"},
        },
    ),
    "uneven": ("mp4", {"times": UNEVEN}),
    "uneven_mkv": ("mkv", {"times": UNEVEN}),
    "odd_size": ("mp4", {"height": 97, "width": 131, "pixels": "yuv444p"}),
    "one_frame": ("mp4", {"frames": 1}),
    "two_frames": ("mp4", {"frames": 2}),
    "three_frames": ("mp4", {"frames": 3, "fps": 30}),
    "avi": ("avi", {"options": B_FRAMES}),
    "avi_mpeg4": ("avi", {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}}),
    "mpeg4": ("mp4", {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}}),
    "transport_stream": ("ts", {"options": B_FRAMES}),
    "program_stream": ("mpg", {"codec": "mpeg2video", "fps": 25, "options": {"bf": "2"}}),
    "raw": ("h264", {"options": B_FRAMES}),
    "refresh": ("mp4", {"frames": 60, "options": REFRESH}),
    "webm": ("webm", {"codec": "libvpx-vp9"}),
    "hidden_frames": (
        "webm",
        {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    ),
    "motion_jpeg": ("avi", {"codec": "mjpeg", "pixels": "yuvj420p"}),
    "ten_bits": (
        "mp4",
        {
            "codec": "libx265",
            "pixels": "yuv420p10le",
            "options": {"x265-params": "log-level=error"},
        },
    ),
    # The keyframe at 12 is the first one left.
    "no_keyframe_start": ("mp4", {"drop": 7, "options": B_FRAMES}),
    "no_keyframe_start_ts": ("ts", {"drop": 7, "options": B_FRAMES}),
}


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("videos")

    def make(name: str) -> Path:
        ending, arguments = FILES[name]
        path = folder / f"{name}.{ending}"
        return path if path.exists() else make_video(path, **arguments)

    return make


@pytest.mark.parametrize("reader", READER_NAMES)
@pytest.mark.parametrize("name", FILES)
def test_every_reader_gives_the_frames_asked_for(
    video: Callable[[str], Path], name: str, reader: str
) -> None:
    listing = list_frames(video(name))
    first = 12 if name.startswith("no_keyframe") else 0
    assert listing.info.frames == FILES[name][1].get("frames", 40) - first
    draw = random.Random(name)
    every = list(range(listing.info.frames))
    some = [sorted(draw.choices(every, k=draw.randint(1, 6))) for _ in range(8)]
    for wanted in [every, *some]:
        pictures = np.stack(list(READERS[reader](listing, wanted)))
        frames = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        assert numbers(frames) == [first + frame for frame in wanted]


@pytest.mark.parametrize("reader", READER_NAMES)
@pytest.mark.parametrize("name", FILES)
def test_clips_do_not_depend_on_the_reader(
    video: Callable[[str], Path], name: str, reader: str
) -> None:
    expected = decode_video(video(name), replace(SETTINGS, reader="pyav"))
    found = decode_video(video(name), replace(SETTINGS, reader=reader))
    assert (found.indices, found.fps) == (expected.indices, expected.fps)
    assert found.frames.shape == expected.frames.shape
    # torchcodec converts colours with its own FFmpeg, one step of rounding apart.
    off = (found.frames.int() - expected.frames.int()).abs().max()
    assert off <= (0 if reader == "decord" else 3)


@pytest.mark.parametrize("reader", READER_NAMES)
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_phone_videos_stand_upright(tmp_path: Path, rotation: int, reader: str) -> None:
    path = make_video(tmp_path / "phone.mp4", rotation=rotation)
    info = probe(path)
    assert (info.height, info.width) == ((96, 128) if rotation == 180 else (128, 96))
    (found,) = READERS[reader](list_frames(path), [21])
    expected = np.rot90(picture(21, 96, 128), -rotation // 90)
    assert np.abs(found.astype(int) - expected).mean() < 8


def test_what_a_clip_carries(video: Callable[[str], Path]) -> None:
    clip = decode_video(video("plain"), SETTINGS)
    assert clip.indices == [0, 6, 11, 17, 22, 28, 33, 39]
    assert numbers(clip.frames) == clip.indices
    assert clip.frames.shape == (8, 3, 84, 140)
    assert (clip.total_frames, clip.fps, clip.sampled_fps) == (40, 10, 2)
    assert clip.pair_times.step == 1
    assert clip.frames.is_contiguous()


def test_a_part_of_a_file(video: Callable[[str], Path]) -> None:
    clip = decode_video(video("plain"), SETTINGS, start=1.0, end=3.0)
    assert clip.indices == [10, 17, 23, 30]
    assert numbers(clip.frames) == clip.indices
    assert clip.total_frames == 21
    from_end = decode_video(video("plain"), SETTINGS, start=1.0, end=-1.0)
    assert from_end.indices == clip.indices


def test_one_frame_is_shown_twice(video: Callable[[str], Path]) -> None:
    clip = decode_video(video("one_frame"), SETTINGS)
    assert clip.indices == [0, 0]
    assert torch.equal(clip.frames[0], clip.frames[1])
    assert clip.pair_times.step == pytest.approx(1 / 10)


def test_probe(video: Callable[[str], Path]) -> None:
    assert probe(video("sound")) == VideoInfo(40, 10.0, width=128, height=96, duration=4.0)
    assert probe(video("odd_size")).width == 131
    assert probe(video("uneven")).duration == pytest.approx(
        (UNEVEN[-1] - UNEVEN[0]) / 1000, rel=0.1
    )


def test_a_nonsense_frame_rate_gives_way_to_the_time_stamps(tmp_path: Path) -> None:
    path = make_video(tmp_path / "uneven.avi", times=[time - UNEVEN[0] for time in UNEVEN])
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 1000
    assert probe(path).fps == pytest.approx(39 / (UNEVEN[-1] - UNEVEN[0]) * 1000, rel=0.05)


@pytest.mark.parametrize(
    "name", ["a b.mp4", "übung_监控.mp4", "-rf.mp4", "a:b.mp4", "100%d.mp4", "x" * 200 + ".mp4"]
)
def test_any_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    make_video(tmp_path / "clip.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for reader in READER_NAMES:
        assert len(decode_video(Path(name), replace(SETTINGS, reader=reader)).indices) == 8


def _damage(path: Path, start: float, share: float) -> None:
    data = bytearray(path.read_bytes())
    at, length = int(len(data) * start), int(len(data) * share)
    data[at : at + length] = bytes(length)
    path.write_bytes(data)


def _bad_files(folder: Path) -> dict[str, Path]:
    """The words of the message, and a file that should give them."""
    whole = make_video(folder / "whole.mp4")
    (folder / "empty.mp4").touch()
    (folder / "page.mp4").write_text("<!doctype html><title>404</title>" * 50)
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "half.mp4").write_bytes(whole.read_bytes()[:-2000])
    third = make_video(folder / "third.mkv")
    third.write_bytes(third.read_bytes()[: third.stat().st_size // 3])
    half = make_video(folder / "half.mkv", options={"g": "8"})
    half.write_bytes(half.read_bytes()[: half.stat().st_size * 2 // 3])
    streamed = make_video(folder / "streamed.mp4", container={"movflags": "faststart"})
    streamed.write_bytes(streamed.read_bytes()[:-600])
    damaged = make_video(folder / "damaged.mp4", frames=120, options={"g": "250"})
    _damage(damaged, 0.3, 0.2)
    return {
        "does not exist": folder / "missing.mp4",
        "is empty (0 bytes)": folder / "empty.mp4",
        "cannot be opened (Invalid data": folder / "page.mp4",
        "is not a file": folder / "folder.mp4",
        "is not a file.": folder / "pipe.mp4",
        "cannot be opened": folder / "half.mp4",
        "has no frame that can be decoded: it holds 1,239 of the 3,717 bytes": third,
        "is truncated: it holds": half,
        "frames that it lists": streamed,
        "has no video stream": make_video(folder / "sound.mp4", frames=0, audio=True),
        "is damaged: frame": damaged,
        "cannot be read: [Errno 36]": folder / ("x" * 300),
        "cannot be read: embedded null byte": folder / "a\0b.mp4",
    }


def test_bad_files(tmp_path: Path) -> None:
    for words, path in _bad_files(tmp_path).items():
        for reader in READER_NAMES:
            with pytest.raises(VideoError) as caught:
                decode_video(path, replace(SETTINGS, reader=reader))
            assert str(caught.value) == f"Video {path} {caught.value.reason}"
            assert words in caught.value.reason
            assert "decord" not in caught.value.reason


def test_a_file_that_may_not_be_read_is_not_called_damaged(video: Callable[[str], Path]) -> None:
    with folder_for_all() as folder:
        path = folder / "a.mp4"
        path.write_bytes(video("plain").read_bytes())
        path.chmod(0)
        with (
            without_rights(),
            pytest.raises(VideoError, match=r"a\.mp4 cannot be read: Permission denied\.$"),
        ):
            probe(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"^Video .*missing\.mp4 does not exist\.$"):
        probe(tmp_path / "missing.mp4")


def test_an_error_survives_the_way_from_a_worker() -> None:
    error = pickle.loads(pickle.dumps(VideoError.of(Path("a.mp4"), "is empty (0 bytes).")))
    assert (str(error), error.reason) == ("Video a.mp4 is empty (0 bytes).", "is empty (0 bytes).")


def test_a_playlist_opens_no_other_place(tmp_path: Path) -> None:
    path = tmp_path / "list.mp4"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n")
    with pytest.raises(VideoError):
        decode_video(path, SETTINGS)


def test_a_part_without_frames(video: Callable[[str], Path]) -> None:
    with pytest.raises(VideoError, match=r"plain\.mp4 has no such part: no frame lies between"):
        decode_video(video("plain"), SETTINGS, start=3.0, end=1.0)


def test_a_ribbon(tmp_path: Path) -> None:
    path = make_video(tmp_path / "ribbon.mp4", frames=4, height=16, width=16 * 201)
    with pytest.raises(VideoError, match="is 3216 x 16 pixels; one side may be at most 200 times"):
        probe(path)
    with pytest.raises(VideoError, match="is 3216 x 16 pixels; one side may be at most 200 times"):
        decode_video(path, SETTINGS)


def test_settings_out_of_range(video: Callable[[str], Path]) -> None:
    def fails(words: str, **settings: Any) -> None:
        with pytest.raises(ValueError, match=words) as caught:
            decode_video(video("plain"), replace(SETTINGS, **settings))
        assert not isinstance(caught.value, VideoError)

    fails(r"data\.fps \(0\.0\) must be above 0", fps=0.0)
    fails(r"data\.num_frames \(1\) must be at least 2", num_frames=1)
    fails(r"data\.max_frames \(1\) must be at least 2", max_frames=1)
    fails(r"data\.min_pixels \(200000\) must not exceed data\.max_pixels", min_pixels=200_000)
    fails(
        r"data\.reader is 'opencv'; allowed are decord, pyav, torchcodec and null \(pyav\)",
        reader="opencv",
    )


def test_a_reader_that_is_not_installed(
    video: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(ValueError, match=r"Run: pip install torchcodec, or set data\.reader"):
        decode_video(video("plain"), replace(SETTINGS, reader="torchcodec"))
    assert decode_video(video("plain"), SETTINGS).indices[-1] == 39


@pytest.mark.skipif("decord" not in READER_NAMES, reason="decord is not installed")
def test_decord_reads_where_it_can(
    video: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("PyAV was asked")

    monkeypatch.setattr("rbft.video.readers.read_pyav", refuse)
    for name in ("plain", "sound", "b_frames", "one_group", "uneven", "odd_size", "webm"):
        decode_video(video(name), replace(SETTINGS, reader="decord"))


def test_sampling() -> None:
    assert sample_indices(300, 30.0, SLOW) == [0, 33, 66, 100, 133, 166, 199, 233, 266, 299]
    assert len(sample_indices(30, 30.0, SLOW)) == 4  # min_frames
    assert len(sample_indices(30_000, 30.0, SLOW)) == 768  # max_frames
    assert sample_indices(3, 30.0, SLOW) == [0, 2]
    assert sample_indices(1, 30.0, SLOW) == [0, 0]
    assert sample_indices(300, 30.0, replace(SLOW, num_frames=5)) == [0, 100, 199, 299]
    assert sample_indices(3, 30.0, replace(SLOW, num_frames=6)) == [0, 0, 1, 1, 2, 2]
    assert sample_indices(300, 30.0, SLOW, start=9.9, end=99.0) == [297, 299]
    assert sample_indices(300, 30.0, SLOW, start=5.0, end=5.0) == [150, 150]
    assert sample_indices(300, 30.0, SLOW, start=-5.0, end=-9.0) == [0, 10, 20, 30]


def test_sampling_by_time() -> None:
    # Five pictures within a moment, one that stands for long, and one more.
    seconds = [0.0, 0.04, 0.08, 0.12, 0.16, 9.0, 10.0]
    indices, used, rate = sample_times(seconds, 10.2, replace(SLOW, num_frames=6))
    assert indices == [0, 4, 4, 4, 4, 6]
    assert (used, rate) == (7, 0.6)
    # Seconds for two pictures are those of the true times.
    assert Video(
        torch.zeros(6, 3, 28, 28, dtype=torch.uint8), indices, used, rate
    ).pair_times.step == pytest.approx(2 / (6 / (7 / 0.6)))
    assert sample_times(seconds, 10.2, SLOW)[0] == [0, 4, 4, 4, 4, 6]  # no more than there are
    assert sample_times(seconds, 10.2, SLOW, start=0.1, end=-1.0)[0] == [3, 5]
    assert sample_times([0.0], 0.1, SLOW) == ([0, 0], 1, 10.0)
    with pytest.raises(ValueError, match=r"no frame lies between start 1\.0 s and end 2\.0 s; the"):
        sample_times(seconds, 10.2, SLOW, start=1.0, end=2.0)


@given(
    frames=st.integers(2, 400),
    rate=st.sampled_from([5.0, 10.0, 23.976, 25.0, 30.0, 59.94]),
    fps=st.floats(0.2, 8),
)
def test_sampling_by_time_of_a_constant_rate(frames: int, rate: float, fps: float) -> None:
    settings = replace(SETTINGS, fps=fps)
    by_number = sample_indices(frames, rate, settings)
    seconds = [number / rate for number in range(frames)]
    by_time, used, found = sample_times(seconds, frames / rate, settings)
    assert used == frames
    assert found == pytest.approx(rate)
    # The count may differ by a pair where it is on the brink; a time may fall between two frames.
    assert abs(len(by_time) - len(by_number)) <= 2
    if len(by_time) == len(by_number):
        assert max(abs(a - b) for a, b in zip(by_time, by_number, strict=True)) <= 1


def test_a_phone_clip_by_time(tmp_path: Path) -> None:
    times = [*range(0, 1000, 50), *range(1000, 9001, 1000)]
    path = make_video(tmp_path / "phone.mp4", len(times), times=times)
    by_number = decode_video(path, replace(SETTINGS, num_frames=10))
    by_time = decode_video(path, replace(SETTINGS, num_frames=10, sampling="time"))
    assert sum(frame < 20 for frame in by_number.indices) == 7
    assert sum(frame < 20 for frame in by_time.indices) == 1
    assert by_time.indices == [0, *range(20, 29)]
    assert numbers(by_time.frames) == by_time.indices
    assert by_time.fps == pytest.approx(28 / 9)
    few = replace(SETTINGS, num_frames=4, sampling="time")
    part = decode_video(path, few, start=2.0, end=5.0)
    assert part.indices == [21, 22, 23, 24]
    with pytest.raises(VideoError, match=r"has no such part: no frame lies between start 9\.5"):
        decode_video(path, replace(SETTINGS, sampling="time"), start=9.5)


def test_sizes_of_the_paper() -> None:
    budget = {"min_pixels": 128 * 28 * 28, "max_pixels": 360 * 420}
    assert frame_size(720, 1280, 60, **budget) == (280, 504)
    assert frame_size(480, 640, 60, **budget) == (336, 448)
    assert frame_size(360, 420, 60, **budget) == (336, 420)
    assert frame_size(120, 160, 60, **budget) == (280, 392)


def test_sizes_at_the_limits() -> None:
    assert frame_size(84, 84, 4, min_pixels=56 * 56, max_pixels=84 * 84) == (84, 84)
    assert frame_size(10, 1990, 4, min_pixels=784, max_pixels=50_000) == (28, 3136)
    with pytest.raises(ValueError, match="one side may be at most 200 times the other"):
        frame_size(10, 2010, 4, min_pixels=784, max_pixels=50_000)


def test_decoders_are_not_imported_before_they_are_needed() -> None:
    code = "import sys, rbft.video.sampling; sys.exit(bool({'av', 'decord'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _decode(path: Path) -> tuple[list[int], int]:
    clip = decode_video(path, SETTINGS)
    return numbers(clip.frames), int(clip.frames.int().sum())


def test_workers_and_threads(video: Callable[[str], Path]) -> None:
    paths = [video(name) for name in ("plain", "b_frames", "uneven", "transport_stream")] * 3
    expected = [_decode(path) for path in paths]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(_decode, paths)) == expected
    with ProcessPoolExecutor(2, get_context("spawn")) as workers:
        assert list(workers.map(_decode, paths)) == expected


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("reader", READER_NAMES)
def test_memory_stays_flat(video: Callable[[str], Path], reader: str) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    paths = [video("b_frames"), video("transport_stream")]
    for _ in range(20):
        decode_video(paths[0], replace(SETTINGS, reader=reader))
        decode_video(paths[1], replace(SETTINGS, reader=reader))
    before = resident()
    for _ in range(60):
        decode_video(paths[0], replace(SETTINGS, reader=reader))
        decode_video(paths[1], replace(SETTINGS, reader=reader))
    assert resident() - before < 8_000_000  # a clip's frames alone are 0.8 MB


SHARES = st.floats(0, 1, exclude_max=True)
FLIPS = st.lists(st.tuples(SHARES, st.integers(0, 7)), min_size=1, max_size=40)
REGIONS = st.sampled_from(["all", "head", "tail"])  # headers stand near the ends


def _flipped(data: bytes, region: str, flips: list[tuple[float, int]]) -> bytes:
    low = max(0, len(data) - 3000) if region == "tail" else 0
    high = min(len(data), 3000) if region == "head" else len(data)
    changed = bytearray(data)
    for share, bit in flips:
        changed[low + int(share * (high - low))] ^= 1 << bit
    return bytes(changed)


def _decode_mutated(files: list[Path], folder: Path, cases: int) -> None:
    outcomes = {"decoded": 0, "refused": 0}

    @settings(max_examples=cases, deadline=None, database=None, derandomize=True)
    @given(st.sampled_from(files), SHARES | st.tuples(REGIONS, FLIPS))
    def check(original: Path, change: float | tuple[str, list[tuple[float, int]]]) -> None:
        data = original.read_bytes()
        if isinstance(change, tuple):
            data = _flipped(data, *change)
        else:
            data = data[: int(change * len(data))]
        path = folder / f"case{original.suffix}"
        path.write_bytes(data)
        try:
            clip = decode_video(path, SETTINGS)
            assert isinstance(clip, Video)
            assert len(clip.frames) == len(clip.indices)
            outcomes["decoded"] += 1
        except VideoError:
            outcomes["refused"] += 1

    check()
    assert sum(outcomes.values()) >= cases
    assert min(outcomes.values()) > cases / 10


def test_mutated_files_are_decoded_or_refused(video: Callable[[str], Path], tmp_path: Path) -> None:
    """In a process of its own, so that a crash in a decoder fails this test alone."""
    names = ("plain", "sound", "b_frames", "one_group", "uneven", "avi", "transport_stream", "webm")
    files = [video(name) for name in names]
    process = get_context("spawn").Process(target=_decode_mutated, args=(files, tmp_path, 1000))
    process.start()
    process.join(180)
    if process.is_alive():
        process.kill()
        pytest.fail("hangs")
    assert process.exitcode == 0
