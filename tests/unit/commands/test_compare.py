"""The comparison of made-up runs: table, marks, other systems' files, and what is run."""

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats

import rbft.cli
from rbft.analysis.scored import ScoredClips
from rbft.commands import compare as command
from rbft.commands.compare import compare
from rbft.commands.compared_runs import (
    ComparedRow,
    SeedRun,
    check_rows,
    read_others,
    read_run,
)
from rbft.commands.comparison_table import as_csv, as_dict, comparison_table, difference, f1_table
from rbft.runs.usage import Spent
from rbft.runtime.lock import Lock
from tests.several import PETS

CLASSES = ("normal", "abnormal")
LABELS = [0, 1] * 10
HOUR = Spent(4000.0, 7200.0, 0.0)


def clips(wrong: int, name: str = "run", labels: Sequence[int] = tuple(LABELS)) -> ScoredClips:
    """Twenty clips, the first few answered wrongly."""
    rows = [
        {
            "id": f"c{n}",
            "label": CLASSES[label],
            "prediction": CLASSES[label if n >= wrong else 1 - label],
        }
        for n, label in enumerate(labels)
    ]
    return ScoredClips.from_rows(rows, CLASSES, "test", name)


def row(title: str, wrong: Sequence[int], **facts: Any) -> ComparedRow:
    """A row with a seed for each number of wrong answers."""
    known = {"content": "v", "steps": 10, "seen": 40, "epochs": 1, "tokens": 0}
    facts = {**known, "spent": {"training": HOUR}, "folder": Path(f"logs/{title}"), **facts}
    seeds = {
        seed: SeedRun(clips(one, f"{title}_seed{seed}"), **facts)
        for seed, one in enumerate(wrong, start=1)
    }
    return ComparedRow(title, seeds, f"{title}.yaml")


BASE = row("direct", [8, 6, 8, 7, 9])
OURS = row("ours", [4, 5, 2, 6, 5], steps=20, seen=80, epochs=2, tokens=12_345)


def lines_of(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()}


def test_the_table():
    text = comparison_table([BASE, OURS], BASE, "accuracy")
    lines = lines_of(text)
    assert lines["direct"] == ["62.0±5.7", "10", "2", "0"]
    # Differences of 4, 1, 6, 1 and 4 clips of 20: mean 16 points.
    apart = [0.2, 0.05, 0.3, 0.05, 0.2]
    found: Any = stats.ttest_1samp(apart, 0)
    low, high = found.confidence_interval()
    wanted = [f"+16.0±{50 * (high - low):.1f}", f"{found.pvalue:.3f}", "5/5"]
    assert lines["ours"] == ["78.0±7.6", *wanted, "20", "sce", "2", "12.3k"]
    assert lines["majority"] == ["class", "50.0±0.0"]
    assert "over 5 seeds, with half the 95 % t interval; p of the paired t test." in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("changed", "marks"),
    [
        ({}, ""),
        ({"steps": 11}, "s"),
        ({"seen": 41}, "c"),
        ({"epochs": 2}, "e"),
        ({"steps": 11, "epochs": 2}, "se"),
        ({"steps": None, "seen": None, "epochs": None}, "?"),
    ],
)
def test_rows_that_were_trained_otherwise_are_marked(changed, marks):
    other = row("other", [8, 6, 8, 7, 9], **changed)
    assert other.unlike(BASE) == marks
    text = comparison_table([BASE, other], BASE, "accuracy")
    legend = {
        "s": "another number of optimiser steps",
        "c": "another number of training clips seen",
        "e": "another number of epochs",
        "?": "how it was trained is not known",
    }
    for mark, said in legend.items():
        assert (f"  {mark}: {said}" in text) == (mark in marks)
    assert ("so that more than the method differs" in text) == bool(marks)
    made = as_dict([BASE, other], BASE, "accuracy")["rows"][1]
    assert made["unlike_baseline"] == list(marks)


def test_one_seed_that_differs_is_enough_for_a_mark():
    seeds = {**BASE.seeds, 3: row("x", [1, 1, 1], steps=9).seeds[3]}
    assert ComparedRow("other", seeds, "x").unlike(BASE) == "s"


