"""The miniature's methods side by side over several seeds: mean, spread and paired differences.

`python -m rbft.miniature.compare --seeds 5` is `python -m rbft compare` with the experiment files
below, once per seed, each seed with clips of its own; what is already scored is skipped.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rbft.commands.compare import VARIED, Compared, compare_experiments
from rbft.runtime.experiments import find_experiment

# Title and experiment file.
METHODS = (
    ("zero-shot", "miniature_zeroshot"),
    ("Direct-SFT", "miniature_direct"),
    ("Direct-SFT matched", "miniature_matched"),
    ("RB-FT", "miniature"),
    ("RB-FT, irrelevant rationales", "miniature_irrelevant"),
    ("P+R+C elicited", "miniature_elicited"),
)
BASELINE = "miniature_matched"


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
    compare_experiments(
        [
            Compared(title, [find_experiment(str(options.experiments / f"{name}.yaml"))], name)
            for title, name in METHODS
        ],
        range(options.first_seed, options.first_seed + options.seeds),
        BASELINE,
        options.logs,
        vary=[*VARIED, "data.clip_seed"],
    )


if __name__ == "__main__":
    main()
