import numpy as np
import pytest
import torch

from rbft.attention.maps import VideoMap, slice_frames, video_map


@pytest.mark.parametrize(
    ("indices", "slices"),
    [
        ([0, 4, 8, 12], [[0, 1], [2, 3]]),
        ([0, 0], [[0]]),  # a file of one frame
        ([0, 4, 8], [[0, 1], [2]]),
        ([0, 4, 8, 8], [[0, 1], [2]]),  # filled up with the last one
        ([0, 0, 0, 1], [[0], [2, 3]]),  # a slice is never without a frame
    ],
)
def test_frames_of_a_slice(indices: list[int], slices: list[list[int]]) -> None:
    assert slice_frames(indices) == slices


def test_the_map_is_of_the_video_alone_in_raster_order() -> None:
    row = torch.tensor([0.4, 0.1, 0.2, 0.05, 0.05, 0.2])
    video = torch.tensor([False, True, True, True, True, False])
    made = video_map(row, video, (1, 2, 2))
    assert made.video_share == pytest.approx(0.4)
    np.testing.assert_allclose(made.values, [[[0.25, 0.5], [0.125, 0.125]]])


def test_what_every_prompt_looks_at_cancels() -> None:
    generic = VideoMap(np.array([[[0.7, 0.1, 0.2]]]), 0.5)
    own = VideoMap(np.array([[[0.7, 0.2, 0.1]]]), 0.4)
    made = own.relative_to(generic)
    np.testing.assert_allclose(made.values, [[[1 / 3.5, 2 / 3.5, 0.5 / 3.5]]])
    assert made.video_share == 0.4


def test_a_cell_that_the_generic_prompt_passes_over() -> None:
    generic = VideoMap(np.array([[[1.0, 0.0]]]), 0.5)
    made = VideoMap(np.array([[[0.5, 0.5]]]), 0.5).relative_to(generic)
    assert np.isfinite(made.values).all()
    assert made.values.argmax() == 1
