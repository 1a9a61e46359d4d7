"""Where subject and object are in the miniature's clips, in every frame, as a file of boxes.

Run: python -m rbft.miniature.boxes --output boxes.jsonl
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from rbft.masking.boxes import COORDINATES
from rbft.miniature.camera import SIZE, placed_sprites
from rbft.miniature.scene import TARGET, Scene, pose
from rbft.miniature.world import TIMES, draw_annotations
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
    found = []
    for one in placed_sprites(scene, pose(scene, time)):
        if (edges := one.box()) is not None:
            shares = [round(edge / SIZE, 6) for edge in edges]
            found.append({**dict(zip(COORDINATES, shares, strict=True)), "label": one.name})
    return found


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
        for frame, time in enumerate(TIMES):
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
