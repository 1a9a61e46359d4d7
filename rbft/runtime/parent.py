"""Processes that a launcher has started end with the one that started them; needs no torch."""

import os
import threading
import time

SOON = 0.5  # seconds in which a process whose connections are closed is gone
# The process that has started this one; None where no launcher has.
_parent: int | None = None


def die_with_parent(every: float = 0.5) -> None:
    """Ends this process as soon as the one that started it is gone; a second call does nothing.

    A process that is left alone would wait in a collective, for ever or for half an hour, and keep
    its device. Does nothing in a process that no launcher has started.

    Args:
        every: Seconds between two looks.
    """
    global _parent
    if "LOCAL_RANK" not in os.environ or _parent is not None:
        return
    _parent = os.getppid()

    def watch() -> None:
        while not _is_gone():
            time.sleep(every)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="die-with-parent").start()


def end_if_left_alone() -> None:
    """Ends this process in silence if the one that started it has ended or is about to.

    What went wrong here is then that it was gone, and it has said why.
    """
    if _parent is None:
        return
    time.sleep(SOON)
    if _is_gone():
        os._exit(1)


def _is_gone() -> bool:
    return os.getppid() != _parent
