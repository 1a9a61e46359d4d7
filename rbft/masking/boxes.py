"""Boxes around objects, in fractions of the frame, and the pixels that they cover."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

Rect = tuple[int, int, int, int]  # top, left, bottom, right in pixels; the last two are outside
COORDINATES = ("x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class Box:
    """A box around an object, whatever the size of the frame.

    Attributes:
        x1: Left edge, as a share of the frame's width.
        y1: Upper edge, as a share of its height.
        x2: Right edge.
        y2: Lower edge.
        label: What is in it; empty where nobody says.
        score: How sure its finder is, 0 to 1; None where it does not say.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    label: str = ""
    score: float | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.x1 < self.x2 <= 1 and 0 <= self.y1 < self.y2 <= 1):
            edges = ", ".join(f"{edge:.6g}" for edge in self.edges)
            raise ValueError(
                f"A box ({edges}) must lie within the frame and have an area: 0 <= x1 < x2 <= 1 "
                "and 0 <= y1 < y2 <= 1, as shares of its width and height."
            )

    @property
    def edges(self) -> tuple[float, float, float, float]:
        """Left, upper, right and lower edge."""
        return self.x1, self.y1, self.x2, self.y2

    @classmethod
    def clipped(
        cls,
        x1: float,
        y1: float,
        x2: float,
        y2: float,
        label: str = "",
        score: float | None = None,
    ) -> "Box | None":
        """A box from corners in any order, cut off at the frame's edges.

        Args:
            x1: A corner, in fractions of the frame.
            y1: The same corner.
            x2: The opposite corner.
            y2: The same corner.
            label: See `Box`.
            score: See `Box`.

        Returns:
            None where no area is left, or a number is none.
        """
        if not all(map(math.isfinite, (x1, y1, x2, y2))):
            return None
        left, right = (min(max(edge, 0.0), 1.0) for edge in sorted((x1, x2)))
        top, bottom = (min(max(edge, 0.0), 1.0) for edge in sorted((y1, y2)))
        if left >= right or top >= bottom:
            return None
        return cls(left, top, right, bottom, label, score)

    def rect(self, height: int, width: int) -> Rect:
        """The pixels of a frame of that size that it covers: at least one.

        Args:
            height: Of the frame.
            width: Of the frame.
        """
        # Rounded outwards, so that nothing of the object is left; up to rounding errors.
        top, left = (
            min(math.floor(edge * size + 1e-6), size - 1)
            for edge, size in ((self.y1, height), (self.x1, width))
        )
        bottom, right = (
            max(math.ceil(edge * size - 1e-6), first + 1)
            for edge, size, first in ((self.y2, height, top), (self.x2, width, left))
        )
        return top, left, bottom, right

    def as_list(self) -> list[Any]:
        """As JSON holds it: edges, label and score, six digits of each number."""
        numbers = [float(f"{edge:.6g}") for edge in self.edges]
        score = None if self.score is None else float(f"{self.score:.6g}")
        return [*numbers, self.label, score]

    @classmethod
    def of_list(cls, values: Sequence[Any]) -> "Box":
        """The box that `as_list` wrote.

        Raises:
            ValueError: If it is none.
        """
        try:
            *edges, label, score = values
            x1, y1, x2, y2 = map(float, edges)
            return cls(x1, y1, x2, y2, str(label), None if score is None else float(score))
        except TypeError as error:
            raise ValueError(str(error)) from error


def raster(rects: Iterable[Rect], height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Which pixels lie in any of the rectangles.

    Args:
        rects: Rectangles within the frame.
        height: Of the frame.
        width: Of the frame.
    """
    covered = np.zeros((height, width), dtype=bool)
    for top, left, bottom, right in rects:
        covered[top:bottom, left:right] = True
    return covered


def overlapping_groups(rects: Sequence[Rect]) -> list[list[int]]:
    """Indices of rectangles that overlap, directly or by way of others, group by group."""
    groups: list[list[int]] = []
    for place, one in enumerate(rects):
        touched = [group for group in groups if any(_overlap(one, rects[i]) for i in group)]
        groups = [group for group in groups if group not in touched]
        groups.append(sorted([place, *(i for group in touched for i in group)]))
    return sorted(groups)


def _overlap(one: Rect, other: Rect) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
