"""Predictions in full: whose margin it is, and what an interrupted run may go on with."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule

from rbft.callbacks.predictions import PredictionWriter
from rbft.module import Classified
from tests.examples import clips, trainer


def content(clip: Any) -> str:
    return clip.id


CLASSES = ("quiet", "alarm", "fire")
MADE_FROM = {
    "weights": "abc",
    "card": "def",
    "frames": {"fps": 1.0, "max_frames": 8},
    "answer": "score",
}


def test_the_margin_is_to_the_second_of_three_classes(tmp_path: Path) -> None:
    shares = torch.tensor([[0.2, 0.5, 0.3], [0.7, 0.05, 0.25], [0.1, 0.1, 0.8]])
    outputs = Classified(shares.argmax(-1), shares.log(), ["", "", ""])
    batch = SimpleNamespace(
        clips=[clips(3)[place] for place in (2, 0, 1)], weight=torch.ones(3), errors=[""] * 3
    )
    writer = PredictionWriter(tmp_path / "p.jsonl", clips(3), CLASSES, MADE_FROM, content)
    run, model = trainer(tmp_path), LightningModule()
    writer.on_predict_start(run, model)
    writer.on_predict_batch_end(run, model, outputs, batch, 0)
    writer.finish()
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == ["quiet", "fire", "alarm"]
    assert [row["margin"] for row in rows] == pytest.approx([0.45, 0.7, 0.2])
    assert rows[2]["probabilities"] == pytest.approx({"quiet": 0.2, "alarm": 0.5, "fire": 0.3})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            {"frames": {"fps": 2.0, "max_frames": 8}},
            "frames.fps: 1.0 -> 2.0",
        ),
        ({"answer": "generate"}, "answer: score -> generate"),
        ({"card": "other"}, "card: def -> other"),
        ({"rationale": True}, "rationale: None -> True"),
    ],
)
def test_predictions_made_otherwise_are_not_continued(
    tmp_path: Path, other: dict[str, Any], said: str
) -> None:
    output = tmp_path / "p.jsonl"
    writer = PredictionWriter(output, clips(2), CLASSES, MADE_FROM, content)
    writer.on_predict_start(trainer(tmp_path), LightningModule())
    line = (
        json.dumps({"id": "train_0", "path": "train_0.mp4", "video": "train_0", "label": "quiet"})
        + "\n"
    )
    output.write_text(line)
    assert len(PredictionWriter(output, clips(2), CLASSES, MADE_FROM, content).todo) == 1
    with pytest.raises(ValueError, match=re.escape(f"were made otherwise ({said}). Name another")):
        PredictionWriter(output, clips(2), CLASSES, {**MADE_FROM, **other}, content)
    assert output.read_text() == line


def test_of_two_predictions_the_later_counts(tmp_path: Path) -> None:
    """A prediction wins over an error wherever it stands."""
    output = tmp_path / "p.jsonl"
    said = [{"label": "quiet"}, {"label": "alarm"}, {"error": "gone"}, {"error": "gone again"}]
    clip = {"id": "train_0", "path": "train_0.mp4", "video": "train_0"}
    rows = [{**clip, **what} for what in said]
    for chosen, expected in (((0, 1), 1), ((0, 2), 0), ((2, 0), 0), ((2, 3), 3)):
        lines = "".join(f"{json.dumps(rows[place])}\n" for place in chosen)
        output.unlink(missing_ok=True)
        part = output.with_name("p.jsonl.part0")
        part.write_text(lines)
        output.with_suffix(".provenance.json").write_text(json.dumps(MADE_FROM))
        PredictionWriter(output, clips(1), CLASSES, MADE_FROM, content).finish()
        assert [json.loads(line) for line in output.read_text().splitlines()] == [rows[expected]]


def test_processes_wait_before_and_after_the_lines_are_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = PredictionWriter(tmp_path / "p.jsonl", [], CLASSES, MADE_FROM, content)
    run, told = trainer(tmp_path), []
    monkeypatch.setattr(run.strategy, "barrier", told.append)
    monkeypatch.setattr(writer, "finish", lambda: told.append("finished"))
    writer.on_predict_end(run, LightningModule())
    assert told == ["predicted", "finished", "joined"]
