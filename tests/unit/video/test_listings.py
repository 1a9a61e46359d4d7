"""Frame lists in memory, and files that are read from a keyframe on."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rbft.video import listings, readers
from rbft.video.frame_settings import FrameSettings
from rbft.video.listings import known_frames
from rbft.video.packet_index import FrameList, VideoError, list_frames
from rbft.video.sampling import decode_video, sample_times
from tests.videos import make_video, numbers

SETTINGS = FrameSettings(fps=2.0, min_pixels=28 * 28, max_pixels=150_000)


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "_lists", {})


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were listed, in order."""
    found: list[Path] = []

    def counted(path: Path, *, decode: bool = False) -> FrameList:
        found.append(path)
        return list_frames(path, decode=decode)

    monkeypatch.setattr(listings, "list_frames", counted)
    return found


def old(path: Path, changed: int = 1) -> Path:
    """The file, as if it had changed long ago."""
    os.utime(path, (changed, changed))
    return path


def test_a_file_is_listed_once(tmp_path: Path, listed: list[Path]) -> None:
    path = old(make_video(tmp_path / "a.mp4"))
    first, plain = known_frames(path), list_frames(path)
    assert known_frames(path) is first
    assert listed == [path]
    assert (first.info, first.path) == (plain.info, plain.path)
    assert list(first.seconds) == list(plain.seconds)
    assert first.packets is not None
    assert plain.packets is not None
    for name in ("times", "keys", "shown"):
        assert list(getattr(first.packets, name)) == list(getattr(plain.packets, name))
    for start in (0.0, 1.0, 2.5):
        decode_video(path, SETTINGS, start=start, end=start + 1)
    assert listed == [path]


def test_a_file_that_changed_is_listed_again(tmp_path: Path, listed: list[Path]) -> None:
    path = old(make_video(tmp_path / "a.mp4"))
    assert known_frames(path).info.frames == 40
    made = make_video(tmp_path / "b.mp4", frames=30)
    path.write_bytes(made.read_bytes())
    assert known_frames(path).info.frames == 30  # changed just now: it may change again
    assert known_frames(path).info.frames == 30
    assert len(listed) == 3
    old(path, 2)
    known_frames(path)
    known_frames(path)
    assert len(listed) == 4
    # Size and times as before, but not the content.
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    old(path, 2)
    known_frames(path)
    assert len(listed) == 5
    path.unlink()
    with pytest.raises(VideoError, match=r"a\.mp4 does not exist"):
        known_frames(path)


