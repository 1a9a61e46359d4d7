"""What clips cost by their number of frames, and steps by their number of clips.

A Stage II step and the scoring of a clip with 8 to 128 frames, and a step of 1 to 8 clips, each
in a process of its own, frames decoded before. Beside the time stands the arithmetic that the
step needs (`rbft.estimate.flops`), in which attention grows with the square of the clip's tokens
and all else in proportion: where operations per second do not fall, time grows no faster than that.

Run: python benchmarks/frames.py --rounds 3
"""

import argparse
import csv
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch import launch
from table import machine, middle
from world import TINY, Size, World, make_world

from rbft.backbone.loading import load_config, load_model, load_processor
from rbft.estimate.flops import ClipTokens, StepCounter
from rbft.runtime.console import print_rank_zero, table

EPOCHS = 3  # the first decodes
FEWEST = 2  # clips of a run, one of each class


class Timer:
    """Times steps and scoring on the clips of a world.

    Args:
        world: Model, clips and texts.
    """

    def __init__(self, world: World) -> None:
        self.world, self.runs = world, 0
        source = str(world.backbone)
        config, family = load_config(source)
        self.patch: int = config.vision_config.patch_size
        self.counter = StepCounter(load_model(source, "sdpa", False), family, config)
        tokenizer = load_processor(source).tokenizer  # type: ignore[attr-defined]
        self.pad: int = tokenizer.pad_token_id

    def table(self, clips: int) -> Path:
        """A table with the first clips, each for training and for testing."""
        file = self.world.root / f"first{clips}.csv"
        with self.world.table.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))[:clips]
        with file.open("w", encoding="utf-8", newline="") as stream:
            made = csv.writer(stream)
            made.writerow(["id", "path", "label", "split"])
            for split in ("train", "test"):
                made.writerows([f"{split} {r['path']}", r["path"], r["label"], split] for r in rows)
        return file

    def run(self, action: str, frames: int, batch: int) -> dict[str, Any]:
        """What one `fit` or `test` of so many clips at a time recorded."""
        self.runs += 1
        place = self.world.root / f"run{self.runs}"
        place.mkdir()
        clips = max(batch, FEWEST)
        command = [
            action,
            *self.world.options,
            f"--data.table={self.table(clips)}",
            f"--trainer.default_root_dir={place}",
            "--name=timed",
            "--data.on_leak=warn",  # each clip is trained on and scored
            f"--data.num_frames={frames}",
            f"--data.batch_size={batch}",
            f"--data.global_batch_size={batch}",
            f"--data.eval_batch_size={batch}",
        ]
        if action == "fit":
            command += [
                "--model.stage=label",
                "--model.gradient_checkpointing=false",
                f"--trainer.max_epochs={EPOCHS}",
            ]
        else:
            command += ["--weights=backbone"]
        steps = EPOCHS * clips // batch if action == "fit" else 0
        record = {"file": str(place / "record.json"), "steps": steps, "pad": self.pad}
        spec = {"command": command, "record": record}
        return launch(sys.executable, ["own.py"], spec, place / "spec.json")

    def operations(self, frames: int, tokens: int, answer: int) -> int:
        """What forward and backward of one clip need."""
        height, width = (side // self.patch for side in self.world.size.frame)
        grid = (frames // 2, height, width)
        video = frames // 2 * height * width // 4
        return self.counter.step(ClipTokens(grid, video, tokens - video - answer, answer)).total

    def row(self, frames: int, batch: int, rounds: int) -> list[str]:
        """One line of the table: steps of so many clips, then the scoring of as many."""
        fits, tests = [], []
        for _ in range(rounds):
            fits.append(self.run("fit", frames, batch))
            tests.append(self.run("test", frames, batch))
        per_epoch = max(batch, FEWEST) // batch
        steps = [statistics.mean(run["cpu"][per_epoch:]) for run in fits]
        scores = [statistics.mean(run["cpu"]) for run in tests]
        seen = EPOCHS * per_epoch * batch
        tokens, answer = fits[0]["tokens"] // seen, round(fits[0]["supervised"] / seen)
        needed = batch * self.operations(frames, tokens, answer)
        step = statistics.median(steps)
        return [
            str(frames),
            str(batch),
            str(tokens),
            middle(steps),
            f"{step / batch / frames * 1000:.0f}",
            f"{needed / 1e9:.0f}",
            f"{needed / 1e9 / step:.1f}",
            f"{statistics.median(run['peak'] for run in fits):.2f}",
            middle(scores),
            f"{statistics.median(run['peak'] for run in tests):.2f}",
        ]


def main() -> None:
    """Makes the world, times, prints."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="processes of each (default 3)")
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--clips", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--tiny", action="store_true", help="everything tiny, to try the script")
    given = parser.parse_args()
    size = replace(
        TINY if given.tiny else Size(),
        seconds=(max(given.frames),),
        clips=max(*given.clips, FEWEST),
    )
    headers = ["frames", "clips a step", "tokens a clip", "CPU s a step", "ms a frame"]
    headers += ["GFLOP a step", "GFLOP/s", "peak GB", "CPU s to score", "peak GB"]
    print_rank_zero(machine("torch", "transformers"))
    with tempfile.TemporaryDirectory() as folder:
        timer = Timer(make_world(Path(folder).resolve(), size))
        few = given.frames[min(1, len(given.frames) - 1)]
        kinds = [(frames, 1) for frames in given.frames] + [(few, clips) for clips in given.clips]
        rows = [timer.row(*kind, given.rounds) for kind in dict.fromkeys(kinds)]
        print_rank_zero(table(rows, headers, align="r" * len(headers)))


if __name__ == "__main__":
    main()
