"""What the clips of a benchmark are, by content: what a run's record holds of them."""

from collections.abc import Iterable
from typing import Any

from rbft.clip import Clip
from rbft.data.base import VideoDataModule
from rbft.data.rationales import about
from rbft.runs.record import SPLITS, ClipRecord, digest
from rbft.stages import Stage


def describe_clips(data: VideoDataModule) -> dict[str, list[ClipRecord]]:
    """The usable clips of each split, in order: id, class, digest of the video, segment, texts.

    The class is a list of them where a clip may have several. Training clips also have the shares
    of the votes, where training weighs its loss by them.

    Args:
        data: The benchmark; its files are read once, see `ClipFiles.digest`.
    """
    return {
        split: [
            {
                "id": clip.id,
                "label": clip.class_names(data.card.classes),
                "video": data.files.content(clip),
                "start": clip.start,
                "end": clip.end,
                "reference": None if clip.reference is None else digest(clip.reference),
                "text": digest(clip.text) if clip.text else None,
                **_votes(data, clip),
            }
            for clip in data.clips(split)
        ]
        for split in SPLITS
    }


def _votes(data: VideoDataModule, clip: Clip) -> dict[str, list[float]]:
    """The shares of the votes, where they decide what is learnt."""
    if not data.soft_labels or clip.split != "train" or clip.votes is None:
        return {}
    return {"votes": clip.soft_label(len(data.card.classes))}


def about_clips(
    data: VideoDataModule, clips: Iterable[Clip], stage: Stage
) -> dict[str, dict[str, Any]]:
    """What texts that answer a stage's prompt are about, by clip id, see `rationales.about`.

    Args:
        data: The benchmark, with the card of the prompt.
        clips: Clips of it.
        stage: What is asked about them.
    """
    return {
        clip.id: about(
            data.files.content(clip), clip.start, clip.end, stage.prompt(data.card, clip)
        )
        for clip in clips
    }
