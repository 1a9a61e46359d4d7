"""The clips that runs were surest of and wrong about."""

import json

from rbft.report.conditions import Conditions
from rbft.report.gather import gather
from rbft.report.mistakes import find_mistakes
from rbft.report.videos import digests_of
from tests.report_runs import answers, made, settings, write, write_result, write_run


def found(logs):
    gathered = gather(logs)
    conditions = Conditions([one for run in gathered.runs for one in run.results])
    return find_mistakes(gathered, conditions, digests_of(gathered.runs))


def test_each_clip_stands_once_with_every_run_s_answer(tmp_path):
    write_run(tmp_path, settings("a", ["label"]), answers(40, 0.7, 0))
    write_run(tmp_path, settings("b", ["label"]), answers(40, 0.7, 1))
    mistakes, wrong = found(tmp_path)
    rows = {
        name: [
            json.loads(line)
            for line in (tmp_path / name / "label/test_predictions.jsonl").read_text().splitlines()
        ]
        for name in "ab"
    }
    sure = {
        name: sorted(
            (
                (row["probabilities"][row["prediction"]], row["id"])
                for row in lines
                if row["prediction"] != row["label"]
            ),
            reverse=True,
        )
        for name, lines in rows.items()
    }
    assert wrong == len(sure["a"]) + len(sure["b"])
    expected = {clip for name in "ab" for _, clip in sure[name][:5]}
    assert {one.id for one in mistakes} == expected
    assert [one.confidence for one in mistakes] == sorted(
        (
            max(share for name in "ab" for share, clip in sure[name] if clip == one)
            for one in expected
        ),
        reverse=True,
    )
    for one in mistakes:
        assert [said.run for said in one.said] in (["a", "b"], ["b", "a"])
        assert not one.said[0].right
        for said in one.said:
            row = next(row for row in rows[said.run] if row["id"] == one.id)
            assert (said.prediction, said.right) == (
                row["prediction"],
                row["prediction"] == row["label"],
            )
            assert said.probability == row["probabilities"][row["prediction"]]


def test_runs_on_other_clips_are_not_asked_about_a_clip(tmp_path):
    """The same id is no proof that it is the same clip."""
    write_run(tmp_path, settings("a", ["label"]), answers(40, 0.0, 0))
    write_run(tmp_path, settings("b", ["label"]), answers(41, 0.0, 0))
    mistakes, wrong = found(tmp_path)
    assert wrong == 81
    assert len(mistakes) == 10
    assert {(one.letter, *(said.run for said in one.said)) for one in mistakes} == {
        ("A", "a"),
        ("B", "b"),
    }


def test_texts_and_rationales_of_a_clip_are_shown(tmp_path):
    rows = answers(3, 0.0, 0)
    rows[0]["rationale"] = "A raccoon. " * 300
    rows[1]["text"] = "abnormal, I think"
    folder = write_run(tmp_path, settings("a", ["label"]), rows)
    clip = {"id": rows[2]["id"], "video": "v", "start": None, "end": None}
    write(folder / "clips.json", json.dumps({"test": [clip]}))
    line = {**clip, "rationale": "A dog sleeps."}
    other = {**clip, "video": "w", "rationale": "Of another video of this id."}
    write(tmp_path / "rationales/r.jsonl", f"{json.dumps(line)}\n{json.dumps(other)}\n")
    mistakes, _ = found(tmp_path)
    by_id = {one.id: one for one in mistakes}
    text = by_id[rows[0]["id"]].said[0].text
    assert text.startswith("A raccoon. A raccoon.")
    assert len(text) == 1504
    assert by_id[rows[1]["id"]].said[0].text == "abnormal, I think"
    assert by_id[rows[2]["id"]].rationale == "A dog sleeps."
    assert by_id[rows[2]["id"]].video == clip
    assert by_id[rows[0]["id"]].video is None


def test_answers_without_probabilities_or_class_are_no_sure_mistakes(tmp_path):
    rows = answers(4, 0.0, 0)
    for row in rows[:2]:
        del row["probabilities"]
    rows[2]["prediction"] = None
    folder = write_run(tmp_path, settings("a", ["label"]), answers(4, 1.0, 0))
    write_result(folder / "label/test.json", rows, made("a"), calibration=None)
    mistakes, wrong = found(tmp_path)
    assert [one.id for one in mistakes] == [rows[3]["id"]]
    assert wrong == 1
