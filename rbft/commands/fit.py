"""`fit`: runs the method."""

from pathlib import Path

from rbft.build import Experiment
from rbft.callbacks.best import check_keep
from rbft.estimate.dry_run import count_tokens_of_stages, report, stand_in
from rbft.inputs import check_inputs
from rbft.method import Method, check_checkpoint
from rbft.runtime.console import print_rank_zero
from rbft.stages import find_stage


def fit(
    experiment: Experiment,
    ckpt_path: Path | None = None,
    restart: bool = False,
    dry_run: bool = False,
    gpu_gb: float | None = None,
) -> None:
    """Run the method: write missing rationales, train each stage, score the test split.

    With `endpoint`, a server writes the rationales that the backbone learns from.

    Started again, it skips what is finished and resumes what is not.

    Args:
        experiment: The settings.
        ckpt_path: Lightning checkpoint to resume a single stage (model.stage) from.
        restart: Throw away what the run (or model.stage of it) has left so far, but not its
            rationales.
        dry_run: Load no weights and train nothing: print what would run, parameters and
            learning rates, tokens of the clips, estimated memory and disk space.
        gpu_gb: Memory in GiB of the GPU that the dry run compares with; null takes the GPU that
            is present.
    """
    _check_endpoint(experiment)
    check_checkpoint(ckpt_path, experiment.stages)
    trainer = experiment.settings.trainer
    devices = stand_in(trainer.accelerator, trainer.devices) if dry_run else {}
    inputs = check_inputs(experiment, weights=not dry_run, devices=devices)
    if experiment.stages:
        inputs.model.check_trainable()
        keep, settings = experiment.settings.keep, experiment.settings
        check_keep(keep, settings.keep_metric, settings.patience, inputs.data, vars(trainer))
    inputs.compare_given()
    method = Method(inputs)
    if not dry_run:
        count_tokens_of_stages(method.plan())  # a clip that is too long ends the run here
        method.fit(ckpt_path, restart=restart)
        return
    if not restart:
        method.check_record()
    print_rank_zero(report(method.plan(), experiment.run.folder.name, gpu_gb))


def _check_endpoint(experiment: Experiment) -> None:
    """Refuses an endpoint that would not be asked."""
    endpoint, stages = experiment.endpoint, experiment.stages
    if endpoint is None or any(find_stage(stage).needs_rationales for stage in stages):
        return
    raise ValueError(
        f"endpoint.model is {endpoint.model}, but fit asks an endpoint for rationales alone, which "
        f"the stages [{', '.join(stages)}] do not learn from. To have it classify, run python -m "
        "rbft test with the same settings; to train without it, add --endpoint null."
    )
