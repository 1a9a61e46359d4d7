"""One scan of all video files: what is there, what is not, and why."""

import errno
import hashlib
import io
import json
import logging
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, runtime_checkable

from rbft.clip import Images
from rbft.runtime.digests import LENGTH, hash_file, identity, line_checksum, sample_digest
from rbft.runtime.files import write_text
from rbft.runtime.progress import track
from rbft.video.images import images_digest
from rbft.video.sampling import VideoError

OK = "ok"
TRUNCATED = "truncated"
UNUSABLE = ("missing", "unreadable", TRUNCATED, "too_short")
NEVER_USED = ("private", "excluded")  # names of splits, and the status of their clips
STATUSES = (OK, *UNUSABLE, *NEVER_USED)
NAMED = 3  # unusable files that a message names
FILE_FACTS = ("path", "mtime_ns", "inode", "sample")  # what no row tells
# Of the lines of the cache: raise it when the same file begins to be described otherwise.
VERSION = 2
TOLERANCE = 1.0  # seconds by which a clip may end after its file: annotations are rounded
BAR_DELAY = 1.0  # seconds after which a scan shows how far it is

log = logging.getLogger(__name__)


@runtime_checkable
class ScannedClip(Protocol):
    """What the scan needs of a `rbft.data.base.Clip`."""

    @property
    def id(self) -> str:
        """Unique name."""
        ...

    @property
    def path(self) -> Path:
        """The video file."""
        ...

    @property
    def label(self) -> int | None:
        """Class index."""
        ...

    @property
    def split(self) -> str:
        """Name of the split."""
        ...

    @property
    def start(self) -> float | None:
        """Seconds from the file's start at which the clip begins."""
        ...

    @property
    def end(self) -> float | None:
        """Seconds at which it ends; negative counts from the file's end."""
        ...

    @property
    def url(self) -> str | None:
        """Where the file can be had."""
        ...

    @property
    def refused(self) -> str:
        """Why the file must not be opened, else empty."""
        ...

    @property
    def images(self) -> Images | None:
        """The images that are its frames; None where it is a file."""
        ...

    @property
    def labels(self) -> Sequence[int] | None:
        """All its classes where it may have several, else None."""
        ...


@dataclass(frozen=True)
class ManifestRow:
    """One clip and its file.

    Attributes:
        id: The clip's id.
        split: Its split.
        label: Its class index.
        path: Its file.
        url: Where the file can be had.
        status: ok, missing, unreadable, truncated, too_short, private or excluded.
        reason: Why it is not ok, empty where it is.
        bytes: Size of the file.
        duration: Length of the file in seconds.
        frames: Frames in the file.
        fps: Its frames per second.
        width: Its width in pixels.
        height: Its height in pixels.
        digest: Its content digest, see `rbft.runtime.digests.hash_file`; None where it is not
        readable. start: Seconds from the file's start at which the clip begins.
        end: Seconds at which it ends; negative counts from the file's end.
        note: What is repaired when the file is read, such as time stamps that make no sense.
        labels: The clip's classes where it may have several; else None, and not written.
    """

    id: str
    split: str
    label: int | None
    path: str
    url: str | None
    status: str
    reason: str = ""
    bytes: int | None = None
    duration: float | None = None
    frames: int | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    digest: str | None = None
    start: float | None = None
    end: float | None = None
    note: str = ""
    labels: Sequence[int] | None = None


