"""Runs that are killed go on where they were, and end with the same bits."""

import json
import random
from pathlib import Path

import pytest

from tests.recipe.killing import run
from tests.recipe.runs import LOGS, outcome, rationales, read_lines, small

pytestmark = pytest.mark.recipe


def log(folder: Path) -> str:
    return (folder / "log.txt").read_text(encoding="utf-8")[-3000:]


class Reference:
    """An uninterrupted run, and the changes to files that it went through."""

    def __init__(self, folder: Path, options: list[str]) -> None:
        self.folder, self.options = folder, options
        assert run(folder, options) == 0, log(folder)
        self.outcome = outcome(folder)
        self.changes: list[str] = json.loads((folder / "changes.json").read_text())

    def check(self, folder: Path) -> None:
        """Lets the run in the folder come to its end, and compares."""
        assert run(folder, self.options) == 0, log(folder)
        assert outcome(folder) == self.outcome
        records = read_lines(rationales(folder))
        assert len({record["id"] for record in records}) == len(records) == 14


def reference_of(
    backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, every: int
) -> Reference:
    options = small(backbones["qwen2_5_vl"], f"--checkpoint_every={every}")
    return Reference(tmp_path_factory.mktemp("reference"), options)


@pytest.fixture(scope="module")
def reference(
    backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, cache: Path
) -> Reference:
    return reference_of(backbones, tmp_path_factory, every=1)


def test_a_run_that_is_killed_in_every_phase(reference, tmp_path):
    """One run, killed again and again on its way through the method."""
    chance = random.Random(0)
    # Which file, at the earliest and latest which change of it since the start, how long after.
    phases = [
        ("logs/rationales", 5, 8, 0.0),  # Stage 0, between two batches
        ("os.rename lightning_logs/rationales", 1, 1, 0.0),  # all written, but not joined
        ("os.remove lightning_logs/rationales", 1, 1, 0.0),  # joined, the parts still there
        ("rationale/checkpoints", 4, 12, 0.03),  # Stage I, in the first epoch or the second
        ("rationale/checkpoints", 2, 4, 0.0),  # the first checkpoint after resuming
        ("rationale/.weights.part", 1, 6, 0.01),  # while the weights are written
        ("rationale/.weights.part", 8, 8, 0.0),  # before they are put in place
        ("rationale/.test.json", 1, 2, 0.0),  # M_inter's results
        ("label/checkpoints", 6, 14, 0.02),  # Stage II
        ("label/.test.json", 2, 2, 0.0),  # the last results
    ]
    for part, first, last, pause in phases:
        number = chance.randint(first, last)
        status = run(tmp_path, reference.options, part, number, chance.random() * pause)
        assert status == -9, f"not killed: {part} {number}\n{log(tmp_path)}"
        assert outcome(tmp_path) != reference.outcome
    reference.check(tmp_path)


def test_a_checkpoint_appears_whole(reference):
    """Written beside its place and renamed: on any file system, a kill leaves no half of one."""
    steps = [f"lightning_logs/small/rationale/checkpoints/.step={n}.ckpt.part" for n in range(1, 9)]
    renamed = [
        change for change in reference.changes if "os.rename" in change and ".ckpt" in change
    ]
    assert renamed[:8] == [f"os.rename {step}" for step in steps]


@pytest.mark.long
@pytest.mark.parametrize("every", [1, 3])
def test_runs_that_are_killed_at_twenty_random_moments(
    backbones, tmp_path_factory, tmp_path, cache, every
):
    reference = reference_of(backbones, tmp_path_factory, every)
    chance = random.Random(every)
    statuses = []
    for kill in range(20):
        folder = tmp_path / f"{kill}"
        number = chance.randint(1, len(reference.changes))
        pause = chance.choice([0, chance.random() * 0.2])
        statuses.append(run(folder, reference.options, str(LOGS), number, pause))
        reference.check(folder)
    # A pause after one of the last changes outlasts the run.
    assert set(statuses) <= {-9, 0}
    assert statuses.count(-9) >= 18
