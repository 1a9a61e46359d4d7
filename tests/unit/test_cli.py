"""What the command line hands to the method, and builds; nothing is loaded or trained."""

import errno
import logging
import os
import signal
import time
import warnings
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelSummary

import rbft.build
import rbft.cli
from rbft.build import Experiment, build
from rbft.cli import main, silence_known_warnings
from rbft.commands import COMMANDS, find_command, takes_experiment
from rbft.miniature.data import Miniature
from rbft.runtime.fault_tolerance import Stopped, signals
from rbft.training.checkpoints import WholeCheckpoints
from tests.recipe.runs import small


@dataclass
class Noted:
    """What a command's function was called with."""

    experiment: Any
    options: dict[str, Any]


@pytest.fixture
def command(qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command with the options of a small run, and returns what its function was given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["rbft"])  # Lightning compares
    threads = torch.get_num_threads()
    calls: list[Noted] = []

    def note(name: str) -> Any:
        function = find_command(name)

        def noted(experiment: Any, **options: Any) -> None:
            calls.append(Noted(experiment, options))

        noted.__signature__ = signature(function)  # type: ignore[attr-defined]
        noted.__doc__ = function.__doc__
        return noted

    def run(name: str, *more: str) -> Noted:
        with monkeypatch.context() as patched:
            patched.setattr(rbft.cli, "find_command", note)
            main([name, *small(qwen), *more])
        return calls[-1]

    yield run
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "more", "options"),
    [
        ("fit", [], [None, False, False, None]),
        (
            "fit",
            ["--ckpt_path=a.ckpt", "--restart=true", "--dry_run=true", "--gpu_gb=24"],
            [Path("a.ckpt"), True, True, 24.0],
        ),
        ("rationalize", [], [None]),
        ("rationalize", ["--prompts=[less,least]"], [["less", "least"]]),
        ("rationales", [], [None, None]),
        ("rationales", ["--output=o.html"], [None, Path("o.html")]),
        ("judge", [], [None, 3, None, None, None, False, 1.0, 10]),
        ("test", [], ["run"]),
        ("validate", ["--weights=backbone"], ["backbone"]),
        (
            "predict",
            ["--videos=v.mp4"],
            [Path("v.mp4"), Path("predictions.jsonl"), "run", False, None, None],
        ),
        (
            "predict",
            ["--videos=[a.mp4,b]", "--output=o.jsonl", "--weights=w", "--rationale=true"],
            [[Path("a.mp4"), Path("b")], Path("o.jsonl"), "w", True, None, None],
        ),
        (
            "predict",
            ["--videos=v.mp4", "--every=10", "--window=4.5"],
            [Path("v.mp4"), Path("predictions.jsonl"), "run", False, 10.0, 4.5],
        ),
        ("export", ["--output=o"], [Path("o"), "weights", None, None, None, None, None]),
        (
            "export",
            ["--output=o", "--format=swift", "--split=val", "--answers=rationale"],
            [Path("o"), "swift", None, None, None, "val", "rationale"],
        ),
        ("scan", [], []),
    ],
)
def test_what_a_command_is_given(command, tmp_path, name, more, options):
    noted = command(name, *more)
    assert [*noted.options.values()] == options
    assert noted.experiment.stages == ["rationale", "label"]


def test_every_command_has_a_file_and_a_summary():
    for name in COMMANDS:
        function = find_command(name)
        assert function.__name__ == name
        assert (function.__doc__ or "").splitlines()[0].endswith(".")
    assert [name for name in COMMANDS if not takes_experiment(find_command(name))] == [
        "compare",
        "masked",
        "report",
        "attention",
        "init",
        "experiments",
        "cache",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--split=val"],
            "--split val is an option of conversations (--format llava, llamafactory or swift); "
            "--format weights does not use it. Leave it out.",
        ),
        (["--answers=label"], "--answers label is an option of conversations"),
        (
            ["--format=swift", "--weights=w"],
            "--weights w is an option of --format weights; --format swift does not use it. "
            "Leave it out.",
        ),
        (["--format=llava", "--dtype=base"], "--dtype base is an option of --format weights"),
        (
            ["--format=swift", "--adapters=[a]"],
            "--adapters ['a'] is an option of --format weights; --format swift does not use it. "
            "Leave it out.",
        ),
        (
            ["--weights=run", "--adapters=[a=b, c]"],
            "--weights run is exported by itself, merged, and --adapters beside each other, "
            "unmerged. Leave one of them out.",
        ),
        (
            ["--adapters=[]"],
            "--adapters names none. Give weights folders or runs: NAME=FOLDER.",
        ),
        (["--adapters=nowhere"], "--adapters nowhere does not exist. Give a folder that rbft left"),
    ],
)
def test_export_refuses_what_its_format_does_not_use(
    qwen, tmp_path, monkeypatch, capsys, options, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["rbft"])
    with pytest.raises(SystemExit) as end:
        main(["export", *small(qwen), "--output=o", *options])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_what_is_built(command, monkeypatch):
    heard: list[Any] = []
    monkeypatch.setattr(rbft.build, "take_signals", heard.append)
    drawn = torch.initial_seed()
    experiment = command(
        "fit",
        "--trainer.callbacks=ModelSummary",
        "--seed_everything=9",
        "--trainer.logger=false",
        "--cpu_threads=2",
    ).experiment
    assert torch.initial_seed() == 9 != drawn
    assert torch.get_num_threads() == 2
    settings = experiment.as_yaml()
    added, weights = ModelSummary(max_depth=3), Path("weights")
    named: list[Any] = []
    made = build(
        experiment,
        "rationale",
        None,
        "Title",
        [added],
        module=lambda model: named.append(model) or model,
    )
    trainer: Any = made.trainer
    assert heard == [trainer]
    kinds = [type(callback) for callback in trainer.callbacks]
    assert kinds.count(ModelSummary) == 2
    assert added in trainer.callbacks
    assert isinstance(trainer.strategy.checkpoint_io, WholeCheckpoints)
    assert isinstance(made.data, Miniature)
    module: Any = made.module
    assert named == [module]
    assert module.card == made.data.card
    assert module.stage.name == "rationale"
    collator: Any = made.data.feed.collators["train"]
    assert collator.target_stage is module.stage
    assert trainer.accumulate_grad_batches == made.data.accumulation(1)
    module.tower = "abc"
    assert made.data.feed.tower() == "abc"
    again = build(experiment, "label", None, "Title", feed={"scored_split": "val"})
    assert again.data is not made.data
    assert again.data.feed.scored_split == "val"
    assert trainer.checkpoint_callback is None
    other = experiment.changed(model__weights=weights, data__init_args__train_size=7)
    assert (other.given, other.data().sizes["train"]) == (weights, 7)
    # What was asked for is never changed.
    assert experiment.as_yaml() == settings
    assert (experiment.single, experiment.given) == (None, None)
    assert experiment.data().sizes["train"] == 14
    assert "train_size: 14\n" in settings
    assert "checkpoint_every: 50\n" in settings
    assert "score_each_stage: true\n" in settings
    assert "ckpt_path: null\n" in settings