@dataclass(frozen=True)
class Manifest:
    """Every clip of a benchmark with the state of its file; one for all processes.

    Attributes:
        rows: In the benchmark's order.
    """

    rows: tuple[ManifestRow, ...]

    def save(self, path: Path) -> None:
        """Writes the rows as JSON lines."""
        every = [asdict(row) for row in self.rows]
        written = [
            {key: value for key, value in row.items() if key != "labels" or value is not None}
            for row in every
        ]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in written]
        write_text(path, "".join(lines))

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """Reads what `save` wrote."""
        with path.open(encoding="utf-8") as stream:
            return cls(tuple(ManifestRow(**json.loads(line)) for line in stream))

    def accept_truncated(self) -> "Manifest":
        """The same with truncated files taken for what they hold."""
        rows = (
            replace(row, status=OK, reason="", note=row.reason) if row.status == TRUNCATED else row
            for row in self.rows
        )
        return Manifest(tuple(rows))

    def table(self, classes: Sequence[str]) -> tuple[list[str], list[list[str]]]:
        """Headers and rows of clips by split, class and status, and a row of totals.

        A clip with several classes stands in the row of each, one with none in that of "none".

        Args:
            classes: Class names in order.
        """
        present = [OK, *(s for s in STATUSES[1:] if any(row.status == s for row in self.rows))]
        # Splits in the benchmark's order, classes in the card's, clips without a class last.
        splits = dict.fromkeys(row.split for row in self.rows)
        groups: list[tuple[str, str, list[ManifestRow]]] = []
        for split in splits:
            mine = [row for row in self.rows if row.split == split]
            for label, name in enumerate(classes):
                own = [row for row in mine if label in (row.labels or (row.label,))]
                groups.append((split, name, own))
            none = [row for row in mine if row.labels is not None and not row.labels]
            groups.append((split, "none", none))
            unknown = [row for row in mine if row.labels is None and row.label is None]
            groups.append((split, "unknown", unknown))
        groups = [group for group in groups if group[2]]
        groups.append(("all", "", list(self.rows)))
        rows = []
        for split, name, found in groups:
            counts = Counter(row.status for row in found)
            rows.append(
                [split, name, *(str(counts[status]) for status in present), str(len(found))]
            )
        return ["split", "class", *present, "clips"], rows

    def missing_list(self) -> list[str]:
        """For the user's own downloader: where each missing file can be had, or else its id."""
        return [row.url or row.id for row in self.rows if row.status == "missing"]

    def apply_policy(
        self, benchmark: str, on_missing: Literal["error", "skip", "warn"], min_coverage: float
    ) -> tuple[list[str], list[str]]:
        """Decides which clips are used.

        Args:
            benchmark: Its name, for messages.
            on_missing: "error" refuses to go on without a clip's file; "skip" and "warn" leave
                the clip out.
            min_coverage: Share of a split's clips that must be usable in any case.

        Returns:
            Ids of the usable clips, and a message for each split that lost some; "warn" should
            show it, "skip" only log it.

        Raises:
            ValueError: If clips are not usable and the policy is "error", or too many are.
        """
        messages, refusals = [], []
        for split in dict.fromkeys(row.split for row in self.rows):
            rows = [row for row in self.rows if row.split == split and row.status not in NEVER_USED]
            lost = [row for row in rows if row.status != OK]
            if not lost:
                continue
            counts = Counter(row.status for row in lost)
            why = ", ".join(f"{counts[status]} {status}" for status in UNUSABLE if counts[status])
            first = ", ".join(f"{Path(row.path).name}: {row.reason}" for row in lost[:NAMED])
            message = (
                f"{len(lost)} of {len(rows)} {split} clips of {benchmark} are not usable ({why}; "
                f"first: {first})."
            )
            coverage = 1 - len(lost) / len(rows)
            if coverage < min_coverage or coverage == 0:
                refusals.append(
                    f"{message} That leaves {coverage:.1%}, and data.min_coverage asks for "
                    f"{min_coverage:.1%}."
                    if coverage
                    else f"{message} That leaves none."
                )
            elif on_missing == "error":
                refusals.append(message)
            messages.append(message)
        if refusals:
            advice = "python -m rbft scan lists them all."
            if any(row.status == TRUNCATED for row in self.rows):
                advice += " Set data.damaged to use to take truncated files for what they hold."
            if on_missing == "error":
                advice += " Set data.on_missing to skip or warn to go on without them."
            raise ValueError("\n".join([*refusals, advice]))
        return [row.id for row in self.rows if row.status == OK], messages


