"""The command line: `python -m rbft fit --config experiments/smarthome_qwen25.yaml`."""

import logging
import os
import re
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
# It waits for the device in every forward to count the video's tokens, which
# `rbft.backbone.positions` has done before on the processor.
os.environ.setdefault("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
if not sys.stderr.isatty():  # downloads show bars, which are for eyes
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from transformers.utils.logging import disable_progress_bar

from rbft.analysis.thresholds import Wanted
from rbft.build import Experiment, with_precision
from rbft.callbacks.best import LOSS
from rbft.commands import COMMANDS, EXPERIMENT, find_command, takes_experiment
from rbft.commands.misspelt import check_settings
from rbft.data.base import VideoDataModule
from rbft.data.multihateclip import MultiHateClip
from rbft.data.smarthome import SmartHome
from rbft.data.videofolder import VideoFolder
from rbft.engines.settings import EndpointSettings
from rbft.miniature.data import Miniature
from rbft.module import RBFTModule
from rbft.runs.record import SETTINGS
from rbft.runtime.experiment_file import ExperimentFile, explain
from rbft.runtime.experiments import own_path
from rbft.runtime.fault_tolerance import (
    Stopped,
    exit_process,
    format_fatal_error,
    leave_process_group,
    note_report,
    signals,
)
from rbft.runtime.parent import die_with_parent, end_if_left_alone
from rbft.runtime.ranges import check_ranges
from rbft.stages import STAGES
from rbft.weights_folder import with_own_settings

StageName: Any = Literal[tuple(STAGES)]
BENCHMARKS = (SmartHome, MultiHateClip, VideoFolder, Miniature)
# Commands that take data.masking; what is trained or written is about whole frames.
MASKED = ("test", "validate", "mask", "scan")
BASE = f"{VideoDataModule.__module__}.{VideoDataModule.__name__}"
DEFAULTS = Path(__file__).with_name("defaults.yaml")


class RBFTParser(LightningArgumentParser):
    """A parser whose errors fit on the screen and name what is allowed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Half an option must be an error, not a guess.
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Ends with the message, without the usage of several hundred options."""
        if wrong := re.search(
            r'Parser key "data":.*Expected a dot import path string: (\S+)', message, re.DOTALL
        ):
            names = ", ".join(benchmark.__name__ for benchmark in BENCHMARKS)
            text = f"data is '{wrong[1]}', which is no benchmark; allowed are {names}."
        else:
            text = explain(message, self)
        self.exit(2, f"error: {text}\n")


class RBFTCLI(LightningCLI):
    """LightningCLI whose commands are functions, see `rbft.commands`."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The commands, with the arguments that are no options."""
        return {name: {EXPERIMENT} for name in COMMANDS}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose `--config` follows includes."""
        parser = self.parser_class(**{"prog": "python -m rbft", **kwargs})
        parser.add_argument(
            "-c",
            "--config",
            action=ExperimentFile,
            help="Experiment file; several may be given, later ones win.",
        )
        return parser

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        # LightningCLI takes a command's options from the Trainer's method of that name.
        self._subcommand_parsers: dict[str, LightningArgumentParser] = {}
        commands = parser.add_subcommands(title="commands")
        for name, skip in self.subcommands().items():
            function = find_command(name)
            summary = (function.__doc__ or "").splitlines()[0]
            if takes_experiment(function):
                command = self.init_parser(
                    description=summary, default_config_files=[str(DEFAULTS)]
                )
                self._add_arguments(command)
            else:
                command = self.parser_class(description=summary)
            added = command.add_function_arguments(function, skip={*skip})
            self._subcommand_method_arguments[name] = added
            self._subcommand_parsers[name] = command
            commands.add_subcommand(name, command, help=summary)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Reads the command line, with what a weights folder says of itself."""
        given = sys.argv[1:] if args is None else list(args)
        self.config = parser.parse_args(with_own_settings(given))

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Settings of the experiment as a whole."""
        parser.add_argument("--name", type=str, help="Name of the run, and of its folder.")
        parser.add_argument(
            "--stages",
            type=list[StageName],
            help="What is trained, in order: [rationale, label] is RB-FT, [label] Direct-SFT, [] "
            "zero-shot. A stage may stand there again.",
        )
        parser.add_argument(
            "--rationales_from",
            type=Literal["backbone", "previous"],
            default="backbone",
            help="Who writes the rationales that a stage learns: the backbone, once for all, or "
            "anew the weights that each stage starts from.",
        )
        parser.add_argument(
            "--score_each_stage",
            type=bool,
            default=True,
            help="Score the test split with the backbone and after every stage, not only last.",
        )
        parser.add_argument(
            "--checkpoint_every",
            type=int,
            default=50,
            help="Optimiser steps between checkpoints from which an interrupted stage resumes.",
        )
        parser.add_argument(
            "--keep",
            type=Literal["last", "best"],
            default="last",
            help="Weights that a stage hands on: the last, or those of its best validation score.",
        )
        parser.add_argument(
            "--keep_metric",
            type=str,
            default=LOSS,
            help="The validation metric of keep best: val/loss (the smaller the better), "
            "val/accuracy, val/f1/macro or val/f1/<class>; where clips may have several classes "
            "also val/f1/micro and val/ap/macro (mAP); on a scale also val/mae, val/mae/answer "
            "(the smaller the better) and val/spearman. Of equal scores the earlier one counts.",
        )
        parser.add_argument(
            "--patience",
            type=int | None,
            default=None,
            help="With keep best: validations in a row without a better score after which a stage "
            "ends. null goes through all epochs.",
        )
        parser.add_argument(
            "--cpu_threads",
            type=int | None,
            default=None,
            help="Threads that torch uses on the processor; null leaves it to torch. One is "
            "fastest for very small models, and on a machine that is busy with other things.",
        )
        parser.add_argument(
            "--endpoint",
            type=EndpointSettings | None,
            default=None,
            help="A server that answers in the backbone's place; null asks the backbone.",
        )
        parser.add_argument(
            "--decision",
            type=Wanted | None,
            default=None,
            help="What a miss and a false alarm of a class cost, or the recall that is wanted of "
            "it: a threshold is then chosen on the validation split and used by predict and "
            "export. Where clips may have several classes, f1 chooses one for each. null answers "
            "with the likeliest class, or from one half on.",
        )
        parser.link_arguments("data", "model.card", _card_of, apply_on="instantiate")

    @property
    def settings(self) -> Namespace:
        """The resolved settings of the command."""
        return self.config[str(self.subcommand)]

    def _set_seed(self) -> None:
        if takes_experiment(find_command(str(self.subcommand))):
            self._check_ranges()
            super()._set_seed()

    def _check_ranges(self) -> None:
        # All numbers by their dotted names, before anything is done with the first of them.
        values = {name.replace(".init_args", ""): v for name, v in self.settings.items()}
        check_ranges("", values)

    def _parse_ckpt_path(self) -> None:
        """Reads no settings from a checkpoint, and so not the file either."""

    def instantiate_classes(self) -> None:
        """Builds nothing: every step of the method has objects of its own, see `rbft.build`."""

    def _run_subcommand(self, subcommand: str) -> None:
        function = find_command(subcommand)
        options = {
            name: self.settings[name] for name in self._subcommand_method_arguments[subcommand]
        }
        if not takes_experiment(function):
            function(**options)
            return
        experiment = self.make_experiment()
        try:
            function(experiment, **options)
        except Exception as error:
            settings = experiment.run.folder / SETTINGS
            note_report(error, f"the settings ({settings}, or what --print_config prints)")
            raise

    def make_experiment(self) -> Experiment:
        """The experiment that the settings describe."""
        subcommand = str(self.subcommand)
        if self.settings.data is None or self.settings.data.class_path == BASE:
            names = ", ".join(benchmark.__name__ for benchmark in BENCHMARKS)
            raise ValueError(
                f"data names no benchmark. Name an experiment file (--config) that does, or add "
                f"--data with one of {names}."
            )
        if self.settings.get("data.init_args.masking") is not None and subcommand not in MASKED:
            raise ValueError(
                f"data.masking masks parts of scored clips, and {subcommand} would use masked ones "
                "for something else. Score a finished run with it: python -m rbft test with this "
                "--config and --weights lightning_logs/<run>. Or add --data.masking null."
            )
        if self.settings.cpu_threads is not None:
            torch.set_num_threads(self.settings.cpu_threads)
        settings = with_own_files(with_precision(self.settings))
        return Experiment(settings, self._subcommand_parsers[subcommand])


def with_own_files(settings: Namespace) -> Namespace:
    """The settings with paths to the package's own files as they are seen from here."""
    made = settings.clone()
    for name, value in settings.items():
        if isinstance(value, str | Path) and (found := own_path(str(value))) != str(value):
            made[name] = type(value)(found)
    return made


class _Parsed(RBFTCLI):
    """A command line that is read and not run."""

    def _set_seed(self) -> None:
        self._check_ranges()

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def _card_of(data: VideoDataModule) -> Any:
    return data.card


def silence_known_warnings() -> None:
    """Keeps off the screen what libraries say about things that are as they should be."""
    # Lightning announces the hardware for every Trainer, and a run has one per step.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Each stage loads and saves weights; the progress line says so.
    disable_progress_bar()
    # That a faster way to compute in 4 bits on the processor is not installed.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    for message in (
        ".*LeafSpec.*",  # Lightning uses what torch deprecates
        ".*custom batch sampler.*",  # ours returns every clip, see data/sampler.py
        ".*smaller than the logging interval.*",
        ".*Total length of `list` across ranks is zero.*",  # no validation split
        ".*does not have many workers.*",  # num_workers is a setting
        ".*exists and is not empty.*",  # the checkpoints of the stage that is resumed
        ".*not resumable.*",  # it is: the order is a function of seed and epoch
        ".*recommended to use `self.log.*sync_dist=True.*",  # the metrics are summed already
    ):
        warnings.filterwarnings("ignore", message)


