"""Writing rationales (Stage 0): rbft in batches against transformers one clip at a time.

The same clips, weights and prompt, greedily. The weights come from a short Stage I on four texts
of different lengths, so that answers end, at different places. Decoding is not timed: rbft's
frame cache is full, transformers gets frames that were read before.

Run: python benchmarks/generate.py --rounds 5
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch import launch
from table import machine, middle
from world import TINY, WORDS, Size, World, make_world, teach

from rbft.backbone.loading import load_processor
from rbft.card import Card
from rbft.runtime.console import print_rank_zero, table

LENGTHS = (24, 60, 110, 180)  # words


def own(world: World, weights: Path, batch: int, longest: int, place: Path) -> dict[str, Any]:
    """Rbft's `rationalize` command: what it recorded, and its texts by clip."""
    place.mkdir()
    tokenizer = load_processor(str(weights)).tokenizer  # type: ignore[attr-defined]
    file = place / "rationales.jsonl"
    spec = {
        "record": {"file": str(place / "record.json"), "steps": 0, "pad": tokenizer.pad_token_id},
        "command": [
            "rationalize",
            *world.options,
            "--data.rationale_ratio=1",
            f"--name={place.name}",
            f"--model.backbone={weights}",
            f"--model.max_new_tokens={longest}",
            f"--data.rationale_file={file}",
            f"--data.eval_batch_size={batch}",
        ],
    }
    found = launch(sys.executable, ["own.py"], spec, place / "spec.json")
    parts = [part for part in place.iterdir() if part.name.startswith(file.name)]
    lines = [line for part in parts for line in part.read_text(encoding="utf-8").splitlines()]
    records = [record for record in map(json.loads, lines) if "rationale" in record]
    texts = {record["id"]: record["rationale"] for record in records}
    return {**found, "texts": texts, "written": [record["tokens"] for record in records]}


def one_by_one(world: World, weights: Path, longest: int, place: Path) -> dict[str, Any]:
    """The same by transformers."""
    place.mkdir()
    clips = [world.root / f"clip{number:02d}.mp4" for number in range(world.size.clips)]
    spec = {
        "record": {"file": str(place / "record.json"), "steps": 0, "pad": 0},
        "weights": str(weights),
        "prompt": Card.load(world.card).prompt("rationale"),
        "videos": [str(clip) for clip in clips],
        "pixels": world.pixels,
        "max_new_tokens": longest,
    }
    found = launch(sys.executable, ["one_by_one.py"], spec, place / "spec.json")
    texts = zip([clip.stem for clip in clips], found["texts"], strict=True)
    return {**found, "texts": dict(texts)}


def main() -> None:
    """Teaches, writes both ways in turn, prints a table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of both ways (default 5)")
    parser.add_argument("--clips", type=int, default=16, help="clips to describe (default 16)")
    parser.add_argument("--batch", type=int, default=8, help="clips at a time (default 8)")
    parser.add_argument("--teach", type=int, default=120, help="steps of Stage I (default 120)")
    parser.add_argument("--longest", type=int, default=256, help="most tokens (default 256)")
    parser.add_argument("--tiny", action="store_true", help="everything tiny, to try the script")
    given = parser.parse_args()
    size = replace(TINY if given.tiny else Size(), clips=given.clips)
    words = random.Random(1)
    scale = 0.1 if given.tiny else 1
    texts = [" ".join(words.choices(WORDS, k=int(length * scale))) + "." for length in LENGTHS]
    print_rank_zero(machine("torch", "transformers"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        world = make_world(root / "world", size, texts)
        weights = teach(world, "rationale", given.teach)
        own(world, weights, given.batch, 2, root / "first")  # fills the frame cache
        found: dict[str, list[dict[str, Any]]] = {"transformers, one by one": [], "rbft": []}
        for number in range(given.rounds):
            place = root / f"peer{number}"
            alone = one_by_one(world, weights, given.longest, place)
            found["transformers, one by one"].append(alone)
            place = root / f"own{number}"
            found["rbft"].append(own(world, weights, given.batch, given.longest, place))
        reference = found["transformers, one by one"][0]["texts"]
        base = 0.0
        rows = []
        for name, runs in found.items():
            speeds = [sum(run["written"]) / sum(run["cpu"]) for run in runs]
            base = base or statistics.median(speeds)
            said = runs[0]["texts"]
            same = sum(said[clip].strip() == text.strip() for clip, text in reference.items())
            lengths = sorted(runs[0]["written"])
            rows.append(
                [
                    name if name != "rbft" else f"rbft, {given.batch} at a time",
                    middle(speeds, ".1f"),
                    f"{statistics.median(speeds) / base:.2f}x",
                    f"{statistics.median(run['peak'] for run in runs):.2f}",
                    f"{same} of {len(reference)}",
                    f"{lengths[0]}-{lengths[-1]}",
                ]
            )
        headers = ["way", "tokens/CPU s", "faster", "peak GB", "same text", "tokens a clip"]
        print_rank_zero(table(rows, headers))


if __name__ == "__main__":
    main()
