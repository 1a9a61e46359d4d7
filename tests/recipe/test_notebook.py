"""docs/example.ipynb: its cells run in order, with fewer clips."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from rbft.commands.overview import in_full
from tests.recipe.runs import ROOT, rbft

pytestmark = pytest.mark.recipe
FILE = ROOT / "docs/example.ipynb"
NOTEBOOK = json.loads(FILE.read_text(encoding="utf-8"))
FEWER = {"train_size": 8, "test_size": 4, "max_epochs": 1}


def sources(kind: str) -> list[str]:
    return ["".join(one["source"]) for one in NOTEBOOK["cells"] if one["cell_type"] == kind]


def fewer(command: str) -> str:
    """The command with as little as shows that it runs."""
    for name, value in FEWER.items():
        command, count = re.subn(rf"\.{name} \d+", f".{name} {value}", command)
        assert count == 1, name
    return command


def test_its_cells_run_in_order(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cache: Path,
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    said = []
    for cell in sources("code"):
        if cell.startswith("!"):
            (command,) = cell.splitlines()
            python, module, package, *args = shlex.split(fewer(command)[1:])
            assert (python, module, package) == ("python", "-m", "rbft")
            rbft(tmp_path, *in_full(args))
        else:
            exec(cell, names)
        said.append(capsys.readouterr().out)
    trained, scored, rationales, answers, rationale, _ = said
    assert "Stage II (labels)" in trained
    assert len(re.findall(r"^\w+ +[01]\.\d{3}  \[[\d., ]+\]$", scored, re.M)) == 3
    assert len(re.findall(r"^target-train-\d+ - subjects : ", rationales, re.M)) == 3
    assert len(re.findall(r"^videos/test/\w+/\S+\.mp4 (ab)?normal [01]\.\d\d$", answers, re.M)) == 4
    assert rationale.strip()
    (figure,) = shown
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 4
    assert all(re.fullmatch(r"(ab)?normal\n(ab)?normal \(\d+%\)", title) for title in titles)
    plt.close(figure)


def test_it_holds_no_outputs_and_its_links_lead_somewhere() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["metadata"]["kernelspec"]["name"]) == (4, "python3")
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    links = re.findall(r"\]\(([^)#]+)\)", "".join(sources("markdown")))
    assert len(links) >= 3
    assert all((FILE.parent / link).exists() for link in links)
