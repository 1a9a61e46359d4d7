from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from rbft.attention.pictures import (
    LEAST,
    MARGIN,
    STRENGTH,
    RunMap,
    ShownClip,
    overlay,
    scaled,
    shown_size,
    write_film,
    write_strip,
)
from rbft.masking.boxes import Box

GREY = 100


def shown_clip(frames: int = 4, boxes: bool = False) -> ShownClip:
    pictures = np.full((frames, 84, 84, 3), GREY, dtype=np.uint8)
    box = [Box(0.0, 0.5, 0.5, 1.0, "bear")] if boxes else None
    slices = [[n, n + 1] for n in range(0, frames, 2)]
    seconds = [0.0, 0.4, 2.0, 3.3, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0][:frames]
    return ShownClip("bear\udcff", "abnormal", pictures, seconds, slices, [box] * frames)


def hot(where: tuple[int, int, int], slices: int = 2) -> RunMap:
    values = np.full((slices, 3, 3), 0.01)
    values[where] = 0.5
    return RunMap(f"hot{where}", values, "prediction: abnormal (0.91)")


def painted(value: float, colours: str = "viridis") -> np.ndarray:
    """A grey pixel under a value of the map."""
    paint = np.array(colormaps[colours](value)[:3]) * 255
    return STRENGTH * paint + (1 - STRENGTH) * GREY


def test_a_map_is_scaled_from_0_to_1() -> None:
    values = np.array([[[0.1, 0.3], [0.2, 0.2]]])
    np.testing.assert_allclose(scaled(values), [[[0, 1], [0.5, 0.5]]])
    assert not scaled(np.full((1, 2, 2), 0.3)).any()


@pytest.mark.parametrize("colours", ["viridis", "magma"])
def test_an_overlay_has_the_colours_of_its_cells(colours: Any) -> None:
    heat = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 0.5]])
    frame = np.full((56, 84, 3), GREY, dtype=np.uint8)
    found = overlay(frame, heat, (168, 252), colours).astype(float)
    for row, column in np.ndindex(heat.shape):
        middle = found[row * 84 + 42, column * 84 + 42]
        # Between two pixels, up to the next cell.
        np.testing.assert_allclose(middle, painted(float(heat[row, column]), colours), atol=5)


def test_the_frame_is_seen_in_grey_through_the_map() -> None:
    frame = np.zeros((56, 56, 3), dtype=np.uint8)
    frame[:28] = (255, 0, 0)
    found = overlay(frame, np.zeros((2, 2)), (56, 56), "viridis").astype(int)
    light = (found[0] - found[-1])[0]
    assert light.tolist() == [light[0]] * 3  # the same for each colour
    assert light[0] > 20


@pytest.mark.parametrize(
    ("frame", "shown"), [((84, 84), (168, 168)), ((364, 420), (192, 222)), ((180, 90), (180, 90))]
)
def test_small_frames_are_enlarged_and_large_ones_are_not(
    frame: tuple[int, int], shown: tuple[int, int]
) -> None:
    assert shown_size(*frame, 192) == shown
    assert shown[0] >= LEAST


def test_a_strip_has_a_row_for_each_run_and_the_heat_where_it_is(tmp_path: Path) -> None:
    first, second = hot((0, 0, 0)), hot((1, 2, 1))
    clip = shown_clip()
    write_strip(tmp_path / "strip.png", clip, [first, second], "viridis", plain=True)
    found = np.asarray(Image.open(tmp_path / "strip.png")).astype(int)
    bright = abs(found - painted(1.0).round()).sum(-1) < 12
    rows, columns = np.nonzero(bright)
    inside = columns < MARGIN + 4 * 176  # without the colour bar
    rows, columns = rows[inside] - MARGIN - 26, columns[inside] - MARGIN
    # A row of 168 pixels with 22 of title above and 8 below; a frame every 176.
    spots = {(int(r) // 198, int(c) // 176) for r, c in zip(rows, columns, strict=True)}
    assert spots == {(1, 0), (1, 1), (2, 2), (2, 3)}  # both frames of the slice
    cells = {
        (int(r % 198 - 22) // 56, int(c % 176) // 56) for r, c in zip(rows, columns, strict=True)
    }
    assert cells == {(0, 0), (2, 1)}


def test_boxes_are_drawn_where_they_are_known(tmp_path: Path) -> None:
    pictures = []
    for known in (False, True):
        write_strip(tmp_path / "a.png", shown_clip(boxes=known), [hot((0, 0, 0))], "viridis")
        pictures.append(np.asarray(Image.open(tmp_path / "a.png")).astype(int))
    apart = abs(pictures[0] - pictures[1]).sum(-1) > 0
    top, left = MARGIN + 26 + 22, MARGIN
    rows, columns = np.nonzero(apart)
    assert rows.min() >= top + 80
    assert rows.max() <= top + 168
    assert columns.min() == left
    assert {int(c - left) // 176 for c in columns} == {0, 1, 2, 3}
    assert max(int(c - left) % 176 for c in columns) <= 86


def test_a_long_clip_shows_eight_frames_from_first_to_last(tmp_path: Path) -> None:
    clip = shown_clip(10)
    for number, frame in enumerate(clip.frames):
        frame[:] = 20 * number
    write_strip(tmp_path / "a.png", clip, [hot((0, 0, 0), 5)], "viridis", plain=True)
    found = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    shades = [int(found[MARGIN + 26 + 22 + 80, MARGIN + 176 * n + 80, 0]) // 20 for n in range(8)]
    assert shades == [0, 1, 3, 4, 5, 6, 8, 9]


def test_wide_frames_are_fewer(tmp_path: Path) -> None:
    clip = shown_clip(10)
    wide = np.full((10, 252, 588, 3), GREY, dtype=np.uint8)
    write_strip(tmp_path / "a.png", replace(clip, frames=wide), [hot((0, 0, 0), 5)], "viridis")
    with Image.open(tmp_path / "a.png") as found:
        assert found.width == 2 * MARGIN + 3 * (448 + 8) - 8 + 14 + 64


def test_the_colour_bar_goes_from_1_down_to_0(tmp_path: Path) -> None:
    write_strip(tmp_path / "a.png", shown_clip(), [hot((0, 0, 0))], "viridis")
    found = np.asarray(Image.open(tmp_path / "a.png")).astype(float)
    left, top = MARGIN + 4 * 176 - 8 + 16, MARGIN + 26 + 22
    for place, value in ((0, 1.0), (83, 0.5), (167, 0.0)):
        expected = np.array(colormaps["viridis"](value)[:3]) * 255
        np.testing.assert_allclose(found[top + place, left + 5], expected, atol=3)


def test_a_film_has_every_frame_and_both_runs(tmp_path: Path) -> None:
    write_film(tmp_path / "a.mp4", shown_clip(), [hot((0, 0, 0)), hot((1, 2, 1))], "viridis")
    with av.open(tmp_path / "a.mp4") as container:
        assert container.streams.video[0].average_rate == 2
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 4
    bright = [
        np.nonzero((abs(frame.astype(int) - painted(1.0).round()).sum(-1) < 40)[:, :420])
        for frame in frames
    ]
    middle = 210
    assert all(columns.max() < middle for _, columns in bright[:2])
    assert all(columns.min() > middle for _, columns in bright[2:])