def test_one_seed_is_compared_clip_by_clip():
    base, ours = row("base", [8]), row("ours", [2])
    found = difference(ours, base, "accuracy")
    assert found.mean == pytest.approx(0.3)
    assert found.p == pytest.approx(stats.binomtest(6, 6, 0.5).pvalue)
    assert 0 < found.low < 0.3 < found.high
    text = comparison_table([base, ours], base, "accuracy")
    assert "of one seed, with the paired bootstrap's 95 % interval; McNemar's p." in text
    assert "+30.0 [" in text
    assert max(map(len, text.splitlines())) <= 80


def test_no_line_is_wider_than_a_terminal():
    """Long titles lose their middle, and where that is not enough, columns are left out."""
    long = [row(f"smarthome_qwen25_{n}_with_a_long_name", [8 - n]) for n in range(3)]
    text = comparison_table(long, long[0], "f1/macro")
    assert max(map(len, text.splitlines())) <= 80
    # They would be the same without their middle: numbers tell them apart.
    shown = [line.split("  ")[0] for line in text.splitlines()[3:6]]
    assert [title[:3] for title in shown] == ["1 s", "2 s", "3 s"]
    assert all(".." in title for title in shown)
    assert f"{shown[1]}: smarthome_qwen25_1_with_a_long_name" in text
    other = [row("smarthome_qwen25_direct", [8]), row("smarthome_qwen25_rationale_first", [7])]
    text = comparison_table(other, other[0], "accuracy")
    shown = [line.split("  ")[0] for line in text.splitlines()[3:5]]
    assert [title[-6:] for title in shown] == ["direct", "_first"]
    wide = row("x", [1], steps=10**30, tokens=7)
    text = comparison_table([wide, row("y", [2])], wide, "accuracy")
    assert max(map(len, text.splitlines())) <= 80
    assert "no room for: " in text
    assert "tokens; they stand in the files." in text


def test_f1_of_the_classes_stands_below():
    text = f1_table([BASE, OURS])
    scores = [one.scores for one in OURS.seeds.values()]
    mean = sum(one["f1/normal"] for one in scores) / 5
    assert f"{100 * mean:.1f}±" in text
    assert "F1 normal  F1 abnormal" in text


def test_scores_are_those_of_scikit_learn():
    from sklearn.metrics import accuracy_score, f1_score

    one = clips(7)
    scores = SeedRun(one).scores
    assert scores["accuracy"] == pytest.approx(accuracy_score(one.labels, one.predictions))
    each: Any = f1_score(one.labels, one.predictions, average=None)  # type: ignore[arg-type]
    assert [scores["f1/normal"], scores["f1/abnormal"]] == pytest.approx(list(each))
    assert scores["f1/macro"] == pytest.approx(each.mean())


def test_files_hold_all_figures():
    made = json.loads(json.dumps(as_dict([BASE, OURS], BASE, "accuracy"), allow_nan=False))
    ours = made["rows"][1]
    assert ours["minus_baseline"]["accuracy"]["mean"] == pytest.approx(0.16)
    assert ours["seeds"]["2"]["scores"]["accuracy"] == pytest.approx(0.75)
    assert ours["seeds"]["2"]["spent"]["training"]["processor_seconds"] == 7200.0
    assert made["rows"][0]["minus_baseline"] is None
    rows = list(csv.DictReader(as_csv([BASE, OURS]).splitlines()))
    assert [(one["title"], one["seed"]) for one in rows[4:6]] == [("direct", "5"), ("ours", "1")]
    assert float(rows[6]["accuracy"]) == pytest.approx(0.75)
    assert rows[6]["steps"] == "20"


