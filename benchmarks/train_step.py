"""One optimisation step of Stage I and Stage II: clips per second and peak memory against peers.

Model, clips, answers and settings are the same for all: a small random Qwen2.5-VL with the real
vocabulary size, clips of the real token count, full training in 32 bits on one thread. Every
trainer runs as its users run it, in a process of its own; the trainers take turns. Before any
timing each must get the same patches, tokens and answer tokens as rbft in a first step, and have
the same loss and gradients; one that does not is left out.

Run: python benchmarks/train_step.py --rounds 5 [--swift PYTHON] [--trl PYTHON]
    [--llamafactory PYTHON], each with the interpreter of an environment that has it.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launch import launch
from table import machine, middle
from world import TINY, Size, World, make_world

from rbft.backbone.loading import load_processor
from rbft.commands.export_conversations import SUFFIXES, export_conversations
from rbft.data.videofolder import VideoFolder
from rbft.runtime.console import print_rank_zero, table
from rbft.stages import STAGES, Stage

PACKAGES = {
    "transformers": "transformers",
    "trl": "trl",
    "swift": "ms-swift",
    "llamafactory": "llamafactory",
}
COUNTS = ("patches", "tokens", "supervised")
EPOCHS = 2  # the first decodes
TOLERANCE = 0.02  # of loss and gradient norms
TITLES = {"rationale": "Stage I (rationale)", "label": "Stage II (class word)"}


@dataclass(frozen=True)
class Setting:
    """What is run.

    Attributes:
        world: Model, clips and texts.
        stage: What is learnt.
        batch: Clips per optimiser step.
        epochs: Passes over the clips; the first decodes them.
        compare: Whether loss and gradients of one step are compared, instead of time.
        checkpointing: Whether activations are recomputed.
    """

    world: World
    stage: Stage
    batch: int
    epochs: int
    checkpointing: bool
    compare: bool = False

    @property
    def clips(self) -> int:
        """Training clips."""
        return self.batch if self.compare else self.world.size.clips

    @property
    def folder(self) -> Path:
        """Where this setting's files are."""
        return self.world.root / f"{self.stage.name}{'_compare' if self.compare else ''}"

    def spec(self, number: int) -> dict[str, Any]:
        """What a trainer's process is told."""
        data = {form: str(self.folder / f"clips_{form}{SUFFIXES[form]}") for form in FORMS}
        tokenizer = load_processor(str(self.world.backbone)).tokenizer  # type: ignore[attr-defined]
        return {
            "backbone": str(self.world.backbone),
            "data": data,
            "output": str(self.folder / f"run{number}"),
            "batch": self.batch,
            "pixels": self.world.pixels,
            "fps": self.world.size.fps,
            "epochs": self.epochs,
            "checkpointing": self.checkpointing,
            "clip": 1e9 if self.compare else 1.0,
            "record": {
                "file": str(self.folder / f"record{number}.json"),
                "steps": self.epochs * self.clips // self.batch,
                "pad": tokenizer.pad_token_id,
                "compare": self.compare,
            },
        }


FORMS = ("swift", "llamafactory")


def prepare(setting: Setting) -> None:
    """Writes the clips of a setting as a table for rbft and as conversations for the others."""
    world, folder = setting.world, setting.folder
    folder.mkdir()
    with world.table.open(encoding="utf-8", newline="") as stream:
        head, *rows = csv.reader(stream)
    kept = [*rows[: setting.clips], *rows[world.size.clips :]]
    with (folder / "clips.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([head, *kept])
    data = VideoFolder(
        world.root,
        folder / "clips.csv",
        card=world.card,
        cache_folder=folder / "cache",
        fps=float(world.size.fps),
        **world.pixels,
        min_frames=4,
        max_frames=768,
        global_batch_size=setting.batch,
        rationale_ratio=0.0,
    )
    texts = data.rationales("train").texts if setting.stage.needs_rationales else None
    for form in FORMS:
        file = folder / f"clips_{form}{SUFFIXES[form]}"
        export_conversations(data, setting.stage, texts, "train", form, file)
        # rbft puts no line break between video and question: the same tokens for all.
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace("<video>\\n", "<video>"), encoding="utf-8")


