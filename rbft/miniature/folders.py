"""Clips of the miniature world as a folder per split and class, to try `VideoFolder` on.

Run: python -m rbft.miniature.folders --output videos
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from rbft.miniature.world import make_clips, read_annotations


def write_folders(output: Path, train: int, test: int) -> None:
    """Writes `<output>/<split>/<class>/<id>.mp4`.

    Raises:
        ValueError: If the folder exists.
    """
    if output.exists():
        raise ValueError(f"--output {output} exists. Name a folder that does not, or remove it.")
    with tempfile.TemporaryDirectory() as made:
        folder = make_clips(Path(made, "clips"), sizes={"train": train, "test": test})
        for row in read_annotations(folder):
            target = output / row.split / row.label
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / row.file, target)


def main(args: list[str] | None = None) -> None:
    """The command line.

    Args:
        args: None takes the process's own.
    """
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("videos"), help="The folder to write.")
    parser.add_argument("--train", type=int, default=24, help="Training clips.")
    parser.add_argument("--test", type=int, default=12, help="Test clips.")
    given = parser.parse_args(args)
    try:
        write_folders(given.output, given.train, given.test)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
