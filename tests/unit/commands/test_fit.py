"""What `fit` ends with."""

import shlex
from pathlib import Path

import pytest

from rbft.commands.fit import report_command


@pytest.mark.parametrize(
    ("logs", "options"),
    [
        ("lightning_logs", []),
        ("/disk/logs", ["--logs", "/disk/logs"]),
        ("my logs", ["--logs", "my logs"]),
    ],
)
def test_the_command_that_makes_the_report_can_be_pasted(logs, options):
    command = shlex.split(report_command(Path(logs)))
    assert command == ["python", "-m", "rbft", "report", *options]
