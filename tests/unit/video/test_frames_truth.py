"""Every kind of file gives the frames that FFmpeg's own decoding gives, or is refused."""

import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rbft.video import readers
from rbft.video.completeness import find_truncation
from rbft.video.frame_settings import FrameSettings
from rbft.video.listings import probe
from rbft.video.packet_index import FrameList, VideoError, list_frames
from rbft.video.readers import IndexMismatch, read_pyav
from rbft.video.sampling import decode_video
from tests.variants import FROM_FFMPEG, MADE, UPRIGHT, decode_all, make_variant
from tests.videos import make_video, numbers

SETTINGS = FrameSettings(fps=2.0, min_pixels=28 * 28, max_pixels=150_000)
# The number in the first picture, where it is not 0, and in the last.
FIRST = {name: 12 for name in MADE if "no_keyframe" in name} | {"decoding_times": 2}
LAST = {"joined_ts": 79, "joined_mpg": 79, "joined_sizes": 79, "h264_one_frame": 0, "cinepak": 11}
LAST |= {"h264_two_frames": 1, "uneven_mp4": 7, "uneven_mkv": 7}


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("variants")
    return lambda name: make_variant(name, folder)


def _read(listing: FrameList, wanted: list[int]) -> tuple[FrameList, list[np.ndarray]]:
    """The pictures as `decode_video` gets them."""
    try:
        return listing, list(read_pyav(listing, wanted))
    except IndexMismatch:
        listing = list_frames(listing.path, decode=True)
        return listing, list(read_pyav(listing, wanted))


def _check(path: Path, upright: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """Frames one and all, and some of them, are FFmpeg's to the bit."""
    truth = [upright(picture) for picture in decode_all(path)]
    listing, found = _read(list_frames(path), list(range(len(truth))))
    assert listing.info.frames == len(truth) > 0
    assert not listing.info.truncated
    assert not listing.damaged
    assert find_truncation(path) == ""
    assert (listing.info.height, listing.info.width) == truth[0].shape[:2]
    assert all(np.array_equal(one, other) for one, other in zip(found, truth, strict=True))
    draw = random.Random(path.name)
    for _ in range(5):
        some = sorted(draw.choices(range(len(truth)), k=draw.randint(1, 5)))
        _, found = _read(listing, some)
        assert all(np.array_equal(found[n], truth[frame]) for n, frame in enumerate(some))
    clip = decode_video(path, SETTINGS)
    assert len(clip.frames) == len(clip.indices)
    assert clip.indices[-1] < len(truth)
    return truth


@pytest.mark.parametrize("name", MADE)
def test_frames_are_those_of_ffmpeg(variant: Callable[[str], Path], name: str) -> None:
    truth = _check(variant(name), UPRIGHT.get(name, lambda picture: picture))
    if name not in UPRIGHT:
        shown = numbers(torch.from_numpy(np.stack(truth)).permute(0, 3, 1, 2))
        assert shown == list(range(FIRST.get(name, 0), LAST.get(name, 39) + 1))


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="the program ffmpeg is not installed")
@pytest.mark.parametrize("name", FROM_FFMPEG)
def test_frames_of_what_only_the_program_writes(variant: Callable[[str], Path], name: str) -> None:
    try:
        path = variant(name)
    except OSError as error:
        pytest.skip(f"this ffmpeg lacks the encoder: {error}")
    truth = _check(path, lambda picture: picture)
    # The program is another version of FFmpeg than PyAV's, and may round otherwise.
    command = ["ffmpeg", "-v", "error", "-i", path, "-vsync", "passthrough", "-pix_fmt", "rgb24"]
    found = subprocess.run([*command, "-f", "rawvideo", "-"], capture_output=True, check=True)
    pictures = np.frombuffer(found.stdout, np.uint8).reshape(-1, *truth[0].shape)
    assert len(pictures) == len(truth)
    off = [np.abs(a.astype(int) - b).mean() for a, b in zip(pictures, truth, strict=True)]
    assert max(off) < 4


