"""The method as a list of stages: what runs when, from where, and what is already done."""

import shlex
import shutil
import sys
import time
import traceback
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.callbacks import LearningRateMonitor

from rbft.backbone.adapters import base_note, find_base
from rbft.backbone.positions import POSITION_RULE
from rbft.build import build, default_precision
from rbft.callbacks.best import BestWeights
from rbft.callbacks.checks import TrainableParts
from rbft.callbacks.cut import CutRationales
from rbft.callbacks.handoff import StageHandoff
from rbft.callbacks.history import CURVES, HISTORY, History, draw_curves
from rbft.callbacks.results import ResultsWriter
from rbft.callbacks.throughput import Throughput
from rbft.data.base import Feed, VideoDataModule
from rbft.data.rationales import RationaleStore
from rbft.decision import DECISION, write_decision, write_thresholds
from rbft.distillation import name_classes, soft_labels
from rbft.estimate.dry_run import Plan
from rbft.inference.result_table import result_table, title_of
from rbft.inputs import BACKBONE, TRAINING_SPLITS, Inputs, Writer
from rbft.masking.settings import MASKING
from rbft.module import check_stage
from rbft.run_end import closing
from rbft.runs.folder import (
    CLIPS,
    LOG,
    TOLD,
    ZERO_SHOT,
    check_weights,
    provenance,
    read_json,
    read_provenance,
    revision,
)
from rbft.runs.inference import INFERENCE, inference_note
from rbft.runs.record import ANEW, comparable, digest, indented, scoring_of
from rbft.runs.usage import LOOK, USAGE, Usage
from rbft.runtime.console import logged_to, print_rank_zero
from rbft.runtime.fault_tolerance import format_fatal_error, signals
from rbft.runtime.files import write_json
from rbft.runtime.lock import Lock
from rbft.runtime.pace import Work
from rbft.stage_zero import write_rationales
from rbft.stages import ELICITED, RATIONALE_STAGE, find_stage
from rbft.training.checkpoints import StepCheckpoint
from rbft.training.fsdp2 import META, wait_for_all
from rbft.verification import selection_report

# In a stage's folder: digest of each rationale that it learns from, what verification selected, and
# what the rules dropped.
RATIONALES, SELECTION = "rationales.json", "rationale_selection.json"
RULES = "rationale_rules.json"


