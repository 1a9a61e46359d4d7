"""Reads the maps of runs that are not on disk yet, in a pass for each set of weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from rbft.attention.bands import band_layers, named_band
from rbft.attention.module import AttentionModule, MapSettings, MapWriter
from rbft.attention.records import Records
from rbft.backbone.family import linear_layers
from rbft.backbone.loading import fingerprint
from rbft.build import Experiment, build
from rbft.clip import Clip
from rbft.commands.attended_runs import AttendedRun, find_clips
from rbft.data.base import VideoDataModule
from rbft.inputs import Inputs, check_inputs
from rbft.module import RBFTModule
from rbft.runtime.console import print_rank_zero
from rbft.stages import Stage
from rbft.video.sampling import VideoError

REDRAWN, SHUFFLED = "redrawn", "shuffled"
VERSION = 1  # of what is read of a clip: raise it when the same settings give other figures
# Settings of a run's model that decide what it answers, beside its weights.
OF_MODEL = ("backbone", "quantize", "trust_remote_code")


@dataclass(frozen=True)
class Source:
    """A run with what its maps are read from, and where they go.

    Attributes:
        run: The run.
        inputs: The experiment with the run's own backbone.
        records: Those of the run under "", and of its controls.
    """

    run: AttendedRun
    inputs: Inputs
    records: Mapping[str, Records]

    def name_of(self, control: str) -> str:
        """The run's name, or a control's: "ours (redrawn)"."""
        return f"{self.run.name} ({control})" if control else self.run.name


class MapReading:
    """One call of the command.

    Args:
        experiment: The settings.
        runs: The runs.
        settings: How maps are read.
        controls: Which controls.
        output: The folder.

    Raises:
        ValueError: If a run was trained with other words, or the band does not exist.
    """

    def __init__(
        self,
        experiment: Experiment,
        runs: Sequence[AttendedRun],
        settings: MapSettings,
        controls: Sequence[str],
        output: Path,
    ) -> None:
        self.settings, self.controls, self.output = settings, controls, output
        if (threads := experiment.settings.cpu_threads) is not None:
            torch.set_num_threads(threads)
        inputs = check_inputs(experiment)
        inputs.card.refuse_several("attention, which maps the answer to one question about a clip,")
        self.data: VideoDataModule = inputs.data
        self.sources = [self._source(inputs, one) for one in runs]
        self.clips: list[Clip] = []
        self.notes: list[str] = []

    def _source(self, inputs: Inputs, run: AttendedRun) -> Source:
        if run.settings is not None:
            model = yaml.safe_load(run.settings.read_text(encoding="utf-8"))["model"]
            own = inputs.experiment.changed(**{f"model__{key}": model[key] for key in OF_MODEL})
            same = own.settings.model.backbone == inputs.experiment.settings.model.backbone
            digest = inputs.backbone if same else fingerprint(own.settings.model.backbone)
            model = inputs.model if same else own.objects().model
            inputs = replace(inputs, experiment=own, backbone=digest, model=model)
        check_attends(run.name, inputs.model.config)
        if run.weights is not None:
            inputs.check_words(run.weights, run.stage)
        made_from = inputs.conditions(run.stage.name, run.weights)
        for name in ("answer", "max_new_tokens"):  # nothing is written
            made_from.pop(name)
        settings = self.settings
        made_from |= {"kind": settings.kind, "layers": self._layers(inputs), "version": VERSION}
        made_from["causal"] = None if settings.causal is None else vars(settings.causal)
        made_from |= {"generic": settings.generic} if settings.kind == "relative" else {}
        records = {"": Records.of(self.output, run.name, made_from)}
        for control in self.controls:
            own = {**made_from, "control": control, "seed": settings.seed}
            own |= {"quantize": None} if control == REDRAWN else {}
            records[control] = Records.of(self.output, f"{run.name} {control}", own)
        return Source(run, inputs, records)

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
            {clip.id: self._about(source.run.stage, clip) for clip in clips}
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
            self.note(f"{len(lost)} clips cannot be decoded and are left out (first: {first})")
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
            "video": self.data.files.digest(clip),
            "start": clip.start,
            "end": clip.end,
            "label": self.class_of(clip),
            "question": stage.prompt(self.data.card, clip),
        }

    def _undecodable(self, clips: Sequence[Clip]) -> dict[str, str]:
        """What is wrong with clips that cannot be decoded, before any model is loaded."""
        lost = {}
        for clip in clips:
            try:
                self.data.reader.decode(clip)
            except VideoError as error:
                lost[clip.id] = f"Clip {clip.id} cannot be decoded: {error}"
        return lost

    def _pass(
        self,
        source: Source,
        kinds: Sequence[str],
        clips: Sequence[Clip],
        about: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Reads the maps of a run, or of its re-drawn weights."""
        redrawn = kinds == [REDRAWN]
        experiment, run = source.inputs.experiment, source.run
        if redrawn:  # what is stored in 4 bits cannot be drawn anew
            experiment = experiment.changed(model__quantize=None)
        make = partial(
            _module,
            stage=run.stage,
            settings=self.settings,
            redrawn=redrawn,
            shuffled=SHUFFLED in kinds,
        )
        records = [source.records[kind] for kind in kinds]
        title = f"Reading {len(clips)} maps of {source.name_of(REDRAWN if redrawn else '')}"
        built = build(
            experiment,
            run.stage.name,
            run.weights,
            title,
            [MapWriter(records, about, self.data.card.classes)],
            feed={"predict_clips": list(clips)},
            module=make,
        )
        built.predict()

    def class_of(self, clip: Clip) -> str | None:
        """The name of a clip's class, None where it is unknown."""
        return None if clip.label is None else self.data.card.classes[clip.label]

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

    def records(self, source: Source, control: str) -> dict[str, dict[str, Any]]:
        """What was read of each clip."""
        found = {}
        for clip in self.clips:
            about = self._about(source.run.stage, clip)
            one = source.records[control].read(clip.id, about)
            if one is None:  # decoded before, and not a moment later
                raise ValueError(
                    f"Clip {clip.id} could not be read again while its map was made. Is its disk "
                    "still there? Started again, the command goes on."
                )
            found[clip.id] = one
        return found

    def note(self, text: str) -> None:
        """Says something, and keeps it for the output."""
        self.notes.append(text)
        print_rank_zero(text)


def check_attends(run: str, config: Any) -> None:
    """Refuses a backbone most of whose layers have no attention weights.

    Args:
        run: The run that it is of.
        config: Its configuration.

    Raises:
        ValueError: Naming both.
    """
    if linear_layers(config.text_config):
        raise ValueError(
            f"--runs names {run}, whose backbone is a {config.model_type}: most of its layers are "
            "linear attention, which has no weights between tokens that a map could show. Name "
            "runs of another backbone."
        )


def _module(model: RBFTModule, stage: Stage, **given: Any) -> AttentionModule:
    return AttentionModule(model.loader, model.card, stage, **given)
