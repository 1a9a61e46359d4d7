"""What a test masks, as an experiment file has it under `data.masking`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from rbft.masking.box_file import BoxFile
from rbft.masking.clip_mask import ClipMask, Kind
from rbft.masking.control import Way
from rbft.masking.fill import FillName
from rbft.runs.record import digest
from rbft.runtime.ranges import check_ranges

# Settings that decide which frames of a video are taken.
SAMPLING = ("fps", "num_frames", "min_frames", "max_frames", "sampling")
NAMED = 3  # clips that a message names
MASKING = "masking"  # in results: what was masked


@dataclass(frozen=True)
class Masking:
    """Masks key objects in the scored clips, or as much of anything else (Table 5).

    Args:
        boxes: Box file, as python -m rbft mask leaves it.
        kind: objects masks what is in the boxes; random as many pixels elsewhere in the same
            frame, in the objects' shapes where there is room for them.
        fill: What is drawn there, before frames are resized: constant is mid-grey, blur a Gaussian
            blur with a standard deviation of 1/24 of the shorter side.
        repeats: How many draws of the random control are scored.
        seed: Of the random control.
        repeat: The one draw that is scored; null scores all.
    """

    boxes: Path = Path()
    kind: Kind = "objects"
    fill: FillName = "constant"
    repeats: int = 5
    seed: int = 0
    repeat: int | None = None

    def __post_init__(self) -> None:
        if self.boxes == Path():
            raise ValueError(
                "data.masking needs data.masking.boxes, the box file that python -m rbft mask "
                "leaves. Add --data.masking.boxes FILE."
            )
        check_ranges("data.masking.", vars(self))
        if self.repeat is not None and self.repeat >= self.repeats:
            raise ValueError(
                f"data.masking.repeat ({self.repeat}) must be below data.masking.repeats "
                f"({self.repeats}); draws are counted from 0."
            )

    @property
    def each(self) -> list["Masking"]:
        """What is scored, one after the other: the objects, or each draw of the control."""
        if self.kind == "objects":
            return [replace(self, repeat=None)]
        draws = range(self.repeats) if self.repeat is None else [self.repeat]
        return [replace(self, repeat=draw) for draw in draws]

    @property
    def name(self) -> str:
        """What it is called in file names and titles, such as `objects` or `random2`."""
        return self.kind if self.repeat is None else f"{self.kind}{self.repeat}"


@dataclass(frozen=True)
class Masks:
    """The masks of clips, from the box file of the settings.

    Attributes:
        masking: The settings.
    """

    masking: Masking

    @cached_property
    def file(self) -> BoxFile:
        """The box file.

        Raises:
            ValueError: If it is not there or damaged.
        """
        path = self.masking.boxes
        if not path.is_file():
            raise ValueError(
                f"The box file {path} (data.masking.boxes) does not exist. Have it written: "
                "python -m rbft mask with the same --config."
            )
        return BoxFile(path)

    def of(self, clip: str, video: str) -> ClipMask:
        """The masks of a clip.

        Args:
            clip: Its id.
            video: Digest of its video.
        """
        one = self.masking
        boxes = self.file.boxes(video)
        return ClipMask(clip, boxes, one.kind, one.fill, one.repeat or 0, one.seed)

    def determining(self, videos: Iterable[str]) -> dict[str, Any]:
        """What determines the masks of a split.

        Args:
            videos: Digests of the split's videos.
        """
        one, boxes = self.masking, digest(self.content(videos))
        made: dict[str, Any] = {"kind": one.kind, "boxes": boxes, "fill": one.fill}
        return made | ({"repeat": one.repeat, "seed": one.seed} if one.kind == "random" else {})

    def content(self, videos: Iterable[str]) -> dict[str, Any]:
        """All boxes of videos, as JSON can hold them.

        Args:
            videos: Their digests.
        """
        return {
            video: {
                str(frame): [box.as_list() for box in boxes]
                for frame, boxes in sorted(self.file.boxes(video).items())
            }
            for video in sorted(set(videos))
        }

    def check(self, clips: Mapping[str, str], split: str, frames: Mapping[str, Any]) -> None:
        """Refuses to score clips about which the box file says nothing, before a model is loaded.

        Args:
            clips: Digest of the video of each clip to score, by id.
            split: Their split.
            frames: The frame settings, by name.

        Raises:
            ValueError: Naming some of the clips, or the settings that differ.
        """
        path = self.masking.boxes
        lacking = [
            name
            for name, video in clips.items()
            if not self.file.boxes(video) and "error" not in self.file.whole(video)
        ]
        if lacking:
            raise ValueError(
                f"The box file {path} has no boxes of {len(lacking)} of the {len(clips)} {split} "
                f"clips (first: {', '.join(lacking[:NAMED])}). Run python -m rbft mask with the "
                f"same --config{'' if split == 'test' else f' and --split {split}'}; it goes on "
                "where it stopped."
            )
        before = self.file.sidecar().get("frames")
        changed = [n for n in SAMPLING if before is not None and before.get(n) != frames.get(n)]
        if changed:
            said = ", ".join(f"{n}: {(before or {}).get(n)} -> {frames.get(n)}" for n in changed)
            raise ValueError(
                f"The boxes in {path} were found in other frames than those that are scored "
                f"({said}). Set data to what it was, or run python -m rbft mask with another "
                "--output."
            )


def summarise(reports: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """What was masked in a split, from what was masked in each clip.

    Args:
        reports: Id of each decoded clip, and its report by `rbft.masking.clip_mask.Painter`.

    Returns:
        `area` and `objects_area`: share of the pixels masked and on objects, mean over clips;
        `area_ratio`: masked pixels for each on an object; `overlap`: share of the masked pixels
        that are on objects; `clips_masked`: clips with any mask; `frames`: how many have no object
        (empty), shapes, cells, or too little room (short); `unmatched`: ids of the clips with a
        frame of the last kind, where less was masked than the objects take.
    """
    own = [report for _, report in reports]

    def total(name: str) -> int:
        return sum(report.get(name, 0) for report in own)

    def mean(name: str) -> float | None:
        shares = [report[name] / report["pixels"] for report in own]
        return round(fmean(shares), 6) if shares else None

    def ratio(a: str, b: str) -> float | None:
        return round(total(a) / total(b), 6) if total(b) else None

    return {
        "area": mean("masked"),
        "objects_area": mean("objects"),
        "area_ratio": ratio("masked", "objects"),
        "overlap": ratio("overlap", "masked"),
        "clips_masked": sum(report["masked"] > 0 for report in own),
        "frames": {name: total(name) for name in get_args(Way)},
        "unmatched": [name for name, report in reports if report.get("short")],
    }
