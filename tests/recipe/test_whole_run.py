"""One run from the backbone to the table, and what the other commands make of it."""

import contextlib
import csv
import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rbft.callbacks.checks import TrainableParts
from rbft.data.rationales import ABOUT
from rbft.miniature.data import Miniature
from rbft.runtime.files import write_json
from tests.recipe.runs import (
    LOGS,
    STAGES,
    VIDEO_INDICES,
    digest,
    outcome,
    rationales,
    rbft,
    read_json,
    read_lines,
    small,
    weights_file,
)

pytestmark = pytest.mark.recipe


@pytest.fixture(scope="module")
def options(backbones: dict[str, Path]) -> list[str]:
    return small(backbones["qwen2_5_vl"])


class Finished:
    """A finished run, the weights with which each of its stages started, and what it printed."""

    def __init__(self, folder: Path, options: list[str]) -> None:
        self.folder, self.options = folder, options
        self.run = folder / LOGS / "small"
        self.starts: list[dict[str, torch.Tensor]] = []
        announce = TrainableParts.on_train_start

        def note_start(callback: TrainableParts, trainer: Any, module: Any) -> None:
            state = module.backbone.state_dict()
            self.starts.append({name: value.clone() for name, value in state.items()})
            announce(callback, trainer, module)

        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
            patch.setattr(TrainableParts, "on_train_start", note_start)
            rbft(folder, "fit", *options)
        self.printed = printed.getvalue()


@pytest.fixture(scope="module")
def finished(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("finished"), options)


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished run, to do something with."""
    shutil.copytree(finished.folder, tmp_path / "copy")
    return tmp_path / "copy"


@contextlib.contextmanager
def no_model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Fails where weights are loaded."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    with monkeypatch.context() as patch:
        patch.setattr("rbft.backbone.loader.load_model", refuse)
        yield


def same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    # The tied head is stored once.
    return len(other) > 50 and all(torch.equal(one[name], other[name]) for name in other)


def memory_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of a file by the names they have in memory."""
    renamed = {}
    for name, value in tensors.items():
        if name.startswith("visual."):
            name = f"model.{name}"
        elif name.startswith("model.") and not name.startswith(("model.visual", "model.lang")):
            name = name.replace("model.", "model.language_model.", 1)
        renamed[name] = value
    return renamed


def test_every_step_leaves_its_files(finished):
    names = {str(file.relative_to(finished.folder / LOGS)) for file in every_file(finished.folder)}
    for place in VIDEO_INDICES:
        assert f"small/{place}/test.json" in names
        assert f"small/{place}/test_predictions.jsonl" in names
        assert any(name.startswith(f"small/{place}/events.out.tfevents") for name in names)
    for stage in STAGES:
        kept = {"model.safetensors", "config.json", "card.yaml", "rbft.json", "tokenizer.json"}
        kept |= {"processor_config.json", "generation_config.json", "chat_template.jinja"}
        assert kept <= {file.name for file in (finished.run / stage / "weights").iterdir()}
    assert not (finished.run / "zero_shot/weights").exists()
    kept = {f"small/{name}" for name in ("settings.yaml", "clips.json", "card.yaml", "record.json")}
    assert kept | {"small/rationale/rationales.json"} <= names
    left_over = [name for name in names if "/." in name or "checkpoints" in name]
    assert not left_over


