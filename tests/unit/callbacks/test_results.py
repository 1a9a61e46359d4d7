import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rbft.analysis.calibration import calibration
from rbft.analysis.intervals import wilson
from rbft.analysis.multilabel import MultiLabelClips
from rbft.analysis.scored import ScoredClips
from rbft.callbacks.results import ResultsWriter
from rbft.inference import classifier
from rbft.runs.folder import PROVENANCE, digest
from tests.examples import Yard, fed, module, trainer
from tests.several import PETS, Pets, pet_module


def score(
    folder: Path, work: Path, *callbacks: Callback, split: str = "test", **settings: Any
) -> dict[str, Any]:
    yard = Yard(work / "card.yaml", {"test": 5, "val": 3}, eval_batch_size=2)
    yard.feed = replace(yard.feed, scored_split=split)
    model = module(folder, **settings)
    trainer(work, callbacks=list(callbacks)).test(model, fed(yard, model), verbose=False)
    return json.loads((work / f"label/{split}.json").read_text(encoding="utf-8"))


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("split", "counts"), [("test", (3, 2)), ("val", (2, 1))])
def test_what_a_scored_split_leaves(
    qwen: Path, tmp_path: Path, split: str, counts: tuple[int, int]
) -> None:
    writer = ResultsWriter(
        tmp_path / f"label/{split}.json", split, {"run": "yard", "weights": "backbone"}
    )
    result = score(qwen, tmp_path, writer, split=split)
    predictions = rows(tmp_path / f"label/{split}_predictions.jsonl")

    size = sum(counts)
    ids = [f"{split}_{n}" for n in range(size)]
    assert [row["id"] for row in predictions] == ids
    for number, row in enumerate(predictions):
        assert row["label"] == ("quiet", "alarm")[number % 2]
        assert row["prediction"] == max(row["probabilities"], key=row["probabilities"].get)
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert "text" not in row
    assert result["run"] == "yard"
    assert result["weights"] == "backbone"
    assert result["split"] == split
    assert result["n_expected"] == result["n_scored"] == size
    assert result["n_unparsed"] == 0
    assert result["classes"] == {"quiet": counts[0], "alarm": counts[1]}
    assert result["macro_classes"] == ["quiet", "alarm"]
    assert result["ids"] == digest(ids)

    right = sum(row["label"] == row["prediction"] for row in predictions)
    assert result["metrics"]["accuracy"] == pytest.approx(right / size)
    assert result["metrics"]["n"] == size
    assert sum(map(sum, result["confusion"])) == size
    assert len(result["confusion"]) == 2

    assert result["coverage"] == 1
    assert set(result["intervals"]) == {"accuracy", "f1/quiet", "f1/alarm", "f1/macro"}
    assert result["intervals"]["accuracy"] == wilson(right, size).as_dict()
    for name, ends in result["intervals"].items():
        assert ends["low"] <= result["metrics"][name] <= ends["high"]
    scored = ScoredClips.from_file(tmp_path / f"label/{split}.json")
    assert result["calibration"] == calibration(scored).as_dict()
    assert result["calibration"]["n"] == size
    nll = [-math.log(row["probabilities"][row["label"]]) for row in predictions]
    assert result["calibration"]["nll"] == pytest.approx(sum(nll) / size)


def test_the_reliability_diagram_stands_in_tensorboard(qwen: Path, tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path / "label/test.json", "test", {})
    yard = Yard(tmp_path / "card.yaml", {"test": 2})
    model = module(qwen)
    logger = TensorBoardLogger(tmp_path, "yard", "label", default_hp_metric=False)
    trainer(tmp_path, callbacks=[writer], logger=logger).test(
        model, fed(yard, model), verbose=False
    )
    events = EventAccumulator(str(tmp_path / "yard/label"))
    events.Reload()
    assert events.Tags()["images"] == ["test/reliability"]


def test_a_class_without_clips_is_said(qwen: Path, tmp_path: Path) -> None:
    yard = Yard(tmp_path / "card.yaml", {"test": 1})
    writer = ResultsWriter(tmp_path / "label/test.json", "test", {})
    model = module(qwen)
    trainer(tmp_path, callbacks=[writer]).test(model, fed(yard, model), verbose=False)
    result = json.loads(
        (tmp_path / "label/test.json").read_text(encoding="utf-8"),
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )
    assert result["classes"] == {"quiet": 1, "alarm": 0}
    assert result["macro_classes"] == ["quiet"]
    assert result["metrics"]["f1/alarm"] is None
    assert result["intervals"]["f1/alarm"] == {"low": None, "high": None}
    assert result["metrics"]["f1/macro"] == result["metrics"]["f1/quiet"]


def test_an_unparsed_answer_is_named(
    qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        classifier, "greedy_decode", lambda _, prompt, *__: [[75]] * len(prompt.hidden)
    )
    result = score(
        qwen, tmp_path, ResultsWriter(tmp_path / "label/test.json", "test", {}), answer="generate"
    )
    predictions = rows(tmp_path / "label/test_predictions.jsonl")
    assert [row["prediction"] for row in predictions] == [None] * 5
    assert all(row["text"] and "probabilities" not in row for row in predictions)
    assert result["n_unparsed"] == 5
    assert result["coverage"] == 0
    assert result["calibration"] is None
    assert result["metrics"]["accuracy"] == 0
    assert [line[-1] for line in result["confusion"]] == [3, 2]


