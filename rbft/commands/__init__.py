"""The commands: a function each, whose arguments and docstring are the options and the help."""

from collections.abc import Callable
from importlib import import_module
from inspect import signature
from typing import Any

# Where each is found, in the order of the help. To add one: its file, and a line here.
COMMANDS = {
    "fit": "fit",
    "rationalize": "rationalize",
    "rationales": "rationales",
    "judge": "judge",
    "batch": "batch",
    "test": "score",
    "validate": "score",
    "predict": "predict",
    "demo": "demo",
    "export": "export",
    "compare": "compare",
    "mask": "mask",
    "masked": "masked",
    "report": "report",
    "attention": "attention",
    "scan": "scan",
    "init": "init",
    "experiments": "experiments",
    "cache": "cache",
}
# Those that need no torch, so that nobody waits for it; see `rbft.light`.
LIGHT = ("report", "init", "experiments", "cache")
EXPERIMENT = "experiment"  # the argument of commands that take an experiment's settings


def find_command(name: str) -> Callable[..., None]:
    """The function of a command."""
    return getattr(import_module(f"{__name__}.{COMMANDS[name]}"), name)


def takes_experiment(command: Callable[..., Any]) -> bool:
    """Whether a command works on an experiment, and so has its settings as options."""
    return EXPERIMENT in signature(command).parameters
