"""The benchmark script that compares what goes beyond the paper: what it runs and what it shows."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import beyond_the_paper
from rbft.commands.compare import Compared
from tests.recipe.runs import ROOT

pytestmark = pytest.mark.recipe


def row(title: str, mean: float, apart: float | None = None) -> dict[str, Any]:
    one = None if apart is None else {"mean": apart, "low": apart - 0.02, "high": apart + 0.04}
    return {
        "title": title,
        "scores": {"accuracy": {"mean": mean}},
        "minus_baseline": None if one is None else {"accuracy": one},
    }


def leave(folder: Path, rows: list[dict[str, Any]], name: str = "a") -> None:
    (folder / "compare").mkdir(parents=True, exist_ok=True)
    (folder / "compare" / f"{name}.json").write_text(json.dumps({"rows": rows}))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """Stands for the comparison: notes what it is asked, and leaves its file."""
    calls: list[tuple[Any, ...]] = []

    def compare(found: list[Compared], seeds: Any, baseline: str, logs: Path, **more: Any) -> None:
        calls.append((found, list(seeds), baseline, logs, more))
        rows = [row("Direct-SFT", 0.79), row("P+R+C", 0.917, 0.123)]
        leave(logs, [*rows, row("miniature_iterated_matched_seconds_15", 0.8, 0.01)])

    monkeypatch.setattr(beyond_the_paper, "compare_experiments", compare)
    monkeypatch.chdir(tmp_path)
    return calls


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["beyond_the_paper.py", *arguments])
    beyond_the_paper.main()


def test_every_base_and_size_has_a_comparison_of_its_own(asked, monkeypatch, capsys):
    bases = ["packaged=rbft/miniature/base", "sides=other"]
    run(monkeypatch, "--logs=logs", "--seeds=3", "--bases", *bases, "--sizes", "40", "120")
    places = ["packaged/40", "packaged/120", "sides/40", "sides/120"]
    assert [call[3] for call in asked] == [Path("logs") / place for place in places]
    for found, seeds, baseline, logs, more in asked:
        assert seeds == [1, 2, 3]
        assert baseline in [one.name for one in found]
        assert len({one.name for one in found}) == len(found)
        assert more == {
            "matched_seconds": True,
            "vary": ["seed_everything", "data.seed", "data.clip_seed"],
        }
        for one in found:
            assert (ROOT / one.files[0]).exists()
            assert str(one.options["data.train_size"]) == logs.name
    names = [one.title for one in asked[2][0]]
    assert names == ["Direct-SFT", "P+R+C", "P+R+C, both sides"]
    weights = [one.options.get("model.answer_weight") for one in asked[0][0]]
    assert weights.count(5) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "| method | packaged, 40 | packaged, 120 | sides, 40 | sides, 120 |"
    assert shown[2] == "| Direct-SFT | 79.0 | 79.0 | 79.0 | 79.0 |"
    assert shown[3].startswith("| P+R+C | 91.7 (+12.3 ± 3.0) |")
    assert shown[4].startswith("| Direct-SFT, equal seconds | 80.0 (+1.0 ± 3.0) |")


def test_what_is_there_is_drawn_without_running_anything(asked, monkeypatch, tmp_path, capsys):
    rows = [row("Direct-SFT", 0.6), row("P+R+C", 0.7, 0.1)]
    leave(tmp_path / "logs/packaged/40", [row("Direct-SFT", 0.1)], "before")
    leave(tmp_path / "logs/packaged/40", rows, "now")
    leave(tmp_path / "logs/packaged/400", [*rows, row("RB-FT (the paper)", 0.5, -0.1)])
    run(monkeypatch, "--logs=logs", "--only_read", "--picture=found.png")
    assert not asked
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "| method | packaged, 40 | packaged, 400 |"
    assert shown[3:] == [
        "| P+R+C | 70.0 (+10.0 ± 3.0) | 70.0 (+10.0 ± 3.0) |",
        "| RB-FT (the paper) |  | 50.0 (-10.0 ± 3.0) |",
    ]
    from PIL import Image

    with Image.open(tmp_path / "found.png") as picture:
        assert min(picture.size) > 100
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 20


def test_nothing_there(asked, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--logs=logs", "--only_read")
    assert "--logs logs holds no finished comparison yet." in capsys.readouterr().err
