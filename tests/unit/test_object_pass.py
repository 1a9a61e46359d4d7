from fractions import Fraction
from pathlib import Path

import pytest

from rbft.clip import Clip
from rbft.object_pass import single_frame
from rbft.video.frame_settings import FrameSettings
from rbft.video.sampling import decode_video, probe, sample_indices
from tests.videos import make_video, numbers

SETTINGS = FrameSettings(fps=1.0, min_pixels=784, max_pixels=56 * 56)


@pytest.mark.parametrize("rate", [4, 25, Fraction(30000, 1001)])
def test_a_single_frame_is_that_frame_twice(tmp_path: Path, rate: Fraction | int) -> None:
    path = make_video(tmp_path / "clip.mp4", frames=40, fps=rate)
    clip, fps = Clip("a", path, 1, "test"), probe(path).fps
    for frame in range(40):
        one = single_frame(clip, frame, fps)
        indices = sample_indices(40, fps, SETTINGS, start=one.start, end=one.end)
        assert indices == [frame, frame]
    one = single_frame(clip, 39, fps)
    assert (one.id, one.label, one.path) == ("a frame 39", None, path)
    assert numbers(decode_video(path, SETTINGS, start=one.start, end=one.end).frames) == [39, 39]


def test_long_videos_have_every_frame_too() -> None:
    """Seconds are rounded, frames are not."""
    clip = Clip("a", Path("a.mp4"), None, "test")
    for fps in (29.97002997, 59.94, 23.976023976):
        for frame in (0, 1, 99_998, 199_999):
            one = single_frame(clip, frame, fps)
            found = sample_indices(200_000, fps, SETTINGS, start=one.start, end=one.end)
            assert found == [frame, frame]
