"""`test` and `validate`: score a split with any weights."""

from pathlib import Path

from lightning.fabric.utilities.rank_zero import _get_rank

from rbft.build import Experiment
from rbft.commands.masked import masked_table
from rbft.endpoint import score_with_endpoint
from rbft.inputs import Inputs, check_inputs, find_weights
from rbft.method import Method
from rbft.runs.folder import ZERO_SHOT
from rbft.runtime.console import print_rank_zero
from rbft.stages import find_stage


def test(experiment: Experiment, weights: str = "run") -> None:  # noqa: PT028 (is no test)
    """Score the test split with a run, a weights folder, the bare backbone or an endpoint.

    With `endpoint`, a server is asked and no backbone is needed.

    Args:
        experiment: The settings.
        weights: run takes the run's last finished stage (or model.stage), backbone the bare
            backbone (zero-shot); anything else is a weights folder, or the folder of a run.
    """
    _score(experiment, "test", weights)


def validate(experiment: Experiment, weights: str = "run") -> None:
    """Score the validation split with a run, a weights folder, the bare backbone or an endpoint.

    With `endpoint`, a server is asked and no backbone is needed.

    Args:
        experiment: The settings.
        weights: run takes the run's last finished stage (or model.stage), backbone the bare
            backbone (zero-shot); anything else is a weights folder, or the folder of a run.
    """
    _score(experiment, "val", weights)


def _score(experiment: Experiment, split: str, weights: str) -> None:
    if experiment.endpoint is not None:
        if experiment.masking is not None:
            raise ValueError(
                "data.masking masks what a backbone is shown, and endpoint.model "
                f"({experiment.endpoint.model}) is a server's. Add --endpoint null, or "
                "--data.masking null."
            )
        if weights != "run":
            raise ValueError(
                f"--weights {weights} and endpoint.model {experiment.endpoint.model} both say who "
                "is asked. Leave one of them out (--endpoint null)."
            )
        if experiment.decision is not None:
            raise ValueError(
                "decision chooses a threshold for the probabilities of a backbone, not for "
                f"endpoint.model {experiment.endpoint.model}. Add --decision null."
            )
        if not _get_rank():  # one process asks
            score_with_endpoint(experiment, split)
        return
    place, stage, folder = find_weights(experiment, weights)
    inputs = check_inputs(experiment)
    if not inputs.data.clips(split):
        raise ValueError(
            f"{type(inputs.data).__name__} has no {split} split. Set "
            "data.val_fraction to carve a validation split from the training clips."
        )
    if folder is not None:
        inputs.check_words(folder, find_stage(stage).classifier)
        inputs.check_unseen(folder, split)
    inputs.check_masks(split)
    method = Method(inputs)
    with method.owned():
        if inputs.masks is not None:
            _score_masked(inputs, place, stage, folder, split)
            return
        made = method.score(place, stage, folder, split, again=True)
        method.print_table(split, made, [ZERO_SHOT, place])
        if split == "test":
            method.decide(place, stage, folder)


def _score_masked(inputs: Inputs, place: str, stage: str, folder: Path | None, split: str) -> None:
    """Scores with objects masked, or each draw of the random control, and prints what is known.

    What was scored before with the same masks is not scored again.
    """
    weights, name = "", place
    if folder is not None:  # <run>/<stage>/weights
        whole = folder.resolve()
        name = whole.parent.parent.name if whole.name == "weights" else whole.name
    for one in inputs.masked_each():
        method = Method(one)
        made = method.score(place, stage, folder, split)
        weights = made["weights"]
    if not _get_rank():
        print_rank_zero(masked_table(inputs.experiment.logs, weights, split, name))
