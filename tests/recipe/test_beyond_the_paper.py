"""Stages and settings beyond the paper: whole runs, killed ones, and in two processes."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from rbft.backbone.adapters import weights_fingerprint
from rbft.runs.tags import name_of
from tests.recipe.killing import run, run_two
from tests.recipe.runs import LOGS, ROOT, outcome, rbft, read_json, read_lines, small, weights_file

pytestmark = pytest.mark.recipe
BASE = ROOT / "rbft/miniature/base"
TRAIN = [f"target-train-{number:04d}" for number in range(8)]
# The model writes its rationales anew before the second round and learns those that lead to the
# right class.
ITERATED = [
    "--stages=[rationale_class,rationale_class]",
    "--rationales_from=previous",
    "--data.rationale_selection=verified",
    "--data.rationale_fallback=first",
    "--model.answer_weight=5",
]
DISTILLED = ["--stages=[rationale_class,label_distilled]"]
ROUNDS = ("rationale_class", "rationale_class-2")


@pytest.fixture(scope="module")
def options() -> list[str]:
    return small(
        BASE,
        "--data.train_size=8",
        "--data.test_size=4",
        "--model.max_new_tokens=48",
        # So many that it has learnt to write before it answers, which both prompts together ask.
        "--trainer.max_epochs=6",
        "--score_each_stage=false",
        "--trainer.log_every_n_steps=1",
    )


@pytest.fixture(scope="module")
def iterated(options: list[str], tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("iterated")
    rbft(folder, "fit", *options, *ITERATED)
    return folder


def log(folder: Path) -> str:
    return (folder / "log.txt").read_text(encoding="utf-8")[-3000:]


def written(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of each rationale file, by the fingerprint of who wrote them."""
    found = (folder / LOGS / "rationales").glob("*rationale-????????.jsonl")
    return {
        read_json(file.with_suffix(".provenance.json"))["backbone"]: read_lines(file)
        for file in found
    }


