"""The package as it is installed: experiments and the miniature from an empty folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rbft.runtime.experiments import experiment_names
from tests.recipe.runs import ROOT

pytestmark = [pytest.mark.recipe, pytest.mark.long]
SOURCES = ("rbft", "experiments", "pyproject.toml", "README.md", "LICENSE")


def test_a_wheel_runs_the_miniature_from_any_folder(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    made, installed, empty = (tmp_path / name for name in ("made", "installed", "empty"))
    made.mkdir()
    empty.mkdir()
    for name in SOURCES:  # a build leaves files beside them
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, made / name, symlinks=True)
        else:
            shutil.copy(ROOT / name, made / name)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", tmp_path, made], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    held = {path.stem for path in (installed / "rbft/experiments").rglob("*.yaml")}
    assert held == {Path(name).name for name in experiment_names()}

    def rbft(*args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "rbft", *args],
            cwd=empty,
            env={**os.environ, "PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert rbft("experiments").startswith(f"{installed}/rbft/experiments:\n")
    few = ["--data.train_size=8", "--data.test_size=4", "--trainer.max_epochs=1"]
    assert "Stage II (labels)" in rbft("fit", "miniature", "--dry_run", *few)
    assert not any(empty.iterdir())
    said = rbft("fit", "experiments/miniature.yaml", "--config=hardware/tiny", *few)
    assert "4 clips, coverage 100 %." in said
    settings = (empty / "lightning_logs/miniature/settings.yaml").read_text(encoding="utf-8")
    assert f"backbone: {installed}/rbft/miniature/base\n" in settings
