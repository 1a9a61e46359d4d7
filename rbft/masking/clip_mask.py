"""The masks of a clip's frames, drawn as the frames are decoded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rbft.masking.boxes import Box, raster
from rbft.masking.control import ControlTrack, Mask
from rbft.masking.fill import FillName, Picture, filled

# Part of every key: to be raised when the same boxes and settings give other frames than before.
VERSION = 1
Kind = Literal["objects", "random"]


@dataclass(frozen=True)
class ClipMask:
    """What is masked in a clip: a `rbft.video.sampling.FrameMask`.

    Attributes:
        clip: The clip's id; it is part of what the random control is drawn by.
        boxes: Boxes of its objects by the frame's number in the file.
        kind: Whether the objects are masked, or as much of anything else.
        fill: What is drawn in their place.
        repeat: Number of the repeat of the random control.
        seed: Of the random control.
    """

    clip: str
    boxes: Mapping[int, Sequence[Box]]
    kind: Kind
    fill: FillName
    repeat: int = 0
    seed: int = 0

    @property
    def key(self) -> dict[str, Any]:
        """All that the masks depend on, for the keys of caches."""
        boxes = {str(n): [box.as_list() for box in own] for n, own in sorted(self.boxes.items())}
        made = {"version": VERSION, "kind": self.kind, "fill": self.fill, "boxes": boxes}
        if self.kind == "random":
            made |= {"clip": self.clip, "repeat": self.repeat, "seed": self.seed}
        return made

    def painter(self, indices: Sequence[int], cells: tuple[int, int]) -> "Painter":
        """What draws the masks of the clip's frames.

        Args:
            indices: Numbers of the frames that will be drawn on.
            cells: Rows and columns of the model's tokens.

        Raises:
            ValueError: If nobody has looked for objects in one of the frames.
        """
        wanted = sorted(set(indices))
        if lacking := [frame for frame in wanted if frame not in self.boxes]:
            raise ValueError(
                f"The box file (data.masking.boxes) has no line about {len(lacking)} of the "
                f"{len(wanted)} frames of clip {self.clip} (first: {lacking[0]}). Boxes are found "
                "in the frames that the model sees: run python -m rbft mask with the same data "
                "settings as this."
            )
        return Painter(self, cells)


@dataclass
class Painter:
    """Draws the masks of a clip's frames, in their order, and counts what is masked.

    Attributes:
        mask: What is masked.
        cells: Rows and columns of the model's tokens.
        ways: Frames by how the mask was found, see `rbft.masking.control.Way`.
        counts: Pixels of the frames, on objects, masked, and both, over all frames.
    """

    mask: ClipMask
    cells: tuple[int, int]
    ways: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("pixels", "objects", "masked", "overlap"), 0)
    )

    def __post_init__(self) -> None:
        self.track = ControlTrack(self.mask.clip, self.mask.repeat, self.mask.seed)
        self.last: tuple[int, Mask, Mask, str] | None = None  # a frame may be shown several times

    def __call__(self, frame: int, picture: Picture) -> Picture:
        """The picture with its mask.

        Args:
            frame: Its number in the file.
            picture: The frame, before it is resized.
        """
        if self.last is None or self.last[0] != frame:
            self.last = (frame, *self._masks(frame, picture.shape[0], picture.shape[1]))
        _, objects, masked, way = self.last
        self.ways[way] = self.ways.get(way, 0) + 1
        for name, pixels in (
            ("pixels", objects.size),
            ("objects", np.count_nonzero(objects)),
            ("masked", np.count_nonzero(masked)),
            ("overlap", np.count_nonzero(objects & masked)),
        ):
            self.counts[name] += int(pixels)
        return filled(picture, masked, self.mask.fill)

    @property
    def report(self) -> dict[str, Any]:
        """What was masked, as JSON can hold it."""
        return {"frames": sum(self.ways.values()), **self.ways, **self.counts}

    def _masks(self, frame: int, height: int, width: int) -> tuple[Mask, Mask, str]:
        objects = [(box.rect(height, width), box.label) for box in self.mask.boxes[frame]]
        taken = raster([rect for rect, _ in objects], height, width)
        if self.mask.kind == "objects":
            return taken, taken, "shapes" if objects else "empty"
        return (taken, *self.track.draw(frame, objects, (height, width), self.cells))
