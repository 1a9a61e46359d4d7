"""Tables of scores: their figures are those of the results and of the statistics."""

import json
import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from scipy import stats
from sklearn.metrics import f1_score

from rbft.analysis.masked import MaskedRun, cost_difference, masking_cost
from rbft.analysis.paired import compare_pair
from rbft.report.conditions import Conditions
from rbft.report.content import Content, build_content
from rbft.report.gather import gather
from rbft.report.groups import group_runs, seeds_of
from rbft.report.tables import Row, Section, Table
from tests.report_runs import answers, made, settings, write, write_result, write_run


def section(content: Content, key: str) -> Section:
    (found,) = (one for one in content.sections if one.key == key)
    return found


def cell(table: Table, row: Row, column: str) -> str:
    return row.cells[table.columns.index(column)].text


def final(content: Content, run: str) -> Any:
    """The final results of a run."""
    return content.gathered.run(run).final


def numbers(text: str) -> list[float]:
    return [float(one) for one in re.findall(r"[-+]?\d+\.?\d*", text)]


def test_every_score_stands_with_n_coverage_and_interval(content):
    (table,) = section(content, "scores").tables
    shown = {
        (cell(table, row, "run"), cell(table, row, "step"), cell(table, row, "n")): row
        for row in table.rows
    }
    count = 0
    for run in content.gathered.runs:
        for result in run.results:
            if result.masking is not None:
                continue
            stored = json.loads(result.file.read_text())
            row = shown[run.name, result.title, str(stored["n_scored"])]
            for name in ("accuracy", "f1/normal", "f1/abnormal", "f1/macro"):
                ends = stored["intervals"][name]
                expected = [stored["metrics"][name], ends["low"], ends["high"]]
                column = name if name == "accuracy" else f"F1 {name[3:]}"
                found = numbers(cell(table, row, column))
                assert found == [round(100 * value, 1) for value in expected]
            assert cell(table, row, "coverage %") == f"{100 * stored['coverage']:.1f}"
            count += 1
    assert count == 12


def test_levels_of_a_scale_have_a_table_of_their_own(tmp_path):
    rows = answers(20, 0.7, 0)
    write_run(tmp_path, settings("run", ["label"]), rows)
    file = tmp_path / "run/label/test.json"
    result = json.loads(file.read_text())
    result["values"] = {"normal": 1.0, "abnormal": 5.0}
    result["metrics"] |= {"mae": 1.23456, "mae/answer": 1.2, "spearman": None}
    result["intervals"]["mae"] = {"low": 1.0, "high": 1.5}
    write(file, json.dumps(result))
    _, levels = section(build_content(gather(tmp_path)), "scores").tables
    assert levels.title == "Levels 1 to 5: normal, abnormal"
    ours, median = levels.rows
    shown = [cell(levels, ours, name) for name in ("MAE", "MAE of the answer", "Spearman")]
    assert shown == ["1.235 [1.000, 1.500]", "1.200", "-"]
    share = result["classes"]["normal"] / 20
    assert cell(levels, median, "MAE") == f"{4 * share:.3f}"
    assert "(normal 1, abnormal 5)" in levels.notes[0]

    for change, what in (
        ({"values": {"normal": 1.0}}, "values has no number for each class"),
        ({"metrics": {**result["metrics"], "mae": "x"}}, "metrics has no number for each of mae, "),
    ):
        write(file, json.dumps(result | change))
        assert any(what in problem.text for problem in gather(tmp_path).problems)


def test_answers_that_are_no_class_lower_the_coverage(tmp_path):
    rows = answers(20, 1.0, 0)
    for row in rows[:5]:
        row["prediction"] = None
        del row["probabilities"]
    write_run(tmp_path, settings("run", ["label"]), rows)
    (table,) = section(build_content(gather(tmp_path)), "scores").tables
    assert cell(table, table.rows[0], "coverage %") == "75.0"
    assert numbers(cell(table, table.rows[0], "accuracy"))[0] == 75.0


