"""What the vision tower alone is taught: what occupies each cell of the picture.

A tiny model that has to learn seeing from captions only does not get far in minutes. Linear heads
on the vision tower's tokens are trained on these labels, and dropped in the end.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from rbft.miniature.camera import mirror
from rbft.miniature.scene import (
    OBJECT_SIZE,
    OBJECTS,
    STEP,
    SUBJECT_SIZE,
    SUBJECTS,
    VIDEO_INDICES,
    WEATHERS,
    Scene,
    pose,
)
from rbft.miniature.sprites import COLOURS
from tools.miniature_base.lessons import IGNORED

CELL = 28  # pixels that one video token covers

# Classes of each head: first for each frame of a pair, then for the pair.
FRAME_HEADS = (
    8,
    7,
    7,
    7,
    5,
    7,
    4,
)  # subject: place, kind, colour; object: place, kind, colour, state
PAIR_HEADS = (len(VIDEO_INDICES), 2, len(WEATHERS))
CELL_CLASSES = 2 * sum(FRAME_HEADS) + sum(PAIR_HEADS)


def cell_labels(scene: Scene, time: float) -> Int[Tensor, "3 7"]:
    """What each of the three lowest cells holds (one row a cell, one column a head).

    0 stands for nothing; what only touches a cell has a place there and no other label.
    """
    now = pose(scene, time)
    colours = tuple(COLOURS)
    subject = (
        1 + SUBJECTS.index(scene.subject),
        1 + colours.index(scene.subject_colour),
    )
    thing = (
        1 + OBJECTS.index(scene.object),
        1 + colours.index(scene.object_colour),
        1 + ("upright", "lying", "carried").index(now.state),
    )
    return torch.tensor(
        [
            _one_cell(scene, now.subject_x, SUBJECT_SIZE, cell, subject)
            + _one_cell(scene, now.object_x, OBJECT_SIZE, cell, thing)
            for cell in range(3)
        ]
    )


def _one_cell(scene: Scene, x: int, size: int, cell: int, labels: tuple[int, ...]) -> list[int]:
    left = (mirror(x, size) if scene.mirrored else x) - CELL * cell
    overlap = min(left + size, CELL) - max(left, 0)
    if overlap <= 0:
        return [0] * (1 + len(labels))
    place = (left + size) // STEP
    return [place, *(labels if overlap >= size // 2 else [IGNORED] * len(labels))]


def pair_labels(scene: Scene) -> Int[Tensor, " 3"]:
    """Place, night and weather."""
    return torch.tensor(
        [VIDEO_INDICES.index(scene.place), int(scene.night), WEATHERS.index(scene.weather)]
    )


@dataclass(frozen=True)
class Eye:
    """Labels of a batch of frame pairs for the linear heads on the vision tower."""

    cells: Int[Tensor, "pairs 2 3 7"]
    pair: Int[Tensor, "pairs 3"]


def eye_labels(scenes: list[Scene], times: list[tuple[float, ...]]) -> Eye:
    """Labels of every frame pair; each scene comes with an even number of times."""
    cells = [
        torch.stack([cell_labels(scene, time) for time in pair])
        for scene, moments in zip(scenes, times, strict=True)
        for pair in zip(moments[::2], moments[1::2], strict=True)
    ]
    pairs = [
        pair_labels(scene)
        for scene, moments in zip(scenes, times, strict=True)
        for _ in moments[::2]
    ]
    return Eye(torch.stack(cells), torch.stack(pairs))
