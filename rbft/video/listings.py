"""Lists of frames of the files that were read last, in memory.

To list the frames of a file takes reading all of it, and the windows of a long recording are clips
of one file.
"""

import time
from pathlib import Path

from rbft.clip import Images
from rbft.runtime.digests import RECENT_NS, identity, sample_digest
from rbft.video.images import list_images, still
from rbft.video.packet_index import FrameList, VideoInfo, list_frames

MOST_FILES = 4
MOST_FRAMES = 4_000_000  # of all lists but the last one's, at 24 bytes each
Key = tuple[str, int, int, int, str]

_lists: dict[Key, FrameList] = {}  # the one that was used last comes last


def probe(source: Path | Images) -> VideoInfo:
    """Frame count, rate and size of a video or of images; decodes as little as will tell.

    Raises:
        VideoError: If a file is missing, empty, no video and no image, too elongated or cannot be
            decoded.
    """
    images = source if isinstance(source, Images) else still(source)
    if images is not None:
        return list_images(images, every=True).info
    assert isinstance(source, Path)
    return list_frames(source).info


def known_frames(source: Path | Images, *, decode: bool = False) -> FrameList:
    """The frames of a video, from memory where the file is what it was, or those of images.

    Args:
        source: The images, or the file. A video is known by its path, size, time of change and
            inode, and by its start, middle and end.
        decode: See `list_frames`; what it gives is then what later calls get.

    Raises:
        VideoError: See `list_frames` and `list_images`.
    """
    images = source if isinstance(source, Images) else still(source)
    if images is not None:
        return list_images(images)
    assert isinstance(source, Path)
    return _known_video(source, decode)


def _known_video(path: Path, decode: bool) -> FrameList:
    key = _key(path)
    if key is None:
        return list_frames(path, decode=decode)
    found = None if decode else _lists.pop(key, None)
    if found is None:
        found = list_frames(path, decode=decode)
        if key != _key(path):  # it changed meanwhile
            return found
    _lists.pop(key, None)
    _lists[key] = found
    while len(_lists) > MOST_FILES or (
        len(_lists) > 1 and sum(one.info.frames for one in _lists.values()) > MOST_FRAMES
    ):
        _lists.pop(next(iter(_lists)), None)
    return found


def _key(path: Path) -> Key | None:
    """What the file is known by; None where it cannot be read, or may change unseen."""
    try:
        status = path.stat()
        if status.st_mtime_ns > time.time_ns() - RECENT_NS:
            return None
        return (str(path.absolute()), *identity(status), sample_digest(path))
    except (OSError, ValueError):  # `list_frames` says what is wrong
        return None
