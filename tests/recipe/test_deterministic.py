"""Lightning's deterministic mode from the command line."""

from collections.abc import Iterator

import pytest
import torch

from tests.recipe.runs import digest, rbft, small, weights_file

pytestmark = pytest.mark.recipe


@pytest.fixture(autouse=True)
def _leave_torch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # Lightning sets it
    yield
    torch.use_deterministic_algorithms(False)


def test_it_changes_nothing_on_a_processor_and_a_run_may_go_on_with_it(backbones, tmp_path, cache):
    options = small(backbones["qwen2_5_vl"], "--stages=[label]", "--score_each_stage=false")
    options += ["--data.train_size=6", "--data.val_size=2", "--trainer.max_epochs=1"]
    found = {}
    for mode in ("true", "warn", "false"):
        rbft(tmp_path / mode, "fit", *options, f"--trainer.deterministic={mode}")
        assert torch.get_deterministic_debug_mode() == {"false": 0, "warn": 1, "true": 2}[mode]
        found[mode] = digest(weights_file(tmp_path / mode, "label"))
    assert len(set(found.values())) == 1
    # The same run under another mode is the same run.
    rbft(tmp_path / "false", "fit", *options, "--trainer.deterministic=true")
    assert digest(weights_file(tmp_path / "false", "label")) == found["false"]