def main(args: list[str] | None = None) -> None:
    """Runs one command.

    Args:
        args: Command line; None takes the process's own.
    """
    silence_known_warnings()
    die_with_parent()
    try:
        with signals.listening():
            given = sys.argv[1:] if args is None else args
            if given and given[0] in COMMANDS:
                check_settings(given[0], given[1:])
            _run(args)
            leave_process_group()
    except SystemExit as end:
        exit_process(end.code if isinstance(end.code, int) else 1)
        raise
    except (Exception, Stopped) as error:
        end_if_left_alone()
        if signals.received is not None and not signals.held:
            # What else is raised is what became of an import, or of a call, that it broke off.
            error = Stopped(signals.received) if not isinstance(error, Stopped) else error
        text = format_fatal_error(error)
        note_report(error, "the command line")
        status = error.status if isinstance(error, Stopped) else 1 if text is None else 2
        if text is None and torch.distributed.is_initialized():
            text = traceback.format_exc()
        elif text is None:
            raise
        if not (_get_rank() and isinstance(error, Stopped)):  # the first speaks for all
            bar = "\n" if isinstance(error, Stopped) else ""  # ends the line of a progress bar
            sys.stderr.write(f"{bar}{text}\n")
        exit_process(status)
        sys.exit(status)


def parse_experiment(args: list[str]) -> Experiment:
    """The experiment of a command line, which is not run.

    Args:
        args: The command line of a command that takes an experiment.
    """
    return _run(args, _Parsed).make_experiment()


def _run(args: list[str] | None, kind: type[RBFTCLI] = RBFTCLI) -> RBFTCLI:
    return kind(
        RBFTModule,
        VideoDataModule,
        subclass_mode_data=True,
        save_config_callback=None,
        seed_everything_default=0,
        parser_class=RBFTParser,
        # The hand-off is a weights folder; a checkpoint must not smuggle settings in.
        load_from_checkpoint_support=False,
        auto_configure_optimizers=False,
        args=args,
    )
