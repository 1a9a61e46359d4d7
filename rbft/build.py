"""From settings, stage and starting weights to data module, module and Trainer; nowhere else."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser

from rbft.analysis.thresholds import Wanted
from rbft.backbone.family import token_side
from rbft.backbone.loading import load_config
from rbft.backbone_module import BackboneModule
from rbft.callbacks.board import Board
from rbft.callbacks.own_loggers import OwnLoggers, given_loggers, with_names
from rbft.callbacks.pictures import Pictures
from rbft.callbacks.progress import StepProgress
from rbft.data.base import Feed, VideoDataModule
from rbft.engines.settings import EndpointSettings
from rbft.masking.settings import Masking
from rbft.module import RBFTModule
from rbft.runs.folder import Run
from rbft.runtime.experiment_file import own_message
from rbft.runtime.fault_tolerance import explain_errors, take_signals
from rbft.runtime.pace import Pace
from rbft.stages import find_stage, stage_names
from rbft.training.checkpoints import StepCheckpoint, WholeCheckpoints

LOGS = "lightning_logs"
DEVICES = ("accelerator", "devices", "num_nodes", "strategy", "precision")


@dataclass(frozen=True)
class Built:
    """Data module, module and Trainer of one step, made for each other.

    Attributes:
        data: The benchmark, with what its loaders serve.
        module: What the Trainer runs.
        trainer: The Trainer.
    """

    data: VideoDataModule
    module: BackboneModule
    trainer: Trainer

    def fit(self, ckpt_path: Path | None = None) -> None:
        """Trains, from a checkpoint of the same stage if one is given."""
        with explain_errors(self.data.describe_current_batch), self._loggers():
            self.trainer.fit(self.module, self.data, ckpt_path=ckpt_path, weights_only=True)

    def test(self) -> None:
        """Scores the feed's split."""
        with explain_errors(self.data.describe_current_batch), self._loggers():
            self.trainer.test(self.module, self.data, verbose=False)

    def predict(self) -> None:
        """Runs over the feed's clips; callbacks take what comes of it."""
        with explain_errors(self.data.describe_current_batch):
            self.trainer.predict(self.module, datamodule=self.data, return_predictions=False)

    @contextmanager
    def _loggers(self) -> Iterator[None]:
        """Ends what the user's loggers have begun, however the step ends."""
        try:
            yield
        finally:
            for callback in list(getattr(self.trainer, "callbacks", ())):
                if isinstance(callback, OwnLoggers):
                    callback.close()


@dataclass(frozen=True)
class Objects:
    """What the settings name, made: nothing is loaded yet.

    Attributes:
        data: The benchmark.
        model: The module.
        trainer: Arguments of the Trainer.
    """

    data: VideoDataModule
    model: RBFTModule
    trainer: Mapping[str, Any]