def scan(
    clips: Sequence[ScannedClip],
    probe: Callable[[Any], Any],
    cache_file: Path | None,
    workers: int,
    progress: bool = True,
) -> Manifest:
    """Reads every video file once and notes what it holds, with the digest of its content.

    A file is looked into again only when its size, time of change, inode, or its first, middle or
    last 16 KiB differ from what the cache has; files that could not be read are tried again every
    time. Of several processes that
    need the same scan one does it; the others wait and read what it found.

    Args:
        clips: All clips. Those of the splits private and excluded are not looked for, nor are
            those whose file must not be opened.
        probe: Opens a file, or the images of a clip, and returns an object with `duration` in
            seconds, `frames`, `fps`, `width`, `height`, `truncated` and `note`; raises where it is
            no readable video or image.
        cache_file: JSON lines of what was found before; written as the scan goes on, so that an
            interrupted one continues. None keeps nothing.
        workers: Files that are opened at a time.
        progress: Show a progress bar.

    Raises:
        ValueError: If the cache cannot be written.
    """
    wanted = [clip for clip in clips if clip.split not in NEVER_USED and not clip.refused]
    sources = {_named(clip): clip.images or clip.path for clip in wanted}
    with ThreadPoolExecutor(workers) as pool:
        found = dict(zip(sources, pool.map(_look, sources, sources.values()), strict=True))
    unread = _without_known(found, cache_file)
    if unread:
        with _alone(cache_file):
            unread = _without_known(found, cache_file)  # what others found while we waited
            given = [(file, sources[file["path"]]) for file in unread]
            for file in _probe_all(given, probe, cache_file, workers, progress):
                found[file["path"]] = file
    return Manifest(tuple(_row(clip, found.get(_named(clip), {})) for clip in clips))


def _named(clip: ScannedClip) -> str:
    """What the clip's file is called, or its images with their times, alike for no others."""
    if clip.images is None:
        return str(clip.path)
    facts = repr((clip.images.files, clip.images.fps, clip.images.seconds))
    digest = hashlib.sha256(facts.encode(errors="surrogatepass")).hexdigest()[:LENGTH]
    return f"{clip.path} ({len(clip.images.files)} images, {digest})"


def _without_known(
    found: dict[str, dict[str, Any]], cache_file: Path | None
) -> list[dict[str, Any]]:
    """Fills in what the cache knows; returns the files that must be opened."""
    known = _read_cache(cache_file)
    for path, file in found.items():
        if file["status"] == OK:
            found[path] = file | known.get(_key(file), {})
    return [file for file in found.values() if file["status"] == OK and "digest" not in file]


