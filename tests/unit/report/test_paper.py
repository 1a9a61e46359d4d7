"""Our runs beside the rows of the paper that their settings make them."""

import re
from itertools import pairwise

import pytest
import yaml

from rbft.report.content import build_content
from rbft.report.gather import gather
from rbft.report.paper import paper_tables
from rbft.report.tables import Table
from rbft.runtime.differences import flat
from rbft.runtime.experiment_file import read_chain
from tests.recipe.runs import EXPERIMENTS, ROOT
from tests.report_runs import BACKBONES, answers, made, settings, write_result, write_run

DEFAULTS = ROOT / "rbft/defaults.yaml"
ALL = paper_tables()


def table_of(content, number: int) -> Table:
    (section,) = (one for one in content.sections if one.key == "paper")
    return next(one for one in section.tables if one.title.startswith(f"Table {number}:"))


def ours(table: Table) -> dict[tuple[str, ...], str]:
    """Accuracy of our rows, by the columns before it."""
    place = table.columns.index("accuracy")
    return {
        tuple(cell.text for cell in row.cells[:place]): row.cells[place].text
        for row in table.rows
        if row.kind == "ours"
    }


def resolved(name: str) -> dict:
    """Settings of an experiment file by dotted name, on top of the paper's."""
    defaults = yaml.safe_load(DEFAULTS.read_text(encoding="utf-8"))
    merged = flat({**defaults, "data": {"init_args": defaults["data"]["init_args"]}})
    merged["data.init_args.rationale_prompt"] = "rationale"
    for content in read_chain(EXPERIMENTS / f"{name}.yaml"):
        data = content.get("data")
        given = {**content, "data": {"class_path": data}} if isinstance(data, str) else content
        merged |= flat(given)
    return merged


ROWS = [(table, row) for table in ALL for row in table.rows]


@pytest.mark.parametrize(
    ("table", "row"), ROWS, ids=[f"{t.number}-{r.backbone}-{r.method}-{r.frames}" for t, r in ROWS]
)
def test_the_file_of_a_row_makes_a_run_that_is_this_row_and_no_other(table, row):
    if row.experiment is None:
        assert row.settings is None or row.backbone not in BACKBONES
        assert not row.server
        return
    found = resolved(row.experiment)
    assert str(found["data.class_path"]).rpartition(".")[2] == table.benchmark
    if row.server:
        assert re.fullmatch(row.server, found["endpoint.model"])
        asked = [one for one in table.rows if one.server]
        same = [one for one in asked if re.fullmatch(one.server, found["endpoint.model"])]
        assert same == [row]
        return
    same = [one for one in table.rows if one.fits(found)]
    assert {one.experiment for one in same} == {row.experiment}
    assert row in same


def test_a_run_stands_below_its_row(content):
    found = ours(table_of(content, 1))
    assert set(found) == {
        ("Qwen2-VL-7B", "Direct-SFT", "ours: smarthome_qwen2_direct"),
        ("Qwen2-VL-7B", "RB-FT", "ours: smarthome_qwen2"),
        (
            "Qwen2.5-VL-7B",
            "zero-shot",
            "ours: smarthome_qwen25_direct_seed1, smarthome_qwen25_direct_seed2 and 2 more",
        ),
        ("Qwen2.5-VL-7B", "Direct-SFT", "ours: damaged"),
        ("Qwen2.5-VL-7B", "Direct-SFT", "ours: smarthome_qwen25_direct"),
        ("Qwen2.5-VL-7B", "RB-FT", "ours: smarthome_qwen25"),
    }
    final = content.gathered.run("smarthome_qwen2").final
    text = found["Qwen2-VL-7B", "RB-FT", "ours: smarthome_qwen2"]
    assert text.startswith(f"{100 * final.score('accuracy'):.1f} [")
    assert " ± " in found["Qwen2.5-VL-7B", "RB-FT", "ours: smarthome_qwen25"]
    # Each row of ours follows the paper's.
    rows = table_of(content, 1).rows
    for before, after in pairwise(rows):
        if after.kind == "ours":
            names = [cell.text for cell in after.cells[:2]]
            assert [cell.text for cell in before.cells[:2]] == names
    assert set(ours(table_of(content, 6))) == {
        ("Qwen2.5-VL-7B", "P_original", "ours: smarthome_qwen25"),
        ("Qwen2.5-VL-7B", "P_less", "ours: smarthome_qwen25_less"),
        ("Qwen2.5-VL-7B", "none (Direct-SFT)", "ours: damaged"),
        ("Qwen2.5-VL-7B", "none (Direct-SFT)", "ours: smarthome_qwen25_direct"),
    }
    assert not table_of(content, 6).folded
    assert table_of(content, 2).folded
    assert ours(table_of(content, 2)) == {}


