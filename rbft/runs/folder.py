"""A run on disk: which folder holds what, what is finished, and what it was made from."""

import hashlib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

LIBRARIES = ("rbft", "torch", "transformers", "lightning", "peft", "torchmetrics")
PROVENANCE = "rbft.json"  # in a weights folder: what made it
PROMPT_RULE = "video_prompt"  # its key of how a clip stands in the prompt
CARD, CLIPS = "card.yaml", "clips.json"  # in a run's and in a weights folder: words and clips
ADAPTER = "adapter_config.json"  # peft's, in a weights folder that is no whole model
ZERO_SHOT = "zero_shot"
LOG = "log.txt"  # in a run's folder: all that was said, with the time
# In PROVENANCE and in results the number of rationales that were learnt whose writer was told the
# class, and in a line of a rationale file the mark of such a one.
TOLD = "label_conditioned"


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

    def results(self, name: str, split: str = "test", tag: str = "") -> Path:
        """The metrics of a stage; the file is there once the split is scored.

        Args:
            name: The stage, or another place in the run's folder.
            split: The scored split.
            tag: Tells results apart that were not made as the run's own; empty for those.
        """
        return self.stage(name) / (f"{split}-{tag}.json" if tag else f"{split}.json")

    def find_result(self, name: str, split: str, made: dict[str, Any]) -> Path | None:
        """The results of a stage that were made so, None where there are none.

        Args:
            name: The stage, or another place in the run's folder.
            split: The scored split.
            made: What determines the results, see `rbft.method.Method`.
        """
        for file in self.result_files(name, split):
            if read_json(file).get("made") == made:
                return file
        return None

    def result_files(self, name: str, split: str) -> list[Path]:
        """All results of a stage on a split, the run's own and those made otherwise."""
        return sorted(self.stage(name).glob(f"{split}*.json"))

    def trained(self, name: str) -> bool:
        """Whether the stage is finished: its weights folder appears atomically."""
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
    package = Path(__file__).parents[1]
    if not (package.parent / ".git").exists():
        return None
    git = ["git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        said = subprocess.run(git, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()


def provenance(positions: str, prompt_rule: str | None = None, **facts: Any) -> dict[str, Any]:
    """What a folder or file was made from: the given facts, the rules of prompts, versions.

    Args:
        positions: The rule of the rotary positions, see `rbft.backbone.positions`.
        prompt_rule: How a clip stands in the prompt, see `rbft.backbone.family.Family`; None where
            there is one way.
        **facts: The rest.
    """
    rule = {} if prompt_rule is None else {PROMPT_RULE: prompt_rule}
    return {**facts, "positions": positions, **rule, "versions": versions()}


def read_provenance(weights: Path) -> dict[str, Any] | None:
    """What rbft noted in a weights folder; None where it made none."""
    file = weights / PROVENANCE
    return read_json(file) if file.exists() else None


def base_source(weights: Path, base: Mapping[str, str]) -> str:
    """Folder or hub id of an adapter's base.

    Args:
        weights: The adapter's weights folder.
        base: The note of its base; a name that begins with `..` is relative to the weights folder.
    """
    name = base["name"]
    return str((weights / name).resolve()) if Path(name).parts[:1] == ("..",) else name


def check_weights(
    weights: Path, stages: list[str], backbone: str, card: str, clips: dict[str, str]
) -> None:
    """Refuses weights that do not come from the given stages, backbone, card and clips.

    Args:
        weights: A weights folder.
        stages: Names of the stages that must have made it, in order.
        backbone: Fingerprint of the backbone that the first of them started from.
        card: Digest of the card.
        clips: Digest of the clips of each split that training uses.

    Raises:
        ValueError: If the folder is missing, was not made by rbft or from something else.
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
    for name, now in (("card", card), ("clips", clips)):
        if found.get(name) != now:
            raise ValueError(
                f"weights folder {weights} was trained with another {name} ({found.get(name)}) "
                f"than this run has now ({now}). Remove the run's folder to train anew, or give "
                "the experiment another name."
            )


def read_json(file: Path) -> Any:
    """Content of a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))


def digest(names: list[str]) -> str:
    """Short hash of a list of ids, whatever its order."""
    text = "\n".join(sorted(names))  # ids of files whose names are no UTF-8 hold surrogates
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]
