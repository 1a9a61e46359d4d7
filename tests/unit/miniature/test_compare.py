"""The comparison over seeds, on made-up results."""

import json

import pytest

from rbft.miniature import compare


def metrics(accuracy, normal=0.5):
    return {"accuracy": accuracy, "f1/normal": normal, "f1/abnormal": 0.6, "majority": 0.55}


def test_spread_is_mean_and_sample_deviation_in_percent():
    assert compare.spread([0.70, 0.72, 0.74]) == "72.0 ± 2.0"
    assert compare.spread([0.7]) == "70.0"


def test_paired_is_mean_difference_its_t_and_wins():
    # Differences of 2, 4 and 6 points: mean 4, deviation 2, standard error 2 / sqrt(3).
    assert compare.paired([0.72, 0.74, 0.76], [0.70, 0.70, 0.70]) == "+4.0 (t +3.5), 3/3"
    assert compare.paired([0.7, 0.7], [0.7, 0.7]) == "+0.0, 0/2"


def write(logs, name, step, accuracy):
    folder = logs / name / step
    folder.mkdir(parents=True)
    (folder / "test.json").write_text(json.dumps({"metrics": metrics(accuracy)}))


def test_the_table_pairs_every_method_with_the_matched_baseline(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare, "rbft", lambda args: None)  # all are finished
    for seed, shift in ((1, 0.0), (2, 0.1)):
        for number, (_, name, step) in enumerate(compare.METHODS):
            write(tmp_path, f"{name}_seed{seed}", step, 0.5 + number / 100 + shift)
    compare.main(["--seeds", "2", "--logs", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert "over 2 seeds" in lines[0]
    (ours,) = [line for line in lines if line.startswith("RB-FT ")]
    assert ours.split()[1:4] == ["58.0", "±", "7.1"]
    assert ours.endswith("+1.0, 2/2") or "+1.0 (t" in ours
    (majority,) = [line for line in lines if line.startswith("majority")]
    assert "55.0" in majority


def test_every_run_is_left_to_fit(tmp_path, monkeypatch):
    seen = []

    def fit(args):
        seen.append(args)
        write(tmp_path, "miniature_direct_seed3", "label", 0.7)

    monkeypatch.setattr(compare, "rbft", fit)
    found = compare.run(tmp_path, tmp_path, "miniature_direct", "label", 3)
    assert found["accuracy"] == pytest.approx(0.7)
    assert seen[0][0] == "fit"
    assert {"--data.clip_seed=3", "--seed_everything=3", "--name=miniature_direct_seed3"} < set(
        seen[0]
    )