def test_the_majority_line_is_that_of_scikit_learn(content):
    (table,) = section(content, "scores").tables
    rows = [row for row in table.rows if row.kind == "majority"]
    assert len(rows) == len({cell(table, row, "clips") for row in rows}) == 4
    result = final(content, "smarthome_qwen2")
    labels = [row["label"] for row in result.rows]
    always = ["abnormal"] * len(labels)
    letter = content.conditions.of(result).letter
    (row,) = (one for one in rows if cell(table, one, "clips") == letter)
    reference: Any = f1_score  # its stubs know only numbers
    expected = [reference(labels, always, pos_label=one) for one in ("normal", "abnormal")]
    shown = [cell(table, row, f"F1 {name}") for name in ("normal", "abnormal", "macro")]
    assert shown == [f"{100 * one:.1f}" for one in (*expected, fmean(expected))]
    assert cell(table, row, "accuracy") == f"{100 * labels.count('abnormal') / 196:.1f}"


def test_results_of_before_get_their_intervals_from_the_confusion_matrix(tmp_path):
    folder = write_run(tmp_path, settings("run", ["label"]), answers(50, 0.8, 0))
    before = build_content(gather(tmp_path))
    stored = json.loads((folder / "label/test.json").read_text())
    del stored["intervals"]
    write(folder / "label/test.json", json.dumps(stored))
    after = build_content(gather(tmp_path))
    assert section(before, "scores").tables[0].rows == section(after, "scores").tables[0].rows


def test_runs_that_differ_in_seeds_alone_are_one_row(content):
    table = section(content, "seeds").tables[0]
    assert [row.cells[0].text for row in table.rows] == [
        "smarthome_qwen25_direct",
        "smarthome_qwen25",
    ]
    row = table.rows[1]
    assert row.runs == ("smarthome_qwen25_seed1", "smarthome_qwen25_seed2")
    assert cell(table, row, "which") == "1, 2"
    for metric, column in (("accuracy", "accuracy"), ("f1/macro", "F1 macro")):
        values = []
        for run in row.runs:
            values.append(100 * final(content, run).score(metric))
        low, high = stats.t.interval(0.95, 1, fmean(values), stats.sem(values))
        expected = [fmean(values), stdev(values), max(low, 0), min(high, 100)]
        assert numbers(cell(table, row, column)) == pytest.approx(expected, abs=0.051)


def test_a_mean_over_seeds_lies_between_0_and_100_and_so_does_its_interval(tmp_path):
    for seed, right in ((1, 0.05), (2, 0.3)):
        write_run(tmp_path, settings(f"a_seed{seed}", ["label"], seed), answers(40, right, seed))
    table = section(build_content(gather(tmp_path)), "seeds").tables[0]
    mean, _, low, high = numbers(cell(table, table.rows[0], "accuracy"))
    assert low == 0
    assert mean < high <= 100


@pytest.mark.parametrize(
    ("change", "alike"),
    [
        ({"trainer__devices": 2}, True),  # where it ran
        ({"data__init_args__num_workers": 8}, True),
        ({"model__learning_rate": 2e-5}, False),
        ({"data__init_args__clip_seed": 7}, False),  # other clips
    ],
)
def test_what_decides_the_outcome_keeps_runs_apart(tmp_path, change, alike):
    rows = answers(20, 0.8, 0)
    write_run(tmp_path, settings("a_seed1", ["label"], 1), rows)
    write_run(tmp_path, settings("a_seed2", ["label"], 2, **change), rows)
    gathered = gather(tmp_path)
    conditions = Conditions([one for run in gathered.runs for one in run.results])
    groups = group_runs(gathered.runs, conditions)
    assert [one.names for one in groups] == (
        [("a_seed1", "a_seed2")] if alike else [("a_seed1",), ("a_seed2",)]
    )


def test_seeds_on_other_clips_are_not_one_row(tmp_path):
    write_run(tmp_path, settings("a_seed1", ["label"], 1), answers(20, 0.8, 0))
    write_run(tmp_path, settings("a_seed2", ["label"], 2), answers(20, 0.8, 0, first=3))
    content = build_content(gather(tmp_path))
    assert len(content.groups) == 2
    assert section(content, "seeds").tables == ()


def test_the_seeds_of_a_run_are_one_number_where_they_are_the_same(tmp_path):
    given = settings("a", ["label"], 3)
    folder = write_run(tmp_path, given, answers(9, 0.8, 0))
    assert seeds_of(gather(tmp_path).runs[0]) == "3"
    given["data"]["init_args"]["seed"] = 4
    write(folder / "settings.yaml", json.dumps(given))
    assert seeds_of(gather(tmp_path).runs[0]) == "3, 4"
    given["model"]["rationale_sampling"] = {"seed": 7, "temperature": 1.0}
    given["data"]["init_args"]["seed"] = 3
    write(folder / "settings.yaml", json.dumps(given))
    assert seeds_of(gather(tmp_path).runs[0]) == "3, 7, 3"


