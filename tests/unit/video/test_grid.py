"""The size of a clip by the scan alone against what decoding and the processor make of it."""

from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from rbft.clip import Clip
from rbft.data.base import VideoDataModule
from rbft.data.dataset import Example
from rbft.data.sampler import SampleSlot
from rbft.estimate.token_counts import count_tokens
from rbft.stages import STAGES
from tests.examples import CARD, DATA_SETTINGS, collator
from tests.videos import make_video

FILES: dict[str, dict[str, Any]] = {
    "landscape.mp4": {"height": 180, "width": 320, "frames": 75, "fps": 25},
    "portrait.mp4": {"height": 322, "width": 182, "frames": 75, "fps": 30},
    "odd.mp4": {"height": 97, "width": 131, "pixels": "yuv444p"},
    "uneven.mkv": {"times": list(accumulate(10 + 37 * n % 290 for n in range(60))), "frames": 60},
    "phone.mp4": {"rotation": 90},
    "without_keyframe.mp4": {"frames": 40, "drop": 3, "options": {"g": "8"}},
    "one_frame.mp4": {"frames": 1},
    "two_frames.mp4": {"frames": 2},
    "long.mp4": {"frames": 300, "height": 56, "width": 56, "fps": 5},
}
PARTS: list[tuple[float | None, float | None]] = [
    (None, None),
    (0.25, 0.75),
    (0.1, None),
    (None, -0.2),
]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"fps": 7.3, "max_frames": 32},
    {"num_frames": 7},
    {"sampling": "time"},
    {"min_pixels": 128 * 28 * 28, "max_pixels": 360 * 420, "min_frames": 4},
]


class Files(VideoDataModule):
    """Every file, whole and in parts."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        CARD.save(folder / "card.yaml")
        super().__init__(
            card=folder / "card.yaml",
            cache_folder=folder / "cache",
            **{**DATA_SETTINGS, **settings},
        )
        self.folder = folder

    def read(self) -> list[Clip]:
        return [
            Clip(f"{name}_{number}", self.folder / name, 0, "test", start=start, end=end)
            for name in FILES
            for number, (start, end) in enumerate(PARTS)
        ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("grid")
    for name, how in FILES.items():
        make_video(root / name, **how)
    return root


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_grid_is_what_the_collator_makes(
    folder: Path, qwen: Path, settings: dict[str, Any]
) -> None:
    data, make = Files(folder, on_missing="skip", min_coverage=0.1, **settings), collator(qwen)
    clips = data.clips("test")
    assert {clip.path.name for clip in clips} == set(FILES)
    for clip in clips:
        batch = make([Example(clip, data.reader.decode(clip), None, SampleSlot(0))])
        assert [list(data.files.grid(clip))] == batch.video["video_grid_thw"].tolist(), clip


@pytest.mark.parametrize("more", [{}, {"fps": 2.0, "max_frames": 7}, {"num_frames": 6}])
def test_tokens_of_prompts_that_say_the_times(
    folder: Path, backbones: dict[str, Path], more: dict[str, Any]
) -> None:
    """Without decoding, for tokens of 32 pixels: what the collator makes of the decoded clip."""
    make = collator(backbones["qwen3_vl"], target_stage="label")
    data = Files(folder, on_missing="skip", min_coverage=0.1, **more)
    data.resize_to_tokens(32)
    clips = data.clips("test")
    counts = count_tokens(data, make, clips, {}, 0)
    for clip in clips:
        video, own = data.reader.decode(clip), counts[clip.id]
        assert not video.frames.shape[2] % 32
        ids = make.prompt_ids(STAGES["label"].prompt(make.card, clip), video.pair_times, own.video)
        assert own.video == video.frames[0::2, 0].numel() // 32**2
        assert len(ids) == own.video + own.prompt


def test_a_video_that_was_not_scanned(folder: Path) -> None:
    data = Files(folder, on_missing="skip", min_coverage=0.1)
    known, clip = (
        data.files.grid(data.clips("test")[0]),
        Clip("x", folder / "landscape.mp4", None, "predict"),
    )
    assert data.files.grid(clip) == known


def test_a_clip_without_a_file(folder: Path) -> None:
    data = Files(folder)
    gone = Clip("gone", folder / "gone.mp4", 0, "test")
    data.__dict__["all_clips"] = [gone]
    with pytest.raises(
        ValueError, match=rf"^Clip gone is not usable: {folder}/gone\.mp4 no such file\.$"
    ):
        data.files.grid(gone)
