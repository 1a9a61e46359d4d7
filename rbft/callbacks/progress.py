"""Progress bars that say which step of the method is running."""

from lightning.pytorch.callbacks import TQDMProgressBar


class StepProgressBar(TQDMProgressBar):
    """Lightning's bar under the name of the step.

    Args:
        title: What is going on, "Stage I: rationale".
    """

    def __init__(self, title: str) -> None:
        super().__init__(leave=True)
        self.title = title

    @property
    def train_description(self) -> str:
        """Name of the training bar."""
        return self.title

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

    def get_metrics(self, trainer, pl_module) -> dict[str, int | str | float | dict[str, float]]:  # noqa: ANN001
        """The bar's figures, without the run's number."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
