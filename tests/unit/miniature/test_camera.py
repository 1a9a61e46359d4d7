import dataclasses

import numpy as np
import pytest

from rbft.masking.boxes import Box
from rbft.miniature import camera
from rbft.miniature.camera import SIZE, SPREAD, film, placed_sprites
from rbft.miniature.scene import ACTIONS, GENERAL, TARGET
from rbft.miniature.sprites import BITMAPS, sprite
from rbft.miniature.world import TIMES, true_boxes
from tests.unit.miniature.test_scene import SCENE

DAY = dataclasses.replace(SCENE, night=False, weather="clear")


def test_same_scene_gives_the_same_pixels():
    first, again = (film(SCENE, TARGET, [0.0, 0.5]) for _ in range(2))
    assert first.shape == (2, 84, 84, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, film(dataclasses.replace(SCENE, seed=8), TARGET, [0.0, 0.5]))


def test_every_bitmap_is_twelve_by_twelve_and_stands_on_the_ground():
    for name, bitmap in BITMAPS.items():
        rows = bitmap.split()
        assert [len(row) for row in rows] == [12] * 12, name
        assert set("".join(rows)) <= set("#o+."), name
        assert rows[-1].strip("."), name


def test_sprite_has_its_colour_where_the_bitmap_has_a_body():
    picture = sprite("package", "red", 21)
    assert picture[-1, 10].tolist() == [205, 45, 40, 1]
    assert picture[0, 0].tolist() == [0, 0, 0, 0]


def test_the_object_turns_red_pixels_up_where_it_stands():
    frame = film(DAY, GENERAL, [0.0])[0].astype(int)
    red = (frame[..., 0] == 205) & (frame[..., 1] == 45)
    columns = np.flatnonzero(red.any(axis=0))
    assert columns.min() >= 42
    assert columns.max() < 42 + 21


def test_mirrored_scene_has_its_sprites_on_the_other_side():
    frame = film(dataclasses.replace(DAY, mirrored=True), GENERAL, [0.0])[0].astype(int)
    columns = np.flatnonzero(((frame[..., 0] == 205) & (frame[..., 1] == 45)).any(axis=0))
    assert columns.min() >= 84 - 21 - 42
    assert columns.max() < 84 - 42


def test_night_is_darker_and_the_target_camera_is_duller():
    day = film(DAY, GENERAL, [0.5]).astype(float)
    night = film(dataclasses.replace(DAY, night=True), GENERAL, [0.5])
    dull = film(DAY, TARGET, [0.5]).astype(float)
    assert night.mean() < 0.6 * day.mean()
    assert np.ptp(dull, axis=-1).mean() < 0.8 * np.ptp(day, axis=-1).mean()


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("name", [SCENE.subject, SCENE.object])
def test_boxes_are_those_of_the_pixels_that_a_sprite_changes(action, mirrored, name, monkeypatch):
    """And of the pixels around them that take its colour when the film is encoded."""
    scene = dataclasses.replace(DAY, action=action, mirrored=mirrored)
    monkeypatch.setattr(camera, "placed_sprites", lambda *_: [])
    empty = film(scene, GENERAL, TIMES)
    alone = lambda *of: [one for one in placed_sprites(*of) if one.name == name]  # noqa: E731
    monkeypatch.setattr(camera, "placed_sprites", alone)
    frames = film(scene, GENERAL, TIMES)
    seen = 0
    for frame, boxes in true_boxes(scene).items():
        rows, columns = np.nonzero((frames[frame] != empty[frame]).any(axis=-1))
        found = [box.rect(SIZE, SIZE) for box in boxes if box.label == name]
        if not len(rows):
            assert found == []
            continue
        first, last = (
            [own.min() - SPREAD for own in (rows, columns)],
            [own.max() + 1 + SPREAD for own in (rows, columns)],
        )
        assert found == [tuple(np.clip([*first, *last], 0, SIZE).tolist())]
        seen += 1
    assert seen > 5


def test_a_sprite_out_of_the_picture_has_no_box():
    found = true_boxes(dataclasses.replace(SCENE, action="takes away", delay=0.0))
    assert sorted(box.label for box in found[10]) == sorted([SCENE.object, SCENE.subject])
    assert isinstance(found[10][0], Box)
    assert found[23] == []  # both have gone
