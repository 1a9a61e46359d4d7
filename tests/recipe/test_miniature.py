"""The README's first line, and what the miniature must show of the method's wiring.

Nothing here says which method wins.
"""

import os
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rbft.card import Card
from rbft.miniature import BASE
from rbft.miniature.data import Miniature
from rbft.module import RBFTModule
from tests.examples import fed
from tests.recipe.runs import ROOT, rbft, read_json

pytestmark = pytest.mark.recipe
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a checkout, with logs of its own."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("experiments", "rbft"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def losses(folder: Path) -> list[float]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.value for event in events.Scalars("loss/train")]


def test_the_first_line_of_the_readme_runs_the_whole_method(checkout, capsys):
    line = re.search(r"pip install -e \. && python -m rbft (.+)", README)
    assert line is not None
    rbft(checkout, *shlex.split(line[1]))
    run = checkout / "lightning_logs" / "miniature"
    results = {p: read_json(run / p / "test.json") for p in ("zero_shot", "rationale", "label")}
    assert {result["n_scored"] for result in results.values()} == {300}
    assert len({result["ids"] for result in results.values()}) == 1
    # The first and the last two that were logged: a single batch says little.
    stage_1 = losses(run / "rationale")
    assert sum(stage_1[-2:]) < sum(stage_1[:2])
    shown = capsys.readouterr().out
    assert "target-train-0000: subjects : " in shown
    for row in (
        "majority class",
        "backbone, zero-shot",
        "Stage I (rationales)",
        "Stage II (labels)",
    ):
        assert row in shown


@pytest.mark.long
def test_matched_direct_sft_fits_its_training_clips(checkout):
    name = "miniature_matched"
    rbft(
        checkout,
        "fit",
        f"--config=experiments/{name}.yaml",
        "--data.train_size=48",
        "--data.test_size=4",
        "--trainer.max_epochs=30",
        "--score_each_stage=false",
    )
    weights = checkout / "lightning_logs" / name / "label" / "weights"
    before = Path.cwd()
    os.chdir(checkout)
    try:
        data = Miniature(
            train_size=48,
            test_size=4,
            fps=1.0,
            min_pixels=784,
            max_pixels=7056,
            min_frames=4,
            max_frames=768,
            global_batch_size=16,
            eval_batch_size=16,
            num_workers=0,
            rationale_ratio=1.0,
        )
        data.feed = replace(data.feed, scored_split="train")
        module = RBFTModule(
            str(BASE),
            Card.load(weights / "card.yaml"),
            weights=weights,
            learning_rate=0.0,
            merger_learning_rate=0.0,
            vision_learning_rate=0.0,
            weight_decay=0.0,
            warmup_ratio=0.0,
            gradient_checkpointing=False,
            max_new_tokens=8,
        )
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
        )
        (metrics,) = trainer.test(module, fed(data, module), verbose=False)
    finally:
        os.chdir(before)
    assert metrics["train/accuracy"] > 0.95