def every_file(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def test_rationales_that_were_cut_off_are_counted_where_people_look(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records = read_lines(rationales(finished.folder))
    cut = sum(record["finish"] == "length" for record in records)
    assert len(records) == 14
    assert cut > 0
    note = f"{cut} of 14 rationales ({cut / 14:.1%}) were cut off at model.max_new_tokens (8) and"
    assert finished.printed.count(f"Stage 0: {note}") == 1
    assert finished.printed.count(f"Stage I (rationales): {note}") == 1
    expected = {"learnt": 14, "cut": cut, "share_cut": round(cut / 14, 4)}
    found = {p: read_json(finished.run / p / "test.json").get("rationales") for p in VIDEO_INDICES}
    assert found == {"zero_shot": None, "rationale": expected, "label": None}
    (events,) = (
        accumulator
        for file in (finished.run / "rationale").glob("events*")
        if "train/cut_rationales"
        in (accumulator := EventAccumulator(str(file)).Reload()).Tags()["scalars"]
    )
    shares = [event.value for event in events.Scalars("train/cut_rationales")]
    assert shares == [pytest.approx(cut / 14, abs=1e-4)]
    made = read_json(rationales(finished.folder).with_suffix(".provenance.json"))
    assert made["generation"] == {
        "eos_token_id": [376],
        "max_new_tokens": 8,
        "repetition_penalty": 1.0,
    }


@pytest.mark.parametrize("place", VIDEO_INDICES)
def test_results_are_complete(finished, place):
    results = read_json(finished.run / place / "test.json")
    assert set(results) >= {
        "run",
        "stage",
        "weights",
        "split",
        "ids",
        "metrics",
        "confusion",
        "n_ties",
    }
    assert (results["run"], results["stage"], results["split"]) == ("small", place, "test")
    assert (results["n_expected"], results["n_scored"], results["n_unparsed"]) == (5, 5, 0)
    names = {"accuracy", "f1/normal", "f1/abnormal", "f1/macro", "unparsed", "majority", "n"}
    assert set(results["metrics"]) == names
    assert sum(map(sum, results["confusion"])) == 5
    rows = read_lines(finished.run / place / "test_predictions.jsonl")
    assert len({row["id"] for row in rows}) == 5
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert results["metrics"]["accuracy"] == pytest.approx(right / 5)
    for row in rows:
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert max(row["probabilities"], key=row["probabilities"].get) == row["prediction"]


def test_it_ends_with_where_everything_is_and_what_comes_next(finished):
    place, clips, *following = finished.printed.splitlines()[-6:]
    assert place == f"Everything is in {LOGS}/small (curves.png, history.csv, log.txt)."
    cut = sum(record["finish"] == "length" for record in read_lines(rationales(finished.folder)))
    said = (
        f"Clips: 14 to train, 5 to test, none lost, {cut} rationales cut off at 8 tokens. It took "
    )
    assert clips.startswith(said)
    assert following == [
        "Next:",
        f"  python -m rbft predict --weights {LOGS}/small --videos FOLDER",
        "  python -m rbft report",
        f"  tensorboard --logdir {LOGS}",
    ]


def test_its_log_has_what_was_said_and_its_table_what_was_trained(finished):
    log = (finished.run / "log.txt").read_text(encoding="utf-8").splitlines()
    said = [line[21:] for line in log]
    assert said[0].startswith("python -m rbft ")
    for line in finished.printed.splitlines():
        assert line in said
    assert any(line.startswith("Stage II (labels): ") and " steps in " in line for line in said)
    with (finished.run / "history.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    made = {stage: read_json(finished.run / stage / "weights/rbft.json") for stage in STAGES}
    assert [(row["stage"], int(row["step"])) for row in rows] == [
        (stage, step + 1) for stage in STAGES for step in range(made[stage]["steps"])
    ]
    assert all(float(row["train/loss"]) > 0 for row in rows)


def test_the_report_shows_it_as_it_is(finished, copy, capsys):
    rbft(copy, "report", "--format=both")
    shown = capsys.readouterr().out
    assert shown.startswith("Put 1 run on one page in ")
    assert "lightning_logs/report.html" in shown
    text = (copy / LOGS / "report.md").read_text(encoding="utf-8")
    assert "| small | Miniature |" in text
    assert text.count(" | finished |") == 1
    for place in VIDEO_INDICES:
        results = read_json(finished.run / place / "test.json")
        ends = results["intervals"]["f1/macro"]
        figures = [results["metrics"]["f1/macro"], ends["low"], ends["high"]]
        macro = "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * value for value in figures))
        assert f" | 5 | 100.0 | {100 * results['metrics']['accuracy']:.1f} [" in text
        assert f" | {macro} |" in text
    page = (copy / LOGS / "report.html").read_text(encoding="utf-8")
    assert page.count("train/loss of ") == 2  # a curve for each stage
    wrong = [
        row["id"]
        for row in read_lines(finished.run / "label/test_predictions.jsonl")
        if row["label"] != row["prediction"]
    ]
    assert all(f"<h3>{name}</h3>" in page for name in wrong)
    assert page.count('alt="frame at ') == 6 * len(wrong)
    steps = sum(read_json(finished.run / stage / "weights/rbft.json")["steps"] for stage in STAGES)
    assert f" | {steps} | " in text[text.index("## Cost") :]


def test_the_weights_say_what_made_them(finished):
    made = [read_json(finished.run / stage / "weights/rbft.json") for stage in STAGES]
    assert [note["stages"] for note in made] == [["rationale"], ["rationale", "label"]]
    assert made[0]["backbone"] == made[1]["backbone"]
    assert made[0]["positions"].startswith("text after a video starts at the largest position")


def test_results_stand_where_the_stage_s_curves_end(finished):
    for place in VIDEO_INDICES:
        note = finished.run / place / "weights/rbft.json"
        steps = read_json(note)["steps"] if note.exists() else 0
        assert steps == (8 if place in STAGES else 0)  # four steps an epoch
        events = EventAccumulator(str(finished.run / place)).Reload()
        assert {event.step for event in events.Scalars("accuracy/test")} == {steps}


def test_each_training_clip_has_one_rationale_and_no_label(finished):
    records = read_lines(rationales(finished.folder))
    assert len({record["id"] for record in records}) == len(records) == 14
    assert all("train" in record["id"] for record in records)
    for record in records:
        own = {"id", "rationale", "finish", "tokens", "source", "model", "frames", "fps"}
        assert set(record) == own | set(ABOUT)
        assert (record["source"], record["finish"]) in {("self", "stop"), ("self", "length")}


def test_rationales_do_not_depend_on_labels(finished, tmp_path, monkeypatch):
    read = Miniature.read

    def flipped(self: Miniature) -> list[Any]:
        return [replace(clip, label=1 - (clip.label or 0)) for clip in read(self)]

    monkeypatch.setattr(Miniature, "read", flipped)
    rbft(tmp_path, "rationalize", *finished.options)
    assert digest(rationales(tmp_path)) == digest(rationales(finished.folder))
    assert rationales(tmp_path).name == rationales(finished.folder).name
    assert not (tmp_path / LOGS / "small").exists()


def test_stage_one_starts_from_the_backbone_and_stage_two_from_stage_one(finished, qwen):
    backbone = memory_names(load_file(qwen / "model.safetensors"))
    stage_one = memory_names(load_file(weights_file(finished.folder, "rationale")))
    stage_two = memory_names(load_file(weights_file(finished.folder, "label")))
    assert len(finished.starts) == 2
    assert same_tensors(finished.starts[0], backbone)
    assert same_tensors(finished.starts[1], stage_one)
    for before, after in ((backbone, stage_one), (stage_one, stage_two)):
        assert not any(torch.equal(before[name], after[name]) for name in after)


def test_a_second_fit_changes_nothing(finished, monkeypatch, capsys):
    def times() -> dict[Path, int]:
        files = [file for file in every_file(finished.folder) if file.name != "log.txt"]
        return {file: file.stat().st_mtime_ns for file in files}

    before = times()
    with no_model(monkeypatch):
        rbft(finished.folder, "fit", *finished.options)
    assert times() == before
    said = capsys.readouterr().out
    assert said.startswith("small was finished on 20")
    assert "; nothing is left to do.\n" in said
    assert "\nStage II (labels)" in said


def test_the_same_command_gives_the_same_bits(finished, tmp_path):
    rbft(tmp_path, "fit", *finished.options)
    assert outcome(tmp_path) == outcome(finished.folder)


def test_restart_trains_anew_from_the_same_rationales(finished, copy):
    expected = outcome(finished.folder)
    written = rationales(copy).stat().st_mtime_ns
    file = weights_file(copy, "label")
    inode = file.stat().st_ino
    rbft(copy, "fit", *finished.options, "--restart=true")
    assert rationales(copy).stat().st_mtime_ns == written
    assert file.stat().st_ino != inode
    found = outcome(copy)
    assert found.pop("small/settings.yaml") != expected.pop("small/settings.yaml")  # restart
    assert found == expected


def test_another_seed_is_another_run(finished, tmp_path):
    shutil.copytree(finished.folder / LOGS / "rationales", tmp_path / LOGS / "rationales")
    more = ("--data.seed=1", "--trainer.max_epochs=1", "--score_each_stage=false")
    rbft(tmp_path, "fit", *finished.options, *more)
    for stage in STAGES:
        assert digest(weights_file(tmp_path, stage)) != digest(weights_file(finished.folder, stage))
    assert not (tmp_path / LOGS / "small/zero_shot").exists()
    assert not (tmp_path / LOGS / "small/rationale/test.json").exists()
    assert (tmp_path / LOGS / "small/label/test.json").exists()


def test_other_settings_under_the_same_name_are_refused(finished, monkeypatch, capsys):
    with no_model(monkeypatch), pytest.raises(SystemExit, match="2"):
        rbft(finished.folder, "fit", *finished.options, "--model.weight_decay=0.2")
    error = capsys.readouterr().err
    assert "model.weight_decay: 0.1 -> 0.2\n" in error
    assert "--restart true" in error


def test_one_stage_alone_from_a_weights_folder(finished, tmp_path):
    more = ("--model.stage=label", f"--model.weights={finished.run}/rationale/weights")
    rbft(tmp_path, "fit", *finished.options, *more)
    assert not (tmp_path / LOGS / "rationales").exists()
    assert {path.name for path in (tmp_path / LOGS / "small").iterdir()} == {
        "label",
        "log.txt",
        "history.csv",
        "curves.png",
    }
    assert digest(weights_file(tmp_path, "label")) == digest(weights_file(finished.folder, "label"))
    note = read_json(tmp_path / LOGS / "small/label/weights/rbft.json")
    assert note["stages"] == ["rationale", "label"]


def test_a_stage_that_was_trained_alone_does_not_pass_for_the_method(finished, tmp_path, capsys):
    shutil.copytree(finished.folder / LOGS / "rationales", tmp_path / LOGS / "rationales")
    quick = ("--trainer.max_epochs=1", "--score_each_stage=false")
    rbft(tmp_path, "fit", *finished.options, *quick, "--model.stage=label")
    with pytest.raises(SystemExit, match="2"):
        rbft(tmp_path, "fit", *finished.options, *quick)
    assert (
        "weights folder lightning_logs/small/label/weights is the result of the stages ['label'] on"
    ) in capsys.readouterr().err


def test_weights_of_another_method_are_refused(finished, copy, capsys):
    run = copy / LOGS / "small"
    shutil.rmtree(run / "rationale/weights")
    shutil.move(run / "label/weights", run / "rationale/weights")
    with pytest.raises(SystemExit, match="2"):
        rbft(copy, "fit", *finished.options)
    error = capsys.readouterr().err
    assert "rationale/weights is the result of the stages ['rationale', 'label'] on back" in error
    assert "this stage must follow ['rationale'] on" in error
    assert not (run / "label/weights").exists()


def test_test_scores_again(finished, copy, capsys):
    file = copy / LOGS / "small/label/test.json"
    expected = read_json(file)
    write_json(file, {**expected, "metrics": {}, "n_scored": 0})  # as if it had been scored wrongly
    rbft(copy, "test", *finished.options)
    assert read_json(file) == expected
    assert "\nStage II (labels)" in capsys.readouterr().out


def test_test_scores_the_backbone(finished, tmp_path):
    rbft(tmp_path, "test", *finished.options, "--weights=backbone")
    found = outcome(tmp_path)
    assert set(found) == {"small/zero_shot/test.json", "small/zero_shot/test_predictions.jsonl"}
    expected = outcome(finished.folder)
    assert all(expected[name] == value for name, value in found.items())


def test_test_scores_a_weights_folder(finished, tmp_path):
    shutil.copytree(finished.run / "label/weights", tmp_path / "mine")
    rbft(tmp_path, "test", *finished.options, "--weights=mine")
    expected = read_json(finished.run / "label/test.json")
    (folder,) = (tmp_path / LOGS / "small").glob("mine-*")
    found = read_json(folder / "test.json")
    assert found["weights"] == "mine"
    assert found["made"] == expected["made"]
    assert found["metrics"] == expected["metrics"]
    assert (folder / "test_predictions.jsonl").read_bytes() == (
        finished.run / "label/test_predictions.jsonl"
    ).read_bytes()


def test_generated_answers_that_are_no_class_count_as_wrong(finished, tmp_path):
    rbft(tmp_path, "test", *finished.options, "--weights=backbone", "--model.answer=generate")
    results = read_json(tmp_path / LOGS / "small/zero_shot/test.json")
    rows = read_lines(tmp_path / LOGS / "small/zero_shot/test_predictions.jsonl")
    unparsed = sum(row["prediction"] is None for row in rows)
    assert results["n_unparsed"] == unparsed > 0  # the backbone is random
    assert results["metrics"]["unparsed"] == pytest.approx(unparsed / 5)
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert results["metrics"]["accuracy"] == pytest.approx(right / 5)
    assert all("text" in row and "probabilities" not in row for row in rows)


def test_validate_scores_the_validation_split(finished, tmp_path):
    more = ("--weights=backbone", "--data.val_size=3")
    rbft(tmp_path, "validate", *finished.options, *more)
    results = read_json(tmp_path / LOGS / "small/zero_shot/val.json")
    assert (results["split"], results["n_scored"]) == ("val", 3)
    rows = read_lines(tmp_path / LOGS / "small/zero_shot/val_predictions.jsonl")
    assert all("val" in row["id"] for row in rows)


def clips_of_the_test_split(cache: Path) -> list[Path]:
    folders = {path.parent for path in cache.rglob("*test-0004.mp4")}
    return sorted(sorted(folders)[0].glob("*test-*.mp4"))[:5]


def test_predict_on_a_file_a_list_and_a_folder(finished, copy, cache):
    videos = clips_of_the_test_split(cache)
    scored = read_lines(finished.run / "label/test_predictions.jsonl")
    folder = copy / "my clips"
    folder.mkdir()
    for video in videos[:3]:
        shutil.copy(video, folder)
    (folder / "notes.txt").write_text("no video")
    for given, count in (
        (str(videos[0]), 1),
        (f"[{videos[0]},{videos[1]}]", 2),
        (str(folder), 3),
    ):
        output = f"out/{count}.jsonl"
        rbft(copy, "predict", *finished.options, f"--videos={given}", f"--output={output}")
        rows = read_lines(copy / output)
        assert [Path(row["path"]).name for row in rows] == [v.name for v in videos[:count]]
        for row, known in zip(rows, scored, strict=False):
            assert Path(row["path"]).stem == known["id"]
            assert row["label"] == known["prediction"]
            assert row["probabilities"] == pytest.approx(known["probabilities"], abs=2e-6)
            first, second = sorted(row["probabilities"].values(), reverse=True)
            assert row["margin"] == pytest.approx(first - second, abs=2e-6)


def test_export_leaves_a_folder_that_transformers_opens(finished, copy, capsys):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    rbft(copy, "export", *finished.options, "--output=mine")
    model = AutoModelForImageTextToText.from_pretrained(copy / "mine")
    state = memory_names(load_file(weights_file(finished.folder, "label")))
    assert same_tensors(model.state_dict(), state)
    assert AutoProcessor.from_pretrained(copy / "mine").chat_template
    with pytest.raises(SystemExit, match="2"):
        rbft(copy, "export", *finished.options, "--output=mine")
    assert "--output mine exists. Name a folder that does not" in capsys.readouterr().err


def test_rationalize_writes_what_is_missing_and_nothing_twice(finished, copy, monkeypatch):
    file = rationales(copy)
    whole = file.read_bytes()
    with no_model(monkeypatch):
        rbft(copy, "rationalize", *finished.options)
    lines = whole.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:5] + lines[7:]))
    rbft(copy, "rationalize", *finished.options)
    assert file.read_bytes() == whole


def test_callbacks_of_the_user_s_run_along(finished, tmp_path, monkeypatch):
    from lightning.pytorch.callbacks import ModelSummary

    told = []
    monkeypatch.setattr(ModelSummary, "on_fit_start", lambda *_: told.append(_))
    shutil.copytree(finished.folder / LOGS / "rationales", tmp_path / LOGS / "rationales")
    more = ("--trainer.callbacks=ModelSummary", "--score_each_stage=false")
    rbft(tmp_path, "fit", *finished.options, *more)
    assert len(told) == 2  # once a stage
    assert digest(weights_file(tmp_path, "label")) == digest(weights_file(finished.folder, "label"))
