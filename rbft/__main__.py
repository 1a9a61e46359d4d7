"""`python -m rbft`, and the console script `rbft`."""

import os
import signal
import sys

from rbft.commands import COMMANDS, LIGHT


def main() -> None:
    """Runs one command; those that need no torch do without it."""
    from rbft.commands.overview import in_full, overview, program, unknown_command

    # In place: processes that a Trainer starts are given the same.
    args = sys.argv[1:] = in_full(sys.argv[1:])
    name = args[0] if args else "--help"
    if name in ("-h", "--help", "help"):
        sys.stdout.write(f"{overview()}\n")
    elif name in ("-V", "--version"):
        sys.stdout.write(f"{program()}\n")
    elif name not in COMMANDS and not name.startswith("-"):
        sys.exit(_refuse(unknown_command(name)))
    elif name in LIGHT:
        from rbft.light import run_light

        run_light(name, args[1:])
    else:
        _run(name, args)


def _refuse(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return 2


def _run(name: str, args: list[str]) -> None:
    if sys.stderr.isatty() and "LOCAL_RANK" not in os.environ and "--help" not in args:
        sys.stderr.write(f"{name}: loading torch and transformers\n")
    from rbft.cli import main as run

    run()


def console() -> None:
    """The program: also before anything is imported, Ctrl-C ends it without a traceback."""
    # The imports take seconds, in which there is nothing to save yet.
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
    main()


if __name__ == "__main__":
    console()
