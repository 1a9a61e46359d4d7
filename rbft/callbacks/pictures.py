"""What one looks at in TensorBoard: clips with answers, the confusion matrix, the settings."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import UInt8
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from rbft.analysis.multilabel import PREDICTED
from rbft.callbacks.answer_rows import answer_row
from rbft.callbacks.board import Board
from rbft.clip import Clip
from rbft.inference.classifier import Classified
from rbft.inference.metrics import confusion_figure
from rbft.runtime.fonts import Pen
from rbft.video.sampling import VideoError

FRAMES = 8  # frames shown of a clip
INK, RIGHT, WRONG = (24, 24, 28), (0, 110, 50), (180, 20, 20)
LINES = 24  # of text as high as the picture is wide: legible however small it is shown
LEAST = 11  # pixels of the letters
Line = tuple[str, tuple[int, int, int]]  # a text and its colour


def film_strip(frames: UInt8[Tensor, "frames 3 height width"]) -> UInt8[Tensor, "3 high wide"]:
    """Evenly chosen frames of a clip, four to a row."""
    from torchvision.utils import make_grid

    chosen = torch.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().long()
    return make_grid(frames[chosen], nrow=4, padding=2, pad_value=255)


def captioned(
    picture: UInt8[Tensor, "3 high wide"], lines: Sequence[Line]
) -> UInt8[Tensor, "3 higher wide"]:
    """The picture with lines of text above it, the first one bold.

    What is too long is shortened in its middle.

    Args:
        picture: RGB.
        lines: Texts of any script, with their colours.
    """
    from PIL import Image, ImageDraw
    from torchvision.transforms.functional import pil_to_tensor

    wide = picture.shape[2]
    size = max(LEAST, wide // LINES)
    step, margin = round(1.35 * size), size // 3
    head = Image.new("RGB", (wide, step * len(lines) + margin), "white")
    draw = ImageDraw.Draw(head)
    for number, (text, colour) in enumerate(lines):
        pen = Pen(size, bold=not number)
        shown = pen.shortened(text, wide - 2 * margin)
        pen.draw(draw, (margin, number * step), shown, colour)
    return torch.cat([pil_to_tensor(head), picture], dim=1)


class Pictures(Callback):
    """Writes clips, texts, figures and settings to TensorBoard.

    Args:
        settings: The resolved configuration as YAML.
        hparams: Settings that tell runs apart, for the HParams tab.
        samples: Number of clips shown.
    """

    def __init__(self, settings: str, hparams: dict[str, Any], samples: int = 4) -> None:
        self.settings, self.hparams, self.samples = settings, hparams, samples
        # Clip, whether the answer is right (None where that is unknown), answer, text.
        self.answers: dict[int, tuple[Clip, bool | None, str, str]] = {}

    def _board(self, trainer: Trainer) -> Board | None:
        logger = trainer.logger
        return logger if trainer.is_global_zero and isinstance(logger, Board) else None

    def _show(
        self,
        board: Board,
        module: Any,
        clip: Clip,
        place: str,
        text: str,
        step: int,
        answer: Line | None = None,
    ) -> None:
        """Writes a clip as a picture with id, label and answer, and the text about it."""
        writer, label = board.experiment, _label(module.card.classes, clip)
        try:
            frames = module.data.reader.decode(clip).frames
        except VideoError as error:
            text = f"{text}\n\n{error}"
        else:
            lines = [(clip.id, INK), (f"label: {label}", INK), *([answer] if answer else [])]
            writer.add_image(place, captioned(film_strip(frames), lines), step)
        text = f"**{clip.id}**\n\nlabel: {label}\n\n{text}"
        # File names that are no UTF-8 hold surrogates, which TensorBoard cannot write.
        text = text.encode(errors="backslashreplace").decode()
        writer.add_text(place, text, step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the settings and what is learnt from a few clips."""
        module: Any = pl_module
        board = self._board(trainer)
        if board is None:
            return
        step = trainer.global_step
        board.experiment.add_text("settings", f"```yaml\n{self.settings}\n```", step)
        stage, card = module.stage, module.card
        texts = module.data.rationales("train").texts if stage.needs_rationales else {}
        for number, clip in enumerate(module.data.clips("train")[: self.samples]):
            text = "\n\n".join(
                f"asked: {stage.prompt(card, clip, question)}\n\n"
                f"to answer: {stage.target(card, clip, texts.get(clip.id), question)}"
                for question in range(stage.questions(card))
            )
            self._show(board, module, clip, f"videos/train_{number}", text, step)

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
                classes, clip = module.card.classes, batch.clips[place]
                answer = answer_row(outputs, batch, place, classes)
                found, label = (
                    answer.get(PREDICTED, answer.get("prediction")),
                    clip.class_names(classes),
                )
                said = _said(found)
                if isinstance(outputs, Classified) and "probabilities" in answer:
                    said += f" ({max(answer['probabilities'].values()):.0%})"
                right = None if label is None else found == label
                self.answers[index] = (clip, right, said, answer.get("text", ""))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the confusion matrix, a few clips with the model's answers, and the hparams."""
        module: Any = pl_module
        figures = {k: float(v) for k, v in module.test_metrics.compute().items()}
        several = module.card.several is not None
        confusion = None if several else module.test_metrics.confusion()
        board = self._board(trainer)
        if board is None:
            return
        split, step = module.data.feed.scored_split, module.trained_steps
        if confusion is not None:
            figure = confusion_figure(confusion, module.card.classes)
            board.experiment.add_figure(f"{split}/confusion", figure, step)
        for index, (clip, right, said, text) in sorted(self.answers.items()):
            answer = f"prediction: {said}"
            colour = INK if right is None else RIGHT if right else WRONG
            shown = f"{answer}\n\n{text}"
            place = f"videos/{split}_{index}"
            self._show(board, module, clip, place, shown, step, (answer, colour))
        scores = {f"{split}/{name}": value for name, value in figures.items()}
        board.log_row(self.hparams, scores, step)
        board.save()


def _label(classes: Sequence[str], clip: Clip) -> str:
    found = clip.class_names(classes)
    return "unknown" if found is None else _said(found)


def _said(answer: str | list[str] | None) -> str:
    """A class, or several, as they are shown."""
    if isinstance(answer, list):
        return ", ".join(answer) or "none of the classes"
    return answer or "no class"
