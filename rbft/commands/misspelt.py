"""Settings that are none, found in a command line and its experiments before torch is imported."""

from collections.abc import Iterator, Sequence

from rbft.commands import COMMANDS
from rbft.commands.options import DATA, TRAINER, Option, benchmarks, options
from rbft.commands.overview import command
from rbft.runtime.experiment_file import read_chain
from rbft.runtime.experiments import find_experiment, settings_paths
from rbft.runtime.near_misses import near_misses, unknown_setting

# What jsonargparse takes besides: a file for all settings of a group.
GROUPS = ("model", "trainer")
Given = tuple[str, object]  # name of a setting and its value


def check_settings(name: str, args: Sequence[str]) -> None:
    """Refuses settings that the command does not have.

    Values are left to the parser. Of a benchmark that is not rbft's own, settings of `data` are
    left to it too.

    Args:
        name: The command.
        args: What stands behind it, as `rbft.commands.overview.in_full` makes it.

    Raises:
        ValueError: Naming the first of them and what may be meant; or see
            `rbft.runtime.experiments.find_experiment` and `read_chain`.
    """
    given = [*_given(name, args)]
    chosen = [str(value) for key, value in given if key == DATA and value is not None]
    benchmark = chosen[-1].rpartition(".")[2] if chosen else None
    every = options(name)
    for key, _ in given:
        data = key.startswith(f"{DATA}.")
        if data and benchmark is not None and benchmark not in benchmarks():
            continue
        if not _is_known(key, every):
            raise ValueError(_unknown(key, name))
        if data and benchmark is not None:
            _check_benchmark(key, benchmark, every)


def _given(name: str, args: Sequence[str]) -> Iterator[Given]:
    """The settings of a command line, those of its experiments in the place of `--config`."""
    for place, one in enumerate(args):
        key, given, value = one.partition("=")
        if not given:
            value = next(iter(args[place + 1 : place + 2]), "")
        if key in ("-c", "--config") and command(name).experiment:
            if not value:
                continue  # the parser says that it is missing
            for content in read_chain(find_experiment(value).resolve()):
                yield from settings_paths(content)
        elif key.startswith("--") and key not in ("--", "--help") and not key.endswith(".help"):
            bare = key.removeprefix("--").removesuffix("+").replace(".init_args.", ".")
            yield bare.removesuffix(".class_path"), value


def _is_known(key: str, every: Sequence[Option]) -> bool:
    if key in GROUPS and any(one.topic == TRAINER for one in every):
        return True
    return any(key == one.name or (one.is_open and key.startswith(f"{one.name}.")) for one in every)


def _unknown(key: str, command: str) -> str:
    """What is said of a setting that the command does not have."""
    known = {one.name for one in options(command)}
    owners = [name for name in COMMANDS if any(one.name == key for one in options(name))]
    if owners and not near_misses(key, known):
        return f"{key} is an option of {' and '.join(owners)}, not of {command}. Leave it out."
    return unknown_setting(key, known)


def _check_benchmark(key: str, benchmark: str, every: Sequence[Option]) -> None:
    """Refuses a setting that other benchmarks have.

    Raises:
        ValueError: If this one does not have it.
    """
    groups = (DATA, *benchmarks())
    settings = [one for one in every if one.topic in groups and one.name != DATA]
    owners = [one.topic for one in settings if f"{key}.".startswith(f"{one.name}.")]
    if DATA in owners or benchmark in owners:
        return
    own = sorted(one.name for one in every if one.topic == benchmark)
    raise ValueError(
        f"{key} is a setting of {' and '.join(owners)}, but data is {benchmark}, whose own are "
        f"{', '.join(own)}. Name the other benchmark (--data {owners[0]}), or leave it out."
    )
