import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from rbft.callbacks.predictions import PredictionWriter
from rbft.clip import Clip
from rbft.runtime.files import write_json
from tests.examples import CARD, Damaged, Yard, clips, fed, module, trainer
from tests.several import PETS, Pets, pet_module


def _failed(rows: list[dict[str, Any]]) -> int:
    return sum("error" in row for row in rows)


def content(clip: Clip) -> str:
    return f"content of {clip.id}"


def predict(folder: Path, work: Path, **settings: Any) -> list[dict[str, Any]]:
    """Predicts five clips and reads the lines; a second call goes on with the same file."""
    yard = Yard(work / "card.yaml", {"test": 5}, eval_batch_size=2)
    output = work / "new/predictions.jsonl"
    writer = PredictionWriter(output, yard.clips("test"), CARD.classes, {"weights": "abc"}, content)
    yard.feed = replace(yard.feed, predict_clips=writer.todo)
    model = module(folder, **settings)
    trainer(work, callbacks=[writer]).predict(
        model, datamodule=fed(yard, model), return_predictions=False
    )
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def test_predictions_in_the_order_of_the_videos(qwen: Path, tmp_path: Path) -> None:
    got = predict(qwen, tmp_path)
    assert [row["id"] for row in got] == [f"test_{n}" for n in range(5)]
    assert [row["path"] for row in got] == [f"test_{n}.mp4" for n in range(5)]
    for row in got:
        values = sorted(row["probabilities"].values())
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)
        assert row["margin"] == pytest.approx(values[1] - values[0], abs=2e-6)
        assert "text" not in row


def test_a_threshold_decides_the_label(qwen: Path, tmp_path: Path) -> None:
    shares = [row["probabilities"]["alarm"] for row in predict(qwen, tmp_path / "plain")]
    low, next_low = sorted(shares)[:2]
    assert low < next_low
    yard = Yard(tmp_path / "card.yaml", {"test": 5}, eval_batch_size=2)
    output = tmp_path / "new.jsonl"
    writer = PredictionWriter(
        output, yard.clips("test"), CARD.classes, {}, content, ("alarm", (low + next_low) / 2)
    )
    yard.feed = replace(yard.feed, predict_clips=writer.todo)
    model = module(qwen)
    trainer(tmp_path, callbacks=[writer]).predict(
        model, datamodule=fed(yard, model), return_predictions=False
    )
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [row["label"] for row in rows].count("alarm") == 4
    assert rows[shares.index(min(shares))]["label"] == "quiet"
    for row in rows:
        assert row["likeliest"] == max(row["probabilities"], key=row["probabilities"].get)
    with output.with_suffix(".csv").open(encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert [row["likeliest"] for row in table] == [row["likeliest"] for row in rows]


def test_the_rationale_of_the_model_s_own_is_kept(qwen: Path, tmp_path: Path) -> None:
    assert all(row["text"] for row in predict(qwen, tmp_path, stage="rationale_class"))


def test_written_answers_have_no_probabilities(qwen: Path, tmp_path: Path) -> None:
    for row in predict(qwen, tmp_path, answer="generate"):
        assert row["label"] in ("quiet", "alarm", None)
        assert "probabilities" not in row
        assert "margin" not in row


OUTPUT = "new/predictions.jsonl"


def again(
    folder: Path, work: Path, *callbacks: Callback, damaged: bool = False, explain: bool = False
) -> PredictionWriter:
    lost = ["test_1"] if damaged else []
    yard = Damaged(work / "card.yaml", {"test": 5}, damaged=lost, eval_batch_size=2)
    videos = [replace(clip, split="predict") for clip in yard.clips("test")]
    writer = PredictionWriter(work / OUTPUT, videos, CARD.classes, {"weights": "abc"}, content)
    yard.feed = replace(yard.feed, predict_clips=writer.todo)
    model = module(folder)
    yard.feed = replace(yard.feed, collators=model.collators(rationale=explain))
    trainer(work, callbacks=[writer, *callbacks]).predict(
        model, datamodule=yard, return_predictions=False
    )
    return writer


class Stop(Callback):
    """Ends a run after its second batch, with half a line behind it."""

    def on_predict_batch_end(self, trainer: Any, *args: Any, **_: Any) -> None:
        if args[3] == 1:
            with trainer.callbacks[0].output.open("a") as stream:
                stream.write('{"id": "test_4", "pa')
            raise RuntimeError("stopped")


def test_an_interrupted_run_goes_on(qwen: Path, tmp_path: Path) -> None:
    work, other = tmp_path / "interrupted", tmp_path / "whole"
    work.mkdir()
    other.mkdir()
    again(qwen, other)  # in the same batches
    whole = [json.loads(line) for line in (other / OUTPUT).read_text().splitlines()]
    with pytest.raises(RuntimeError, match="stopped"):
        again(qwen, work, Stop())
    torn = (work / OUTPUT).read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in torn[:4]] == whole[:4]
    writer = again(qwen, work)
    assert [clip.id for clip in writer.todo] == ["test_4"]
    rows = [json.loads(line) for line in (work / OUTPUT).read_text().splitlines()]
    assert [row["id"] for row in rows] == [row["id"] for row in whole]
    for row, known in zip(rows, whole, strict=True):  # batches of other sizes round otherwise
        assert row["probabilities"] == pytest.approx(known["probabilities"], abs=2e-6)
    done = PredictionWriter(work / OUTPUT, writer.clips, CARD.classes, {"weights": "abc"}, content)
    assert done.todo == []


