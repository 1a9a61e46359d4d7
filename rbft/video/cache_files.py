"""The files of a folder of cached tensors, by their names; what is in them takes torch to read."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

# Endings of the files' names: decoded clips, outputs of vision towers, and what is being written.
CLIP, FEATURES, UNFINISHED = ".clip", ".features", ".part"


class CacheFile(NamedTuple):
    """A file of a cache.

    Attributes:
        used: When it was last used, in seconds since 1970.
        size: Its bytes.
        path: Where it is.
    """

    used: float
    size: int
    path: Path


def list_files(folder: Path, suffix: str) -> list[CacheFile]:
    """The files of a cache, unfinished ones included; none if there is no such folder.

    Args:
        folder: The folder.
        suffix: Ending of the files' names.
    """
    found = []
    with suppress(OSError), os.scandir(folder) as files:
        for file in files:
            if file.name.endswith((suffix, UNFINISHED)):
                with suppress(OSError):  # removed meanwhile by another process
                    status = file.stat()
                    found.append(CacheFile(status.st_mtime, status.st_size, Path(file.path)))
    return found


def clear_files(folder: Path, suffix: str) -> None:
    """Removes the files of a cache; others stay.

    Args:
        folder: The folder.
        suffix: Ending of the files' names.
    """
    for file in list_files(folder, suffix):
        remove(file.path)


def remove(file: Path) -> None:
    """Removes a file, unless another process has done so."""
    with suppress(OSError):
        file.unlink()
