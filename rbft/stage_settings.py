"""Settings that only some stages know: refused where none of the experiment's stages is one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jsonargparse import Namespace

from rbft.card import Card
from rbft.stages import CLASS, ELICITED, LABEL, RATIONALE_STAGE, STAGES, Stage, find_stage


@dataclass(frozen=True)
class StageSetting:
    """A setting that only some stages know.

    Attributes:
        name: As users write it.
        default: The value that says nothing.
        known: Whether a stage knows it.
        what: What such a stage does.
    """

    name: str
    default: Any
    known: Callable[[Stage], bool]
    what: str

    def value(self, settings: Namespace) -> Any:
        """Its value among the settings of an experiment."""
        return settings.get(self.name.replace("data.", "data.init_args."), self.default)


def _has_both(stage: Stage) -> bool:
    return len(stage.parts) > 1 and not stage.all_classes


def _has_costs(stage: Stage) -> bool:
    return stage.objective == "expected_cost"


def _has_turns(stage: Stage) -> bool:
    return bool(stage.turns)


def _needs_rationales(stage: Stage) -> bool:
    return stage.needs_rationales


def _elicits(stage: Stage) -> bool:
    return stage.elicits


def _weighs_votes(stage: Stage) -> bool:
    """Whether it learns the class by its likelihood."""
    return CLASS in stage.parts and not stage.all_classes


STAGE_SETTINGS = (
    StageSetting("model.answer_weight", 1.0, _has_both, "learns a rationale and a class"),
    StageSetting("model.costs", None, _has_costs, "minimises what answers cost"),
    StageSetting("model.self_consistency", None, _elicits, "writes before it names the class"),
    StageSetting("data.label_share", 0.5, _has_turns, "takes turns"),
    StageSetting("data.soft_labels", False, _weighs_votes, "learns the class by its likelihood"),
    StageSetting("data.rationale_control", None, _needs_rationales, "learns rationales"),
    StageSetting("rationales_from", "backbone", _needs_rationales, "learns rationales"),
)


def check_stage_settings(settings: Namespace, stages: Sequence[str], before: Sequence[str]) -> None:
    """Refuses settings without effect, and stages without what they start from.

    Args:
        settings: The experiment's, by dotted name.
        stages: Names of its stages, in order.
        before: Names of the stages that made the weights which the first starts from.

    Raises:
        ValueError: Naming the setting, its value and what it needs.
    """
    found = [find_stage(name) for name in stages]
    for one in STAGE_SETTINGS:
        got = one.value(settings)
        if got != one.default and not any(map(one.known, found)):
            fitting = ", ".join(stage.name for stage in STAGES.values() if one.known(stage))
            shown = "set" if isinstance(got, dict | Namespace) else f"{got}"
            raise ValueError(
                f"{one.name} is {shown}, but none of the stages ({', '.join(stages) or 'none'}) "
                f"{one.what}. Those that do are {fitting}: take one into stages, or leave "
                f"{one.name} out."
            )
    if settings.model.get("self_consistency") is not None and settings.model.answer != "score":
        raise ValueError(
            f"model.self_consistency averages class probabilities, and model.answer is "
            f"{settings.model.answer}, which has none. Set model.answer to score."
        )
    if settings.get("data.init_args.soft_labels"):
        _check_votes(found)
    _check_writer(settings)
    _check_teachers(found, before)


def _check_votes(stages: Sequence[Stage]) -> None:
    """Refuses stages that learn the class in another way than by votes."""
    for stage in stages:
        if stage.all_classes:
            what = "class probabilities of a teacher" if stage.needs_teacher else "costs of answers"
            raise ValueError(
                f"data.soft_labels weighs the likelihood of the classes by the votes, but the "
                f"stage {stage.name} learns by the {what}. Leave one of the two out."
            )


def check_several(settings: Namespace, stages: Sequence[str], card: Card) -> None:
    """Refuses stages and settings that need clips of one class, where the card lets them have more.

    Args:
        settings: The experiment's, by dotted name.
        stages: Names of its stages, in order.
        card: The task's words.

    Raises:
        ValueError: Naming the setting and the card's key.
    """
    if card.several is None:
        return
    for stage in map(find_stage, stages):
        if stage.turns or stage.objective != "likelihood" or len(stage.parts) > 1:
            card.refuse_several(
                f"The stage {stage.name}",
                f"Such cards are trained with the stages {RATIONALE_STAGE.name} and {LABEL.name}.",
            )
    if settings.model.answer != "score":
        card.refuse_several(
            f"model.answer {settings.model.answer}", "Set it to score: yes and no are compared."
        )
    for name, allowed, instead in (
        ("class_weights", (False, None), "Leave it out."),
        ("soft_labels", (False, None), "Leave it out."),
        ("balanced_sampling", (False, None), "Leave it out."),
        ("masking", (None,), "Leave it out."),
        ("rationale_selection", ("first", "consistent", None), "Set it to first or consistent."),
    ):
        got = settings.get(f"data.init_args.{name}")
        if got not in allowed:
            value = f" {got}" if isinstance(got, str) else ""
            card.refuse_several(f"data.{name}{value}", instead)


def _check_writer(settings: Namespace) -> None:
    """Refuses one file of rationales where each stage has its own."""
    if settings.get("rationales_from", "backbone") == "backbone":
        return
    for name in ("data.init_args.rationale_file", "endpoint"):
        if settings.get(name) is not None:
            raise ValueError(
                f"rationales_from is {settings.rationales_from}: the weights that each stage "
                f"starts from write its rationales, but {name.replace('.init_args', '')} is set. "
                "Leave one of the two out."
            )


def _check_teachers(stages: Sequence[Stage], before: Sequence[str]) -> None:
    """Refuses a stage that is taught where nothing before it writes a rationale and a class."""
    earlier = [find_stage(name) for name in before]
    for place, stage in enumerate(stages):
        teachers = [*earlier, *stages[:place]][-1:]
        if stage.needs_teacher and not any(one.elicits for one in teachers):
            raise ValueError(
                f"The stage {stage.name} learns the class probabilities of the weights that it "
                f"starts from, which must write a rationale before the class. Put "
                f"{ELICITED.name} right before it in stages, or set model.weights to such weights."
            )
