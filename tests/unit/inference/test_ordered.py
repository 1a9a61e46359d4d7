"""Classes that are levels of a scale, from the model's answers to files, tables and metrics."""

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error

from rbft.analysis.scored import ScoredClips
from rbft.callbacks.answer_rows import prediction_row
from rbft.callbacks.predictions import PredictionWriter
from rbft.callbacks.results import ResultsWriter
from rbft.endpoint import _expected, _metrics
from rbft.inference.classifier import Classified
from rbft.inference.metrics import ClassificationMetrics
from rbft.inference.ordered import expected_values
from rbft.inference.result_table import result_table
from rbft.inference.server_answer import AnsweredClass
from rbft.module import RBFTModule
from tests.examples import CARD, MODULE_SETTINGS, Damaged, fed, trainer

LEVELS = (1.0, 2.0, 4.0)
SCALE = replace(
    CARD,
    # Of one length: a random backbone would be sure of the shortest.
    words={"calm": "ab", "loud": "cd", "wild": "ef"},
    values=dict(zip(("calm", "loud", "wild"), LEVELS, strict=True)),
)


def rank_correlation(a: Any, b: Any) -> float:
    """Of scipy."""
    found: Any = spearmanr(a, b)
    return found.statistic


def model_of(folder: Path, **settings: Any) -> RBFTModule:
    made = RBFTModule(str(folder), SCALE, **{**MODULE_SETTINGS, **settings})
    made.configure_model()
    return made.eval()


def yard(folder: Path, damaged: str = "", **counts: int) -> Damaged:
    SCALE.save(folder / "card.yaml")
    return Damaged(folder / "card.yaml", counts, eval_batch_size=2, damaged=[damaged])


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_expected_values() -> None:
    predictions = torch.tensor([0, 2, 3])
    shares = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.25, 0.75], [1.0, 0.0, 0.0]])
    found = expected_values(predictions, shares, LEVELS).tolist()
    assert found == [2.0, 3.5, pytest.approx(math.nan, nan_ok=True)]
    found = expected_values(predictions, None, LEVELS).tolist()
    assert found == [1.0, 4.0, pytest.approx(math.nan, nan_ok=True)]


def test_the_metrics_are_over_all_clips_that_count() -> None:
    metrics = ClassificationMetrics(SCALE.classes, LEVELS)
    shares = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5], [0.0, 0.0, 1.0]])
    predictions, labels = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 1, 0, 2])
    everything = torch.ones(4, dtype=torch.bool)
    metrics.update(predictions, labels, everything, shares)
    repeated = torch.zeros(2, dtype=torch.bool)  # to even out processes
    metrics.update(predictions[:2], torch.tensor([-1, 2]), repeated, shares[:2])
    written = (torch.tensor([2, 2]), torch.tensor([2, 1]), torch.ones(2, dtype=torch.bool))
    metrics.update(*written)
    found = metrics.compute()
    expected, answered, true = (
        [1.6, 2.1, 2.8, 4.0, 4.0], [1.0, 2.0, 4.0, 4.0, 4.0], [2.0, 2.0, 1.0, 4.0, 2.0]
    )  # fmt: skip
    assert found["mae"] == pytest.approx(mean_absolute_error(true, expected), abs=1e-6)
    assert found["mae/answer"] == pytest.approx(mean_absolute_error(true, answered))
    assert found["spearman"] == pytest.approx(rank_correlation(true, expected))
    assert list(found)[-4:] == ["n", "mae", "mae/answer", "spearman"]
    assert found["accuracy"] == pytest.approx(2 / 6)
    metrics.reset()
    metrics.update(*written)
    assert metrics.compute()["mae"] == 1.0
    assert math.isnan(metrics.compute()["spearman"])
    metrics.reset()


