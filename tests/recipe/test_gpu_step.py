"""The GPU benchmark at a tiny size on the processor, with torch and transformers alone."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from rbft.estimate.memory import Setup, step_memory
from tests.recipe.runs import ROOT

pytestmark = pytest.mark.recipe
SCRIPT = ROOT / "benchmarks/gpu_step.py"
# Hides what rbft needs and this script must not.
HIDING = """
import importlib.machinery, runpy, sys
hidden = {"lightning", "peft", "torchmetrics", "decord", "av", "jsonargparse", "jaxtyping",
          "torchvision", "bitsandbytes", "tensorboard", "matplotlib", "beartype"}
finder = importlib.machinery.PathFinder
find = finder.find_spec
finder.find_spec = classmethod(
    lambda cls, name, path=None, target=None:
    None if name.partition(".")[0] in hidden else find(name, path, target)
)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    import importlib.util

    spec = importlib.util.spec_from_file_location("gpu_step", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_step"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_it_runs_with_torch_and_transformers_alone(tmp_path):
    arguments = ["--size=tiny", "--frames", "4", "--rounds=1", "--warm_up=1"]
    arguments += ["--stage", "I", "--train", "lora", "full", "--checkpointing", "yes"]
    process = subprocess.run(
        [sys.executable, "-c", HIDING, str(SCRIPT), *arguments, "--output=out.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    made = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert set(made) >= {"date", "device", "peak_tflops", "versions", "command", "rows"}
    rows = {(row["train"], row["attention"]): row for row in made["rows"]}
    assert set(rows) == {
        (train, attention)
        for train in ("lora", "full")
        for attention in ("packed", "sdpa", "flash_attention_2")
    }
    flash = rows["lora", "flash_attention_2"]
    assert torch.cuda.is_available() or flash["failed"].startswith("ImportError: ")
    for train in ("lora", "full"):
        packed, padded = rows[train, "packed"], rows[train, "sdpa"]
        assert packed["flops_linear"] == padded["flops_linear"]
        assert len(packed["seconds"]) == 1
        expected = packed["clips"] / packed["seconds"][0]
        assert packed["clips_per_second"] == pytest.approx(expected)
    assert "s a step" in process.stdout


def loss(script: Any, model: Any, case: Any) -> Tensor:
    script.prepare(model, case)
    step, _ = script.make_step(case, "tiny", 3, torch.device("cpu"))
    hidden = model.model(**step.inputs, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1)[step.places])
    return torch.nn.functional.cross_entropy(logits, step.targets)


@pytest.mark.parametrize("stage", ["I", "II"])
def test_both_attentions_do_the_same_work(script, stage):
    """The figures beside each other are of the same clips, tokens and targets."""
    model = script.make_model("tiny", "full", torch.device("cpu"))
    packed, padded = (
        loss(script, model, script.Case(stage, "full", attention, False, 12))
        for attention in ("packed", "sdpa")
    )
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    assert packed.item() > 1


def test_what_does_not_fit_is_a_row(script, monkeypatch):
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    options = script.argparse.Namespace(
        size="tiny",
        stage=["II"],
        train=["lora", "full"],
        attention=["packed"],
        checkpointing=[True],
        frames=[4],
        clips=2,
        rounds=1,
        warm_up=0,
    )
    monkeypatch.setattr(script, "take_step", full)
    rows = list(script.run_all(options, torch.device("cpu"), None))
    assert [row["failed"] for row in rows] == ["out of memory"] * 2
    assert all(row["estimate_bytes"] > 0 for row in rows)
    monkeypatch.setattr(script, "make_model", full)
    rows = list(script.run_all(options, torch.device("cpu"), None))
    assert [row["failed"] for row in rows] == ["out of memory"] * 2


def test_its_adapters_are_counted_as_peft_s(script):
    from rbft.backbone.adapters import LoRA, add_adapters
    from rbft.backbone.family import FAMILIES
    from rbft.estimate.flops import ClipTokens, StepCounter

    own = script.make_model("tiny", "lora", torch.device("cpu"))
    theirs = script.make_model("tiny", "bf16", torch.device("cpu"))
    add_adapters(theirs, LoRA(rank=64), None, merger=False)
    family, clip = FAMILIES["qwen2_5_vl"], ClipTokens((4, 4, 6), 24, 60, 3)
    counts = [StepCounter(model, family, model.config).step(clip) for model in (own, theirs)]
    assert counts[0] == counts[1]
    setup = Setup(2, True)
    trained = [
        step_memory(model, family, model.config, [clip], setup).gradients for model in (own, theirs)
    ]
    assert trained[0] == trained[1]


def test_mfu_is_work_over_time_and_peak(script):
    options = script.argparse.Namespace(size="tiny", clips=2, rounds=1, warm_up=0)
    model = script.make_model("tiny", "full", torch.device("cpu"))
    optimiser = torch.optim.AdamW(model.parameters())
    case = script.Case("II", "full", "packed", True, 4)
    row = script.run_case(model, optimiser, case, options, peak=0.5)
    work = row["flops_linear"] + row["flops_attention"]
    assert row["mfu"] == pytest.approx(work / row["seconds"][0] / 0.5e12)


def test_without_a_gpu_the_true_size_is_refused(script, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        script.main([f"--output={Path(tmp_path) / 'out.json'}"])
    assert "no GPU here; --size tiny shows on a processor" in capsys.readouterr().err
