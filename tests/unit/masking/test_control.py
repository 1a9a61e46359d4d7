import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rbft.masking.boxes import Rect, raster
from rbft.masking.control import ControlTrack, Shape, free_places, shapes_of

CELLS = (4, 5)
SIZE = (40, 50)


@st.composite
def objects(draw: st.DrawFn) -> list[tuple[Rect, str]]:
    found = []
    for number in range(draw(st.integers(0, 4))):
        high, wide = draw(st.integers(1, 30)), draw(st.integers(1, 30))
        top = draw(st.integers(0, SIZE[0] - high))
        left = draw(st.integers(0, SIZE[1] - wide))
        found.append(((top, left, top + high, left + wide), f"thing {number}"))
    return found


@given(objects(), st.integers(0, 3))
@settings(max_examples=60)
def test_as_much_is_masked_and_nothing_of_the_objects(
    found: list[tuple[Rect, str]], repeat: int
) -> None:
    mask, way = ControlTrack("clip", repeat, 0).draw(7, found, SIZE, CELLS)
    taken = raster([rect for rect, _ in found], *SIZE)
    assert mask.shape == SIZE
    assert not (mask & taken).any()
    area, free = int(taken.sum()), int((~taken).sum())
    if way == "short":
        assert area > free == mask.sum()
    else:
        assert mask.sum() == area <= free
    assert (way == "empty") == (not found)
    # In the objects' shapes exactly where there is a place for the largest of them at all.
    (largest, *_) = [*shapes_of(found), None]
    if largest is not None and not places_by_trying(largest, taken):
        assert way in ("cells", "short")


def places_by_trying(shape: Shape, blocked: np.ndarray) -> list[tuple[int, int]]:
    """Every place, one by one."""
    found, (high, wide) = [], shape.size
    for y in range(blocked.shape[0] - high + 1):
        for x in range(blocked.shape[1] - wide + 1):
            if not (raster(shape.at((y, x)), *blocked.shape) & blocked).any():
                found.append((y, x))
    return found


@given(objects(), objects())
@settings(max_examples=25)
def test_all_free_places_are_found_and_no_other(
    found: list[tuple[Rect, str]], other: list[tuple[Rect, str]]
) -> None:
    blocked = raster([rect for rect, _ in other], *SIZE)
    for shape in shapes_of(found)[:1]:
        assert [tuple(one) for one in free_places(shape, blocked).tolist()] == places_by_trying(
            shape, blocked
        )


def test_objects_that_overlap_stay_one_shape() -> None:
    overlapping = [((10, 10, 20, 20), "a"), ((15, 15, 22, 25), "b"), ((0, 0, 3, 4), "c")]
    first, second = shapes_of(overlapping)
    assert (first.name, first.corner, first.size) == ("a+b 1", (10, 10), (12, 15))
    assert first.area == 100 + 70 - 25
    assert (second.name, second.area) == ("c 1", 12)
    mask, way = ControlTrack("clip", 0, 0).draw(0, overlapping, SIZE, CELLS)
    assert way == "shapes"
    # Somewhere in the mask stands the very shape.
    assert len(places_by_trying(first, ~mask)) == 1


def test_places_are_drawn_evenly() -> None:
    """What is 4 x 2 in a frame of 4 x 8 whose left half is taken has three places."""
    counts: dict[tuple[int, ...], int] = {}
    for repeat in range(600):
        track = ControlTrack("clip", repeat, 0)
        found = [((0, 0, 2, 2), "a"), ((0, 2, 4, 4), "b")]
        assert track.draw(0, found, (4, 8), (1, 2))[1] == "shapes"
        corner = track.places["b 1"][1]
        counts[corner] = counts.get(corner, 0) + 1
    assert sorted(counts) == [(0, 4), (0, 5), (0, 6)]
    assert min(counts.values()) > 165


def test_clip_frame_repeat_and_seed_decide() -> None:
    found = [((5, 5, 12, 15), "a")]

    def drawn(clip: str = "a", repeat: int = 0, seed: int = 0, frame: int = 3) -> bytes:
        return ControlTrack(clip, repeat, seed).draw(frame, found, SIZE, CELLS)[0].tobytes()

    assert drawn() == drawn()
    others = [drawn(clip="b"), drawn(repeat=1), drawn(seed=1), drawn(frame=4)]
    assert len({drawn(), *others}) == 5


def test_a_control_follows_its_object_without_jumping() -> None:
    track = ControlTrack("clip", 2, 0)
    track.draw(0, [((0, 0, 8, 8), "dog")], SIZE, CELLS)
    begin = track.places["dog 1"][1]
    # It keeps its distance while it can, then its place; only then it jumps.
    for step in range(1, 5):
        mask, way = track.draw(step, [((0, step, 8, 8 + step), "dog")], SIZE, CELLS)
        y, x = track.places["dog 1"][1]
        moved = (begin[0], begin[1] + step)
        assert way == "shapes"
        assert (y, x) == moved if moved[1] + 8 <= SIZE[1] else True
        assert mask[y : y + 8, x : x + 8].all()
    # Where the object comes upon the control's own place, another is drawn.
    y, x = track.places["dog 1"][1]
    track.places["dog 1"] = ((0, 0), (20, 20))
    mask, _ = track.draw(9, [((20, 20, 28, 28), "dog")], SIZE, CELLS)
    assert not mask[20:28, 20:28].any()
    assert mask.sum() == 64


def test_moved_out_of_the_frame_a_control_keeps_its_place() -> None:
    track = ControlTrack("clip", 0, 0, {"dog 1": ((0, 0), (30, 42))})
    track.draw(1, [((0, 6, 8, 14), "dog")], SIZE, CELLS)
    assert track.places["dog 1"] == ((0, 6), (30, 42))


def test_cells_where_shapes_have_no_room() -> None:
    """An object of 30 x 30 in 40 x 50 leaves no room for itself, but for its pixels."""
    found = [((5, 10, 35, 40), "a")]
    track = ControlTrack("clip", 0, 0)
    mask, way = track.draw(0, found, SIZE, CELLS)
    assert (way, mask.sum()) == ("cells", 900)
    again, _ = track.draw(1, found, SIZE, CELLS)
    assert (again == mask).all()  # no flicker
    # Whole cells (10 x 10) come first: those at the left and right.
    for row in range(4):
        for column in (0, 4):
            assert mask[row * 10 : row * 10 + 10, column * 10 : column * 10 + 10].all()
    mask, way = ControlTrack("clip", 0, 0).draw(0, [((0, 0, 40, 30), "a")], SIZE, CELLS)
    assert (way, mask.sum()) == ("short", 800)


def test_three_objects_of_a_twentieth_of_the_frame_have_room() -> None:
    side = round((360 * 420 / 20) ** 0.5)
    drawer = np.random.default_rng(0)
    for number in range(12):
        found = []
        for name in "abc":
            top, left = int(drawer.integers(360 - side)), int(drawer.integers(420 - side))
            found.append(((top, left, top + side, left + side), name))
        assert ControlTrack(str(number), 0, 0).draw(0, found, (360, 420), (12, 15))[1] == "shapes"
