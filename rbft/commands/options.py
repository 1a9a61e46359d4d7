"""The options of every command, read from the source: names, allowed values, defaults, help."""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from rbft.commands import COMMANDS, EXPERIMENT
from rbft.commands.source import NULL, REQUIRED, Parameter, Source, source

CLI: Final = "rbft.cli"
SWITCH: Final = ("true|false",)  # what an option may be that is either true or false
DEFAULTS = Path(__file__).parents[1] / "defaults.yaml"
RUN, MODEL, DATA, ENDPOINT, DECISION, TRAINER = (
    "run",
    "model",
    "data",
    "endpoint",
    "decision",
    "trainer",
)
# What LightningCLI and jsonargparse add by themselves.
CONFIG = (
    Parameter(
        "config",
        ("experiment",),
        None,
        "Experiment file, or the name of one of rbft's; several may be given, later ones win.",
    ),
    Parameter(
        "print_config",
        ("skip_null", "skip_default", "comments"),
        False,
        "Print every setting as YAML, and run nothing.",
    ),
    Parameter(
        "seed_everything",
        ("true|false", "whole number"),
        0,
        "Seed of everything that is drawn but the order of the clips (data.seed).",
    ),
)

# What Lightning's own words do not say, or say otherwise than it is here.
TRAINER_TEXTS = {
    "accelerator": "auto takes a GPU where there is one; others are cpu, gpu and mps.",
    "accumulate_grad_batches": "Not used: it follows from data.global_batch_size.",
    "default_root_dir": "Folder of all runs; null is lightning_logs in the current folder.",
    "devices": "How many GPUs (on a processor: processes), a list of their numbers, or auto.",
    "enable_checkpointing": "Not used: see checkpoint_every.",
    "gradient_clip_val": "Norm at which gradients are clipped; 0 and null do not clip.",
    "logger": "Loggers beside TensorBoard, which is always written: CSVLogger, WandbLogger, "
    "MLFlowLogger, or several.",
    "max_epochs": "Epochs of each stage.",
    "max_steps": "Optimiser steps after which a stage ends in any case; -1 sets no limit.",
    "precision": "bf16-mixed and 16-mixed compute in 16 bits and keep weights in 32, bf16-true "
    "keeps them in 16; null is bf16-mixed on a GPU that has it, else 32-true.",
    "strategy": "How several devices share the work: auto, ddp or fsdp2, which shards weights.",
    "use_distributed_sampler": "Must be false: rbft's own sampler shares the clips out exactly.",
}


class Option(NamedTuple):
    """An option of a command.

    Attributes:
        name: Its dotted name, `data.fps`.
        kinds: What it may be, see `rbft.commands.source.Parameter`.
        default: The one that takes effect, `REQUIRED` where there is none.
        text: What is said of it.
        topic: The part of the help it stands in.
    """

    name: str
    kinds: tuple[str, ...]
    default: Any
    text: str
    topic: str

    @property
    def is_settings(self) -> bool:
        """Whether it takes settings of its own, which are options as well."""
        return "settings" in self.kinds

    @property
    def is_open(self) -> bool:
        """Whether names below it are not known: of a mapping, or of a class that is named."""
        return self.topic == TRAINER or "{...}" in self.kinds


@cache
def options(command: str) -> tuple[Option, ...]:
    """All options of a command, in the order of the help.

    Those of a benchmark have its name as topic.

    Args:
        command: One of `rbft.commands.COMMANDS`.
    """
    module = source(f"rbft.commands.{COMMANDS[command]}")
    function = module.function(command)
    own = [one for one in module.parameters(command) if one.name != EXPERIMENT]
    made = [*_made(own, "", command, {})]
    if function.args.args and function.args.args[0].arg == EXPERIMENT:
        made += _of_experiment()
    return tuple(made)


@cache
def benchmarks() -> tuple[str, ...]:
    """Names of the benchmarks."""
    _, node = source(CLI).expression("BENCHMARKS")
    assert isinstance(node, ast.Tuple)
    return tuple(one.id for one in node.elts if isinstance(one, ast.Name))


@cache
def _of_experiment() -> tuple[Option, ...]:
    defaults = yaml.safe_load(DEFAULTS.read_text(encoding="utf-8"))
    data = defaults["data"]["init_args"]
    model = [one for one in _class("rbft.module", "RBFTModule") if one.name != "card"]
    named = ", ".join(benchmarks())
    benchmark = Parameter(DATA, benchmarks(), REQUIRED, f"The benchmark: {named}, or a class.")
    added = [*_added()]
    whole = [one for one in added if not one.nested]
    grouped = {one.name: one for one in added if one.nested}
    made = [
        *_made([*CONFIG, *whole], "", RUN, defaults),
        *_made(model, "model.", MODEL, defaults["model"]),
        *_made([benchmark], "", DATA, {}),
        *_made(_class("rbft.data.base", "VideoDataModule"), "data.", DATA, data),
    ]
    for name in benchmarks():
        owner, node = source(CLI).find(name)
        assert isinstance(node, ast.ClassDef)
        made += _made(owner.parameters(name), "data.", name, data)
    for topic in (ENDPOINT, DECISION):
        made += _made([grouped[topic]], "", topic, {})
    trainer = _class("lightning.pytorch.trainer.trainer", "Trainer")
    plain = [one._replace(text=TRAINER_TEXTS.get(one.name, _plain(one.text))) for one in trainer]
    return (*made, *_made(plain, "trainer.", TRAINER, defaults["trainer"]))


def as_yaml(value: Any) -> str:
    """A default as an experiment file would have it.

    Args:
        value: A plain value, a list or a mapping.
    """
    if value is None:
        return NULL
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(as_yaml, value))}]"
    return str(value) if value != "" else "''"


def _class(module: str, name: str) -> tuple[Parameter, ...]:
    return source(module).parameters(name)


def _made(
    parameters: Iterable[Parameter], prefix: str, topic: str, defaults: Mapping[str, Any]
) -> Iterator[Option]:
    """Options of parameters, each followed by those of the settings that it takes."""
    for one in parameters:
        name, default = f"{prefix}{one.name}", defaults.get(one.name, one.default)
        yield Option(name, one.kinds, default, one.text, topic)
        yield from _made(one.nested, f"{name}.", topic, {})


def _added() -> Iterator[Parameter]:
    """The settings that the command line itself adds, `parser.add_argument("--name", ...)`."""
    module = source(CLI)
    for node in ast.walk(module.function("RBFTCLI.add_arguments_to_parser")):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            yield _argument(module, node)


def _argument(module: Source, call: ast.Call) -> Parameter:
    given = {one.arg: one.value for one in call.keywords}
    flag = ast.literal_eval(call.args[0])
    default = module.value(given["default"]) if "default" in given else None
    made = module.parameter(
        flag.removeprefix("--"), given["type"], None, module.value(given["help"])
    )
    return made._replace(default=default)


def _plain(text: str) -> str:
    """Lightning's docstrings without their markup, and without defaults, which are ours."""
    text = re.sub(r"\s*Default: .*?(?:``|\d|\.\d)\.(?=\s|$)", "", text)
    text = re.sub(r":\w+:`~?(?:[\w]+\.)*(\w+)(?:\.\w+)?`", r"\1", text)
    return re.sub(r"`+([^`]*)`+", r"\1", text).strip()
