"""The miniature's comparison is `compare` with its experiments; what that does is tested there."""

from pathlib import Path
from typing import Any

import yaml

from rbft.commands import compare as command
from rbft.miniature import compare
from tests.recipe.runs import EXPERIMENTS


def test_it_compares_the_miniatures_methods(monkeypatch, tmp_path):
    seen: list[Any] = []
    monkeypatch.setattr(compare, "compare_experiments", lambda *a, **k: seen.append((a, k)))
    options = ["--seeds", "2", "--first_seed", "3", "--logs", str(tmp_path)]
    compare.main([*options, "--experiments", str(EXPERIMENTS)])
    ((experiments, seeds, baseline, logs), settings) = seen[0]
    assert [one.title for one in experiments] == [title for title, _ in compare.METHODS]
    for one in experiments:  # the runs of `compare --configs` with these files are the same
        assert one.name == command._experiment(Path(one.files[0]), []).name
        assert yaml.safe_load(one.files[0].read_text())["name"] == one.name
    assert [*seeds] == [3, 4]
    assert baseline == "miniature_matched"
    assert baseline in [one.name for one in experiments]
    assert logs == tmp_path
    assert settings == {"vary": ["seed_everything", "data.seed", "data.clip_seed"]}
