"""What the command line hands to the method, and builds; nothing is loaded or trained."""

import logging
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelSummary

import rbft.cli
from rbft.cli import main, silence_known_warnings
from rbft.miniature.data import Miniature
from rbft.runtime.fault_tolerance import Stopped
from rbft.training.checkpoints import WholeCheckpoints
from tests.recipe.runs import small


class Noted:
    """Stands for the method; notes what is called, with what."""

    calls: list[tuple[Any, ...]]
    cli: Any

    def __init__(self, cli: Any) -> None:
        type(self).cli, type(self).calls = cli, []
        self.run = SimpleNamespace(folder=Path("logs/run"))

    def __getattr__(self, name: str) -> Any:
        return lambda *given: self.calls.append((name, *given))


@pytest.fixture
def command(qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command with the options of a small run, and returns what the method was told."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["rbft"])  # Lightning compares
    monkeypatch.setattr(rbft.cli, "Method", Noted)
    threads = torch.get_num_threads()

    def run(name: str, *more: str) -> list[tuple[Any, ...]]:
        main([name, *small(qwen), *more])
        return Noted.calls

    yield run
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "more", "calls"),
    [
        ("fit", [], [("fit", None, False, False, None)]),
        (
            "fit",
            ["--ckpt_path=a.ckpt", "--restart=true", "--dry_run=true", "--gpu_gb=24"],
            [("fit", Path("a.ckpt"), True, True, 24.0)],
        ),
        ("rationalize", [], [("check",), ("write_rationales", None)]),
        (
            "rationalize",
            ["--prompts=[less,least]"],
            [("check",), ("write_rationales", ["less", "least"])],
        ),
        ("test", [], [("score_command", "test", "run")]),
        ("validate", ["--weights=backbone"], [("score_command", "val", "backbone")]),
        (
            "predict",
            ["--videos=v.mp4"],
            [("predict", [Path("v.mp4")], Path("predictions.jsonl"), "run", False)],
        ),
        (
            "predict",
            ["--videos=[a.mp4,b]", "--output=o.jsonl", "--weights=w", "--rationale=true"],
            [("predict", [Path("a.mp4"), Path("b")], Path("o.jsonl"), "w", True)],
        ),
        ("export", ["--output=o"], [("export", Path("o"), "run", "base")]),
        (
            "export",
            ["--output=o", "--format=swift", "--split=val", "--answers=rationale"],
            [("export_split", "swift", "rationale", "val", Path("o"))],
        ),
    ],
)
def test_what_a_command_hands_over(command, name, more, calls):
    assert command(name, *more) == calls


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
    ],
)
def test_export_refuses_what_its_format_does_not_use(command, capsys, options, message):
    with pytest.raises(SystemExit) as end:
        command("export", "--output=o", *options)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert Noted.calls == []


def test_what_is_built(command, monkeypatch):
    heard: list[Any] = []
    monkeypatch.setattr(rbft.cli, "take_signals", heard.append)
    drawn = torch.initial_seed()
    command(
        "fit",
        "--trainer.callbacks=ModelSummary",
        "--seed_everything=9",
        "--trainer.logger=false",
        "--model.stage=rationale",
        "--cpu_threads=2",
    )
    assert torch.initial_seed() == 9 != drawn
    assert torch.get_num_threads() == 2
    cli, ours = Noted.cli, WholeCheckpoints()
    assert cli.trainer is None  # every step of the method builds its own
    added = ModelSummary(max_depth=3)
    cli.build(callbacks=[added], plugins=[ours], max_epochs=7, enable_checkpointing=False)
    trainer: Any = cli.trainer
    assert heard == [trainer]
    assert trainer.max_epochs == 7
    kinds = [type(callback) for callback in trainer.callbacks]
    assert kinds.count(ModelSummary) == 2
    assert added in trainer.callbacks
    assert trainer.strategy.checkpoint_io is ours
    assert isinstance(cli.datamodule, Miniature)
    assert cli.model.card is cli.datamodule.card
    assert cli.model.stage.name == "rationale"
    first = cli.datamodule
    cli.build(callbacks=[], enable_checkpointing=False)
    assert cli.datamodule is not first
    other = cli.build_data()
    assert isinstance(other, Miniature)
    assert other.sizes["train"] == 14
    assert "train_size: 14\n" in cli.resolved()
    assert "checkpoint_every: 50\n" in cli.resolved()
    assert "score_each_stage: true\n" in cli.resolved()
    assert "ckpt_path: null\n" in cli.resolved()


def test_tools_need_no_experiment(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["rbft"])
    monkeypatch.setattr(rbft.cli, "Method", Noted)
    Noted.calls = []
    main(["cache", f"--folder={tmp_path}"])
    assert capsys.readouterr().out.startswith(f"{tmp_path}\n")
    card = tmp_path / "card.yaml"
    main(["init", "--domain=yard", "--classes=[a,b]", f"--output={card}"])
    assert f"Wrote {card}: put your own words into it.\n" in capsys.readouterr().out
    assert Noted.calls == []


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
        assert said.endswith("RuntimeError: boom\n\n")
    else:
        assert (status, left, said) == (fault, [], "")
    full = OSError(28, "No space left on device", "a.txt")
    status, said = end(full)
    assert (status, left) == (2, [2])
    assert said.startswith("error: a.txt cannot be written: No space left on device.")
    status, said = end(Stopped(15))
    assert (status, left) == (143, [143])
    assert said.startswith("stopped by SIGTERM") == (rank == 0)
    status, said = end(SystemExit(2))
    assert (status, left, said) == (2, [2], "")
    status, said = end(SystemExit("no"))
    assert (status, left, said) == ("no", [1], "")
