"""Where subject and object are in the miniature's clips, in every frame, as a file of boxes.

Run: python -m rbft.miniature.boxes --output boxes.jsonl
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from rbft.miniature.camera import SIZE, mirror
from rbft.miniature.scene import OBJECT_SIZE, STEP, SUBJECT_SIZE, TARGET, Scene, pose
from rbft.miniature.sprites import sprite
from rbft.miniature.world import FPS, SECONDS, draw_annotations
from rbft.runtime.console import print_rank_zero
from rbft.runtime.files import write_text
from rbft.runtime.jsonl import json_line


def true_boxes(scene: Scene, time: float) -> list[dict[str, float | str]]:
    """Boxes around what is seen of subject and object, in shares of the picture's sides.

    Args:
        scene: The scene.
        time: Between 0 (start of the clip) and 1 (end).

    Returns:
        `x1`, `y1`, `x2`, `y2` and `label` of each; one out of the picture has none.
    """
    now = pose(scene, time)
    thing = sprite(scene.object, scene.object_colour, OBJECT_SIZE)
    if now.state == "lying":
        thing = np.rot90(thing, -1)
    actor = sprite(scene.subject, scene.subject_colour, SUBJECT_SIZE)
    if now.backwards:
        actor = actor[:, ::-1]
    lift = STEP if now.state == "carried" else 0
    found = [
        _box(scene.object, thing, now.object_x, lift, scene.mirrored),
        _box(scene.subject, actor, now.subject_x, 0, scene.mirrored),
    ]
    return [box for box in found if box is not None]


def _box(
    label: str, picture: Float[ndarray, "side side 4"], x: int, lift: int, mirrored: bool
) -> dict[str, float | str] | None:
    size = len(picture)
    if mirrored:
        picture, x = picture[:, ::-1], mirror(x, size)
    rows, columns = np.nonzero(picture[..., 3])
    rows, columns = rows + SIZE - lift - size, columns + x
    inside = (columns >= 0) & (columns < SIZE)
    if not inside.any():
        return None
    rows, columns = rows[inside], columns[inside]
    edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    shares = [round(float(edge) / SIZE, 6) for edge in edges]
    return {**dict(zip(("x1", "y1", "x2", "y2"), shares, strict=True)), "label": label}


def write_boxes(output: Path, test: int, seed: int) -> int:
    """Writes the boxes of test clips, a line for each frame of the file.

    Args:
        output: The file of JSON Lines.
        test: Test clips, the first ones.
        seed: Seed of the clips, `data.clip_seed`.

    Returns:
        The number of lines.
    """
    lines = [json_line(line) for line in _lines(test, seed)]
    write_text(output, "".join(lines))
    return len(lines)


def _lines(test: int, seed: int) -> Iterator[dict[str, object]]:
    for row in draw_annotations(TARGET, {"test": test}, seed):
        for frame, time in enumerate(np.linspace(0, 1, SECONDS * FPS).tolist()):
            yield {"id": row.id, "frame": frame, "boxes": true_boxes(row.factors, time)}


def main(args: list[str] | None = None) -> None:
    """The command line.

    Args:
        args: None takes the process's own.
    """
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("boxes.jsonl"), help="The file.")
    parser.add_argument("--test", type=int, default=300, help="Test clips.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the clips.")
    given = parser.parse_args(args)
    count = write_boxes(given.output, given.test, given.seed)
    print_rank_zero(f"Wrote the boxes of {count} frames to {given.output}.")


if __name__ == "__main__":
    main()