def test_the_lists_of_a_few_files_are_kept(
    tmp_path: Path, listed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [old(make_video(tmp_path / f"{n}.mp4", frames=10)) for n in range(5)]
    for path in paths:
        known_frames(path)
    known_frames(paths[1])  # used last, so that it stays
    known_frames(paths[0])
    assert listed == [*paths, paths[0]]
    known_frames(paths[1])
    assert len(listed) == 6
    monkeypatch.setattr(listings, "MOST_FRAMES", 15)
    known_frames(paths[2])
    assert [Path(key[0]) for key in listings._lists] == [paths[2]]


def test_what_decoding_has_listed_is_kept(tmp_path: Path, listed: list[Path]) -> None:
    """Else each window of a file whose packets mislead would decode all of it."""
    path = old(make_video(tmp_path / "a.mp4"))
    assert known_frames(path).packets is not None
    assert known_frames(path, decode=True).packets is None
    assert known_frames(path).packets is None
    assert len(listed) == 2


@pytest.fixture(scope="module")
def long_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("long")
    options = {"g": "50", "bf": "2", "sc_threshold": "0"}
    return [
        old(make_video(folder / name, 1500, 32, 32, 25, options=options, audio="mp4" in name))
        for name in ("a.mp4", "a.mkv")
    ]


def test_what_lies_before_is_passed_over(
    long_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many packets are read for a window at the end as for one at the beginning."""
    read: list[Any] = []
    packets = readers.stream_packets

    def counted(*given: Any) -> Iterator[Any]:
        for packet in packets(*given):
            read.append(packet.pts)
            yield packet

    monkeypatch.setattr(readers, "stream_packets", counted)
    for path in long_files:
        counts = []
        for start in (0.0, 20.0, 56.0):
            read.clear()
            found = decode_video(path, SETTINGS, start=start, end=start + 2)
            assert numbers(found.frames) == found.indices
            assert found.indices[0] == 25 * start
            counts.append(len(read))
        assert max(counts) <= 51 + 50 + 5


def test_a_file_that_does_not_lead_there_is_read_from_its_start(
    long_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_seek", lambda *_: None)
    found = decode_video(long_files[0], SETTINGS, start=50.0, end=52.0)
    assert numbers(found.frames) == found.indices


def test_what_must_be_decoded_from_its_start_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By windows in their order; the frame at the end of one is the first of the next."""
    path = old(make_video(tmp_path / "a.ts", 400, 32, 32, 25))
    opened: list[Path] = []
    open_file = readers.open_file

    def noted(path: Path) -> Any:
        opened.append(path)
        return open_file(path)

    monkeypatch.setattr(readers, "open_file", noted)
    monkeypatch.setattr(readers, "_threads", threading.local())
    for start in (0.0, 4.0, 8.0, 12.0):
        found = decode_video(path, SETTINGS, start=start, end=start + 4)
        assert numbers(found.frames) == found.indices
        assert found.indices[0] == 25 * start
    assert len(opened) == 1
    # One that lies before, another file, and another process begin at the start.
    assert numbers(decode_video(path, SETTINGS, start=2.0, end=4.0).frames)[0] == 50
    assert len(opened) == 2
    other = old(make_video(tmp_path / "b.ts", 400, 32, 32, 25, first=500))
    assert numbers(decode_video(other, SETTINGS, start=6.0, end=8.0).frames)[0] == 650
    assert len(opened) == 3
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert numbers(decode_video(other, SETTINGS, start=9.0, end=10.0).frames)[0] == 725
    assert len(opened) == 4


def test_a_long_file_stays_open(
    long_files: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(readers, "KEPT_FROM", 1000)
    monkeypatch.setattr(readers, "_threads", threading.local())
    opened: list[Path] = []
    open_file = readers.open_file

    def noted(path: Path) -> Any:
        opened.append(path)
        return open_file(path)

    monkeypatch.setattr(readers, "open_file", noted)
    path, other = long_files
    expected = None
    for start in (0.0, 40.0, 20.0, 0.0, 58.0, 0.0):
        found = decode_video(path, SETTINGS, start=start, end=start + 2)
        assert numbers(found.frames) == found.indices
        assert found.indices[0] == 25 * start
        if not start:
            expected = found.frames if expected is None else expected
            assert torch.equal(found.frames, expected)
    assert opened == [path]
    decode_video(other, SETTINGS, start=40.0, end=42.0)
    assert opened == [path, other]
    monkeypatch.setattr("os.getpid", lambda: -1)
    decode_video(other, SETTINGS, start=50.0, end=52.0)
    assert opened == [path, other, other]
    # One whose packets have the same times.
    options = {"g": "50", "bf": "2", "sc_threshold": "0"}
    same = old(make_video(tmp_path / "b.mkv", 1500, 32, 32, 25, options=options, first=5000))
    assert numbers(decode_video(same, SETTINGS, start=50.0, end=52.0).frames)[0] == 6250
    monkeypatch.setattr(readers, "KEPT_FROM", 2000)
    decode_video(other, SETTINGS)
    assert not hasattr(readers._threads, "opened")


def test_a_short_file_is_closed_once_it_is_read(tmp_path: Path) -> None:
    path = old(make_video(tmp_path / "a.ts"))
    decode_video(path, SETTINGS)
    assert not hasattr(readers._threads, "decoding")


def test_the_packet_of_a_time(long_files: list[Path]) -> None:
    index = list_frames(long_files[0]).packets
    assert index is not None
    for number in (0, 1, 2, 750, 1499):
        assert index.packet_at(index.times[number]) == number
    assert index.packet_at(None) is None
    assert index.packet_at(index.times[0] - 1) is None
    assert index.packet_at(index.times[3] + 1) is None
    assert index.packet_at(max(index.times) + 1) is None


def test_a_part_by_time_holds_the_frames_at_its_ends() -> None:
    seconds = [0.0, 1.0, 1.0, 2.0, 4.0]
    indices, used, _ = sample_times(seconds, 5.0, SETTINGS, start=1.0, end=2.0)
    assert (used, indices[0], indices[-1]) == (3, 2, 3)
    assert sample_times(seconds, 5.0, SETTINGS, start=1.5, end=4.0)[1] == 2
    with pytest.raises(ValueError, match=r"^no frame lies between start 2\.5 s and end 3\.5 s; th"):
        sample_times(seconds, 5.0, SETTINGS, start=2.5, end=3.5)