def test_an_undecodable_video_has_an_error_and_is_tried_again(qwen: Path, tmp_path: Path) -> None:
    assert _failed(again(qwen, tmp_path, damaged=True).finish()) == 1
    rows = [json.loads(line) for line in (tmp_path / OUTPUT).read_text().splitlines()]
    assert rows[1] == {
        "id": "test_1",
        "path": "test_1.mp4",
        "video": "content of test_1",
        "label": None,
        "error": "Video test_1.mp4 is damaged.",
    }
    text = (tmp_path / OUTPUT).with_suffix(".csv").read_text(encoding="utf-8")
    table = list(csv.DictReader(text.splitlines()))
    assert list(table[0]) == [
        *("id", "path", "video", "label", "probability_quiet", "probability_alarm", "margin"),
        *("text", "rationale", "error"),
    ]
    assert [row["error"] for row in table] == ["", "Video test_1.mp4 is damaged.", "", "", ""]
    assert float(table[0]["probability_quiet"]) == rows[0]["probabilities"]["quiet"]
    mended = again(qwen, tmp_path)
    assert [clip.id for clip in mended.todo] == ["test_1"]
    assert _failed(mended.finish()) == 0
    rows = [json.loads(line) for line in (tmp_path / OUTPUT).read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"test_{n}" for n in range(5)]


def test_a_rationale_on_request(qwen: Path, tmp_path: Path) -> None:
    again(qwen, tmp_path, explain=True)
    rows = [json.loads(line) for line in (tmp_path / OUTPUT).read_text().splitlines()]
    assert all(isinstance(row["rationale"], str) and "probabilities" in row for row in rows)
    assert any(row["rationale"] for row in rows)


def test_parts_of_several_processes_are_joined(tmp_path: Path) -> None:
    output, every = tmp_path / "p.jsonl", clips(4)
    writer = PredictionWriter(output, [*every, every[0]], CARD.classes, {}, content)
    for rank in (0, 1):
        rows = [
            {"id": c.id, "path": str(c.path), "video": content(c), "label": "quiet"}
            for c in every[rank::2]
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"p.jsonl.part{rank}").write_text(text)
    writer.finish()
    names = [json.loads(line)["id"] for line in output.read_text().splitlines()]
    assert names == [clip.id for clip in every]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "p.jsonl"]


@pytest.mark.parametrize(
    ("kept", "made_from", "message"),
    [
        ("{}\n", {}, r"p\.jsonl, line 1 is no prediction\. Remove the line, or name another"),
        (
            '{"path": "train_0.mp4"}\n',
            {"weights": "b"},
            r"holds predictions that were made otherwise \(weights: a -> b\)\. Name another",
        ),
        (
            '{"path": "x.mp4"}\n',
            {"weights": "a"},
            r"predictions of 1 videos that are not among --videos \(first: x\.mp4\)\. Name another",
        ),
    ],
)
def test_a_file_of_something_else_is_left_alone(
    tmp_path: Path, kept: str, made_from: dict[str, Any], message: str
) -> None:
    (tmp_path / "p.jsonl").write_text(kept)
    (tmp_path / "p.provenance.json").write_text('{"weights": "a"}')
    with pytest.raises(ValueError, match=message):
        PredictionWriter(tmp_path / "p.jsonl", clips(2), CARD.classes, made_from, content)
    assert (tmp_path / "p.jsonl").read_text() == kept


def test_the_output_is_a_file_of_json_lines(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"p\.csv must end in \.jsonl; .* goes to p\.csv beside"):
        PredictionWriter(tmp_path / "p.csv", clips(2), CARD.classes, {}, content)


def test_a_video_that_has_changed_since_is_predicted_anew(tmp_path: Path) -> None:
    """Its path is the same."""
    videos, output = clips(3), tmp_path / "p.jsonl"
    lines = [
        {"id": clip.id, "path": str(clip.path), "video": content(clip), "label": "quiet"}
        for clip in videos
    ]
    lines[1]["video"] = "what stood there before"
    del lines[2]["video"]  # of an earlier version
    output.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    output.with_suffix(".provenance.json").write_text("{}", encoding="utf-8")
    writer = PredictionWriter(output, videos, CARD.classes, {}, content)
    assert writer.todo == videos[1:]
    # A new line of an error wins over an old one of what is no longer there.
    error = {"id": "train_1", "path": "train_1.mp4", "video": content(videos[1]), "error": "x"}
    lines = [*lines[:2], error, {**lines[2], "video": content(videos[2])}]
    output.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    assert _failed(writer.finish()) == 1
    found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [line.get("error") for line in found] == [None, "x", None]