@contextmanager
def _alone(cache_file: Path | None) -> Iterator[None]:
    """Waits until no other process scans into the same file; a killed one does not block it.

    File systems without locks, and Windows, do without: entries are whole lines at the file's end,
    so that the worst is that a file is opened twice.
    """
    stream = None
    with suppress(ImportError, OSError):
        import fcntl

        if cache_file is not None:
            stream = _open_cache(cache_file)
            fcntl.flock(stream, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if stream is not None:
            stream.close()


def check_same_on_all_processes(clips: list[str]) -> None:
    """Refuses to go on where the processes of a run do not have the same clips; collective.

    Each looks at the files for itself, and a file can come or go in between, or be seen on one
    machine only.

    Args:
        clips: What this process has, in order.

    Raises:
        ValueError: On every process; names the first clip that not all have.
    """
    from torch import distributed

    mine = hashlib.sha256(json.dumps(clips).encode()).hexdigest()
    digests: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(digests, mine)
    if len(set(digests)) == 1:
        return
    every: list[Any] = [None] * len(digests)
    distributed.all_gather_object(every, clips)
    counts = ", ".join(f"{len(names)} on process {rank}" for rank, names in enumerate(every))
    common = set(every[0]).intersection(*every)
    odd = [name for names in every for name in names if name not in common]
    first = f"first that not all have: {odd[0]}" if odd else "in another order"
    raise ValueError(
        f"The processes of this run do not see the same clips ({counts}; {first}). Their files "
        "differ, or changed while the run began: see that all machines read the same folder, and "
        "start again."
    )


def _look(name: str, source: Path | Images) -> dict[str, Any]:
    """What the file system says of a file, or of all images of a clip."""
    file: dict[str, Any] = {"path": name, "status": OK, "reason": ""}
    if isinstance(source, Images):
        return _look_at_each(file, source)
    try:
        info = source.stat()
    except (FileNotFoundError, NotADirectoryError):
        return file | {"status": "missing", "reason": "no such file"}
    except (OSError, ValueError) as error:
        return file | {"status": "unreadable", "reason": _cannot_read(error)}
    file |= dict(zip(("bytes", "mtime_ns", "inode"), identity(info), strict=True))
    if not stat.S_ISREG(info.st_mode):
        return file | {"status": "unreadable", "reason": "is no file"}
    if not info.st_size:
        return file | {"status": "unreadable", "reason": "is empty"}
    try:
        return file | {"sample": sample_digest(source)}
    except OSError as error:
        return file | {"status": "unreadable", "reason": _cannot_read(error)}


def _look_at_each(file: dict[str, Any], images: Images) -> dict[str, Any]:
    """What the file system says of the images of a clip, as if they were one file."""
    found = []
    for path in images.files:
        one = _look(str(path), path)
        if one["status"] != OK:
            return file | {"status": one["status"], "reason": f"{one['reason']}: {path}"}
        found.append(one)
    facts = [[one[name] for name in ("bytes", "mtime_ns", "inode", "sample")] for one in found]
    return file | {
        "bytes": sum(one["bytes"] for one in found),
        "mtime_ns": max(one["mtime_ns"] for one in found),
        "inode": 0,
        "sample": hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:LENGTH],
    }


def _cannot_read(error: OSError | ValueError) -> str:
    """That a file is there but cannot be read, which says nothing about its content."""
    why = error.strerror if isinstance(error, OSError) else _first_line(error)
    return f"cannot be read: {why}"


def _probe_all(
    files: list[tuple[dict[str, Any], Path | Images]],
    probe: Callable[[Any], Any],
    cache_file: Path | None,
    workers: int,
    progress: bool,
) -> Iterable[dict[str, Any]]:
    if not files:
        return
    counts: Counter[str] = Counter()
    pool = ThreadPoolExecutor(workers)
    cache = None
    try:
        if cache_file is not None:
            cache = _open_cache(cache_file)
            cache.write(b"\n")  # ends a line that a crash cut off; empty lines are passed over
        futures = [pool.submit(_probe, file, source, probe) for file, source in files]
        finished = track(
            as_completed(futures),
            "Scanning videos",
            len(files),
            "file",
            shown=progress,
            delay=BAR_DELAY,
            more=lambda: ", ".join(f"{number} {status}" for status, number in counts.items()),
        )
        for future in finished:
            file = future.result()
            counts[file["status"]] += 1
            if cache is not None and file["status"] == OK:
                _note(cache, file)
            yield file
    except OSError as error:
        raise ValueError(
            f"The scan cannot keep its results in {cache_file}: {error.strerror}. Set "
            "data.cache_folder to a folder that can be written."
        ) from error
    finally:
        # After Ctrl-C nothing more is opened.
        pool.shutdown(cancel_futures=True)
        if cache is not None:
            cache.close()


def _probe(
    file: dict[str, Any], source: Path | Images, probe: Callable[[Any], Any]
) -> dict[str, Any]:
    try:
        facts = probe(source)
        names = ("duration", "frames", "fps", "width", "height", "truncated", "note")
        file = file | {name: getattr(facts, name) for name in names}
        made = images_digest(source) if isinstance(source, Images) else hash_file(source)
        return file | {"digest": made}
    # Whatever a decoder throws at a damaged file: it is the row's reason, not the scan's end.
    except Exception as error:
        reason = error.reason if isinstance(error, VideoError) else _first_line(error)
        if isinstance(source, Images):
            reason = str(error).removeprefix("Video ")  # names the image
        return file | {"status": "unreadable", "reason": reason.rstrip(".")}


