"""What is known of commands without importing them is what their functions say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rbft.commands import COMMANDS, find_command, takes_experiment
from rbft.commands.overview import (
    EXAMPLES,
    SYNONYMS,
    command,
    in_full,
    overview,
    unknown_command,
)

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_read_from_its_file(name: str) -> None:
    function, found = find_command(name), command(name)
    assert found.summary == (function.__doc__ or "").splitlines()[0]
    assert found.experiment == takes_experiment(function)
    assert EXAMPLES[name].split()[0] == name


def test_other_names_lead_to_commands() -> None:
    assert set(SYNONYMS.values()) <= set(COMMANDS)
    assert not set(SYNONYMS) & set(COMMANDS)
    assert unknown_command("train").startswith("there is no command 'train'. Did you mean fit? ")
    assert "Did you mean rationales or rationalize? " in unknown_command("rationalis")
    assert unknown_command("xyz") == (
        f"there is no command 'xyz'. Allowed are {', '.join(COMMANDS)}."
    )


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("", ""),
        ("fit a.yaml", "fit --config=a.yaml"),
        ("fit miniature hardware/tiny", "fit --config=miniature --config=hardware/tiny"),
        ("predict a.mp4", "predict a.mp4"),
        ("test a.yml b.yaml --x=c.yaml", "test --config=a.yml --config=b.yaml --x=c.yaml"),
        ("fit --config a.yaml", "fit --config a.yaml"),
        ("fit --dry_run", "fit --dry_run=true"),
        ("fit a.yaml --dry_run --name x", "fit --config=a.yaml --dry_run=true --name x"),
        ("fit --dry_run false", "fit --dry_run false"),
        ("fit --dry_run=false", "fit --dry_run=false"),
        ("fit --score_each_stage", "fit --score_each_stage=true"),
        (
            "fit --model.packing --data.class_weights",
            "fit --model.packing=true --data.class_weights=true",
        ),
        ("fit --print_config --name x", "fit --print_config --name x"),
        ("compare --matched --seeds 3", "compare --matched=true --seeds 3"),
        ("compare a.yaml", "compare a.yaml"),  # takes --configs
        ("export --matched", "export --matched"),  # no option of it: refused later
        ("train a.yaml", "train a.yaml"),
        ("predict --videos a.mp4", "predict --videos a.mp4"),
        (
            "predict --videos a.mp4 b.mp4 -c.mp4 --rationale",
            "predict --videos+=a.mp4 --videos+=b.mp4 --videos+=-c.mp4 --rationale=true",
        ),
        ("predict a.yaml --videos x y", "predict --config=a.yaml --videos+=x --videos+=y"),
        (
            "export --adapters a=x y --output o",
            "export --adapters+=a=x --adapters+=y --output o",
        ),
    ],
)
def test_what_may_be_left_out(given: str, made: str) -> None:
    assert in_full(given.split()) == made.split()


def test_the_overview_fits_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, overview().splitlines())) <= 80
    for name in COMMANDS:
        assert f"$ rbft {EXAMPLES[name]}\n" in overview()


@pytest.mark.parametrize(
    ("args", "status", "out", "err"),
    [
        ([], 0, "usage: python -m rbft COMMAND", ""),
        (["-h"], 0, "usage: python -m rbft COMMAND", ""),
        (["--version"], 0, "rbft ", ""),
        (
            ["train", "a.yaml"],
            2,
            "",
            "error: there is no command 'train'. Did you mean fit? ",
        ),
        (["init", "--domain=x"], 2, "", "error: The classes must be known: add --videos FOLDER"),
        (["init", "--domain=x", "--classes=[a, b]"], 0, "Wrote card.yaml: put your own words ", ""),
        (["predict", "--weights=nowhere", "--videos=x"], 2, "", "error: --weights nowhere does no"),
        (["demo"], 2, "", "error: demo needs a model. Add --weights FOLDER, the folder of a run"),
        (["fit", "--help"], 0, "usage: python -m rbft fit [EXPERIMENT ...]", ""),
        (["fit", "miniature", "--help", "lora"], 0, "  --model.lora  settings|null", ""),
        (["help", "fit", "trainer"], 0, "The Trainer of Lightning (trainer):", ""),
        (["predict", "-h"], 0, "usage: python -m rbft predict [EXPERIMENT ...]", ""),
        (["compare", "--help"], 0, "usage: python -m rbft compare [--OPTION", ""),
        (["fit", "--help=xyz"], 2, "", "error: --help xyz is no group and no setting of fit."),
        (["fit", "--model.lr=1"], 2, "", "error: there is no setting 'model.lr'. Did you mean "),
        (["fit", "miniatur"], 2, "", "error: there is no experiment 'miniatur', neither "),
        (["experiments"], 0, str(ROOT / "experiments"), ""),
        (["cache", "--folder=."], 0, "./\n---".replace("/", ""), ""),
        (["cache", "--clear=x"], 2, "", "error: clear is 'x'; allowed is 'frames', 'features'"),
    ],
)
def test_what_needs_no_torch_does_without_it(
    tmp_path: Path, args: list[str], status: int, out: str, err: str
) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    done = subprocess.run(
        [sys.executable, "-m", "rbft", *args],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout[: len(out)], done.stderr[: len(err)]) == (status, out, err)
    assert bool(done.stdout) == bool(out)
    assert bool(done.stderr) == bool(err)
