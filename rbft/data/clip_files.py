"""The video files of a benchmark's clips, as the scan found them; nothing is decoded."""

import logging
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from rbft.clip import Clip
from rbft.data.leaks import SharedVideos, find_shared
from rbft.data.manifest import Manifest, ManifestRow, scan
from rbft.runtime.digests import file_digest
from rbft.video.frame_settings import FrameSettings
from rbft.video.images import images_digest, timed_digest
from rbft.video.sampling import VideoInfo, patch_grid, plan_frames, probe, sample_uneven
from rbft.video.times import PairTimes, pair_times

SCAN_THREADS = 8  # opening a file waits for the disk more than for the processor
log = logging.getLogger(__name__)


class ClipFiles:
    """Which clips have a usable file, what is in it, and which show the same video.

    Args:
        name: The benchmark's name in messages.
        clips: All annotated clips, every split.
        frames: Which frames are taken, and how large.
        cache_folder: Folder of scan results and digests.
        scan_name: Name of the file with the scan's results, without ending.
        on_missing: See `VideoDataModule`.
        min_coverage: See `VideoDataModule`.
        notes: Where to leave what a person should know of unusable clips, if `on_missing` is warn.
    """

    def __init__(
        self,
        name: str,
        clips: Sequence[Clip],
        frames: FrameSettings,
        *,
        cache_folder: Path,
        scan_name: str,
        on_missing: Literal["error", "skip", "warn"],
        min_coverage: float,
        notes: list[str],
    ) -> None:
        self.name, self.clips, self.frames = name, clips, frames
        self.cache_folder, self.scan_name = cache_folder, scan_name
        self.on_missing: Literal["error", "skip", "warn"] = on_missing
        self.min_coverage, self.notes = min_coverage, notes

    @cached_property
    def manifest(self) -> Manifest:
        """The state of every clip's file; opens the files that an earlier scan has not seen."""
        found = self.cache_folder / "scans" / f"{self.scan_name}.jsonl"
        return scan(self.clips, probe, found, workers=SCAN_THREADS)

    @property
    def accepted(self) -> Manifest:
        """The manifest, in which truncated files are as good as others if `damaged` is use."""
        return self.manifest.accept_truncated() if self.frames.damaged == "use" else self.manifest

    @cached_property
    def usable(self) -> set[str]:
        """Ids of the clips that have a usable file, by `on_missing`.

        Raises:
            ValueError: If clips must not be without, or too few have one; names them.
        """
        ids, messages = self.accepted.apply_policy(self.name, self.on_missing, self.min_coverage)
        if self.on_missing == "warn":
            self.notes += messages
        else:
            for message in messages:
                log.info("%s", message)
        return set(ids)

    @cached_property
    def shared(self) -> SharedVideos:
        """Clips that show the same video, in two splits or in one."""
        return find_shared(self.accepted.rows)

    def digest(self, clip: Clip) -> str:
        """Content digest of a clip's whole file, see `rbft.runtime.digests.hash_file`, or images.

        Nothing is read of files that the scan has read.

        Raises:
            OSError: If the file cannot be read.
        """
        row = self._rows.get(clip.id)
        if row is not None and row.path == str(clip.path) and row.digest is not None:
            return row.digest
        if clip.images is not None:
            return images_digest(clip.images, self.cache_folder)
        return file_digest(clip.path, self.cache_folder)

    def content(self, clip: Clip) -> str:
        """What tells a clip's frames from others: `digest`, and when images are shown.

        Raises:
            OSError: If a file cannot be read.
        """
        return timed_digest(self.digest(clip), clip.images)

    def grid(self, clip: Clip) -> tuple[int, int, int]:
        """Frame pairs, patch rows and patch columns of a clip as the model sees it.

        A quarter of the product is the clip's number of video tokens.

        Raises:
            ValueError: If the clip's file is not usable, or a setting is out of range.
        """
        indices, size = self._plan(clip, self._info(clip))
        return patch_grid(len(indices), size, self.frames.side)

    def pair_times(self, clip: Clip) -> PairTimes:
        """When the frame pairs are shown of a clip as the model sees it.

        With `sampling` time up to what the frames' own times, which are not known here, change.

        Raises:
            ValueError: See `grid`.
        """
        info = self._info(clip)
        if clip.images is not None and clip.images.seconds is not None:
            found = sample_uneven(
                clip.images.seconds, info.duration, self.frames, start=clip.start, end=clip.end
            )
            rate = len(found.indices) / found.used * found.fps
            return pair_times(found.indices, found.fps, rate, found.times)
        indices, _ = self._plan(clip, info)
        rate = len(indices) / (indices[-1] - indices[0] + 1) * info.fps
        return pair_times(indices, info.fps, rate)

    def _plan(self, clip: Clip, info: VideoInfo) -> tuple[list[int], tuple[int, int]]:
        return plan_frames(info, self.frames, start=clip.start, end=clip.end)

    def _info(self, clip: Clip) -> VideoInfo:
        """What is known about a clip's file."""
        row = self._rows.get(clip.id)
        if row is None or row.path != str(clip.path):
            return probe(clip.source)
        if row.frames is None or row.fps is None or row.width is None or row.height is None:
            raise ValueError(f"Clip {clip.id} is not usable: {clip.path} {row.reason}.")
        seconds = row.duration or row.frames / row.fps
        return VideoInfo(row.frames, row.fps, row.width, row.height, seconds)

    def patches(self, clip: Clip) -> int:
        """Patches of a clip; 0 where it will turn out not to be decodable."""
        try:
            return math.prod(self.grid(clip))
        except ValueError:
            return 0

    @cached_property
    def _rows(self) -> dict[str, ManifestRow]:
        return {row.id: row for row in self.manifest.rows}
