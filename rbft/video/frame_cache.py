"""Decoded clips on disk, so that each is decoded once and then read."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rbft.video.frame_settings import FrameSettings, determining
from rbft.video.readers import DEFAULT
from rbft.video.sampling import Video, decode_video
from rbft.video.tensor_cache import DiskCache, file_key

# Part of every key: raise it when the same settings begin to give other frames.
VERSION = 2


def clip_key(
    path: Path,
    settings: FrameSettings,
    *facts: Any,
    start: float | None = None,
    end: float | None = None,
) -> str:
    """A key for what is made from a clip's frames.

    Args:
        path: The video file. A file changed since has another key, see `file_key`.
        settings: Which frames, and their size.
        *facts: What else it is made from; whatever JSON can hold.
        start: See `decode_video`.
        end: See `decode_video`.

    Raises:
        OSError: If the file is not there.
        ValueError: If the path cannot be one.
    """
    frames = determining(asdict(settings)) | {"start": start, "end": end}
    # Other readers may convert colours in another way, or not notice that a frame is damaged.
    reader = settings.reader or DEFAULT
    if reader != DEFAULT:
        frames["reader"] = reader
    return file_key(path, VERSION, frames, *facts)


class FrameCache(DiskCache):
    """Decoded clips."""

    suffix = ".clip"
    name = "frame cache"
    otherwise = "clips are decoded every time"

    def get_or_decode(
        self,
        path: Path,
        settings: FrameSettings,
        *,
        start: float | None = None,
        end: float | None = None,
    ) -> Video:
        """The clip, from the folder if it is there, else decoded and put there.

        Args:
            path: The video file.
            settings: Which frames, and their size.
            start: See `decode_video`.
            end: See `decode_video`.

        Raises:
            VideoError: See `decode_video`.
            ValueError: See `decode_video`.
        """
        try:
            key = clip_key(path, settings, start=start, end=end)
        except (OSError, ValueError):
            return decode_video(path, settings, start=start, end=end)  # says what is wrong
        if found := self.read(key):
            frames, facts = found
            return Video(frames, **facts)
        video = decode_video(path, settings, start=start, end=end)
        facts = {"indices": video.indices, "total_frames": video.total_frames, "fps": video.fps}
        self.write(key, video.frames, facts)
        return video
