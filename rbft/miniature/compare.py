"""The miniature's methods side by side over several seeds: mean, spread and paired differences.

`python -m rbft.miniature.compare --seeds 5` runs the experiment files below once per seed, each
seed with clips of its own, and skips what is already scored.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from rbft.cli import main as rbft
from rbft.runs.folder import ZERO_SHOT
from rbft.runtime.console import print_rank_zero, table

# Title, experiment file and the step whose result counts.
METHODS = (
    ("zero-shot", "miniature_zeroshot", ZERO_SHOT),
    ("Direct-SFT", "miniature_direct", "label"),
    ("Direct-SFT matched", "miniature_matched", "label"),
    ("RB-FT", "miniature", "label"),
    ("RB-FT, irrelevant rationales", "miniature_irrelevant", "label"),
    ("P+R+C elicited", "miniature_elicited", "rationale_class"),
)
BASELINE = "Direct-SFT matched"


def run(experiments: Path, logs: Path, name: str, step: str, seed: int) -> dict[str, float]:
    """Metrics of one experiment with one seed; runs what is missing of it."""
    result = logs / f"{name}_seed{seed}" / step / "test.json"
    options = {
        "config": experiments / f"{name}.yaml",
        "name": f"{name}_seed{seed}",
        "seed_everything": seed,
        "data.seed": seed,
        "data.clip_seed": seed,
        "score_each_stage": "false",
        "trainer.default_root_dir": logs,
    }
    # A finished one is only looked at: whether it was made with these settings and clips.
    rbft(["fit", *(f"--{key}={value}" for key, value in options.items())])
    return json.loads(result.read_text(encoding="utf-8"))["metrics"]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation in percent."""
    deviation = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{deviation}"


def paired(values: Sequence[float], baseline: Sequence[float]) -> str:
    """Mean difference in points over the same seeds, its t value, and how many seeds it won."""
    differences = [100 * (a - b) for a, b in zip(values, baseline, strict=True)]
    wins = sum(difference > 0 for difference in differences)
    text = f"{mean(differences):+.1f}"
    if len(differences) > 1 and stdev(differences) > 0:
        error = stdev(differences) / math.sqrt(len(differences))
        text += f" (t {mean(differences) / error:+.1f})"
    return f"{text}, {wins}/{len(differences)}"


def comparison(results: dict[str, list[dict[str, float]]]) -> str:
    """The table, from each method's metrics per seed."""
    classes = [key for key in next(iter(results.values()))[0] if key.startswith("f1/")]
    accuracy = {title: [run["accuracy"] for run in runs] for title, runs in results.items()}
    headers = ["", "accuracy", *(f"F1 {key[3:]}" for key in classes), f"- {BASELINE}, wins"]
    rows = []
    for title, runs in results.items():
        difference = paired(accuracy[title], accuracy[BASELINE]) if title != BASELINE else ""
        f1 = [spread([run[key] for run in runs]) for key in classes]
        rows.append([title, spread(accuracy[title]), *f1, difference])
    majority = [run["majority"] for run in results[BASELINE]]
    rows.append(["majority class", spread(majority), *[""] * len(classes), ""])
    return table(rows, headers)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m rbft.miniature.compare", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default 5)")
    parser.add_argument("--first_seed", type=int, default=1, help="the first of them (default 1)")
    parser.add_argument(
        "--experiments", type=Path, default=Path("experiments"), help="folder of experiment files"
    )
    parser.add_argument("--logs", type=Path, default=Path("lightning_logs"), help="folder of runs")
    options = parser.parse_args(arguments)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    results: dict[str, list[dict[str, float]]] = {title: [] for title, _, _ in METHODS}
    for seed in seeds:
        for title, name, step in METHODS:
            results[title].append(run(options.experiments, options.logs, name, step, seed))
    print_rank_zero(
        f"Accuracy and F1 in percent, mean ± standard deviation over {len(seeds)} seeds:"
    )
    print_rank_zero(comparison(results))


if __name__ == "__main__":
    main()