@pytest.mark.parametrize("answer", ["score", "generate"])
def test_what_a_scored_split_leaves(qwen: Path, tmp_path: Path, answer: str) -> None:
    class Logged(Callback):
        def on_test_end(self, trainer: Any, pl_module: Any) -> None:
            self.found = dict(trainer.callback_metrics)

    file, logged = tmp_path / "label/test.json", Logged()
    data, model = yard(tmp_path, "test_3", test=7), model_of(qwen, answer=answer)
    writer = ResultsWriter(file, "test", {"run": "yard", "stage": "label"})
    trainer(tmp_path, callbacks=[writer, logged]).test(model, fed(data, model), verbose=False)
    result, rows = json.loads(file.read_text(encoding="utf-8")), lines(
        file.with_name("test_predictions.jsonl")
    )  # fmt: skip
    assert result["values"] == SCALE.values
    have = [row for row in rows if row.get("expected") is not None]
    assert "expected" not in rows[3]
    values = dict(SCALE.values or {})
    for row in have:
        shares = row.get("probabilities", {row["prediction"]: 1.0})
        mean = sum(share * values[name] for name, share in shares.items())
        assert row["expected"] == pytest.approx(mean, abs=1e-5)
    if answer == "generate":  # a random model answers in no class word
        assert all(row["expected"] is None for row in rows if "error" not in row)
        assert result["metrics"]["mae"] is None
        assert "test/mae" not in logged.found
        return
    assert len(have) == 6
    true, expected = ([values[row["label"]] for row in have], [row["expected"] for row in have])
    answered = [values[row["prediction"]] for row in have]
    assert result["metrics"]["mae"] == pytest.approx(mean_absolute_error(true, expected), abs=1e-5)
    assert result["metrics"]["mae/answer"] == pytest.approx(mean_absolute_error(true, answered))
    assert result["metrics"]["spearman"] == pytest.approx(rank_correlation(true, expected))
    for name in ("mae", "mae/answer", "spearman"):
        assert logged.found[f"test/{name}"].item() == pytest.approx(result["metrics"][name])
    # From the files, as `compare` and `report` read them.
    assert ScoredClips.from_file(file).level_scores == pytest.approx(
        {name: result["metrics"][name] for name in ("mae", "mae/answer", "spearman")}, abs=1e-5
    )
    ends = [result["intervals"][name] for name in ("mae", "mae/answer", "spearman")]
    shown = [result["metrics"][name] for name in ("mae", "mae/answer", "spearman")]
    assert all(end["low"] <= value <= end["high"] for end, value in zip(ends, shown, strict=True))
    table = result_table([("Stage II (labels)", result)]).splitlines()[-5:]
    assert re.split(r"\s{2,}", table[0]) == [
        "levels, 1 to 4",
        "MAE",
        "MAE of the answer",
        "Spearman",
    ]
    assert re.split(r"\s{2,}", table[2]) == ["median level", "0.429", "0.429", "-"]
    assert re.split(r"\s{2,}", table[3]) == [
        "Stage II (labels)",
        *(
            f"{value:.3f} [{end['low']:.2f}, {end['high']:.2f}]"
            for value, end in zip(shown, ends, strict=True)
        ),
    ]


def test_validation_logs_them(qwen: Path, tmp_path: Path) -> None:
    data, model = yard(tmp_path, val=6), model_of(qwen)
    worker = trainer(tmp_path)
    worker.validate(model, fed(data, model), verbose=False)
    assert {"val/mae", "val/mae/answer", "val/spearman"} <= set(worker.callback_metrics)


def test_predictions(qwen: Path, tmp_path: Path) -> None:
    data, model, output = yard(tmp_path, test=4), model_of(qwen), tmp_path / "p.jsonl"
    writer = PredictionWriter(
        output, data.clips("test"), SCALE.classes, {}, lambda clip: clip.id, levels=SCALE.levels
    )
    data.feed = replace(data.feed, predict_clips=writer.todo)
    trainer(tmp_path, callbacks=[writer]).predict(
        model, datamodule=fed(data, model), return_predictions=False
    )
    rows = lines(output)
    for row in rows:
        shares = row["probabilities"]
        assert row["expected"] == pytest.approx(
            shares["calm"] + 2 * shares["loud"] + 4 * shares["wild"], abs=1e-5
        )
    with output.with_suffix(".csv").open(encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert [float(row["expected"]) for row in table] == [row["expected"] for row in rows]
    assert [*table[0]].index("expected") == [*table[0]].index("probability_wild") + 1


def test_answers_of_a_server(tmp_path: Path) -> None:
    data = yard(tmp_path, test=1)
    rows = [
        {"label": "calm", "prediction": "calm", "probabilities": {"calm": 0.5, "wild": 0.5}},
        {"label": "wild", "prediction": "loud"},
        {"label": "wild", "prediction": None},
    ]
    found = _metrics(data, rows).compute()
    assert (found["mae"], found["mae/answer"]) == ((1.5 + 2.0) / 2, (0.0 + 2.0) / 2)
    shares = AnsweredClass("calm", {"calm": 0.75, "loud": 0.0, "wild": 0.25})
    assert _expected(shares, SCALE.values or {}) == 1.75
    assert _expected(AnsweredClass("wild"), SCALE.values or {}) == 4.0
    assert _expected(AnsweredClass(None), SCALE.values or {}) is None


class Clips:
    errors = ("", "")


def test_a_threshold_leaves_the_expected_value() -> None:
    scores = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]).log()
    outputs = Classified.by_scores(scores, ["", ""])
    row = prediction_row(outputs, Clips, 0, SCALE.classes, ("wild", 0.2), LEVELS)
    assert (row["label"], row["likeliest"], row["expected"]) == ("wild", "calm", 2.0)
    assert "expected" not in prediction_row(outputs, Clips, 0, SCALE.classes)
