"""Which weights are asked what about videos: the same for `predict`, Python and the demo."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbft.build import Experiment
from rbft.decision import ClassThresholds, Decision, find_decision
from rbft.inputs import Inputs, check_inputs, find_weights
from rbft.runs.folder import read_provenance
from rbft.stages import find_stage


@dataclass(frozen=True)
class Setup:
    """Weights that are asked about videos, and how; nothing is loaded yet.

    Attributes:
        inputs: The settings, checked.
        stage: Name of the stage whose question is put.
        folder: The weights folder; None for the bare backbone.
        decision: The threshold that was chosen for the weights, or those of all classes; None
            where there is none.
        conditions: What determines the answers.
    """

    inputs: Inputs
    stage: str
    folder: Path | None
    decision: Decision | ClassThresholds | None
    conditions: dict[str, Any]

    @property
    def threshold(self) -> tuple[str, float] | Mapping[str, float] | None:
        """A class, and its probability from which on it is the label; None where there is none.

        Where a clip may have several classes, the least probability of each.
        """
        return None if self.decision is None else self.decision.chosen

    @property
    def model(self) -> str:
        """Which weights these are, for people: folder or hub id, and below it what made them."""
        if self.folder is None:
            return f"{self.inputs.experiment.settings.model.backbone}\nnot trained"
        note = read_provenance(self.folder) or {}
        run = f"run {note['run']}, " if note.get("run") else ""
        return f"{self.folder}\n{run}trained on {' -> '.join(note.get('stages', [self.stage]))}"


def set_up(experiment: Experiment, weights: str, devices: Mapping[str, Any] | None = None) -> Setup:
    """Finds weights and checks that they can be asked, before anything is loaded.

    Args:
        experiment: The settings.
        weights: See `rbft.inputs.find_weights`.
        devices: Arguments of the Trainer that stand for those of the settings.

    Raises:
        ValueError: If there are no such weights, they were trained with other words, or they have a
            threshold and write their answers.
    """
    inputs = check_inputs(experiment, benchmark=False, devices=devices)
    _, stage, folder = find_weights(experiment, weights)
    stage = find_stage(stage).classifier.name
    if folder is not None:
        inputs.check_words(folder, find_stage(stage))
    conditions = inputs.conditions(stage, folder)
    decision = None if folder is None else find_decision(folder, conditions["weights"])
    if decision is not None and experiment.settings.model.answer != "score":
        raise ValueError(
            f"The threshold in {decision.file} needs the probabilities of the classes, but "
            f"model.answer is {experiment.settings.model.answer}. Set it to score, or remove the "
            "file."
        )
    return Setup(inputs, stage, folder, decision, conditions)
