"""What cannot be compared is marked, by the name of what differs."""

from pathlib import Path

import pytest

from rbft.report.conditions import Conditions
from rbft.report.gather import gather
from rbft.report.results import Result
from tests.report_runs import answers, made, settings, write_result, write_run


@pytest.fixture
def results(tmp_path: Path):
    """Scores of runs "a", "b", ...: rows and what made them, of each."""

    def make(*given: tuple[list, dict], split: str = "test") -> list[Result]:
        for name, (rows, noted) in zip("abcdef", given, strict=False):
            write_result(tmp_path / name / f"label/{split}.json", rows, noted)
        return [run.results[0] for run in gather(tmp_path).runs]

    return make


def legend(results: list[Result]) -> list[str]:
    return Conditions(results).legend(results)


def test_results_that_differ_in_weights_alone_are_alike(results):
    found = results(
        (answers(20, 0.9, 0), made("one")),
        (answers(20, 0.4, 1), made("two", stage="rationale")),
        (answers(20, 0.4, 2), made("two", masking={"kind": "objects"})),
    )
    conditions = Conditions(found)
    assert conditions.alike(found[0], found[1])
    assert conditions.alike(found[0], found[2])
    (line,) = conditions.legend(found)
    assert line.startswith("A: 20 test clips (digest ")
    assert line.endswith("), class words compared by probability, bf16-mixed")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"answer": "generate"}, "way to answer generate instead of score"),
        ({"precision": "32-true"}, "precision 32-true instead of bf16-mixed"),
        ({"frames": {"fps": 2.0}}, "frames.fps 2.0 instead of 1.0"),
        ({"card": "beef"}, "words (card) beef instead of c0ffee"),
        ({"clips": "def"}, "videos, order or annotations of the clips def instead of abc"),
        ({"quantize": "4bit"}, "quantisation 4bit instead of None"),
    ],
)
def test_another_way_to_score_is_named(results, changes, said):
    rows = answers(20, 0.9, 0)
    found = results((rows, made()), (rows, made()), (rows, made(**changes)))
    conditions = Conditions(found)
    assert conditions.of(found[0]).letter == conditions.of(found[1]).letter == "A"
    assert conditions.of(found[2]).letter == "B"
    assert not conditions.alike(found[0], found[2])
    _, line = conditions.legend(found)
    assert f"; not comparable with A: {said}" in line
    # Where it is alone, nothing is said of others.
    (line,) = conditions.legend(found[2:])
    assert "not comparable" not in line


def test_other_clips_and_other_labels_are_named(results):
    rows = answers(20, 0.9, 0)
    flipped = [{**row, "label": row["prediction"]} for row in answers(20, 0.0, 0)]
    found = results((rows, made()), (rows, made()), (answers(20, 0.9, 0, first=5), made()))
    assert legend(found)[1].endswith(
        "not comparable with A: other clips (20 instead of 20, 15 in common)"
    )
    found = results((rows, made()), (rows, made()), (flipped, made()))
    assert legend(found)[1].endswith("not comparable with A: the same 20 clips with other labels")


def test_without_predictions_labels_are_not_taken_for_the_same(results, tmp_path):
    rows = answers(20, 0.9, 0)
    results((rows, made()), (rows, made()))
    (tmp_path / "b/label/test_predictions.jsonl").unlink()
    found = [run.results[0] for run in gather(tmp_path).runs]
    assert not Conditions(found).alike(*found)
    assert legend(found)[1].endswith(
        "the same ids, but the labels cannot be compared without the predictions"
    )


def test_a_server_s_model_is_like_weights_but_its_answers_are_another_way(results):
    rows = answers(20, 0.9, 0)
    asked = [made(endpoint={"model": f"gpt-{n}", "form": {"form": "video"}}) for n in (4, 5)]
    found = results((rows, made()), *((rows, one) for one in asked))
    conditions = Conditions(found)
    assert conditions.alike(found[1], found[2])
    assert not conditions.alike(found[0], found[1])
    assert "way to answer score instead of a server's" in legend(found)[1]


def test_other_splits_and_results_of_earlier_versions_are_apart(tmp_path):
    rows = answers(20, 0.9, 0)
    write_result(tmp_path / "a/label/test.json", rows, made())
    write_result(tmp_path / "a/label/val.json", rows, made())
    write_result(tmp_path / "b/label/test.json", rows, {})
    found = [one for run in gather(tmp_path).runs for one in run.results]
    assert len({Conditions(found).of(one).letter for one in found}) == 3
    lines = legend(found)
    assert "the val split instead of test" in lines[1]
    assert "precision not noted instead of bf16-mixed" in lines[2]


def test_the_page_s_tables_mark_the_run_on_other_clips(content):
    table = next(one for one in content.sections if one.key == "scores").tables[0]
    letters = {row.cells[0].text: row.cells[3].text for row in table.rows if row.kind == "ours"}
    assert letters["smarthome_qwen25_less"] != letters["smarthome_qwen25_seed1"]
    assert letters["smarthome_qwen25_direct_seed1"] == letters["smarthome_qwen25_seed1"]
    others = letters["smarthome_qwen25_less"]
    assert any(
        note.startswith(f"clips {others}: 205 test clips") and "156 in common" in note
        for note in table.notes
    )


def test_a_run_s_settings_do_not_make_its_scores_comparable(tmp_path):
    """Only what the results note does: the same settings may have been scored on other clips."""
    given = settings("a", ["label"])
    write_run(tmp_path, given, answers(20, 0.9, 0))
    write_run(tmp_path, {**given, "name": "b"}, answers(20, 0.9, 0, first=1))
    one, other = (run.final for run in gather(tmp_path).runs)
    assert one is not None
    assert other is not None
    assert not Conditions([one, other]).alike(one, other)
