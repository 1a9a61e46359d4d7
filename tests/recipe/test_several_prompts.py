"""Rationales of several prompts in one pass are those of a pass for each."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from rbft.data.rationales import RationaleStore
from rbft.rationale_module import RationaleModule
from rbft.training.fsdp2 import wait_for_all
from tests.recipe.killing import run, run_two
from tests.recipe.runs import LOGS, outcome, rbft, read_lines, small

pytestmark = pytest.mark.recipe
NAMES = ("rationale", "less", "least")
PROMPTS = "--prompts=[rationale, less, least]"


@pytest.fixture(scope="module")
def options(backbones: dict[str, Path]) -> list[str]:
    # An odd number: of two processes, one is given a clip twice.
    return small(backbones["qwen2_5_vl"], "--data.train_size=13")


@pytest.fixture(scope="module")
def alone(options: list[str], tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The rationales of each prompt, written one prompt at a time."""
    folder = tmp_path_factory.mktemp("alone")
    for name in NAMES:
        rbft(folder, "rationalize", *options, f"--data.rationale_prompt={name}")
    return folder


@pytest.fixture(scope="module")
def seen() -> list[int]:
    """How many clips the module has looked at, batch by batch."""
    return []


@pytest.fixture(scope="module")
def together(
    options: list[str], seen: list[int], tmp_path_factory: pytest.TempPathFactory, cache: Path
) -> Path:
    """The same in one pass."""
    folder, look = tmp_path_factory.mktemp("together"), RationaleModule.vision

    def vision(module: RationaleModule, batch: Any) -> Any:
        seen.append(len(batch))
        return look(module, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RationaleModule, "vision", vision)
        rbft(folder, "rationalize", *options, PROMPTS)
    return folder


def written(folder: Path) -> list[int]:
    """How many rationales there are of each prompt, those not yet joined included."""
    files = {name: (folder / LOGS / "rationales").glob(f"[!.]*-{name}-*.jsonl*") for name in NAMES}
    return [sum(len(read_lines(file)) for file in found) for found in files.values()]


def log(folder: Path) -> str:
    return (folder / "log.txt").read_text(encoding="utf-8")[-3000:]


def test_the_files_are_those_of_a_pass_for_each_prompt(alone, together):
    assert outcome(together) == outcome(alone)
    assert written(together) == [13] * 3
    texts = [
        [record["rationale"] for record in read_lines(file)]
        for file in (together / LOGS / "rationales").glob("*.jsonl")
    ]
    assert texts[0] != texts[1] != texts[2] != texts[0]


def test_each_clip_is_read_once(together, seen):
    assert seen == [4, 4, 4, 1]


@pytest.mark.parametrize("name", ["less", "least"])
def test_a_fit_of_a_variant_writes_none(together, options, name, monkeypatch):
    def refuse(*_: Any) -> None:
        raise AssertionError("a rationale was written")

    monkeypatch.setattr(RationaleModule, "predict_step", refuse)
    before = outcome(together)
    more = [f"--name={name}", "--stages=[rationale]", "--score_each_stage=false"]
    if name == "least":  # as the experiment says
        options = [option.replace("/miniature.", "/miniature_irrelevant.") for option in options]
    else:
        more.append("--data.rationale_prompt=less")
    rbft(together, "fit", *options, *more)
    assert (together / LOGS / name / "rationale/test.json").exists()
    assert outcome(together) == before


def test_nothing_is_written_twice(together, options, tmp_path, monkeypatch, capsys):
    """A prompt that has its rationales is not asked again with the others, in any order."""
    rbft(tmp_path, "rationalize", *options, "--prompts=[less]")
    assert "target-train-0000: " in capsys.readouterr().out
    asked = []

    def writes(module: RationaleModule, batch: Any) -> Any:
        asked.append([card.prompts["rationale"] for card in module.cards])
        return step(module, batch)

    step = RationaleModule.predict_step
    monkeypatch.setattr(RationaleModule, "predict_step", writes)
    rbft(tmp_path, "rationalize", *options, "--prompts=[least, less, rationale]")
    assert {len(prompts) for prompts in asked} == {2}
    assert all("weather" in prompts[0] for prompts in asked)
    shown = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    clips = [f"target-train-000{number}" for number in range(3)]
    assert [line for line in shown if line.startswith("target")] == [
        f"{clip}, {name}" for name in ("least", "rationale") for clip in clips
    ]
    assert outcome(tmp_path) == outcome(together)


def test_a_pass_that_is_killed_goes_on(together, options, tmp_path):
    """In the second batch, with rationales for two of the three prompts."""
    more = [*options, PROMPTS]
    status = run(tmp_path, more, "least-*.jsonl.part0", 2, command="rationalize")
    assert status == -9, log(tmp_path)
    assert written(tmp_path) == [8, 8, 4]
    assert run(tmp_path, more, command="rationalize") == 0, log(tmp_path)
    assert outcome(tmp_path) == outcome(together)


@pytest.mark.long
def test_two_processes_write_the_same_and_go_on(together, options, tmp_path):
    more = [*options, PROMPTS, "--trainer.devices=2", "--data.batch_size=1"]
    part = "less-*.jsonl.part1"
    assert run_two(tmp_path, more, 1, part, 2, command="rationalize") != 0, log(tmp_path)
    counts = written(tmp_path)
    assert 0 < counts[1] < 13, counts
    assert counts[0] > counts[1], counts
    assert run_two(tmp_path, more, command="rationalize") == 0, log(tmp_path)
    assert outcome(tmp_path) == outcome(together)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--prompts=[rationale, lest]"],
            "error: --prompts [rationale, lest] must name rationale prompts of the card "
            "'miniature', each once; it has rationale, less, least.\n",
        ),
        (
            ["--prompts=[rationale, less]", "--data.rationale_file=mine.jsonl"],
            "error: --prompts names 2 prompts, but data.rationale_file (mine.jsonl) is the file of "
            "one. Set it to null, or name one prompt.\n",
        ),
    ],
)
def test_what_cannot_be_written(options, tmp_path, monkeypatch, capsys, more, message):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("rbft.backbone.loader.load_model", refuse)
    with pytest.raises(SystemExit, match="2"):
        rbft(tmp_path, "rationalize", *options, *more)
    assert capsys.readouterr().err == message
    assert not (tmp_path / LOGS).exists()


def test_parts_are_joined_when_all_processes_have_read_them(alone, options, tmp_path, monkeypatch):
    folder = tmp_path / LOGS / "rationales"
    shutil.copytree(alone / LOGS / "rationales", folder)
    file = next(folder.glob("*-less-*.jsonl"))
    file.rename(file.with_name(f"{file.name}.part0"))
    calls: list[str] = []
    read, join = RationaleStore.read, RationaleStore.recover

    def note(name: str, function: Any) -> Any:
        def noted(*args: Any) -> Any:
            calls.append(name)
            return function(*args)

        return noted

    monkeypatch.setattr(RationaleStore, "read", note("read", read))
    monkeypatch.setattr(RationaleStore, "recover", note("join", join))
    monkeypatch.setattr("rbft.stage_zero.wait_for_all", note("meet", wait_for_all))
    rbft(tmp_path, "rationalize", *options, "--data.rationale_prompt=less")
    # The second time as the owner of the file.
    assert calls[:4] == ["read", "read", "meet", "join"]
    assert sorted(path.name for path in folder.glob("*-less-*.jsonl*")) == [file.name]
