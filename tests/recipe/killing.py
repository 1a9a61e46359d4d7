"""Runs that kill themselves at a chosen moment, each in a process of its own.

A moment is a change to a file of the run, which an audit hook sees just before it happens, and a
pause after it. So every delicate place can be hit on purpose, between two steps of a hand-off as
well as in the middle of a write or of an optimiser step.
"""

import json
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from tests.recipe.runs import LOGS

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
    if str(LOGS) not in path or "tfevents" in path:
        return None
    return f"{event} {path[path.index(str(LOGS)) :]}"


def child(folder: Path, options: list[str], part: str, number: int, pause: float) -> None:
    """Runs `fit`; dies `pause` seconds after the `number`-th change of a file named like `part`.

    Leaves the changes it has seen in changes.json.
    """
    from rbft.cli import main

    os.chdir(folder)
    sys.argv = ["rbft"]
    log = os.open("log.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    seen: list[str] = []

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        change = changed_file(event, arguments)
        if change is None:
            return
        seen.append(change)
        if number and part in change and sum(part in past for past in seen) == number:
            if not pause:
                die()
            threading.Timer(pause, die).start()

    sys.addaudithook(watch)
    main(["fit", *options])
    Path("changes.json").write_text(json.dumps(seen))


def run(folder: Path, options: list[str], part: str = "", number: int = 0, pause: float = 0) -> int:
    """Runs `fit` in a process of its own, see `child`.

    Returns:
        The exit status, -9 if it was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    process = PROCESSES.Process(target=child, args=(folder, options, part, number, pause))
    process.start()
    process.join(300)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode
