"""With a frozen vision tower, a run that keeps its outputs is the run that does not."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from rbft.backbone.qwen2_vl import Qwen2VL
from tests.recipe.runs import (
    LOGS,
    STAGES,
    VIDEO_INDICES,
    rationales,
    rbft,
    rbft_process,
    read_json,
    read_lines,
    small,
    weights_file,
)

pytestmark = pytest.mark.recipe
CLIPS = 14 + 5  # of the training and the test split


class Runs:
    """The same experiment without and with kept features, and how many clips the tower saw."""

    def __init__(self, folder: Path, backbone: Path) -> None:
        options = small(backbone, "--model.vision_learning_rate=0")
        self.without, self.kept, self.cache = folder / "without", folder / "kept", folder / "cache"
        self.options = [*options, "--data.feature_cache_gb=1", f"--data.cache_folder={self.cache}"]
        self.seen = 0
        features = Qwen2VL.features

        def count(family: Any, visual: Any, pixels: Any, grids: Any) -> Any:
            self.seen += len(grids)
            return features(family, visual, pixels, grids)

        rbft(self.without, "fit", *options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Qwen2VL, "features", count)
            rbft(self.kept, "fit", *self.options)


@pytest.fixture(scope="module")
def runs(backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("features"), backbones["qwen2_5_vl"])


def test_the_tower_sees_each_clip_once(runs):
    """Over rationales, two stages of two epochs, and three times the test split."""
    assert runs.seen == CLIPS
    assert len(list((runs.cache / "features").glob("*.features"))) == CLIPS


def test_rationales_are_the_same(runs):
    one, two = (read_lines(rationales(folder)) for folder in (runs.without, runs.kept))
    assert one == two


@pytest.mark.parametrize("stage", STAGES)
def test_weights_are_the_same_within_tolerance(runs, stage):
    one, two = (load_file(weights_file(folder, stage)) for folder in (runs.without, runs.kept))
    assert set(one) == set(two)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5


@pytest.mark.parametrize("place", VIDEO_INDICES)
def test_results_are_the_same(runs, place):
    one, two = (folder / LOGS / "small" / place for folder in (runs.without, runs.kept))
    for row, known in zip(
        read_lines(two / "test_predictions.jsonl"),
        read_lines(one / "test_predictions.jsonl"),
        strict=True,
    ):
        assert row["probabilities"] == pytest.approx(known["probabilities"], abs=1e-5)
    assert read_json(two / "test.json")["metrics"] == read_json(one / "test.json")["metrics"]


def test_the_cache_is_listed_and_cleared(runs, tmp_path, capsys):
    rbft(tmp_path, "cache", f"--folder={runs.cache}")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("features")]
    assert "outputs of frozen vision towers" in line
    size = sum(file.stat().st_size for file in (runs.cache / "features").iterdir())
    assert line.split()[-1] == f"{size / 1e6:.1f}"


def test_a_tower_that_trains_is_refused(backbones, tmp_path):
    options = small(backbones["qwen2_5_vl"], "--data.feature_cache_gb=2")
    found = rbft_process(tmp_path, "fit", *options)
    assert found.returncode == 2
    assert found.stderr.endswith(
        "error: data.feature_cache_gb (2) keeps the outputs of a frozen vision tower, but this one "
        "trains: model.vision_learning_rate is 0.0002. Set it to 0 to freeze the tower, or "
        "data.feature_cache_gb to 0.\n"
    )
    assert not (tmp_path / LOGS).exists()