class Experiment:
    """The settings of an experiment, and all that is made of them.

    Args:
        settings: All settings of a command, resolved; a copy is kept and never changed.
        parser: Makes the classes that the settings name.

    Attributes:
        settings: The settings, by dotted name.
        logs: Folder of all runs.
        run: The run's folder.
        single: The one stage that `model.stage` asks for; None runs the whole list.
        given: The weights folder that `model.weights` asks to start from.
        stages: Names of the stages, in order.
        endpoint: The server that answers in the backbone's place; None asks the backbone.
        decision: What a threshold is chosen for; None answers with the likeliest class.
        masking: What is masked in scored clips, its settings; None masks nothing.
    """

    def __init__(self, settings: Namespace, parser: LightningArgumentParser) -> None:
        self.settings, self.parser = settings.clone(), parser
        self.logs = Path(settings.trainer.default_root_dir or LOGS)
        self.run = Run(self.logs / (settings.name or "unnamed"))
        self.single: str | None = settings.model.stage
        self.given: Path | None = settings.model.weights
        self.stages: list[str] = [self.single] if self.single else stage_names(settings.stages)
        asked = settings.get("endpoint")
        self.endpoint = None if asked is None else EndpointSettings(**vars(asked))
        wanted = settings.get("decision")
        self.decision = None if wanted is None else Wanted(**vars(wanted))
        masked = settings.get("data.init_args.masking")
        self.masking = None if masked is None else Masking(**vars(masked))

    def changed(self, **settings: Any) -> "Experiment":
        """The same experiment with other settings.

        Args:
            **settings: By dotted name, with two underscores for each dot.
        """
        made = self.settings.clone()
        for name, value in settings.items():
            made[name.replace("__", ".")] = value
        return type(self)(made, self.parser)

    def as_yaml(self) -> str:
        """All settings as YAML."""
        # Defaults of Lightning's callbacks can be members of an Enum, which the YAML writer of
        # jsonargparse does not know where they are not checked.
        yaml.SafeDumper.add_multi_representer(
            Enum, lambda dumper, member: dumper.represent_str(member.name)
        )
        return self.parser.dump(self.settings, skip_none=False, skip_validation=True)

    def objects(self) -> Objects:
        """Makes what the settings name.

        Raises:
            ValueError: If a class refuses its settings.
        """
        made = _instantiate(self.parser, self.settings)
        made.data.resize_to_tokens(token_side(made.model.config))
        return Objects(made.data, made.model, vars(made.trainer))

    def data(self) -> VideoDataModule:
        """The benchmark alone, which needs no backbone; the size of frames is that of its tokens.

        Where there is no backbone, frames are as large as for Qwen2-VL and Qwen2.5-VL.
        """
        parser = type(self.parser)()
        parser.add_lightning_class_args(VideoDataModule, "data", subclass_mode=True)
        data = _instantiate(parser, parser.parse_object({"data": self.settings.data})).data
        model = self.settings.model
        with suppress(ValueError):
            config, _ = load_config(model.backbone, model.trust_remote_code)
            data.resize_to_tokens(token_side(config))
        return data


def quiet_trainer(objects: Objects, **trainer: Any) -> Trainer:
    """A Trainer that is only looked at: it logs, saves and shows nothing.

    Args:
        objects: What the settings name.
        **trainer: Arguments that differ from the settings'.
    """
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return _trainer(objects, **quiet, **trainer)


def build(
    experiment: Experiment,
    stage: str,
    weights: Path | None,
    title: str,
    callbacks: Sequence[Any] = (),
    *,
    feed: Mapping[str, Any] | None = None,
    folder: str | None = None,
    module: Callable[[RBFTModule], BackboneModule] | None = None,
    collating: Mapping[str, Any] | None = None,
    pace: Pace | None = None,
) -> Built:
    """Everything that one step of the method needs, made anew.

    Args:
        experiment: The settings.
        stage: Name of the stage.
        weights: Weights folder to start from, None for the bare backbone.
        title: What the progress line says.
        callbacks: The step's own, beside those that every step has.
        feed: What the loaders serve, see `rbft.data.base.Feed`.
        folder: Folder within the run's for TensorBoard's files, and what the user's loggers call
            the step; None logs nothing.
        module: Makes another module of the stage's, such as Stage 0's.
        collating: Arguments of the module's `collators`.
        pace: What the run has measured, and what it does after this step; None is this step alone.
    """
    settings, whole = experiment.settings, experiment
    seed_everything(settings.seed_everything, workers=True, verbose=False)
    experiment = experiment.changed(model__stage=stage, model__weights=weights)
    own = settings.trainer.get("logger") if folder is not None else False
    named = own if folder is None else with_names(own, settings.name, folder)
    objects = experiment.changed(trainer__logger=named).objects()
    made: Any = objects.model if module is None else module(objects.model)
    callbacks, logger = list(callbacks), False
    given_bar = any(isinstance(one, ProgressBar) for one in _several(objects.trainer["callbacks"]))
    shown = settings.trainer.enable_progress_bar is not False and not given_bar
    callbacks.append(StepProgress(title, pace or Pace(), shown=shown))
    if folder is not None:
        hparams, given = _hparams(whole, folder), given_loggers(objects.trainer.get("logger"))
        # The first one is the Trainer's `logger`, to which Pictures writes.
        board = Board(experiment.logs, settings.name, folder)
        logger = [board, *given]
        callbacks.append(Pictures(experiment.as_yaml(), hparams))
        if given:
            callbacks.append(OwnLoggers(given, hparams))
    trainer = _trainer(
        objects,
        logger=logger,
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(one, StepCheckpoint) for one in callbacks),
        enable_progress_bar=given_bar,
        plugins=[WholeCheckpoints()],
        enable_model_summary=False,
    )
    trainer.accumulate_grad_batches = objects.data.accumulation(trainer.world_size)
    collators = made.collators(**(collating or {}))
    served = Feed(collators, tower=lambda: made.tower, **(feed or {}))
    return Built(objects.data.with_feed(served), made, trainer)


