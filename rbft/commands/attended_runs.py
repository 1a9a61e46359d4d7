"""The runs whose attention is read: what they are named by, and what all of them are asked with."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from rbft.attention.records import file_name
from rbft.build import Experiment
from rbft.clip import Clip
from rbft.data.base import VideoDataModule
from rbft.runs.folder import PROVENANCE, Run, read_provenance
from rbft.runs.record import SETTINGS, scoring_settings
from rbft.runtime.differences import differences, flat
from rbft.stages import CLASS, Stage, find_stage, stage_names

BACKBONE = "backbone"
NAMED = 5  # near misses that a message names


@dataclass(frozen=True)
class AttendedRun:
    """A run whose maps are read.

    Attributes:
        name: As it was asked for.
        stage: Whose question its weights are asked.
        weights: Its weights folder; None for the bare backbone.
        settings: Its settings; None where it left none.
    """

    name: str
    stage: Stage
    weights: Path | None
    settings: Path | None


def find_run(name: str, logs: Path) -> AttendedRun:
    """The run that somebody names.

    Args:
        name: A run's folder, or its name within `logs`; a stage's or weights folder; or backbone.
        logs: Folder of the runs.

    Raises:
        ValueError: If there is none, it has no finished stage, or its class stands behind a
            rationale, so that the prompt's last token does not predict it.
    """
    if name == BACKBONE:
        return AttendedRun(name, find_stage("label"), None, None)
    for folder in (logs / name, Path(name)):
        if (folder / SETTINGS).is_file():
            return _of_run(name, folder)
        for weights in (folder, folder / "weights"):
            if (found := read_provenance(weights)) is not None:
                settings = weights.parent.parent / SETTINGS
                stage = _first_is_class(name, found["stages"][-1])
                return AttendedRun(name, stage, weights, settings if settings.is_file() else None)
    there = sorted(file.parent.name for file in logs.glob(f"*/{SETTINGS}"))
    near = get_close_matches(name, there, NAMED, 0.5) or there[:NAMED]
    hint = f"Near by are {', '.join(near)}. " if near else ""
    raise ValueError(
        f"--runs names '{name}', which is no run under {logs} and no weights folder (with "
        f"{PROVENANCE}). {hint}Allowed are names of runs, weights folders and backbone."
    )


def _of_run(name: str, folder: Path) -> AttendedRun:
    settings = yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8"))
    if settings.get("endpoint") is not None:
        raise ValueError(
            f"--runs names {name}, which a server answered ({settings['endpoint']['model']}): its "
            "attention cannot be read. Name runs of a backbone."
        )
    stages, run = stage_names(settings["stages"]), Run(folder)
    if not stages:  # a zero-shot run
        return AttendedRun(name, find_stage("label"), None, folder / SETTINGS)
    done = [stage for stage in stages if run.trained(stage)]
    if not done:
        raise ValueError(
            f"--runs names {name}, but the run {folder} has no finished stage "
            f"({', '.join(stages)}). Let fit finish it, or name a weights folder."
        )
    return AttendedRun(
        name, _first_is_class(name, done[-1]), run.weights(done[-1]), folder / SETTINGS
    )


def _first_is_class(name: str, stage: str) -> Stage:
    asked = find_stage(stage).classifier
    if asked.parts[0] != CLASS:
        raise ValueError(
            f"--runs names {name}, which answers with its class behind a rationale (stage "
            f"{stage}). The last token of its prompt predicts no class, so it has no map. Name "
            "runs whose answer begins with the class."
        )
    return asked


def common_experiment(
    shown: Sequence[AttendedRun], configs: Sequence[Path] | None, logs: Path
) -> Experiment:
    """What all runs are asked with: the given files, or the settings of the first run with any.

    Raises:
        ValueError: If there are none, or the runs were made with other frames.
    """
    files = list(configs or [one.settings for one in shown if one.settings is not None][:1])
    if not files:
        raise ValueError(
            "--runs names nothing that has settings of its own. Say which benchmark and backbone: "
            'add --configs "[experiment.yaml]".'
        )
    experiment = read_experiment(files, [f"--trainer.default_root_dir={logs}"])
    frames = _frames(yaml.safe_load(experiment.as_yaml()))
    source = str(files[-1]) if configs else f"run {shown[0].name}"
    for one in shown:
        if one.settings is None:
            continue
        theirs = _frames(yaml.safe_load(one.settings.read_text(encoding="utf-8")))
        if different := differences(frames, theirs):
            listed = ", ".join(f"{key}: {a} -> {b}" for key, (a, b) in sorted(different.items()))
            raise ValueError(
                f"run {one.name} was made with other frames than {source} ({listed}): their maps "
                "are not of the same video. Compare runs with the same settings of frames."
            )
    # One process, a clip at a time, with attention whose rows can be taken.
    return experiment.changed(
        data__init_args__eval_batch_size=1,
        data__init_args__feature_cache_gb=0.0,
        model__attention="sdpa",
        model__stage=None,
        model__weights=None,
        trainer__devices=1,
        trainer__num_nodes=1,
        trainer__strategy="auto",
    )


def read_experiment(files: Sequence[Path], options: Sequence[str]) -> Experiment:
    """The experiment of settings files, with a precision and a number of threads.

    Args:
        files: Experiment files, or the settings of a run; later ones win.
        options: Options of the command line, which win over them.
    """
    from rbft.cli import parse_experiment

    arguments = [*(f"--config={file}" for file in files), *options]
    with warnings.catch_warnings():
        # The command line is this command's own.
        warnings.filterwarnings("ignore", ".*LightningCLI's args parameter.*")
        return parse_experiment(["fit", *arguments])


def _frames(settings: Mapping[str, Any]) -> dict[str, Any]:
    return scoring_settings(flat(settings))["frames"]


def joined_names(shown: Sequence[AttendedRun]) -> str:
    """Name of the output's folder."""
    return file_name("-".join(Path(one.name).name for one in shown))


def find_clips(data: VideoDataModule, ids: Sequence[str] | None) -> list[Clip]:
    """The clips that somebody names.

    Args:
        data: The benchmark.
        ids: Ids of clips of any split; None takes all test clips.

    Raises:
        ValueError: If there is no clip of that id, or its file is not usable.
    """
    if ids is None:
        return data.clips("test")
    known = {clip.id: clip for clip in data.all_clips}
    if unknown := [name for name in dict.fromkeys(ids) if name not in known]:
        near = get_close_matches(unknown[0], known, NAMED, 0.5) or list(known)[:NAMED]
        raise ValueError(
            f"--clips names {', '.join(unknown)}, which {data.benchmark} does not have. Its ids "
            f"nearest to {unknown[0]} are {', '.join(near)}."
        )
    clips = [known[name] for name in dict.fromkeys(ids)]
    for clip in clips:
        if clip.id not in data.files.usable:
            try:
                data.files.grid(clip)
                reason = f"{clip.path} is not usable."
            except ValueError as error:
                reason = str(error)
            raise ValueError(f"--clips names {clip.id}, which cannot be shown: {reason}")
    return clips
