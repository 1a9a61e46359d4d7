"""Masks are drawn before frames are resized, and never found where none were asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rbft.masking.boxes import Box
from rbft.masking.clip_mask import ClipMask
from rbft.video.frame_cache import FrameCache
from rbft.video.frame_settings import FrameSettings
from rbft.video.sampling import decode_video
from tests.videos import make_video, numbers

SETTINGS = FrameSettings(fps=1.0, min_pixels=784, max_pixels=56 * 56)
MASK = ClipMask(
    "clip",
    {frame: (Box(0.5, 0.5, 1.0, 1.0),) for frame in range(40)},
    "objects",
    "constant",
)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return make_video(tmp_path / "clip.mp4", frames=40, height=96, width=128)


@dataclass
class Spy:
    """Notes what is drawn on, and paints it white."""

    seen: list[tuple[int, tuple[int, ...], int]]
    cells: tuple[int, int] = (0, 0)
    key: str = "spy"

    def painter(self, indices: Sequence[int], cells: tuple[int, int]) -> "Spy":
        self.cells = cells
        return self

    def __call__(self, frame: int, picture: np.ndarray) -> np.ndarray:
        shown = torch.from_numpy(picture).permute(2, 0, 1)[None]
        self.seen.append((frame, picture.shape, numbers(shown)[0]))
        return np.full_like(picture, 255)

    @property
    def report(self) -> dict[str, Any]:
        return {"painted": len(self.seen)}


@pytest.mark.parametrize(("reader", "fps"), [("pyav", 1.0), ("pyav", 10.0), ("decord", 1.0)])
def test_every_frame_is_drawn_on_before_it_is_resized(video: Path, reader: str, fps: float) -> None:
    spy, settings = Spy([]), replace(SETTINGS, fps=fps)
    made = decode_video(video, replace(settings, reader=reader), mask=spy)
    plain = decode_video(video, settings)
    assert len(made.indices) == 4 * fps  # more than are resized at a time, and fewer
    assert [frame for frame, _, _ in spy.seen] == made.indices == plain.indices
    assert [shown for _, _, shown in spy.seen] == made.indices  # each its own picture
    assert {shape for _, shape, _ in spy.seen} == {(96, 128, 3)}
    height, width = made.frames.shape[2:]
    assert spy.cells == (height // 28, width // 28)
    assert (made.frames == 255).all()
    assert made.masked == {"painted": 4 * fps}
    assert made.shown == {**plain.shown, "masked": {"painted": 4 * fps}}
    assert "masked" not in plain.shown


def test_a_mask_covers_its_part_of_the_resized_frame(video: Path) -> None:
    plain, made = decode_video(video, SETTINGS), decode_video(video, SETTINGS, mask=MASK)
    height, width = made.frames.shape[2:]
    changed = (plain.frames != made.frames).any(dim=1)
    # But for the resizing, which looks a few pixels around.
    assert not changed[:, : height // 2 - 3].any()
    assert not changed[:, :, : width // 2 - 3].any()
    assert (made.frames[:, :, height // 2 + 3 :, width // 2 + 3 :] == 128).all()


def test_masked_and_unmasked_frames_never_stand_for_each_other(video: Path, tmp_path: Path) -> None:
    cache = FrameCache(tmp_path / "frames", 10**8)
    plain = decode_video(video, SETTINGS).frames
    masks = [
        None,
        MASK,
        replace(MASK, fill="blur"),
        *(replace(MASK, kind="random", repeat=repeat) for repeat in range(2)),
        replace(MASK, kind="random", seed=1),
        replace(MASK, boxes={frame: (Box(0.0, 0.0, 0.5, 0.5),) for frame in range(40)}),
    ]
    made = [cache.get_or_decode(video, SETTINGS, mask=mask) for mask in masks]
    again = [cache.get_or_decode(video, SETTINGS, mask=mask) for mask in masks]
    assert (made[0].frames == plain).all()
    assert len({one.frames.numpy().tobytes() for one in made}) == len(masks)
    for one, kept in zip(made, again, strict=True):
        assert (one.frames == kept.frames).all()
        assert one.shown == kept.shown
    assert len(list((tmp_path / "frames").glob("*.clip"))) == len(masks)
