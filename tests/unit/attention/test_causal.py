import numpy as np
import pytest
import torch

from rbft.attention.causal import (
    GREY,
    CausalSettings,
    causal_scores,
    grey_out,
    log_odds,
    random_cells,
    top_cells,
)
from tests.examples import random_video


@pytest.mark.parametrize(
    ("share", "total", "cells"),
    [(0.2, 27, 5), (0.01, 27, 1), (0.99, 4, 3), (0.5, 2, 1), (0.2, 1, 0)],
)
def test_how_many_cells_are_masked(share: float, total: int, cells: int) -> None:
    assert CausalSettings(share).cells(total) == cells


def test_top_cells_are_those_of_the_highest_values() -> None:
    values = np.random.default_rng(0).random((2, 3, 4))
    chosen = top_cells(values, 7)
    assert chosen.sum() == 7
    assert values[chosen].min() > values[~chosen].max()
    assert top_cells(np.zeros((1, 2, 2)), 2).ravel().tolist() == [True, True, False, False]


def test_random_cells_are_as_many_and_the_same_for_every_model() -> None:
    settings = CausalSettings(repeats=4)
    drawn = random_cells((3, 4, 5), 12, "clip", settings)
    assert [cells.sum() for cells in drawn] == [12] * 4
    assert len({cells.tobytes() for cells in drawn}) == 4
    again = random_cells((3, 4, 5), 12, "clip", settings)
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))
    for clip, seed in (("other", 0), ("clip", 1)):
        others = random_cells((3, 4, 5), 12, clip, CausalSettings(repeats=4, seed=seed))
        assert not any(np.array_equal(a, b) for a, b in zip(drawn, others, strict=True))


def test_random_cells_lie_anywhere() -> None:
    drawn = random_cells((2, 3, 3), 4, "clip", CausalSettings(repeats=500))
    share = np.mean(drawn, axis=0)
    assert abs(share - 4 / 18).max() < 0.08


def test_grey_cells_are_grey_in_both_frames_and_nowhere_else() -> None:
    video = random_video("a", (4, 56, 84))
    cells = np.zeros((2, 2, 3), dtype=bool)
    cells[1, 0, 2] = True
    found = grey_out(video, cells).frames
    assert (found[2:, :, :28, 56:] == GREY).all()
    expected = video.frames.clone()
    expected[2:, :, :28, 56:] = GREY
    assert torch.equal(found, expected)
    assert not torch.equal(found, video.frames)


def test_log_odds_against_all_others() -> None:
    scores = torch.tensor([[-1.0, -2.0, -3.5], [0.0, -0.1, 4.0]])
    shares = scores.softmax(-1)[:, 1]
    expected = (shares / (1 - shares)).log()
    torch.testing.assert_close(log_odds(scores, 1), expected)


def test_the_drop_is_that_beyond_random_cells() -> None:
    found = causal_scores(before=2.0, top=-1.0, drawn=[1.0, 2.0])
    assert found == {"drop": 2.5, "drop_top": 3.0, "drop_random": 0.5}
