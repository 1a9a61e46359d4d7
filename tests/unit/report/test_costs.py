"""What runs cost, as they have noted it, and in what settings they differ."""

import json

from rbft.report.content import build_content
from rbft.report.gather import gather
from rbft.report.tables import Table
from tests.report_runs import answers, settings, write, write_result, write_run


def tables(content, key: str) -> list[Table]:
    return [table for one in content.sections if one.key == key for table in one.tables]


def by_run(table: Table) -> dict[str, dict[str, str]]:
    return {
        row.cells[0].text: {
            name: cell.text for name, cell in zip(table.columns, row.cells, strict=True)
        }
        for row in table.rows
    }


def test_time_memory_steps_and_tokens_are_those_that_runs_note(content):
    table, _ = tables(content, "cost")
    row = by_run(table)["smarthome_qwen25_seed1"]
    assert row["training min"] == "90"
    assert row["GPU h"] == "1.5"
    assert row["memory GiB"] == "12.5"
    assert row["GPU memory GiB"] == "61.2"
    assert row["steps"] == "98"
    assert row["clips seen"] == "1,556"
    assert row["tokens written"] == "123,456"
    assert row["rationales min"] == row["tokens read by servers"] == "-"
    assert by_run(table)["unfinished"]["training min"] == "-"


def test_processes_and_starts_are_added_up_and_the_largest_memory_counts(tmp_path):
    folder = write_run(tmp_path, settings("run", ["label"]), answers(9, 0.9, 0))
    first = {"seconds": 60.0, "processor_seconds": 3600.0, "gpu_seconds": 0.0}
    second = {"seconds": 30.0, "processor_seconds": 1800.0, "gpu_seconds": 0.0}
    write(folder / "usage/1-a.json", json.dumps({"training": first, "scoring": second}))
    memory = {"memory_bytes": 3 * 2**30}
    write(folder / "usage/2-b.json", json.dumps({"training": {**second, **memory}}))
    table = tables(build_content(gather(tmp_path)), "cost")[0]
    row = by_run(table)["run"]
    assert (row["training min"], row["scoring min"]) == ("1.5", "0.5")
    assert (row["processor h"], row["memory GiB"]) == ("2", "3")
    assert "GPU memory GiB" not in row


def test_runs_of_before_have_dashes_where_nothing_was_noted(tmp_path):
    folder = write_run(tmp_path, settings("run", ["label"]), answers(9, 0.9, 0))
    write(folder / "label/weights/rbft.json", '{"steps": 5}')
    (folder / "usage/1-a.json").unlink()
    row = by_run(tables(build_content(gather(tmp_path)), "cost")[0])["run"]
    assert row["steps"] == "5"
    for name in ("clips seen", "tokens written", "processor h", "memory GiB", "training min"):
        assert row[name] == "-"


def test_what_a_server_read_and_wrote_is_counted(tmp_path):
    tokens = {"prompt": 12345, "completion": 67}
    rows = answers(9, 0.9, 0)
    write_result(tmp_path / "asked/endpoint-x/test.json", rows, {}, tokens=tokens)
    row = by_run(tables(build_content(gather(tmp_path)), "cost")[0])["asked"]
    assert row["tokens read by servers"] == "12,345"
    assert row["tokens written"] == "67"


def test_rationale_files_are_counted(tmp_path):
    write_run(tmp_path, settings("run", ["label"]), answers(9, 0.9, 0))
    lines = [
        {"id": "a", "rationale": "x", "tokens": 4, "finish": "stop", "model": "m"},
        {"id": "a", "rationale": "y", "tokens": 8, "finish": "length", "model": "m"},
        {"id": "b", "rationale": "z", "tokens": 6, "finish": "stop", "label_conditioned": True},
    ]
    write(tmp_path / "rationales/r.jsonl", "".join(f"{json.dumps(one)}\n" for one in lines))
    write(tmp_path / "rationales/r.elicited.jsonl", '{"id": "a", "class": "x"}\n')
    (table,) = tables(build_content(gather(tmp_path)), "cost")[1:]
    (row,) = by_run(table).values()
    assert row == {
        "file": "r",
        "writer": "-, m",
        "clips": "2",
        "rationales": "3",
        "tokens, mean": "6",
        "cut off %": "33.3",
        "writer was told the class": "1",
    }


def test_only_settings_that_differ_are_shown_those_that_decide_first(tmp_path):
    rows = answers(9, 0.9, 0)
    write_run(tmp_path, settings("a", ["label"]), rows)
    changed = settings("b", ["label"], model__learning_rate=2e-5, trainer__devices=8)
    changed["model"]["lora"] = {"rank": 64}
    write_run(tmp_path, changed, rows)
    deciding, free = tables(build_content(gather(tmp_path)), "settings")
    assert deciding.columns == ("run", "model.learning_rate", "model.lora", "model.lora.rank")
    assert [[cell.text for cell in row.cells] for row in deciding.rows] == [
        ["a", "1e-05", "None", "-"],
        ["b", "2e-05", "-", "64"],
    ]
    assert free.columns == ("run", "trainer.devices")
    assert [row.cells[1].text for row in free.rows] == ["1", "8"]
    assert free.folded
    assert not deciding.folded
