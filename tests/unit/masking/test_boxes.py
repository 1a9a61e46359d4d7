import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbft.masking.boxes import Box, overlapping_groups, raster


def test_corners_in_any_order_are_cut_off_at_the_frame() -> None:
    assert Box.clipped(0.9, 0.2, 0.1, 0.6) == Box(0.1, 0.2, 0.9, 0.6)
    assert Box.clipped(-0.5, 0.5, 0.25, 7.0, "dog", 0.5) == Box(0.0, 0.5, 0.25, 1.0, "dog", 0.5)


@pytest.mark.parametrize(
    "edges",
    [
        (0.2, 0.2, 0.2, 0.9),
        (0.1, 0.3, 0.9, 0.3),
        (1.1, 0.1, 1.4, 0.9),
        (0.1, float("nan"), 1.0, 1.0),
    ],
)
def test_what_has_no_area_within_the_frame_is_no_box(
    edges: tuple[float, float, float, float],
) -> None:
    assert Box.clipped(*edges) is None


def test_a_box_outside_of_the_frame_is_an_error() -> None:
    message = (
        "A box (0.5, 0, 1.25, 1) must lie within the frame and have an area: 0 <= x1 < x2 <= 1 and "
        "0 <= y1 < y2 <= 1, as shares of its width and height."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Box(0.5, 0.0, 1.25, 1.0)


def test_a_box_on_disk_is_the_same_box() -> None:
    box = Box(1 / 3, 0.125, 2 / 3, 0.75, "person", 0.51234567)
    assert box.as_list() == [0.333333, 0.125, 0.666667, 0.75, "person", 0.512346]
    assert Box.of_list(box.as_list()) == Box(0.333333, 0.125, 0.666667, 0.75, "person", 0.512346)
    assert Box.of_list([0, 0, 1, 1, "", None]) == Box(0.0, 0.0, 1.0, 1.0)
    for wrong in ([0, 0, 1, 1, ""], [0, 0, 1, "a", "", None], [0, 0, None, 1, "", None]):
        with pytest.raises(ValueError):  # noqa: PT011 (whose words are Python's)
            Box.of_list(wrong)


def test_pixels_are_those_that_the_box_touches() -> None:
    assert Box(0.25, 0.5, 0.75, 1.0).rect(8, 4) == (4, 1, 8, 3)
    assert Box(0.26, 0.51, 0.74, 0.99).rect(8, 4) == (4, 1, 8, 3)  # rounded outwards
    assert Box(0.45, 0.2, 0.55, 0.8).rect(8, 4) == (1, 1, 7, 3)
    assert Box(0.999, 0.999, 1.0, 1.0).rect(10, 10) == (9, 9, 10, 10)
    assert Box(0.5, 0.5, 0.5 + 1e-9, 0.5 + 1e-9).rect(10, 10) == (5, 5, 6, 6)
    for size in range(1, 200):  # thirds and the like are not exact
        for edge in range(size):
            box = Box(edge / size, 0.0, (edge + 1) / size, 1.0)
            assert box.rect(7, size) == (0, edge, 7, edge + 1)


rects = st.lists(
    st.tuples(*[st.integers(0, 9)] * 2, *[st.integers(1, 5)] * 2).map(
        lambda four: (four[0], four[1], four[0] + four[2], four[1] + four[3])
    ),
    max_size=6,
)


@given(rects)
def test_the_union_and_its_groups(found: list[tuple[int, int, int, int]]) -> None:
    pixels = {
        (y, x)
        for top, left, bottom, right in found
        for y in range(top, bottom)
        for x in range(left, right)
    }
    assert {(int(y), int(x)) for y, x in np.argwhere(raster(found, 14, 14))} == pixels
    groups = overlapping_groups(found)
    assert sorted(place for group in groups for place in group) == list(range(len(found)))
    masks = [raster([found[place] for place in group], 14, 14) for group in groups]
    assert not masks or np.sum(masks, axis=0).max() <= 1  # groups share no pixel
    for group in groups:  # and each hangs together
        reached = {group[0]}
        while more := {
            b
            for b in group
            for a in reached
            if b not in reached and (raster([found[a]], 14, 14) & raster([found[b]], 14, 14)).any()
        }:
            reached |= more
        assert reached == set(group)