def test_windows_of_a_video_have_lines_of_their_own(tmp_path: Path) -> None:
    """Known by their seconds; what changed in the file makes all of them anew."""
    (clip,), output = clips(1), tmp_path / "p.jsonl"
    windows = [
        replace(clip, id=f"w{start}", start=float(start), end=start + 2.5) for start in (0, 2, 4)
    ]
    asked: list[str] = []

    def counted(clip: Clip) -> str:
        asked.append(clip.id)
        return "digest"

    def writer(*, every: float = 2.0) -> PredictionWriter:
        made_from = {"windows": {"every": every}}
        return PredictionWriter(output, windows, CARD.classes, made_from, counted)

    first = writer()
    assert asked == ["w0"]  # the file is read once, not for each window
    assert first.todo == windows
    line = {"path": str(clip.path), "video": "digest", "label": "quiet"}
    lines = [
        {"id": "w2", **line, "start": 2.0, "end": 4.5},
        {"id": "w0", **line, "start": 0.0, "end": 2.5},
    ]
    output.write_text("".join(f"{json.dumps(one)}\n" for one in lines), encoding="utf-8")
    write_json(first.lines.sidecar, first.made_from)
    assert writer().todo == windows[2:]
    with pytest.raises(ValueError, match=r"made otherwise \(windows\.every: 2\.0 -> 3\.0\)\."):
        writer(every=3.0)
    last = {"id": "w4", **line, "start": 4.0, "end": 6.5, "label": None, "error": "x"}
    with output.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(last) + "\n")
    rows = writer().finish()
    assert [row["id"] for row in rows] == ["w0", "w2", "w4"]
    assert writer().todo == windows[2:]
    with output.with_suffix(".csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert list(table[0])[:6] == ["id", "path", "video", "start", "end", "label"]
    assert [(row["start"], row["end"]) for row in table] == [
        ("0.0", "2.5"),
        ("2.0", "4.5"),
        ("4.0", "6.5"),
    ]


def test_a_window_s_line_has_its_seconds(qwen: Path, tmp_path: Path) -> None:
    yard = Yard(tmp_path / "card.yaml", {"test": 1})
    windows = [replace(yard.clips("test")[0], start=start, end=start + 1) for start in (0.0, 1.5)]
    writer = PredictionWriter(tmp_path / "p.jsonl", windows, CARD.classes, {}, content)
    yard.feed = replace(yard.feed, predict_clips=writer.todo)
    model = module(qwen)
    trainer(tmp_path, callbacks=[writer]).predict(
        model, datamodule=fed(yard, model), return_predictions=False
    )
    rows = [json.loads(line) for line in writer.output.read_text(encoding="utf-8").splitlines()]
    assert [(row["start"], row["end"]) for row in rows] == [(0.0, 1.0), (1.5, 2.5)]


def test_videos_with_several_classes(qwen: Path, tmp_path: Path) -> None:
    def predict(name: str, thresholds: dict[str, float] | None) -> list[dict[str, Any]]:
        yard = Pets(tmp_path, {"test": 4}, damaged=["test_2"], eval_batch_size=2)
        output = tmp_path / f"{name}.jsonl"
        given = (output, yard.clips("test"), PETS.classes, {}, content, thresholds)
        writer = PredictionWriter(*given, several=True)
        yard.feed = replace(yard.feed, predict_clips=writer.todo)
        model = pet_module(qwen)
        trainer(tmp_path, callbacks=[writer]).predict(
            model, datamodule=fed(yard, model), return_predictions=False
        )
        return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]

    rows = predict("plain", None)
    for row in rows[:2]:
        assert row.keys() == {"id", "path", "video", "labels", "probabilities"}
        shares = row["probabilities"]
        assert row["labels"] == [name for name in PETS.classes if shares[name] >= 0.5]
    assert (rows[2]["labels"], rows[2]["error"]) == (None, "Video test_2.mp4 is damaged.")
    dogs = sorted(row["probabilities"]["dog"] for row in rows if "error" not in row)
    chosen = {"cat": 0.0, "dog": (dogs[0] + dogs[1]) / 2, "bird": 1.1}
    decided = predict("decided", chosen)
    assert [row["labels"] for row in decided].count(["cat", "dog"]) == 2
    assert [row["labels"] for row in decided].count(["cat"]) == 1
    with (tmp_path / "decided.csv").open(encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert [one["labels"] for one in table] == ["; ".join(row["labels"] or []) for row in decided]
    assert list(table[0]) == [
        "id", "path", "video", "labels", "probability_cat", "probability_dog", "probability_bird",
        "rationale", "error",
    ]  # fmt: skip
