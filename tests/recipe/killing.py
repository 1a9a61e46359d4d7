"""Runs that are sent a signal at a chosen moment, each in a process of its own or in two.

A moment is a change to a file of the run, which an audit hook sees just before it happens, and a
pause after it. So every delicate place can be hit on purpose, between two steps of a hand-off as
well as in the middle of a write or of an optimiser step.
"""

import fnmatch
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.recipe.runs import LOGS, ROOT

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
WRITING = os.O_WRONLY | os.O_RDWR
# Children are forked from a server that has imported what takes seconds; no thread runs there.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["rbft.cli", "transformers.models.auto"])


def changed_file(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The file below the logs that an audit event is about to change, if it is one."""
    if event not in EVENTS or not isinstance(arguments[0], str | Path):
        return None
    if event == "open" and not (arguments[2] or 0) & WRITING:
        return None
    path = str(arguments[0])
    # Curves and times are not what a run goes on from.
    if str(LOGS) not in path or "tfevents" in path or "/usage" in path:
        return None
    return f"{event} {path[path.index(str(LOGS)) :]}"


def watch(part: str, number: int, pause: float, sent: int) -> list[str]:
    """Has this process sent a signal `pause` seconds after a change, the `number`-th of a file
    named like `part`, where * stands for anything; 0 sends none.

    Returns:
        The changes seen, as they come.
    """
    seen: list[str] = []

    def fits(change: str) -> bool:
        return fnmatch.fnmatchcase(change, f"*{part}*")

    def send() -> None:
        os.kill(os.getpid(), sent)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        change = changed_file(event, arguments)
        if change is None:
            return
        seen.append(change)
        if number and fits(change) and sum(map(fits, seen)) == number:
            if not pause:
                send()
            else:
                threading.Timer(pause, send).start()

    sys.addaudithook(hook)
    return seen


def child(
    folder: Path, command: str, options: list[str], moment: tuple[Any, ...], room: int
) -> None:
    """Runs a command; leaves the changes it has seen in changes.json."""
    from rbft.cli import main

    os.chdir(folder)
    sys.argv = ["rbft"]
    log = os.open("log.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if room:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    seen = watch(*moment)
    main([command, *options])
    Path("changes.json").write_text(json.dumps(seen))


def run(
    folder: Path,
    options: list[str],
    part: str = "",
    number: int = 0,
    pause: float = 0,
    sent: int = signal.SIGKILL,
    room: int = 0,
    command: str = "fit",
) -> int:
    """Runs a command in a process of its own, see `watch`.

    Args:
        folder: The working directory.
        options: The command's.
        part: See `watch`.
        number: See `watch`.
        pause: See `watch`.
        sent: The signal.
        room: Bytes that fit into a file, as on a disk that is nearly full; 0 for no limit.
        command: The command.

    Returns:
        The exit status, -9 if it was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    moment = (part, number, pause, sent)
    process = PROCESSES.Process(target=child, args=(folder, command, options, moment, room))
    process.start()
    process.join(300)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def run_two(
    folder: Path,
    options: list[str],
    rank: int = 0,
    part: str = "",
    number: int = 0,
    pause: float = 0,
    sent: int = signal.SIGKILL,
    launcher: tuple[str, ...] = (),
    note: bool = False,
    command: str = "fit",
) -> int:
    """Runs a command in two processes, one of which is sent a signal, see `watch`.

    Args:
        folder: The working directory; the output goes into its log.txt.
        options: The command's.
        rank: The process.
        part: See `watch`.
        number: See `watch`.
        pause: See `watch`.
        sent: The signal.
        launcher: What starts the processes; nothing for Lightning itself.
        note: Leave the changes that each process has seen in changes.0.json and changes.1.json.
        command: The command.

    Returns:
        The exit status of the first process, or of the launcher.
    """
    folder.mkdir(parents=True, exist_ok=True)
    moment = json.dumps({"rank": rank, "moment": (part, number, pause, sent), "note": note})
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *launcher, "-m", "tests.recipe.killing", command, *options],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "MOMENT": moment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        status = process.wait(300)
    for _ in range(100):
        if not alive(folder):
            return status
        time.sleep(0.1)
    raise AssertionError(f"left behind: {alive(folder)}")


def alive(folder: Path) -> list[str]:
    """Processes that work in the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile
            ended = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if not ended and (process / "cwd").readlink() == folder:
                found.append(process.name)
    return found


if __name__ == "__main__":
    from rbft.cli import main

    given, rank = json.loads(os.environ["MOMENT"]), int(os.environ.get("LOCAL_RANK", 0))
    part, number, pause, sent = given["moment"]
    seen = watch(part, number if rank == given["rank"] else 0, pause, sent)
    main()
    if given["note"]:
        Path(f"changes.{rank}.json").write_text(json.dumps(seen))
