"""BestWeights: keeps the weights of the best validation score for the hand-off."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from rbft.analysis.levels import LEVEL_SCORES, MAE, MAE_ANSWER
from rbft.data.base import VideoDataModule
from rbft.data.splits import count_classes
from rbft.runs.folder import read_json
from rbft.runtime.console import print_rank_zero
from rbft.runtime.fault_tolerance import writing
from rbft.runtime.files import atomically, remove, write_json
from rbft.training.checkpoints import trainable_names, validation_due
from rbft.training.fsdp2 import check_trainable, full_state

LOSS = "val/loss"
SMALLER = (LOSS, f"val/{MAE}", f"val/{MAE_ANSWER}")  # the better; of all other metrics the greater
# In the folder of the checkpoints, with which they go.
BEST, SCORES = "best.pt", "validations.json"
DUE = "rbft_validation_due"  # the key in a checkpoint


def metric_names(
    classes: Sequence[str], *, several: bool = False, ordered: bool = False
) -> list[str]:
    """Names of the validation metrics that `keep_metric` can be.

    Args:
        classes: Names of the classes.
        several: Whether a clip may have several of them.
        ordered: Whether they are levels of a scale.
    """
    more = ["val/f1/micro", "val/ap/macro"] if several else []
    names = [LOSS, "val/accuracy", "val/f1/macro", *more, *(f"val/f1/{name}" for name in classes)]
    return [*names, *(f"val/{name}" for name in LEVEL_SCORES)] if ordered else names


def check_keep(
    keep: str,
    metric: str,
    patience: int | None,
    data: VideoDataModule,
    trainer: Mapping[str, Any],
) -> None:
    """Refuses settings with which no best weights can be found; loads nothing.

    Args:
        keep: `last` or `best`.
        metric: Name of the metric by which the best weights are chosen.
        patience: Validations without a better score after which a stage ends.
        data: The benchmark.
        trainer: The settings of the Trainer.

    Raises:
        ValueError: Naming the setting.
    """
    if keep == "last":
        if patience is not None:
            raise ValueError(
                f"patience ({patience}) ends a stage by its validation scores, but keep is last. "
                "Add --keep best, or leave patience out."
            )
        return
    card = data.card
    several, ordered = card.several is not None, card.values is not None
    allowed = metric_names(card.classes, several=several, ordered=ordered)
    if metric not in allowed:
        raise ValueError(f"keep_metric is '{metric}'; allowed are {', '.join(allowed)}.")
    clips, name = data.clips("val"), type(data).__name__
    if not clips:
        raise ValueError(
            f"keep is best, but {name} has no validation split, and the best weights are never "
            "chosen on test. Set data.val_fraction to carve one from the training clips, or keep "
            "to last."
        )
    counts = count_classes(clips)
    scored = {name for label, name in enumerate(data.card.classes) if counts[label]}
    lacking = metric.removeprefix("val/f1/")
    if lacking in data.card.classes and lacking not in scored:
        raise ValueError(
            f"keep_metric is {metric}, but {name} has no validation clip of the class {lacking}. "
            f"Choose another ({', '.join(allowed)}), or change the validation split."
        )
    every = trainer.get("check_val_every_n_epoch")
    if trainer.get("limit_val_batches") == 0 or (every or 1) > (trainer.get("max_epochs") or 1):
        raise ValueError(
            "keep is best, but the Trainer is set to validate never: trainer.limit_val_batches is "
            f"{trainer.get('limit_val_batches')}, trainer.check_val_every_n_epoch {every} and "
            f"trainer.max_epochs {trainer.get('max_epochs')}. Change these, or keep to last."
        )
    if isinstance(trainer.get("val_check_interval"), str):
        raise ValueError(
            f"keep is best, but trainer.val_check_interval is {trainer['val_check_interval']}, a "
            "time: a run that is started again would validate at other steps. Give a share of an "
            "epoch or a number of micro-batches."
        )


class BestWeights(Callback):
    """Keeps the trainable weights with the best validation score of a stage on disk.

    Of equal scores the earlier one counts. The weights and their score are one file, which is
    replaced atomically; the score of every validation stands in another. A checkpoint is saved
    before each validation and notes that it is due, so a run that was killed in it, or before its
    score was written, validates these weights when it resumes. A score that was written is never
    measured again.

    Args:
        folder: The folder of the stage's checkpoints.
        metric: Name of the metric, see `metric_names`.
        patience: Validations in a row without a better score after which the stage ends; None goes
            through all epochs.

    Attributes:
        scores: Step and score of each validation so far, by order.
    """

    def __init__(self, folder: Path, metric: str, patience: int | None = None) -> None:
        self.file, self.list = folder / BEST, folder / SCORES
        self.metric, self.patience = metric, patience
        self.scores: list[dict[str, Any]] = []
        self._due = False

    @property
    def best(self) -> dict[str, Any] | None:
        """Step and score of the best validation so far, the first of equal ones."""
        sign = -1 if self.metric in SMALLER else 1
        return max(self.scores, key=lambda one: sign * one["score"], default=None)

    @property
    def summary(self) -> dict[str, Any]:
        """What the provenance of the kept weights says."""
        return {"metric": self.metric, **(self.best or {}), "validations": self.scores}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes up the scores of before, and validates where that is still to be done.

        Raises:
            ValueError: If the weights or scores on disk do not belong to the checkpoint.
        """
        step = trainer.global_step
        if step:
            if self._take_up(step) and trainer.is_global_zero:
                write_json(self.list, self.scores)  # before the weights' file may be replaced
        elif trainer.is_global_zero:  # of a run that left no checkpoint
            remove(self.file)
            remove(self.list)
        trainer.strategy.barrier("best weights are read")
        if self._due and not self._scored(step):
            # Lightning takes a validation that was due at a checkpoint as done.
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop.restarting = False
            trainer.validating = True
            loop.run()
            trainer.training = True
        self._due = False
        self._stop(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a validation before which no checkpoint can be saved.

        Raises:
            ValueError: If it comes in the middle of a global batch.
        """
        loop = trainer.fit_loop.epoch_loop
        if not trainer.sanity_checking and not self._due and loop._should_accumulate():
            raise ValueError(
                f"keep is best, but trainer.val_check_interval {trainer.val_check_interval} has "
                f"validation come after {loop.batch_idx + 1} micro-batches, in the middle of a "
                f"global batch of {trainer.accumulate_grad_batches}. Make it come after a multiple "
                "of these, or at the end of the epoch."
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the weights if their score is the best.

        Raises:
            ValueError: If the score is no number.
        """
        step = trainer.global_step
        if trainer.sanity_checking:
            return
        found = trainer.callback_metrics.get(self.metric)
        score = float("nan") if found is None else float(found)
        if score != score:
            raise ValueError(
                f"keep_metric {self.metric} of the validation after step {step} is no number, so "
                "no weights are the best. Look at the validation clips, or choose another metric."
            )
        before = self.best
        self.scores.append({"step": step, "score": score})
        if self.best is not before:
            self._write(trainer, pl_module)
        # Behind the weights: a kill between the two leaves a score that the weights' file tells.
        if trainer.is_global_zero:
            write_json(self.list, self.scores)
        trainer.strategy.barrier("best weights are kept")
        self._stop(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Notes whether a validation is to follow."""
        checkpoint[DUE] = validation_due(trainer)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Reads whether a validation was to follow."""
        self._due = checkpoint.get(DUE, False)

    def restore(
        self, module: LightningModule, state: dict[str, Tensor] | None
    ) -> dict[str, Tensor] | None:
        """Puts the best weights in place of the last; on the first process.

        Args:
            module: The trained module; its parameters are changed, unless they are sharded.
            state: The backbone's whole weights, where they are sharded; None elsewhere.

        Returns:
            The whole weights with the best ones among them, where they are sharded.

        Raises:
            ValueError: If the stage has had no validation.
        """
        if self.best is None:
            raise ValueError(
                "keep is best, but the stage ended without a validation (trainer.max_steps, "
                "val_check_interval or limit_train_batches). Change these, or keep to last."
            )
        kept = torch.load(self.file, weights_only=True, mmap=True, map_location="cpu")
        weights, names = kept["weights"], trainable_names(module)
        check_trainable(set(weights), names)
        print_rank_zero(
            f"Kept the weights of step {self.best['step']} of {self.scores[-1]['step']}: "
            f"{self.metric} {self.best['score']:.4f}, the best of {len(self.scores)} validations."
        )
        if state is not None:
            return state | {_in_backbone(name): tensor for name, tensor in weights.items()}
        with torch.no_grad():
            for name, tensor in weights.items():
                module.get_parameter(name).copy_(tensor)
        return None

    def _write(self, trainer: Trainer, module: LightningModule) -> None:
        """Writes weights and score; all processes take part."""
        names, state = trainable_names(module), full_state(trainer.strategy)
        if not trainer.is_global_zero:
            return
        if state is None:
            weights = {name: module.get_parameter(name).detach() for name in names}
        else:
            weights = {name: state[_in_backbone(name)] for name in names}
        content = {"weights": weights, "metric": self.metric, **self.scores[-1]}
        with writing(self.file), atomically(self.file) as part, part.open("wb") as stream:
            torch.save(content, stream)

    def _take_up(self, step: int) -> bool:
        """Reads the scores that stand beside the checkpoint of a step.

        Returns:
            Whether one was found with the weights alone.
        """
        lacking = False
        self.scores = read_json(self.list) if self.list.exists() else []
        found: dict[str, Any] = {}
        if self.file.exists():
            found = torch.load(self.file, weights_only=True, mmap=True, map_location="cpu")
            if not self._scored(found["step"]):
                self.scores.append({"step": found["step"], "score": found["score"]})
                lacking = True
        best = self.best
        last = max((one["step"] for one in self.scores), default=0)
        if best is not None and (last > step or found.get("step") != best["step"]):
            raise ValueError(
                f"The checkpoint is of step {step}, but {self.list.parent} has validation scores "
                f"up to step {last} and best weights of step {found.get('step')}, where those of "
                f"step {best['step']} are the best: they do not belong together. Leave --ckpt_path "
                "out, or add --restart true."
            )
        return lacking

    def _scored(self, step: int) -> bool:
        return any(one["step"] == step for one in self.scores)

    def _stop(self, trainer: Trainer) -> None:
        """Ends the stage when its patience is at an end."""
        best = self.best
        if best is None or self.patience is None:
            return
        since = len(self.scores) - 1 - self.scores.index(best)
        if since >= self.patience:
            trainer.should_stop = True


def _in_backbone(name: str) -> str:
    return name.removeprefix("backbone.")
