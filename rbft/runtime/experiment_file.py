"""Experiment files: small YAML files that say only what differs.

A file may name another one that it builds on, in its key `config`: relative to itself, or one of
rbft's by its name. Files given later, and options on the command line, win over earlier ones.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # pyright: ignore[reportPrivateImportUsage]

from rbft.runtime.experiments import find_experiment, packaged_experiment
from rbft.runtime.near_misses import unknown_setting


def read_chain(path: Path, seen: tuple[Path, ...] = ()) -> list[dict[str, Any]]:
    """Contents of an experiment file and of those it builds on, the first of them first.

    Raises:
        ValueError: If a file is missing, no YAML mapping, or builds on itself.
    """
    named = " <- ".join(str(step) for step in (path, *reversed(seen)))
    if path in seen:
        raise ValueError(f"Experiment file builds on itself: {named}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"Experiment file {named} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"Experiment file {named} is no valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"Experiment file {named} must hold keys, got {content!r}.")
    base = content.pop("config", None)
    if base is None:
        return [content]
    beside = path.parent / base
    if not beside.is_file():
        beside = packaged_experiment(base) or beside
    return [*read_chain(beside.resolve(), (*seen, path)), content]


class ExperimentFile(ActionConfigFile):
    """The option `--config`: applies an experiment file and what it builds on."""

    def __call__(
        self,
        parser: ArgumentParser,
        cfg: Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Applies the files in order.

        jsonargparse follows an include inside an include too, but loses values on the way; the
        contents are handed over one by one instead.
        """
        for content in read_chain(find_experiment(values).resolve()):
            self.apply_config(parser, cfg, self.dest, yaml.safe_dump(content))


def explain(message: str, parser: ArgumentParser) -> str:
    """A parser's error in the user's words: key, value, what is allowed.

    Args:
        message: What jsonargparse says.
        parser: The parser that says it.
    """
    if unknown := re.search(
        r"Option '(?P<option>[^']+)' is not accepted"
        r"|does not accept option '(?P<key>[^']+)'"
        r"|[Uu]nrecognized arguments: --(?P<flag>[^ =]+)",
        message,
    ):
        name = next(group for group in unknown.groups() if group)
        commands = getattr(parser, "_subcommands_action", None)
        asked = re.search(r"Subcommand '([^']+)'", message)
        own = commands.choices.get(asked[1], parser) if commands and asked else parser
        return unknown_setting(name, _known(own))
    if missing := re.search(r"arguments are required: (.+)", message):
        names = [re.sub(r"^\w+\.(?=\w)", "", name) for name in missing[1].split(", ")]
        if names == ["save_dir"]:  # of the loggers that Lightning has for files
            return "the logger needs a folder: add --trainer.logger.save_dir lightning_logs."
        options = " ".join(f"--{name}" for name in names)
        commands = getattr(parser, "_subcommands_action", None)
        command = commands.choices.get(missing[1].split(".")[0], parser) if commands else parser
        if "config" not in _known(command):  # a command that needs no experiment
            return f"{' and '.join(names)} must be set: add {options}."
        return (
            f"{' and '.join(names)} must be set. Name an experiment file (--config) that does, or "
            f"add {options}."
        )
    if own := own_message(message):
        return own
    key = re.search(r'Parser key "([^"]+)"', message)
    # As it was given, where that is said, and else as it was understood.
    value = re.search(r"Given value: (.*)", message) or re.search(r"Got value: (.*)", message)
    if key and value and "Expected a dot import path string" in message:
        return f"{key[1]} is '{value[1]}'; {_of_classes(message, key[1])}"
    allowed = re.findall(r"Expected an? (.+?)(?:\. Got value.*)?$", message, re.MULTILINE)
    if key and value and allowed:
        allowed = [one for one in allowed if not one.startswith("path but")]
        kinds = " or ".join(dict.fromkeys(map(_kind, allowed)))
        return f"{key[1]} is '{value[1]}'; allowed is {kinds}."
    return "\n".join(line for line in message.splitlines() if "NestedArg" not in line)


def _known(parser: ArgumentParser) -> set[str]:
    """Settings of a parser and of its commands."""
    known = {action.dest for action in parser._actions} - {"help", "==SUPPRESS=="}
    commands = getattr(parser, "_subcommands_action", None)
    for command in commands.choices.values() if commands else ():
        known |= _known(command)
    return known


def own_message(message: str) -> str | None:
    """What a class of ours said, which jsonargparse quotes among the types that did not fit."""
    found = re.search(
        r"^Errors:\n  - (?P<said>.*?)\n  - Expected a", message, re.DOTALL | re.MULTILINE
    )
    return found["said"] if found and "Expected" not in found["said"] else None


def _of_classes(message: str, key: str) -> str:
    """What is said where a class is expected: its settings if it is ours, else its name."""
    subtypes = re.search(r"Subtypes: \[(.*)\]", message)
    kinds = re.findall(r"<class '([\w.]+)'>|([\w.]+)\[", subtypes[1] if subtypes else "")
    names = [plain or listed for plain, listed in kinds]
    if any(name.startswith("rbft.") for name in names):
        return (
            "it takes settings of its own, each an option (or null for none). python -m rbft fit "
            f"--help {key} lists them."
        )
    classes = [name.rpartition(".")[2] for name in names if "." in name and "abc" not in name]
    others = [_kind(f"<class '{name}'>") for name in names if "." not in name]
    return f"allowed is {' or '.join([f'the name of a {one}' for one in classes] + others)}."


# Types as a reader of YAML calls them.
KINDS = {
    "NoneType": "null",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list": "a list, [one, two]",
    "Path": "a path",
}


def _kind(expected: str) -> str:
    """A type as a reader of YAML calls it."""
    literal = re.fullmatch(r"(?:typing\.)?Literal\[(.*)\]", expected)
    name = literal[1] if literal else re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", expected)
    return KINDS.get(name, name)