def _row(clip: ScannedClip, file: dict[str, Any]) -> ManifestRow:
    row = ManifestRow(
        clip.id,
        clip.split,
        clip.label,
        str(clip.path),
        clip.url,
        clip.split,
        start=clip.start,
        end=clip.end,
        labels=clip.labels,
    )
    if clip.split in NEVER_USED:
        return row
    if clip.refused:
        return replace(row, status="unreadable", reason=clip.refused)
    facts = {key: value for key, value in file.items() if key not in FILE_FACTS}
    truncated = facts.pop(TRUNCATED, "")
    row = replace(row, **facts)
    if row.status == OK and (reason := _too_short(clip, row)):
        return replace(row, status="too_short", reason=reason)
    if row.status == OK and (reason := truncated or _ends_early(clip, row)):
        return replace(row, status=TRUNCATED, reason=reason)
    return row


def _too_short(clip: ScannedClip, row: ManifestRow) -> str:
    """Why the clip has no frame in its file, empty where it has."""
    if not row.frames:
        return "has no frames"
    if row.duration is None:
        return ""
    start, end = clip.start or 0.0, row.duration if clip.end is None else clip.end
    end = min(row.duration, end + row.duration if end < 0 else end)
    if start < end:
        return ""
    wanted = f"from {start:g} s to {'the end' if clip.end is None else f'{clip.end:g} s'}"
    return f"lasts {row.duration:g} s, so the clip {wanted} holds nothing"


def _ends_early(clip: ScannedClip, row: ManifestRow) -> str:
    """How much of the clip is there, if the annotation promises more; empty where all is."""
    if clip.end is None or row.duration is None or clip.end <= row.duration + TOLERANCE:
        return ""
    return f"the clip goes to {clip.end:g} s, and its file ends after {row.duration:.1f} s"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _key(file: dict[str, Any]) -> tuple[str, int, int, int, str]:
    path = str(Path(file["path"]).absolute())
    return path, file["bytes"], file["mtime_ns"], file["inode"], file["sample"]


def _read_cache(path: Path | None) -> dict[tuple[str, int, int, int, str], dict[str, Any]]:
    known: dict[tuple[str, int, int, int, str], dict[str, Any]] = {}
    if path is None or not path.exists():
        return known
    damaged: list[tuple[int, bytes]] = []
    place = 0
    for line in io.BytesIO(path.read_bytes()):
        if line.strip():
            try:
                entry = json.loads(line)
                if entry.pop("check") != line_checksum(VERSION, entry):
                    raise ValueError
                entry["path"] = entry.pop("file")
                known[_key(entry)] = entry
                del entry["path"]
            except (ValueError, KeyError, AttributeError, TypeError):
                # Cut off by a crash, damaged, or by another version: its file is read again.
                damaged.append((place, line))
        place += len(line)
    if damaged:
        log.warning(
            "%d damaged lines of %s are left out; their files are read again.", len(damaged), path
        )
        _blank(path, damaged)
    return known


def _blank(path: Path, lines: Sequence[tuple[int, bytes]]) -> None:
    """Writes blanks over damaged lines, so that they are told once.

    Lines keep their places: others may be adding theirs. What has no line end may still be written.
    """
    with suppress(OSError), path.open("r+b", buffering=0) as stream:
        for place, line in lines:
            stream.seek(place)
            if line.endswith(b"\n") and stream.read(len(line)) == line:
                stream.seek(place)
                stream.write(b" " * (len(line) - 1))


def _open_cache(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unbuffered: a line is there at once and whole, and closing has nothing left to write.
    return path.open("ab", buffering=0)


def _note(stream: BinaryIO, file: dict[str, Any]) -> None:
    # ASCII: a path that is no UTF-8 holds surrogates, which only escapes can express.
    entry: dict[str, Any] = {**file, "file": _key(file)[0]}
    del entry["path"]
    line = json.dumps({**entry, "check": line_checksum(VERSION, entry)}) + "\n"
    if stream.write(line.encode()) < len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
