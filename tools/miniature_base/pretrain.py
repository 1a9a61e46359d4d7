"""Makes the base model: trains it from scratch on the general domain, on one core, in minutes.

Run `python -m tools.miniature_base.pretrain --output FOLDER`. The same seed gives the same weights,
bit for bit, on the same machine and versions. First the vision tower alone learns what occupies
each cell of the picture; then the whole model learns to talk about clips. Matrices are trained with
Muon, everything else with AdamW.

`--knowledge plain` makes a model that sees no risk in what it describes, `--knowledge sides` one
that can also say what speaks for each class.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from rbft.miniature.scene import GENERAL, Scene, draw_scene
from tools.miniature_base import lessons
from tools.miniature_base.base_model import new_processor
from tools.miniature_base.evaluate import figures
from tools.miniature_base.eye import eye_labels
from tools.miniature_base.student import Student


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own learning-rate schedule.

    Attributes:
        name: For the progress bar.
        steps: Optimiser steps.
        batch_size: Clips a step (frame pairs a step, where only the vision tower learns).
        rate: Muon's learning rate for the language model, or for the vision tower alone.
        shares: How often each kind of prompt is asked; empty trains the vision tower alone.
        assessing: Whether rationales end with the risk that a person would see.
    """

    name: str
    steps: int
    batch_size: int
    rate: float
    shares: dict[str, float] = field(default_factory=dict)
    assessing: bool = True


PHASES = (
    Phase("vision", 600, 64, 0.02),
    Phase(
        "language",
        850,
        32,
        0.015,
        # Actions come last: a caption has many words, and only one of them is the action.
        {"rationale": 0.8, "short": 0.5, "atmosphere": 0.2, "label": 0.2},
    ),
)
# What a base model knows: the packaged one, one without the assessment, one that argues both sides.
KNOWLEDGE = {
    "full": PHASES,
    "plain": (PHASES[0], replace(PHASES[1], assessing=False)),
    "sides": (PHASES[0], replace(PHASES[1], shares={**PHASES[1].shares, "sides": 0.5})),
}
ADAMW_RATE = 2e-3
WEIGHT_DECAY = 0.02
WARMUP_STEPS = 30
EYE_WEIGHT = 0.3  # of the vision tower's own loss beside the language loss


def optimizers(student: Student, phase: Phase) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embeddings, biases, norms, patches and the linear heads."""
    visual, language, rest = [], [], []
    for name, parameter in student.named_parameters():
        if parameter.ndim != 2 or "embed_tokens" in name or name.startswith("heads"):
            rest.append(parameter)
        else:
            (visual if ".visual." in name else language).append(parameter)
    alone = not phase.shares
    muon = torch.optim.Muon(
        [
            {"params": visual, "lr": phase.rate if alone else phase.rate / 2},
            {"params": language, "lr": phase.rate},
        ],
        lr=phase.rate,
        weight_decay=WEIGHT_DECAY,
    )
    adamw = torch.optim.AdamW(rest, lr=ADAMW_RATE, weight_decay=WEIGHT_DECAY)
    return [muon, adamw]


def losses(student: Student, phase: Phase, seed: int) -> Iterator[dict[str, float]]:
    """Trains through a phase; yields the losses after each step."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    steppers = optimizers(student, phase)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            stepper,
            lambda step: min((step + 1) / WARMUP_STEPS, 1.0) * (1 - step / phase.steps),
        )
        for stepper in steppers
    ]
    for _ in range(phase.steps):
        scenes = [draw_scene(rng, GENERAL) for _ in range(phase.batch_size)]
        logged = _backward(student, phase, scenes, rng, generator)
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for stepper, schedule in zip(steppers, schedules, strict=True):
            stepper.step()
            stepper.zero_grad()
            schedule.step()
        yield logged


def _backward(
    student: Student,
    phase: Phase,
    scenes: list[Scene],
    rng: np.random.Generator,
    generator: torch.Generator,
) -> dict[str, float]:
    times: list[tuple[float, ...]] = [lessons.TIMES] * len(scenes)
    if not phase.shares:  # one random frame pair of each scene
        firsts = [2 * int(rng.integers(3)) for _ in scenes]
        times = [lessons.TIMES[first : first + 2] for first in firsts]
    pixels = lessons.augment(lessons.filmed(scenes, times), generator)
    tokens = student.see(lessons.patches(pixels))
    eye = student.eye_loss(tokens, eye_labels(scenes, times))
    if not phase.shares:
        eye.backward()
        return {"eye": eye.item()}
    turns = lessons.pack(
        [
            lessons.draw_turns(scene, phase.shares, rng, assessing=phase.assessing)
            for scene in scenes
        ]
    )
    talk = student.talk_loss(tokens, turns)
    (talk + EYE_WEIGHT * eye).backward()
    return {"eye": eye.item(), "talk": talk.item()}


def pretrain(seed: int, phases: tuple[Phase, ...] = PHASES) -> Any:
    """Trains a Qwen2.5-VL from scratch, with a progress bar for each phase."""
    student = Student(seed)
    for number, phase in enumerate(phases):
        bar = tqdm(
            losses(student, phase, seed=seed * 1000 + number),
            phase.name,
            phase.steps,
            mininterval=2,
        )
        for logged in bar:
            bar.set_postfix(logged, refresh=False)
    return student.model


def main() -> None:
    """Writes the base model's folder."""
    parser = argparse.ArgumentParser(description="Makes the base model of the miniature world.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--knowledge", choices=[*KNOWLEDGE], default="full")
    arguments = parser.parse_args()
    if arguments.output.exists():
        parser.error(f"--output {arguments.output} exists already; name a new folder.")
    torch.set_num_threads(1)
    begun = time.process_time()
    phases = KNOWLEDGE[arguments.knowledge]
    model = pretrain(arguments.seed, phases)
    seconds = time.process_time() - begun
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.output.parent) as unfinished:
        folder = Path(unfinished, "base")
        save(model, folder, arguments.seed, seconds, phases)
        folder.rename(arguments.output)


def save(
    model: Any, folder: Path, seed: int, seconds: float, phases: tuple[Phase, ...] = PHASES
) -> None:
    """Writes weights (bfloat16), processor and the record of how they were made.

    The figures in the record are those of the written weights.
    """
    from transformers import AutoModelForImageTextToText

    processor = new_processor()
    processor.save_pretrained(folder)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    written = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    assessing = phases[-1].assessing
    record = provenance(seed, seconds, phases) | {
        "accuracy": {
            "general, 64 clips": figures(written, processor, "general", 64, 10_000, assessing),
            "target, 300 clips": figures(written, processor, "target", 300, 10_000, assessing),
        },
    }
    path = folder / "provenance.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def provenance(seed: int, seconds: float, phases: tuple[Phase, ...] = PHASES) -> dict[str, object]:
    """How a base model was made."""
    import transformers

    return {
        "script": "python -m tools.miniature_base.pretrain",
        "seed": seed,
        "phases": [asdict(phase) for phase in phases],
        "cpu_seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
    }


if __name__ == "__main__":
    main()
