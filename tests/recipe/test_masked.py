"""docs/masking.md as it stands there, on few clips: the whole of Table 5 with true boxes."""

import shlex
from pathlib import Path

import pytest

from rbft.analysis.scored import ScoredClips
from tests.recipe.runs import LOGS, ROOT, command_blocks, rbft, read_json, read_lines

pytestmark = pytest.mark.recipe
FEW = {
    "data": ["--data.train_size=8", "--data.test_size=10", "--data.num_workers=0"],
    "fit": ["--trainer.max_epochs=1", "--score_each_stage=false", "--model.max_new_tokens=8"],
    "test": ["--data.masking.repeats=2", "--model.max_new_tokens=8"],
}


def commands() -> list[str]:
    page = (ROOT / "docs/masking.md").read_text(encoding="utf-8")
    (block,) = [one for one in command_blocks(page) if "rbft mask " in one]
    return block.splitlines()


def run(folder: Path, command: str, *more: str) -> None:
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "rbft"]
    extra = [] if words[3] == "masked" else [*FEW["data"], "--trainer.enable_progress_bar=false"]
    rbft(folder, *words[3:], *extra, *FEW.get(words[3], []), *more)


@pytest.mark.long
def test_table_5_of_the_miniature(tmp_path, capsys):
    for name in ("experiments", "rbft"):
        (tmp_path / name).symlink_to(ROOT / name)
    *before, table = commands()
    assert len(before) == 7
    logs, own = tmp_path / LOGS, {}
    for command in before:
        if "rbft test" in command and not own:
            own = {file: file.read_bytes() for file in logs.rglob("test*.json*")}
        run(tmp_path, command)
    capsys.readouterr()
    run(tmp_path, table)
    shown = capsys.readouterr().out

    # What is not masked is as it was, and found under its own name.
    assert len(own) == 4
    assert all(file.read_bytes() == content for file, content in own.items())
    results = {}
    for kind in ("objects", "random"):
        for file in (logs / f"miniature_masked_{kind}").glob("*/test-*.json"):
            found = read_json(file)
            name, masking = found["weights"].split("/")[1], found["masking"]
            results[name, masking["kind"], masking.get("repeat")] = file
            assert masking["area_ratio"] == 1
            assert masking["overlap"] == (1 if kind == "objects" else 0)
            assert masking["boxes"] == found["made"]["masking"]["boxes"]
            assert 0.05 < masking["area"] < 0.3
            assert masking["clips_masked"] == found["n_scored"] == 10
            assert masking["unmatched"] == []
            assert found["made"]["masking"].keys() - masking.keys() == set()
    draws = [("objects", None), ("random", 0), ("random", 1)]
    assert set(results) == {(n, *one) for n in ("miniature", "miniature_direct") for one in draws}

    # The table, the file, and the answers of each clip say the same.
    (file,) = (logs / "masking").glob("*.json")
    figures = read_json(file)
    assert f"All figures: {file.relative_to(tmp_path)}" in shown
    assert max(map(len, shown.splitlines()[:-1])) <= 80
    apart = {}
    for made in figures["runs"]:
        rights = {
            one: ScoredClips.from_file(results[(made["run"], *one)]).right.mean() for one in draws
        }
        assert made["scores"]["objects"]["accuracy"] == pytest.approx(rights["objects", None])
        random = (rights["random", 0] + rights["random", 1]) / 2
        assert made["scores"]["random"]["accuracy"]["mean"] == pytest.approx(random)
        value = made["cost"]["accuracy"]["value"]
        assert value == pytest.approx(rights["objects", None] - random)
        assert f"\n{made['run']}, objects - random:\n  accuracy {100 * value:+.1f} [" in shown
        apart[made["run"]] = value
    (between,) = figures["differences"]
    expected = apart["miniature"] - apart["miniature_direct"]
    assert between["accuracy"]["value"] == pytest.approx(expected)
    line = f"miniature - miniature_direct, objects - random:\n  accuracy {100 * expected:+.1f} ["
    assert line in shown

    # Scored again, nothing is asked again; a table of unmasked scores knows nothing of masks.
    times = {file: file.stat().st_mtime_ns for file in results.values()}
    run(tmp_path, before[-1])
    shown = capsys.readouterr().out
    assert "Scored with" not in shown
    assert "objects - random" in shown
    assert {file: file.stat().st_mtime_ns for file in results.values()} == times
    lines = read_lines(logs / "boxes/miniature.jsonl")
    assert {line["id"][:12] for line in lines} == {"target-test-"}

    # In the run's own folder a masked result is never the run's own.
    name = f"--data.masking.boxes={LOGS}/boxes/miniature.jsonl"
    run(tmp_path, "python -m rbft test --config experiments/miniature_direct.yaml", name)
    assert all(file.read_bytes() == content for file, content in own.items())
    assert len(list((logs / "miniature_direct/label").glob("test-objects-*.json"))) == 1
