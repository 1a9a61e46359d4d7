"""What goes beyond the paper, in the miniature: bases x training clips x seeds, table and picture.

python benchmarks/beyond_the_paper.py --logs FOLDER --seeds 20 --bases packaged=rbft/miniature/base
    plain=FOLDER seed1=FOLDER --sizes 40 120 400

runs `compare` for each base and number of training clips in a folder of its own below --logs, and
goes on where it was stopped: several may run at once, each with other --bases or --sizes. It ends
with the table and picture of docs/beyond_the_paper.md over what is finished; --only_read draws
them from what there is. `python -m tools.miniature_base.pretrain --knowledge plain` (or `--seed 1`)
makes the other bases. Every seed has clips of its own, 300 of them to test.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbft.commands.compare import COMPARISONS, VARIED, Compared, compare_experiments

EXPERIMENTS = Path("experiments")
BASELINE = "miniature_matched"
# Title, experiment file and settings on top of it.
METHODS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("Direct-SFT", BASELINE, {}),
    ("RB-FT (the paper)", "miniature", {}),
    ("P+R+C", "miniature_elicited", {}),
    ("P+R+C, class weight 5", "miniature_weighted", {"model.answer_weight": 5}),
    ("P+R+C, class weight 20", "miniature_weighted", {}),
    ("P+R+C, verified", "miniature_verified", {}),
    ("P+R+C, iterated", "miniature_iterated", {}),
    ("P+R+C, then expected reward", "miniature_elicited_reward", {}),
    ("P+R+C, mean of 5 rationales", "miniature_consistent", {}),
    ("P+R+C, then distilled", "miniature_distilled", {}),
    ("rationales and labels in turns", "miniature_alternating", {}),
    ("Direct-SFT, then expected reward", "miniature_reward", {}),
    ("control: other clips' rationales", "miniature_shuffled", {}),
    ("control: half rationales", "miniature_half", {}),
    ("control: blank rationales", "miniature_blank", {}),
)
# A base that knows the prompt has one more, and its own figures of what that is held against.
SIDES = ("P+R+C, both sides", "miniature_sides", {})
SECONDS = "Direct-SFT, equal seconds"


@dataclass(frozen=True)
class Cell:
    """The comparison of one base and one number of training clips.

    Attributes:
        base: Name of the base.
        size: Training clips.
        rows: From the file that `compare` leaves: a dictionary for each method.
    """

    base: str
    size: int
    rows: Sequence[Mapping[str, Any]]


def experiments(base: str, folder: Path, size: int) -> list[Compared]:
    """What is compared on a base.

    Args:
        base: Name of the base; those that begin with "sides" have the prompt for both sides.
        folder: The base.
        size: Training clips.
    """
    methods = [*METHODS]
    if base.startswith("sides"):
        methods = [one for one in METHODS if one[0] in ("Direct-SFT", "P+R+C")] + [SIDES]
    options = {"model.backbone": folder, "data.train_size": size}
    return [
        Compared(title, [EXPERIMENTS / f"{file}.yaml"], _name(file, more), {**options, **more})
        for title, file, more in methods
    ]


def _name(file: str, more: Mapping[str, Any]) -> str:
    return "".join([file, *map(str, more.values())])


def read_cell(folder: Path, base: str, size: int) -> Cell | None:
    """The newest comparison in a folder of runs; None where there is none.

    Args:
        folder: The `--logs` of the comparison.
        base: Name of the base.
        size: Training clips.
    """
    files = sorted((folder / COMPARISONS).glob("*.json"), key=lambda file: file.stat().st_mtime)
    if not files:
        return None
    rows = json.loads(files[-1].read_text(encoding="utf-8"))["rows"]
    for row in rows:
        if "_matched_seconds_" in row["title"]:
            row["title"] = SECONDS
    return Cell(base, size, rows)


def table(cells: Sequence[Cell]) -> str:
    """Markdown: a line a method, a column for each base and size.

    Accuracy in per cent, the paired difference to Direct-SFT with half of its 95 % interval, and
    tokens written about a test clip.
    """
    titles = list(dict.fromkeys(row["title"] for cell in cells for row in cell.rows))
    head = "".join(f" {cell.base}, {cell.size} |" for cell in cells)
    lines = [f"| method |{head}", "|---" * (len(cells) + 1) + "|"]
    for title in titles:
        found = [next((r for r in cell.rows if r["title"] == title), None) for cell in cells]
        lines.append(f"| {title} |" + "".join(f" {_shown(row)} |" for row in found))
    return "\n".join(lines)


def _shown(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    mean = f"{100 * row['scores']['accuracy']['mean']:.1f}"
    apart = row["minus_baseline"]
    if apart is None:
        return mean
    one = apart["accuracy"]
    return f"{mean} ({100 * one['mean']:+.1f} ± {50 * (one['high'] - one['low']):.1f})"


def draw(cells: Sequence[Cell], file: Path) -> None:
    """The differences to Direct-SFT of equal steps, with 95 % intervals, a panel for each base."""
    from matplotlib.figure import Figure

    bases = list(dict.fromkeys(cell.base for cell in cells))
    shown = [cell for cell in cells if not cell.base.startswith("sides")] or list(cells)
    titles = list(
        dict.fromkeys(row["title"] for cell in shown for row in cell.rows if row["minus_baseline"])
    )
    bases = [base for base in bases if any(cell.base == base for cell in shown)]
    figure = Figure(figsize=(3.2 + 2.6 * len(bases), 0.9 + 0.3 * len(titles)), dpi=110)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, len(bases), sharey=True, squeeze=False)[0]
    sizes = sorted({cell.size for cell in shown})
    colours = dict(zip(sizes, ("#d95f02", "#1b9e77", "#7570b3", "#444444"), strict=False))
    for panel, base in zip(panels, bases, strict=True):
        for cell in (cell for cell in shown if cell.base == base):
            shift = 0.22 * (sizes.index(cell.size) - (len(sizes) - 1) / 2)
            rows = {row["title"]: row["minus_baseline"]["accuracy"] for row in cell.rows[1:]}
            places = [n for n, title in enumerate(titles) if title in rows]
            found = [rows[titles[n]] for n in places]
            panel.errorbar(
                [100 * one["mean"] for one in found],
                [len(titles) - n - shift for n in places],
                xerr=[50 * (one["high"] - one["low"]) for one in found],
                fmt="o",
                markersize=3.5,
                linewidth=1,
                color=colours[cell.size],
                label=f"{cell.size} clips",
            )
        panel.axvline(0, color="#888888", linewidth=0.8)
        panel.set_title(f"base: {base}", fontsize=9)
        panel.set_xlabel("points above Direct-SFT of equal steps", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(axis="y", alpha=0.25)
    panels[0].set_yticks([len(titles) - n for n in range(len(titles))], titles, fontsize=8)
    panels[-1].legend(fontsize=7, loc="lower right")
    figure.savefig(file)


def main() -> None:
    """Runs what is missing, prints the table and draws the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--logs", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument(
        "--bases", nargs="+", default=["packaged=rbft/miniature/base"], metavar="NAME=FOLDER"
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[40, 120, 400])
    parser.add_argument("--only_read", action="store_true", help="run nothing")
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    options = parser.parse_args()
    cells = []
    for named in options.bases:
        base, _, folder = named.partition("=")
        for size in options.sizes:
            logs = options.logs / base / str(size)
            if not options.only_read:
                compare_experiments(
                    experiments(base, Path(folder), size),
                    range(1, options.seeds + 1),
                    BASELINE,
                    logs,
                    matched_seconds=True,
                    vary=[*VARIED, "data.clip_seed"],
                )
            if (cell := read_cell(logs, base, size)) is not None:
                cells.append(cell)
    if not cells:
        parser.error(f"--logs {options.logs} holds no finished comparison yet.")
    print(table(cells))  # noqa: T201
    if options.picture is not None:
        draw(cells, options.picture)


if __name__ == "__main__":
    main()