class Method:
    """The steps of an experiment; each is built anew, with what the one before it has left.

    Args:
        inputs: What the experiment is made from.
    """

    def __init__(self, inputs: Inputs) -> None:
        self.inputs, self.experiment = inputs, inputs.experiment
        self.settings, self.run = self.experiment.settings, self.experiment.run
        self.stages = self.experiment.stages
        self.usage: Usage | None = None  # noted by `fit` alone
        self.shown: set[str] = set()  # tables of parameters
        self.steps: dict[tuple[str, str], tuple[Work, int]] = {}

    def fit(self, ckpt_path: Path | None = None, *, restart: bool = False) -> None:
        """Runs all steps that are not done yet, in order.

        Args:
            ckpt_path: Lightning checkpoint to resume a single stage from.
            restart: Throw away first what the run, or the single stage of it, has left.

        Raises:
            ValueError: If something is finished that was made from something else.
        """
        began = time.monotonic()
        with self.owned():
            if restart:
                if not _get_rank():
                    shutil.rmtree(self._folder, ignore_errors=True)
                wait_for_all(self.inputs.trainer, self.inputs.model)
            self.check_record()
            with self._logged():
                self._keep_record()
                self.usage = Usage(self._folder)
                self._run_stages(ckpt_path)
                if self.steps and not _get_rank():
                    draw_curves(self.run.folder / HISTORY, self.run.folder / CURVES)
                passed = time.monotonic() - began
                print_rank_zero(closing(self.inputs, passed if self.steps else None))

    def _logged(self) -> AbstractContextManager[None]:
        """Adds what is said to the run's log."""
        if _get_rank():
            return nullcontext()
        title = f"python -m rbft {shlex.join(sys.argv[1:])}"
        return logged_to(self.run.folder / LOG, title, _ending)

    def _run_stages(self, ckpt_path: Path | None) -> None:
        """Runs what is not finished of the stages, and prints their table."""
        whole = self.experiment.single is None
        todo = [stage for stage in self.stages if not self.run.trained(stage)]
        anew = self._written_anew()
        self.steps = self._steps_to_do(todo, anew)
        if not self.steps:
            print_rank_zero(self._finished())
        self._begin("rationales", "")
        self._write_rationales([stage for stage in todo if stage not in anew], BACKBONE)
        if whole and (self.settings.score_each_stage or not self.stages):
            self.score(ZERO_SHOT, "label", None)
        weights, (history, backbone) = self.experiment.given, self.inputs.origin()
        for stage in self.stages:
            history = [*history, stage]
            if not self.run.trained(stage):
                writer = self._writer(stage, weights, history)
                if writer != BACKBONE:
                    self._begin("rationales", stage)
                    self._write_rationales([stage], writer)
                self.train(stage, weights, history, backbone, ckpt_path, writer)
            elif not _get_rank():  # left where a kill came between hand-off and tidying up
                shutil.rmtree(self.run.checkpoints(stage), ignore_errors=True)
            weights = self.run.weights(stage)
            card, clips = self.inputs.card.digest, self.inputs.training_clips
            check_weights(weights, history, backbone, card, clips)
            if self.settings.score_each_stage or stage == self.stages[-1]:
                self.score(stage, stage, weights)
        last = self.stages[-1] if self.stages else "label"
        made = self.inputs.determining("test", last, weights)
        self.print_table("test", made, [ZERO_SHOT, *self.stages])
        self.decide(last if self.stages else ZERO_SHOT, last, weights)

    def _steps_to_do(self, todo: list[str], anew: list[str]) -> dict[tuple[str, str], Any]:
        """What will run, in order: kind of work and clips by kind of step and its stage.

        Args:
            todo: Stages that are not trained yet.
            anew: Stages before which rationales are written.
        """
        clips = {split: len(self.inputs.data.clips(split)) for split in ("train", "test")}
        epochs, each = self.settings.trainer.max_epochs or 1, self.settings.score_each_stage
        whole, scored = self.experiment.single is None, self._scored()
        steps: dict[tuple[str, str], tuple[Work, int]] = {}
        if whole and (each or not self.stages) and ZERO_SHOT not in scored:
            steps["score", ZERO_SHOT] = ("score", clips["test"])
        for stage in self.stages:
            if stage in todo:
                if stage in anew:
                    steps["rationales", stage] = ("write", clips["train"])
                steps["train", stage] = ("train", epochs * clips["train"])
            if (each or stage == self.stages[-1]) and stage not in scored:
                elicits = find_stage(stage).classifier.elicits
                steps["score", stage] = ("answer" if elicits else "score", clips["test"])
        return steps

    def _begin(self, kind: str, stage: str) -> None:
        """Notes what comes after a step, so that its progress line tells the time of all."""
        keys = [*self.steps]
        later = keys[keys.index((kind, stage)) + 1 :] if (kind, stage) in self.steps else keys
        ahead: dict[Work, int] = {}
        for work, clips in map(self.steps.__getitem__, later):
            ahead[work] = ahead.get(work, 0) + clips
        self.inputs.pace.ahead = ahead if self.usage is not None else {}

    def _finished(self) -> str:
        """When it was finished, where nothing is left to do."""
        places = self.stages or [ZERO_SHOT]
        files = [file for place in places for file in self.run.result_files(place, "test")]
        last = max((file.stat().st_mtime for file in files), default=time.time())
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(last))
        return f"{self.settings.name or 'The run'} was finished on {when}; nothing is left to do."

    def train(
        self,
        stage: str,
        weights: Path | None,
        history: list[str],
        backbone: str,
        ckpt_path: Path | None,
        writer: Writer = BACKBONE,
    ) -> None:
        """Trains one stage and leaves its weights folder.

        Args:
            stage: Name of the stage.
            weights: Weights folder to start from, None for the bare backbone.
            history: Names of the stages that will have made the weights, this one included.
            backbone: Fingerprint of the backbone that the first of them started from.
            ckpt_path: Lightning checkpoint to resume from; None takes the stage's newest.
            writer: Who wrote the rationales that the stage learns, or is its teacher.
        """
        model, inputs = self.settings.model, self.inputs
        facts: dict[str, Any] = {"backbone_name": model.backbone, "run": self.settings.name}
        facts |= {"revision": revision(), "card": inputs.card.digest}
        facts |= {"clips": inputs.training_clips}
        facts[INFERENCE] = inference_note(self.settings, default_precision())
        if model.lora is not None:
            facts["base"] = base_note(find_base(model.backbone, weights))
        paper = find_stage(stage).paper
        resume = ckpt_path or self.run.checkpoint(stage)
        made_from = {"backbone": backbone, "card": inputs.card.digest}
        if weights is not None:
            made_from["starting weights"] = inputs.fingerprint(weights)
        made_from |= {f"{split} clips": known for split, known in inputs.training_clips.items()}
        store, soft, told = None, None, _told(weights)
        if writer.weights is not None:
            made_from["writer"] = facts["writer"] = inputs.fingerprint(writer.weights)
        if find_stage(stage).needs_teacher:
            soft = soft_labels(inputs, writer)
            made_from["soft labels"] = digest(soft)
        if find_stage(stage).needs_rationales:
            store = inputs.rationale_store(writer=writer)
            data = inputs.data.with_feed(Feed(rationales=store))
            told += len(data.rationales("train").label_conditioned)
            facts["rationale_texts"] = self._note_rationales(
                stage, data, store, resumes=bool(resume)
            )
            made_from["rationales"] = facts["rationale_texts"]
            facts["rationale_tokens"] = sum(one["tokens"] for one in store.all_records())
        if told:  # stands in every stage that follows, and in their results
            facts[TOLD] = told
        rule = inputs.model.family.prompt_rule
        origin = provenance(POSITION_RULE, rule, stages=history, backbone=backbone, **facts)
        taught = {split: inputs.clips[split] for split in TRAINING_SPLITS}
        folder, settings, best = self.run.checkpoints(stage), self.settings, None
        if settings.keep == "best":
            best = BestWeights(folder, settings.keep_metric, settings.patience)
        callbacks = [
            TrainableParts(self.shown),
            Throughput(),
            # Behind what logs speed, before what keeps a validation's score, as it is not repeated.
            History(self.run.folder / HISTORY, stage),
            CutRationales(),
            LearningRateMonitor("step"),
            *([] if best is None else [best]),
            StepCheckpoint(folder, settings.checkpoint_every, made_from),
            StageHandoff(self.run.weights(stage), origin, {CLIPS: taught}, best),
        ]
        feed = {"rationales": store, "soft_labels": soft}
        self._begin("train", stage)
        built = build(
            self.experiment,
            stage,
            weights,
            paper,
            callbacks,
            feed=feed,
            folder=stage,
            pace=inputs.pace,
        )
        if resume is None:
            print_rank_zero(f"{paper}: starting from {weights or model.backbone}")
        with self._spending("training"):
            built.fit(resume)
        signals.release()

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
        made = self.inputs.determining(split, stage, weights)
        if not again and self.run.find_result(place, split, made):
            return made
        tag = "" if self._is_own(split, made) else digest(made)[:8]
        facts = {"run": self.settings.name, "stage": place, "weights": str(weights or "backbone")}
        if (masks := self.inputs.masks) is not None:
            # Never the run's own result, not even where there is none.
            tag = f"{masks.masking.name}-{tag or digest(made)[:8]}"
            facts[MASKING] = made[MASKING] | {"file": str(masks.masking.boxes)}
        file = self.run.results(place, split, tag)
        self._begin("score", place)
        built = build(
            self.experiment,
            stage,
            weights,
            f"Scoring {split} ({place}{'' if masks is None else f', {masks.masking.name} masked'})",
            [ResultsWriter(file, split, {**facts, "made": made})],
            feed={"scored_split": split},
            folder=place,
            pace=self.inputs.pace,
        )
        if not _get_rank():
            file.unlink(missing_ok=True)  # not of these weights or settings
        with self._spending("scoring"):
            built.test()
        if masks is not None:
            print_rank_zero(f"Scored with {masks.masking.name} masked: the results are in {file}.")
        elif tag:
            print_rank_zero(f"Scored otherwise than the run itself: the results are in {file}.")
        return made

    def decide(self, place: str, stage: str, weights: Path | None) -> None:
        """Chooses the threshold that the settings ask for, if any, and notes it with the weights.

        Scores both splits as far as they are not scored yet.

        Args:
            place: Folder of the results within the run's.
            stage: The stage that made the weights.
            weights: Weights folder, None for the bare backbone.
        """
        wanted = self.experiment.decision
        if wanted is None:
            return
        made = {split: self.score(place, stage, weights, split) for split in ("val", "test")}
        if _get_rank():
            return
        val, test = (self.run.find_result(place, split, one) for split, one in made.items())
        assert val is not None
        assert test is not None
        file = self.run.stage(place) / DECISION
        write = write_thresholds if wanted.f1 else write_decision
        print_rank_zero(write(file, wanted, val, test, made["test"]["weights"]))

    def plan(self) -> Plan:
        """What would be done, for the dry run and for what is checked before anything is loaded."""
        inputs, endpoint = self.inputs, self.experiment.endpoint
        return Plan(
            inputs.data,
            inputs.model,
            inputs.trainer,
            self.run,
            self.stages,
            inputs.rationale_store(),
            scored=self._scored(),
            whole=self.experiment.single is None,
            score_each=self.settings.score_each_stage,
            keeps_best=self.settings.keep == "best",
            anew=self._written_anew(),
            endpoint=None if endpoint is None else endpoint.model,
        )

    def owned(self) -> Lock:
        """The right to write into the run's folder; one command at a time has it."""
        return Lock(self.run.folder, "Run folder")

    def print_table(self, split: str, made: dict[str, Any], places: list[str]) -> None:
        """Prints what stands at these places of the run, as far as it was made alike."""
        rows, left_out = [], []
        for place in dict.fromkeys(places):
            results = [read_json(file) for file in self.run.result_files(place, split)]
            found = [result for result in results if comparable(result.get("made", {}), made)]
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

    def _spending(self, phase: str, least: float = 0.0) -> AbstractContextManager[None]:
        """Notes what `fit` spends on something, if it is as many seconds."""
        return nullcontext() if self.usage is None else self.usage.phase(phase, least)

    @property
    def _folder(self) -> Path:
        """What this command makes: the run, or one stage of it."""
        return self.run.stage(self.experiment.single) if self.experiment.single else self.run.folder

    def _is_own(self, split: str, made: dict[str, Any]) -> bool:
        """Whether results are made as `fit` makes those of this run; so they are before any fit."""
        own = scoring_of(self._folder, split)
        if own is None:
            return True
        names = (own.keys() | made.keys()) - {"stage", "weights", MASKING}
        return all(made.get(name) == own.get(name) for name in names)

    def _scored(self) -> set[str]:
        """Places whose test results are there and were made as this run makes them."""
        done, weights = set(), None
        for place in (ZERO_SHOT, *self.stages):
            if place != ZERO_SHOT:
                if not self.run.trained(place):
                    continue
                weights = self.run.weights(place)
            stage = "label" if place == ZERO_SHOT else place
            if self.run.find_result(place, "test", self.inputs.determining("test", stage, weights)):
                done.add(place)
        return done

    def _bound(self) -> bool:
        """Whether anything is finished that settings, words and clips must stay the same for."""
        return any(self.run.trained(name) or self.run.checkpoint(name) for name in self.stages)

    def check_record(self) -> None:
        """Compares with what the run was started with.

        Raises:
            ValueError: If something is finished that was made otherwise.
        """
        if self._bound():
            self.inputs.record.check(self._folder)

    def _keep_record(self) -> None:
        """Notes what the run is made from, until something is finished with it."""
        if _get_rank():
            return
        if changes := self.inputs.record.keep(self._folder, anew=not self._bound()):
            before = "Nothing was finished with the settings of before; these have changed:"
            print_rank_zero(f"{before}\n{indented(changes)}")
            shutil.rmtree(self._folder / USAGE, ignore_errors=True)
            for stage in [stage for stage in self.stages if stage != self.experiment.single]:
                # Curves of the settings of before.
                shutil.rmtree(self.run.stage(stage), ignore_errors=True)

    def _written_anew(self) -> list[str]:
        """The stages before which the weights that they start from write."""
        previous = self.settings.rationales_from == "previous"
        # The first one starts from the backbone, where no weights are given.
        starting = self.stages if self.experiment.given is not None else self.stages[1:]
        return [
            name
            for name in starting
            if (stage := find_stage(name)).needs_teacher or (previous and stage.needs_rationales)
        ]

    def _writer(self, stage: str, weights: Path | None, history: list[str]) -> Writer:
        """Who writes the rationales that a stage learns, or teaches it.

        Args:
            stage: Name of the stage.
            weights: Weights folder that it starts from, None for the bare backbone.
            history: Names of the stages that will have made its weights, it included.
        """
        if stage not in self._written_anew():
            return BACKBONE
        before = find_stage(history[-2]) if len(history) > 1 else RATIONALE_STAGE
        return Writer(weights, ELICITED if before.elicits else RATIONALE_STAGE)

    def _write_rationales(self, stages: list[str], writer: Writer) -> None:
        """Writes what stages learn from or are taught by, and says what the rules drop.

        Raises:
            ValueError: If they leave a class no rationale.
        """
        found = [find_stage(stage) for stage in stages]
        taught = writer != BACKBONE and any(stage.needs_teacher for stage in found)
        if not taught and not any(stage.needs_rationales for stage in found):
            return
        with self._spending("rationales", LOOK):
            write_rationales(self.inputs, writer=writer)
            if taught:
                name_classes(self.inputs, writer)
        data = self.inputs.data
        if data.rationale_rules is not None and not taught:
            data = data.with_feed(Feed(rationales=self.inputs.rationale_store(writer=writer)))
            print_rank_zero(f"data.rationale_rules: {data.rationales('train').report}")

    def _note_rationales(
        self, stage: str, data: VideoDataModule, store: RationaleStore, *, resumes: bool
    ) -> str:
        """Compares with the rationales that the stage began with, or keeps these.

        Returns:
            Their digest.

        Raises:
            ValueError: If the stage resumes and they have changed; names the clips.
        """
        learnt = {split: data.rationales(split) for split in TRAINING_SPLITS}
        texts = {n: t for split in learnt.values() for n, t in split.texts.items()}
        cut, told = store.cut(), set(learnt["train"].label_conditioned)
        now = {
            name: digest([text, name in cut, *([TOLD] if name in told else [])])
            for name, text in texts.items()
        }
        file = self.run.stage(stage) / RATIONALES
        if resumes and file.exists():
            before = read_json(file)
            names = sorted(n for n in before.keys() | now.keys() if before.get(n) != now.get(n))
            if names:
                raise ValueError(
                    f"{find_stage(stage).paper} began with other rationales of {len(names)} clips "
                    f"(first: {names[0]}) than {store.path} has now. Put them back as they "
                    f"were. {ANEW}"
                )
        elif not _get_rank():
            write_json(file, now)
            if (selected := selection_report(data, store)) is not None:
                write_json(self.run.stage(stage) / SELECTION, selected.as_dict())
            if (report := learnt["train"].report) is not None:
                write_json(self.run.stage(stage) / RULES, report.as_dict())
        return digest(now)


