"""An open-vocabulary detector of transformers: finds objects of given names in frames."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from rbft.masking.boxes import Box

FRAMES = 8  # that are looked at at a time
SAME = 0.5  # intersection over union from which on two boxes are of one object


class Detector:
    """OWLv2, OWL-ViT, Grounding DINO or MM-Grounding-DINO, from a folder or a model hub.

    Args:
        source: Folder or hub id.
        threshold: Least score of a box, 0 to 1.
        text_threshold: Least score of the words that a box is about, for Grounding DINO.

    Raises:
        ValueError: If there is no such detector.
    """

    def __init__(self, source: str, threshold: float, text_threshold: float) -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        try:
            self.processor: Any = AutoProcessor.from_pretrained(source)
            model = AutoModelForZeroShotObjectDetection.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"--detector {source} cannot be read as an open-vocabulary detector of "
                f"transformers: {str(error).splitlines()[0]} Give the folder or hub id of an OWLv2 "
                "or (MM-)Grounding-DINO model."
            ) from error
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = model.eval().to(device)
        self.settings = {"threshold": threshold}
        read = self.processor.post_process_grounded_object_detection
        if "text_threshold" in inspect.signature(read).parameters:
            self.settings["text_threshold"] = text_threshold

    @torch.inference_mode()
    def find(
        self, frames: UInt8[Tensor, "frames 3 height width"], names: Sequence[str]
    ) -> list[list[Box]]:
        """Boxes in each frame, the surest first, one for each object.

        Args:
            frames: The frames.
            names: What to look for.
        """
        found: list[list[Box]] = []
        for some in frames.split(FRAMES):
            inputs = self.processor(
                images=list(some),
                text=[list(names)] * len(some),
                return_tensors="pt",
                padding=True,
            ).to(self.model.device)
            sizes = [tuple(frames.shape[2:])] * len(some)
            results = self.processor.post_process_grounded_object_detection(
                self.model(**inputs),
                target_sizes=sizes,
                text_labels=[list(names)] * len(some),
                **self.settings,
            )
            found += [_boxes(one, names, *frames.shape[2:]) for one in results]
        return found


def _boxes(result: Any, names: Sequence[str], height: int, width: int) -> list[Box]:
    """A detector's boxes in pixels as ours; what lies outside of the frame is none."""
    made = []
    for edges, score, label in zip(
        result["boxes"].tolist(), result["scores"].tolist(), result["text_labels"], strict=True
    ):
        x1, y1, x2, y2 = edges
        name = next((one for one in names if _about(str(label), one)), str(label))
        box = Box.clipped(x1 / width, y1 / height, x2 / width, y2 / height, name, score)
        made += [] if box is None else [box]
    return distinct(made)


def _about(label: str, name: str) -> bool:
    """Whether a label is of a name: Grounding DINO's are of some of its tokens, or of several."""
    label, name = label.lower().strip(), name.lower()
    return bool(label) and (name in label or label in name)


def distinct(boxes: Sequence[Box]) -> list[Box]:
    """The surest box of each object, by non-maximum suppression, the surest first.

    Args:
        boxes: All boxes of a frame.
    """
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda one: -(one.score or 0.0)):
        if all(overlap(box, other) < SAME for other in kept):
            kept.append(box)
    return kept


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    wide = min(one.x2, other.x2) - max(one.x1, other.x1)
    high = min(one.y2, other.y2) - max(one.y1, other.y1)
    common = max(wide, 0.0) * max(high, 0.0)
    areas = [(box.x2 - box.x1) * (box.y2 - box.y1) for box in (one, other)]
    return common / (sum(areas) - common)
