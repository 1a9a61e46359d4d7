import numpy as np
import pytest

from rbft.attention.scores import box_scores
from rbft.masking.boxes import Box

INDICES, SLICES = [0, 4, 8, 12], [[0, 1], [2, 3]]
# The upper left of 4 x 5 cells, exactly.
CORNER = Box(0.0, 0.0, 1 / 5, 1 / 4)


def test_scores_of_a_map_that_lies_in_the_box() -> None:
    values = np.full((2, 4, 5), 0.0)
    values[:, 0, 0] = 0.4
    values[:, 3, 4] = 0.1
    known = {index: [CORNER] for index in INDICES}
    found = box_scores(values, known, INDICES, SLICES)
    assert found["mass"] == pytest.approx(0.8)
    assert found["lift"] == pytest.approx(0.8 * 20)
    assert found["pointing"] == found["pointing_slices"] == 1
    assert found["pointing_chance"] == pytest.approx(4 / 20)  # itself and three beside it
    assert found["auroc"] == pytest.approx(1)


def test_the_peak_of_the_clip_and_of_each_slice() -> None:
    values = np.full((2, 4, 5), 0.01)
    values[0, 1, 1] = 0.2  # beside the box: a hit
    values[1, 2, 0] = 0.5  # two tokens below it
    known = {index: [CORNER] for index in INDICES}
    found = box_scores(values, known, INDICES, SLICES)
    assert found["pointing"] == 0
    assert found["pointing_slices"] == 0.5


def test_a_uniform_map_has_a_lift_of_one() -> None:
    known = {index: [Box(0.1, 0.3, 0.77, 0.9), Box(0.3, 0.2, 0.4, 0.5)] for index in INDICES}
    found = box_scores(np.full((2, 4, 5), 1 / 40), known, INDICES, SLICES)
    assert found["lift"] == pytest.approx(1)
    assert found["auroc"] == pytest.approx(0.5)


def test_slices_that_nobody_looked_at_do_not_count() -> None:
    values = np.full((2, 4, 5), 0.01)
    values[1] = 9.0
    whole = box_scores(values[:1], {0: [CORNER], 4: [CORNER]}, INDICES[:2], SLICES[:1])
    assert whole["mass"] == pytest.approx(1 / 20)  # of what is there, whatever it adds up to
    assert box_scores(values, {0: [CORNER], 4: [CORNER]}, INDICES, SLICES) == whole


def test_a_slice_without_an_object_is_no_place_to_point_at() -> None:
    values = np.full((2, 4, 5), 0.01)
    values[0, 0, 0] = 0.5
    known = {0: [CORNER], 4: [CORNER], 8: [], 12: []}
    found = box_scores(values, known, INDICES, SLICES)
    assert found["pointing_slices"] == 1
    assert found["pointing_chance"] == pytest.approx(4 / 40)


@pytest.mark.parametrize("known", [{}, {0: [], 4: []}, {99: [CORNER]}])
def test_without_an_object_there_are_no_scores(known: dict) -> None:
    assert box_scores(np.full((2, 4, 5), 0.1), known, INDICES, SLICES) == {}
