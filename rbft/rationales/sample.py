"""One rationale as it was written; what filters, selection, checks and the page take."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rbft.runs.folder import TOLD

# How a text ended: with the turn, at the limit of tokens, or it could not begin.
STOPPED, CUT, UNDECODABLE = "stop", "length", "undecodable"


@dataclass(frozen=True)
class Sample:
    """One of the rationales that were written about a clip.

    Attributes:
        clip: The clip's id.
        text: The rationale.
        label: The clip's class as an index into the card's classes, None where it is unknown.
        finish: How the text ended, as in the rationale file: "stop", "length", ...
        tokens: Its length in the writer's tokens, None where nobody counted them.
        number: Which of the K samples of its clip it is.
        video: Digest of the video's content, so that clips that show the same are known; empty
            where it is unknown.
        label_conditioned: Whether its writer was told the clip's label.
    """

    clip: str
    text: str
    label: int | None = None
    finish: str = STOPPED
    tokens: int | None = None
    number: int = 0
    video: str = ""
    label_conditioned: bool = False

    @property
    def group(self) -> str:
        """What all clips of the same video have in common."""
        return self.video or self.clip

    @classmethod
    def of(cls, record: Mapping[str, Any], label: int | None) -> "Sample":
        """The sample of a line of the rationale file.

        Args:
            record: The line; see `rbft.data.rationales`. `sample` and `label_conditioned` count
                where they stand in it.
            label: The class of its clip.
        """
        return cls(
            clip=record["id"],
            text=record["rationale"],
            label=label,
            finish=record["finish"],
            tokens=record["tokens"],
            number=record.get("sample", 0),
            video=record.get("video") or "",
            label_conditioned=record.get(TOLD, False),
        )


def samples_of(
    records: Iterable[Mapping[str, Any]], labels: Mapping[str, int | None]
) -> list[Sample]:
    """The samples of the lines of a rationale file, without those of undecodable videos.

    Args:
        records: The lines.
        labels: Class by clip id.

    Raises:
        ValueError: If a line is about a clip that has no entry in `labels`.
    """
    written = [record for record in records if record["finish"] != UNDECODABLE]
    strangers = [record["id"] for record in written if record["id"] not in labels]
    if strangers:
        raise ValueError(
            f"{len(strangers)} of {len(written)} rationales are about clips that were not asked "
            f"for (first: {strangers[0]}). Pass only lines about the clips of the split."
        )
    return [Sample.of(record, labels[record["id"]]) for record in written]


def by_clip(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Samples of each clip in the order of their numbers; clips as they first appear.

    Raises:
        ValueError: If a clip has two samples of the same number.
    """
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.clip, []).append(sample)
    for clip, ones in found.items():
        ones.sort(key=lambda sample: sample.number)
        numbers = [sample.number for sample in ones]
        if len(set(numbers)) < len(numbers):
            raise ValueError(
                f"Clip {clip} has two rationales with the same sample number (numbers: {numbers}). "
                "Give each sample of a clip a number of its own (key `sample` of the line)."
            )
    return found
