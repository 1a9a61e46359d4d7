"""The help of a command: our settings first, by topic, Lightning's behind `--help trainer`."""

import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence

from rbft.commands.options import (
    DATA,
    DECISION,
    ENDPOINT,
    MODEL,
    RUN,
    TRAINER,
    Option,
    as_yaml,
    benchmarks,
    options,
)
from rbft.commands.overview import EXAMPLES, command
from rbft.commands.source import REQUIRED
from rbft.runtime.near_misses import near_misses

COMMON = "common"
LONG = 40  # characters of what an option may be, beyond which it is set with blanks
# What people change, in the order of the help.
CHANGED = (
    "config",
    "name",
    "model.backbone",
    "model.weights",
    "data",
    "stages",
    "trainer.max_epochs",
    "model.learning_rate",
    "model.vision_learning_rate",
    "data.batch_size",
    "data.global_batch_size",
    "data.fps",
    "data.num_frames",
    "data.max_frames",
    "data.max_pixels",
    "data.num_workers",
    "data.val_fraction",
    "keep",
    "model.lora",
    "model.lora.rank",
    "model.quantize",
    "model.gradient_checkpointing",
    "model.answer",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.precision",
    "trainer.strategy",
    "trainer.default_root_dir",
    "seed_everything",
    "print_config",
)
TITLES = {
    COMMON: "What people change",
    RUN: "The run",
    MODEL: "The model and its training",
    DATA: "Clips, frames and rationales, of every benchmark",
    ENDPOINT: "A server in the backbone's place",
    DECISION: "A threshold for what errors cost",
    TRAINER: "The Trainer of Lightning",
}


def groups() -> tuple[str, ...]:
    """What `--help GROUP` shows in full."""
    return (COMMON, RUN, MODEL, DATA, *benchmarks(), ENDPOINT, DECISION, TRAINER)


def asked_group(args: Sequence[str]) -> str | None:
    """What a command line wants to have explained.

    Args:
        args: What stands behind the command.

    Returns:
        The group behind `--help`, empty for the command as a whole; None where no help is asked
        for, or that of a class of somebody else's.
    """
    for place, one in enumerate(args):
        name, given, value = one.partition("=")
        if name in ("-h", "--help") and given:
            return value
        if name in ("-h", "--help"):
            following = args[place + 1 : place + 2]
            return "".join(word for word in following if not word.startswith("-"))
        if name.startswith("--") and name.endswith(".help"):  # jsonargparse's way to ask
            following = [value] if given else args[place + 1 : place + 2]
            if not following or following[0].startswith("-"):
                return name.removeprefix("--").removesuffix(".help")
            # Of a class that is not ours, the parser says it.
            return following[0] if following[0] in groups() else None
    return None


def help_page(name: str, group: str = "") -> str:
    """The help of a command, or of one group of its settings in full.

    Args:
        name: The command.
        group: See `groups`, or a setting or a part of its name; empty for the whole command.

    Raises:
        ValueError: If there is no such group or setting.
    """
    width = max(min(shutil.get_terminal_size().columns, 100) - 1, 60)
    every = options(name)
    if group:
        return "\n".join(_in_full(name, group, every, width))
    known = command(name)
    usage = "[EXPERIMENT ...] " if known.experiment else ""
    lines = [f"usage: python -m rbft {name} {usage}[--OPTION VALUE ...]", ""]
    lines += [*_wrapped(known.summary, width, ""), "", f"  $ rbft {EXAMPLES[name]}"]
    if own := [one for one in every if one.topic == name]:
        lines += ["", f"Options of {name}:", *_entries(own, width, whole=True)]
    if not known.experiment:
        return "\n".join(lines)
    lines += ["", *_wrapped(READING, width, "")]
    lines += ["", *_topic(COMMON, every, width)]
    if name != "fit":
        said = f"An experiment has {len(every) - len(own)} settings: rbft fit --help shows all."
        return "\n".join([*lines, "", *_wrapped(said, width, "")])
    for topic in groups()[1:-1]:
        lines += ["", *_topic(topic, every, width)]
    trainer = sum(one.topic == TRAINER for one in every)
    more = (
        f"{TITLES[TRAINER]} has {trainer} more: rbft {name} --help {TRAINER}. In full, a group: "
        f"rbft {name} --help GROUP, of {', '.join(groups())}; or a setting: --help lora."
    )
    return "\n".join([*lines, "", *_wrapped(more, width, "")])


READING = (
    "EXPERIMENT is a file or one of those that rbft experiments lists; settings stand there as "
    "YAML, without the hyphens. A|B is one of these, [..., ...] a list, {...} a mapping, null none."
)


def _in_full(name: str, group: str, every: Sequence[Option], width: int) -> list[str]:
    if group in groups() and any(one.topic == TRAINER for one in every):
        return _topic(group, every, width, whole=True)
    found = [one for one in every if group.removeprefix("--") in (one.name, _end(one))]
    found = found or [one for one in every if group.removeprefix("--") in one.name]
    if not found:
        names = {one.name for one in every}
        near = near_misses(group, names | {*groups()})
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"--help {group} is no group and no setting of {name}.{hint} Groups are "
            f"{', '.join(groups())}."
        )
    within = [one for one in every if any(one.name.startswith(f"{s.name}.") for s in found)]
    shown = dict.fromkeys([*found, *within] if any(one.is_settings for one in found) else found)
    return _entries(shown, width, whole=True, topics=True)


def _topic(group: str, every: Sequence[Option], width: int, *, whole: bool = False) -> list[str]:
    """The title and the entries of a group."""
    if group == COMMON:
        by_name = {one.name: one for one in reversed(every)}
        shown = [by_name[name] for name in CHANGED]
    else:
        shown = [one for one in every if one.topic == group]
        if not whole:
            shown = [one for one in shown if one.name not in CHANGED]
    title, note = TITLES.get(group, f"Data of {group}"), ""
    if group in benchmarks():
        note = f", beside all of --help {DATA}"
    return [f"{title} ({group}){note}:", *_entries(shown, width, whole=whole)]


def _entries(
    shown: Iterable[Option], width: int, *, whole: bool, topics: bool = False
) -> list[str]:
    lines = []
    for one in shown:
        topic = f" of {one.topic}" if topics and one.topic in benchmarks() else ""
        kinds = "|".join(one.kinds)
        if len(kinds) > LONG:  # so that it can be broken into lines
            kinds = kinds.replace("|", " | ")
        head = f"--{one.name}  {kinds}{_default(one)}{topic}"
        lines += _wrapped(head, width, "  ", " " * 6)
        text = one.text if whole else _first_sentence(one.text)
        lines += _wrapped(text, width, " " * 6)
    return lines


def _default(one: Option) -> str:
    if one.default is REQUIRED:
        return "  (required)"
    if one.name in ("config", "print_config"):
        return ""
    return f"  (default {as_yaml(one.default)})"


def _first_sentence(text: str) -> str:
    found = re.match(r".*?[.?!](?=\s+[A-Z`{\d\[]|\s+null|$)", text)
    return found[0] if found else text


def _end(one: Option) -> str:
    return one.name.rpartition(".")[2]


def _wrapped(text: str, width: int, first: str, following: str | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=first if following is None else following,
        break_long_words=False,
        break_on_hyphens=False,
    )
