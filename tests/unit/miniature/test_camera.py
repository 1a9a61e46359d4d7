import dataclasses

import numpy as np

from rbft.miniature.camera import film
from rbft.miniature.scene import GENERAL, TARGET
from rbft.miniature.sprites import BITMAPS, sprite
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