def _ending(error: BaseException) -> str:
    """What the log says of what ended a run."""
    said = format_fatal_error(error)
    return said or "".join(traceback.format_exception(error))


def _told(weights: Path | None) -> int:
    """Label-conditioned rationales that weights to start from have learnt."""
    made = None if weights is None else read_provenance(weights)
    return (made or {}).get(TOLD, 0)


def check_checkpoint(ckpt_path: Path | None, stages: list[str]) -> None:
    """Refuses a checkpoint that cannot resume this run, before anything is written."""
    if ckpt_path is None:
        return
    if len(stages) != 1:
        raise ValueError(
            f"--ckpt_path resumes one stage, but this run has {len(stages)}: "
            f"{', '.join(stages)}. Add --model.stage, or leave it out: fit finds its own "
            "checkpoints."
        )
    if not ckpt_path.exists():
        raise ValueError(
            f"--ckpt_path {ckpt_path} does not exist. Leave it out: fit finds its own checkpoints."
        )
    file = ckpt_path if ckpt_path.is_file() else ckpt_path / META
    if not file.exists():
        raise ValueError(f"--ckpt_path {ckpt_path} is no checkpoint: it holds no {META}.")
    try:
        checkpoint = torch.load(file, weights_only=True, mmap=True, map_location="cpu")
    except (UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"--ckpt_path {ckpt_path} is no checkpoint that Lightning has written, or is cut off. "
            "Leave it out: fit finds its own checkpoints."
        ) from error
    check_stage(checkpoint, stages[0])
