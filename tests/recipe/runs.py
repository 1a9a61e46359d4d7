"""Runs of the command line in folders of their own, small enough for a test."""

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rbft.cli import main

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
LOGS = Path("lightning_logs")
STAGES = ("rationale", "label")
VIDEO_INDICES = ("zero_shot", *STAGES)


def small(backbone: Path, *more: str) -> list[str]:
    """Options that make the miniature a matter of seconds: a random backbone, a few clips.

    14 clips in batches of 2 and steps of 4 make seven batches and four steps an epoch, the last
    step of each with half its batches.
    """
    files = ("miniature.yaml", "hardware/tiny.yaml")
    return [
        *(f"--config={EXPERIMENTS / file}" for file in files),
        f"--model.backbone={backbone}",
        "--name=small",
        "--data.train_size=14",
        "--data.test_size=5",
        "--data.eval_batch_size=4",
        "--trainer.max_epochs=2",
        "--trainer.enable_progress_bar=false",
        *more,
    ]


def rbft(folder: Path, *args: str) -> None:
    """Runs a command in this process, in a working directory of its own."""
    before = Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    try:
        with patch.object(sys, "argv", ["rbft"]):  # Lightning compares
            main(list(args))
    finally:
        os.chdir(before)


def rbft_process(folder: Path, *args: str, timeout: float = 300) -> subprocess.CompletedProcess:
    """Runs `python -m rbft` as a user does."""
    folder.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "rbft", *args],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def digest(file: Path) -> str:
    """Hash of a file's bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def weights_file(folder: Path, stage: str, name: str = "small") -> Path:
    """The weights that a stage left."""
    return folder / LOGS / name / stage / "weights" / "model.safetensors"


def outcome(folder: Path, name: str = "small") -> dict[str, str]:
    """Hashes of all that a run leaves but TensorBoard's events, its log and its times, by path.

    Hidden files are what a kill left of an unfinished write.
    """
    logs = folder / LOGS
    files = [file for part in (name, "rationales") for file in sorted((logs / part).rglob("*"))]
    names = {str(file.relative_to(logs)): file for file in files if file.is_file()}
    timed = ("tfevents", "/.", "/usage/", "/log.txt", "/curves.png", "/history.csv")
    found = {n: digest(file) for n, file in names.items() if not any(one in n for one in timed)}
    table = logs / name / "history.csv"
    if table.exists():
        with table.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        kept = [{n: v for n, v in row.items() if not n.startswith("speed/")} for row in rows]
        found[f"{name}/history.csv"] = hashlib.sha256(repr(kept).encode()).hexdigest()
    return found


def read_json(file: Path) -> Any:
    """Content of a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Records of a JSONL file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def rationales(folder: Path) -> Path:
    """The only rationale file of a folder."""
    (file,) = (folder / LOGS / "rationales").glob("*.jsonl")
    return file


def command_blocks(page: str) -> list[str]:
    """The blocks of a Markdown page that name no language: commands, and what they print."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [block for language, block in blocks if not language]
