"""Every hardware overlay is small and goes with every experiment."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rbft.backbone.adapters import LoRA, add_adapters
from rbft.backbone.family import FAMILIES
from rbft.estimate.dry_run import CUDA_CONTEXT_BYTES, FRAGMENTATION, GIB
from rbft.estimate.flops import ClipTokens
from rbft.estimate.memory import MemorySettings, step_memory
from rbft.runtime.differences import flat
from tests.experiments.test_experiments import MASKED, NAMES, OVERLAYS, printed_config
from tests.recipe.runs import EXPERIMENTS
from tests.unit.estimate.test_memory import SEVEN, backbone

ONE_GPU = {"one_80gb_gpu": None, "one_24gb_gpu": "4bit"}
CHECKPOINTING = {"one_80gb_gpu": 0.5, "one_24gb_gpu": True}


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


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MASKED])
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
    assert model["lora"] == asdict(LoRA(rank=64, alpha=128))
    assert (model["quantize"], model["vision_learning_rate"]) == (quantize, 0.0)
    assert model["gradient_checkpointing"] == CHECKPOINTING[name]
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


# GiB of the GPU, seconds of a clip that the overlay is for, and those that it has no room for.
ROOM = {
    "eight_80gb_gpus": (79, 60, 90),
    "one_80gb_gpu": (79, 80, 90),
    "one_24gb_gpu": (24, 120, 300),
}


@pytest.mark.parametrize("name", ROOM)
def test_overlays_use_the_memory_that_they_are_for(name: str) -> None:
    """By the estimate of the dry run, with its reserve, for a micro-batch of the longest clips."""
    text = (EXPERIMENTS / f"hardware/{name}.yaml").read_text(encoding="utf-8")
    settings = flat(yaml.safe_load(text))
    share = settings.get("model.gradient_checkpointing", True)
    sharded = settings.get("trainer.strategy") == "fsdp2"
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float32 if sharded else torch.bfloat16)
        with torch.device("meta"):
            model = backbone("qwen2_5_vl", SEVEN)
    finally:
        torch.set_default_dtype(default)
    if not sharded:
        lora = LoRA(settings["model.lora.rank"], settings["model.lora.alpha"])
        add_adapters(model, lora, None, merger=True, read=False, autocast=True)
    shards, four_bit = (8 if sharded else 1), settings.get("model.quantize") == "4bit"

    def peak(seconds: int, share: float) -> float:
        # 280 x 504 pixels, 16:9 in the paper's 151,200; the feature cache shows the tower none.
        grid = (seconds // 2, 20, 36) if sharded else (0, 0, 0)
        clip = ClipTokens(grid, seconds // 2 * 180, 60, 150)
        setup = MemorySettings(2, share, shards=shards, four_bit=four_bit)
        clips = [clip] * settings["data.init_args.batch_size"]
        return step_memory(model, FAMILIES["qwen2_5_vl"], model.config, clips, setup).peak

    gib, fits, fits_not = ROOM[name]
    room = (gib * GIB - CUDA_CONTEXT_BYTES) / FRAGMENTATION
    assert peak(fits, share) <= room < peak(fits_not, share)
    if share is not True:  # more would not fit those that it is for
        assert peak(fits, share - 0.1) > room
        (said,) = re.findall(r"clips of 60 s \((\d+) GiB\)", " ".join(text.split()))
        assert int(said) == round(peak(60, share) / GIB)
