"""A folder of cached tensors: decoded clips, outputs of a frozen vision tower.

One file per tensor: a header, then the values, each with a checksum. Files are read, not mapped: if
another process truncates a mapped file, its reader dies of SIGBUS. They are written atomically (to
another name, then renamed) and never changed, so any number of processes may read, write and remove
them at once.

The format is not safetensors, which was slower. Processor seconds beside those of `read_entry`
without check and `DiskCache.write` (safetensors 0.8.0, numpy 2.4, torch 2.15, 2 cores that others
used too, files in the page cache, medians of 21 runs in turns): `safe_open(backend="pread")` 0.8 to
1.1 times for 1 to 10 MB, 1.2 to 1.3 for 25 to 30 MB, 3.9 for 60 MB; `load` of the file's bytes 0.9
to 1.4 times for 1 to 10 MB, 2.8 for 25 MB, 6.1 for 60 MB; `save_file` 0.8 to 2.1 times.
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
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from rbft.runtime.digests import identity, sample_digest
from rbft.video.cache_files import UNFINISHED, CacheFile, clear_files, list_files, remove

log = logging.getLogger(__name__)

MAGIC = b"RBFTCLP2"  # 2: with a checksum of the values
PREFIX = struct.Struct("<8sII")  # magic, length and checksum of the header
ALIGNMENT = 64
ABANDONED_SECONDS = 3600
# What one process may write before it looks again, as a share of the room that it found: as many
# processes as this fill the room together, and none lists the folder for every clip.
SHARE = 1 / 16
FREED = 0.1  # share of the folder that a full one is emptied by, for the same reason


class DiskCache:
    """Tensors on disk within a size limit, the least recently used removed first.

    A folder that cannot be written, or a full disk, is logged once; nothing is kept then.

    Args:
        folder: Where the files are; made where it does not exist.
        max_bytes: Size that the folder is kept within. More than 16 processes that write at the
            same time may exceed it for a moment.

    Attributes:
        suffix: Ending of the files' names.
        name: What the cache is called in messages.
        fallback: What happens where the folder cannot be written, for the message.
    """

    suffix: ClassVar[str]
    name: ClassVar[str]
    fallback: ClassVar[str]

    def __init__(self, folder: Path, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"The {self.name}'s size ({max_bytes} bytes) must not be negative.")
        self.folder, self.max_bytes = Path(folder), max_bytes
        self._warned = False
        self._room = 0.0  # bytes that may be written before the folder is listed again
        self._checked: set[str] = set()  # keys whose values were compared with their checksum

    def read(self, key: str) -> tuple[Tensor, dict[str, Any]] | None:
        """The tensor kept under the key and its metadata; None where there is none.

        Its values are compared with their checksum when this process first reads them. The tensor
        is the caller's own; the file stays as it is.
        """
        entry = self.path(key)
        try:
            found = read_entry(entry, check=key not in self._checked)
        except OSError:
            self._checked.discard(key)
            return None
        except ValueError as error:
            log.warning("%s: %s is damaged (%s) and is made anew.", self._title, entry, error)
            remove(entry)
            return None
        self._checked.add(key)
        with suppress(OSError):
            os.utime(entry)  # when it was last used
        return found

    def write(self, key: str, tensor: Tensor, metadata: dict[str, Any]) -> None:
        """Keeps a tensor and its metadata under the key; not if it exceeds the size limit.

        Args:
            key: The key.
            tensor: Of any type and shape.
            metadata: Whatever JSON can hold.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            values = tensor.contiguous().flatten().view(torch.uint8).cpu().numpy()
            header = _header(tensor, metadata, zlib.crc32(values.data))
            bytes_needed = len(header) + tensor.nbytes
            if bytes_needed > self.max_bytes:
                return
            self._make_room(bytes_needed)
            handle, part = tempfile.mkstemp(suffix=UNFINISHED, dir=self.folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(header)
                    file.write(values.data)
                Path(part).replace(self.path(key))
            except BaseException:
                remove(Path(part))
                raise
        except OSError as error:
            if not self._warned:
                log.warning(
                    "%s: %s cannot be written (%s); %s.",
                    self._title,
                    self.folder,
                    error.strerror,
                    self.fallback,
                )
            self._warned = True

    def path(self, key: str) -> Path:
        """The file of a key."""
        return self.folder / f"{key}{self.suffix}"

    def size(self) -> int:
        """Bytes that the cache's files take, unfinished ones included."""
        return sum(file.size for file in self._files())

    def clear(self) -> None:
        """Removes all files of the cache; others stay."""
        clear_files(self.folder, self.suffix)

    @property
    def _title(self) -> str:
        return self.name[0].upper() + self.name[1:]

    def _make_room(self, bytes_needed: int) -> None:
        if bytes_needed <= self._room:
            self._room -= bytes_needed
            return
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        excess = total + bytes_needed - self.max_bytes
        if excess > 0:
            excess = min(total, int(excess + FREED * self.max_bytes))
        for used, size, file in files:
            abandoned = file.suffix == UNFINISHED and used < time.time() - ABANDONED_SECONDS
            if abandoned or (excess > 0 and file.suffix == self.suffix):
                remove(file)
                excess -= size
                total -= size
        self._room = (self.max_bytes - total - bytes_needed) * SHARE

    def _files(self) -> list[CacheFile]:
        return list_files(self.folder, self.suffix)


def file_key(path: Path, *facts: Any) -> str:
    """A key that changes with the file at `path` and the facts.

    The file is known by its path, size, time of change and inode, and by its start, middle and end.

    Args:
        path: A file.
        *facts: Whatever JSON can hold.

    Raises:
        OSError: If the file is not there or cannot be read.
        ValueError: If the path cannot be one.
    """
    file = [str(path.resolve()), *identity(path.stat()), sample_digest(path)]
    return content_key(file, *facts)


def content_key(*facts: Any) -> str:
    """A key that changes with the facts.

    Args:
        *facts: Whatever JSON can hold.
    """
    return hashlib.sha256(json.dumps([*facts], sort_keys=True).encode()).hexdigest()


def read_entry(entry: Path, check: bool = True) -> tuple[Tensor, dict[str, Any]]:
    """Reads a file of a cache into memory of its own.

    Args:
        entry: The file.
        check: Compare the values with their checksum (about 0.3 ms a megabyte).

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is incomplete, damaged or no cache file.
    """
    with entry.open("rb") as file:
        prefix = file.read(PREFIX.size)
        if len(prefix) < PREFIX.size:
            raise ValueError("too short")
        magic, length, checksum = PREFIX.unpack(prefix)
        header = file.read(min(length, 1 << 24))
        if magic != MAGIC or len(header) < length or zlib.crc32(header) != checksum:
            raise ValueError("wrong header")
        metadata = json.loads(header)
        shape, dtype = metadata.pop("shape"), getattr(torch, metadata.pop("dtype"))
        checksum = metadata.pop("checksum")
        offset, size = PREFIX.size + length, int(np.prod(shape)) * dtype.itemsize
        if os.fstat(file.fileno()).st_size != offset + size:
            raise ValueError("wrong size")
        file.seek(offset)
        values = np.fromfile(file, np.uint8, size)
    if len(values) < size:  # cut since its size was asked
        raise ValueError("wrong size")
    if check and zlib.crc32(values.data) != checksum:
        raise ValueError("its values do not match their checksum")
    return torch.from_numpy(values).view(dtype).view(shape), metadata


def _header(tensor: Tensor, metadata: dict[str, Any], checksum: int) -> bytes:
    dtype = str(tensor.dtype).removeprefix("torch.")
    own = {"shape": list(tensor.shape), "dtype": dtype, "checksum": checksum}
    header = json.dumps({**own, **metadata}).encode()
    header += b" " * (-(PREFIX.size + len(header)) % ALIGNMENT)
    return PREFIX.pack(MAGIC, len(header), zlib.crc32(header)) + header
