"""The method as a list of stages: what runs when, from where, and what is already done."""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import yaml
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ParallelStrategy

from rbft.backbone.adapters import base_note, find_base, is_adapter, weights_fingerprint
from rbft.backbone.loading import fingerprint, load_config, short_name
from rbft.backbone.positions import POSITION_RULE
from rbft.backbone.vision_features import check_frozen
from rbft.callbacks.checks import TrainableParts
from rbft.callbacks.cut import CutRationales, cut_note
from rbft.callbacks.handoff import StageHandoff
from rbft.callbacks.pictures import Pictures
from rbft.callbacks.predictions import PredictionWriter
from rbft.callbacks.progress import StepProgressBar
from rbft.callbacks.results import ResultsWriter
from rbft.callbacks.throughput import Throughput
from rbft.card import Card
from rbft.commands.export_conversations import export_dataset
from rbft.commands.export_weights import publish
from rbft.commands.rationalize import RationaleWriter, check_prompts, passes, rationalize
from rbft.data.base import VideoDataModule
from rbft.data.content import describe_clips
from rbft.data.rationales import NOT_DETERMINING, RationaleStore, about
from rbft.estimate.dry_run import Plan, count_tokens_of_stages, report, stand_in
from rbft.inference.result_table import result_table, title_of
from rbft.module import RBFTModule, check_stage
from rbft.runs.folder import (
    CARD,
    CLIPS,
    ZERO_SHOT,
    Run,
    check_weights,
    provenance,
    read_json,
    read_provenance,
    revision,
)
from rbft.runs.record import (
    ANEW,
    ClipRecord,
    Record,
    alike,
    card_differences,
    digest,
    indented,
    scoring_of,
    scoring_settings,
    trained_on,
)
from rbft.runtime.console import print_rank_zero
from rbft.runtime.differences import flat
from rbft.runtime.fault_tolerance import signals
from rbft.runtime.files import write_json
from rbft.runtime.lock import Lock
from rbft.stages import Stage, find_stage
from rbft.training.checkpoints import StepCheckpoint, WholeCheckpoints
from rbft.training.fsdp2 import META, check_strategy
from rbft.video.frame_settings import determining

LOGS = "lightning_logs"
RATIONALES = "rationales.json"  # in a stage's folder: digest of each that it learns from
TRAINING_SPLITS = ("train", "val")
SHOWN_RATIONALES = 3  # on the screen, when Stage 0 is done


@runtime_checkable
class Builder(Protocol):
    """What makes the three Lightning objects from the settings: the command line."""

    datamodule: VideoDataModule
    model: RBFTModule
    trainer: Trainer

    @property
    def settings(self) -> Any:
        """The resolved settings, by dotted name; the method changes stage and weights in it."""
        ...

    def build(self, **trainer: Any) -> None:
        """Makes all three anew, with extra arguments for the Trainer."""
        ...

    def build_data(self) -> VideoDataModule:
        """Makes a data module alone."""
        ...

    def resolved(self) -> str:
        """All settings as YAML."""
        ...


