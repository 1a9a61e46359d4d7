"""Progress bars that say which step of the method is running."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar


class StepProgressBar(TQDMProgressBar):
    """Lightning's bar under the name of the step.

    Args:
        title: What is going on, "Stage I: rationale".
    """

    def __init__(self, title: str) -> None:
        super().__init__(leave=True)
        self.title = title

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Puts the step's name in place of the bare epoch."""
        if not self.train_progress_bar.n:
            self.train_progress_bar.leave = False  # the one from before the first epoch
        super().on_train_epoch_start(trainer)
        epochs = f", epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.train_progress_bar.set_description(self.title + epochs)

    @property
    def validation_description(self) -> str:
        """Name of the validation bar."""
        return f"{self.title}, validating"

    @property
    def test_description(self) -> str:
        """Name of the scoring bar."""
        return self.title

    @property
    def predict_description(self) -> str:
        """Name of the writing bar."""
        return self.title

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts on the bar; Lightning would put the loader's number into its name."""
        super().on_test_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        self.test_progress_bar.set_description(self.title)

    def on_predict_batch_start(
        self,
        trainer: Trainer,
        pl_module: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts on the bar; Lightning would put the loader's number into its name."""
        super().on_predict_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        self.predict_progress_bar.set_description(self.title)

    def get_metrics(self, trainer: Trainer, pl_module: Any) -> dict[str, Any]:
        """The bar's figures, without the run's number."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
