"""`init`: a card and an experiment for a domain of one's own."""

from collections import Counter
from pathlib import Path

import yaml

from rbft.commands.starter_card import write_starter
from rbft.data.class_folders import read_class_folders
from rbft.runtime.console import print_rank_zero


def init(
    domain: str,
    classes: str | None = None,
    videos: Path | None = None,
    output: Path = Path("card.yaml"),
) -> None:
    """Write a commented card for a domain of your own, and an experiment that uses it.

    Args:
        domain: What the clips show, as it reads before "video": "conveyor belt".
        classes: Names of the classes, pass,fail or "[pass, fail]"; also the words that the model
            answers with until you change them on the card. null takes the folders in videos.
        videos: Folder of the videos, for the experiment. Its folders are the classes
            (videos/<class>/, or videos/train/<class>/), unless classes names them.
        output: The card to write; the experiment goes beside it.
    """
    found: dict[str, Counter[str]] = {}
    if classes is not None:
        names = class_names(classes)
    elif videos is not None:
        found = read_class_folders(videos)
        names = list(found)
    else:
        raise ValueError(
            "The classes must be known: add --videos FOLDER, with a folder of clips for each "
            "class, or --classes pass,fail."
        )
    experiment = write_starter(domain, names, output, videos)
    lines = [f"Wrote {output}: put your own words into it."]
    if videos is None:
        lines.append(f"Wrote {experiment}: say there where your videos are (data.init_args.root).")
    else:
        counts = sum(found.values(), Counter())
        splits = ", ".join(f"{count} {split}" for split, count in sorted(counts.items()) if split)
        held = f": {counts.total()} videos{f' ({splits})' * bool(splits)}" if found else ""
        lines.append(f"Wrote {experiment}: it reads {videos}{held}.")
        lines += [f"  {name}: {own.total()}" for name, own in found.items()]
    lines.append(f"Then: python -m rbft scan {experiment}")
    print_rank_zero("\n".join(lines))


def class_names(given: str) -> list[str]:
    """Names of classes as they are given on a command line; each stays the text that it is.

    Args:
        given: `pass,fail`, `[pass, fail]` or, with commas in names, `["a, b", c]`.

    Raises:
        ValueError: If it is no list of names.
    """
    text = given.strip()
    text = text if text.startswith("[") else f"[{text}]"
    try:
        # In this loader yes, no and numbers are text.
        names = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(
            f"--classes {given} is no list of names. Write pass,fail; put a name with a comma, a "
            'colon or brackets into quotes: \'["a, b", "c: d"]\'.'
        )
    return names
