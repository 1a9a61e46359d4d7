"""A run on disk: which folder holds what, what is finished, and what it was made from."""

import hashlib
import json
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from rbft.positions import POSITION_RULE

LIBRARIES = ("rbft", "torch", "transformers", "lightning", "peft", "torchmetrics")
PROVENANCE = "rbft.json"
ZERO_SHOT = "zero_shot"


@dataclass(frozen=True)
class Run:
    """The folder of one experiment, `lightning_logs/<experiment>`.

    Attributes:
        folder: That folder.
    """

    folder: Path

    def stage(self, name: str) -> Path:
        """Everything of one stage: events, weights, results."""
        return self.folder / name

    def weights(self, name: str) -> Path:
        """The weights folder that the stage leaves."""
        return self.stage(name) / "weights"

    def results(self, name: str, split: str = "test") -> Path:
        """The metrics of a stage; the file is there once the split is scored."""
        return self.stage(name) / f"{split}.json"

    def trained(self, name: str) -> bool:
        """Whether the stage is finished: its weights folder appears whole or not at all."""
        return (self.weights(name) / PROVENANCE).exists()

    def checkpoints(self, name: str) -> Path:
        """Lightning checkpoints of a stage that is not finished."""
        return self.stage(name) / "checkpoints"

    def checkpoint(self, name: str) -> Path | None:
        """The newest checkpoint to resume the stage from, a file or (of shares) a folder."""
        found = self.checkpoints(name).glob("step=*.ckpt")
        # Not by time: a folder from which something is deleted becomes newer.
        return max(found, key=lambda path: int(path.stem.partition("=")[2]), default=None)


def versions() -> dict[str, str]:
    """Versions of the libraries that a result depends on."""
    return {name: version(name) for name in LIBRARIES}


def revision() -> str | None:
    """The git revision of rbft; None where it is installed from elsewhere than a checkout."""
    package = Path(__file__).parent
    if not (package.parent / ".git").exists():
        return None
    git = ["git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        said = subprocess.run(git, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()


def provenance(**facts: Any) -> dict[str, Any]:
    """What a folder or file was made from: the given facts, the position rule, versions."""
    return {**facts, "positions": POSITION_RULE, "versions": versions()}


def read_provenance(weights: Path) -> dict[str, Any] | None:
    """What rbft noted in a weights folder; None where it made none."""
    file = weights / PROVENANCE
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def check_weights(weights: Path, stages: list[str], backbone: str) -> None:
    """Refuses weights that do not come from the given stages of the given backbone.

    Args:
        weights: A weights folder.
        stages: Names of the stages that must have made it, in order.
        backbone: Fingerprint of the backbone that the first of them started from.

    Raises:
        ValueError: If the folder is missing, was not made by rbft or by another method.
    """
    found = read_provenance(weights) if weights.is_dir() else None
    if found is None:
        state = f"holds no {PROVENANCE}" if weights.is_dir() else "does not exist"
        raise ValueError(
            f"weights folder {weights} {state}. "
            f"This stage follows {' and '.join(stages)}; run fit with all stages, or set "
            "model.weights to a folder that rbft left."
        )
    if found["stages"] != stages or found["backbone"] != backbone:
        raise ValueError(
            f"weights folder {weights} is the result of the stages {found['stages']} on backbone "
            f"{found['backbone']}, but this stage must follow {stages} on {backbone}. Remove the "
            "run's folder to train anew, or give the experiment another name."
        )


# Settings that a run may change when it is started again: they decide where and how fast it
# runs and what it shows, not what comes out.
FREE_SETTINGS = (
    "config",
    "name",
    "score_each_stage",
    "checkpoint_every",
    "cpu_threads",
    "ckpt_path",
    "restart",
    "dry_run",
    "gpu_gb",
    "data.init_args.num_workers",
    "data.init_args.cache_folder",
    "data.init_args.frame_cache_gb",
    "data.init_args.feature_cache_gb",
    "data.init_args.reader",
    "data.init_args.batch_size",
    "data.init_args.eval_batch_size",
    "model.gradient_checkpointing",
    "model.attention",
    "model.packing",
    "model.compile",
    "model.liger",
    "trainer.accelerator",
    "trainer.strategy",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.logger",
    "trainer.callbacks",
    "trainer.log_every_n_steps",
    "trainer.enable_progress_bar",
    "trainer.profiler",
    "trainer.default_root_dir",
)


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    items: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        items |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return items


def check_settings(file: Path, settings: dict[str, Any]) -> None:
    """Refuses to go on with a run under other settings than it was started with.

    Args:
        file: The run's settings from when it was first started; need not exist.
        settings: The settings of now.

    Raises:
        ValueError: Naming every difference.
    """
    if not file.exists():
        return
    before, now = flat(yaml.safe_load(file.read_text(encoding="utf-8"))), flat(settings)
    names = [
        name
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
        and not any(name == free or name.startswith(f"{free}.") for free in FREE_SETTINGS)
    ]
    if names:
        lines = [f"  {name}: {before.get(name)} -> {now.get(name)}" for name in names]
        raise ValueError(
            f"The run {file.parent} was started with other settings:\n"
            + "\n".join(lines)
            + "\nGive the experiment another name, or add --restart true to throw away what the "
            "run has left so far."
        )


def check_clips(file: Path, clips: dict[str, list[str]]) -> None:
    """Refuses to go on with a run on other clips than it was started with.

    Args:
        file: The run's clips from when it was first started; need not exist.
        clips: Ids of the usable clips of now, by split.

    Raises:
        ValueError: Naming some of the clips that came or went.
    """
    if not file.exists():
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    changes = []
    for split, ids in clips.items():
        came, went = sorted({*ids} - {*before[split]}), sorted({*before[split]} - {*ids})
        for word, names in (("came", came), ("went", went)):
            if names:
                changes.append(f"{len(names)} {split} clips {word} ({', '.join(names[:3])})")
    if changes:
        raise ValueError(
            f"The run {file.parent} was started with other clips: {'; '.join(changes)}. Put their "
            "files back as they were, give the experiment another name, or add --restart true to "
            "throw away what the run has left so far."
        )


def digest(names: list[str]) -> str:
    """Short hash of a list of ids, whatever its order."""
    text = "\n".join(sorted(names))  # ids of files whose names are no UTF-8 hold surrogates
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]
