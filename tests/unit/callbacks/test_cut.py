from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from rbft.callbacks.cut import CutRationales, cut_note
from rbft.module import RBFTModule
from tests.examples import CARD, MODULE_SETTINGS, Texts, Yard, fed, rationale, trainer

NOTE = (
    "2 of 6 rationales (33.3%) were cut off at model.max_new_tokens (6) and are trained without "
    "the end of the turn. To have whole ones, raise model.max_new_tokens and start a run of "
    "another name: all rationales are written anew."
)


def test_the_note() -> None:
    assert cut_note(2, 6, 6) == NOTE
    assert cut_note(0, 6, 6) == ""


@pytest.mark.parametrize(
    ("stage", "cut", "shown", "logged"),
    [
        ("rationale", ["train_1", "train_4", "val_0"], f"Stage I (rationales): {NOTE}\n", 1 / 3),
        ("rationale", [], "", 0.0),
        ("label", ["train_1"], "", None),
    ],
)
def test_said_and_logged_before_training(
    qwen: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    cut: list[str],
    shown: str,
    logged: float | None,
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    yard = Yard(tmp_path / "card.yaml", {"train": 6, "val": 1})
    clips = yard.clips("train") + yard.clips("val")
    yard.feed = replace(yard.feed, rationales=Texts({c.id: rationale(c) for c in clips}, cut))
    logger = TensorBoardLogger(tmp_path / "logs", default_hp_metric=False)
    settings: dict[str, Any] = {"callbacks": [CutRationales()], "logger": logger, "max_steps": 1}
    model = RBFTModule(str(qwen), CARD, stage=stage, **MODULE_SETTINGS)
    trainer(tmp_path, **settings).fit(model, fed(yard, model))
    assert capsys.readouterr().out == shown
    events = EventAccumulator(logger.log_dir).Reload()
    curves = events.Tags()["scalars"]
    if logged is None:
        assert "train/cut_rationales" not in curves
    else:
        values = [event.value for event in events.Scalars("train/cut_rationales")]
        assert values == [pytest.approx(logged, abs=1e-4)]
