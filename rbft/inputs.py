"""What an experiment is made from, looked at before anything is loaded or written."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer

from rbft import endpoint
from rbft.backbone.adapters import is_adapter, weights_fingerprint
from rbft.backbone.loading import fingerprint, load_config, short_name
from rbft.backbone.positions import POSITION_RULE
from rbft.backbone.vision_features import check_frozen
from rbft.build import Experiment, quiet_trainer
from rbft.card import Card
from rbft.data.base import VideoDataModule
from rbft.data.content import about_clips, describe_clips
from rbft.data.rationales import NOT_DETERMINING, ByRule, RationaleStore
from rbft.data.verified import verified_beside
from rbft.decision import check_decision
from rbft.masking.settings import MASKING, Masks
from rbft.module import RBFTModule
from rbft.runs.folder import CARD, CLIPS, ZERO_SHOT, provenance, read_json, read_provenance
from rbft.runs.record import (
    ClipRecord,
    Record,
    card_differences,
    digest,
    indented,
    scoring_settings,
    trained_on,
)
from rbft.runtime.console import print_rank_zero
from rbft.runtime.differences import flat
from rbft.runtime.pace import Pace
from rbft.stage_settings import check_several, check_stage_settings
from rbft.stages import RATIONALE_STAGE, Stage, find_stage
from rbft.training.fsdp2 import check_strategy
from rbft.video.frame_settings import determining
from rbft.weights_folder import find_weights_folder

TRAINING_SPLITS = ("train", "val")


@dataclass(frozen=True)
class Writer:
    """Who writes rationales.

    Attributes:
        weights: The weights folder; None for the backbone.
        stage: The stage whose question is put: that of rationales, or of P+R+C where the weights
            have learnt to name the class behind the rationale, which is then left out.
    """

    weights: Path | None = None
    stage: Stage = RATIONALE_STAGE


BACKBONE = Writer()


@dataclass(frozen=True)
class Inputs:
    """An experiment's settings, data, words and weights, checked; by content where it counts.

    Attributes:
        experiment: The settings.
        data: The benchmark.
        model: The module, without weights.
        trainer: A Trainer that is only looked at.
        backbone: Fingerprint of the backbone.
        pace: How long clips have taken so far, and what comes after the step at hand.
    """

    experiment: Experiment
    data: VideoDataModule
    model: RBFTModule
    trainer: Trainer
    backbone: str
    pace: Pace = field(default_factory=Pace)

    @property
    def card(self) -> Card:
        """The benchmark's card."""
        return self.data.card

    @cached_property
    def settings(self) -> str:
        """All settings of the experiment as YAML."""
        return self.experiment.as_yaml()

    @cached_property
    def record(self) -> Record:
        """What the run is made from."""
        given = self.experiment.given
        weights = None if given is None else self.fingerprint(given)
        clips = describe_clips(self.data)
        return Record(self.settings, self.card, clips, self.backbone, weights)

    @property
    def clips(self) -> dict[str, list[ClipRecord]]:
        """The usable clips of each split, by content."""
        return self.record.clips

    @property
    def training_clips(self) -> dict[str, str]:
        """Digest of the clips of each split that training uses."""
        return {split: digest(self.clips[split]) for split in TRAINING_SPLITS}

    def fingerprint(self, weights: Path) -> str:
        """Fingerprint of a weights folder, see `rbft.backbone.adapters.weights_fingerprint`."""
        return weights_fingerprint(weights, self.experiment.settings.model.backbone)

    def origin(self) -> tuple[list[str], str]:
        """Stages that made the starting weights, and the backbone's fingerprint before them."""
        given = self.experiment.given
        if given is None:
            return [], self.backbone
        found = read_provenance(given)
        if found is None:
            return [], self.fingerprint(given)
        return found["stages"], found["backbone"]

    def conditions(self, stage: str, weights: Path | None) -> dict[str, Any]:
        """What determines the answer to a clip: frames, words, weights, precision."""
        settings = scoring_settings(flat(yaml.safe_load(self.settings)))
        made = {**settings, "card": self.card.digest, "stage": find_stage(stage).classifier.name}
        return {**made, "weights": self.fingerprint(weights) if weights else self.backbone}

    def determining(self, split: str, stage: str, weights: Path | None) -> dict[str, Any]:
        """What determines the results of a split; they are found by it."""
        made = {**self.conditions(stage, weights), "clips": digest(self.clips[split])}
        if self.masks is not None:
            videos = [clip["video"] for clip in self.clips[split]]
            made[MASKING] = self.masks.determining(videos)
        return made

    @cached_property
    def masks(self) -> Masks | None:
        """What is masked in scored clips; None where nothing is."""
        masking = self.experiment.masking
        return None if masking is None else Masks(masking)

    def masked_each(self) -> list["Inputs"]:
        """The same for each draw of what `data.masking` masks."""
        assert self.experiment.masking is not None
        key = "data__init_args__masking__repeat"
        return [
            replace(self, experiment=self.experiment.changed(**{key: one.repeat}))
            for one in self.experiment.masking.each
        ]

    def check_masks(self, split: str) -> None:
        """Refuses to score clips about which the box file says nothing.

        Raises:
            ValueError: See `rbft.masking.settings.Masks.check`.
        """
        if self.masks is not None:
            clips = {clip["id"]: clip["video"] for clip in self.clips[split]}
            self.masks.check(clips, split, determining(asdict(self.data.frames)))

    def rationale_store(
        self, data: VideoDataModule | None = None, writer: Writer = BACKBONE
    ) -> RationaleStore:
        """The rationale file, named after what determines it.

        Args:
            data: The benchmark with the prompt that asks for the rationales; None takes the
                experiment's.
            writer: Who writes them.
        """
        data, model = data or self.data, self.experiment.settings.model
        if self.experiment.endpoint is not None:
            return endpoint.rationale_store(self.experiment, data)
        who, stored = short_name(model.backbone), {}
        if model.quantize:  # in 4 bits it writes other texts
            who, stored = f"{who}-{model.quantize}", {"quantize": model.quantize}
        sampling = self.model.rationale_sampling
        drawn = {} if sampling is None else {"sampling": sampling.determining}
        samples = 1 if sampling is None else sampling.samples
        if samples == 1 and data.rationale_selection == "consistent":
            raise ValueError(
                f"data.rationale_selection is {data.rationale_selection}, but one rationale is "
                "written about each clip. Set model.rationale_sampling.samples to 2 or more, or "
                "data.rationale_selection to first."
            )
        asked = "\n".join(data.card.prompt(name) for name in writer.stage.prompts)
        made_from = provenance(
            POSITION_RULE,
            self.model.family.prompt_rule,
            backbone=self.fingerprint(writer.weights) if writer.weights else self.backbone,
            prompt=asked,
            frames=determining(asdict(data.frames)),
            generation=self.model.generation | drawn,
            **stored,
        )
        known = digest({name: made_from[name] for name in made_from if name != NOT_DETERMINING})
        name = f"{data.benchmark}-{who}-{data.rationale_prompt}-{known[:8]}"
        path = data.rationale_file or self.experiment.logs / "rationales" / f"{name}.jsonl"
        clips = about_clips(data, data.clips_to_describe(), writer.stage)
        rule = data.rationale_selection
        return RationaleStore(
            path,
            made_from,
            clips,
            by_id=data.rationale_file is not None,
            samples=samples,
            selector=verified_beside(path, made_from, data, samples, writer.stage)
            if rule == "verified"
            else ByRule(rule),
        )

    def compare_given(self) -> None:
        """Looks at weights that training starts from: their words are said, their clips checked."""
        weights = self.experiment.given
        if weights is None:
            return
        file = weights / CARD
        if file.exists() and (
            changes := card_differences(Card.load(file).content, self.card.content)
        ):
            print_rank_zero(
                f"model.weights {weights} was trained with another card:\n{indented(changes)}"
            )
        for split in [split for split in ("val", "test") if self.clips[split]]:
            self.check_unseen(weights, split)

    def check_words(self, weights: Path, stage: Stage) -> None:
        """Refuses to ask weights in other words than they were trained with.

        Raises:
            ValueError: Naming every difference.
        """
        file = weights / CARD
        if not file.exists():
            return
        before = Card.load(file)
        changes = card_differences(before.shown(stage.prompts), self.card.shown(stage.prompts))
        if changes:
            raise ValueError(
                f"weights folder {weights} was trained with other words than it would be asked "
                f"with:\n{indented(changes)}\nSet data.card to {file}, or train on the new words "
                "(fit, with model.weights)."
            )

    def check_unseen(self, weights: Path, split: str) -> None:
        """Refuses to score clips that the weights were trained on.

        Raises:
            ValueError: Naming some of them.
        """
        file = weights / CLIPS
        if not file.exists():
            print_rank_zero(f"weights folder {weights} does not say which clips it was trained on.")
            return
        rows = self.data.files.manifest.rows
        durations = {row.digest: row.duration for row in rows if row.digest is not None}
        known = trained_on(read_json(file)["train"], self.clips[split], durations)
        if not known:
            return
        message = (
            f"weights folder {weights} was trained on {len(known)} of the {len(self.clips[split])} "
            f"{split} clips (first: {', '.join(known[:3])}), so a score on them says nothing about "
            "others."
        )
        if self.data.on_leak == "error":
            raise ValueError(
                f"{message} Give the splits that it was trained with (data.val_fraction, "
                "data.seed, the split lists), or set data.on_leak to warn to score them anyway."
            )
        print_rank_zero(message)


