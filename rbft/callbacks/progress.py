"""One line that says how far a step of the method is, and how long the rest takes."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rbft.runtime.console import print_rank_zero
from rbft.runtime.pace import Pace, Work
from rbft.runtime.progress import Facts, ProgressLine, clock, speed

# What a line says of a validation; the last two on a scale alone.
VALIDATION = ("val/loss", "val/accuracy", "val/f1/macro", "val/mae", "val/spearman")
FIRST = 2  # optimiser steps after which the time left is said; the first one is slow


class StepProgress(Callback):
    """Shows epoch, step, loss, learning rate, clips per second and the time left.

    In place of Lightning's bars, of which each epoch and validation has one of its own. The time
    left is that of all that the command does, as far as it is known.

    Args:
        title: What is going on, "Stage I (rationales)".
        pace: What was measured so far, and what comes after this step.
        shown: Whether it is shown; the log file has it in any case.
    """

    def __init__(self, title: str, pace: Pace, *, shown: bool = True) -> None:
        self.title, self.pace, self.shown = title, pace, shown
        self.work: Work = "train"
        self.line: ProgressLine | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Says that the weights are being loaded, which comes next."""
        if trainer.is_global_zero:
            self.line = ProgressLine(self.title, 1, shown=self.shown)
            self.line.say("loading the weights")

    def _begin(self, total: int, done: int = 0) -> None:
        """The line of the steps, in place of the one before the first."""
        if self.line is not None and self.line.bar is not None:
            self.line.bar.leave = False
            self.line.close()
        self.line = ProgressLine(self.title, total, done, shown=self.shown)
        self.clips, self.started = 0, time.monotonic()
        self.began = self.started

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says where training begins or goes on, and starts the clock."""
        if not trainer.is_global_zero:
            return
        module: Any = pl_module
        self.epochs = trainer.max_epochs or 1
        self.steps = module.data.steps(trainer.world_size, self.epochs)
        if 0 < trainer.max_steps < self.steps:
            self.steps = trainer.max_steps
        self.first = trainer.global_step
        self.counted = 0
        self._begin(self.steps, self.first)
        if self.first:
            print_rank_zero(f"Resuming {self.title} at step {self.first} of {self.steps}")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Notes the learning rate of the step; afterwards it is that of the next one."""
        self.rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the clips, and shows the step if it is whole."""
        if self.line is None:
            return
        self.clips += len(batch) * trainer.world_size
        step = trainer.global_step
        if step == self.line.done:
            return
        if step - self.first == 1 < self.steps - self.first:
            # The clock starts behind the first step, which fills caches and compiles kernels.
            self.counted, self.started, self.clips = step, time.monotonic(), 0
        self.line.update(step, lambda: self._training(trainer, step))

    def _training(self, trainer: Trainer, step: int) -> Facts:
        passed = time.monotonic() - self.started
        # The epoch ends later than its last step.
        epoch = min(trainer.current_epoch + 1, self.epochs)
        facts = [(f"epoch {epoch}/{self.epochs}", 3), (f"step {step}/{self.steps}", 0)]
        if (loss := trainer.callback_metrics.get("train/loss")) is not None:
            facts.append((f"loss {float(loss):.4f}", 0))
        facts.append((f"lr {self.rate:.1e}", 1))
        if passed and self.clips:
            facts.append((f"{speed(self.clips / passed)} clips/s", 2))
            self.pace.seconds[self.work] = passed / self.clips
        if step - self.first >= FIRST:
            own = (self.steps - step) * passed / (step - self.counted)
            facts.append((self._left(own), 0))
        return facts

    def _left(self, own: float) -> str:
        """How long the rest takes.

        Args:
            own: Seconds of this step that are left.
        """
        rest = self.pace.rest()
        if rest is None:
            return f"{clock(own)} left here"
        return f"{clock(own + rest)} left"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says how long it took."""
        if self.line is None:
            return
        steps = trainer.global_step - self.first
        facts = [(f"{steps} steps in {clock(time.monotonic() - self.began)}", 0)]
        if (loss := trainer.callback_metrics.get("train/loss")) is not None:
            facts.append((f"last loss {float(loss):.4f}", 1))
        self.line.close(facts)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Says how far the validation is, on the same line."""
        if self.line is not None:
            total = int(sum(trainer.num_val_batches))
            self.line.say(f"validating, {batch_idx + 1}/{total} batches")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says what came of it, in a line that stays."""
        if self.line is None:
            return
        found = trainer.callback_metrics
        shown = [f"{name} {float(found[name]):.4g}" for name in VALIDATION if name in found]
        print_rank_zero(f"{self.title}, step {trainer.global_step}: {', '.join(shown)}")
        self.line.say("training")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        module: Any = pl_module
        self.work = "answer" if module.stage.classifier.elicits else "score"
        self._begin_clips(trainer, trainer.test_dataloaders)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self.work = "write"
        self._begin_clips(trainer, trainer.predict_dataloaders)

    def _begin_clips(self, trainer: Trainer, loader: Any) -> None:
        if trainer.is_global_zero:
            self.total = len(loader.dataset)
            self._begin(self.total)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts the clips."""
        if self.line is None:
            return
        # The last batches of several processes may hold clips that fill them up.
        self.clips = min(self.clips + len(batch) * trainer.world_size, self.total)
        passed = time.monotonic() - self.started
        self.pace.seconds[self.work] = passed / self.clips
        self.line.update(self.clips, lambda: self._counted(passed))

    on_predict_batch_end = on_test_batch_end

    def _counted(self, passed: float) -> Facts:
        own = (self.total - self.clips) * passed / self.clips
        return [
            (f"{self.clips}/{self.total} clips", 0),
            (f"{speed(self.clips / passed)} clips/s", 2),
            (self._left(own), 0),
        ]

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says how long it took."""
        if self.line is not None:
            passed = time.monotonic() - self.began
            each = speed(self.clips / passed) if passed else "0"
            self.line.close([(f"{self.clips} clips in {clock(passed)}", 0), (f"{each} clips/s", 1)])

    on_predict_end = on_test_end

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Ends the line, so that what is said of the error begins a new one."""
        self._end()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends the line."""
        self._end()

    def _end(self) -> None:
        if self.line is not None:
            self.line.close()
