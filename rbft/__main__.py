"""`python -m rbft`, and the console script `rbft`."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from rbft.commands import COMMANDS, LIGHT


def main() -> None:
    """Runs one command; those that need no torch do without it, and so do help and mistakes."""
    from rbft.commands.help_page import asked_group, help_page
    from rbft.commands.misspelt import check_settings
    from rbft.commands.overview import in_full, overview, program, unknown_command

    # In place: processes that a Trainer starts are given the same.
    args = sys.argv[1:] = in_full(sys.argv[1:])
    if args[:1] == ["help"] and args[1:]:  # `rbft help fit data`
        args = [args[1], "--help", *args[2:]]
    name = args[0] if args else "--help"
    if name in ("-h", "--help", "help"):
        _show(overview())
    elif name in ("-V", "--version"):
        _show(program())
    elif name not in COMMANDS and not name.startswith("-"):
        sys.exit(_refuse(unknown_command(name)))
    elif (group := asked_group(args[1:])) is not None and name in COMMANDS:
        _show(_or_refuse(help_page, name, group))
    elif name in LIGHT:
        from rbft.light import run_light

        run_light(name, args[1:])
    else:
        if name in COMMANDS:
            from rbft.weights_folder import with_own_settings

            _or_refuse(check_settings, name, args[1:])
            _or_refuse(with_own_settings, args)
        _run(name)


def _refuse(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return 2


def _or_refuse(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except ValueError as error:
        sys.exit(_refuse(str(error)))


def _show(text: str) -> None:
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:  # `rbft fit --help | head`
        os._exit(0)


def _run(name: str) -> None:
    if "LOCAL_RANK" not in os.environ:
        sys.stderr.write(f"{name}: loading torch and transformers\n")
        sys.stderr.flush()
    from rbft.cli import main as run

    run()


def console() -> None:
    """The program: also before anything is imported, Ctrl-C ends it without a traceback."""
    from rbft.runtime.parent import die_with_parent

    die_with_parent()
    if "LOCAL_RANK" in os.environ:
        # A terminal sends it to all. The first process says what is saved and ends; when another
        # one is gone before, its launcher kills it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # That a connection is gone, with fifty lines of addresses.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    else:
        # The imports take seconds, in which there is nothing to save yet.
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
    status: object = None
    try:
        main()
    except SystemExit as end:
        status = end.code
    _leave(status)


def _leave(status: object) -> None:
    """Ends the process at once, behind what has asked to be called at the end.

    The interpreter would take apart torch's modules object by object, which takes seconds.

    Args:
        status: As `sys.exit` takes it.
    """
    if isinstance(status, str):
        sys.stderr.write(f"{status}\n")
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 0 if status is None else 1)


if __name__ == "__main__":
    console()