def test_the_same_seed_twice_is_not_two_seeds(tmp_path):
    for name, seed in (("a_seed1", 1), ("a_seed2", 2), ("again", 1)):
        write_run(tmp_path, settings(name, ["label"], seed), answers(20, 0.8, seed))
    content = build_content(gather(tmp_path))
    assert [one.names for one in content.groups] == [("a_seed1", "a_seed2"), ("again",)]


def test_differences_are_paired_over_clips_or_seeds(content):
    table = section(content, "differences").tables[0]
    pairs = {(row.cells[0].text, row.cells[1].text): row for row in table.rows}
    # Direct-SFT second; runs on other clips are with nobody.
    assert set(pairs) == {
        ("smarthome_qwen2", "smarthome_qwen2_direct"),
        ("smarthome_qwen25", "smarthome_qwen25_direct"),
    }
    row = pairs["smarthome_qwen2", "smarthome_qwen2_direct"]
    a, b = (final(content, f"smarthome_qwen2{end}") for end in ("", "_direct"))
    found = compare_pair(a.scored, b.scored)
    assert cell(table, row, "compared over") == "196 clips"
    assert cell(table, row, "accuracy") == found.accuracy.percent(1, "+")
    assert cell(table, row, "F1 macro") == found.macro_f1.percent(1, "+")
    assert numbers(cell(table, row, "p")) == [pytest.approx(found.p, abs=5e-4)]
    row = pairs["smarthome_qwen25", "smarthome_qwen25_direct"]
    assert cell(table, row, "compared over") == "2 seeds (1, 2)"
    values = [
        [final(content, f"smarthome_qwen25{end}_seed{n}").score("accuracy")]
        for end in ("", "_direct")
        for n in (1, 2)
    ]
    ours, direct = ([100 * one[0] for one in values[:2]], [100 * one[0] for one in values[2:]])
    p = stats.ttest_rel(ours, direct).pvalue
    assert numbers(cell(table, row, "p")) == [pytest.approx(p, abs=5e-4)]
    assert numbers(cell(table, row, "accuracy"))[0] == pytest.approx(
        fmean(ours) - fmean(direct), abs=0.051
    )


def test_only_seeds_that_both_have_are_paired(tmp_path):
    for seed, right in ((0, 0.9), (1, 0.8), (2, 0.85)):
        given = settings(f"ours_seed{seed}", ["rationale", "label"], seed)
        write_run(tmp_path, given, answers(40, right, seed))
    for seeds, said in (((1,), "40 clips"), ((2,), "2 seeds (1, 2)"), ((0,), "3 seeds (0, 1, 2)")):
        for seed in seeds:
            given = settings(f"direct_seed{seed}", ["label"], seed)
            write_run(tmp_path, given, answers(40, 0.6, 10 + seed))
        content = build_content(gather(tmp_path))
        table = section(content, "differences").tables[0]
        (row,) = table.rows
        assert cell(table, row, "compared over") == said
        if seeds == (1,):
            assert row.runs == ("ours_seed1", "direct_seed1")
            ours, direct = (final(content, name).scored for name in row.runs)
            found = compare_pair(ours, direct)
            assert cell(table, row, "accuracy") == found.accuracy.percent(1, "+")


def test_each_step_of_a_run_is_compared_with_the_one_before(content):
    table = section(content, "differences").tables[1]
    row = next(one for one in table.rows if one.cells[0].text.startswith("smarthome_qwen25_seed1:"))
    assert row.cells[0].text == "smarthome_qwen25_seed1: Stage II (labels)"
    assert row.cells[1].text == "backbone, zero-shot"
    results = {one.place: one for one in content.gathered.run("smarthome_qwen25_seed1").results}
    found = compare_pair(results["label"].scored, results["zero_shot"].scored)
    assert cell(table, row, "accuracy") == found.accuracy.percent(1, "+")


