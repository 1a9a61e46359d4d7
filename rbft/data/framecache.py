"""A folder of decoded clips, so that each is decoded once and then read.

One file per clip: a header that can be verified, then the frames, which are mapped into memory.
Files appear whole or not at all (written under another name, then renamed) and are never changed,
so any number of processes may read, write and remove them at once.
"""

import hashlib
import json
import logging
import os
import struct
import tempfile
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rbft.data.video import Video, decode_video

log = logging.getLogger(__name__)

# Part of every key: raise it when the same settings begin to give other frames.
VERSION = 1
MAGIC = b"RBFTCLIP"
PREFIX = struct.Struct("<8sII")  # magic, length and checksum of the header
ALIGNMENT = 64
ENTRY, UNFINISHED = ".clip", ".part"
ABANDONED_SECONDS = 3600


class FrameCache:
    """Decoded clips on disk, least recently used ones removed first.

    A folder that cannot be written, or a full disk, costs a line in the log and decoding as
    without a cache.

    Args:
        folder: Where the files are; made where it does not exist.
        max_bytes: Size that the folder is kept within. Processes that write at the same time may
            exceed it by one clip each, for a moment.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"The frame cache's size ({max_bytes} bytes) must not be negative.")
        self.folder, self.max_bytes = Path(folder), max_bytes
        self._complained = False

    def get_or_decode(self, path: Path, **settings: Any) -> Video:
        """The clip, from the folder if it is there, else decoded and put there.

        Args:
            path: The video file. A file changed since (size or time of change) is decoded anew.
            **settings: Those of `decode_video`.

        Raises:
            VideoError: See `decode_video`.
        """
        try:
            status = path.stat()
        except (OSError, ValueError):
            return decode_video(path, **settings)  # says what is wrong
        identity = [VERSION, str(path.resolve()), status.st_size, status.st_mtime_ns]
        # Not the reader: all of them give the same frames.
        sampling = {name: value for name, value in settings.items() if name != "reader"}
        key = hashlib.sha256(json.dumps([identity, sampling], sort_keys=True).encode()).hexdigest()
        entry = self.folder / f"{key}{ENTRY}"
        video = self._read(entry)
        if video is None:
            video = decode_video(path, **settings)
            self._write(entry, video)
        return video

    def size(self) -> int:
        """Bytes that the folder's clips take."""
        return sum(size for _, size, _ in self._files())

    def clear(self) -> None:
        """Removes all clips."""
        for _, _, file in self._files():
            _remove(file)

    def _read(self, entry: Path) -> Video | None:
        try:
            video = read_entry(entry)
        except OSError:
            return None
        except ValueError as error:
            log.warning("Frame cache: %s is damaged (%s) and is decoded anew.", entry, error)
            _remove(entry)
            return None
        with suppress(OSError):
            os.utime(entry)  # when it was last used
        return video

    def _write(self, entry: Path, video: Video) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            header = _header(video)
            bytes_needed = len(header) + video.frames.nbytes
            if bytes_needed > self.max_bytes:
                return
            self._make_room(bytes_needed)
            handle, name = tempfile.mkstemp(suffix=UNFINISHED, dir=self.folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(header)
                    file.write(video.frames.contiguous().numpy().data)
                Path(name).replace(entry)
            except BaseException:
                _remove(Path(name))
                raise
        except OSError as error:
            if not self._complained:
                log.warning(
                    "Frame cache: %s cannot be written (%s); clips are decoded every time.",
                    self.folder,
                    error.strerror,
                )
            self._complained = True

    def _make_room(self, bytes_needed: int) -> None:
        files = sorted(self._files())
        excess = sum(size for _, size, _ in files) + bytes_needed - self.max_bytes
        for used, size, file in files:
            abandoned = file.suffix == UNFINISHED and used < time.time() - ABANDONED_SECONDS
            if abandoned or (excess > 0 and file.suffix == ENTRY):
                _remove(file)
                excess -= size

    def _files(self) -> list[tuple[float, int, Path]]:
        """When last used, size and path of every file of ours, unfinished ones included."""
        found = []
        with suppress(OSError), os.scandir(self.folder) as files:
            for file in files:
                if file.name.endswith((ENTRY, UNFINISHED)):
                    with suppress(OSError):  # removed meanwhile by another process
                        status = file.stat()
                        found.append((status.st_mtime, status.st_size, Path(file.path)))
        return found


def read_entry(entry: Path) -> Video:
    """Reads a file of the cache; the frames are mapped, not loaded.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is not whole or not ours.
    """
    with entry.open("rb") as file:
        prefix = file.read(PREFIX.size)
        if len(prefix) < PREFIX.size:
            raise ValueError("too short")
        magic, length, checksum = PREFIX.unpack(prefix)
        header = file.read(min(length, 1 << 24))
        if magic != MAGIC or len(header) < length or zlib.crc32(header) != checksum:
            raise ValueError("wrong header")
        fields = json.loads(header)
        shape = tuple(fields.pop("shape"))
        offset = PREFIX.size + length
        if os.fstat(file.fileno()).st_size != offset + int(np.prod(shape)):
            raise ValueError("wrong size")
        # Copy-on-write: the caller may change the frames, the file stays as it is.
        frames = np.memmap(file, np.uint8, "c", offset, shape)
    return Video(frames=torch.from_numpy(frames), **fields)


def _header(video: Video) -> bytes:
    fields = {
        "shape": list(video.frames.shape),
        "indices": video.indices,
        "total_frames": video.total_frames,
        "fps": video.fps,
    }
    header = json.dumps(fields).encode()
    header += b" " * (-(PREFIX.size + len(header)) % ALIGNMENT)
    return PREFIX.pack(MAGIC, len(header), zlib.crc32(header)) + header


def _remove(file: Path) -> None:
    with suppress(OSError):
        file.unlink()
