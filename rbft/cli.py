"""The command line: `python -m rbft fit --config experiments/smarthome_qwen25.yaml`."""

import logging
import os
import re
import sys
import traceback
import warnings
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
# It waits for the device in every forward to count the video's tokens, which
# `rbft.backbone.positions` has done before on the processor.
os.environ.setdefault("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from rbft.commands.scan import report_scan
from rbft.commands.starter_card import write_starter
from rbft.data.base import VideoDataModule
from rbft.data.multihateclip import MultiHateClip
from rbft.data.smarthome import SmartHome
from rbft.data.videofolder import VideoFolder
from rbft.method import Method
from rbft.miniature.data import Miniature
from rbft.module import RBFTModule
from rbft.runtime.console import print_rank_zero, table
from rbft.runtime.digests import default_cache
from rbft.runtime.experiment_file import ExperimentFile, explain, own_message
from rbft.runtime.fault_tolerance import (
    Stopped,
    die_with_parent,
    exit_process,
    explained,
    format_fatal_error,
    leave_process_group,
    signals,
    take_signals,
)
from rbft.runtime.lock import Lock
from rbft.runtime.ranges import check_ranges
from rbft.stages import STAGES
from rbft.video.cache_folder import WHAT, cache_sizes, clear_cache

StageName = Literal["rationale", "label", "class_rationale", "rationale_class"]
assert get_args(StageName) == tuple(STAGES)
BENCHMARKS = (SmartHome, MultiHateClip, VideoFolder, Miniature)
COMMANDS = ("fit", "rationalize", "test", "validate", "predict", "export", "scan")
TOOLS = ("init", "cache")  # need no experiment
BASE = f"{VideoDataModule.__module__}.{VideoDataModule.__name__}"
DEFAULTS = Path(__file__).with_name("defaults.yaml")


class RBFTParser(LightningArgumentParser):
    """A parser whose errors fit on the screen and name what is allowed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Half an option must be an error, not a guess.
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Ends with the message, without the usage of several hundred options."""
        if wrong := re.search(r"Expected a dot import path string: (\S+)", message):
            names = ", ".join(benchmark.__name__ for benchmark in BENCHMARKS)
            text = f"data is '{wrong[1]}', which is no benchmark; allowed are {names}."
        else:
            text = explain(message, self)
        self.exit(2, f"error: {text}\n")


class RBFTCLI(LightningCLI):
    """LightningCLI whose commands run over the stages of an experiment.

    Each command is a method; its arguments and docstring are the command's options and help.
    """

    datamodule: Any = None
    model: Any = None
    trainer: Any = None

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The commands, with the arguments that are no options."""
        return {name: set() for name in (*COMMANDS, *TOOLS)}

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
        for name in self.subcommands():
            summary = (getattr(type(self), name).__doc__ or "").splitlines()[0]
            if name in TOOLS:
                command = self.parser_class(description=summary)
                added = command.add_method_arguments(type(self), name)
                self._subcommand_method_arguments[name] = added
            else:
                command = self._prepare_subcommand_parser(
                    type(self), name, description=summary, default_config_files=[str(DEFAULTS)]
                )
            self._subcommand_parsers[name] = command
            commands.add_subcommand(name, command, help=summary)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Settings of the experiment as a whole."""
        parser.add_argument("--name", type=str, help="Name of the run, and of its folder.")
        parser.add_argument(
            "--stages",
            type=list[StageName],
            help="What is trained, in order: [rationale, label] is RB-FT, [label] Direct-SFT, [] "
            "zero-shot.",
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
            "--cpu_threads",
            type=int | None,
            default=None,
            help="Threads that torch uses on the processor; null leaves it to torch. One is "
            "fastest for very small models, and on a machine that is busy with other things.",
        )
        parser.link_arguments("data", "model.card", _card_of, apply_on="instantiate")

    def instantiate_classes(self) -> None:
        """Builds nothing yet: every step of the method builds its own module and Trainer."""
        if self.subcommand in TOOLS:
            return
        if torch.cuda.is_available() and self.settings.trainer.precision is None:
            bf16 = torch.cuda.is_bf16_supported()
            self.settings.trainer.precision = "bf16-mixed" if bf16 else "32-true"
        if self.settings.data is None or self.settings.data.class_path == BASE:
            names = ", ".join(benchmark.__name__ for benchmark in BENCHMARKS)
            raise ValueError(
                f"data names no benchmark. Name an experiment file (--config) that does, or add "
                f"--data with one of {names}."
            )
        if self.settings.cpu_threads is not None:
            torch.set_num_threads(self.settings.cpu_threads)
        self.method = Method(self)

    def _set_seed(self) -> None:
        if self.subcommand not in TOOLS:
            # All numbers by their dotted names, before anything is done with the first of them.
            values = {name.replace(".init_args", ""): v for name, v in self.settings.items()}
            check_ranges("", values)
            super()._set_seed()

    def _run_subcommand(self, subcommand: str) -> None:
        options = self._subcommand_method_arguments[subcommand]
        with explained(lambda: self.datamodule.clips_at_hand()):
            getattr(self, subcommand)(**{name: self.settings[name] for name in options})

    @property
    def settings(self) -> Namespace:
        """The resolved settings of the command."""
        return self.config[str(self.subcommand)]

    def build(self, **trainer: Any) -> None:
        """Instantiates data module, module and Trainer from the settings as they are now."""
        self.config_init = _instantiate(self.parser, self.config)
        made = self.config_init[str(self.subcommand)]
        self.datamodule, self.model = made.data, made.model
        for name in ("callbacks", "plugins"):  # ours come on top of the user's
            own = made.trainer[name] or []
            trainer[name] = [*(own if isinstance(own, list) else [own]), *trainer.get(name, [])]
        self.trainer = self.instantiate_trainer(**trainer)
        take_signals(self.trainer)

    def build_data(self) -> VideoDataModule:
        """Instantiates the data module alone, which needs no backbone."""
        parser = self.parser_class()
        parser.add_lightning_class_args(VideoDataModule, "data", subclass_mode=True)
        return _instantiate(parser, parser.parse_object({"data": self.settings.data})).data

    def resolved(self) -> str:
        """All settings as YAML."""
        command = str(self.subcommand)
        # Defaults of Lightning's callbacks can be members of an Enum, which the YAML writer of
        # jsonargparse does not know where they are not checked.
        yaml.SafeDumper.add_multi_representer(
            Enum, lambda dumper, member: dumper.represent_str(member.name)
        )
        return self._parser(command).dump(self.settings, skip_none=False, skip_validation=True)

    def fit(
        self,
        ckpt_path: Path | None = None,
        restart: bool = False,
        dry_run: bool = False,
        gpu_gb: float | None = None,
    ) -> None:
        """Run the method: write missing rationales, train each stage, score the test split.

        Started again, it skips what is finished and resumes what is not.

        Args:
            ckpt_path: Lightning checkpoint to resume a single stage (model.stage) from.
            restart: Throw away what the run (or model.stage of it) has left so far, but not its
                rationales.
            dry_run: Load no weights and train nothing: print what would run, parameters and
                learning rates, tokens of the clips, estimated memory and disk space.
            gpu_gb: Memory in GiB of the GPU that the dry run compares with; null takes the GPU that
                is present.
        """
        self.method.fit(ckpt_path, restart, dry_run, gpu_gb)

    def rationalize(self, prompts: list[str] | None = None) -> None:
        """Write the rationales of the training clips (Stage 0) and stop.

        Args:
            prompts: Rationale prompts of the card, "[rationale, less, least]": writes those of
                several experiments that differ in data.rationale_prompt, and reads each clip once.
                null takes the experiment's own.
        """
        self.method.check()
        self.method.write_rationales(prompts)

    def test(self, weights: str = "run") -> None:
        """Score the test split with a run, a weights folder or the bare backbone.

        Args:
            weights: run takes the run's last finished stage (or model.stage), backbone the bare
                backbone (zero-shot); anything else is a weights folder.
        """
        self.method.score_command("test", weights)

    def validate(self, weights: str = "run") -> None:
        """Score the validation split with a run, a weights folder or the bare backbone.

        Args:
            weights: run takes the run's last finished stage (or model.stage), backbone the bare
                backbone (zero-shot); anything else is a weights folder.
        """
        self.method.score_command("val", weights)

    def predict(
        self,
        videos: list[Path] | Path,
        output: Path = Path("predictions.jsonl"),
        weights: str = "run",
        rationale: bool = False,
    ) -> None:
        """Write class and class probabilities of videos, one JSON line each and as a table.

        Started again with the same output, it goes on where it stopped.

        Args:
            videos: A video file, a folder that is searched for them, a file that lists them (.txt
                with one path a line, or .csv with a column path), or several such:
                [a.mp4, folder].
            output: The file to write, .jsonl; the table goes into a .csv file beside it.
            weights: run takes the run's last finished stage (or model.stage), backbone the bare
                backbone (zero-shot); anything else is a weights folder.
            rationale: Also have the model write a rationale for each video.
        """
        given = [videos] if isinstance(videos, Path) else videos
        with Lock(output, "--output"):
            self.method.predict(given, output, weights, rationale)

    def export(
        self,
        output: Path,
        format: Literal["weights", "llava", "llamafactory", "swift"] = "weights",
        weights: str | None = None,
        dtype: Literal["base", "float32", "bfloat16", "float16"] | None = None,
        split: Literal["train", "val", "test"] | None = None,
        answers: Literal["label", "rationale"] | None = None,
    ) -> None:
        """Write a run's weights as a from_pretrained folder, or a split for another trainer.

        Args:
            output: The folder or file to write; it must not exist.
            format: weights for a folder that transformers' from_pretrained and vLLM open, adapters
                merged, with a model card; llava (also Qwen's own trainer), llamafactory and swift
                for conversations that these trainers read: a .json, .json and .jsonl file.
            weights: For weights: run (null) takes the run's last finished stage (or model.stage);
                anything else is a weights folder.
            dtype: For weights: their precision; base (null) takes the backbone's own.
            split: For conversations: which clips; null takes train.
            answers: For conversations: what they answer with, the class word (label, null) or the
                rationale.

        Raises:
            ValueError: If an option is given that the format does not use.
        """
        of_weights = {"weights": weights, "dtype": dtype}
        of_conversations = {"split": split, "answers": answers}
        unused = of_conversations if format == "weights" else of_weights
        for name, value in unused.items():
            if value is not None:
                meant = (
                    "conversations (--format llava, llamafactory or swift)"
                    if unused is of_conversations
                    else "--format weights"
                )
                raise ValueError(
                    f"--{name} {value} is an option of {meant}; --format {format} does not use it. "
                    "Leave it out."
                )
        if format == "weights":
            self.method.export(output, weights or "run", dtype or "base")
        else:
            self.method.export_split(format, answers or "label", split or "train", output)

    def scan(self) -> None:
        """Open every video once and say what is there, what is missing and what is broken.

        Leaves manifest.jsonl, and missing.txt with what is missing, in the run's folder. Needs no
        backbone.
        """
        report_scan(self.build_data(), self.method.run.folder)

    def init(
        self,
        domain: str,
        classes: list[str],
        output: Path = Path("card.yaml"),
    ) -> None:
        """Write a commented card for a domain of your own, and an experiment that uses it.

        Args:
            domain: What the clips show, as it reads before "video": "conveyor belt".
            classes: Names of the classes, "[pass, fail]"; also the words that the model answers
                with until you change them on the card.
            output: The card to write; the experiment goes beside it.
        """
        experiment = write_starter(domain, classes, output)
        print_rank_zero(
            f"Wrote {output}: put your own words into it.\n"
            f"Wrote {experiment}: say there where your videos are (data.init_args.root).\n"
            f"Then: python -m rbft scan --config {experiment}"
        )

    def cache(
        self,
        clear: Literal["frames", "features", "scans", "digests", "clips", "all"] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Show how large the cache is, or clear it.

        Args:
            clear: What to remove: frames (decoded clips), features (outputs of frozen vision
                towers), scans (what scans found), digests (of weights and videos), clips (videos
                of the miniature world) or all.
            folder: The cache folder, as data.cache_folder; null takes $RBFT_CACHE, or
                ~/.cache/rbft.
        """
        folder = folder or default_cache()
        if clear is not None:
            clear_cache(folder, clear)
        sizes = cache_sizes(folder).items()
        rows = [[name, WHAT[name], f"{size / 1e6:.1f}"] for name, size in sizes]
        print_rank_zero(f"{folder}\n{table(rows, ['', 'what', 'MB'], align='llr')}")


def _instantiate(parser: LightningArgumentParser, config: Namespace) -> Any:
    try:
        return parser.instantiate_classes(config)
    except ValueError as error:
        if own := own_message(str(error)):
            raise ValueError(own) from error
        raise


def _card_of(data: VideoDataModule) -> Any:
    return data.card


def silence_known_warnings() -> None:
    """Keeps off the screen what libraries say about things that are as they should be."""
    # Lightning announces the hardware for every Trainer, and a run has one per step.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
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
            _run(args)
            leave_process_group()
    except SystemExit as end:
        exit_process(end.code if isinstance(end.code, int) else 1)
        raise
    except (Exception, Stopped) as error:
        text = format_fatal_error(error)
        status = error.status if isinstance(error, Stopped) else 1 if text is None else 2
        if text is None and torch.distributed.is_initialized():
            text = traceback.format_exc()
        elif text is None:
            raise
        if not (_get_rank() and isinstance(error, Stopped)):  # the first speaks for all
            sys.stderr.write(f"{text}\n")
        exit_process(status)
        sys.exit(status)


def _run(args: list[str] | None) -> None:
    RBFTCLI(
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
