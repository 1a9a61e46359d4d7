"""Where experiment files and the package's own files are found, from whatever folder.

In the checkout the experiments stand beside the package, to which they are linked; an installed
package holds them.
"""

import difflib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
FOLDER = PACKAGE / "experiments"
OWN = "rbft"  # what paths to the package's own files begin with
SUFFIXES = (".yaml", ".yml")


def experiment_names() -> list[str]:
    """Names of the experiments that come with rbft: `miniature`, `hardware/tiny`."""
    files = [*FOLDER.glob("*.yaml"), *FOLDER.glob("*/*.yaml")]
    return sorted(file.relative_to(FOLDER).with_suffix("").as_posix() for file in files)


def find_experiment(given: str) -> Path:
    """The experiment file that is meant: a file, or else one of rbft's by its name.

    Args:
        given: A path, or a name as `experiment_names` lists them; `experiments/miniature.yaml`
            is the name `miniature` where there is no such file.

    Raises:
        ValueError: If there is neither.
    """
    path = Path(given)
    if path.is_file():
        return path
    if (found := packaged_experiment(given)) is not None:
        return found
    if path.is_dir():
        raise ValueError(f"experiment {given} is a folder. Name a file in it.")
    name, names = _name(given), experiment_names()
    last = name.rpartition("/")[2]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    near = near or [one for one in names if one.rpartition("/")[2] == last]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(
        f"there is no experiment '{given}', neither a file nor one of rbft's.{hint} "
        "python -m rbft experiments lists them."
    )


def packaged_experiment(given: str) -> Path | None:
    """The file of one of rbft's experiments, see `find_experiment`; None if it is none."""
    name = _name(given)
    return FOLDER / f"{name}.yaml" if name in experiment_names() else None


def _name(given: str) -> str:
    """`miniature` for `experiments/miniature.yaml`."""
    path = Path(given)
    parts = (path.with_suffix("") if path.suffix in SUFFIXES else path).parts
    return "/".join(parts[1:] if parts[:1] == (FOLDER.name,) else parts)


def own_path(given: str) -> str:
    """A path, or where it is in the package if it begins with `rbft/` and is not here.

    Experiments name the package's own files so (`rbft/miniature/base`), as they stand in the
    checkout; all other paths count from the current folder.

    Args:
        given: A path, or any other text, which stays as it is.
    """
    first, *rest = given.split("/")
    if first != OWN or not rest or Path(given).exists():
        return given
    found = PACKAGE.joinpath(*rest)
    return str(found) if found.exists() else given


def settings_paths(content: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The settings of an experiment file by dotted name, as the command line has them.

    A mapping is gone into; `data: {class_path: A, init_args: {fps: 1}}` gives `data` and
    `data.fps`.

    Args:
        content: What stands in the file.
        prefix: Name of the setting whose content it is.
    """
    if not isinstance(content, dict) or not content:
        yield prefix, content
        return
    for key, value in content.items():
        if key == "class_path":
            yield prefix, value
        else:
            name = prefix if key == "init_args" else f"{prefix}.{key}" if prefix else str(key)
            yield from settings_paths(value, name)
