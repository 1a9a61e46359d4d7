"""`rationalize`: Stage 0 alone."""

from rbft.build import Experiment
from rbft.inputs import check_inputs
from rbft.stage_zero import write_rationales


def rationalize(experiment: Experiment, prompts: list[str] | None = None) -> None:
    """Write the rationales of the training clips (Stage 0) and stop.

    Args:
        experiment: The settings.
        prompts: Rationale prompts of the card, "[rationale, less, least]": writes those of
            several experiments that differ in data.rationale_prompt, and reads each clip once.
            null takes the experiment's own.
    """
    write_rationales(check_inputs(experiment), prompts)
