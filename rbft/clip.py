"""One row of a benchmark: a video, or some seconds of one, and what is known about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

ROUNDING = 1e-3  # seconds; less than a frame


@dataclass(frozen=True)
class Clip:
    """One row of a benchmark: a video and what is known about it.

    Attributes:
        id: Unique name within the benchmark.
        path: The video file; it need not exist (the scan says so).
        label: Index into the card's classes, None where it is unknown.
        split: "train", "val" or "test"; any other name is kept but never used.
        reference: Rationale written by a human, where the benchmark has one.
        text: The clip's own text (title, transcript) for prompts that ask for `{text}`.
        start: Seconds from the file's start at which the clip begins, None for the start.
        end: Seconds from the file's start at which it ends; negative counts from the file's end.
        url: Where the file can be had, for the user's own downloader.
        refused: Why the file must not be opened (a link out of the benchmark's folder), else empty.
        labels: Indices of all its classes, in order, where the card lets a clip have several, or
            none; None where it has one (`label`) or they are unknown.
    """

    id: str
    path: Path
    label: int | None
    split: str
    reference: str | None = None
    text: str = ""
    start: float | None = None
    end: float | None = None
    url: str | None = None
    refused: str = ""
    labels: tuple[int, ...] | None = None

    def class_names(self, classes: Sequence[str]) -> str | list[str] | None:
        """The name of its class, or a list of them where it may have several; None if unknown.

        Args:
            classes: Names of the card's classes.
        """
        if self.labels is not None:
            return [classes[label] for label in self.labels]
        return None if self.label is None else classes[self.label]


def interval(start: float | None, end: float | None, duration: float | None) -> tuple[float, float]:
    """Start and end of a segment in its file in seconds, but for a rounding error at its end.

    Two segments of one file show the same where each begins before the other ends.

    Args:
        start: Where it begins; None is the file's beginning.
        end: Where it ends, counted from the file's end where negative; None is the file's end.
        duration: Of the file; where None, the file's end lies at infinity.
    """
    whole = inf if duration is None else duration
    stop = whole if end is None else end
    return start or 0.0, min(whole, stop + whole if stop < 0 else stop) - ROUNDING