def test_a_comparison_is_shown_as_compare_has_computed_it(tmp_path):
    from rbft.commands.compared_runs import ComparedRow, SeedRun
    from rbft.commands.comparison_table import as_dict
    from rbft.runs.usage import Spent

    def row(title: str, steps: int, right: float) -> ComparedRow:
        runs = {}
        for seed in (1, 2):
            folder = write_run(
                tmp_path, settings(f"{title}_seed{seed}", ["label"], seed), answers(40, right, seed)
            )
            (run,) = gather(tmp_path, [folder.name]).runs
            assert run.final is not None
            assert run.final.scored is not None
            spent = {"training": Spent(60.0, 90.0)}
            runs[seed] = SeedRun(run.final.scored, None, steps, 80, 1, spent, 0, folder)
        return ComparedRow(title, runs, f"{title}.yaml")

    direct, ours = row("direct", 3, 0.6), row("ours", 6, 0.9)
    stored = as_dict([direct, ours], direct, "accuracy")
    write(tmp_path / "compare/direct-1.json", json.dumps(stored))
    write(tmp_path / "compare/broken.json", '{"rows": [{"title": 3}]}')
    tables = section(build_content(gather(tmp_path)), "seeds").tables
    (table,) = (one for one in tables if one.title == "Comparison with direct")
    shown = table.rows[1]
    apart = stored["rows"][1]["minus_baseline"]["accuracy"]
    assert cell(table, shown, "experiment") == "ours"
    expected = [round(100 * apart[name], 1) for name in ("mean", "low", "high")]
    assert numbers(cell(table, shown, "difference")) == expected
    assert cell(table, shown, "wins") == f"{apart['wins']}/2"
    assert cell(table, shown, "steps") == "6"
    assert cell(table, shown, "unlike the baseline") == "another number of optimiser steps"
    assert shown.runs == ("ours_seed1", "ours_seed2")
    assert cell(table, table.rows[0], "difference") == "-"


def test_what_masking_costs_is_as_the_statistics_have_it(content):
    against, scores = section(content, "masking").tables
    effects = {(row.cells[0].text, row.cells[1].text): row for row in against.rows}
    titles = ("objects - original frames", "random - original frames", "objects - random")
    names = ("smarthome_qwen2", "smarthome_qwen2_direct")
    both = "smarthome_qwen2_direct - smarthome_qwen2"
    last = (both, "objects - random, of A - of B")
    assert set(effects) == {*((name, title) for name in names for title in titles), last}
    runs = []
    for name in names:
        run = content.gathered.run(name)
        by_name = {one.file.stem.split("-")[1]: one.scored for one in run.results if one.masking}
        random = (by_name["random0"], by_name["random1"])
        runs.append(MaskedRun(name, run.final.scored, by_name["objects"], random))
        cost = masking_cost(runs[-1])
        shown = [cell(against, effects[name, title], "accuracy") for title in titles]
        expected = (cost.objects, cost.random, cost.accuracy)
        assert shown == [one.percent(1, "+") for one in expected]
        row = effects[name, "objects - random"]
        assert cell(against, row, "F1 macro") == cost.macro_f1.percent(1, "+")
        assert cell(against, row, "draws") == "2"
        assert numbers(cell(against, row, "p")) == [pytest.approx(cost.p_median, abs=6e-4)]
    apart = cost_difference(runs[1], runs[0])
    assert cell(against, effects[last], "accuracy") == apart.accuracy.percent(1, "+")
    assert effects[last].runs == ("smarthome_qwen2_direct", "smarthome_qwen2")
    shown = {(one.cells[0].text, one.cells[2].text, one.cells[3].text) for one in scores.rows}
    assert ("smarthome_qwen2_direct", "random", "1") in shown
    assert len(scores.rows) == 6
    assert {cell(scores, one, "area %") for one in scores.rows} == {"8.3"}
    assert {cell(scores, one, "overlap %") for one in scores.rows} == {"100.0", "0.0"}


def test_clips_in_which_too_little_was_masked_at_random_are_left_out(tmp_path):
    folder = write_run(tmp_path, settings("run", ["label"]), answers(40, 0.8, 0))
    rows = answers(40, 0.5, 1)
    objects, random = folder / "label/test-objects-1.json", folder / "label/test-random0-1.json"
    write_result(objects, rows, made("run"), masking=MASKED)
    control = {**MASKED, "kind": "random", "repeat": 0, "unmatched": [rows[3]["id"]]}
    write_result(random, answers(40, 0.6, 2), made("run"), masking=control)
    against, _ = section(build_content(gather(tmp_path)), "masking").tables
    assert {cell(against, row, "n") for row in against.rows} == {"39"}


