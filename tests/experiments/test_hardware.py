"""Every hardware overlay is small and goes with every experiment."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rbft.runtime.differences import flat
from tests.experiments.test_experiments import NAMES, OVERLAYS, printed_config
from tests.recipe.runs import EXPERIMENTS

ONE_GPU = {"one_80gb_gpu": None, "one_24gb_gpu": "4bit"}


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda file: file.stem)
def test_an_overlay_is_small_and_has_the_last_word(
    overlay: Path, tmp_path: Path, capsys: Any
) -> None:
    text = overlay.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 10
    assert text.startswith("#"), "it does not say what it is for"
    own = flat(yaml.safe_load(text))
    own.pop("config", None)
    files = (EXPERIMENTS / "miniature.yaml", overlay)
    found = flat(printed_config(tmp_path, capsys, *(f"--config={file}" for file in files)))
    assert {key: found[key] for key in own} == own


@pytest.mark.parametrize("name", NAMES)
def test_overlays_parse_with_every_experiment(name: str, tmp_path: Path, capsys: Any) -> None:
    """All in one command, which is the sum of its files."""
    files = (EXPERIMENTS / f"{name}.yaml", *OVERLAYS)
    config = printed_config(tmp_path, capsys, *(f"--config={file}" for file in files))
    assert config["name"] == name


@pytest.mark.parametrize(("name", "quantize"), ONE_GPU.items())
def test_one_gpu_trains_adapters_on_a_frozen_tower_whose_outputs_are_kept(
    name: str, quantize: str | None, tmp_path: Path, capsys: Any
) -> None:
    files = (EXPERIMENTS / "smarthome_qwen25.yaml", EXPERIMENTS / f"hardware/{name}.yaml")
    config = printed_config(tmp_path, capsys, *(f"--config={file}" for file in files))
    model, data = config["model"], config["data"]["init_args"]
    assert model["lora"] == {"rank": 64, "alpha": 128, "dropout": 0.0}
    assert (model["quantize"], model["vision_learning_rate"]) == (quantize, 0.0)
    assert model["gradient_checkpointing"] is True
    assert data["feature_cache_gb"] > 0
    assert data["global_batch_size"] % data["batch_size"] == 0
    assert config["trainer"]["precision"] == "bf16-mixed"


def test_the_arithmetic_of_memory_is_right() -> None:
    """What the comments say, from the sizes of Qwen2.5-VL-7B (its config.json)."""
    hidden, inner, blocks, vocabulary, key_value = 3584, 18944, 28, 152064, 512
    linear = 2 * hidden * hidden + 2 * hidden * key_value + 3 * hidden * inner
    adapters = 64 * (2 * 2 * hidden + 2 * (hidden + key_value) + 3 * (hidden + inner)) * blocks
    merger = 5120 * 5120 + 5120 * hidden
    vision = 32 * (4 * 1280**2 + 3 * 1280 * 3420)
    whole = blocks * linear + 2 * vocabulary * hidden + vision + merger
    assert whole == pytest.approx(8.3e9, rel=0.01)

    text = (EXPERIMENTS / "hardware/one_80gb_gpu.yaml").read_text(encoding="utf-8")
    text = " ".join(re.sub(r"\n# ", " ", text).split())
    assert f"= {whole * 16 / 1e9:.0f} GB, {whole * 10 / 1e9:.0f} GB with moments in 8 bits" in text
    assert f"= {(whole * 2 + (adapters + merger) * 16) / 1e9:.0f} GB, and the rest" in text
    assert f"({adapters / 1e8:.1f}e8)" in text

    text = (EXPERIMENTS / "hardware/one_24gb_gpu.yaml").read_text(encoding="utf-8")
    text = " ".join(re.sub(r"\n# ", " ", text).split())
    # 4 bits, and a scale in 8 bits for each block of 64.
    stored = blocks * linear * (0.5 + 1 / 64)
    assert f"{blocks * linear / 1e9:.1f}e9 take {stored / 1e9:.1f} GB" in text
    assert f"the rest in bf16 {(whole - blocks * linear) * 2 / 1e9:.1f} GB" in text
    assert f"x 16 = {(adapters + merger) * 16 / 1e9:.1f} GB" in text
