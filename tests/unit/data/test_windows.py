"""Windows over a file: where they lie, and what is said of files that they are slow or wrong on."""

import os
import re
from pathlib import Path

import pytest

from rbft.clip import Clip
from rbft.data.windows import Windows
from rbft.video.frame_settings import FrameSettings
from tests.videos import make_video

FRAMES = FrameSettings(fps=2.0, min_pixels=28 * 28, max_pixels=150_000)
BY_TIME = FrameSettings(fps=2.0, min_pixels=28 * 28, max_pixels=150_000, sampling="time")


@pytest.mark.parametrize(
    ("every", "length", "duration", "expected"),
    [
        (10, 10, 30, [(0, 10), (10, 20), (20, 30)]),
        (10, 10, 35, [(0, 10), (10, 20), (20, 30), (30, 35)]),  # half of a window is there
        (10, 10, 34.9, [(0, 10), (10, 20), (20, 30)]),
        (10, 10, 30.000001, [(0, 10), (10, 20), (20, 30)]),
        (10, 10, 3, [(0, 3)]),  # the only one
        (5, 10, 20, [(0, 10), (5, 15), (10, 20)]),  # the next would be within the last
        (5, 10, 22, [(0, 10), (5, 15), (10, 20), (15, 22)]),
        (20, 10, 50, [(0, 10), (20, 30), (40, 50)]),
        (20, 10, 43, [(0, 10), (20, 30)]),
        (20, 10, 46, [(0, 10), (20, 30), (40, 46)]),
        (0.1, 0.1, 0.4, [(0, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4)]),
    ],
)
def test_where_windows_lie(
    every: float, length: float, duration: float, expected: list[tuple[float, float]]
) -> None:
    assert list(Windows(float(every), float(length)).over(float(duration))) == expected


def test_windows_of_options() -> None:
    assert Windows.given(None, None) is None
    assert Windows.given(5.0, None) == Windows(5.0, 5.0)
    assert Windows.given(5.0, 2.0) == Windows(5.0, 2.0)
    said = (
        "--window 5 is how long windows are, and --every, the seconds from one to the next, is not "
        "given. Add --every 5."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        Windows.given(None, 5.0)


def test_windows_of_a_file_are_named_by_their_seconds(tmp_path: Path) -> None:
    clip = Clip("door", make_video(tmp_path / "a.mp4", frames=45, fps=10), None, "predict")
    found = Windows(2.0, 1.0).of(clip, FRAMES)
    assert [one.id for one in found] == ["door_0_1", "door_2_3", "door_4_4.5"]
    assert {one.path for one in found} == {clip.path}
    assert [(one.start, one.end) for one in found] == [(0, 1), (2, 3), (4, 4.5)]
    assert Windows(2.0, 1.0).remarks(clip, FRAMES) == []


def test_a_file_that_cannot_be_used_stays_one_clip(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "a.mp4", options={"g": "5"}, container={"movflags": "faststart"})
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[:-700])
    gone = Clip("x", tmp_path / "gone.mp4", None, "predict")
    assert Windows(1.0, 1.0).of(gone, FRAMES) == [gone]
    assert Windows(1.0, 1.0).remarks(gone, FRAMES) == []
    broken = Clip("x", cut, None, "predict")
    assert Windows(1.0, 1.0).of(broken, FRAMES) == [broken]
    settings = FrameSettings(fps=2.0, min_pixels=784, max_pixels=150_000, damaged="use")
    assert len(Windows(1.0, 1.0).of(broken, settings)) > 1


def test_what_a_person_should_know(tmp_path: Path) -> None:
    slow = Clip("x", make_video(tmp_path / "a.avi", codec="mpeg4"), None, "predict")
    assert Windows(1.0, 1.0).remarks(slow, FRAMES) == []
    (said,) = Windows(1.0, 2.0).remarks(slow, FRAMES)
    assert said.startswith(f"{slow.path}: its frames are found only by decoding it from its start")
    # Half of the frames in the first second, the others in nine.
    times = [*range(0, 1000, 50), *range(1000, 10000, 450)]
    uneven = make_video(tmp_path / "a.mkv", frames=len(times), times=times)
    clip = Clip("x", uneven, None, "predict")
    (said,) = Windows(1.0, 2.0).remarks(clip, FRAMES)
    assert said == (
        f"{uneven}: its frame rate varies, and data.sampling frame counts seconds by the number of "
        "the frame. Add --data.sampling time for windows by the time at which frames are shown."
    )
    assert Windows(1.0, 2.0).remarks(clip, BY_TIME) == []
    by_time = Windows(5.0, 5.0).of(clip, BY_TIME)
    assert by_time[-1].end == pytest.approx(times[-1] / 1000 * len(times) / (len(times) - 1))
    os.utime(uneven, (1, 1))  # old enough to be kept in memory
    assert Windows(5.0, 5.0).of(clip, BY_TIME) == by_time
