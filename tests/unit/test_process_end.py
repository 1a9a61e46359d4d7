"""The program ends at once, but behind what has asked to be called at the end."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import atexit, sys, threading, time
from rbft import __main__ as program

class Slow:
    def __del__(self):
        print("taken apart")

kept = Slow()
program.kept = kept  # as torch's modules hold what the interpreter would take apart
atexit.register(lambda: print("called at the end"))
late = lambda: (time.sleep(0.2), print("a thread has ended"))
def main():
    threading.Thread(target=late).start()
    print("said")
    {end}
program.main = main
program.console()
"""


@pytest.mark.parametrize(
    ("end", "status", "error"),
    [
        ("return", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('error: no such file')", 1, "error: no such file\n"),
    ],
)
def test_what_is_to_be_called_is_called_and_nothing_is_taken_apart(end, status, error) -> None:
    script = [sys.executable, "-c", SCRIPT.format(end=end)]
    ended = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == status
    assert ended.stdout.splitlines() == ["said", "a thread has ended", "called at the end"]
    assert ended.stderr == error


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    script = [sys.executable, "-c", SCRIPT.format(end="raise RuntimeError('a fault')")]
    ended = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "RuntimeError: a fault"


WAITS = """
import os, signal
from rbft import __main__ as program

def main():  # as amid the imports
    os.kill(os.getpid(), signal.SIGINT)
    print("goes on")
program.main = main
program.console()
"""


@pytest.mark.parametrize(("rank", "status", "said"), [(None, 130, ""), ("1", 0, "goes on\n")])
def test_ctrl_c_amid_the_imports_ends_the_first_process_alone(rank, status, said) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    environment |= {} if rank is None else {"LOCAL_RANK": rank}
    ended = subprocess.run(
        [sys.executable, "-c", WAITS],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, said, "")
