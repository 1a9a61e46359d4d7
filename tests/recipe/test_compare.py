"""`python -m rbft compare` on the miniature: killed, in use, finished, with other systems."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from rbft.runtime.lock import Lock
from tests.recipe.killing import run
from tests.recipe.runs import EXPERIMENTS, LOGS, rbft, read_json, read_lines

pytestmark = pytest.mark.recipe
SEEDS = (1, 2)


@pytest.fixture(scope="module")
def options(backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    tiny = yaml.safe_load((EXPERIMENTS / "hardware/tiny.yaml").read_text(encoding="utf-8"))
    tiny.pop("config")
    tiny["model"]["backbone"] = str(backbones["qwen2_5_vl"])
    tiny["data"]["init_args"] |= {"train_size": 6, "test_size": 5, "num_workers": 0}
    tiny["trainer"] = {"max_epochs": 1, "enable_progress_bar": False}
    overlay = tmp_path_factory.mktemp("overlay") / "smallest.yaml"
    overlay.write_text(yaml.safe_dump(tiny), encoding="utf-8")
    files = ", ".join(str(EXPERIMENTS / f"miniature{name}.yaml") for name in ("_direct", ""))
    return [f"--configs=[{files}]", f"--overlays=[{overlay}]", f"--seeds={len(SEEDS)}"]


def test_a_comparison_from_its_first_run_to_its_table(options, tmp_path, cache, capsys):
    def go() -> str:
        rbft(tmp_path, "compare", *options)
        return capsys.readouterr().out

    # Killed in the second run, whose label stage is trained and not yet handed on.
    part = "miniature_seed1/label/.weights.part"
    assert run(tmp_path, options, part, 1, command="compare") == -9
    logs = tmp_path / LOGS
    assert (logs / "miniature_seed1/rationale/weights/rbft.json").exists()
    first = (logs / "miniature_direct_seed1/label/test.json").read_bytes()

    # While somebody else trains it.
    with Lock(logs / "miniature_seed1", "Run folder"), pytest.raises(SystemExit):
        go()
    shown = capsys.readouterr()
    assert "1/4: miniature_direct_seed1 is finished\n2/4: miniature_seed1\n" in shown.out
    assert "error: Run folder lightning_logs/miniature_seed1 is in use by process" in shown.err
    assert "The comparison ended in the run miniature_seed1. Started again, it goes" in shown.err

    shown = go()
    assert "4/4: miniature_seed2\n" in shown
    assert (logs / "miniature_direct_seed1/label/test.json").read_bytes() == first
    table = shown[shown.index("In per cent, mean ± standard deviation over 2 seeds:") :]
    assert max(map(len, table.splitlines()[:-1])) <= 80
    assert "  s: another number of optimiser steps" in table

    (file,) = (logs / "compare").glob("*.json")
    direct, ours = read_json(file)["rows"]
    assert [one["title"] for one in (direct, ours)] == ["miniature_direct", "miniature"]
    for made in (direct, ours):
        for seed in SEEDS:
            folder = logs / f"{made['title']}_seed{seed}"
            settings = yaml.safe_load((folder / "settings.yaml").read_text(encoding="utf-8"))
            assert settings["seed_everything"] == settings["data"]["init_args"]["seed"] == seed
            found, metrics = made["seeds"][str(seed)], read_json(folder / "label/test.json")
            for name, score in found["scores"].items():  # torchmetrics has computed those
                assert score == pytest.approx(metrics["metrics"][name], abs=1e-6)
    per_stage = {"steps": 2, "clips_seen": 6, "epochs": 1}
    for name, amount in per_stage.items():
        assert direct["seeds"]["1"][name] == amount
        assert ours["seeds"]["1"][name] == 2 * amount
    (written,) = (logs / "rationales").glob("*.jsonl")
    assert ours["seeds"]["2"]["tokens"] == sum(one["tokens"] for one in read_lines(written)) > 0
    spent = ours["seeds"]["2"]["spent"]
    assert spent["training"]["processor_seconds"] > 0

    # What is finished is not run again; others are scored on the same clips, and Direct-SFT is
    # added with as many steps.
    answers = read_lines(logs / "miniature_seed1/label/test_predictions.jsonl")
    with (tmp_path / "their.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "class"])
        writer.writerows([one["id"], one["prediction"]] for one in answers)
    options = [*options, "--others=[their.csv]", "--matched=true"]
    shown = go()
    assert "4/4: miniature_seed2 is finished\nmatched 1/2: miniature_matched_seed1\n" in shown
    assert "their: answers from their.csv" in shown
    rows = {
        one["title"]: one
        for file in (logs / "compare").glob("*.json")
        for one in json.loads(file.read_text(encoding="utf-8"))["rows"]
    }
    assert rows["their"]["scores"]["accuracy"]["mean"] == pytest.approx(
        ours["seeds"]["1"]["scores"]["accuracy"]
    )
    assert rows["miniature_matched"]["seeds"]["1"]["steps"] == ours["seeds"]["1"]["steps"]
