"""Clips of a split as examples: decoded, with rationale, or with another in their place."""

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Dataset

from rbft.clip import Clip
from rbft.data.sampler import SampleSlot
from rbft.video.feature_cache import EncodedVideo
from rbft.video.sampling import Video, VideoError

REPLACEMENTS = 10  # clips that are tried in the place of one that cannot be decoded


@dataclass(frozen=True)
class Supervision:
    """What a clip is taught, without its frames.

    Attributes:
        clip: The clip.
        rationale: Its rationale, None where none is needed.
        cut: Whether the rationale was cut off at the limit of tokens when it was written.
        soft_label: Probability of each class, where the stage learns them; else None.
        turn: Which of the stage's turns it is taught in, see `rbft.stages.Stage.turns`.
    """

    clip: Clip
    rationale: str | None
    cut: bool = False
    soft_label: Sequence[float] | None = None
    turn: int = 0


@dataclass(frozen=True)
class Example:
    """A clip as the collator takes it: decoded, with its rationale and its place in the batch.

    Attributes:
        clip: The clip.
        video: Its frames, or what the vision tower made of them; nothing but black where they
            cannot be decoded and are not replaced.
        rationale: Its rationale, None where none is asked for.
        draw: Its place in the batch.
        error: What could not be decoded, empty where all is well.
        key: Under which the vision tower's output is kept; empty where it is not.
        cut: Whether the rationale was cut off at the limit of tokens when it was written.
        soft_label: Probability of each class, where the stage learns them; else None.
    """

    clip: Clip
    video: Video | EncodedVideo
    rationale: str | None
    draw: SampleSlot
    error: str = ""
    key: str = ""
    cut: bool = False
    soft_label: Sequence[float] | None = None

    @property
    def supervision(self) -> Supervision:
        """What it is taught."""
        return Supervision(self.clip, self.rationale, self.cut, self.soft_label, self.draw.turn)


def replacements(clips: Sequence[Clip], index: int, needed: Mapping[str, Any] | None) -> list[int]:
    """Indices of the clips that are tried, in order, in the place of one that cannot be decoded.

    They are the next ones of its class, or with the same classes, that have what is needed, such as
    a rationale; where clips may have several classes, then the next ones of any.

    Args:
        clips: The clips of the split.
        index: The clip that needs another in its place.
        needed: What clips must have, by id; None where nothing is needed.
    """
    following = [(index + step) % len(clips) for step in range(1, len(clips))]
    lost = clips[index]
    if lost.labels is not None:  # few share the very same classes
        following.sort(key=lambda place: clips[place].labels != lost.labels)
    same = (
        place
        for place in following
        if clips[place].label == lost.label and (needed is None or clips[place].id in needed)
    )
    return list(islice(same, REPLACEMENTS))


def no_picture(side: int) -> Video:
    """A black pair of frames, of one token.

    Args:
        side: Pixels per side of a token.
    """
    return Video(torch.zeros(2, 3, side, side, dtype=torch.uint8), [0, 1], 2, 1.0)


class ClipDataset(Dataset[Example]):
    """Clips of one split; an item is asked for by its `SampleSlot`.

    A clip that cannot be decoded, although the scan could open its file, is named in the example's
    `error`. In training the next clip of its class takes its place; elsewhere the example counts
    as unanswered.

    Args:
        clips: The clips of the split.
        load: Gives a clip's frames or features, and the key of its features.
        rationales: Rationale by id; None where none is asked for.
        answer_tokens: Answer tokens of each clip in training, for each turn of the stage; None
            elsewhere. Those of a clip that lacks something are those of the clip that takes its
            place, see `replacements`.
        cut: Ids of the clips whose rationale was cut off when it was written.
        broken: Why clips have no rationale that can be decoded, by id: theirs breaks
            `data.rationale_rules`, or none leads to their class. They are replaced in training like
            clips that cannot be decoded.
        read_in: For each turn of the stage whether it needs rationales.
        soft_labels: Probability of each class by id; None where none are asked for.
        side: Pixels per side of a token, the size of what stands for a clip that cannot be decoded.
    """

    def __init__(
        self,
        clips: list[Clip],
        load: Callable[[Clip], tuple[Video | EncodedVideo, str]],
        rationales: Mapping[str, str] | None,
        answer_tokens: Sequence[Sequence[int | float]] | None = None,
        cut: Set[str] = frozenset(),
        broken: Mapping[str, str] | None = None,
        read_in: Sequence[bool] = (True,),
        soft_labels: Mapping[str, Sequence[float]] | None = None,
        side: int = 28,
    ) -> None:
        self.side = side
        self.clips, self.load, self.rationales = clips, load, rationales
        self.answer_tokens, self.cut, self.broken = answer_tokens, cut, broken or {}
        self.read_in, self.soft_labels = read_in, soft_labels

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, draw: SampleSlot) -> Example:
        try:
            return self._example(draw)
        except VideoError as error:
            if self.answer_tokens is not None:
                return self._replacement(draw, self.answer_tokens[draw.turn], error)
            clip = self.clips[draw.index]
            rationale = None if self.rationales is None else self.rationales.get(clip.id, "")
            cut = clip.id in self.cut
            return Example(clip, no_picture(self.side), rationale, draw, str(error), cut=cut)

    def _needed(self, draw: SampleSlot) -> Mapping[str, Any] | None:
        """What a clip must have besides its video, by id; None where nothing is needed."""
        return self.rationales if self.read_in[draw.turn] else self.soft_labels

    def _example(self, draw: SampleSlot) -> Example:
        clip, needed = self.clips[draw.index], self._needed(draw)
        if needed is not None and clip.id not in needed:
            lost = "could not be decoded when rationales were written."
            raise VideoError.of(clip.path, self.broken.get(clip.id, lost))
        rationale = None if self.rationales is None else self.rationales.get(clip.id)
        video, key = self.load(clip)
        soft = None if self.soft_labels is None else self.soft_labels[clip.id]
        cut = clip.id in self.cut
        return Example(clip, video, rationale, draw, key=key, cut=cut, soft_label=soft)

    def _replacement(
        self, draw: SampleSlot, tokens: Sequence[int | float], error: VideoError
    ) -> Example:
        """The next clip of the same class that can be decoded, in the place of another.

        Its weight is such that its answer counts as many tokens as the other's: what the sampler
        counted in the global batch, the loss's denominator, stays exact.
        """
        lost = self.clips[draw.index]
        same = replacements(self.clips, draw.index, self._needed(draw))
        for index in same:
            weight = draw.weight * tokens[draw.index] / tokens[index]
            with suppress(VideoError):
                example = self._example(replace(draw, index=index, weight=weight))
                note = f"{error} In training, clip {example.clip.id} takes the place of {lost.id}."
                return replace(example, error=note)
        tried = ", ".join(self.clips[index].id for index in same) or "none"
        raise ValueError(
            f"{error} No other clip can take the place of {lost.id}: the next ones of its class "
            f"cannot be decoded either ({tried}). Mend or remove these files."
        )
