"""The table of Table 5 from results on disk."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rbft.commands.masked import masked, masked_table
from rbft.runs.record import digest
from rbft.runtime.files import write_json, write_text

CLASSES = ("normal", "abnormal")
COMMON = {"clips": "c1", "frames": {"fps": 1.0}, "card": "k1", "stage": "label"}
FACTS = {
    "area": 0.125,
    "objects_area": 0.125,
    "area_ratio": 1.0,
    "overlap": 0.0,
    "clips_masked": 40,
    "frames": {"empty": 3, "shapes": 150, "cells": 50, "short": 0},
    "unmatched": [],
}
CLIPS = 40


def write_result(
    file: Path, weights: str, seed: int, masking: dict[str, Any] | None = None, **more: Any
) -> None:
    """A result with the predictions beside it: seven of ten clips are right."""
    drawer = np.random.default_rng(seed)
    rows = []
    for number in range(CLIPS):
        label = CLASSES[number % 2]
        right = drawer.random() < 0.7
        said = label if right else CLASSES[1 - number % 2]
        rows.append({"id": f"clip {number:02d}", "label": label, "prediction": said})
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    write_text(file.with_name(f"{file.stem}_predictions.jsonl"), lines)
    made = {**COMMON, **more, "weights": weights}
    content: dict[str, Any] = {"run": "x", "split": "test", "classes": dict.fromkeys(CLASSES, 20)}
    if masking is not None:
        kind = {"kind": masking["kind"], "boxes": "b1", "fill": "constant", **masking}
        unmatched = kind.pop("unmatched", [])
        made["masking"] = kind
        content["masking"] = {**kind, **FACTS, "unmatched": unmatched}
    write_json(file, {**content, "made": made})


def write_run(logs: Path, name: str, seed: int, **more: Any) -> None:
    weights = f"weights of {name}"
    write_text(logs / name / "settings.yaml", yaml.safe_dump({"stages": ["rationale", "label"]}))
    write_result(logs / name / "label/test.json", weights, seed, **more)
    place = logs / "masked" / f"{name}-label-1234"
    write_result(place / "test-objects-1.json", weights, seed + 1, {"kind": "objects"}, **more)
    for repeat in range(3):
        masking = {"kind": "random", "repeat": repeat, "seed": 0}
        file = place / f"test-random{repeat}-1.json"
        write_result(file, weights, seed + 2 + repeat, masking, **more)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    write_run(tmp_path / "logs", "direct", 10)
    write_run(tmp_path / "logs", "ours", 20)
    return tmp_path / "logs"


def refused(message: str, *runs: Path | str, logs: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        masked([Path(run) for run in runs], logs=logs)


def test_two_runs_by_name_or_folder(logs, capsys):
    masked([Path("direct"), logs / "ours"], logs=logs)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines()[:-1])) <= 80
    for line in (
        "direct\n  original frames",
        "  random masked (3)",
        "  objects masked",
        "In per cent, 40 clips;",
        "direct, objects - random:\n",
        "ours, objects - random:\n",
        "ours - direct, objects - random:\n",
        "  McNemar's p, median of 3 draws: ",
        "Objects: 12.5 % of the frame, masked (constant); 3 of 203 frames have none.",
        "Random masks: 1.0000 times as much, 0.00 % of it on objects;",
        "  frames: 75 % in the objects' shapes, 25 % in cells.",
    ):
        assert line in shown
    (file,) = (logs / "masking").glob("direct-*.json")
    found = json.loads(file.read_text(encoding="utf-8"))
    assert shown.endswith(f"All figures: {file}\n")
    assert (found["split"], found["fill"], found["boxes"], found["n"]) == (
        "test",
        "constant",
        "b1",
        40,
    )
    assert [one["run"] for one in found["runs"]] == ["direct", "ours"]
    assert [len(one["files"]["random"]) for one in found["runs"]] == [3, 3]
    assert [(one["a"], one["b"]) for one in found["differences"]] == [("ours", "direct")]
    assert masked_table(logs, "weights of ours", "test", "ours").startswith("-----")


def test_what_the_control_could_not_mask_is_left_out_of_all_runs(logs, capsys):
    file = logs / "masked/direct-label-1234/test-random1-1.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["masking"]["unmatched"] = ["clip 03", "clip 07"]
    write_json(file, content)
    masked([Path("direct"), Path("ours")], logs=logs)
    shown = capsys.readouterr().out
    assert "In per cent, 38 clips;" in shown
    assert (
        "Left out: 2 clips (clip 03, clip 07), in which the objects take more than is left."
        in shown
    )
    (file,) = (logs / "masking").glob("*.json")
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["left_out"] == ["clip 03", "clip 07"]
    assert [one["cost"]["n"] for one in found["runs"]] == [38, 38]


def test_results_of_other_weights_frames_or_boxes_are_not_mixed_in(logs, capsys):
    masked([Path("direct")], logs=logs)
    before = capsys.readouterr().out
    place = logs / "masked/other"
    weights, one = "weights of direct", {"kind": "random", "repeat": 7, "seed": 0}
    write_result(place / "test-a.json", "other weights", 1, one)
    write_result(place / "test-b.json", weights, 2, one, frames={"fps": 2.0})
    write_result(place / "test-c.json", weights, 3, one | {"boxes": "b2"})
    write_result(place / "test-d.json", weights, 4, one | {"fill": "blur"})
    write_result(place / "val-e.json", weights, 5, one)
    (place / "test-f.json").write_text("no JSON")
    (place / "test-g.json").write_text("[]")
    masked([Path("direct")], logs=logs)
    assert capsys.readouterr().out == before
    # Draws of another seed are draws.
    write_result(place / "test-h.json", weights, 6, {**one, "repeat": 0, "seed": 5})
    masked([Path("direct")], logs=logs)
    assert "  random masked (4)" in capsys.readouterr().out


def test_another_fill_has_a_table_of_its_own(logs, capsys):
    place, weights = logs / "masked/blur", "weights of direct"
    write_result(place / "test-a.json", weights, 1, {"kind": "objects", "fill": "blur"})
    random = {"kind": "random", "fill": "blur", "repeat": 0, "seed": 0}
    write_result(place / "test-b.json", weights, 2, random)
    masked([Path("direct")], logs=logs)
    shown = capsys.readouterr().out
    assert "masked (constant)" in shown
    assert "masked (blur)" in shown
    assert "  McNemar's p: " in shown  # of one draw
    assert len(list((logs / "masking").glob("*.json"))) == 2


def test_what_is_missing_is_said(logs):
    refused('--runs names no run. Give some: "[smarthome_qwen2]".', logs=logs)
    refused(
        f"--runs: {logs / 'none'} is no run: it holds no settings.yaml. Give the folders of "
        'finished runs, or their names: "[smarthome_qwen2, smarthome_qwen2_direct]".',
        "none",
        logs=logs,
    )
    write_run(logs, "alone", 30)
    for file in (logs / "masked/alone-label-1234").glob("test-random*.json"):
        file.unlink()
    refused(
        f"The run {logs / 'alone'} has no result with random masks of the same clips, frames, "
        f"words and boxes. Run python -m rbft test with it, and --weights {logs / 'alone'}.",
        "direct",
        "alone",
        logs=logs,
    )
    assert masked_table(logs, "weights of alone", "test", "alone") == (
        "No table yet (constant): there is no result of these weights with random masks, of the "
        "same clips, frames and words."
    )
    (logs / "masked/alone-label-1234/test-objects-1.json").unlink()
    refused(
        f"The run {logs / 'alone'} was not scored with masks. Run python -m rbft test with "
        "data.masking (experiments/*_masked_objects.yaml, *_masked_random.yaml) and --weights "
        f"{logs / 'alone'}.",
        "alone",
        logs=logs,
    )
    (logs / "alone/label/test.json").unlink()
    refused(
        f"--runs: the run {logs / 'alone'} has no result label/test.json. Run fit, or python -m "
        "rbft test, with its --config.",
        "alone",
        logs=logs,
    )
    write_run(logs, "otherwise", 40, clips="c2")
    refused(
        f"The runs {logs / 'direct'}, {logs / 'otherwise'} were not masked alike: clips, frames, "
        "words, boxes or fill differ. Score them with the same data settings and the same box "
        "file.",
        "direct",
        "otherwise",
        logs=logs,
    )


def test_a_digest_tells_tables_apart(logs):
    """Of the same first run with others."""
    masked([Path("direct")], logs=logs)
    masked([Path("direct"), Path("ours")], logs=logs)
    names = {file.name for file in (logs / "masking").glob("*.json")}
    assert len(names) == 2
    alike = digest([{k: v for k, v in COMMON.items() if k != "stage"}, "b1", "constant"])
    assert f"direct-{digest([['direct'], alike])[:8]}.json" in names