MASKED = {"kind": "objects", "boxes": "b", "fill": "constant", "area": 0.1, "overlap": 1.0}


def test_masked_frames_are_of_the_run_whose_weights_were_scored(tmp_path):
    """The experiment that masks has a name of its own, and leaves its results there."""
    write_run(tmp_path, settings("one", ["label"]), answers(40, 0.8, 0))
    write_run(tmp_path, settings("two", ["label"]), answers(40, 0.9, 1))
    for number, name in enumerate(("one", "two")):
        file = tmp_path / f"masked_objects/weights-{number}/test-objects-{number}.json"
        write_result(file, answers(40, 0.5, 2 + number), made(name), masking=MASKED)
    content = build_content(gather(tmp_path))
    assert content.gathered.run("masked_objects").state == "scored only"
    against, scores = section(content, "masking").tables
    assert [row.cells[0].text for row in scores.rows] == ["one", "two"]
    assert [row.runs for row in scores.rows] == [
        ("one", "masked_objects"),
        ("two", "masked_objects"),
    ]
    for row, name, number in zip(against.rows, ("one", "two"), (2, 3), strict=True):
        assert row.cells[0].text == name
        whole = final(content, name)
        (result,) = (
            one
            for one in content.gathered.run("masked_objects").results
            if one.rows == tuple(answers(40, 0.5, number))
        )
        answers_of: Any = result.scored
        found = compare_pair(answers_of, whole.scored)
        assert cell(against, row, "accuracy") == found.accuracy.percent(1, "+")


@pytest.mark.parametrize(
    ("weights", "first", "boxes", "pairs"),
    [
        (
            "run",
            0,
            "b",
            ["objects - original frames", "random - original frames", "objects - random"],
        ),
        ("others", 0, "b", ["objects - original frames"]),  # other weights
        ("run", 2, "b", ["objects - original frames"]),  # other clips
        # Masks made from other boxes are not compared with these.
        ("run", 0, "c", ["objects - original frames", "random - original frames"]),
    ],
)
def test_masks_of_other_weights_clips_or_boxes_are_not_paired(
    tmp_path, weights, first, boxes, pairs
):
    folder = write_run(tmp_path, settings("run", ["label"]), answers(40, 0.8, 0))
    objects, random = folder / "label/test-objects-1.json", folder / "label/test-random0-1.json"
    write_result(objects, answers(40, 0.5, 1), made("run"), masking=MASKED)
    control = {**MASKED, "kind": "random", "repeat": 0, "boxes": boxes}
    rows = answers(40, 0.6, 2, first=first)
    write_result(random, rows, made(weights), masking=control)
    against, scores = section(build_content(gather(tmp_path)), "masking").tables
    assert len(scores.rows) == 2
    assert [row.cells[1].text for row in against.rows] == pairs


def test_calibration_is_that_of_the_results(content):
    (table,) = section(content, "calibration").tables
    assert len(table.rows) == 8
    for row in table.rows:
        result: Any = final(content, row.cells[0].text)
        stored = result.content["calibration"]
        assert cell(table, row, "ECE") == f"{stored['ece']:.3f}"
        assert cell(table, row, "Brier") == f"{stored['brier']:.3f}"
        assert cell(table, row, "NLL") == f"{stored['nll']:.3f}"
        confidence = (
            fmean(max(one["probabilities"].values()) for one in result.rows)
            if (result.rows)
            else None
        )
        if confidence is not None:
            gap = 100 * (confidence - result.score("accuracy"))
            assert numbers(cell(table, row, "confidence - accuracy")) == [
                pytest.approx(gap, abs=0.051)
            ]


def test_logs_with_one_run_say_what_they_lack(tmp_path: Path):
    write_run(tmp_path, settings("run", []), answers(20, 0.5, 0))
    content = build_content(gather(tmp_path))
    assert section(content, "seeds").about.startswith("No two runs differ in nothing but seeds.")
    assert section(content, "differences").about.startswith("No two results were scored")
    assert section(content, "masking").about == "No run was scored with masked frames."
    assert section(content, "attention").about.startswith("No attention maps.")
    assert section(content, "settings").about.startswith("The runs do not differ")
