"""Files and folders that appear atomically, and what a killed process has left of them.

Whatever is written goes to a hidden temporary path beside its place and is renamed when it is
complete. The temporary name is different for every write, so two processes, even on two machines
that share a disk, never write into one file.
"""

import errno
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

CANNOT_FLUSH = {errno.EINVAL, errno.EBADF, errno.ENOTSUP}  # a folder, on some file systems
# .<name>.<kind>.<host>-<pid>-<token>
TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.(?P<kind>part|new|old)\.(?P<host>\w{1,12})-(?P<pid>\d+)-[0-9a-f]{8}",
    re.DOTALL,
)


def temporary_path(target: Path, kind: Literal["part", "new", "old"] = "part") -> Path:
    """A temporary name beside a file or folder that no other call gives, on any machine.

    Args:
        target: What is to be written.
        kind: "part" is being written or deleted, "new" is complete but not yet in its place, "old"
            stood in that place before; see `replace_folder`.
    """
    # Processes on two machines can have the same id; the token tells them apart, host and process
    # tell a person who looks.
    return target.with_name(f".{target.name}.{kind}.{_host()}-{os.getpid()}-{uuid4().hex[:8]}")


def os_error_text(error: OSError) -> str | None:
    """What to say where the system refuses to read or write a file; None where it names no file.

    A temporary path is named as the target that it would become.
    """
    if not error.filename or not error.strerror:
        return None
    path = Path(str(error.filename))
    if match := TEMPORARY.fullmatch(path.name):
        path = path.with_name(match["name"])
    in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
    reason = "a file stands where a folder should be" if in_the_way else error.strerror
    return (
        f"{path} cannot be read or written: {reason}. Correct that, or name another place: "
        "trainer.default_root_dir for runs, --output for what a command writes, $RBFT_CACHE for "
        "what is cached."
    )


@contextmanager
def atomically(target: Path) -> Iterator[Path]:
    """Gives a temporary path that takes the target's place when the block ends without an error.

    After an error the target is as it was and the temporary path is gone. What the block has
    written is flushed to the disk before it is renamed.

    Args:
        target: The file or folder to write; an older one is replaced.

    Yields:
        The path to write to. It does not exist yet; make it a file or a folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = temporary_path(target)
    try:
        yield part
        if part.is_dir():
            replace_folder(part, target)
        else:
            _flush(part)
            part.replace(target)
            _flush(target.parent)
    except BaseException:
        remove(part)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, as UTF-8."""
    # File names that are no UTF-8 hold surrogates; as backslash escapes they are JSON.
    with atomically(path) as part:
        part.write_bytes(text.encode(errors="backslashreplace"))


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def replace_folder(made: Path, target: Path) -> None:
    """Puts a complete folder in its place, readable for all; an older one there goes away.

    No file system replaces a folder that is not empty in one step. So that a kill never leaves
    neither of the two, the new folder is first renamed to a name that says it is complete and the
    old one is renamed away; `remove_leftovers` puts the new one in place if that is where it ended.

    Args:
        made: The new folder, beside the target.
        target: Its place.
    """
    for file in made.rglob("*"):
        if file.is_file():
            file.chmod(0o644)  # safetensors writes for its owner only
            _flush(file)
    if not target.exists():
        made.replace(target)
        _flush(target.parent)
        return
    new, old = temporary_path(target, "new"), temporary_path(target, "old")
    made.replace(new)
    try:
        target.replace(old)
        new.replace(target)
    except BaseException:
        if not target.exists():
            old.replace(target)
        remove(new)
        raise
    _flush(target.parent)
    remove(old)


def remove(path: Path) -> None:
    """Deletes a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> list[Path]:
    """Removes what killed processes have left beside a path for it, and anywhere within it.

    A folder whose replacement was interrupted is put back in place first. Only for who holds the
    path's `rbft.runtime.lock.Lock`: what is being written for it is no leftover. Within a folder,
    other paths can have owners of their own, so what a process that runs here may be writing stays.

    Args:
        path: A file, or a folder such as that of a run; it need not exist.

    Returns:
        The targets of which something was removed.
    """
    found: dict[Path, list[tuple[str, Path]]] = {}
    if path.parent.is_dir():
        for entry in path.parent.iterdir():
            match = TEMPORARY.fullmatch(entry.name)
            if match and match["name"] == path.name:
                found.setdefault(path, []).append((match["kind"], entry))
    _restore(found)  # of the folder itself, before it is looked into
    within: dict[Path, list[tuple[str, Path]]] = {}
    for place, folders, files in os.walk(path):
        folder = Path(place)
        for name in [*folders, *files]:
            match = TEMPORARY.fullmatch(name)
            if match and not _in_use(match):
                within.setdefault(folder / match["name"], []).append((match["kind"], folder / name))
        folders[:] = [name for name in folders if not TEMPORARY.fullmatch(name)]
    _restore(within)
    return [*found, *within]


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", socket.gethostname())[:12] or "_"


def _in_use(match: re.Match[str]) -> bool:
    """Whether another process of this machine that still runs may be writing there."""
    pid = int(match["pid"])
    if match["host"] != _host() or pid == os.getpid() or os.name == "nt":
        return False
    try:
        os.kill(pid, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _restore(found: dict[Path, list[tuple[str, Path]]]) -> None:
    """Puts complete folders whose place is empty there, and removes the rest."""
    for target, entries in found.items():
        for wanted in ("new", "old"):
            for kind, entry in entries:
                if kind == wanted and not target.exists():
                    entry.replace(target)
        for _, entry in entries:
            remove(entry)


def _flush(path: Path) -> None:
    """Has what was written to a file, or renamed in a folder, reach the disk."""
    if os.name == "nt":  # flushes only what is open for writing, and no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not path.is_dir() or error.errno not in CANNOT_FLUSH:
            raise
    finally:
        os.close(handle)
