"""`rationalize`: Stage 0 alone."""

from lightning.fabric.utilities.rank_zero import _get_rank

from rbft.build import Experiment
from rbft.inputs import check_inputs
from rbft.runtime.console import print_rank_zero
from rbft.stage_zero import ask_endpoint, write_rationales


def rationalize(experiment: Experiment, prompts: list[str] | None = None) -> None:
    """Write the rationales of the training clips (Stage 0) and stop.

    With `endpoint`, a server writes them and no backbone is needed.

    Args:
        experiment: The settings.
        prompts: Rationale prompts of the card, "[rationale, less, least]": writes those of
            several experiments that differ in data.rationale_prompt, and reads each clip once.
            null takes the experiment's own.
    """
    if experiment.endpoint is None:
        write_rationales(check_inputs(experiment), prompts)
        return
    if _get_rank():  # one process asks
        return
    data = experiment.data()
    data.check(experiment.stages)
    for note in data.notes:
        print_rank_zero(note)
    ask_endpoint(experiment, data, prompts)