def test_files_hold_errors_on_a_scale():
    def on_scale(one: ComparedRow) -> ComparedRow:
        seeds = {
            n: replace(s, clips=replace(s.clips, levels=(1.0, 4.0))) for n, s in one.seeds.items()
        }
        return replace(one, seeds=seeds)

    ours, base = on_scale(OURS), on_scale(BASE)
    made = json.loads(json.dumps(as_dict([base, ours], base, "accuracy"), allow_nan=False))
    # A wrong answer is three off.
    assert made["rows"][1]["seeds"]["2"]["scores"]["mae"] == pytest.approx(3 * 5 / 20)
    assert made["rows"][1]["minus_baseline"]["mae"]["mean"] == pytest.approx(-3 * 0.16)
    assert "spearman" in made["rows"][1]["scores"]
    assert "mae" not in as_dict([OURS, BASE], BASE, "accuracy")["rows"][0]["scores"]
    mixed = as_dict([BASE, ours], BASE, "accuracy")["rows"][1]  # other cards, the same classes
    assert "mae" not in mixed["minus_baseline"]
    (*_, last) = csv.DictReader(as_csv([base, ours]).splitlines())
    assert float(last["mae/answer"]) == pytest.approx(3 * 5 / 20)


def test_hours_are_of_the_gpu_where_there_is_one():
    gpu = row("gpu", [1], spent={"training": Spent(3600.0, 100.0, 3600.0)})
    text = comparison_table([gpu], gpu, "accuracy")
    assert "GPU h" in text
    assert lines_of(text)["gpu"][-2] == "1"
    unknown = row("unknown", [1], spent=None)
    assert lines_of(comparison_table([unknown], unknown, "accuracy"))["unknown"][-2] == "-"


def test_rows_of_other_clips_are_refused():
    other = ComparedRow("other", {1: SeedRun(clips(1, "other", [0] * 20))}, "x")
    wanted = r"^other and direct_seed1 were not scored on the same clips: 10 clips \(c1, c3, c5"
    with pytest.raises(ValueError, match=wanted):
        check_rows([other], BASE)
    other = row("other", [1], content="w")
    wanted = (
        r"^other_seed1 and direct_seed1 were scored on clips of the same ids and labels, but not "
        r"of the same videos \(digests w and v\)\. Give all --configs the same benchmark and --vary"
    )
    with pytest.raises(ValueError, match=wanted):
        check_rows([other], BASE)


# Other systems


def written(file: Path, rows: list[dict[str, Any]]) -> Path:
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    else:
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return file


def answers(wrong: int, column: str = "prediction") -> list[dict[str, Any]]:
    found = clips(wrong)
    return [
        {"id": one, column: CLASSES[answer]}
        for one, answer in zip(found.ids, found.predictions.tolist(), strict=True)
    ]


@pytest.mark.parametrize("name", ["their.jsonl", "their.csv"])
@pytest.mark.parametrize("column", ["prediction", "class", "label"])
def test_answers_of_others_are_scored_alike(tmp_path, name, column):
    file = written(tmp_path / name, [*reversed(answers(3, column))])  # in any order
    found = read_others(file, BASE)
    assert (found.title, found.source) == ("their", str(file))
    assert [*found.seeds] == [1, 2, 3, 4, 5]
    assert found.seeds[1].scores == SeedRun(clips(3)).scores
    assert found.notes["lines"] == 20
    assert difference(found, BASE, "accuracy").wins == 5
    text = comparison_table([BASE, found], BASE, "accuracy")
    assert "their: answers from /" in text
    assert max(map(len, text.splitlines())) <= 80
    assert lines_of(text)["their"][-4:] == ["-", "?", "-", "-"]


def test_probabilities_of_others(tmp_path):
    shares = [{"id": f"c{n}", "probabilities": {"normal": 0.7, "abnormal": 0.3}} for n in range(20)]
    found = read_others(written(tmp_path / "a.jsonl", shares), BASE).seeds[1].clips
    assert set(found.predictions.tolist()) == {0}
    assert found.probabilities is not None
    assert found.probabilities[0].tolist() == [0.7, 0.3]
    table = [
        {"id": f"c{n}", "probability_normal": 0.2, "probability_abnormal": 0.8} for n in range(20)
    ]
    found = read_others(written(tmp_path / "a.csv", table), BASE).seeds[1].clips
    assert set(found.predictions.tolist()) == {1}


def test_an_answer_that_is_no_class(tmp_path):
    rows = answers(0)
    rows[0]["prediction"], rows[1]["prediction"] = "", "unparsed"
    found = read_others(written(tmp_path / "a.csv", rows), BASE).seeds[1]
    assert found.clips.predictions.tolist()[:3] == [2, 2, 0]
    assert found.scores["accuracy"] == pytest.approx(0.9)


