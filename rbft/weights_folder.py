"""What a weights folder says of itself, so that prediction needs no experiment.

Nothing here imports torch: what is wrong with a folder is said at once.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import yaml

from rbft.runs.folder import ADAPTER, CARD, PROVENANCE, Run, base_source, read_provenance
from rbft.runs.inference import INFERENCE, inference_options
from rbft.runs.record import SETTINGS
from rbft.runtime.experiment_file import read_chain
from rbft.runtime.experiments import find_experiment
from rbft.stages import stage_names

SELF_CONTAINED = ("predict", "demo")  # commands that a weights folder is enough for
WEIGHTS, CONFIGS, VIDEOS = "--weights", ("--config", "-c"), ("--videos", "--videos+")
ADAPTERS = ("--adapters", "--adapters+")
BACKBONE = "--model.backbone"
NAMES = ("run", "backbone")  # what --weights may be besides a folder; both need an experiment
DATA = "rbft.data.unlabelled.Unlabelled"
# What shows something and runs nothing.
SHOWING = ("--help", "-h", "--print_config", "--data.help")


def last_stage(folder: Path) -> str:
    """Name of the last finished stage of a run.

    Args:
        folder: The run's.

    Raises:
        ValueError: If none is finished.
    """
    run, file = Run(folder), folder / SETTINGS
    stages = stage_names(yaml.safe_load(file.read_text(encoding="utf-8"))["stages"])
    done = [stage for stage in stages if run.trained(stage)]
    if not done:
        raise ValueError(
            f"The run {folder} has no finished stage ({', '.join(stages)}). Run fit first, or give "
            "--weights backbone or a weights folder."
        )
    return done[-1]


def find_weights_folder(given: Path, option: str = WEIGHTS) -> Path:
    """The weights folder that is meant.

    Args:
        given: A weights folder, the folder of a stage that holds one, or that of a run, whose last
            finished stage is taken.
        option: What named it, for messages.

    Raises:
        ValueError: If it is none of these, or no stage of the run is finished.
    """
    if (given / PROVENANCE).is_file():
        return given
    if (given / "weights" / PROVENANCE).is_file():
        return given / "weights"
    if (given / SETTINGS).is_file():
        return Run(given).weights(last_stage(given))
    if not given.exists():
        raise ValueError(
            f"{option} {given} does not exist. Give a folder that rbft left: that of a run "
            "(lightning_logs/<run>), one of its weights folders (<run>/<stage>/weights), or one "
            "that export wrote."
        )
    alone = sorted(given.glob(f"*/weights/{PROVENANCE}")) if given.is_dir() else []
    if len(alone) == 1:  # of a stage that was trained by itself
        return alone[0].parent
    if alone:
        stages = ", ".join(file.parents[1].name for file in alone)
        raise ValueError(
            f"{option} {given} holds weights of several stages ({stages}). Name one of them: "
            f"{option} {alone[-1].parent}."
        )
    raise ValueError(
        f"{option} {given} is no weights folder of rbft: it holds no {PROVENANCE}. Give a folder "
        "that rbft left: that of a run (lightning_logs/<run>), one of its weights folders "
        "(<run>/<stage>/weights), or one that export wrote. For a backbone that rbft did not "
        "train, name an experiment (--config) and --weights backbone."
    )


def own_options(folder: Path, *, backbone: bool = True) -> list[str]:
    """What a weights folder says of itself, as options of the command line.

    Args:
        folder: The weights folder.
        backbone: Whether the base of an adapter must be there; it need not where another is named.

    Raises:
        ValueError: If it does not say enough, or the base of an adapter is gone.
    """
    note = read_provenance(folder) or {}
    lacks = [
        said
        for missing, said in (
            (INFERENCE not in note, "which frames the model is shown and how it is asked"),
            (not (folder / CARD).is_file(), f"its words ({CARD})"),
        )
        if missing
    ]
    if lacks:
        run = f", run '{note['run']}'" if note.get("run") else ""
        raise ValueError(
            f"weights folder {folder} does not say {' and '.join(lacks)}: an earlier version of "
            f"rbft left it, or a file was lost. Name the experiment that made it{run}, with "
            "--config (in Python: load(..., config=...)), or export it anew."
        )
    options = [f"--stages=[{','.join(note['stages'])}]", f"--data={DATA}"]
    options += [f"--data.card={folder / CARD}", *inference_options(note[INFERENCE])]
    if not (folder / ADAPTER).is_file():
        return [*options, f"{BACKBONE}={folder}"]
    if not backbone:
        return options
    base = note.get("base")
    if base is None:
        raise ValueError(
            f"weights folder {folder} is an adapter that does not say which weights it was trained "
            f"on. Name them: {BACKBONE} FOLDER."
        )
    # An id of the hub has one slash and no folder need exist.
    name = Path(base_source(folder, base))
    if not name.is_dir() and (name.is_absolute() or len(name.parts) != 2):
        raise ValueError(
            f"weights folder {folder} is an adapter of {name} (fingerprint {base['fingerprint']}), "
            f"which is no longer there. Say where it lies now: {BACKBONE} FOLDER."
        )
    return [*options, f"{BACKBONE}={name}"]


def with_own_settings(args: Sequence[str]) -> list[str]:
    """A command line of `predict` or `demo` with what the named weights folder says of itself.

    That of `export` too, of `--adapters` with what the first of them says. It stands first, so that
    everything that is given wins over it. Where an experiment is named, nothing is added.

    Args:
        args: The command line behind the program's name.

    Raises:
        ValueError: If neither weights nor an experiment are named, or see `find_weights_folder` and
            `own_options`.
    """
    if args[:1] == ["export"]:
        return _with_base(args)
    if not args or args[0] not in SELF_CONTAINED:
        return [*args]
    command, *rest = args
    weights = _values(rest, WEIGHTS)[-1:]
    named_none = not weights or weights[0] in NAMES
    showing = any(one.partition("=")[0] in SHOWING for one in rest)
    if _names_experiment(rest) or (showing and named_none):
        return [*args]
    if named_none:
        named = (
            f" {WEIGHTS} {weights[0]} takes an experiment, and none is named." if weights else ""
        )
        raise ValueError(
            f"{command} needs a model.{named} Add {WEIGHTS} FOLDER, the folder of a run "
            "(lightning_logs/<run>) or one that export wrote, or name an experiment (--config)."
        )
    if command == "predict" and not showing and not _values(rest, *VIDEOS):
        raise ValueError(
            "predict needs videos: add --videos with files, folders, patterns or a list of them."
        )
    folder = find_weights_folder(Path(weights[0]))
    return [command, *own_options(folder, backbone=not _values(rest, BACKBONE)), *rest]


def named_folders(given: Sequence[str]) -> dict[str, Path]:
    """Weights folders by name, as `--adapters` gives them.

    Args:
        given: Each NAME=FOLDER, or a folder alone, which is called as its run is.

    Raises:
        ValueError: If one is no weights folder, or two have one name.
    """
    folders: dict[str, Path] = {}
    for one in given:
        name, sign, path = one.partition("=")
        if not sign or Path(one).exists():
            name, path = "", one
        folder = find_weights_folder(Path(path), ADAPTERS[0])
        name = name or (read_provenance(folder) or {}).get("run") or folder.name
        if name in folders:
            raise ValueError(
                f"{ADAPTERS[0]} has the name '{name}' twice ({folders[name]} and {folder}). Give "
                "each a name of its own: NAME=FOLDER."
            )
        folders[name] = folder
    return folders


def _with_base(args: Sequence[str]) -> list[str]:
    """A command line of `export` with what its adapter, or the first of them, says of itself."""
    command, *rest = args
    adapters, weights = _values(rest, *ADAPTERS), _values(rest, WEIGHTS)[-1:]
    if _names_experiment(rest) or not (adapters or (weights and weights[0] not in NAMES)):
        return [*args]
    if adapters:
        first = adapters[0]
        listed = yaml.safe_load(first) if first.startswith("[") else [first]
        folder = next(iter(named_folders(listed[:1]).values()), None)
    else:
        folder = find_weights_folder(Path(weights[0]))
    if folder is None:  # an empty list, of which the command says what is missing
        return [*args]
    return [command, *own_options(folder, backbone=not _values(rest, BACKBONE)), *rest]


def _values(args: Sequence[str], *names: str) -> list[str]:
    """The values of an option, in order."""
    found = []
    for one, following in pairwise([*args, ""]):
        name, sign, value = one.partition("=")
        if name in names:
            found.append(value if sign else following)
    return found


def _names_experiment(args: Sequence[str]) -> bool:
    """Whether a command line names a benchmark, by itself or in a file."""
    if _values(args, "--data"):
        return True
    for file in _values(args, *CONFIGS):
        try:
            contents = read_chain(find_experiment(file).resolve())
        except ValueError:
            return True  # the parser says what is wrong with it
        for content in contents:
            data = content.get("data")
            if isinstance(data, str) or (isinstance(data, dict) and "class_path" in data):
                return True
    return False
