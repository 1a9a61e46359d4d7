"""The options that the help shows are those of the real parsers: names, values and defaults."""

import dataclasses
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from inspect import isclass, signature
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from unittest.mock import patch

import pytest
import yaml

from rbft import cli
from rbft.commands import COMMANDS, find_command, takes_experiment
from rbft.commands.options import (
    CONFIG,
    DATA,
    TRAINER,
    Option,
    as_yaml,
    benchmarks,
    options,
)
from rbft.commands.source import REQUIRED
from rbft.data.base import VideoDataModule

ROOT = Path(__file__).parents[3]
BASIC = {int: "whole number", float: "number", bool: "true|false", str: "text", Path: "path"}


@pytest.fixture(scope="module")
def parsers() -> Mapping[str, Any]:
    """The real parser of each command."""
    file = ROOT / "experiments/miniature.yaml"
    with patch.object(sys, "argv", ["rbft"]):  # Lightning compares
        return cli._run(["fit", f"--config={file}"], cli._Parsed)._subcommand_parsers


def kinds(hint: Any) -> list[str]:
    """What a type allows, in the words of the help."""
    origin, within = get_origin(hint), get_args(hint)
    if hint in (None, type(None)):
        return ["null"]
    if origin is Literal:
        return [str(value) for value in within]
    if origin in (Union, types.UnionType):
        return list(dict.fromkeys(kind for one in within for kind in kinds(one)))
    if isclass(origin) and issubclass(origin, Mapping):
        return ["{...}"]
    if isclass(origin) and (issubclass(origin, Sequence | tuple) or "Iterable" in str(origin)):
        shown = dict.fromkeys(kind for one in within if one is not ... for kind in kinds(one))
        return [f"[{'|'.join(shown)}, ...]"]
    if dataclasses.is_dataclass(hint):
        return ["settings"]
    return [BASIC.get(hint, getattr(hint, "__name__", str(hint)))]


def real(parser: Any) -> Iterator[tuple[str, Any]]:
    """Each option of a parser with its action, but those that only show help or load a file."""
    for action in parser._actions:
        shows = action.dest.endswith("help") or type(action).__name__ == "_ActionConfigLoad"
        if not shows and action.dest != "model.card":
            yield action.dest, action


def top(every: Sequence[Option]) -> dict[str, Option]:
    """The options that parsers list themselves: none of settings within settings, or of `data`."""
    settings = [one.name for one in every if one.is_settings]
    return {
        one.name: one
        for one in every
        if not one.name.startswith(f"{DATA}.")
        and not any(one.name.startswith(f"{name}.") for name in settings)
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_names_values_and_defaults_are_those_of_the_parser(
    name: str, parsers: Mapping[str, Any]
) -> None:
    parser, shown = parsers[name], top(options(name))
    found = dict(real(parser))
    assert set(shown) == set(found)
    defaults = parser.get_defaults()
    for key, action in found.items():
        option = shown[key]
        lacking = action.required and defaults.get(key) is None
        assert (option.default is REQUIRED) == (
            lacking or (key == DATA and shown[DATA].topic == DATA)
        )
        if key in (one.name for one in CONFIG[:2]) or key == DATA:
            continue
        if option.default is not REQUIRED:
            assert as_yaml(option.default) == as_yaml(plain(defaults[key])), key
        hint = getattr(action, "_typehint", None) or action.type
        assert list(option.kinds) == kinds(hint), key
    assert bool(takes_experiment(find_command(name))) == ("model.backbone" in shown)


def plain(value: Any) -> Any:
    """A default as YAML has it."""
    return str(value) if isinstance(value, Path) else value


@pytest.mark.parametrize("benchmark", cli.BENCHMARKS)
def test_settings_of_a_benchmark_are_those_of_its_class(benchmark: type, parsers: Any) -> None:
    """As the parser sees them: its own, and those that it hands on to its base."""
    assert tuple(one.__name__ for one in cli.BENCHMARKS) == benchmarks()
    own = [one for one in options("fit") if one.topic == benchmark.__name__]
    shared = [one for one in options("fit") if one.topic == DATA and one.name != DATA]
    names = {one.name for one in own}
    shown = {one.name: one for one in [*shared, *own] if one in own or one.name not in names}
    parser = type(parsers["fit"])()
    parser.add_class_arguments(benchmark, DATA)
    found = {key: action for key, action in real(parser) if "." in key}
    nested = [name for name, one in shown.items() if one.is_settings]
    assert {n for n in shown if not any(n.startswith(f"{one}.") for one in nested)} == set(found)
    written = yaml.safe_load(cli.DEFAULTS.read_text())["data"]["init_args"]
    for key, action in found.items():
        name, option = key.removeprefix("data."), shown[key]
        assert list(option.kinds) == kinds(action._typehint), key
        if name in written:
            assert option.default == written[name], key
        elif action.required:
            assert option.default is REQUIRED, key
        else:
            assert as_yaml(option.default) == as_yaml(plain(action.default)), key


def nested_settings() -> list[tuple[str, type]]:
    """Name and class of all settings that take settings."""
    found = []
    hints = {
        "model.": get_type_hints(cli.RBFTModule.__init__),
        "data.": get_type_hints(VideoDataModule.__init__),
        "": {"endpoint": cli.EndpointSettings, "decision": cli.Wanted},
    }
    for prefix, named in hints.items():
        for name, hint in named.items():
            made = [one for one in (hint, *get_args(hint)) if dataclasses.is_dataclass(one)]
            if made and f"{prefix}{name}" != "model.card":
                found.append((f"{prefix}{name}", made[0]))
    return found


def test_settings_within_settings_are_those_of_their_class() -> None:
    every = {one.name: one for one in options("fit")}
    found = nested_settings()
    assert {name for name, _ in found} == {one.name for one in every.values() if one.is_settings}
    for name, made in found:
        fields = {f"{name}.{field.name}": field for field in dataclasses.fields(made)}
        assert {one for one in every if one.startswith(f"{name}.")} == set(fields)
        hints = get_type_hints(made)
        for key, field in fields.items():
            assert list(every[key].kinds) == kinds(hints[field.name]), key
            parameter = signature(made).parameters[field.name]
            if parameter.default is parameter.empty:
                assert every[key].default is REQUIRED, key
            elif field.default_factory is not dataclasses.MISSING:
                assert every[key].default == field.default_factory(), key
            else:
                value = plain(parameter.default)
                value = [*value] if isinstance(value, tuple) else value
                assert as_yaml(every[key].default) == as_yaml(value), key


@pytest.mark.parametrize("name", COMMANDS)
def test_every_setting_of_ours_is_explained(name: str) -> None:
    ours = [one for one in options(name) if one.topic != TRAINER]
    assert [one.name for one in ours if len(one.text) < 10] == []
    assert all("\n" not in one.text for one in options(name))