def test_what_is_wrong_with_files_of_others(tmp_path):
    rows = answers(3)

    def refused(rows: list[dict[str, Any]], said: str, name: str = "a.jsonl") -> None:
        with pytest.raises(ValueError, match=said):
            read_others(written(tmp_path / name, rows), BASE)

    refused(
        [*rows[2:], {"id": "new", "prediction": "normal"}],
        r"a\.jsonl must have one line for each of the 20 test clips of direct and no other: 2 test "
        r"clips \(c0, c1\) missing, 1 unknown clip \(new\)\. Its ids must be those of logs/direct",
    )
    refused([*rows, rows[4]], r"a\.jsonl has several lines of 1 clip \(c4\)\.$")
    refused(
        [{**rows[0], "prediction": "odd"}, *rows[1:]],
        r"a\.jsonl, clip c0: the answer is 'odd', which is none of the classes normal, abnormal\. ",
    )
    refused(
        [{"id": "c0", "said": "normal"}, *rows[1:]],
        r"clip c0 has no answer: there is no prediction, class, label and no probabilities, only "
        r"id, said\.$",
    )
    refused(
        [{"id": "c0", "probabilities": {"normal": "much"}}, *rows[1:]],
        r"clip c0: probabilities must be a number for each class, got \{'normal': 'much'\}\.$",
    )
    (tmp_path / "b.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match=r"b\.jsonl, line 1 is no JSON\.$"):
        read_others(tmp_path / "b.jsonl", BASE)
    (tmp_path / "b.jsonl").write_text("3")
    with pytest.raises(ValueError, match=r"b\.jsonl, line 1 must be an object, got 3\.$"):
        read_others(tmp_path / "b.jsonl", BASE)
    with pytest.raises(ValueError, match=r"none\.csv cannot be read: No such file or directory\.$"):
        read_others(tmp_path / "none.csv", BASE)
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"a\.txt must be a \.jsonl or a \.csv file\.$"):
        read_others(tmp_path / "a.txt", BASE)


def test_others_need_one_set_of_clips(tmp_path):
    seeds = {1: row("a", [1], content="v").seeds[1], 2: row("a", [1], content="w").seeds[1]}
    wanted = (
        r"a\.jsonl answers about one set of test clips, but a has others for each seed\. Leave "
        r"--others out, or the setting that draws test clips out of --vary\.$"
    )
    with pytest.raises(ValueError, match=wanted):
        read_others(written(tmp_path / "a.jsonl", answers(1)), ComparedRow("a", seeds, "x"))


# What is run


