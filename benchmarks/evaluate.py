"""Classifying clips: scoring the class words against writing an answer and reading it.

The same clips and weights, three ways: rbft's scores (the default), rbft's written answers
(`model.answer: generate`), and transformers' `generate` one clip at a time. The weights come from
a short Stage II, so that a class word is what the model writes. Decoding is not timed: rbft's
frame cache is full, transformers gets frames that were read before.

Run: python benchmarks/evaluate.py --rounds 5
"""

import argparse
import csv
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch import launch
from table import machine, middle
from world import TINY, Size, World, make_world, teach

from rbft.backbone.loading import load_processor
from rbft.card import Card
from rbft.runtime.console import print_rank_zero, table


class Ways:
    """The ways to classify the test clips of a world.

    Args:
        world: Model, clips and texts.
        weights: What classifies.
        batch: Clips that rbft takes at a time.
        longest: Most tokens of a written answer.
    """

    def __init__(self, world: World, weights: Path, batch: int, longest: int) -> None:
        self.world, self.weights, self.batch, self.longest = world, weights, batch, longest
        self.card = Card.load(world.card)
        self.runs = 0
        with world.table.open(encoding="utf-8", newline="") as stream:
            self.clips = [row for row in csv.DictReader(stream) if row["split"] == "test"]
        tokenizer = load_processor(str(weights)).tokenizer  # type: ignore[attr-defined]
        self.pad: int = tokenizer.pad_token_id

    def _spec(self, name: str) -> tuple[dict[str, Any], Path]:
        self.runs += 1
        folder = self.world.root / f"run{self.runs}_{name}"
        folder.mkdir()
        record = {"file": str(folder / "record.json"), "steps": 0, "pad": self.pad}
        return {"record": record}, folder / "spec.json"

    def own(self, answer: str) -> tuple[dict[str, Any], list[str | None]]:
        """Rbft's `test` command: what it recorded, and a class for each clip."""
        spec, file = self._spec(answer)
        name = file.parent.name
        spec["command"] = [
            "test",
            *self.world.options,
            f"--name={name}",
            f"--weights={self.weights}",
            f"--model.answer={answer}",
            f"--model.max_new_tokens={self.longest}",
            f"--data.eval_batch_size={self.batch}",
        ]
        found = launch(sys.executable, ["own.py"], spec, file)
        (lines,) = (self.world.root / "logs" / name).rglob("test_predictions.jsonl")
        records = map(json.loads, lines.read_text(encoding="utf-8").splitlines())
        return found, [record["prediction"] for record in records]

    def score(self) -> tuple[dict[str, Any], list[str | None]]:
        """Probabilities of all class words."""
        return self.own("score")

    def written(self) -> tuple[dict[str, Any], list[str | None]]:
        """Written answers, in batches."""
        return self.own("generate")

    def one_by_one(self) -> tuple[dict[str, Any], list[str | None]]:
        """Transformers' written answers, one by one."""
        spec, file = self._spec("one_by_one")
        spec |= {
            "weights": str(self.weights),
            "prompt": self.card.prompt("label"),
            "videos": [str(self.world.root / clip["path"]) for clip in self.clips],
            "pixels": self.world.pixels,
            "max_new_tokens": self.longest,
        }
        found = launch(sys.executable, ["one_by_one.py"], spec, file)
        classes = [self.card.parse(text) for text in found["texts"]]
        return found, [None if index is None else self.card.classes[index] for index in classes]


def main() -> None:
    """Teaches, classifies in all ways in turn, prints a table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all ways (default 5)")
    parser.add_argument("--tests", type=int, default=24, help="clips to classify (default 24)")
    parser.add_argument("--batch", type=int, default=8, help="clips at a time (default 8)")
    parser.add_argument("--teach", type=int, default=40, help="steps of Stage II (default 40)")
    parser.add_argument("--tiny", action="store_true", help="everything tiny, to try the script")
    given = parser.parse_args()
    size = replace(TINY if given.tiny else Size(), clips=4, tests=given.tests)
    print_rank_zero(machine("torch", "transformers"))
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder).resolve(), size)
        ways = Ways(world, teach(world, "label", given.teach), given.batch, longest=16)
        paths: dict[str, Callable[[], tuple[dict[str, Any], list[str | None]]]] = {
            "transformers, written one by one": ways.one_by_one,
            "rbft, written in batches": ways.written,
            "rbft, class words scored": ways.score,
        }
        ways.score()  # fills the frame cache
        found: dict[str, list[tuple[dict[str, Any], list[str | None]]]] = {n: [] for n in paths}
        for _ in range(given.rounds):
            for name, classify in paths.items():
                found[name].append(classify())
        labels = [clip["label"] for clip in ways.clips]
        reference = found["transformers, written one by one"][0][1]
        base = 0.0
        rows = []
        for name, runs in found.items():
            used = [sum(record["cpu"]) / len(labels) for record, _ in runs]
            base = base or statistics.median(used)
            said = runs[0][1]
            same = sum(a == b for a, b in zip(said, reference, strict=True))
            right = sum(a == b for a, b in zip(said, labels, strict=True))
            rows.append(
                [
                    name,
                    middle(used, ".3f"),
                    f"{1 / statistics.median(used):.2f}",
                    f"{base / statistics.median(used):.2f}x",
                    f"{statistics.median(record['peak'] for record, _ in runs):.2f}",
                    f"{same} of {len(labels)}",
                    f"{right} of {len(labels)}",
                    str(said.count(None)),
                ]
            )
        headers = ["way", "CPU s a clip", "clips/CPU s", "faster", "peak GB", "same class", "right"]
        print_rank_zero(table(rows, [*headers, "unparsed"]))


if __name__ == "__main__":
    main()