def scalars(folder: Path, stage: str) -> dict[str, list[float]]:
    """The curves of a stage in TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, list[float]] = {}
    for file in (folder / LOGS / "small" / stage).glob("events*"):
        events = EventAccumulator(str(file)).Reload()
        for name in events.Tags()["scalars"]:
            found[name_of(name)] = [event.value for event in events.Scalars(name)]
    return found


def test_the_second_round_learns_what_the_first_has_written(iterated: Path):
    first, second = (iterated / LOGS / "small" / name / "weights" for name in ROUNDS)
    taught = weights_fingerprint(first, str(BASE))
    files = written(iterated)
    base = read_json(first / "rbft.json")["backbone"]
    assert set(files) == {base, taught}
    assert [line["id"] for line in files[taught]] == TRAIN  # of no other split
    texts = {name: [line["rationale"] for line in own] for name, own in files.items()}
    assert texts[base] != texts[taught]
    assert any(texts[taught])
    for name in files:
        assert not any(text.split()[-1] in ("normal", "abnormal") for text in texts[name] if text)
    # What has made the weights stands with them.
    one, two = (read_json(folder / "rbft.json") for folder in (first, second))
    assert (one["stages"], two["stages"]) == ([ROUNDS[0]], [*ROUNDS])
    assert "writer" not in one
    assert two["writer"] == taught
    assert two["rationale_texts"] != one["rationale_texts"]
    assert read_json(iterated / LOGS / "small" / ROUNDS[1] / "test.json")["n_scored"] == 4


def test_both_losses_are_drawn(iterated: Path):
    for stage in ROUNDS:
        curves = scalars(iterated, stage)
        whole, parts = (
            curves["train/loss"],
            [curves[f"train/loss_{n}"] for n in ("rationale", "class")],
        )
        assert len(whole) == 12
        for loss, rationale, of_class in zip(whole, *parts, strict=True):
            # A mean of the two, in which the class counts more than its few tokens would.
            assert min(rationale, of_class) < loss < max(rationale, of_class)


@pytest.mark.long
def test_killed_while_the_second_round_is_written(iterated, options, tmp_path):
    chosen = [*options, *ITERATED]
    # The first file of rationales is written and joined before; then the second's part begins.
    base = next(name for name in written(iterated) if len(name) > 0)
    assert base
    assert run(tmp_path, chosen, "rationales/*rationale-????????.jsonl.part0", 6) == -9, log(
        tmp_path
    )
    assert (weights_file(tmp_path, ROUNDS[0])).exists()
    assert not (weights_file(tmp_path, ROUNDS[1])).exists()
    assert run(tmp_path, chosen) == 0, log(tmp_path)
    assert outcome(tmp_path) == outcome(iterated)
    # Started once more, there is nothing to do.
    before = weights_file(tmp_path, ROUNDS[1]).stat().st_mtime_ns
    assert run(tmp_path, chosen) == 0
    assert weights_file(tmp_path, ROUNDS[1]).stat().st_mtime_ns == before


def test_a_teacher_that_writes_and_a_pupil_that_does_not(options, tmp_path, cache):
    rbft(tmp_path, "fit", *options, *DISTILLED)
    weights = tmp_path / LOGS / "small" / ROUNDS[0] / "weights"
    teacher = weights_fingerprint(weights, str(BASE))
    made = read_json(tmp_path / LOGS / "small/label_distilled/weights/rbft.json")
    assert made["writer"] == teacher
    (file,) = (
        file
        for file in (tmp_path / LOGS / "rationales").glob("*-classes-*.jsonl")
        if read_json(file.with_suffix(".provenance.json"))["backbone"] == teacher
    )
    assert [line["id"] for line in read_lines(file)] == TRAIN
    # It answers in words alone.
    result = read_json(tmp_path / LOGS / "small/label_distilled/test.json")
    assert "tokens_written" not in result


@pytest.mark.long
def test_killed_while_the_teacher_is_asked(options, tmp_path, cache):
    chosen, whole, killed = [*options, *DISTILLED], tmp_path / "whole", tmp_path / "killed"
    rbft(whole, "fit", *chosen)
    assert run(killed, chosen, "*-classes-*.part0", 2) == -9, log(killed)
    assert run(killed, chosen) == 0, log(killed)
    assert outcome(killed) == outcome(whole)


@pytest.mark.long
def test_two_processes_minimise_the_same(options, tmp_path, cache):
    """The weighted loss, its parts and the expected cost are those of one process."""
    chosen = [*options, "--stages=[rationale_class,label_reward]", "--model.answer_weight=5"]
    # Few steps: sums in another order differ more and more.
    chosen += ["--model.costs={abnormal: {normal: 4}}", "--trainer.max_epochs=1"]
    one, two = tmp_path / "one", tmp_path / "two"
    rbft(one, "fit", *chosen)
    both = [*chosen, "--trainer.devices=2", "--data.batch_size=1"]
    assert run_two(two, both) == 0, log(two)
    for stage in ("rationale_class", "label_reward"):
        here, there = scalars(one, stage), scalars(two, stage)
        names = [name for name in here if name.startswith("train/loss")]
        assert len(names) == (3 if stage == "rationale_class" else 1)
        for name in names:
            assert there[name] == pytest.approx(here[name], abs=1e-5)
        mine, theirs = (load_file(weights_file(folder, stage)) for folder in (one, two))
        assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < 1e-5


def test_several_drawn_rationales_are_averaged(options, tmp_path, cache):
    chosen = [*options, "--stages=[rationale_class]"]
    rbft(tmp_path, "fit", *chosen)
    averaged = [*chosen, "--model.self_consistency.samples=4"]
    rbft(tmp_path, "test", *averaged)
    rbft(tmp_path, "test", *averaged, "--model.self_consistency.early_stop=false")
    place = tmp_path / LOGS / "small/rationale_class"
    own = read_json(place / "test.json")
    results = {
        one["made"]["self_consistency"]["early_stop"]: one
        for one in map(read_json, place.glob("test-*.json"))
    }
    assert set(results) == {True, False}
    assert results[False]["tokens_written"] > 2 * own["tokens_written"]
    assert results[True]["tokens_written"] <= results[False]["tokens_written"]
    assert results[True]["metrics"]["accuracy"] == results[False]["metrics"]["accuracy"]
