"""What is found of runs, and what is said of those that are damaged or not finished."""

import json
import re
from pathlib import Path

import pytest
import yaml

from rbft.report.gather import gather
from rbft.report.scores import overview
from tests.report_runs import (
    answers,
    made,
    settings,
    write,
    write_curves,
    write_result,
    write_run,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run alone in `logs`."""
    return write_run(tmp_path / "logs", settings("own", ["label"]), answers(20, 0.8, 0))


def problems(folder: Path) -> dict[str, str]:
    return {one.where: one.text for one in gather(folder.parent).problems}


def test_everything_is_found_in_the_order_of_the_method(gathered):
    names = [run.name for run in gathered.runs]
    assert len(names) == 9
    assert names.index("smarthome_qwen25_seed1") < names.index("smarthome_qwen25_seed2")
    ours = gathered.run("smarthome_qwen25_seed1")
    assert ours.stages == ("rationale", "label")
    assert [one.place for one in ours.results] == ["zero_shot", "label"]
    assert list(ours.steps) == ["rationale", "label"]
    assert ours.benchmark == "SmartHome"
    assert ours.backbone == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert ours.final is not None
    assert ours.final.n == len(ours.final.rows) == 196
    assert ours.spent["training"].gpu_seconds == 5400
    masked = gathered.run("smarthome_qwen2")
    assert [one.masking is not None for one in masked.results] == [False, True, True, True]
    assert masked.final is not None
    assert masked.final.masking is None
    assert [file.parent.name for file in gathered.attention] == ["bear"]
    assert [len(lines) for lines in gathered.rationales.values()] == [1]


def test_a_run_that_is_not_finished_is_named(gathered):
    said = {one.where: one.text for one in gathered.problems}
    expected = "is not finished: Stage II (labels) is not trained (checkpoint step=20.ckpt)"
    assert said["unfinished"] == gathered.run("unfinished").state == expected
    assert gathered.run("unfinished").final is None
    assert gathered.run("smarthome_qwen2").state == "finished"


def test_predictions_that_were_cut_off_leave_the_scores(gathered):
    run = gathered.run("damaged")
    assert run.state == "finished, with damaged files"
    assert run.final is not None
    assert run.final.scored is None
    assert run.final.score("accuracy") == pytest.approx(
        json.loads(run.final.file.read_text())["metrics"]["accuracy"]
    )
    (text,) = [one.text for one in gathered.problems if one.where.startswith("damaged/")]
    assert text.startswith("the predictions cannot be used: Unterminated string")


DAMAGE = {
    "label/test.json": [
        ("{", "cannot be read: Expecting property name"),
        ("[]", "cannot be read: it holds no object"),
        ("{}", "is no complete result: metrics is missing"),
    ],
    "settings.yaml": [("a: [", "cannot be read: while parsing"), ("[]", "holds no settings")],
    "usage/1-a.json": [("{", "cannot be read: Expecting property name")],
    "label/weights/rbft.json": [("", "cannot be read: Expecting value")],
    "clips.json": [("{", "cannot be read: Expecting property name")],
}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [(name, *one) for name, damages in DAMAGE.items() for one in damages],
)
def test_a_damaged_file_is_named_and_nothing_ends(run, name, text, said):
    write(run / name, text)
    found = problems(run)
    assert any(said in one for one in found.values()), found
    where = next(where for where, one in found.items() if said in one)
    assert "own" in where
    overview(gather(run.parent))  # makes its table all the same


def test_scores_that_do_not_fit_their_confusion_matrix_are_not_shown(run):
    file = run / "label/test.json"
    whole = json.loads(file.read_text())
    for change, said in (
        ({"metrics": {**whole["metrics"], "accuracy": 0.99}}, "the accuracy is 0.99, but its"),
        ({"confusion": [[1, 2, 3]]}, "confusion does not fit classes and n_scored"),
        ({"confusion": [["x"]]}, "confusion is no table of counts"),
        ({"n_scored": 19}, "confusion does not fit classes and n_scored"),
        ({"classes": None}, "classes is missing"),
    ):
        write(file, json.dumps({**whole, **change}))
        found = problems(run)
        assert found["own/label/test.json"].startswith(f"is no complete result: {said}")
        assert found["own"] == (
            "is not finished: the test split is not scored after Stage II (labels)"
        )


def test_predictions_of_other_clips_than_the_scores_are_not_used(run):
    lines = run / "label/test_predictions.jsonl"
    lines.write_text("".join(lines.read_text().splitlines(keepends=True)[:-1]))
    found = problems(run)
    assert found["own/label/test_predictions.jsonl"] == (
        "the predictions cannot be used: hold 19 clips, but test.json is about 20"
    )
    lines.unlink()
    assert problems(run)["own/label/test_predictions.jsonl"] == (
        "the predictions cannot be used: No such file or directory"
    )


def test_damaged_lines_of_a_rationale_file_are_counted(run):
    file = run.parent / "rationales/x.jsonl"
    write(file, '{"id": "a", "rationale": "A dog."}\n[1]\n{"id": "b", "ra')
    assert problems(run) == {str(file): "2 of 3 lines cannot be read and are left out"}
    (lines,) = gather(run.parent).rationales.values()
    assert [one["id"] for one in lines] == ["a"]


def test_a_run_that_was_only_scored_is_shown(tmp_path):
    write_result(tmp_path / "logs/asked/endpoint-gpt/test.json", answers(9, 0.8, 0), made())
    found = gather(tmp_path / "logs")
    (run,) = found.runs
    assert run.state == "scored only"
    assert found.problems == ()
    assert run.final is not None
    assert run.final.title == "endpoint-gpt"


def test_results_made_otherwise_are_not_the_run_s_own(run):
    (run / "label/test.json").rename(run / "label/test-0a1b2c3d.json")
    lines = run / "label/test_predictions.jsonl"
    lines.rename(lines.with_name("test-0a1b2c3d_predictions.jsonl"))
    (found,) = gather(run.parent).runs
    assert len(found.results) == 1
    assert found.final is None
    assert found.state == "is not finished: the test split is not scored after Stage II (labels)"


def test_runs_are_taken_by_name_or_folder(logs, run):
    names = [str(run), "smarthome_qwen2"]
    assert [one.name for one in gather(logs, names).runs] == ["own", "smarthome_qwen2"]
    twice = write_run(run.parents[1] / "more", settings("own", ["label"]), answers(9, 1.0, 0))
    assert [one.name for one in gather(logs, [str(run), str(twice)]).runs] == [str(run), str(twice)]


def test_runs_that_are_not_there_are_refused_by_name(logs, tmp_path):
    message = (
        f"--runs names 'nobody', which is neither a run of {logs} nor the folder of one; there "
        "are damaged, smarthome_qwen2,"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        gather(logs, ["nobody"])
    with pytest.raises(ValueError, match=re.escape(f"--runs is empty. Name runs of {logs}")):
        gather(logs, [])
    message = f"{tmp_path} holds no run. Train one (python -m rbft fit), or name another --logs."
    with pytest.raises(ValueError, match=re.escape(message)):
        gather(tmp_path)
    with pytest.raises(ValueError, match="holds no run"):
        gather(tmp_path / "not there")


def test_what_is_beside_a_run_is_no_run(run):
    file = run.parent / "compare/own-1.json"
    write(file, "{}")
    write(run.parent / "empty/note.txt", "")
    write_curves(run / "other", {"train/loss": [(1, 1.0)]})
    found = gather(run.parent)
    assert [one.name for one in found.runs] == ["own"]
    assert list(found.runs[0].steps) == ["label", "other"]
    assert len(found.comparisons) == 0
    assert {one.where: one.text for one in found.problems} == {
        str(file): "is not what compare writes, and is left out"
    }
    write(file, '{"baseline": "a", "metric": "accuracy", "legend": {}, "rows": []}')
    assert len(gather(run.parent).comparisons) == 1


def test_settings_are_read_by_dotted_name(run):
    (found,) = gather(run.parent).runs
    written = yaml.safe_load((run / "settings.yaml").read_text())
    assert found.setting("model.learning_rate") == written["model"]["learning_rate"]
    assert found.setting("stages") == ["label"]
    assert found.setting("no.such") is None


def test_a_run_of_clips_with_several_classes_is_named_and_not_shown(run):
    file = run / "label/test.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "several": True}))
    found = problems(run)
    (said,) = [text for where, text in found.items() if where.endswith("label/test.json")]
    assert said == (
        "is of a card with the key several: clips that may have several classes are not in the "
        "report; the file itself has all figures"
    )
    (one,) = gather(run.parent, [run.name]).runs
    assert one.state == "not shown: its clips may have several classes"
    assert one.final is None
