"""Starts one timed process on one thread, and reads what it recorded."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIBRARIES = ("OMP", "MKL", "OPENBLAS")
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_DISABLED": "true",
    "CUDA_VISIBLE_DEVICES": "",
    "FORCE_QWENVL_VIDEO_READER": "decord",  # one reader for all
}


def launch(python: str, script: list[str], spec: dict[str, Any], file: Path) -> dict[str, Any]:
    """Runs a script of this folder in a process of its own.

    Args:
        python: The interpreter.
        script: Name of the script, and its arguments before the spec.
        spec: What the script is told; `record.file` is what it leaves.
        file: Where to write the spec.

    Returns:
        What the process recorded.

    Raises:
        RuntimeError: With the end of what it said, if it recorded nothing.
    """
    file.write_text(json.dumps(spec), encoding="utf-8")
    command = [python, str(HERE / script[0]), *script[1:], str(file)]
    said = _run(command, file.parent).stdout
    recorded = Path(spec["record"]["file"])
    if not recorded.exists():
        raise RuntimeError(_end(said))
    return json.loads(recorded.read_text(encoding="utf-8"))


def rbft(*command: str, folder: Path) -> None:
    """Runs an rbft command that is not timed.

    Raises:
        RuntimeError: With the end of what it said, if it failed.
    """
    done = _run([sys.executable, "-m", "rbft", *command], folder)
    if done.returncode:
        raise RuntimeError(_end(done.stdout))


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    threads = {f"{library}_NUM_THREADS": "1" for library in LIBRARIES}
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **threads, **OFFLINE},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def _end(said: str) -> str:
    return "\n".join(said.splitlines()[-15:])
