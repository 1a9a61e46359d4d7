"""`experiments`: what experiments come with rbft."""

import shutil
import sys
import textwrap
from pathlib import Path

import yaml

from rbft.commands.options import as_yaml
from rbft.runtime.experiments import (
    FOLDER,
    experiment_names,
    find_experiment,
    settings_paths,
)


def experiments(show: str | None = None) -> None:
    """List the experiments that come with rbft, or show one; each runs from any folder.

    Args:
        show: Name of one whose file is shown, with those that it builds on; null lists all.
    """
    sys.stdout.write(f"{_files(show) if show else _listing()}\n")


def _listing() -> str:
    width = max(min(shutil.get_terminal_size().columns, 120) - 1, 60)
    lines, names = [f"{FOLDER.resolve()}:", ""], experiment_names()
    ordered = sorted(names, key=lambda name: (name.count("/"), name))
    longest = max(len(name) for name in names)
    for name in ordered:
        said = f"  {name:{longest}}  {_summary(FOLDER / f'{name}.yaml')}"
        lines += textwrap.wrap(
            said,
            width,
            subsequent_indent=" " * (longest + 4),
            break_on_hyphens=False,
        )
    return "\n".join(
        [
            *lines,
            "",
            "rbft fit NAME runs one; --config hardware/NAME or beyond/NAME goes on top of another.",
        ]
    )


def _summary(file: Path) -> str:
    """What a file says in a line: what it builds on, and its settings but the name."""
    text = file.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    base, name = content.pop("config", None), content.pop("name", "")
    comments = [line[1:].strip() for line in text.splitlines() if line.startswith("#")]
    if not name and comments:  # an overlay says what it is for
        return " ".join(comments).partition(". ")[0].rstrip(".")
    said = ", ".join(f"{key} {as_yaml(value)}" for key, value in settings_paths(content))
    on = "" if base is None else f"{Path(base).stem} with "
    return f"{on}{said}"


def _files(name: str) -> str:
    """The text of an experiment, after those that it builds on."""
    file: Path | None = find_experiment(name)
    texts = []
    while file is not None:
        text = file.read_text(encoding="utf-8")
        texts.insert(0, f"# {file.resolve()}\n{text.strip()}")
        base = (yaml.safe_load(text) or {}).get("config")
        file = None if base is None else file.parent / base
    return "\n\n".join(texts)
