"""What one looks at in TensorBoard: clips with answers, the confusion matrix, the settings."""

from typing import Any

import torch
from jaxtyping import UInt8
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from rbft.callbacks.answer_rows import answer_row
from rbft.clip import Clip
from rbft.inference.metrics import confusion_figure
from rbft.video.sampling import VideoError

FRAMES = 8  # frames shown of a clip


def film_strip(frames: UInt8[Tensor, "frames 3 height width"]) -> UInt8[Tensor, "3 high wide"]:
    """Evenly chosen frames of a clip, four to a row."""
    from torchvision.utils import make_grid

    chosen = torch.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().long()
    return make_grid(frames[chosen], nrow=4, padding=2, pad_value=255)


class Pictures(Callback):
    """Writes clips, texts, figures and settings to TensorBoard.

    Args:
        settings: The resolved configuration as YAML.
        hparams: Settings that tell runs apart, for the HParams tab.
        samples: Number of clips shown.
    """

    def __init__(self, settings: str, hparams: dict[str, Any], samples: int = 4) -> None:
        self.settings, self.hparams, self.samples = settings, hparams, samples
        self.answers: dict[int, tuple[Clip, str, str]] = {}

    def _writer(self, trainer: Trainer) -> Any:
        logger = trainer.logger
        if trainer.is_global_zero and isinstance(logger, TensorBoardLogger):
            return logger.experiment
        return None

    def _show(
        self, trainer: Trainer, module: Any, clip: Clip, place: str, text: str, step: int
    ) -> None:
        writer = self._writer(trainer)
        try:
            frames = module.data.reader.decode(clip).frames
        except VideoError as error:
            text = f"{text}\n\n{error}"
        else:
            writer.add_image(place, film_strip(frames), step)
        text = f"**{clip.id}**\n\n{text}"
        # File names that are no UTF-8 hold surrogates, which TensorBoard cannot write.
        text = text.encode(errors="backslashreplace").decode()
        writer.add_text(place, text, step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the settings and what is learnt from a few clips."""
        module: Any = pl_module
        writer = self._writer(trainer)
        if writer is None:
            return
        writer.add_text("settings", f"```yaml\n{self.settings}\n```", trainer.global_step)
        stage, card = module.stage, module.card
        texts = module.data.rationales("train").texts if stage.needs_rationales else {}
        for number, clip in enumerate(module.data.clips("train")[: self.samples]):
            asked, answer = stage.prompt(card, clip), stage.target(card, clip, texts.get(clip.id))
            text = f"asked: {asked}\n\nto answer: {answer}"
            self._show(trainer, module, clip, f"learnt/clip_{number}", text, trainer.global_step)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Remembers the answers of the first clips."""
        outputs = outputs["classified"]
        module: Any = pl_module
        for place, index in enumerate(batch.index.tolist()):
            if index < self.samples:
                answer = answer_row(outputs, batch, place, module.card.classes)
                said = answer["prediction"] or "no class"
                if "probabilities" in answer:
                    said += f" ({max(answer['probabilities'].values()):.0%})"
                self.answers[index] = (batch.clips[place], said, answer.get("text", ""))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the confusion matrix, a few clips with the model's answers, and the hparams."""
        module: Any = pl_module
        figures = {k: float(v) for k, v in module.test_metrics.compute().items()}
        confusion = module.test_metrics.confusion()
        writer = self._writer(trainer)
        if writer is None:
            return
        split = module.data.feed.scored_split
        figure = confusion_figure(confusion, module.card.classes)
        writer.add_figure(f"{split}/confusion", figure, module.trained_steps)
        for index, (clip, said, text) in sorted(self.answers.items()):
            truth = "unknown" if clip.label is None else module.card.classes[clip.label]
            shown = f"label: {truth}\n\nprediction: {said}\n\n{text}"
            self._show(trainer, module, clip, f"{split}/clip_{index}", shown, module.trained_steps)
        logger: Any = trainer.logger
        final = {f"{split}/{name}": value for name, value in figures.items()}
        logger.log_hyperparams(self.hparams, final, step=module.trained_steps)
        logger.save()
