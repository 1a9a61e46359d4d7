"""`attention`: what runs look at when they name the class of a clip, and how much that means."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml

from rbft.attention.bands import band_layers, named_band
from rbft.attention.boxes import FrameBoxes, read_boxes
from rbft.attention.causal import CausalSettings
from rbft.attention.maps import Kind, slice_frames
from rbft.attention.module import AttentionModule, MapSettings, MapWriter
from rbft.attention.pictures import COLOURS, RunMap, ShownClip, write_film, write_strip
from rbft.attention.prompts import GENERIC
from rbft.attention.records import Records, file_name
from rbft.attention.summary import (
    SCORES,
    Scored,
    as_dict,
    box_note,
    clip_scores,
    differences,
    scores_table,
)
from rbft.backbone.loading import fingerprint
from rbft.build import LOGS, Experiment, build
from rbft.clip import Clip
from rbft.data.base import VideoDataModule
from rbft.inputs import Inputs, check_inputs
from rbft.module import RBFTModule
from rbft.runs.folder import PROVENANCE, Run, read_provenance
from rbft.runs.record import SETTINGS, scoring_settings
from rbft.runtime.console import print_rank_zero
from rbft.runtime.differences import differences as changes
from rbft.runtime.differences import flat
from rbft.runtime.files import write_json
from rbft.runtime.lock import Lock
from rbft.runtime.ranges import check_ranges
from rbft.stages import CLASS, Stage, find_stage
from rbft.video.packet_index import list_frames
from rbft.video.sampling import VideoError

FOLDER = "attention"  # within that of the runs
BACKBONE = "backbone"
REDRAWN, SHUFFLED = "redrawn", "shuffled"
VERSION = 1  # of what is read of a clip: raise it when the same settings give other figures
NAMED = 5  # near misses that a message names
ColourMap: Any = Literal[COLOURS]
# Settings of a run's model that decide what it answers, beside its weights.
OF_MODEL = ("backbone", "quantize", "trust_remote_code")


@dataclass(frozen=True)
class Shown:
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


def attention(
    runs: list[str],
    clips: list[str] | None = None,
    configs: list[Path] | None = None,
    boxes: Path | None = None,
    kind: Kind = "mean",
    layers: list[int] | str = "middle_to_late",
    generic: str = GENERIC,
    controls: list[Literal["redrawn", "shuffled"]] | None = None,
    masked_share: float = 0.2,
    repeats: int = 3,
    pictures: int = 20,
    colours: ColourMap = "viridis",
    seed: int = 0,
    name: str | None = None,
    logs: Path = Path(LOGS),
) -> None:
    """Show what runs look at in clips: maps (Figure 2), scores of them, and their controls.

    Started again, it goes on after the last clip that was read.

    Args:
        runs: Runs to compare, "[direct, ours]": names of folders under logs, weights folders, or
            backbone for the bare backbone.
        clips: Ids of clips, "[a, b]"; null takes all test clips.
        configs: Experiment files that say which benchmark, backbone and hardware; null takes the
            settings of the first run that has any.
        boxes: JSON Lines with the objects of clips (id, frame, boxes); without it, the scores that
            need them are left out.
        kind: mean over heads and layers; relative, that divided by the same of a generic prompt;
            or rollout through all layers.
        layers: The band of layers of a mean: early, middle, late, middle_to_late (50 to 90 % of the
            depth), all, or layers by number from 0, "[14, 15]".
        generic: The prompt that relative divides by.
        controls: Controls of each run: redrawn (the language model's weights drawn anew) and
            shuffled (the question's words in another order); null takes both, "[]" none.
        masked_share: Share of the video's cells that is greyed to see what the answer loses; 0
            masks nothing.
        repeats: Random draws of as many cells, which the loss is compared with.
        pictures: Clips that pictures are made of, the first ones.
        colours: Colours of the maps.
        seed: Of random cells, re-drawn weights and shuffled words.
        name: Name of the output's folder under <logs>/attention; null joins those of the runs.
        logs: Folder of the runs.
    """
    numbers = {"repeats": repeats, "pictures": pictures, "seed": seed}
    check_ranges("", {**numbers, "masked_share": masked_share})
    shown = [find_run(one, logs) for one in runs]
    if not shown or len({one.name for one in shown}) < len(shown):
        raise ValueError(
            f'--runs must name runs, each once, such as "[direct, ours]"; got {", ".join(runs)}.'
        )
    known = None if boxes is None else read_boxes(boxes)
    experiment = _experiment(shown, configs, logs)
    causal = CausalSettings(masked_share, repeats, seed) if masked_share else None
    band = layers if isinstance(layers, str) else tuple(layers)
    settings = MapSettings(kind, band, generic, causal, seed)
    wanted = (REDRAWN, SHUFFLED) if controls is None else tuple(controls)
    output = experiment.logs / FOLDER / (name or _joined(shown))
    with Lock(output, "--name"):
        work = _Work(experiment, shown, settings, wanted, output)
        work.read(clips)
        work.show(known, pictures, colours, boxes)


def find_run(name: str, logs: Path) -> Shown:
    """The run that somebody names.

    Args:
        name: A run's folder, or its name within `logs`; a stage's or weights folder; or backbone.
        logs: Folder of the runs.

    Raises:
        ValueError: If there is none, it has no finished stage, or its class stands behind a
            rationale, so that the prompt's last token does not predict it.
    """
    if name == BACKBONE:
        return Shown(name, find_stage("label"), None, None)
    for folder in (logs / name, Path(name)):
        if (folder / SETTINGS).is_file():
            return _of_run(name, folder)
        for weights in (folder, folder / "weights"):
            if (found := read_provenance(weights)) is not None:
                settings = weights.parent.parent / SETTINGS
                stage = _first_is_class(name, found["stages"][-1])
                return Shown(name, stage, weights, settings if settings.is_file() else None)
    there = sorted(file.parent.name for file in logs.glob(f"*/{SETTINGS}"))
    near = get_close_matches(name, there, NAMED, 0.5) or there[:NAMED]
    hint = f"Near by are {', '.join(near)}. " if near else ""
    raise ValueError(
        f"--runs names '{name}', which is no run under {logs} and no weights folder (with "
        f"{PROVENANCE}). {hint}Allowed are names of runs, weights folders and backbone."
    )


def _of_run(name: str, folder: Path) -> Shown:
    stages = list(yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8"))["stages"])
    run = Run(folder)
    if not stages:  # a zero-shot run
        return Shown(name, find_stage("label"), None, folder / SETTINGS)
    done = [stage for stage in stages if run.trained(stage)]
    if not done:
        raise ValueError(
            f"--runs names {name}, but the run {folder} has no finished stage "
            f"({', '.join(stages)}). Let fit finish it, or name a weights folder."
        )
    return Shown(name, _first_is_class(name, done[-1]), run.weights(done[-1]), folder / SETTINGS)


def _first_is_class(name: str, stage: str) -> Stage:
    asked = find_stage(stage).classifier
    if asked.parts[0] != CLASS:
        raise ValueError(
            f"--runs names {name}, which answers with its class behind a rationale (stage "
            f"{stage}). The last token of its prompt predicts no class, so it has no map. Name "
            "runs whose answer begins with the class."
        )
    return asked


def _experiment(shown: Sequence[Shown], configs: Sequence[Path] | None, logs: Path) -> Experiment:
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
        if different := changes(frames, theirs):
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


def _joined(shown: Sequence[Shown]) -> str:
    """Name of the output's folder."""
    return file_name("-".join(Path(one.name).name for one in shown))


@dataclass(frozen=True)
class _Source:
    """A run with what its maps are read from, and where they go.

    Attributes:
        shown: The run.
        inputs: The experiment with the run's own backbone.
        records: Those of the run under "", and of its controls.
    """

    shown: Shown
    inputs: Inputs
    records: Mapping[str, Records]

    def name_of(self, control: str) -> str:
        """The run's name, or a control's: "ours (redrawn)"."""
        return f"{self.shown.name} ({control})" if control else self.shown.name


class _Work:
    """One call of the command.

    Args:
        experiment: The settings.
        shown: The runs.
        settings: How maps are read.
        controls: Which controls.
        output: The folder.

    Raises:
        ValueError: If a run was trained with other words, or the band does not exist.
    """

    def __init__(
        self,
        experiment: Experiment,
        shown: Sequence[Shown],
        settings: MapSettings,
        controls: Sequence[str],
        output: Path,
    ) -> None:
        self.settings, self.controls, self.output = settings, controls, output
        if (threads := experiment.settings.cpu_threads) is not None:
            torch.set_num_threads(threads)
        inputs = check_inputs(experiment)
        self.data: VideoDataModule = inputs.data
        self.sources = [self._source(inputs, one) for one in shown]
        self.clips: list[Clip] = []
        self.notes: list[str] = []

    def _source(self, inputs: Inputs, shown: Shown) -> _Source:
        if shown.settings is not None:
            model = yaml.safe_load(shown.settings.read_text(encoding="utf-8"))["model"]
            own = inputs.experiment.changed(**{f"model__{key}": model[key] for key in OF_MODEL})
            same = own.settings.model.backbone == inputs.experiment.settings.model.backbone
            digest = inputs.backbone if same else fingerprint(own.settings.model.backbone)
            model = inputs.model if same else own.objects().model
            inputs = replace(inputs, experiment=own, backbone=digest, model=model)
        if shown.weights is not None:
            inputs.check_words(shown.weights, shown.stage)
        made_from = inputs.conditions(shown.stage.name, shown.weights)
        for name in ("answer", "max_new_tokens"):  # nothing is written
            made_from.pop(name)
        settings = self.settings
        made_from |= {"kind": settings.kind, "layers": self._layers(inputs), "version": VERSION}
        made_from["causal"] = None if settings.causal is None else vars(settings.causal)
        made_from |= {"generic": settings.generic} if settings.kind == "relative" else {}
        records = {"": Records.of(self.output, shown.name, made_from)}
        for control in self.controls:
            own = {**made_from, "control": control, "seed": settings.seed}
            own |= {"quantize": None} if control == REDRAWN else {}
            records[control] = Records.of(self.output, f"{shown.name} {control}", own)
        return _Source(shown, inputs, records)

    def _layers(self, inputs: Inputs) -> list[int] | None:
        depth = inputs.model.config.text_config.num_hidden_layers
        rollout = self.settings.kind == "rollout"
        return None if rollout else band_layers(self.settings.layers, depth)

    def read(self, ids: Sequence[str] | None) -> None:
        """Reads the maps that are missing.

        Args:
            ids: The clips; None takes all test clips.

        Raises:
            ValueError: If a clip is unknown or cannot be decoded.
        """
        clips = find_clips(self.data, ids)
        abouts = [
            {clip.id: self._about(source.shown.stage, clip) for clip in clips}
            for source in self.sources
        ]
        missing = [
            {
                control: [c for c in clips if kept.read(c.id, about[c.id]) is None]
                for control, kept in source.records.items()
            }
            for source, about in zip(self.sources, abouts, strict=True)
        ]
        todo = {clip.id for by in missing for lacking in by.values() for clip in lacking}
        lost = self._undecodable([clip for clip in clips if clip.id in todo])
        if lost and ids is not None:
            raise ValueError(f"{' '.join(lost.values())} Leave out of --clips: {', '.join(lost)}.")
        if lost:
            first = next(iter(lost.values()))
            self._note(f"{len(lost)} clips cannot be decoded and are left out (first: {first})")
        self.clips = [clip for clip in clips if clip.id not in lost]
        if not self.clips:
            raise ValueError("No clip is left to read maps of. Name others in --clips.")
        for source, about, by in zip(self.sources, abouts, missing, strict=True):
            for passed in (("", SHUFFLED), (REDRAWN,)):
                lacking = {clip.id for one in passed for clip in by.get(one, ())}
                if pending := [clip for clip in self.clips if clip.id in lacking]:
                    self._pass(source, [one for one in passed if one in by], pending, about)

    def _about(self, stage: Stage, clip: Clip) -> dict[str, Any]:
        """What determines the record of a clip."""
        return {
            "video": self.data.video_digest(clip),
            "start": clip.start,
            "end": clip.end,
            "label": None if clip.label is None else self.data.card.classes[clip.label],
            "question": stage.prompt(self.data.card, clip),
        }

    def _undecodable(self, clips: Sequence[Clip]) -> dict[str, str]:
        """What is wrong with clips that cannot be decoded, before any model is loaded."""
        lost = {}
        for clip in clips:
            try:
                self.data.decode(clip)
            except VideoError as error:
                lost[clip.id] = f"Clip {clip.id} cannot be decoded: {error}"
        return lost

    def _pass(
        self,
        source: _Source,
        kinds: Sequence[str],
        clips: Sequence[Clip],
        about: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Reads the maps of a run, or of its re-drawn weights."""
        redrawn = kinds == [REDRAWN]
        experiment, shown = source.inputs.experiment, source.shown
        if redrawn:  # what is stored in 4 bits cannot be drawn anew
            experiment = experiment.changed(model__quantize=None)
        make = partial(
            _module,
            stage=shown.stage,
            settings=self.settings,
            redrawn=redrawn,
            shuffled=SHUFFLED in kinds,
        )
        records = [source.records[kind] for kind in kinds]
        title = f"Reading {len(clips)} maps of {source.name_of(REDRAWN if redrawn else '')}"
        built = build(
            experiment,
            shown.stage.name,
            shown.weights,
            title,
            [MapWriter(records, about, self.data.card.classes)],
            feed={"predict_clips": list(clips)},
            module=make,
        )
        built.predict()

    def show(
        self,
        boxes: Mapping[str, FrameBoxes] | None,
        pictures: int,
        colours: str,
        file: Path | None,
    ) -> None:
        """Scores what was read, makes pictures, writes it all and prints the table.

        Args:
            boxes: The objects of clips; None where no file was given.
            pictures: Clips that pictures are made of.
            colours: Colours of the maps.
            file: The file of the boxes.
        """
        found = {
            source.name_of(control): self._records(source, control)
            for source in self.sources
            for control in source.records
        }
        scores = {
            name: {clip: clip_scores(one, (boxes or {}).get(clip)) for clip, one in records.items()}
            for name, records in found.items()
        }
        runs, controls = [], {}
        for number, source in enumerate(self.sources):
            key, own = chr(ord("a") + number), source.shown.name
            runs.append(Scored(own, key, scores[own]))
            controls[own] = [
                Scored(name, f"{key}, {control}", scores[name])
                for control in self.controls
                if (name := source.name_of(control))
            ]
        if said := box_note(runs, boxes):
            self._note(said)
        made = [
            self._pictures(clip, found, (boxes or {}).get(clip.id), colours)
            if number < pictures
            else {}
            for number, clip in enumerate(self.clips)
        ]
        clips = [
            {
                "id": clip.id,
                "label": None if clip.label is None else self.data.card.classes[clip.label],
                **files,
                "predictions": {
                    source.shown.name: {
                        key: found[source.shown.name][clip.id][key]
                        for key in ("prediction", "probabilities")
                    }
                    for source in self.sources
                },
                "scores": {name: _finite(own[clip.id]) for name, own in scores.items()},
            }
            for clip, files in zip(self.clips, made, strict=True)
        ]
        every = [*runs, *(one for many in controls.values() for one in many)]
        pairs = [(b, a) for n, a in enumerate(runs) for b in runs[n + 1 :]]
        pairs += [(run, control) for run in runs for control in controls[run.name]]
        content = {
            "runs": [run.name for run in runs],
            "controls": {run: [one.name for one in many] for run, many in controls.items()},
            "map": self.description,
            "layers": {one.shown.name: self._layers(one.inputs) for one in self.sources},
            "boxes": None if file is None else str(file),
            "notes": self.notes,
            "meaning": SCORES,
            "clips": clips,
            "scores": {
                one.name: {key: as_dict(*mean) for key, mean in one.means().items()}
                for one in every
            },
            "differences": [
                {"a": a.name, "b": b.name, "scores": differences(a, b)} for a, b in pairs
            ],
            "made_from": {
                source.name_of(control): dict(kept.made_from)
                for source in self.sources
                for control, kept in source.records.items()
            },
        }
        write_json(self.output / "attention.json", content)
        print_rank_zero(
            f"{len(clips)} clip{'s' * (len(clips) != 1)}. {self.description}\n"
            f"{scores_table(runs, controls)}\n"
            f"Pictures, films and all figures: {self.output}"
        )

    @property
    def description(self) -> str:
        """What the maps are, in a sentence."""
        settings = self.settings
        depth = self.sources[0].inputs.model.config.text_config.num_hidden_layers
        if settings.kind == "rollout":
            return f"Attention rollout of the prompt's last token through all {depth} layers."
        band = named_band(settings.layers, depth)
        said = f"Attention of the prompt's last token, mean over heads and {band}"
        if settings.kind == "relative":
            said += f', divided by the same of the prompt "{settings.generic}"'
        return f"{said}."

    def _records(self, source: _Source, control: str) -> dict[str, dict[str, Any]]:
        """What was read of each clip."""
        found = {}
        for clip in self.clips:
            about = self._about(source.shown.stage, clip)
            one = source.records[control].read(clip.id, about)
            if one is None:  # decoded before, and not a moment later
                raise ValueError(
                    f"Clip {clip.id} could not be read again while its map was made. Is its disk "
                    "still there? Started again, the command goes on."
                )
            found[clip.id] = one
        return found

    def _pictures(
        self,
        clip: Clip,
        found: Mapping[str, Mapping[str, Mapping[str, Any]]],
        boxes: FrameBoxes | None,
        colours: str,
    ) -> dict[str, Any]:
        """Strips of each run, all of them below each other, and a film; names of the files."""
        video = self.data.decode(clip)
        shown = ShownClip(
            clip.id,
            None if clip.label is None else self.data.card.classes[clip.label],
            video.frames.permute(0, 2, 3, 1).numpy(),
            frame_seconds(clip, video.indices, video.fps),
            slice_frames(video.indices),
            [None if boxes is None else boxes.get(index) for index in video.indices],
        )
        maps = []
        for source in self.sources:
            one = found[source.shown.name][clip.id]
            share = one["probabilities"][one["prediction"]]
            answer = f"prediction: {one['prediction']} ({share:.2f})"
            maps.append(RunMap(source.shown.name, np.array(one["map"]), answer))
        stem, strips = file_name(clip.id), {}
        for own in maps:
            strips[own.run] = f"strips/{stem}-{file_name(own.run)}.png"
            write_strip(self.output / strips[own.run], shown, [own], colours)
        figure, film = f"figures/{stem}.png", f"films/{stem}.mp4"
        write_strip(self.output / figure, shown, maps, colours, plain=True)
        write_film(self.output / film, shown, maps, colours)
        return {"strips": strips, "figure": figure, "film": film}

    def _note(self, text: str) -> None:
        self.notes.append(text)
        print_rank_zero(text)


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
        if clip.id not in data.usable:
            try:
                data.grid(clip)
                reason = f"{clip.path} is not usable."
            except ValueError as error:
                reason = str(error)
            raise ValueError(f"--clips names {clip.id}, which cannot be shown: {reason}")
    return clips


def frame_seconds(clip: Clip, indices: Sequence[int], fps: float) -> list[float]:
    """When frames are shown, in seconds from the clip's beginning, by the file's time stamps.

    Args:
        clip: The clip.
        indices: Numbers of the frames in the file.
        fps: Frames per second of the file, where its time stamps do not say.
    """
    start = clip.start or 0.0
    try:
        stamps = list_frames(clip.path).seconds
        return [stamps[index] - start for index in indices]
    except (VideoError, IndexError):
        return [index / fps - start for index in indices]


def _module(model: RBFTModule, stage: Stage, **given: Any) -> AttentionModule:
    return AttentionModule(model.loader, model.card, stage, **given)


def _finite(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in scores.items()}
