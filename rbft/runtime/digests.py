"""Content digests of files: weights and videos are known by their bytes, not by their names.

Reading 17 GB takes seconds to minutes, so each digest is kept in a file of the cache folder and
found again by path, size, time of change, inode and a sample of the content.
"""

import errno
import hashlib
import json
import logging
import os
import threading
import time
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from stat import S_ISREG
from typing import Any

from rbft.runtime.console import print_rank_zero

# 128 bits, which nobody makes two files for. SHA-256 is the fastest secure hash where the
# processor has instructions for it: 1.8 GB/s a thread against 0.9 of BLAKE2b and 0.8 of SHA-512.
LENGTH = 32
THREADS = 8  # files that are read at a time; hashlib lets other threads run
FILE = "digests.jsonl"
ANNOUNCED_BYTES = 2e9  # as much takes seconds to minutes
KEY = ("path", "size", "mtime_ns", "inode", "sample")
VERSION = 1  # of the lines of that file
# A file that changed so short ago may change again within the same tick of its time of change.
RECENT_NS = 2_000_000_000
SAMPLE = 16_384  # bytes of the start, the middle and the end

log = logging.getLogger(__name__)


def default_cache() -> Path:
    """Where rbft keeps what can be made again: $RBFT_CACHE, or ~/.cache/rbft."""
    return Path(os.environ.get("RBFT_CACHE") or Path.home() / ".cache" / "rbft")


def hash_file(path: Path) -> str:
    """SHA-256 of all bytes of a file, as 32 hexadecimal characters; always reads the file.

    `sha256sum` prints the same and 32 more.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:LENGTH]


def file_digest(path: Path, cache_folder: Path | None = None) -> str:
    """Content digest of a file, see `hash_file`; read once and then found in the cache.

    Args:
        path: The file; symbolic links are followed.
        cache_folder: Where digests are kept; None takes `default_cache`.

    Raises:
        OSError: If the file cannot be read.
    """
    return _kept_in(cache_folder or default_cache()).digest(path)


def folder_digest(
    folder: Path, names: Iterable[str], facts: Sequence[str] = (), cache_folder: Path | None = None
) -> str:
    """Digest of some files of a folder, their names included, and of facts beside them.

    The folder's own name and the order of the files do not count.

    Args:
        folder: A folder.
        names: Names of files below it.
        facts: What else the digest is to depend on.
        cache_folder: See `file_digest`.

    Returns:
        32 hexadecimal characters.

    Raises:
        OSError: If a file cannot be read.
    """
    ordered, kept = sorted(names), _kept_in(cache_folder or default_cache())
    size = sum(
        file.stat().st_size for file in (folder / n for n in ordered) if not kept.knows(file)
    )
    if size > ANNOUNCED_BYTES:
        print_rank_zero(
            f"Reading {folder} once ({size / 1e9:.1f} GB), to know its weights by their content."
        )
    with ThreadPoolExecutor(THREADS) as pool:
        digests = pool.map(lambda name: file_digest(folder / name, cache_folder), ordered)
        content = [list(zip(ordered, digests, strict=True)), list(facts)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:LENGTH]


def identity(status: os.stat_result) -> tuple[int, int, int]:
    """What changes with a file as far as the file system tells: size, time of change, inode."""
    return status.st_size, status.st_mtime_ns, status.st_ino


Key = tuple[str, int, int, int, str]


def _key(path: Path) -> Key:
    whole = path.resolve()
    return (str(whole), *identity(whole.stat()), sample_digest(whole))


def sample_digest(path: Path) -> str:
    """Digest of a file's first, middle and last 16 KiB.

    Beside `identity` it tells a file from one that was written over it with its size and time of
    change, as restored backups and some synchronising tools leave it. A change elsewhere in the
    file goes unseen, if it leaves size and time as they were: only `hash_file` reads all.

    Args:
        path: The file.

    Returns:
        32 hexadecimal characters.

    Raises:
        OSError: If it is no file or cannot be read.
    """
    if not S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
        raise OSError(errno.EINVAL, "Is no file", str(path))
    made = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        for offset in sorted({0, max(0, (size - SAMPLE) // 2), max(0, size - SAMPLE)}):
            stream.seek(offset)
            made.update(stream.read(SAMPLE))
    return made.hexdigest()[:LENGTH]


def line_checksum(version: int, entry: dict[str, Any]) -> str:
    """CRC-32 of what a line of a cache says, whatever the order of its keys.

    Args:
        version: Another version has another checksum, so that its lines are not believed.
        entry: Whatever JSON can hold.
    """
    text = json.dumps([version, entry], sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"


class DigestCache:
    """The digests of a cache folder, for any number of threads and processes at once.

    Each is a JSON line that is added in one write; damaged lines are passed over. A folder that
    cannot be written costs a line in the log and nothing else.

    Args:
        file: The JSON Lines file; need not exist.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._known: dict[Key, str] = {}
        self._read_until = 0
        self._complained = False
        self._lock = threading.Lock()

    def knows(self, path: Path) -> bool:
        """Whether the file's digest is there without reading it."""
        return self._find(_key(path)) is not None

    def digest(self, path: Path) -> str:
        """See `file_digest`."""
        whole = path.resolve()
        before = whole.stat()
        key = (str(whole), *identity(before), sample_digest(whole))
        if known := self._find(key):
            return known
        settled = before.st_mtime_ns < time.time_ns() - RECENT_NS
        made = hash_file(whole)
        if settled and identity(whole.stat()) == identity(before):
            with self._lock:
                self._known[key] = made
                self._note(key, made)
        return made

    def _find(self, key: Key) -> str | None:
        with self._lock:
            if key not in self._known:
                self._read_news()
            return self._known.get(key)

    def _read_news(self) -> None:
        """Reads the lines that came since the last time."""
        try:
            with self.file.open("rb") as stream:
                if os.fstat(stream.fileno()).st_size < self._read_until:  # cleared meanwhile
                    self._read_until = 0
                stream.seek(self._read_until)
                news = stream.read()
        except OSError:
            return
        news = news[: news.rfind(b"\n") + 1]  # another process may be in the middle of a line
        self._read_until += len(news)
        damaged = 0
        for line in filter(None, news.split(b"\n")):
            try:
                entry = json.loads(line)
                if entry.pop("check") != line_checksum(VERSION, entry):
                    raise ValueError
                digest = entry["digest"]
                self._known[tuple(entry[name] for name in KEY)] = digest
            except (ValueError, KeyError, TypeError, AttributeError):
                damaged += 1
        if damaged:
            log.info(
                "%d damaged lines of %s are left out; their files are read again.",
                damaged,
                self.file,
            )

    def _note(self, key: Key, digest: str) -> None:
        entry = {**dict(zip(KEY, key, strict=True)), "digest": digest}
        line = json.dumps({**entry, "check": line_checksum(VERSION, entry)})
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered, so in one write; the first line break ends a line that a kill cut off.
            with self.file.open("ab", buffering=0) as stream:
                stream.write(f"\n{line}\n".encode())
        except OSError as error:
            if not self._complained:
                log.warning(
                    "Content digests cannot be kept in %s (%s); files are read again each time.",
                    self.file,
                    error.strerror,
                )
            self._complained = True


@cache
def _kept_in(cache_folder: Path) -> DigestCache:
    return DigestCache(cache_folder / FILE)
