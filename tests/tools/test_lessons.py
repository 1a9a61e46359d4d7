import numpy as np
import pytest
import torch

from rbft.miniature.scene import GENERAL, draw_scene
from tools.miniature_base import lessons
from tools.miniature_base.base_model import new_processor


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(0)
    return [draw_scene(rng, GENERAL) for _ in range(2)]


@pytest.fixture(scope="module")
def frames(scenes):
    return lessons.filmed(scenes, [lessons.TIMES] * 2)


def test_patches_against_the_video_processor(frames):
    processor = new_processor().video_processor
    theirs = processor(videos=list(frames), return_tensors="pt", do_sample_frames=False)
    ours = lessons.patches(torch.from_numpy(frames).float())
    assert theirs["video_grid_thw"].tolist() == [list(lessons.GRID)] * 2
    torch.testing.assert_close(ours.flatten(0, 1), theirs["pixel_values_videos"])


def test_augmented_frames_stay_pixels_and_follow_the_generator(frames):
    first, again, other = (
        lessons.augment(frames, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first.min() >= 0
    assert first.max() <= 255
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