def test_the_settings_of_a_caller_may_change(command):
    """An experiment keeps its own."""
    experiment = command("fit").experiment
    settings = experiment.settings.clone()
    kept = Experiment(settings, experiment.parser)
    settings.model.stage = "label"
    assert kept.as_yaml() == experiment.as_yaml()


def test_tools_need_no_experiment(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["rbft"])
    main(["cache", f"--folder={tmp_path}"])
    assert capsys.readouterr().out.startswith(f"{tmp_path}\n")
    card = tmp_path / "card.yaml"
    main(["init", "--domain=yard", "--classes=[a,b]", f"--output={card}"])
    assert f"Wrote {card}: put your own words into it.\n" in capsys.readouterr().out


def test_what_is_kept_off_the_screen():
    names = ("lightning.pytorch", "lightning.fabric", "bitsandbytes.backends.cpu.ops")
    before = {name: logging.getLogger(name).level for name in names}
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            silence_known_warnings()
            warnings.warn("The dataloader does not have many workers.", stacklevel=1)
            warnings.warn("Something else.", stacklevel=1)
        levels = [logging.getLogger(name).level for name in names]
        assert levels == [logging.WARNING, logging.WARNING, logging.ERROR]
        assert [str(warning.message) for warning in said] == ["Something else."]
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_how_a_command_ends(monkeypatch, capsys, several, rank):
    """Faults of ours keep their traceback; of several processes each prints it and leaves."""
    left: list[int] = []
    monkeypatch.setattr(rbft.cli, "exit_process", left.append)
    monkeypatch.setattr(rbft.cli, "_get_rank", lambda: rank)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: several)

    def end(error: BaseException) -> tuple[Any, str]:
        def fail(_: Any) -> None:
            raise error

        left.clear()
        monkeypatch.setattr(rbft.cli, "_run", fail)
        with pytest.raises((SystemExit, RuntimeError)) as ended:
            main([])
        status = ended.value.code if isinstance(ended.value, SystemExit) else ended.value
        return status, capsys.readouterr().err

    fault = RuntimeError("boom")
    status, said = end(fault)
    if several:
        assert (status, left) == (1, [1])
        assert said.startswith("Traceback (most recent call last):\n")
        assert said.endswith(
            "RuntimeError: boom\nThis looks like a fault of rbft, not of yours: report it with "
            "this traceback and the command line.\n\n"
        )
    else:
        assert (status, left, said) == (fault, [], "")
    full = OSError(28, "No space left on device", "a.txt")
    status, said = end(full)
    assert (status, left) == (2, [2])
    assert said.startswith("error: a.txt cannot be written: No space left on device.")
    status, said = end(Stopped(15))
    assert (status, left) == (143, [143])
    assert said.startswith("\nstopped by SIGTERM") == (rank == 0)
    status, said = end(SystemExit(2))
    assert (status, left, said) == (2, [2], "")
    status, said = end(SystemExit("no"))
    assert (status, left, said) == ("no", [1], "")


def test_what_a_signal_breaks_off_is_no_fault(monkeypatch, capsys):
    """Libraries turn what is raised amid their imports into errors of their own."""

    monkeypatch.setattr(signals, "received", None)  # put back in the end

    def broken_off(args: list[str] | None) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except BaseException as error:
            raise ModuleNotFoundError("Could not import module 'AutoProcessor'.") from error

    monkeypatch.setattr(rbft.cli, "_run", broken_off)
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
        main([])
    assert "stopped by SIGTERM; saved: " in capsys.readouterr().err


def test_an_error_while_a_signal_waits_is_said(monkeypatch, capsys):
    """What is being saved because of the signal may fail."""

    monkeypatch.setattr(signals, "received", None)  # put back in the end
    monkeypatch.setattr(signals, "held", False)

    def fails(args: list[str] | None) -> None:
        signals.hold()
        os.kill(os.getpid(), signal.SIGTERM)
        raise OSError(errno.ENOSPC, "No space left on device", "step=3.ckpt")

    monkeypatch.setattr(rbft.cli, "_run", fails)
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "error: step=3.ckpt cannot be written: No space left" in capsys.readouterr().err
