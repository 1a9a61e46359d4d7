"""The worked examples of CONTRIBUTING.md, run as they stand there."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from rbft.backbone.family import FAMILIES, Family
from rbft.card import Card
from rbft.clip import Clip
from rbft.commands import COMMANDS
from rbft.stages import STAGES
from rbft.video.times import pair_times
from tests.recipe.runs import rbft, small

CARD = Path(__file__).parents[2] / "rbft/miniature/miniature.yaml"
GUIDE = Path(__file__).parents[2] / "CONTRIBUTING.md"
SETTINGS = {
    "fps": 1.0,
    "max_pixels": 3136,
    "min_pixels": 784,
    "min_frames": 4,
    "max_frames": 8,
    "global_batch_size": 2,
    "rationale_ratio": 1.0,
}


def example(chapter: str, language: str) -> str:
    text = GUIDE.read_text(encoding="utf-8").split(f"## {chapter}\n")[1].split("\n## ")[0]
    found = re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def registries():
    yield
    STAGES.pop("sandwich", None)
    FAMILIES.pop("whole_seconds", None)


def test_the_benchmark_reads_its_clips(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("factory.yaml").write_text(example("Add a benchmark", "yaml"), encoding="utf-8")
    rows = [{"id": f"a{n}", "verdict": ("pass", "fail")[n % 2], "split": "train"} for n in range(4)]
    Path("factory.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    names: dict = {"__name__": "factory"}
    exec(example("Add a benchmark", "python"), names)
    data = names["Factory"](**SETTINGS)
    assert [(clip.id, clip.label, clip.path) for clip in data.read()][:2] == [
        ("a0", 0, Path("videos/a0.mp4")),
        ("a1", 1, Path("videos/a1.mp4")),
    ]
    assert data.card.prompt("label") == (
        "Does the part pass or fail? Answer with one word: pass or fail."
    )


def test_the_command_prints_the_classes(tmp_path, monkeypatch, qwen, capsys):
    module = ModuleType("rbft.commands.classes")
    file = tmp_path / "classes.py"
    file.write_text(example("Add a command", "python"), encoding="utf-8")
    module.__file__ = str(file)  # its options are read there
    exec(file.read_text(encoding="utf-8"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(COMMANDS, "classes", "classes")
    rbft(tmp_path, "classes", *small(qwen))
    assert capsys.readouterr().out.splitlines()[-1] == ", ".join(Card.load(CARD).classes)


@pytest.mark.usefixtures("registries")
def test_the_stage_asks_and_answers_in_its_order():
    exec(example("Add a stage", "python"), {})
    card = Card(**yaml.safe_load(example("Add a benchmark", "yaml")))
    stage, clip = STAGES["sandwich"], Clip("a", Path("a.mp4"), 1, "train")
    assert stage.target(card, clip, "It bends.") == "fail\nIt bends.\nfail"
    assert stage.classifier is stage
    assert stage.needs_rationales


@pytest.mark.usefixtures("registries")
def test_the_family_places_tokens_by_its_own_clock():
    exec(example("Add a backbone family", "python"), {})
    from tests.tiny import tiny_config

    config = tiny_config("qwen2_5_vl")
    ids = torch.tensor([1, *[config.video_token_id] * 2, 1])
    family, times = FAMILIES["whole_seconds"], pair_times(range(4), 2 / 2.29, 2 / 2.29)
    assert isinstance(family, Family)
    positions = family.position_ids(ids, [2, 2, 2], times, config)
    assert positions[0].tolist() == [0, 1, 3, 4]
    assert family.prompt_text("a <|vision_start|>", times) == "a 2 pairs: <|vision_start|>"