def check_inputs(
    experiment: Experiment,
    *,
    benchmark: bool = True,
    weights: bool = True,
    devices: Mapping[str, Any] | None = None,
) -> Inputs:
    """Finds what would fail later, before anything is loaded or written.

    Args:
        experiment: The settings.
        benchmark: Whether the benchmark's annotations and videos are needed.
        weights: Whether the backbone's weights are needed, not only its configuration.
        devices: Arguments of the Trainer that stand for devices which are not there.

    Raises:
        ValueError: Naming the setting or file, what was got and what to do.
    """
    settings, given = experiment.settings, experiment.given
    source = settings.model.backbone
    load_config(source, settings.model.trust_remote_code)
    if given is not None and not is_adapter(given) and not (given / "config.json").is_file():
        raise ValueError(
            f"model.weights {given} is no weights folder: it holds no config.json. Give "
            f"a folder such as {experiment.run.weights('rationale')}, or leave it out to start "
            "from the backbone."
        )
    before = None if given is None else read_provenance(given)
    check_stage_settings(settings, experiment.stages, (before or {}).get("stages", []))
    backbone = fingerprint(source, bare=not weights)
    strategy = settings.trainer.strategy  # a name, or a class with its arguments
    check_strategy(str(getattr(strategy, "class_path", strategy)).rpartition(".")[2])
    objects = experiment.objects()
    trainer = quiet_trainer(objects, **(devices or {}))
    data, model = objects.data, objects.model
    check_several(settings, experiment.stages, data.card)
    data.accumulation(trainer.world_size)
    if experiment.stages:
        check_frozen(data.feature_cache.max_bytes, model.learning_rates["vision"], trainer.strategy)
    if benchmark:
        data.check(experiment.stages)
        if experiment.decision is not None:
            check_decision(experiment.decision, data, settings.model.answer)
        for note in data.notes:
            print_rank_zero(note)
    return Inputs(experiment, data, model, trainer, backbone)


def find_weights(experiment: Experiment, weights: str) -> tuple[str, str, Path | None]:
    """Place of the results, stage and weights folder that a command's `--weights` names.

    Args:
        experiment: The settings.
        weights: `run`, `backbone`, or a folder, see `rbft.weights_folder.find_weights_folder`.

    Raises:
        ValueError: If there are no such weights.
    """
    run, stages = experiment.run, experiment.stages
    if weights == "backbone":
        return ZERO_SHOT, "label", None
    if weights != "run":
        given = Path(weights)
        folder = find_weights_folder(given)
        found = read_provenance(folder)
        assert found is not None
        own = given in (folder, folder.parent)
        name = given.name if own else f"{given.name}-{folder.parent.name}"
        # The name alone is no proof: most weights folders are called weights.
        known = weights_fingerprint(folder, experiment.settings.model.backbone)[:8]
        return f"{name}-{known}", found["stages"][-1], folder
    done = [stage for stage in stages if run.trained(stage)]
    if not done:
        raise ValueError(
            f"The run {run.folder} has no finished stage ({', '.join(stages)}). Run "
            "fit first, or give --weights backbone or a weights folder."
        )
    return done[-1], done[-1], run.weights(done[-1])
