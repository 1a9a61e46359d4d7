"""Decoded clips on disk, so that each is decoded once."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rbft.clip import Images
from rbft.video.cache_files import CLIP
from rbft.video.frame_settings import FrameSettings, determining
from rbft.video.images import images_key, still
from rbft.video.readers import DEFAULT_READER
from rbft.video.sampling import FrameMask, Video, decode_video
from rbft.video.tensor_cache import DiskCache, content_key, file_key

# Part of every key: to be raised when the same settings give other frames than before.
VERSION = 2


def clip_key(
    source: Path | Images,
    settings: FrameSettings,
    *facts: Any,
    start: float | None = None,
    end: float | None = None,
) -> str:
    """The cache key of a clip's frames, or of what is computed from them.

    Args:
        source: The video file, a still image, or the images of a clip. Where a file has changed
            since, the key is another one, see `file_key`.
        settings: Which frames, and their size.
        *facts: What else the cached tensor depends on, such as the vision tower; as JSON can
            hold it.
        start: See `decode_video`.
        end: See `decode_video`.

    Raises:
        OSError: If the file is not there.
        ValueError: If the path cannot be one.
    """
    frames = determining(asdict(settings)) | {"start": start, "end": end}
    images = source if isinstance(source, Images) else still(source)
    if images is not None:
        return content_key(images_key(images), VERSION, frames, *facts)
    assert isinstance(source, Path)
    # Other readers may convert colours in another way, or not notice that a frame is damaged.
    reader = settings.reader or DEFAULT_READER
    if reader != DEFAULT_READER:
        frames["reader"] = reader
    return file_key(source, VERSION, frames, *facts)


class FrameCache(DiskCache):
    """A `DiskCache` of decoded clips."""

    suffix = CLIP
    name = "frame cache"
    fallback = "clips are decoded every time"

    def get_or_decode(
        self,
        source: Path | Images,
        settings: FrameSettings,
        *,
        start: float | None = None,
        end: float | None = None,
        mask: FrameMask | None = None,
    ) -> Video:
        """The clip's frames, from the cache where they are there, else decoded and put there.

        Args:
            source: See `decode_video`.
            settings: Which frames, and their size.
            start: See `decode_video`.
            end: See `decode_video`.
            mask: See `decode_video`. Masked frames have a key of their own.

        Raises:
            VideoError: See `decode_video`.
            ValueError: See `decode_video`.
        """
        facts = () if mask is None else ({"mask": mask.key},)
        try:
            key = clip_key(source, settings, *facts, start=start, end=end)
        except (OSError, ValueError):  # `decode_video` says what is wrong
            return decode_video(source, settings, start=start, end=end, mask=mask)
        if found := self.read(key):
            frames, metadata = found
            return Video(frames, **metadata)
        video = decode_video(source, settings, start=start, end=end, mask=mask)
        metadata = {"indices": video.indices, "total_frames": video.total_frames, "fps": video.fps}
        metadata |= {"masked": video.masked} if video.masked else {}
        metadata |= {} if video.times is None else {"times": video.times}
        self.write(key, video.frames, metadata)
        return video