def _instantiate(parser: LightningArgumentParser, settings: Namespace) -> Any:
    try:
        return parser.instantiate_classes(settings)
    except (ValueError, ImportError) as error:
        if reason := _logger_problem(str(error), settings.get("trainer.logger")):
            raise ValueError(reason) from error
        if own := own_message(str(error)):
            raise ValueError(own) from error
        raise


def _logger_problem(message: str, logger: Any) -> str | None:
    """What to say where a logger of the user's cannot be made; None where none is to blame."""
    kinds = [one.class_path for one in _listed(logger) if "class_path" in one]
    # jsonargparse quotes what the class has said.
    found = re.search(r"Problem with given class_path '([^']+)':\s*([^\n]+)", message)
    if found is None or found[1] not in kinds:
        return None
    reason = found[2].strip().rstrip(".")
    return (
        f"trainer.logger names {found[1].rpartition('.')[2]}, which cannot be made: {reason}. "
        "Install or correct what it needs, or leave it out: TensorBoard is always written."
    )


def _listed(logger: Any) -> list[Namespace]:
    """The classes of `trainer.logger`."""
    found = logger if isinstance(logger, list | tuple) else [logger]
    return [one for one in found if isinstance(one, Namespace)]


def _trainer(objects: Objects, **trainer: Any) -> Trainer:
    """The Trainer that the settings ask for, its signals taken by rbft."""
    for name in ("callbacks", "plugins"):  # ours come on top of the user's
        trainer[name] = [*_several(objects.trainer[name]), *trainer.get(name, [])]
    arguments = {**objects.trainer, **trainer}
    try:
        made = Trainer(**arguments)
    except (MisconfigurationException, ImportError, ValueError, TypeError) as error:
        raise ValueError(_trainer_problem(str(error), arguments)) from error
    take_signals(made)
    return made


def _trainer_problem(message: str, arguments: Mapping[str, Any]) -> str:
    """What to say where the Trainer refuses its arguments, most often devices that are not here."""
    shown = ", ".join(
        f"{name} {arguments[name]}" for name in DEVICES if isinstance(arguments[name], str | int)
    )
    return (
        f"Lightning's Trainer refuses its settings (trainer: {shown}): {message.strip()} Correct "
        "what is named; on a machine without a GPU leave trainer.accelerator out, or add --config "
        "hardware/cpu."
    )


def _several(given: Any) -> list[Any]:
    """What the Trainer takes as one, several or None."""
    return given if isinstance(given, list) else [] if given is None else [given]


def _hparams(experiment: Experiment, place: str) -> dict[str, Any]:
    """What tells runs and their stages apart in TensorBoard's table.

    Settings of training stand only where it made the weights: not with the bare backbone, nor with
    weights of another run.
    """
    settings = experiment.settings
    model, data = settings.model, settings.data
    found = {
        "run": settings.name,
        "stage": place,
        "backbone": model.backbone,
        "benchmark": data.class_path.rsplit(".", 1)[-1],
        "seed": settings.seed_everything,
    }
    if place not in experiment.stages:
        return found
    found |= {"learning_rate": model.learning_rate, "epochs": settings.trainer.max_epochs}
    so_far = experiment.stages[: experiment.stages.index(place) + 1]
    if any(find_stage(name).needs_rationales for name in so_far):
        found["rationale_prompt"] = data.init_args.rationale_prompt
        found["rationale_ratio"] = data.init_args.rationale_ratio
    return found


def with_precision(settings: Namespace) -> Namespace:
    """The settings with a precision where none is given: bfloat16 where the GPU has it."""
    made = settings.clone()
    if made.trainer.precision is None:
        made.trainer.precision = default_precision()
    return made


def default_precision() -> str | None:
    """What `trainer.precision` is on this machine where nothing is said."""
    if not torch.cuda.is_available():
        return None
    return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
