"""The card that a new domain starts from."""

import re
from collections.abc import Sequence
from pathlib import Path
from string import Template

import yaml

from rbft.card import Card
from rbft.runtime.files import write_text

# What a starter experiment says of what the paper does not have.
BEYOND = (
    "# Beyond the paper: the model writes a rationale before it answers, at test too. With 120\n",
    "# clips it paid most in the miniature, a small world of sprites; that says little of yours.\n",
    "# To try it, take these two lines in place of model's (docs/beyond_the_paper.md):\n",
)
BACKBONE = "Qwen/Qwen2.5-VL-7B-Instruct"


def starter_card(domain: str, classes: Sequence[str]) -> str:
    """A commented card for a new domain, as YAML text to write to a file.

    Args:
        domain: What the clips show, as it reads before "video" ("warehouse safety").
        classes: Names of the classes, which are also their words until one changes them.

    Raises:
        ValueError: If the domain is empty, or the classes do not make a card (fewer than two, or
            two that differ by case and punctuation only).
    """
    domain = " ".join("".join(letter if letter.isprintable() else " " for letter in domain).split())
    if not domain:
        raise ValueError("The domain is empty; say in a few words what the clips show.")
    if len(set(classes)) < len(classes):
        raise ValueError(f"A class stands twice among {', '.join(classes)}.")
    words = [f"{_quoted(name)}: {_quoted(name)}" for name in classes] or ["{}"]
    text = Template(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")).substitute(
        name=_quoted(re.sub(r"\W+", "_", domain.lower()).strip("_") or "clips"),
        persona=_quoted(f"{domain[0].upper()}{domain[1:]} Expert"),
        words="\n  ".join(words),
        domain=domain.replace("{", "{{").replace("}", "}}"),
    )
    Card(**yaml.safe_load(text))  # refuses what would not load later
    return text


def write_starter(
    domain: str, classes: Sequence[str], output: Path, videos: Path | None = None
) -> Path:
    """Writes a starter card, and beside it an experiment on a folder of videos that uses it.

    Args:
        domain: See `starter_card`.
        classes: See `starter_card`.
        output: The card file to write.
        videos: Folder of the videos; None writes "videos".

    Returns:
        The experiment file, `<stem>_experiment.yaml`.

    Raises:
        ValueError: If either file exists, or see `starter_card`.
    """
    experiment = output.with_name(f"{output.stem}_experiment.yaml")
    for file in (output, experiment):
        if file.exists():
            raise ValueError(f"{file} exists. Give --output another name, or remove it.")
    text = starter_card(domain, classes)
    data = {"root": str(videos or "videos"), "card": str(output)}
    entries = {
        "name": experiment.stem,
        "model": {"backbone": BACKBONE},
        "data": {"class_path": "VideoFolder", "init_args": data},
    }
    lines = [f"{key}: {_flow(value)}\n" for key, value in entries.items()]
    weighed = _flow({"backbone": BACKBONE, "answer_weight": 20})
    lines += [*BEYOND, "# stages: [rationale_class]\n", f"# model: {weighed}\n"]
    write_text(output, text)
    write_text(experiment, "".join(lines))
    return experiment


def _flow(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("...\n").strip()


def _quoted(text: str) -> str:
    # Quoted always, so that "yes", "1" or "a: b" stay text.
    quoted = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10_000)
    return quoted.removesuffix("\n")
