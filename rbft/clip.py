"""One row of a benchmark: a video, or some seconds of one, and what is known about it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from pathlib import Path

ROUNDING = 1e-3  # seconds; less than a frame
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class Images:
    """Images that are the frames of a clip, in their order.

    Attributes:
        path: What the clip is called: their folder, or the first of a list.
        files: The images.
        fps: Images per second; the average where `seconds` says when each is shown.
        seconds: When each is shown, after the first; None where they follow each other evenly.
    """

    path: Path
    files: tuple[Path, ...]
    fps: float
    seconds: tuple[float, ...] | None = None

    @classmethod
    def timed(cls, path: Path, files: Sequence[Path], times: Sequence[float]) -> "Images":
        """Images that are shown at some times.

        Args:
            path: See above.
            files: At least one image.
            times: The second of each, from anywhere on.

        Raises:
            ValueError: If they are not as many as the images, or do not ascend.
        """
        if len(times) != len(files):
            raise ValueError(f"{len(times)} times for {len(files)} images; each image needs one.")
        for number, (one, after) in enumerate(pairwise(times), 1):
            if not after > one:
                raise ValueError(
                    f"its times must ascend, but that of image {number + 1} is {after:g} s, behind "
                    f"{one:g} s."
                )
        seconds = tuple(float(time - times[0]) for time in times)
        if len(files) == 1:
            return cls(path, tuple(files), 1.0)
        # Rounded: 37 images to 3.6 s are 10 a second, and a part from 0.5 s on begins with frame 5.
        fps = float(f"{(len(files) - 1) / seconds[-1]:.9g}")
        even = all(abs(at - n / fps) <= ROUNDING for n, at in enumerate(seconds))
        return cls(path, tuple(files), fps, None if even else seconds)

    @property
    def name(self) -> str:
        """The path, of a list with what tells it from others that begin with the same image."""
        if len(self.files) == 1 or self.path != self.files[0]:
            return str(self.path)
        text = json.dumps([str(file) for file in self.files])
        more = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
        return f"{self.path} and {len(self.files) - 1} more ({more})"


@dataclass(frozen=True)
class Clip:
    """One row of a benchmark: a video and what is known about it.

    Attributes:
        id: Unique name within the benchmark.
        path: The video file, or a still image; it need not exist (the scan says so). Of a clip of
            several images, their folder or the first.
        label: Index into the card's classes, None where it is unknown.
        split: "train", "val" or "test"; any other name is kept but never used.
        reference: Rationale written by a human, where the benchmark has one.
        text: The clip's own text (title, transcript) for prompts that ask for `{text}`.
        start: Seconds from the file's start at which the clip begins, None for the start.
        end: Seconds from the file's start at which it ends; negative counts from the file's end.
        url: Where the file can be had, for the user's own downloader.
        refused: Why the file must not be opened (a link out of the benchmark's folder), else empty.
        images: The images that are its frames; None where it is a file.
        labels: Indices of all its classes, in order, where the card lets a clip have several, or
            none; None where it has one (`label`) or they are unknown.
        votes: Annotators' votes for each class of the card, as counts or as shares; None where the
            annotations have none.
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
    images: Images | None = None

    @property
    def source(self) -> Path | Images:
        """Where its frames are."""
        return self.path if self.images is None else self.images

    @property
    def name(self) -> str:
        """What its file or its images are called, alike for no others."""
        return str(self.path) if self.images is None else self.images.name

    labels: tuple[int, ...] | None = None
    votes: tuple[float, ...] | None = None

    def class_names(self, classes: Sequence[str]) -> str | list[str] | None:
        """The name of its class, or a list of them where it may have several; None if unknown.

        Args:
            classes: Names of the card's classes.
        """
        if self.labels is not None:
            return [classes[label] for label in self.labels]
        return None if self.label is None else classes[self.label]

    def soft_label(self, classes: int) -> list[float]:
        """The share of the votes that each class has; all of it has the label where none are known.

        Args:
            classes: Number of classes.
        """
        if self.votes is None:
            return [float(index == self.label) for index in range(classes)]
        total = sum(self.votes)
        return [count / total for count in self.votes]


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
