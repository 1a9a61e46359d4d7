"""Commands that need no torch do without it, with the options and errors of the others."""

import os
import subprocess
import sys
from pathlib import Path

from rbft.commands import COMMANDS, LIGHT
from tests.recipe.runs import ROOT
from tests.report_runs import answers, settings, write_run


def rbft(folder: Path, *args: str, code: str = "") -> subprocess.CompletedProcess:
    """`python -m rbft`, or the same after some code."""
    start = ["-c", code, *args] if code else ["-m", "rbft", *args]
    return subprocess.run(
        [sys.executable, *start],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_report_is_made_without_torch_and_quickly(tmp_path):
    write_run(tmp_path / "lightning_logs", settings("run", ["label"]), answers(20, 0.8, 0))
    code = (
        "import sys, runpy\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] in ('torch', 'lightning', 'transformers', 'sklearn'):\n"
        "            raise ImportError(f'{name} was imported')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "sys.argv[0] = 'rbft'\n"
        "runpy.run_module('rbft', run_name='__main__')\n"
    )
    done = rbft(tmp_path, "report", "--format", "both", code=code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Put 1 run on one page in ")
    page = (tmp_path / "lightning_logs/report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert (tmp_path / "lightning_logs/report.md").read_text().startswith("# Report\n")
    seconds = float(done.stdout.partition(" page in ")[2].partition(" s")[0])
    assert seconds < 10


def test_help_and_errors_are_those_of_the_other_commands(tmp_path):
    shown = rbft(tmp_path, "report", "--help")
    assert shown.returncode == 0
    assert "usage: python -m rbft report " in shown.stdout
    assert "Put runs on one page" in shown.stdout
    for option in ("--runs", "--logs", "--output", "--format", "--title", "--frames", "--max_mb"):
        assert option in shown.stdout
    for args, said in (
        (["--logs=nowhere"], "error: nowhere holds no run. Train one (python -m rbft fit), or"),
        (["--run=x"], "error: there is no setting 'run'. Did you mean runs?"),
        (["--format=pdf"], "error: format is 'pdf'; allowed is"),
        (["--max_mb=0"], "error: max_mb (0) must be above 0; it is megabytes."),
    ):
        done = rbft(tmp_path, "report", *args)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(said), done.stderr
        assert done.stdout == ""


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    write_run(tmp_path / "lightning_logs", settings("run", ["label"]), answers(20, 0.8, 0))
    (tmp_path / "file").touch()
    done = rbft(tmp_path, "report", "--output=file/report.html")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: file cannot be read or written: a file stands where a folder should be. "
    )


def test_light_commands_are_commands():
    assert set(LIGHT) <= set(COMMANDS)
