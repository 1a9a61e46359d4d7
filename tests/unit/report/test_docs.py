"""docs/report.md: its commands run as they stand there, its options are those of the command."""

import re
import shlex
from inspect import signature

from rbft.commands.report import report
from rbft.light import run_light
from tests.recipe.runs import ROOT, command_blocks
from tests.report_runs import answers, settings, write_run

PAGE = (ROOT / "docs/report.md").read_text(encoding="utf-8")


def test_its_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, stages in (("smarthome_qwen25", ["rationale", "label"]), ("third", ["label"])):
        write_run(tmp_path / "lightning_logs", settings(name, stages), answers(20, 0.8, 0))
    direct = settings("smarthome_qwen25_direct", ["label"])
    write_run(tmp_path / "lightning_logs", direct, answers(20, 0.7, 1))
    commands = [line for block in command_blocks(PAGE) for line in block.splitlines()]
    assert len(commands) == 2
    for command in commands:
        python, module, package, name, *options = shlex.split(command)
        assert (python, module, package, name) == ("python", "-m", "rbft", "report")
        run_light(name, options)
    shown = capsys.readouterr().out
    assert shown.startswith("Put 3 runs on one page in ")
    assert "Put 2 runs on one page in " in shown
    made = {one.name for one in (*tmp_path.iterdir(), *(tmp_path / "lightning_logs").iterdir())}
    assert {"report.html", "appendix.html", "appendix.md"} <= made
    assert "report.md" not in made
    both = (tmp_path / "appendix.html").read_text() + (tmp_path / "appendix.md").read_text()
    assert "third" not in both
    assert "smarthome_qwen25_direct" in both


def test_its_options_and_sections_are_those_of_the_command(content):
    options = set(re.findall(r"`--(\w+)", PAGE))
    assert options == set(signature(report).parameters) | {"logs"}
    named = {
        name
        for cell in re.findall(r"^\| ([A-Z][^|]+) \|", PAGE, re.MULTILINE)
        for name in cell.split(", ")
    }
    titles = {one.title for one in content.sections} | {"Learning curves", "Surest mistakes"}
    assert named == titles - {"Runs"}
