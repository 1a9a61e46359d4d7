"""`--help` explains every setting of ours, for every command and benchmark."""

import re

import pytest

from rbft.cli import BENCHMARKS, RBFTCLI
from tests.recipe.runs import rbft, rbft_process

pytestmark = pytest.mark.recipe
COMMANDS = sorted(RBFTCLI.subcommands())
# An option at the start of a line, and its text up to the next option or the next group.
ENTRY = re.compile(r"^  (?:-\w, )?(--[\w.]+).*?(?=^  -|^\S|\Z)", re.MULTILINE | re.DOTALL)


def help_of(capsys: pytest.CaptureFixture[str], tmp_path, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        rbft(tmp_path, *arguments)
    assert ended.value.code == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out


def entries(text: str) -> dict[str, str]:
    """What is said about each option, without its name, type and default."""
    options = text[text.index("\noptions:") :] if "\noptions:" in text else text
    said = {}
    for entry in ENTRY.finditer(options):
        words = re.sub(r"\s+", " ", entry[0])
        words = re.sub(r"\((type:|required, type:|default:).*\)\s*$", "", words)
        said[entry[1]] = re.sub(r"^(?: ?,? ?-\S+(?: [A-Z{\[][^a-z ]*\S*)?)+", "", words).strip()
    return said


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_is_explained(command, tmp_path, capsys):
    said = entries(help_of(capsys, tmp_path, command, "--help"))
    ours = {name: text for name, text in said.items() if not name.startswith("--trainer")}
    if command in ("fit", "test", "predict"):
        assert {"--model.backbone", "--model.stage", "--name", "--stages", "--data"} <= set(ours)
    blank = [name for name, text in ours.items() if len(text) < 10]
    assert not blank


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_setting_of_a_benchmark_is_explained(benchmark, tmp_path, capsys):
    said = entries(help_of(capsys, tmp_path, "fit", f"--data.help={benchmark.__name__}"))
    assert {"--data.fps", "--data.rationale_ratio"} <= set(said)
    blank = [name for name, text in said.items() if len(text) < 10]
    assert not blank


def test_the_overview_names_every_command(tmp_path):
    process = rbft_process(tmp_path, "--help")
    assert process.returncode == 0
    for command in COMMANDS:
        line = re.search(rf"^ +{command} +(\S.*)$", process.stdout, re.MULTILINE)
        assert line, command
        assert len(line[1]) > 15
    assert "usage: python -m rbft " in process.stdout
