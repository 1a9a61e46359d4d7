"""Frames of clips for the page: videos are found by their content, where they were last seen."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rbft.report.gather import GatheredRun
from rbft.runtime.digests import FILE, KEY, default_cache, identity, sample_digest

FRAMES, HEIGHT = 6, 96  # of a clip's film strip, and pixels of a frame


class Videos:
    """Video files by the digest of their content, as scans and runs of this machine have noted it.

    A file that has changed since is not taken. Nothing is read but what the caches say, and 48 KiB
    of a file that is to be shown.

    Args:
        runs: Name the folders of their caches, and may have a manifest of a scan.
        cache: Folder of the cache; None takes $RBFT_CACHE or ~/.cache/rbft.
    """

    def __init__(self, runs: Sequence[GatheredRun], cache: Path | None = None) -> None:
        own = [run.setting("data.init_args.cache_folder") for run in runs]
        folders = [cache or default_cache(), *(Path(one) for one in own if one)]
        self._noted: dict[str, dict[tuple[Any, ...], None]] = {}
        for folder in dict.fromkeys(folders):
            for file in (*folder.glob("scans/*.jsonl"), folder / FILE):
                self._note(file)

    def find(self, digest: str) -> Path | None:
        """A file with this content; None where none is known or it is no more what it was.

        Args:
            digest: As in a run's `clips.json`.
        """
        for key in self._noted.get(digest, ()):
            path, sample = Path(key[0]), key[-1]
            try:
                if identity(path.stat()) == key[1:4] and sample_digest(path) == sample:
                    return path
            except OSError:
                continue
        return None

    def _note(self, file: Path) -> None:
        try:
            lines = file.read_bytes().split(b"\n")
        except OSError:
            return
        for line in filter(bytes.strip, lines):
            try:
                entry = json.loads(line)
                # Of a scan's line the path is `file` and the size `bytes`.
                names = {"path": "file", "size": "bytes"} if "file" in entry else {}
                key = tuple(entry[names.get(name, name)] for name in KEY)
                self._noted.setdefault(entry["digest"], {})[key] = None
            except (ValueError, KeyError, TypeError):
                continue  # cut off, or a file without digest: the page does without its pictures


def clip_frames(
    path: Path, start: float | None, end: float | None
) -> list[tuple[bytes, int, int, float]]:
    """Evenly chosen frames of a clip, as small JPEG pictures.

    Args:
        path: The video.
        start: Seconds at which the clip begins; None is the start of the file.
        end: Seconds at which it ends; None is the end, negative counts from there.

    Returns:
        For each: the picture, width, height, and seconds from the clip's start.

    Raises:
        VideoError: If the file gives no frames.
    """
    from rbft.rationales.page import film_strip
    from rbft.video.packet_index import VideoError, list_frames
    from rbft.video.readers import IndexMismatch, read_pyav

    listing = list_frames(path)
    seconds = listing.seconds
    first = start or 0.0
    last = math.inf if end is None else end if end >= 0 else listing.info.duration + end
    inside = [place for place, when in enumerate(seconds) if first <= when <= last]
    if not inside:
        raise VideoError.of(path, f"has no frame from {first:g} to {last:g} s.")
    places = np.linspace(0, len(inside) - 1, min(FRAMES, len(inside))).round().astype(int)
    wanted = [inside[place] for place in places.tolist()]
    try:
        pictures = list(read_pyav(listing, wanted))
    except IndexMismatch:
        pictures = list(read_pyav(list_frames(path, decode=True), wanted))
    strip = film_strip(np.stack(pictures), height=HEIGHT, count=FRAMES)
    return [
        (one.jpeg, one.width, one.height, seconds[place] - first)
        for one, place in zip(strip, wanted, strict=True)
    ]


def digests_of(runs: Iterable[GatheredRun]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """What runs have noted of their clips, by run and id of the clip."""
    return {
        (run.name, name): clip
        for run in runs
        for clips in run.clips.values()
        for name, clip in clips.items()
    }