class Fits:
    """Stands for `python -m rbft`: leaves what `fit` leaves, and notes how it was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.calls: list[dict[str, str]] = []
        self.folder, self.ends = folder, {}
        self.ends: dict[str, int] = {}  # status by run
        self.seconds: dict[str, float] = {}  # of an epoch, by stages
        monkeypatch.setattr(rbft.cli, "main", self)
        for name, stages in (("direct", ["label"]), ("ours", ["rationale", "label"])):
            (folder / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, "stages": stages}))

    def __call__(self, args: list[str]) -> None:
        assert args[0] == "fit"
        options = dict(one.removeprefix("--").split("=", 1) for one in args[1:])
        self.calls.append(options)
        name = options["name"]
        if name in self.ends:
            raise SystemExit(self.ends.pop(name))
        print(f"training {name}")  # noqa: T201 (as fit does)
        run = Path(options["trainer.default_root_dir"]) / name
        content = yaml.safe_load(Path(options["config"]).read_text())
        stages = yaml.safe_load(options["stages"]) if "stages" in options else content["stages"]
        epochs = int(options.get("trainer.max_epochs", 3))
        settings = {
            "stages": stages,
            "trainer": {"max_epochs": epochs},
        }
        run.mkdir(parents=True, exist_ok=True)
        (run / "settings.yaml").write_text(yaml.safe_dump(settings))
        (run / "record.json").write_text(json.dumps({"clips": {"test": "v"}}))
        for stage in stages:
            weights = run / stage / "weights"
            weights.mkdir(parents=True, exist_ok=True)
            made = {"steps": 5 * epochs, "epochs": epochs, "clips_seen": 20 * epochs}
            if stage == "rationale":
                made["rationale_tokens"] = 300
            (weights / "rbft.json").write_text(json.dumps(made))
            (weights / "clips.json").write_text(json.dumps({"train": [1] * 20}))
        if self.seconds:
            seconds = self.seconds[stages[-1] if len(stages) == 1 else "both"] * epochs
            spent = {"training": {"seconds": 1.0, "processor_seconds": seconds}}
            (run / "usage").mkdir(exist_ok=True)
            (run / "usage/1.json").write_text(json.dumps(spent))
        found = clips(len(stages) + int(options["seed_everything"]))
        rows = [
            {"id": one, "label": CLASSES[label], "prediction": CLASSES[said]}
            for one, label, said in zip(
                found.ids, found.labels.tolist(), found.predictions.tolist(), strict=True
            )
        ]
        counts = {"classes": {"normal": 10, "abnormal": 10}, "split": "test", "tokens_written": 7}
        (run / "label" / "test.json").write_text(json.dumps(counts))
        written(run / "label" / "test_predictions.jsonl", rows)

    @property
    def names(self) -> list[str]:
        return [call["name"] for call in self.calls]


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fits:
    return Fits(monkeypatch, tmp_path)


def compared(fits: Fits, **options: Any) -> dict[str, Any]:
    configs = [fits.folder / "direct.yaml", fits.folder / "ours.yaml"]
    compare(configs, **{"seeds": 2, "logs": fits.folder / "logs", **options})
    (file,) = sorted((fits.folder / "logs/compare").glob("*.json"))
    return json.loads(file.read_text())


def test_each_run_is_a_fit_of_its_own_name_and_seed(fits, capsys):
    made = compared(fits, first_seed=4, vary=["seed_everything", "data.clip_seed"])
    assert fits.names == ["direct_seed4", "ours_seed4", "direct_seed5", "ours_seed5"]
    last = fits.calls[-1]
    assert last["config"].endswith("ours.yaml")
    assert last["seed_everything"] == last["data.clip_seed"] == "5"
    assert "data.seed" not in last
    assert last["score_each_stage"] == "false"
    assert [one["title"] for one in made["rows"]] == ["direct", "ours"]
    assert made["rows"][1]["seeds"]["4"]["tokens"] == 307
    assert made["rows"][1]["unlike_baseline"] == ["s", "c", "e"]
    shown = capsys.readouterr().out
    assert "training ours_seed5" in shown
    assert "In per cent, mean ± standard deviation over 2 seeds:" in shown


def test_by_default_order_and_initialisation_vary(fits):
    compared(fits)
    assert fits.calls[2]["seed_everything"] == fits.calls[2]["data.seed"] == "2"


def test_what_is_finished_is_looked_at_and_not_shown(fits, capsys):
    compared(fits)
    capsys.readouterr()
    compared(fits)
    assert len(fits.names) == 8  # fit is asked whether it was made from the same
    shown = capsys.readouterr().out
    assert "3/4: direct_seed2 is finished" in shown
    assert "training direct" not in shown


def test_a_run_that_fails_ends_the_comparison(fits, capsys):
    fits.ends["ours_seed1"] = 2
    with pytest.raises(SystemExit) as end:
        compared(fits)
    assert end.value.code == 2
    wanted = "The comparison ended in the run ours_seed1. Started again, it goes on there.\n"
    assert capsys.readouterr().err == wanted
    compared(fits)
    assert fits.names[2:] == ["direct_seed1", "ours_seed1", "direct_seed2", "ours_seed2"]


def test_matched_adds_direct_sft_with_as_many_steps(fits):
    made = compared(fits, matched=True)
    assert fits.names[-2:] == ["ours_matched_seed1", "ours_matched_seed2"]
    last = fits.calls[-1]
    assert (last["stages"], last["trainer.max_epochs"]) == ("[label]", "6")
    steps = {one["title"]: one["seeds"]["1"]["steps"] for one in made["rows"]}
    assert steps == {"direct": 15, "ours": 30, "ours_matched": 30}


def test_matched_in_seconds(fits):
    """Two epochs of labels and one of rationales take as long as eight of labels alone."""
    fits.seconds = {"label": 2.0, "both": 5.2}
    made = compared(fits, matched=True, matched_seconds=True)
    last = fits.calls[-1]
    assert last["name"] == "ours_matched_seconds_8_seed2"
    assert (last["stages"], last["trainer.max_epochs"]) == ("[label]", "8")
    # Nothing of the experiment's that Direct-SFT does not know.
    assert (last["model.answer_weight"], last["rationales_from"]) == ("1.0", "backbone")
    epochs = {one["title"]: one["seeds"]["1"]["epochs"] for one in made["rows"]}
    assert epochs == {"direct": 3, "ours": 6, "ours_matched": 6, "ours_matched_seconds_8": 8}


def test_more_seeds_may_take_other_epochs_than_fewer(fits):
    """A run of other epochs under the same name would be refused."""
    fits.seconds = {"label": 2.0, "both": 5.2}
    compared(fits, matched_seconds=True)
    fits.seconds = {"label": 2.0, "both": 6.2}  # what the other seeds take
    configs = [fits.folder / f"{name}.yaml" for name in ("direct", "ours")]
    shutil.rmtree(fits.folder / "logs")
    compare(configs, seeds=4, matched_seconds=True, logs=fits.folder / "logs")
    names = {name.rpartition("_")[0] for name in fits.names if "seconds" in name}
    assert names == {"ours_matched_seconds_8", "ours_matched_seconds_9"}


def test_matched_in_seconds_where_nothing_takes_longer(fits, capsys):
    fits.seconds = {"label": 2.0, "both": 2.1}
    compared(fits, matched_seconds=True)
    assert len(fits.names) == 4
    assert (
        "--matched_seconds adds nothing: direct trains for 6 seconds, about as long as any other."
    ) in capsys.readouterr().out


def test_matched_in_seconds_needs_to_know_how_long_an_epoch_takes(fits):
    logs = fits.folder / "logs"
    with pytest.raises(ValueError, match=r"needs Direct-SFT among the rows, to know how long an"):
        compare([fits.folder / "ours.yaml"], seeds=1, matched_seconds=True, logs=logs)
    configs = [fits.folder / f"{name}.yaml" for name in ("direct", "ours")]
    with pytest.raises(ValueError, match=r"--matched_seconds: direct has noted no time"):
        compare(configs, seeds=1, matched_seconds=True, logs=logs)


def test_matched_where_direct_sft_is_the_longest(fits, capsys):
    configs = [fits.folder / "direct.yaml"]
    compare(configs, seeds=1, matched=True, logs=fits.folder / "logs")
    assert fits.names == ["direct_seed1"]
    wanted = "--matched adds nothing: direct is Direct-SFT with 15 steps, as many as any other."
    assert wanted in capsys.readouterr().out


def test_a_matched_run_of_another_kind_is_not_taken(fits):
    (fits.folder / "m.yaml").write_text("name: ours_matched\nstages: [label]\n")
    configs = [fits.folder / f"{name}.yaml" for name in ("ours", "m")]
    wanted = (
        r"^--matched would run Direct-SFT as ours_matched, which --configs has with other steps\. "
        r"Give that another name, or leave --matched out\.$"
    )
    with pytest.raises(ValueError, match=wanted):
        compare(configs, seeds=1, matched=True, logs=fits.folder / "logs")


def test_overlays_come_behind_the_experiment(fits, tmp_path, monkeypatch):
    seen: list[list[str]] = []
    monkeypatch.setattr(
        rbft.cli, "main", lambda args: (seen.append(args), Fits.__call__(fits, args))
    )
    overlay = tmp_path / "tiny.yaml"
    overlay.write_text("trainer: {max_epochs: 1}\n")
    with pytest.raises(KeyError):  # the stand-in takes the last file for the experiment
        compare([fits.folder / "ours.yaml"], seeds=1, overlays=[overlay], logs=tmp_path / "logs")
    assert seen[0][1:3] == [f"--config={fits.folder / 'ours.yaml'}", f"--config={overlay}"]


def test_others_and_another_baseline(fits, tmp_path):
    file = written(tmp_path / "their.jsonl", answers(9))
    made = compared(fits, others=[file], baseline="ours")
    assert made["baseline"] == "ours"
    assert [one["title"] for one in made["rows"]] == ["direct", "ours", "their"]
    assert made["rows"][2]["digest"]
    assert made["rows"][2]["minus_baseline"]["accuracy"]["wins"] == 0


def test_wrong_clips_of_others_end_the_comparison_at_its_first_run(fits, tmp_path):
    file = written(tmp_path / "their.jsonl", answers(9)[:-1])
    with pytest.raises(ValueError, match=r"must have one line for each of the 20 test clips"):
        compared(fits, others=[file], baseline="ours")
    assert fits.names == ["ours_seed1"]


def test_a_comparison_is_made_once_at_a_time(fits):
    compared(fits)
    (file,) = sorted((fits.folder / "logs/compare").glob("*.json"))
    with (
        Lock(file, "Comparison"),
        pytest.raises(ValueError, match=rf"^Comparison {file} is in use by process \d+ on "),
    ):
        compared(fits)


def test_options_that_are_refused(fits, tmp_path):
    for options, said in (
        ({"seeds": 0}, r"^seeds \(0\) must be 1 or more\.$"),
        ({"baseline": "their"}, r"^--baseline is 'their'; allowed are direct, ours\.$"),
        (
            {"metric": "recall"},
            r"^--metric is 'recall'; allowed are accuracy, f1/normal, f1/abnormal, f1/macro\.$",
        ),
        ({"others": [tmp_path / "no.csv"]}, r"^--others .*no\.csv cannot be read: No such file"),
    ):
        with pytest.raises(ValueError, match=said):
            compared(fits, **options)
    with pytest.raises(ValueError, match=r"^--configs names no experiment file\. Give some: "):
        compare([], logs=tmp_path)
    twice = [fits.folder / "ours.yaml"] * 2
    with pytest.raises(ValueError, match=r"^Several of --configs have the name ours, and their "):
        compare(twice, logs=tmp_path)


def test_an_experiment_of_a_single_stage(fits, monkeypatch):
    """Its settings stand in the stage's folder, since the run's other stages are others'."""
    monkeypatch.setattr(rbft.cli, "main", lambda args: None)
    wanted = (
        r"^compare runs whole experiments, but .*/direct\.yaml runs one stage alone "
        r"\(model\.stage\)\. Set its stages instead\.$"
    )
    with pytest.raises(ValueError, match=wanted):
        compared(fits)


