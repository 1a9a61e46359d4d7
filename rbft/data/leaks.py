"""The same video in two splits, or twice in one: by content and seconds, not by name."""

import csv
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from rbft.clip import interval
from rbft.data.manifest import OK, ManifestRow

NAMED = 3  # pairs that a message names


@dataclass(frozen=True)
class SharedVideos:
    """Clips that show the same: files of the same content, and seconds that overlap.

    Attributes:
        leaks: For each test clip that shows what a training or validation clip shows: one such
            clip, and the test clip.
        held_out: For each validation clip that shows what a training clip shows: one such clip, and
            the validation clip.
        repeats: For each clip that shows what an earlier one of its split shows: that one, and the
            clip.
        apart: Number of test clips that are other seconds of a file of training or validation.
    """

    leaks: tuple[tuple[ManifestRow, ManifestRow], ...]
    held_out: tuple[tuple[ManifestRow, ManifestRow], ...]
    repeats: tuple[tuple[ManifestRow, ManifestRow], ...]
    apart: int

    @property
    def pairs(self) -> tuple[tuple[ManifestRow, ManifestRow], ...]:
        """All pairs, those of two splits first."""
        return self.leaks + self.held_out + self.repeats

    def leak_message(self, benchmark: str, clips: int) -> str:
        """What is to be said of the leaks, or nothing where there are none.

        Args:
            benchmark: Its name.
            clips: Usable test clips.
        """
        if not self.leaks:
            return ""
        return (
            f"{len(self.leaks)} of {clips} test clips of {benchmark} show what a training or "
            f"validation clip shows, so they test what was learnt by heart ({named(self.leaks)})."
        )

    def notes(self, benchmark: str) -> list[str]:
        """What is to be said of the rest."""
        said = []
        if self.held_out:
            said.append(
                f"{len(self.held_out)} validation clips of {benchmark} show what a training clip "
                f"shows ({named(self.held_out)}): the validation loss is too low."
            )
        if self.repeats:
            said.append(
                f"{len(self.repeats)} clips of {benchmark} show what another clip of their split "
                f"shows ({named(self.repeats)}); each counts for itself."
            )
        if self.apart:
            said.append(
                f"{self.apart} test clips of {benchmark} are other seconds of a file that has "
                "training or validation clips too. They count as different clips."
            )
        return said

    def save(self, path: Path) -> None:
        """Writes all pairs as CSV: split, id and file of either clip."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
            writer = csv.writer(stream)
            writer.writerow(["split", "id", "path", "same_split", "same_id", "same_path"])
            for one, other in self.pairs:
                writer.writerow([other.split, other.id, other.path, one.split, one.id, one.path])


def find_shared(rows: Iterable[ManifestRow]) -> SharedVideos:
    """Looks for clips that show the same video; only usable clips count.

    Args:
        rows: Of a manifest, with content digests.
    """
    files: dict[str, dict[str, list[ManifestRow]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.status == OK and row.digest is not None:
            files[row.digest][row.split].append(row)
    leaks, held_out, repeats, apart = [], [], [], 0
    for splits in files.values():
        seen = splits.get("train", []) + splits.get("val", [])
        test = splits.get("test", [])
        pairs = overlaps(seen, test)
        leaks += pairs
        apart += len(test) - len(pairs) if seen else 0
        held_out += overlaps(splits.get("train", []), splits.get("val", []))
        for split in ("train", "val", "test"):
            repeats += _repeats(splits.get(split, []))
    return SharedVideos(tuple(leaks), tuple(held_out), tuple(repeats), apart)


def overlaps(
    ones: Sequence[ManifestRow], others: Sequence[ManifestRow]
) -> list[tuple[ManifestRow, ManifestRow]]:
    """For each of the others that overlaps one: that one, and the other.

    Args:
        ones: Clips of one file.
        others: Other clips of the same file.
    """
    ordered = sorted(ones, key=seconds)
    starts = [seconds(row)[0] for row in ordered]
    # Of the clips up to each, the one that ends last.
    last = list(accumulate(ordered, lambda *pair: max(pair, key=_end)))
    found = []
    for other in others:
        start, end = seconds(other)
        before = bisect_left(starts, end)  # clips that begin before it ends
        if before and _end(last[before - 1]) > start:
            found.append((last[before - 1], other))
    return found


def seconds(row: ManifestRow) -> tuple[float, float]:
    """Start and end of a clip in its file, see `interval`."""
    return interval(row.start, row.end, row.duration)


def named(pairs: Sequence[tuple[ManifestRow, ManifestRow]]) -> str:
    """The first pairs, for a message."""
    shown = [
        f"{other.split} {other.id} ({_place(other)}) = {one.split} {one.id} ({_place(one)})"
        for one, other in pairs[:NAMED]
    ]
    return "first: " + ", ".join(shown) if len(pairs) > NAMED else ", ".join(shown)


def _repeats(rows: Sequence[ManifestRow]) -> list[tuple[ManifestRow, ManifestRow]]:
    """For each clip that overlaps one that begins before it: that one, and the clip."""
    found, last = [], None
    for row in sorted(rows, key=seconds):
        if last is not None and _end(last) > seconds(row)[0]:
            found.append((last, row))
        last = row if last is None else max(last, row, key=_end)
    return found


def _end(row: ManifestRow) -> float:
    return seconds(row)[1]


def _place(row: ManifestRow) -> str:
    if row.start is None and row.end is None:
        return row.path
    end = "the end" if row.end is None else f"{row.end:g} s"
    return f"{row.path} from {row.start or 0:g} s to {end}"
