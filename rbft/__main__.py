"""`python -m rbft`."""

import os
import signal
import sys

from rbft.commands import LIGHT


def main() -> None:
    """Runs one command; those that need no torch do without it."""
    if sys.argv[1:2] and sys.argv[1] in LIGHT:
        from rbft.light import run_light

        run_light(sys.argv[1], sys.argv[2:])
        return
    from rbft.cli import main as run

    run()


if __name__ == "__main__":
    # The imports take seconds, in which there is nothing to save yet: Ctrl-C ends them in silence.
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
    main()