def test_runs_of_before_costs_were_noted(fits):
    compared(fits)
    run = fits.folder / "logs/ours_seed1"
    for stage in ("rationale", "label"):
        (run / stage / "weights/rbft.json").write_text('{"steps": 15}')
    found = read_run(run)
    assert (found.steps, found.epochs, found.seen, found.tokens) == (30, 6, 120, 7)
    assert found.spent is None


def test_a_name_is_the_files_where_it_has_none(tmp_path):
    (tmp_path / "base.yaml").write_text("name: base\n")
    (tmp_path / "a.yaml").write_text("config: base.yaml\n")
    (tmp_path / "b.yaml").write_text("stages: [label]\n")
    assert command._experiment(tmp_path / "a.yaml", []).name == "base"
    assert command._experiment(tmp_path / "b.yaml", []).name == "b"


@pytest.mark.parametrize("overlay", [False, True])
def test_clips_with_several_classes_are_refused_before_the_first_run(fits, tmp_path, overlay):
    PETS.save(tmp_path / "pets.yaml")
    data = {"class_path": "VideoFolder", "init_args": {"card": str(tmp_path / "pets.yaml")}}
    files = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    for file, own in zip(
        files, [{}, {"data": data}] if overlay else [{"data": data}, {}], strict=True
    ):
        file.write_text(yaml.safe_dump({"name": file.stem, **own}), encoding="utf-8")
    with pytest.raises(ValueError, match="key several") as error:
        compare([files[0]], overlays=files[1:], logs=tmp_path)
    assert str(error.value) == (
        "compare needs clips of one class, but card 'pets' has the key several: its clips may have "
        "several classes, or none."
    )
    assert not (tmp_path / "one_seed1").exists()
