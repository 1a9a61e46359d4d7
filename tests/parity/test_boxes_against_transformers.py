"""Boxes of an open-vocabulary detector are those of transformers' own processing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import pipeline

from rbft.masking.boxes import Box
from rbft.masking.detector import Detector, overlap
from tests.detectors import tiny_dino, tiny_owl

NAMES = ["dog", "trash can"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_owl(tmp_path_factory.mktemp("owl"))


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    drawer = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (10, 3, 56, 84), dtype=torch.uint8, generator=drawer)


@pytest.fixture(scope="module")
def expected(folder: Path, frames: torch.Tensor) -> list[list[dict[str, Any]]]:
    """By transformers' pipeline, from pictures, one at a time."""
    find = pipeline("zero-shot-object-detection", model=str(folder))
    pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]
    return [find(one, candidate_labels=NAMES, threshold=0.3) for one in pictures]


def test_boxes_are_those_of_the_pipeline(folder, frames, expected):
    found = Detector(str(folder), 0.3, 0.25).find(frames, NAMES)
    assert len(found) == len(expected) == 10
    assert sum(map(len, found)) > 15
    height, width = frames.shape[2:]
    for boxes, others in zip(found, expected, strict=True):
        theirs = [theirs_as_ours(one, height, width) for one in others]
        theirs = [one for one in theirs if one is not None]
        # Each is one of the pipeline's, which rounds down to whole pixels.
        for box in boxes:
            assert any(alike(box, other, height, width) for other in theirs)
        # All of the pipeline's that are missing lie upon a surer one.
        for other in theirs:
            if not any(alike(box, other, height, width) for box in boxes):
                surer = [box for box in boxes if (box.score or 0.0) >= (other.score or 0.0)]
                assert any(overlap(box, other) > 0.4 for box in surer)


def theirs_as_ours(found: dict[str, Any], height: int, width: int) -> Box | None:
    """A box of the pipeline; None where it has no area within the frame."""
    x1, y1, x2, y2 = (found["box"][name] for name in ("xmin", "ymin", "xmax", "ymax"))
    edges = (x1 / width, y1 / height, x2 / width, y2 / height)
    return Box.clipped(*edges, found["label"], found["score"])


def alike(one: Box, other: Box, height: int, width: int) -> bool:
    sizes = (width, height) * 2
    pairs = zip(one.edges, other.edges, sizes, strict=True)
    same = (one.label, round(one.score or 0, 4)) == (other.label, round(other.score or 0, 4))
    return same and all(abs(a - b) * size <= 1 for a, b, size in pairs)


def test_the_surest_come_first_one_for_each_object(folder, frames):
    for boxes in Detector(str(folder), 0.0, 0.25).find(frames, NAMES):
        scores = [box.score or 0.0 for box in boxes]
        assert scores == sorted(scores, reverse=True)
        for place, one in enumerate(boxes):
            assert all(overlap(one, other) < 0.5 for other in boxes[:place])


def test_grounding_dino_gives_its_own_boxes_in_any_batch(tmp_path, frames):
    """Those of its own processing, a frame at a time, as shares of the frame."""
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    source = str(tiny_dino(tmp_path / "dino"))
    found = Detector(source, 0.05, 0.05).find(frames, NAMES)
    processor: Any = AutoProcessor.from_pretrained(source)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(source).eval()
    assert sum(map(len, found)) > 10
    for frame, boxes in zip(frames, found, strict=True):
        inputs = processor(images=frame, text="dog. trash can.", return_tensors="pt")
        with torch.inference_mode():
            (expected,) = processor.post_process_grounded_object_detection(
                model(**inputs), threshold=0.05, text_threshold=0.05, target_sizes=[(1, 1)]
            )
        theirs = {
            round(score, 4): tuple(min(max(edge, 0.0), 1.0) for edge in edges)
            for score, edges in zip(
                expected["scores"].tolist(), expected["boxes"].tolist(), strict=True
            )
        }
        for box in boxes:
            assert box.edges == pytest.approx(theirs[round(box.score or 0, 4)], abs=1e-4)
    assert {box.label for boxes in found for box in boxes} & set(NAMES)  # the rest is no word


def test_what_is_no_detector_is_refused(tmp_path, qwen):
    for source in (tmp_path / "none", qwen):
        with pytest.raises(ValueError, match=r"^--detector .* cannot be read as an open-vocab"):
            Detector(str(source), 0.3, 0.25)
