"""Windows that run over a long file: clips of it, at even distances."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rbft.clip import Clip
from rbft.video.frame_settings import FrameSettings
from rbft.video.listings import known_frames
from rbft.video.packet_index import FrameList, VideoError

DIGITS = 6  # of seconds: 3 x 0.1 s is 0.3 s
DRIFT = 0.5  # seconds by which frames may be shown at another time than their number says
LOOKS = 1000  # frames of which that is looked at


@dataclass(frozen=True)
class Windows:
    """At which distances windows begin, and how long they are.

    Attributes:
        every: Seconds from the beginning of one window to that of the next.
        length: Seconds that a window lasts. Longer than `every`, windows overlap; shorter, there
            are gaps.
    """

    every: float
    length: float

    @classmethod
    def given(cls, every: float | None, window: float | None) -> "Windows | None":
        """The windows that the options ask for; None where whole videos are taken.

        Args:
            every: Seconds from one window to the next.
            window: Seconds that one lasts; None is as long as `every`.

        Raises:
            ValueError: If there is nothing but a length.
        """
        if every is not None:
            return cls(every, every if window is None else window)
        if window is not None:
            raise ValueError(
                f"--window {window:g} is how long windows are, and --every, the seconds from one "
                f"to the next, is not given. Add --every {window:g}."
            )
        return None

    def over(self, duration: float) -> Iterator[tuple[float, float]]:
        """Start and end of each window of a file, in seconds.

        The last one ends with the file. Where that leaves less than half of a window, it is left
        out, unless it is the only one; and none begins when the one before it has come to the end.

        Args:
            duration: Seconds that the file lasts.
        """
        number, end = 0, -1.0
        while (start := round(number * self.every, DIGITS)) < duration and end < duration:
            end = min(round(start + self.length, DIGITS), duration)
            if not number or end - start >= self.length / 2:
                yield start, end
            number += 1

    def of(self, clip: Clip, frames: FrameSettings) -> list[Clip]:
        """The windows of a clip's whole file, named by it and their seconds.

        Reads all packets of the file, which then are known to this process and to those that it
        forks.

        Args:
            clip: A whole file.
            frames: How frames are sampled, and so how seconds are counted.

        Returns:
            The clip itself where its file cannot be used: decoding it says what is wrong.
        """
        try:
            info = known_frames(clip.source).info
        except VideoError:
            return [clip]
        if info.truncated and frames.damaged == "error":
            return [clip]
        # As `rbft.video.sampling` counts the seconds of a clip's start and end.
        by_time = frames.sampling == "time" or clip.images is not None
        duration = info.duration if by_time else info.frames / info.fps
        return [
            replace(clip, id=f"{clip.id}_{start:.10g}_{end:.10g}", start=start, end=end)
            for start, end in self.over(duration)
        ]

    def remarks(self, clip: Clip, frames: FrameSettings) -> list[str]:
        """What a person should know about the windows of a file.

        Args:
            clip: See `of`.
            frames: See `of`.
        """
        try:
            listing = known_frames(clip.source)
        except VideoError:
            return []
        found = []
        if listing.images is not None:
            return []
        if listing.packets is None and self.length > self.every:
            found.append(
                f"{clip.path}: its frames are found only by decoding it from its start, once for "
                "each window, since they overlap. Put into another container it is read faster "
                "(ffmpeg -i FILE -c copy FILE.mp4)."
            )
        if frames.sampling == "frame" and _drift(listing) > DRIFT:
            found.append(
                f"{clip.path}: its frame rate varies, and data.sampling frame counts seconds by "
                "the number of the frame. Add --data.sampling time for windows by the time at "
                "which frames are shown."
            )
        return found


def _drift(listing: FrameList) -> float:
    """Seconds by which a frame is shown earlier or later than its number says, at most."""
    places: Sequence[int] = range(0, len(listing.seconds), len(listing.seconds) // LOOKS + 1)
    return max(abs(listing.seconds[at] - at / listing.info.fps) for at in places)