def test_table_5_has_masked_and_whole_frames(content):
    found = ours(table_of(content, 5))
    assert set(found) == {
        ("Qwen2-VL-7B", method, frames, f"ours: smarthome_qwen2{end}")
        for method, end in (("Direct-SFT", "_direct"), ("RB-FT", ""))
        for frames in ("random masked", "objects masked", "as they are")
    }
    assert " ± " in found["Qwen2-VL-7B", "RB-FT", "random masked", "ours: smarthome_qwen2"]
    assert " ± " not in found["Qwen2-VL-7B", "RB-FT", "objects masked", "ours: smarthome_qwen2"]


def test_n_coverage_and_clips_stand_beside_our_figures(content):
    table = table_of(content, 1)
    for row in table.rows:
        said = [row.cells[table.columns.index(name)].text for name in ("n", "coverage %", "clips")]
        if row.kind == "ours":
            assert said[:2] == ["196", "100.0"]
            assert any(note.startswith(f"clips {said[2]}: 196 test clips") for note in table.notes)
        else:
            assert said == ["-", "-", "-"]


def test_departures_from_the_paper_s_settings_are_named(tmp_path):
    given = settings("tuned", ["rationale", "label"], model__learning_rate=1e-4)
    given["model"]["lora"] = {"rank": 64}
    write_run(tmp_path, given, answers(20, 0.8, 0))
    write_run(tmp_path, settings("exact", ["rationale", "label"]), answers(20, 0.8, 0))
    table = table_of(build_content(gather(tmp_path)), 1)
    (note,) = (one for one in table.notes if "departs from the paper's settings" in one)
    assert note == (
        "tuned departs from the paper's settings: model.learning_rate 0.0001 instead of 1e-05, "
        "model.lora.rank 64."
    )


def test_a_run_of_another_backbone_or_benchmark_is_no_row(tmp_path):
    other = settings("other", ["rationale", "label"], model__backbone="Qwen/Qwen2.5-VL-3B")
    write_run(tmp_path, other, answers(20, 0.8, 0))
    given = settings("folder", ["rationale", "label"])
    given["data"]["class_path"] = "rbft.data.videofolder.VideoFolder"
    write_run(tmp_path, given, answers(20, 0.8, 0))
    content = build_content(gather(tmp_path))
    assert all(ours(table_of(content, number)) == {} for number in range(1, 7))


@pytest.mark.parametrize(
    ("model", "row"),
    [
        ("gpt-4o-2024-08-06", "GPT-4o"),
        ("gpt-4o-mini-2024-07-18", "GPT-4o-mini"),
        ("gemini-2.5-pro", "Gemini-2.5-Pro"),
        ("gpt-4o-audio", None),
    ],
)
def test_what_a_server_s_model_said_stands_below_its_row(tmp_path, model, row):
    """Its run has no settings of its own: its clips are those of a run on the benchmark."""
    write_run(tmp_path, settings("exact", ["label"]), answers(20, 0.8, 0))
    asked = made(endpoint={"model": model, "form": {"form": "video"}})
    write_result(tmp_path / "asked/endpoint-x/test.json", answers(20, 0.7, 1), asked)
    content = build_content(gather(tmp_path))
    found = {names[0] for names in ours(table_of(content, 1)) if "asked" in names[2]}
    assert found == ({row} if row else set())
    assert ours(table_of(content, 2)) == {}


def test_figures_of_the_paper_are_shown_as_they_are_printed(content):
    for table in ALL:
        shown = table_of(content, table.number)
        place = shown.columns.index("accuracy")
        rows = [row for row in shown.rows if row.kind == "paper"]
        assert len(rows) == len(table.rows)
        for row, expected in zip(rows, table.rows, strict=True):
            texts = [cell.text for cell in row.cells[place : place + len(table.metrics)]]
            figures = expected.scores or (None,) * len(table.metrics)
            assert texts == ["-" if one is None else f"{one:.2f}" for one in figures]
            assert row.cells[place - 1].text == (
                "inferred"
                if expected.method.startswith("always")
                else "not in the paper"
                if expected.scores is None
                else "paper"
            )


def test_the_file_has_every_row_of_the_six_tables():
    assert {t.number: sum(r.scores is not None for r in t.rows) for t in ALL} == {
        1: 13,  # twelve, and what always answering "abnormal" scores
        2: 12,
        3: 6,
        4: 6,
        5: 6,
        6: 4,
    }
