"""What the clips of a benchmark are, by content: what a run's record holds of them."""

from rbft.data.base import VideoDataModule
from rbft.runs.record import SPLITS, ClipRecord, digest


def describe_clips(data: VideoDataModule) -> dict[str, list[ClipRecord]]:
    """The usable clips of each split, in order: id, class, digest of the video, segment, texts.

    Args:
        data: The benchmark; its files are read once, see `VideoDataModule.video_digest`.
    """
    return {
        split: [
            {
                "id": clip.id,
                "label": None if clip.label is None else data.card.classes[clip.label],
                "video": data.video_digest(clip),
                "start": clip.start,
                "end": clip.end,
                "reference": None if clip.reference is None else digest(clip.reference),
                "text": digest(clip.text) if clip.text else None,
            }
            for clip in data.clips(split)
        ]
        for split in SPLITS
    }
