from dataclasses import replace
from pathlib import Path

import pytest

from rbft.callbacks import progress as progress_module
from rbft.callbacks.progress import StepProgress
from rbft.module import RBFTModule
from rbft.runtime.pace import Pace
from tests.examples import CARD, MODULE_SETTINGS, Yard, fed, trainer


class Line:
    """A progress line that keeps all that it is given."""

    def __init__(self, title: str, total: int, done: int = 0, *, shown: bool = True) -> None:
        self.title, self.total, self.done, self.shown, self.bar = title, total, done, shown, None
        self.said: list[str] = []
        LINES.append(self)

    def say(self, text: str) -> None:
        self.said.append(text)

    def update(self, done, facts) -> None:
        self.done = done
        self.said.append(", ".join(text for text, _ in facts()))

    def close(self, facts=()) -> None:
        self.said += [", ".join(text for text, _ in facts)] if facts else []


LINES: list[Line] = []
BATCHES = {"global_batch_size": 2, "batch_size": 2}


@pytest.fixture
def module(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> RBFTModule:
    LINES.clear()
    monkeypatch.setattr(progress_module, "ProgressLine", Line)
    ticks = iter(range(10000))
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: float(next(ticks)))
    return RBFTModule(str(qwen), CARD, stage="label", **MODULE_SETTINGS)


def test_training_says_epoch_step_loss_rate_speed_and_the_time_left(
    module: RBFTModule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yard = Yard(tmp_path / "card.yaml", {"train": 6, "val": 2, "test": 2}, **BATCHES)
    pace = Pace(ahead={"train": 10, "score": 30})
    own = StepProgress("Stage II (labels)", pace)
    run = trainer(tmp_path, callbacks=[own], max_epochs=2)
    rates = []
    step = module.optimizer_step

    def note(*args, **more) -> None:
        rates.append(max(group["lr"] for group in run.optimizers[0].param_groups))
        step(*args, **more)

    module.optimizer_step = note
    run.fit(module, fed(yard, module))
    before, line = LINES
    assert before.said == ["loading the weights"]
    assert (line.title, line.total, line.shown) == ("Stage II (labels)", 6, True)
    steps = [said for said in line.said if said.startswith("epoch")]
    loss = float(run.callback_metrics["train/loss"])
    assert [said.split(", loss")[0] for said in steps] == [
        f"epoch {1 + number // 3}/2, step {number + 1}/6" for number in range(6)
    ]
    # The learning rate that the step was made with, not the next one's.
    assert [f"lr {rate:.1e}" in said for rate, said in zip(rates, steps, strict=True)] == [True] * 6
    assert f"loss {loss:.4f}" in steps[-1]
    assert "clips/s" not in steps[0]  # the first step is not what the others will take
    # In steps 2 to k, a call of the clock is a second; two clips each.
    assert " left" in steps[1]
    each = pace.seconds["train"]
    assert steps[-1].endswith(f", {progress_module.clock(10 * each + 30 * each / 3)} left")
    assert "validating, 1/1 batches" in line.said
    assert line.said[-1].startswith("6 steps in ")
    out = capsys.readouterr().out
    found = run.callback_metrics
    assert f"Stage II (labels), step 6: val/loss {float(found['val/loss']):.4g}, " in out
    assert "Resuming" not in out


def test_a_stage_that_goes_on_says_from_which_step(
    module: RBFTModule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yard = Yard(tmp_path / "card.yaml", {"train": 6, "val": 0, "test": 2}, **BATCHES)
    run = trainer(tmp_path, callbacks=[StepProgress("Stage II (labels)", Pace())], max_epochs=2)
    run.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.completed = 0
    loop = run.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
    loop.completed = loop.ready = 4  # as a checkpoint leaves it
    run.fit(module, fed(yard, module))
    assert "Resuming Stage II (labels) at step 4 of 6\n" in capsys.readouterr().out


def test_scoring_and_writing_count_clips(module: RBFTModule, tmp_path: Path) -> None:
    yard = Yard(tmp_path / "card.yaml", {"train": 2, "val": 2, "test": 3}, eval_batch_size=2)
    yard.feed = replace(yard.feed, predict_clips=yard.clips("test"))
    pace = Pace(ahead={"train": 5})
    run = trainer(tmp_path, callbacks=[StepProgress("Scoring test (label)", pace, shown=False)])
    run.test(module, fed(yard, module), verbose=False)
    line = LINES[-1]
    assert not line.shown
    assert [said.split(" clips,")[0] for said in line.said[:2]] == ["2/3", "3/3"]
    # A third of a training step is its forward pass; at the end only what comes later is left.
    left = progress_module.clock(5 * pace.seconds["score"] * 3)
    assert line.said[1].endswith(f", {left} left")
    assert line.said[2].startswith("3 clips in ")
    pace.ahead = {"answer": 4}
    LINES.clear()
    run = trainer(tmp_path, callbacks=[StepProgress("Stage 0 (writing rationales)", pace)])
    run.predict(module, datamodule=fed(yard, module), return_predictions=False)
    assert pace.seconds.keys() == {"score", "write"}
    assert LINES[-1].said[1].startswith("3/3 clips, ")
    pace.ahead = {"train": 4, "write": 1, "answer": 1}
    assert pace.rest() is not None


def test_where_a_later_kind_of_work_is_unknown_only_its_own_time_is_said(
    module: RBFTModule, tmp_path: Path
) -> None:
    yard = Yard(tmp_path / "card.yaml", {"train": 2, "val": 2, "test": 3}, eval_batch_size=1)
    own = StepProgress("Scoring test (label)", Pace(ahead={"write": 5}))
    run = trainer(tmp_path, callbacks=[own])
    run.test(module, fed(yard, module), verbose=False)
    assert [said.rpartition(" left")[2] for said in LINES[-1].said[:3]] == [" here"] * 3
