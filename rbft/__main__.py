"""`python -m rbft`."""

import os
import signal

if __name__ == "__main__":
    # The imports take seconds, in which there is nothing to save yet: Ctrl-C ends them in silence.
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
    from rbft.cli import main

    main()