class Method:
    """The steps of an experiment.

    Each step sets stage and starting weights, has a fresh data module, module and Trainer built,
    and runs them.

    Args:
        cli: Holds the settings and builds from them.
    """

    def __init__(self, cli: Builder) -> None:
        self.cli = cli
        self.settings = cli.settings
        self.logs = Path(self.settings.trainer.default_root_dir or LOGS)
        self.run = Run(self.logs / (self.settings.name or "unnamed"))
        # The settings are changed from step to step; these are what the user asked for.
        self.single, self.given = self.settings.model.stage, self.settings.model.weights
        self.stages: list[str] = [self.single] if self.single else list(self.settings.stages)

    def fit(
        self,
        ckpt_path: Path | None,
        restart: bool = False,
        dry_run: bool = False,
        gpu_gb: float | None = None,
    ) -> None:
        """Runs all steps that are not done yet, in order; or only says what they would be."""
        self._check_checkpoint(ckpt_path)
        trainer = self.settings.trainer
        devices = stand_in(trainer.accelerator, trainer.devices) if dry_run else {}
        self.check(weights=not dry_run, **devices)
        if self.stages:
            self.cli.model.check_trainable()
        if self.given is not None:
            self._compare_given(self.given)
        if dry_run:
            if not restart:
                self._check_record()
            print_rank_zero(report(self._plan(), self.run.folder.name, gpu_gb))
            return
        count_tokens_of_stages(self._plan())  # a clip that is too long ends the run here
        with self._owned():
            if restart:
                if not _get_rank():
                    shutil.rmtree(self._folder, ignore_errors=True)
                self._meet()
            self._check_record()
            self._keep_record()
            self._fit(ckpt_path)

    def _fit(self, ckpt_path: Path | None) -> None:
        """Runs what is not finished of the steps, and prints their table."""
        todo = [stage for stage in self.stages if not self.run.trained(stage)]
        if any(find_stage(stage).needs_rationales for stage in todo):
            self.write_rationales()
        if self.single is None and (self.settings.score_each_stage or not self.stages):
            self.score(ZERO_SHOT, "label", None)
        weights, history, backbone = self.given, *self._origin()
        for stage in self.stages:
            history = [*history, stage]
            if not self.run.trained(stage):
                self.train(stage, weights, history, backbone, ckpt_path)
            elif not _get_rank():  # left where a kill came between hand-off and tidying up
                shutil.rmtree(self.run.checkpoints(stage), ignore_errors=True)
            weights = self.run.weights(stage)
            check_weights(weights, history, backbone, self.card.digest, self._training_clips)
            if self.settings.score_each_stage or stage == self.stages[-1]:
                self.score(stage, stage, weights)
        last = self.stages[-1] if self.stages else "label"
        self._print_table("test", self._made("test", last, weights), [ZERO_SHOT, *self.stages])

    def check(self, benchmark: bool = True, weights: bool = True, **trainer: Any) -> None:
        """Finds what would fail later, before anything is loaded or written.

        Args:
            benchmark: Whether the benchmark's annotations and videos are needed.
            weights: Whether the backbone's weights are needed, not only its configuration.
            **trainer: Extra arguments for the Trainer.

        Raises:
            ValueError: Naming the setting or file, what was got and what to do.
        """
        self.asked = self.cli.resolved()
        source = self.settings.model.backbone
        load_config(source, self.settings.model.trust_remote_code)
        if (
            self.given is not None
            and not is_adapter(self.given)
            and not (self.given / "config.json").is_file()
        ):
            raise ValueError(
                f"model.weights {self.given} is no weights folder: it holds no config.json. Give "
                f"a folder such as {self.run.weights('rationale')}, or leave it out to start from "
                "the backbone."
            )
        self.backbone = fingerprint(source, bare=not weights)
        strategy = self.settings.trainer.strategy  # a name, or a class with its arguments
        check_strategy(str(getattr(strategy, "class_path", strategy)).rpartition(".")[2])
        quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        self.cli.build(**quiet, **trainer)
        self.cli.datamodule.accumulation(self.cli.trainer.world_size)
        self.data = data = self.cli.datamodule
        self.card, model = data.card, self.cli.model
        if self.stages:
            check_frozen(
                data.feature_cache.max_bytes,
                model.learning_rates["vision"],
                self.cli.trainer.strategy,
            )
        if benchmark:
            data.check(self.stages)
            for note in data.notes:
                print_rank_zero(note)

    def write_rationales(self, prompts: Sequence[str] | None = None) -> None:
        """Stage 0: has the backbone write the rationales that are missing.

        Args:
            prompts: Names of the prompts on the card that ask for them; None takes that of the
                experiment.
        """
        title = "Stage 0: writing rationales"
        self._build("rationale", None, title, [])
        data = self.cli.datamodule
        variants = self._variants(prompts)
        stores = {name: self._store(variant) for name, variant in variants.items()}
        clips = data.clips_to_describe()
        ids = [clip.id for clip in clips]
        wanted = ids if data.rationale_ratio else []
        with ExitStack() as owned:
            for store in stores.values():
                owned.enter_context(Lock(store.path, "Rationale file"))
                store.read()  # what another run may have written meanwhile
            missing = {name: store.missing(wanted) for name, store in stores.items()}
            for name, store in stores.items():
                _say_reuse(store, wanted, missing[name])
            for lacking, some in passes(missing, clips).items():
                files = [stores[name] for name in lacking]
                self._build("rationale", None, title, [RationaleWriter(files)])
                self.cli.model.cards = [variants[name].card for name in lacking]
                rationalize(self.cli.trainer, self.cli.model, self.cli.datamodule, files, some)
            self._meet()  # no process reads any more what the first one joins
            if _get_rank():
                return
            for store in stores.values():
                store.recover(ids)
        for name, store in stores.items():
            texts, which = store.texts(), f", {name}" if len(stores) > 1 else ""
            for clip in [clip for clip in missing[name] if clip in texts][:SHOWN_RATIONALES]:
                print_rank_zero(f"{clip}{which}: {texts[clip]}")
            known = [clip for clip in wanted if clip in texts]
            cut = len(store.cut().intersection(known))
            if note := cut_note(cut, len(known), self.cli.model.max_new_tokens):
                print_rank_zero(f"Stage 0{which}: {note}")

    def train(
        self,
        stage: str,
        weights: Path | None,
        history: list[str],
        backbone: str,
        ckpt_path: Path | None,
    ) -> None:
        """Trains one stage and leaves its weights folder."""
        model = self.settings.model
        facts: dict[str, Any] = {"backbone_name": model.backbone, "run": self.settings.name}
        facts |= {"revision": revision(), "card": self.card.digest, "clips": self._training_clips}
        if model.lora is not None:
            facts["base"] = base_note(find_base(model.backbone, weights))
        paper = find_stage(stage).paper
        resume = ckpt_path or self.run.checkpoint(stage)
        made_from = {"backbone": backbone, "card": self.card.digest}
        if weights is not None:
            made_from["starting weights"] = self._fingerprint(weights)
        made_from |= {f"{split} clips": known for split, known in self._training_clips.items()}
        if find_stage(stage).needs_rationales:
            facts["rationale_texts"] = self._note_rationales(stage, resumes=resume is not None)
            made_from["rationales"] = facts["rationale_texts"]
        origin = provenance(POSITION_RULE, stages=history, backbone=backbone, **facts)
        taught = {split: self.clips[split] for split in TRAINING_SPLITS}
        callbacks = [
            TrainableParts(),
            Throughput(),
            CutRationales(),
            LearningRateMonitor("step"),
            StepCheckpoint(self.run.checkpoints(stage), self.settings.checkpoint_every, made_from),
            StageHandoff(self.run.weights(stage), origin, {CLIPS: taught}),
        ]
        self._build(stage, weights, paper, callbacks, folder=stage)
        print_rank_zero(f"{paper}: starting from {weights or self.settings.model.backbone}")
        if self.cli.model.stage.needs_rationales:
            self.cli.datamodule.store = self._store(self.cli.datamodule)
        self.cli.trainer.fit(
            self.cli.model, self.cli.datamodule, ckpt_path=resume, weights_only=True
        )
        signals.let_go()

    def score(
        self,
        place: str,
        stage: str,
        weights: Path | None,
        split: str = "test",
        *,
        again: bool = False,
    ) -> dict[str, Any]:
        """Scores a split and leaves results under the run's folder, unless they are there.

        Args:
            place: Folder of the results within the run's.
            stage: The stage that made the weights; decides what is asked.
            weights: Weights folder, None for the bare backbone.
            split: The split to score.
            again: Score it even if there are results that were made in just this way.

        Returns:
            What determines the results.
        """
        made = self._made(split, stage, weights)
        if not again and self.run.find_result(place, split, made):
            return made
        tag = "" if self._is_own(split, made) else digest(made)[:8]
        facts = {"run": self.settings.name, "stage": place, "weights": str(weights or "backbone")}
        file = self.run.results(place, split, tag)
        writer = ResultsWriter(file, split, {**facts, "made": made})
        title = f"Scoring {split}: {place}"
        self._build(stage, weights, title, [writer], folder=place)
        if not _get_rank():
            file.unlink(missing_ok=True)  # not of these weights or settings
        self.cli.datamodule.scored_split = split
        note = None if weights is None else read_provenance(weights)
        self.cli.model.trained_steps = (note or {}).get("steps", 0)
        self.cli.trainer.test(self.cli.model, self.cli.datamodule, verbose=False)
        if tag:
            print_rank_zero(f"Scored otherwise than the run itself: the results are in {file}.")
        return made

    def score_command(self, split: str, weights: str) -> None:
        """Scores a split with the weights that a command's `--weights` names."""
        place, stage, folder = self._find_weights(weights)
        self.check()
        if not self.cli.datamodule.clips(split):
            raise ValueError(
                f"{type(self.cli.datamodule).__name__} has no {split} split. Set "
                "data.val_fraction to carve a validation split from the training clips."
            )
        if folder is not None:
            self._check_words(folder, find_stage(stage).classifier)
            self._check_unseen(folder, split)
        with self._owned():
            made = self.score(place, stage, folder, split, again=True)
            self._print_table(split, made, [ZERO_SHOT, place])

    def predict(self, videos: list[Path], output: Path, weights: str, rationale: bool) -> None:
        """Writes class and probabilities of videos, and if asked for a rationale."""
        self.check(benchmark=False)
        _, stage, folder = self._find_weights(weights)
        stage = find_stage(stage).classifier.name
        if folder is not None:
            self._check_words(folder, find_stage(stage))
        data = self.cli.datamodule
        made_from = {**self._conditions(stage, folder), "rationale": rationale}
        clips = data.clips_of(videos)
        for note in data.notes:
            print_rank_zero(note)
        writer = PredictionWriter(output, clips, data.card.classes, made_from, data.content)
        count, todo = len(writer.clips), len(writer.todo)
        if todo < count:
            print_rank_zero(f"{count - todo} of {count} videos stand in {output} already.")
        if todo:
            self._build(stage, folder, f"Predicting {todo} videos", [writer])
            self.cli.model.explain = rationale
            self.cli.datamodule.predict_clips = writer.todo
            self.cli.trainer.predict(
                self.cli.model, datamodule=self.cli.datamodule, return_predictions=False
            )
        if not _get_rank():
            failed = writer.finish()
            table = output.with_suffix(".csv")
            print_rank_zero(f"Wrote {count - failed} predictions to {output} and {table}.")
            if failed:
                print_rank_zero(f"{failed} videos cannot be decoded; their lines hold the error.")

    def export_split(
        self,
        form: Literal["llava", "llamafactory", "swift"],
        answers: Literal["label", "rationale"],
        split: str,
        output: Path,
    ) -> None:
        """Writes a split in another trainer's format."""
        texts = None
        if answers == "label":
            data = self.cli.build_data()
        else:
            self.check(benchmark=False)
            data = self.cli.datamodule
            data.store = self._store(data)
            texts = data.rationales(split)
        count = export_dataset(data, find_stage(answers), texts, split, form, output)
        print_rank_zero(f"Wrote {count} {split} clips with {answers}s as answers to {output}.")

    def export(self, output: Path, weights: str, dtype: str) -> None:
        """Writes a stage's weights as a folder for others."""
        _, _, folder = self._find_weights(weights)
        if folder is None:
            raise ValueError("--weights backbone has nothing to export: it is the backbone itself.")
        backbone = self.settings.model.backbone
        base = find_base(backbone, folder) if is_adapter(folder) else backbone
        publish(folder, base, output, dtype, trust=self.settings.model.trust_remote_code)
        print_rank_zero(f"Exported {folder} to {output}.")

    def _find_weights(self, weights: str) -> tuple[str, str, Path | None]:
        """Place of the results, stage and weights folder that `--weights` names."""
        if weights == "backbone":
            return ZERO_SHOT, "label", None
        if weights != "run":
            found = read_provenance(Path(weights))
            if found is None:
                raise ValueError(
                    f"--weights {weights} is no weights folder of rbft. Allowed are run, backbone "
                    f"or a folder such as {self.run.weights('label')}."
                )
            # The name alone is no proof: most weights folders are called weights.
            known = self._fingerprint(Path(weights))[:8]
            return f"{Path(weights).name}-{known}", found["stages"][-1], Path(weights)
        done = [stage for stage in self.stages if self.run.trained(stage)]
        if not done:
            raise ValueError(
                f"The run {self.run.folder} has no finished stage ({', '.join(self.stages)}). Run "
                "fit first, or give --weights backbone or a weights folder."
            )
        return done[-1], done[-1], self.run.weights(done[-1])

    def _build(
        self,
        stage: str,
        weights: Path | None,
        title: str,
        callbacks: list[Any],
        folder: str | None = None,
    ) -> None:
        """A fresh data module, module and Trainer; with a folder, logging to TensorBoard."""
        seed_everything(self.settings.seed_everything, workers=True, verbose=False)
        self.settings.model.stage, self.settings.model.weights = stage, weights
        callbacks = list(callbacks)
        if self.settings.trainer.enable_progress_bar is not False:
            callbacks.append(StepProgressBar(title))
        logger: Any = False
        if folder is not None:
            logger = TensorBoardLogger(
                self.logs, self.settings.name, folder, default_hp_metric=False
            )
            callbacks.append(Pictures(self.cli.resolved(), self._hparams(folder)))
        checkpoints = any(isinstance(callback, StepCheckpoint) for callback in callbacks)
        self.cli.build(
            logger=logger,
            callbacks=callbacks,
            enable_checkpointing=checkpoints,
            plugins=[WholeCheckpoints()],
            enable_model_summary=False,
        )
        trainer: Any = self.cli.trainer
        trainer.accumulate_grad_batches = self.cli.datamodule.accumulation(trainer.world_size)

    def _variants(self, prompts: Sequence[str] | None) -> dict[str, VideoDataModule]:
        """The benchmark with each of several prompts as the one that asks for rationales."""
        data, chosen = self.cli.datamodule, self.settings.data.init_args
        if prompts is None:
            return {data.rationale_prompt: data}
        check_prompts(prompts, data.card)
        if data.rationale_file is not None and len(prompts) > 1:
            raise ValueError(
                f"--prompts names {len(prompts)} prompts, but data.rationale_file "
                f"({data.rationale_file}) is the file of one. Set it to null, or name one prompt."
            )
        made = {}
        for name in prompts:
            chosen.rationale_prompt = name
            made[name] = self.cli.build_data()
        chosen.rationale_prompt = data.rationale_prompt
        return made

    def _store(self, data: VideoDataModule) -> RationaleStore:
        """The rationale file, named after what determines it."""
        model = self.cli.model
        writer = short_name(self.settings.model.backbone)
        stored = {}
        if model.quantize:  # in 4 bits it writes other texts
            writer, stored = f"{writer}-{model.quantize}", {"quantize": model.quantize}
        determining = {
            "backbone": self.backbone,
            "prompt": data.card.prompt("rationale"),
            "frames": _determining(data),
            "generation": model.generation,
            **stored,
        }
        made_from = provenance(POSITION_RULE, **determining)
        known = digest({name: made_from[name] for name in made_from if name != NOT_DETERMINING})
        name = f"{data.benchmark}-{writer}-{data.rationale_prompt}-{known[:8]}"
        path = data.rationale_file or self.logs / "rationales" / f"{name}.jsonl"
        clips = {
            clip.id: about(
                data.video_digest(clip),
                clip.start,
                clip.end,
                find_stage("rationale").prompt(data.card, clip),
            )
            for clip in data.clips_to_describe()
        }
        return RationaleStore(path, made_from, clips, by_id=data.rationale_file is not None)

    def _plan(self) -> Plan:
        """What would be done, for the dry run and for what is checked before anything is loaded."""
        return Plan(
            self.cli.datamodule,
            self.cli.model,
            self.cli.trainer,
            self.run,
            self.stages,
            self._store(self.cli.datamodule),
            scored=self._scored(),
            whole=self.single is None,
            score_each=self.settings.score_each_stage,
        )

    @property
    def _folder(self) -> Path:
        """What this command makes: the run, or one stage of it."""
        return self.run.stage(self.single) if self.single else self.run.folder

    def _origin(self) -> tuple[list[str], str]:
        """Stages that made the starting weights, and the backbone's fingerprint before them."""
        if self.given is None:
            return [], self.backbone
        found = read_provenance(self.given)
        if found is None:
            return [], self._fingerprint(self.given)
        return found["stages"], found["backbone"]

    def _check_checkpoint(self, ckpt_path: Path | None) -> None:
        """Refuses a checkpoint that cannot resume this run, before anything is written."""
        if ckpt_path is None:
            return
        if len(self.stages) != 1:
            raise ValueError(
                f"--ckpt_path resumes one stage, but this run has {len(self.stages)}: "
                f"{', '.join(self.stages)}. Add --model.stage, or leave it out: fit finds its own "
                "checkpoints."
            )
        if not ckpt_path.exists():
            raise ValueError(
                f"--ckpt_path {ckpt_path} does not exist. Leave it out: fit finds its own "
                "checkpoints."
            )
        file = ckpt_path if ckpt_path.is_file() else ckpt_path / META
        if not file.exists():
            raise ValueError(f"--ckpt_path {ckpt_path} is no checkpoint: it holds no {META}.")
        checkpoint = torch.load(file, weights_only=True, mmap=True, map_location="cpu")
        check_stage(checkpoint, self.stages[0])

    def _meet(self) -> None:
        """Waits for the other processes, unless Lightning will start them only later."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
            return
        strategy = self.cli.trainer.strategy
        if not isinstance(strategy, ParallelStrategy):
            return
        if not isinstance(strategy.cluster_environment, LightningEnvironment):
            strategy.connect(self.cli.model)
            strategy.setup_environment()
            strategy.barrier("met")

    @cached_property
    def record(self) -> Record:
        """What this run is made from; the data module and the backbone have been checked."""
        weights = None if self.given is None else self._fingerprint(self.given)
        clips = describe_clips(self.data)
        return Record(self.asked, self.card, clips, self.backbone, weights)

    @property
    def clips(self) -> dict[str, list[ClipRecord]]:
        """The usable clips of each split, by content."""
        return self.record.clips

    @property
    def _training_clips(self) -> dict[str, str]:
        """Digest of the clips of each split that training uses."""
        return {split: digest(self.clips[split]) for split in TRAINING_SPLITS}

    def _conditions(self, stage: str, weights: Path | None) -> dict[str, Any]:
        """What determines the answer to a clip: frames, words, weights, precision."""
        settings = scoring_settings(flat(yaml.safe_load(self.asked)))
        made = {**settings, "card": self.card.digest, "stage": find_stage(stage).classifier.name}
        if weights is None:
            return {**made, "weights": self.backbone}
        return {**made, "weights": self._fingerprint(weights)}

    def _fingerprint(self, weights: Path) -> str:
        return weights_fingerprint(weights, self.settings.model.backbone)

    def _made(self, split: str, stage: str, weights: Path | None) -> dict[str, Any]:
        """What determines the results of a split; they are found by it."""
        return {**self._conditions(stage, weights), "clips": digest(self.clips[split])}

    def _is_own(self, split: str, made: dict[str, Any]) -> bool:
        """Whether results are made as `fit` makes those of this run; so they are before any fit."""
        own = scoring_of(self._folder, split) or {}
        return all(made[name] == value for name, value in own.items())

    def _print_table(self, split: str, made: dict[str, Any], places: list[str]) -> None:
        """Prints what stands at these places of the run, as far as it was made alike."""
        rows, left_out = [], []
        for place in dict.fromkeys(places):
            results = [read_json(file) for file in self.run.result_files(place, split)]
            found = [result for result in results if alike(result.get("made", {}), made)]
            # Of the same weights if there are such; others are of an earlier fit.
            found.sort(key=lambda result: result["made"]["weights"] != made["weights"])
            if found:
                rows.append((title_of(place), found[0]))
            elif results:
                left_out.append(place)
        print_rank_zero(result_table(rows))
        for place in left_out:
            print_rank_zero(
                f"Not in the table: {title_of(place)}, which was scored on other clips, frames or "
                f"words, or in another way; see {self.run.stage(place)}."
            )

    def _scored(self) -> set[str]:
        """Places whose test results are there and were made as this run makes them."""
        done, weights = set(), None
        for place in (ZERO_SHOT, *self.stages):
            if place != ZERO_SHOT:
                if not self.run.trained(place):
                    continue
                weights = self.run.weights(place)
            stage = "label" if place == ZERO_SHOT else place
            if self.run.find_result(place, "test", self._made("test", stage, weights)):
                done.add(place)
        return done

    def _bound(self) -> bool:
        """Whether anything is finished that settings, words and clips must stay the same for."""
        return any(self.run.trained(name) or self.run.checkpoint(name) for name in self.stages)

    def _check_record(self) -> None:
        """Compares with what the run was started with.

        Raises:
            ValueError: If something is finished that was made otherwise.
        """
        if self._bound():
            self.record.check(self._folder)

    def _keep_record(self) -> None:
        """Notes what the run is made from, until something is finished with it."""
        if _get_rank():
            return
        if changes := self.record.keep(self._folder, anew=not self._bound()):
            before = "Nothing was finished with the settings of before; these have changed:"
            print_rank_zero(f"{before}\n{indented(changes)}")
            for stage in [stage for stage in self.stages if stage != self.single]:
                # Curves of the settings of before.
                shutil.rmtree(self.run.stage(stage), ignore_errors=True)

    def _note_rationales(self, stage: str, *, resumes: bool) -> str:
        """Compares with the rationales that the stage began with, or keeps these.

        Returns:
            Their digest.

        Raises:
            ValueError: If the stage resumes and they have changed; names the clips.
        """
        data = self.data
        data.store = self._store(data)
        texts = {n: t for split in TRAINING_SPLITS for n, t in data.rationales(split).items()}
        cut = data.store.cut()
        now = {name: digest([text, name in cut]) for name, text in texts.items()}
        file = self.run.stage(stage) / RATIONALES
        if resumes and file.exists():
            before = read_json(file)
            names = sorted(n for n in before.keys() | now.keys() if before.get(n) != now.get(n))
            if names:
                raise ValueError(
                    f"{find_stage(stage).paper} began with other rationales of {len(names)} clips "
                    f"(first: {names[0]}) than {data.store.path} has now. Put them back as they "
                    f"were. {ANEW}"
                )
        elif not _get_rank():
            write_json(file, now)
        return digest(now)

    def _compare_given(self, weights: Path) -> None:
        """Looks at weights that training starts from: their words are said, their clips checked."""
        file = weights / CARD
        if file.exists() and (
            changes := card_differences(asdict(Card.load(file)), asdict(self.card))
        ):
            print_rank_zero(
                f"model.weights {weights} was trained with another card:\n{indented(changes)}"
            )
        for split in [split for split in ("val", "test") if self.clips[split]]:
            self._check_unseen(weights, split)

    def _check_words(self, weights: Path, stage: Stage) -> None:
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

    def _check_unseen(self, weights: Path, split: str) -> None:
        """Refuses to score clips that the weights were trained on.

        Raises:
            ValueError: Naming some of them.
        """
        file = weights / CLIPS
        if not file.exists():
            print_rank_zero(f"weights folder {weights} does not say which clips it was trained on.")
            return
        rows = self.data.manifest.rows
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

    def _owned(self) -> Lock:
        """The right to write into the run's folder; one command at a time has it."""
        return Lock(self.run.folder, "Run folder")

    def _hparams(self, stage: str) -> dict[str, Any]:
        model, data = self.settings.model, self.settings.data
        return {
            "run": self.settings.name,
            "stage": stage,
            "backbone": model.backbone,
            "benchmark": data.class_path.rsplit(".", 1)[-1],
            "learning_rate": model.learning_rate,
            "epochs": self.settings.trainer.max_epochs,
            "rationale_ratio": data.init_args.rationale_ratio,
            "rationale_prompt": data.init_args.rationale_prompt,
            "seed": self.settings.seed_everything,
        }


def _determining(data: VideoDataModule) -> dict[str, Any]:
    """The frame settings that decide which frames are seen."""
    return determining(asdict(data.frames))


def _say_reuse(store: RationaleStore, wanted: list[str], missing: list[str]) -> None:
    """Says how many rationales are there already, and whether what they are about is known."""
    there = len(wanted) - len(missing)
    if there:
        print_rank_zero(f"Stage 0: {there} of {len(wanted)} rationales reused from {store.path}")
    if silent := [name for name in wanted if name in set(store.unproven)]:
        print_rank_zero(
            f"{len(silent)} of them do not say which video they are about and are taken by the "
            f"clip's id (first: {silent[0]})."
        )
    if missing:
        print_rank_zero(f"Stage 0: {len(missing)} rationales to write into {store.path}")