def command(setting: Setting, number: int) -> list[str]:
    """The `fit` command of rbft."""
    return [
        "fit",
        *setting.world.options,  # of an option that is given twice, the last counts
        f"--data.table={setting.folder / 'clips.csv'}",
        f"--data.cache_folder={setting.folder / f'cache{number}'}",
        f"--trainer.default_root_dir={setting.folder}",
        f"--name=run{number}",
        f"--model.stage={setting.stage.name}",
        "--data.rationale_ratio=0",  # the table's own
        f"--data.batch_size={setting.batch}",
        f"--data.global_batch_size={setting.batch}",
        f"--trainer.max_epochs={setting.epochs}",
        f"--trainer.gradient_clip_val={1e9 if setting.compare else 1.0}",
        f"--model.gradient_checkpointing={str(setting.checkpointing).lower()}",
    ]


def watched(setting: Setting, callback: str, **init: Any) -> list[str]:
    """The `fit` command of rbft with a callback of a script here, by dotted name."""
    given = json.dumps([{"class_path": callback, "init_args": init}])
    return [*command(setting, 0), f"--trainer.callbacks={given}"]


def step_options(title: str) -> argparse.ArgumentParser:
    """What every script about a training step can be told."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--batch", type=int, default=2, help="clips per step (default 2)")
    parser.add_argument("--tiny", action="store_true", help="everything tiny, to try the script")
    parser.add_argument("--stages", nargs="+", default=["rationale", "label"], choices=TITLES)
    return parser


def run(name: str, python: str, setting: Setting, number: int) -> dict[str, Any]:
    """What one process of a trainer recorded."""
    spec = setting.spec(number)
    if name == "rbft":
        spec["command"] = command(setting, number)
    script = ["own.py"] if name == "rbft" else ["peers.py", name]
    return launch(python, script, spec, setting.folder / f"spec{number}.json")


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """What is not the same work in two recorded first steps."""
    found = [
        f"{name} {theirs[name]}, not {ours[name]}" for name in COUNTS if theirs[name] != ours[name]
    ]
    values = {"loss": (ours["loss"], theirs["loss"])}
    values |= {f"gradient of {p}": (n, theirs["norms"][p]) for p, n in ours["norms"].items()}
    return found + [
        f"{name} {other:.4f}, not {own:.4f}"
        for name, (own, other) in values.items()
        if abs(other - own) > TOLERANCE * abs(own)
    ]


def installed(python: str, package: str) -> str | None:
    """The version of a package that an interpreter has.

    Raises:
        OSError: If there is no such interpreter.
    """
    code = f"from importlib.metadata import version; print(version({package!r}))"
    asked = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return asked.stdout.strip() or None


def find_trainers(pythons: dict[str, str | None]) -> tuple[dict[str, str], list[str]]:
    """Who can take part: interpreter by trainer, and versions. Says who cannot, and why."""
    trainers, versions = {"rbft": sys.executable}, []
    for name, package in PACKAGES.items():
        python = pythons[name]
        if python is None:
            print_rank_zero(f"{package}: not installed; give --{name} PYTHON")
            continue
        try:
            found = installed(python, package)
        except OSError:
            print_rank_zero(f"{package}: not installed ({python} cannot be started)")
            continue
        if found is None:
            print_rank_zero(f"{package}: not installed ({python} has none)")
            continue
        libraries = [f"{p} {installed(python, p)}" for p in ("torch", "transformers")]
        versions.append(f"{package} {found} ({', '.join(libraries)})")
        trainers[name] = python
    return trainers, versions


def compare(setting: Setting, trainers: dict[str, str]) -> dict[str, str]:
    """Runs the first step of each trainer, says how they compare, and returns who is left."""
    prepare(setting)
    ours = run("rbft", trainers["rbft"], setting, 0)
    norms = ", ".join(f"{part} {norm:.4f}" for part, norm in ours["norms"].items())
    counts = ", ".join(f"{ours[name]} {name}" for name in COUNTS)
    print_rank_zero(
        f"{TITLES[setting.stage.name]}: first step of rbft: {counts}, loss {ours['loss']:.4f}"
    )
    print_rank_zero(f"  gradient norms: {norms}")
    left = {"rbft": trainers["rbft"]}
    for number, (name, python) in enumerate(list(trainers.items())[1:], 1):
        try:
            theirs = run(name, python, setting, number)
        except RuntimeError as error:
            print_rank_zero(f"  {name}: left out, it failed:\n{error}")
            continue
        found = differences(ours, theirs)
        if found:
            print_rank_zero(f"  {name}: left out, it does other work: {'; '.join(found)}")
        else:
            print_rank_zero(f"  {name}: the same")
            left[name] = python
    return left


def measure(setting: Setting, trainers: dict[str, str], rounds: int) -> None:
    """Times the trainers in turn, and prints a table."""
    prepare(setting)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in trainers}
    for number in range(rounds):
        for place, (name, python) in enumerate(trainers.items()):
            found[name].append(run(name, python, setting, number * len(trainers) + place))
    weights = (setting.world.backbone / "model.safetensors").stat().st_size / 1e9
    print_rank_zero(f"{TITLES[setting.stage.name]}:")
    print_rank_zero(summary(found, setting.clips // setting.batch, setting.batch, weights))


def summary(
    found: dict[str, list[dict[str, Any]]], per_epoch: int, batch: int, weights: float
) -> str:
    """The table of what was recorded.

    Args:
        found: Records of every run, by trainer; rbft first.
        per_epoch: Steps of an epoch.
        batch: Clips of a step.
        weights: Size of the model's weights in GB.
    """
    rows = []
    speeds, peaks, passing = [], [], []
    for name, runs in found.items():
        # The first step makes the optimiser's state and whatever else is made once.
        cold = [statistics.mean(run["cpu"][1:per_epoch]) for run in runs]
        warm = [statistics.mean(run["cpu"][per_epoch:]) for run in runs]
        peak = [run["peak"] for run in runs]
        # Gradients and AdamW's two moments are as large as the weights, which are at rest already.
        rest = [run["peak"] - run["resting"] - 3 * weights for run in runs]
        speeds.append(batch / statistics.median(warm))
        peaks.append(statistics.median(peak))
        passing.append(statistics.median(rest))
        rows.append(
            [
                name,
                middle(cold),
                middle(warm),
                f"{speeds[-1]:.2f}",
                f"{speeds[0] / speeds[-1]:.2f}x",
                middle(peak),
                f"{peaks[0] / peaks[-1]:.2f}x",
                f"{passing[-1]:.2f}",
                f"{passing[0] / passing[-1]:.2f}x",
                f"{runs[0]['padded'] / runs[0]['tokens'] - 1:.0%}",
            ]
        )
    headers = ["trainer", "CPU s a step, decoding", "CPU s a step, later epochs", "clips/CPU s"]
    headers += ["rbft faster", "peak GB", "rbft needs", "temporary GB", "rbft needs", "padding"]
    return table(rows, headers)


def main() -> None:
    """Makes the world, compares, times, prints."""
    parser = step_options(str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all trainers (default 5)")
    parser.add_argument("--clips", type=int, default=16, help="training clips (default 16)")
    parser.add_argument("--fps", type=int, default=1, help="frames a second (default 1)")
    parser.add_argument("--hidden", type=int, default=256, help="decoder width (default 256)")
    parser.add_argument("--layers", type=int, default=4, help="decoder blocks (default 4)")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    for name in PACKAGES:
        own = sys.executable if name == "transformers" else None
        parser.add_argument(f"--{name}", default=own, help=f"interpreter that has {PACKAGES[name]}")
    given = parser.parse_args()
    trainers, versions = find_trainers({name: getattr(given, name) for name in PACKAGES})
    print_rank_zero(machine())
    print_rank_zero("; ".join(versions))
    whole = replace(Size(), hidden=given.hidden, layers=given.layers)
    size = replace(TINY if given.tiny else whole, clips=given.clips, fps=given.fps)
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder).resolve(), size)
        for name in given.stages:
            step = Setting(world, STAGES[name], given.batch, 1, given.checkpointing, compare=True)
            left = compare(step, trainers)
            timed = Setting(world, STAGES[name], given.batch, EPOCHS, given.checkpointing)
            measure(timed, left, given.rounds)


if __name__ == "__main__":
    main()
