"""What the commands are, read from their files without importing them: torch takes seconds."""

import ast
import difflib
import shutil
import textwrap
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from rbft.commands import COMMANDS, EXPERIMENT
from rbft.commands.options import SWITCH, options
from rbft.commands.source import source
from rbft.runtime.experiments import SUFFIXES

EXAMPLES = {
    "fit": "fit smarthome_qwen25",
    "rationalize": "rationalize smarthome_qwen25",
    "rationales": "rationales smarthome_qwen25",
    "judge": "judge smarthome_qwen25 --endpoint.model gpt-4o",
    "batch": "batch smarthome_gpt4o",
    "test": "test smarthome_qwen25",
    "validate": "validate smarthome_qwen25 --data.val_fraction 0.1",
    "predict": "predict --weights lightning_logs/house --videos clips/",
    "demo": "demo --weights lightning_logs/house",
    "export": "export smarthome_qwen25 --output merged",
    "compare": 'compare --configs "[miniature, miniature_direct]" --seeds 5',
    "mask": "mask smarthome_masked_objects --names [person]",
    "masked": 'masked --runs "[direct, ours]"',
    "report": "report",
    "attention": 'attention --runs "[direct, ours]"',
    "scan": "scan smarthome_qwen25",
    "init": 'init --domain "conveyor belt" --videos videos',
    "experiments": "experiments --show miniature",
    "cache": "cache --clear frames",
}
SEVERAL = ("--videos", "--adapters")  # options that may have several values
# What other programs call these.
SYNONYMS = {
    "train": "fit",
    "finetune": "fit",
    "sft": "fit",
    "run": "fit",
    "rationalise": "rationalize",
    "write": "rationalize",
    "eval": "test",
    "evaluate": "test",
    "score": "test",
    "infer": "predict",
    "inference": "predict",
    "classify": "predict",
    "merge": "export",
    "save": "export",
    "new": "init",
    "check": "scan",
    "web": "demo",
    "gradio": "demo",
    "grade": "judge",
}


class Command(NamedTuple):
    """A command as its file describes it.

    Attributes:
        summary: The first line of its docstring.
        experiment: Whether it takes an experiment's settings.
    """

    summary: str
    experiment: bool


@cache
def command(name: str) -> Command:
    """What the file of a command says about it.

    Args:
        name: One of `COMMANDS`.
    """
    function = source(f"rbft.commands.{COMMANDS[name]}").function(name)
    summary = (ast.get_docstring(function) or "").splitlines()[0]
    arguments = function.args.args
    return Command(summary, bool(arguments) and arguments[0].arg == EXPERIMENT)


def overview() -> str:
    """What `python -m rbft` alone shows: every command with an example."""
    width = max(shutil.get_terminal_size().columns - 1, 60)
    lines = ["usage: python -m rbft COMMAND [EXPERIMENT ...] [--OPTION VALUE ...]", ""]
    for name in COMMANDS:
        said = f"  {name:12} {command(name).summary}"
        lines += textwrap.wrap(said, width, subsequent_indent=" " * 15)
        lines.append(f"      $ rbft {EXAMPLES[name]}")
    return "\n".join(
        [
            *lines,
            "",
            "rbft COMMAND --help lists its options; rbft is short for python -m rbft.",
            "EXPERIMENT is a YAML file, or the name of one that rbft experiments lists.",
            "A first run, offline, in about a minute: rbft fit miniature",
        ]
    )


def unknown_command(name: str) -> str:
    """What is said where there is no such command.

    Args:
        name: What was given.
    """
    near = [SYNONYMS[name]] if name in SYNONYMS else difflib.get_close_matches(name, COMMANDS, n=2)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"there is no command '{name}'.{hint} Allowed are {', '.join(COMMANDS)}."


def in_full(args: Sequence[str]) -> list[str]:
    """A command line with what may be left out: `fit miniature --dry_run`.

    Experiments right behind the command, files or names, are `--config`, and an option that is true
    or false is true where no value follows. `--videos` and `--adapters` take as many as follow.

    Args:
        args: The command line behind the program's name.
    """
    if not args or args[0] not in COMMANDS:
        return [*args]
    (name, *rest), made = args, [args[0]]
    known = command(name)
    while known.experiment and rest and _is_experiment(rest[0]):
        made.append(f"--config={rest.pop(0)}")
    switches = {f"--{one.name}" for one in options(name) if one.kinds == SWITCH}
    for place, one in enumerate(rest):
        alone = place + 1 == len(rest) or rest[place + 1].startswith("-")
        made.append(f"{one}=true" if one in switches and alone else one)
    for option in SEVERAL:
        made = _each(option, made)
    return made


def _each(option: str, args: list[str]) -> list[str]:
    """The same with an option for each of several values, as a shell leaves `--videos *.mp4`."""
    if option not in args:
        return args
    first = args.index(option) + 1
    end = next((n for n in range(first, len(args)) if args[n].startswith("--")), len(args))
    if end - first < 2:
        return args
    return [*args[: first - 1], *(f"{option}+={one}" for one in args[first:end]), *args[end:]]


def _is_experiment(given: str) -> bool:
    return Path(given).suffix in ("", *SUFFIXES) and not given.startswith("-")


def program() -> str:
    """Name and version."""
    return f"rbft {version('rbft')}"