def test_ties_are_broken_by_the_card_and_counted(
    qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    score_candidates = classifier.score_candidates
    calls: list[int] = []

    def even(*args: Any) -> Any:
        scores = score_candidates(*args)
        calls.append(1)  # the first of three batches has the classes alike
        return scores if len(calls) > 1 else scores[:, :1].repeat(1, 2)

    monkeypatch.setattr(classifier, "score_candidates", even)
    result = score(qwen, tmp_path, ResultsWriter(tmp_path / "label/test.json", "test", {}))
    predictions = rows(tmp_path / "label/test_predictions.jsonl")
    tied = [row["id"] for row in predictions if row.get("tied")]
    assert result["n_ties"] == len(tied) == 2
    assert all(row["prediction"] == "quiet" for row in predictions if row["id"] in tied)
    assert capsys.readouterr().out == (
        f"2 of 5 test clips have the highest score for several classes (first: {tied[0]}); the "
        "first of these on the card is taken.\n"
    )


def test_without_ties_nothing_is_said(
    qwen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        score(qwen, tmp_path, ResultsWriter(tmp_path / "label/test.json", "test", {}))["n_ties"]
        == 0
    )
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("learnt", [None, {"learnt": 8, "cut": 2, "share_cut": 0.25}])
def test_what_rationales_the_weights_have_learnt(
    qwen: Path, tmp_path: Path, learnt: dict[str, Any] | None
) -> None:
    weights = shutil.copytree(qwen, tmp_path / "weights")
    made = {"stages": ["rationale"]} if learnt is None else {"rationales": learnt}
    (weights / PROVENANCE).write_text(json.dumps(made))
    writer = ResultsWriter(tmp_path / "label/test.json", "test", {})
    result = score(weights, tmp_path, writer, weights=weights)
    assert result.get("rationales") == learnt
    assert ("rationales" in result) == (learnt is not None)


class Crash(Callback):
    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        raise RuntimeError("stopped")


def test_a_split_counts_as_scored_only_at_the_end(qwen: Path, tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path / "label/test.json", "test", {})
    with pytest.raises(RuntimeError, match="stopped"):
        score(qwen, tmp_path, Crash(), writer)
    assert not (tmp_path / "label/test.json").exists()


@pytest.mark.parametrize("answer", ["score", "generate"])
def test_the_tokens_that_were_written(qwen: Path, tmp_path: Path, answer: str) -> None:
    """Of what the model writes to answer; comparing class words writes none."""
    writer = ResultsWriter(tmp_path / "label/test.json", "test", {})
    result = score(qwen, tmp_path, writer, answer=answer)
    # The random model never ends a turn: five clips, to the limit each.
    assert result.get("tokens_written") == (None if answer == "score" else 5 * 6)


def test_clips_with_several_classes(qwen: Path, tmp_path: Path) -> None:
    yard = Pets(tmp_path, {"test": 6}, damaged=["test_5"], eval_batch_size=4)
    file = tmp_path / "label/test.json"
    model = pet_module(qwen)
    run = trainer(tmp_path, callbacks=[ResultsWriter(file, "test", {"run": "yard"})])
    (logged,) = run.test(model, fed(yard, model), verbose=False)
    result, lines = json.loads(file.read_text()), rows(tmp_path / "label/test_predictions.jsonl")
    assert lines[3]["labels"] == ["cat", "dog"]
    assert lines[5] == {
        "id": "test_5",
        "labels": ["cat", "bird"],
        "predicted": None,
        "error": lines[5]["error"],
    }
    for line in lines[:5]:
        shares = line["probabilities"]
        assert line["predicted"] == [name for name in PETS.classes if shares[name] >= 0.5]
    clips = MultiLabelClips.from_file(file)
    expected = clips.scores()
    shown = {name: value for name, value in result["metrics"].items() if value is not None}
    assert shown == pytest.approx({n: v for n, v in expected.items() if not math.isnan(v)})
    same = {f"test/{name}": value for name, value in shown.items()}
    assert {name: logged[name] for name in same} == pytest.approx(same)
    assert (result["several"], "confusion" in result) == (True, False)
    assert (result["n_scored"], result["n_undecodable"], result["n_without"]) == (6, 1, 1)
    assert (result["classes"], result["coverage"]) == ({"cat": 3, "dog": 2, "bird": 2}, 5 / 6)
    for name, count in result["counts"].items():
        own = [(name in line["labels"], name in (line["predicted"] or [])) for line in lines]
        assert count == {
            "hits": own.count((True, True)),
            "false_alarms": own.count((False, True)),
            "misses": own.count((True, False)),
        }
    # Each set of classes stands there once; the first in order is that of none.
    assert result["majority"]["accuracy"] == result["metrics"]["majority"] == 1 / 6
    assert result["majority"]["f1/cat"] == 0
    assert result["majority"]["ap/cat"] == 3 / 6
    assert result["intervals"].keys() == {
        "accuracy", "f1/cat", "f1/dog", "f1/bird", "f1/macro", "f1/micro",
    }  # fmt: skip
    with pytest.raises(ValueError, match="key several") as error:
        ScoredClips.from_file(file)
    assert str(error.value) == (
        f"{file} is of a card with the key several: its clips may have several classes, or none, "
        "and this compares answers of one class a clip. Leave it out."
    )
