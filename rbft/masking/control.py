"""The random control: as much of a frame as its objects take, and nothing of them.

What is masked of a frame is compared with masking as much of anything else. For each group of
objects that overlap, the same shape is placed elsewhere, where nothing of it lies on an object or
on another shape; so the area is the same to the pixel. Where there is no room for the shapes, cells
of the model's tokens outside the objects are taken until the area is the same.

Shapes follow the objects: from frame to frame each keeps its distance from its object as long as
that is possible, then its place, and is drawn anew otherwise. A control that jumps in every frame
would add a flicker that the objects' masks do not have.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from rbft.masking.boxes import Rect, overlapping_groups, raster

RESTARTS = 20  # of placing all shapes of a frame anew, before cells are taken
# How a frame's control was made: nothing to mask; the objects' shapes; cells; all that is free, and
# that is less than the objects.
Way = Literal["empty", "shapes", "cells", "short"]
Mask = Bool[np.ndarray, "height width"]


@dataclass(frozen=True)
class Shape:
    """Objects that overlap, as one shape.

    Attributes:
        name: Their labels; tells shapes of successive frames apart.
        parts: Rectangles relative to the upper left corner of all of them.
        corner: That corner in the frame: top and left.
    """

    name: str
    parts: tuple[Rect, ...]
    corner: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return max(part[2] for part in self.parts), max(part[3] for part in self.parts)

    @property
    def area(self) -> int:
        """Pixels that it covers."""
        return int(raster(self.parts, *self.size).sum())

    def at(self, corner: tuple[int, int]) -> list[Rect]:
        """Its rectangles at another place."""
        y, x = corner
        return [
            (top + y, left + x, bottom + y, right + x) for top, left, bottom, right in self.parts
        ]


def shapes_of(objects: Sequence[tuple[Rect, str]]) -> list[Shape]:
    """The shapes of a frame's objects, the largest first.

    Args:
        objects: Rectangle and label of each.
    """
    made, seen = [], dict[str, int]()
    for group in overlapping_groups([rect for rect, _ in objects]):
        rects = [objects[place][0] for place in group]
        top, left = min(rect[0] for rect in rects), min(rect[1] for rect in rects)
        parts = tuple((t - top, x - left, b - top, r - left) for t, x, b, r in rects)
        labels = "+".join(sorted(objects[place][1] for place in group))
        seen[labels] = seen.get(labels, 0) + 1
        made.append(Shape(f"{labels} {seen[labels]}", parts, (top, left)))
    return sorted(made, key=lambda shape: -shape.area)


def free_places(shape: Shape, blocked: Mask) -> Int[np.ndarray, "places 2"]:
    """Every upper left corner at which a shape lies within the frame and on nothing blocked.

    Exact, from the integral image of what is blocked.

    Args:
        shape: The shape.
        blocked: Pixels that it must not touch.
    """
    height, width = blocked.shape
    high, wide = shape.size
    rows, columns = height - high + 1, width - wide + 1
    if rows < 1 or columns < 1:
        return np.empty((0, 2), dtype=np.int64)
    integral = np.zeros((height + 1, width + 1), dtype=np.int32)
    np.cumsum(np.cumsum(blocked, axis=0, dtype=np.int32), axis=1, out=integral[1:, 1:])
    free = np.ones((rows, columns), dtype=bool)
    for top, left, bottom, right in shape.parts:

        def corner(y: int, x: int) -> np.ndarray:
            return integral[y : y + rows, x : x + columns]

        inside = corner(bottom, right) - corner(top, right) - corner(bottom, left)
        free &= inside + corner(top, left) == 0
    return np.argwhere(free)


@dataclass
class ControlTrack:
    """The controls of a clip's frames, which are asked for in their order.

    Attributes:
        clip: The clip's id.
        repeat: Number of the repeat.
        seed: Of all repeats.
        places: Where the last frame's shapes and their controls lie, by the shape's name.
    """

    clip: str
    repeat: int
    seed: int
    places: dict[str, tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=dict)

    def draw(
        self,
        frame: int,
        objects: Sequence[tuple[Rect, str]],
        size: tuple[int, int],
        cells: tuple[int, int],
    ) -> tuple[Mask, Way]:
        """The pixels that are masked in a frame, and how they were found.

        Args:
            frame: Number of the frame in its file.
            objects: Rectangle and label of each of its objects.
            size: Height and width of the frame.
            cells: Rows and columns of the model's tokens.
        """
        taken = raster([rect for rect, _ in objects], *size)
        if not objects:
            return taken, "empty"
        placed = self._place(frame, shapes_of(objects), taken)
        if placed is not None:
            self.places |= {shape.name: (shape.corner, corner) for shape, corner in placed}
            return raster(
                [r for shape, corner in placed for r in shape.at(corner)], *size
            ), "shapes"
        # The same order of cells in every frame of the clip.
        order = self._drawer(None).permutation(cells[0] * cells[1])
        return _cells(taken, order, cells)

    def _place(
        self, frame: int, shapes: Sequence[Shape], taken: Mask
    ) -> list[tuple[Shape, tuple[int, int]]] | None:
        """A place for each shape; None where none was found for all of them."""
        drawer = self._drawer(frame)
        for attempt in range(RESTARTS + 1):
            blocked, placed = taken.copy(), []
            for shape in shapes:
                corner = None if attempt else self._kept(shape, blocked)
                if corner is None:
                    free = free_places(shape, blocked)
                    if not len(free):
                        break
                    y, x = free[drawer.integers(len(free))].tolist()
                    corner = y, x
                placed.append((shape, corner))
                for top, left, bottom, right in shape.at(corner):
                    blocked[top:bottom, left:right] = True
            else:
                return placed
            if not placed:  # the first shape had all places that there are
                return None
        return None

    def _kept(self, shape: Shape, blocked: Mask) -> tuple[int, int] | None:
        """Where a shape goes that keeps its distance from its object, or its place."""
        if shape.name not in self.places:
            return None
        (y, x), (top, left) = self.places[shape.name]
        moved = top + shape.corner[0] - y, left + shape.corner[1] - x
        high, wide = shape.size
        for corner in (moved, (top, left)):
            inside = (
                corner[0] >= 0
                and corner[1] >= 0
                and corner[0] + high <= blocked.shape[0]
                and corner[1] + wide <= blocked.shape[1]
            )
            if inside and not any(blocked[t:b, x:r].any() for t, x, b, r in shape.at(corner)):
                return corner
        return None

    def _drawer(self, frame: int | None) -> np.random.Generator:
        """Draws that depend on clip, frame, repeat and seed, and on nothing else."""
        text = json.dumps([self.clip, frame, self.repeat, self.seed])
        known = hashlib.sha256(text.encode()).digest()
        return np.random.default_rng(int.from_bytes(known[:16]))


def _cells(
    taken: Mask, order: Int[np.ndarray, " cells"], cells: tuple[int, int]
) -> tuple[Mask, Way]:
    """Cells outside the objects, whole ones first, until as much is covered; the last one cut."""
    height, width = taken.shape
    (rows, columns), missing = cells, int(taken.sum())
    chosen = np.zeros_like(taken)
    edges = [height * row // rows for row in range(rows + 1)]
    sides = [width * column // columns for column in range(columns + 1)]
    windows = [
        (slice(*edges[row : row + 2]), slice(*sides[column : column + 2]))
        for row, column in (divmod(place, columns) for place in order.tolist())
    ]
    whole = [not taken[window].any() for window in windows]
    for wanted in (True, False):
        for window, is_whole in zip(windows, whole, strict=True):
            if is_whole is not wanted or not missing:
                continue
            free = np.flatnonzero(~taken[window])[:missing]
            own = np.zeros(taken[window].size, dtype=bool)
            own[free] = True
            chosen[window] = own.reshape(taken[window].shape)
            missing -= len(free)
    return chosen, "short" if missing else "cells"
