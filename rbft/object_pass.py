"""The backbone is asked for names of objects, or for boxes in single frames."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rbft.backbone_module import BackboneModule
from rbft.build import Experiment, build
from rbft.clip import Clip
from rbft.module import RBFTModule
from rbft.rationale_module import RationaleModule

Size = tuple[int, int]  # height and width of the frames as the model saw them, in pixels
# Is given a clip's id, what the model wrote about it, how large its frames were, and what could not
# be decoded, which is empty where all is well.
Take = Callable[[str, str, Size, str], None]


class TextTaker(Callback):
    """Hands on each text as it comes.

    Args:
        take: What it is handed to.
    """

    def __init__(self, take: Take) -> None:
        self.take = take

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Hands on the batch's texts before the next one begins."""
        (written,) = outputs
        assert isinstance(pl_module, BackboneModule)
        patch = pl_module.config.vision_config.patch_size
        for clip, text, grid, weight, error in zip(
            batch.clips,
            written.texts,
            batch.video["video_grid_thw"].tolist(),
            batch.weight.tolist(),
            batch.errors,
            strict=True,
        ):
            if weight:
                size = grid[1] * patch, grid[2] * patch
                self.take(clip.id, text, size, error)


def single_frame(clip: Clip, frame: int, fps: float) -> Clip:
    """One frame of a clip's file as a clip, which shows it twice: a pair, as of a still picture.

    Args:
        clip: The clip.
        frame: Number of the frame in the file.
        fps: Frames per second of the file.
    """
    name = f"{clip.id} frame {frame}"
    if clip.images is not None:
        return Clip(name, clip.images.files[frame], None, "predict")
    start, end = ((frame + side) / fps for side in (-0.25, 0.25))
    return Clip(name, clip.path, None, "predict", start=max(0.0, start), end=end)


def ask_backbone(
    experiment: Experiment,
    questions: Mapping[str, str],
    clips: Sequence[Clip],
    title: str,
    take: Take,
) -> None:
    """Puts a question of its own about each clip to the backbone, on one device.

    Args:
        experiment: The settings.
        questions: What is asked about each clip, by its id.
        clips: The clips.
        title: What the progress bar says.
        take: Is given each answer as it comes.
    """
    asked = [replace(clip, text=questions[clip.id], split="predict") for clip in clips]
    alone = experiment.changed(trainer__devices=1, trainer__num_nodes=1, trainer__strategy="auto")

    def module(model: RBFTModule) -> RationaleModule:
        card = replace(model.card, prompts={**model.card.prompts, "rationale": "{text}"})
        return RationaleModule(model.loader, [card], model.max_new_tokens, packing=model.packing)

    feed = {"predict_clips": asked}
    build(alone, "rationale", None, title, [TextTaker(take)], feed=feed, module=module).predict()
