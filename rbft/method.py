"""The method as a list of stages: what runs when, from where, and what is already done."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
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

from rbft.adapters import base_note, find_base, is_adapter
from rbft.backbone import fingerprint, load_config, short_name
from rbft.callbacks.checks import TrainableParts
from rbft.callbacks.cut import CutRationales, cut_note
from rbft.callbacks.handoff import StageHandoff
from rbft.callbacks.pictures import Pictures
from rbft.callbacks.predictions import PredictionWriter
from rbft.callbacks.progress import StepProgressBar
from rbft.callbacks.results import ResultsWriter
from rbft.callbacks.throughput import Throughput
from rbft.checkpoints import StepCheckpoint, WholeCheckpoints
from rbft.data.base import VideoDataModule
from rbft.data.rationales import RationaleStore
from rbft.dryrun import Plan, find_lengths, report, stand_in
from rbft.export import export_dataset
from rbft.module import RBFTModule, check_stage
from rbft.publish import publish
from rbft.rationalize import RationaleWriter, check_prompts, passes, rationalize
from rbft.run import (
    ZERO_SHOT,
    Run,
    check_clips,
    check_settings,
    check_weights,
    provenance,
    read_provenance,
    revision,
    write_json,
    write_text,
)
from rbft.screen import say
from rbft.sharding import META
from rbft.stages import find_stage
from rbft.summary import result_table
from rbft.survival import signals
from rbft.vision import check_frozen

LOGS = "lightning_logs"
SPLITS = ("train", "val", "test")
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
        self.check(**(stand_in(trainer.accelerator, trainer.devices) if dry_run else {}))
        if self.stages:
            self.cli.model.check_trainable()
        if dry_run:
            if not restart:
                check_settings(self._folder / "settings.yaml", yaml.safe_load(self.cli.resolved()))
            say(report(self._plan(), self.run.folder.name, gpu_gb))
            return
        find_lengths(self._plan())  # a clip that is too long ends the run here
        whole = self.single is None
        if restart:
            if not _get_rank():
                shutil.rmtree(self._folder, ignore_errors=True)
            self._meet()
        self._note_settings()
        if any(find_stage(stage).needs_rationales for stage in self.stages):
            self.write_rationales()
        if whole and (self.settings.score_each_stage or not self.stages):
            self.score(ZERO_SHOT, "label", None)
        weights, history, backbone = self.given, *self._origin()
        for stage in self.stages:
            history = [*history, stage]
            if not self.run.trained(stage):
                self.train(stage, weights, history, backbone, ckpt_path)
            elif not _get_rank():  # left where a kill came between hand-off and tidying up
                shutil.rmtree(self.run.checkpoints(stage), ignore_errors=True)
            weights = self.run.weights(stage)
            check_weights(weights, history, backbone)
            if self.settings.score_each_stage or stage == self.stages[-1]:
                self.score(stage, stage, weights)
        say(result_table(self.run, self.stages))

    def check(self, benchmark: bool = True, **trainer: Any) -> None:
        """Finds what would fail later, before anything is loaded or written.

        Args:
            benchmark: Whether the benchmark's annotations and videos are needed.
            **trainer: Extra arguments for the Trainer.

        Raises:
            ValueError: Naming the setting or file, what was got and what to do.
        """
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
        self.backbone = fingerprint(source)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        self.cli.build(**quiet, **trainer)
        self.cli.datamodule.accumulation(self.cli.trainer.world_size)
        data, model = self.cli.datamodule, self.cli.model
        if self.stages:
            check_frozen(data, model.learning_rates["vision"], self.cli.trainer.strategy)
        if benchmark:
            data.check(self.stages)
            for note in data.notes:
                say(note)

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
        missing = {name: store.missing(wanted) for name, store in stores.items()}
        for name in filter(missing.get, missing):
            say(f"Stage 0: {len(missing[name])} rationales to write into {stores[name].path}")
        for lacking, some in passes(missing, clips).items():
            files = [stores[name] for name in lacking]
            self._build("rationale", None, title, [RationaleWriter(files)])
            self.cli.model.cards = [variants[name].card for name in lacking]
            rationalize(self.cli.trainer, self.cli.model, self.cli.datamodule, files, some)
        self._meet()  # no process reads any more what the first one joins
        if _get_rank():
            return
        for name, store in stores.items():
            store.recover(ids)
            texts, which = store.texts(), f", {name}" if len(stores) > 1 else ""
            for clip in [clip for clip in missing[name] if clip in texts][:SHOWN_RATIONALES]:
                say(f"{clip}{which}: {texts[clip]}")
            known = [clip for clip in wanted if clip in texts]
            cut = len(store.cut().intersection(known))
            if note := cut_note(cut, len(known), self.cli.model.max_new_tokens):
                say(f"Stage 0{which}: {note}")

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
        facts["revision"] = revision()
        if model.lora is not None:
            facts["base"] = base_note(find_base(model.backbone, weights))
        origin = provenance(stages=history, backbone=backbone, **facts)
        paper = find_stage(stage).paper
        callbacks = [
            TrainableParts(),
            Throughput(),
            CutRationales(),
            LearningRateMonitor("step"),
            StepCheckpoint(self.run.checkpoints(stage), self.settings.checkpoint_every),
            StageHandoff(self.run.weights(stage), origin),
        ]
        self._build(stage, weights, paper, callbacks, folder=stage)
        say(f"{paper}: starting from {weights or self.settings.model.backbone}")
        self._use_store()
        resume = ckpt_path or self.run.checkpoint(stage)
        self.cli.trainer.fit(
            self.cli.model, self.cli.datamodule, ckpt_path=resume, weights_only=True
        )
        signals.let_go()

    def score(self, place: str, stage: str, weights: Path | None, split: str = "test") -> None:
        """Scores a split and leaves results under the run's folder, unless they are there."""
        if self.run.results(place, split).exists():
            return
        facts = {"run": self.settings.name, "stage": place, "weights": str(weights or "backbone")}
        writer = ResultsWriter(self.run.stage(place), split, facts)
        title = f"Scoring {split}: {place}"
        self._build(stage, weights, title, [writer], folder=place)
        self.cli.datamodule.scored_split = split
        made = None if weights is None else read_provenance(weights)
        self.cli.model.trained_steps = (made or {}).get("steps", 0)
        self.cli.trainer.test(self.cli.model, self.cli.datamodule, verbose=False)

    def score_command(self, split: str, weights: str) -> None:
        """Scores a split with the weights that a command's `--weights` names."""
        place, stage, folder = self._find_weights(weights)
        self.check()
        if not self.cli.datamodule.clips(split):
            raise ValueError(
                f"{type(self.cli.datamodule).__name__} has no {split} split. Set "
                "data.val_fraction to carve a validation split from the training clips."
            )
        self.run.results(place, split).unlink(missing_ok=True)
        self.score(place, stage, folder, split)
        say(result_table(self.run, [place], split))

    def predict(self, videos: list[Path], output: Path, weights: str, rationale: bool) -> None:
        """Writes class and probabilities of videos, and if asked for a rationale."""
        self.check(benchmark=False)
        _, stage, folder = self._find_weights(weights)
        stage = find_stage(stage).classifier.name
        data, model = self.cli.datamodule, self.cli.model
        made_from = {
            "weights": self.backbone if folder is None else fingerprint(str(folder)),
            "stage": stage,
            "card": data.card.digest,
            "frames": _determining(data),
            "answer": model.answer,
            "max_new_tokens": model.max_new_tokens,
            "rationale": rationale,
            "quantize": model.quantize,
        }
        writer = PredictionWriter(output, data.clips_of(videos), data.card.classes, made_from)
        count, todo = len(writer.clips), len(writer.todo)
        if todo < count:
            say(f"{count - todo} of {count} videos stand in {output} already.")
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
            say(f"Wrote {count - failed} predictions to {output} and {table}.")
            if failed:
                say(f"{failed} videos cannot be decoded; their lines hold the error.")

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
        say(f"Wrote {count} {split} clips with {answers}s as answers to {output}.")

    def export(self, output: Path, weights: str, dtype: str) -> None:
        """Writes a stage's weights as a folder for others."""
        _, _, folder = self._find_weights(weights)
        if folder is None:
            raise ValueError("--weights backbone has nothing to export: it is the backbone itself.")
        backbone = self.settings.model.backbone
        base = find_base(backbone, folder) if is_adapter(folder) else backbone
        publish(folder, base, output, dtype)
        say(f"Exported {folder} to {output}.")

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
            return f"{Path(weights).name}", found["stages"][-1], Path(weights)
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
        name = f"{data.benchmark}-{writer}-{data.rationale_prompt}"
        path = data.rationale_file or self.logs / "rationales" / f"{name}.jsonl"
        made_from = provenance(
            backbone=self.backbone,
            prompt=data.card.prompt("rationale"),
            frames=_determining(data),
            generation=model.generation,
            **stored,
        )
        return RationaleStore(path, made_from)

    def _plan(self) -> Plan:
        """What would be done, for the dry run and for what is checked before anything is loaded."""
        return Plan(
            self.cli.datamodule,
            self.cli.model,
            self.cli.trainer,
            self.run,
            self.stages,
            self._store(self.cli.datamodule),
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
            return [], fingerprint(str(self.given))
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

    def _note_settings(self) -> None:
        """Compares with the settings and clips that the run was started with, or keeps these."""
        file, chosen = self._folder / "settings.yaml", self._folder / "clips.json"
        text, data = self.cli.resolved(), self.cli.datamodule
        clips = {split: [clip.id for clip in data.clips(split)] for split in SPLITS}
        check_settings(file, yaml.safe_load(text))
        check_clips(chosen, clips)
        if _get_rank():
            return
        if not chosen.exists():
            write_json(chosen, clips)
        if not file.exists():  # a kill may have come in between
            write_text(file, text)

    def _use_store(self) -> None:
        if self.cli.model.stage.needs_rationales:
            data = self.cli.datamodule
            store = self._store(data)
            # No test clip may teach, whoever wrote the file.
            store.check_split({clip.id: clip.split for clip in data.all_clips}, ("train", "val"))
            data.store = store

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
    return {name: value for name, value in asdict(data.frames).items() if name != "reader"}