def test_seeking_gives_the_frames_that_reading_gives(
    variant: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every kind of file that has an index of packets."""
    monkeypatch.setattr(readers, "SEEK_FROM", 1)
    sought = []
    seek = readers._seek

    def noted(*given: Any) -> Any:
        found = seek(*given)
        sought.append(found is not None)
        return found

    monkeypatch.setattr(readers, "_seek", noted)
    for name in MADE:
        listing = list_frames(variant(name))
        index, last = listing.packets, listing.info.frames - 1
        if index is None or not last:
            continue
        wanted = [last // 2, last]
        try:
            plain = list(readers._read_indexed(listing, index, wanted, seek=False))
        except IndexMismatch:
            continue
        found = list(read_pyav(listing, wanted))
        assert all(np.array_equal(a, b) for a, b in zip(found, plain, strict=True)), name
    assert sum(sought) > 20


def test_there_are_ninety_kinds_and_more() -> None:
    assert len(MADE) >= 90


@pytest.mark.parametrize(
    ("name", "fps", "note"),
    [
        ("joined_ts", 25, "its time stamps go back at frame 40 (from 1.640 to 0.080 s)"),
        ("decoding_times", 10, "its time stamps go back at frame 1 (from 0.100 to 0.000 s)"),
        ("leap", 10, "its time stamps leap at frame 20 (from 1.900 to 97658.250 s)"),
        ("no_distances", 10, "40 of its 40 frames have the same time"),
    ],
)
def test_broken_time_stamps_give_way_to_frame_numbers(
    variant: Callable[[str], Path], name: str, fps: int, note: str
) -> None:
    listing = list_frames(variant(name))
    assert listing.info.fps == fps
    assert listing.info.note == f"{note}; its frames are counted, {fps} per second"
    assert list(listing.seconds) == [frame / fps for frame in range(listing.info.frames)]
    assert listing.info.duration == listing.info.frames / fps


def test_sound_time_stamps_are_not_repaired(variant: Callable[[str], Path]) -> None:
    for name in MADE:
        if name not in ("joined_ts", "decoding_times", "leap", "no_distances"):
            assert probe(variant(name)).note == "", name


def test_times_that_nothing_tells(
    variant: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rbft.video.packet_index.MAX_FPS", 0.005)
    with pytest.raises(VideoError, match=r"does not tell when its frames are shown: its time st"):
        probe(variant("h264_b_frames_mp4"))


def test_packets_are_trusted_only_where_they_prove_the_frames(
    variant: Callable[[str], Path],
) -> None:
    indexed = ["h264_b_frames_mp4", "h264_pyramid_mkv", "hevc_open_mp4", "vp9", "mpeg4_mp4"]
    assert all(list_frames(variant(name)).packets for name in indexed)
    counted = ["packed_avi", "joined_ts", "decoding_times", "no_distances", "mpeg2_mpg", "gif"]
    assert not any(list_frames(variant(name)).packets for name in counted)
    skips = {name: list_frames(variant(name)).packets for name in ("hevc_closed_mp4", *indexed[:2])}
    assert all(index and index.skips for index in skips.values())
    for name in ("hevc_layers_mp4", "h264_interlaced", "vp9"):
        index = list_frames(variant(name)).packets
        assert index
        assert not index.skips


def test_decord_gets_only_what_it_reads_right(variant: Callable[[str], Path]) -> None:
    for name in ("h264_b_frames_mp4", "h264_odd_444", "vp8", "turned_90", "turned_180"):
        assert list_frames(variant(name)).reader_independent
    for name in ("h264_interlaced", "vp9_odd", "mirrored", "transposed", "h264_refresh_mp4"):
        assert not list_frames(variant(name)).reader_independent


def _zeroed(path: Path, start: float, length: float) -> Path:
    data = bytearray(path.read_bytes())
    at, size = int(len(data) * start), int(len(data) * length)
    data[at : at + size] = bytes(size)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("ending", ["mp4", "flv"])
def test_damage_is_an_error_of_the_clip(tmp_path: Path, ending: str) -> None:
    path = make_video(
        tmp_path / f"a.{ending}", 120, 144, 192, options={"g": "40", "qp": "10", "bf": "2"}
    )
    _zeroed(path, 0.45, 0.1)
    with pytest.raises(VideoError, match=r"is damaged: frame \d+ \(at \d+\.\d s\) cannot be dec"):
        decode_video(path, SETTINGS)
    # What was decoded before is sound, and so is a clip that ends there.
    clip = decode_video(path, SETTINGS, end=2.0)
    assert numbers(clip.frames) == clip.indices
    taken = decode_video(path, replace(SETTINGS, damaged="use"))
    assert len(taken.frames) == len(taken.indices) > 10


@pytest.mark.parametrize("ending", ["mp4", "mkv", "flv"])
def test_damage_ends_at_the_next_keyframe(tmp_path: Path, ending: str) -> None:
    options = {"g": "20", "qp": "10", "bf": "2"}
    path = make_video(tmp_path / f"a.{ending}", 120, 144, 192, options=options)
    data = bytearray(path.read_bytes())
    at = int(len(data) * 0.35)
    data[at : at + 300] = bytes(300)
    path.write_bytes(data)
    listing = list_frames(path, decode=True)
    damaged = sorted(listing.damaged)
    assert 0 < len(damaged) <= 22
    assert min(damaged) > 20
    last = listing.info.frames - 1
    with pytest.raises(VideoError, match=rf"is damaged: frame {damaged[0]} "):
        decode_video(path, SETTINGS, start=listing.seconds[damaged[0]], end=-0.1)
    clip = decode_video(path, SETTINGS, start=9.0)
    assert clip.indices[-1] == last
    assert numbers(clip.frames)[-1] == 119


def test_packets_of_a_transport_stream_that_are_damaged(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.ts", 120, 144, 192, options={"qp": "10"})
    packets = path.stat().st_size // 188
    _zeroed(path, 0.45, 0.05)
    words = rf"is truncated: \d+ of its {packets} packets are damaged; \d+ frames \("
    with pytest.raises(VideoError, match=words):
        decode_video(path, SETTINGS)


CUT = {
    "h264_faststart": "it holds",
    "h264_fragmented": "it holds",
    "h264_b_frames_mkv": "it holds",
    "h264_b_frames_avi": "it holds",
    "h264_b_frames_flv": "it ends within a tag",
    "h264_b_frames_ts": "it ends within a packet",
    "mpeg2_mpg": "it ends within a packet",
    "vp9": "it holds",
    "wmv2": "it holds",
    "gif": "it has no end mark",
    "mjpeg_avi": "it holds",
}


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("share", [0.6, 0.85])
def test_files_that_were_cut_off(
    variant: Callable[[str], Path], tmp_path: Path, name: str, share: float
) -> None:
    whole = variant(name)
    path = tmp_path / f"cut{whole.suffix}"
    length = int(whole.stat().st_size * share)
    path.write_bytes(whole.read_bytes()[: length + (length % 188 == 0)])
    info = probe(path)
    assert info.truncated.startswith(CUT[name])
    assert info.truncated.endswith(f"; {info.frames} frames ({info.duration:.1f} s) are there")
    assert 0 < info.frames <= 40
    with pytest.raises(VideoError, match=f"is truncated: {CUT[name]}"):
        decode_video(path, SETTINGS)
    assert decode_video(path, replace(SETTINGS, damaged="use")).total_frames <= info.frames


def test_other_ways_to_be_cut(variant: Callable[[str], Path], tmp_path: Path) -> None:
    page = bytes(5) + b"\0" + bytes(20) + b"\1\x20"
    cases = {
        b"OggS" + page[4:26] + b"\1\x20" + bytes(31): "it ends within a page",
        b"OggS" + page[4:26] + b"\1\x20" + bytes(32): "it has no end mark",
        b"OggS\0\4" + page[6:26] + b"\1\x20" + bytes(32): "",
        b"RIFF\xff\0\0\0AVI LIST": "it holds 16 of the 263 bytes that it states",
        b"RIFF\0\0\0\0AVI LIST": "",
        b"\0\0\0\x10ftypisom\0\0\0\0\0\0\1\0mdat": "it holds 24 of the 272 bytes that it states",
        b"\0\0\0\x10ftypisom\0\0\0\0\0\0\0\0mdat": "",
        b"no video at all": "",
    }
    for data, words in cases.items():
        path = tmp_path / "a"
        path.write_bytes(data)
        assert find_truncation(path) == words


def test_a_still_in_a_long_file_is_no_leap(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 6, times=[0, 40, 80, 50_000, 50_040, 50_080])
    assert probe(path).note == ""
    assert probe(path).duration == pytest.approx(60, rel=0.01)
