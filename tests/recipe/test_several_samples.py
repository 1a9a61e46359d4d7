"""Several rationales a clip, drawn by a seed: killed, started again, in one process and in two."""

import re
from pathlib import Path

import pytest

from rbft.estimate.scoring_memory import scoring_memory
from tests.recipe.killing import run, run_two
from tests.recipe.runs import LOGS, ROOT, outcome, rbft, read_json, read_lines, small

pytestmark = pytest.mark.recipe
PAGE = (ROOT / "docs/rationales.md").read_text(encoding="utf-8")
# The options of the page's command.
DRAWN = re.findall(r"--model\.rationale_sampling\.\w+=[\d.]+", PAGE)


@pytest.fixture(scope="module")
def options(backbones: dict[str, Path]) -> list[str]:
    # An odd number: of two processes, one is given a clip twice.
    return [*small(backbones["qwen2_5_vl"], "--data.train_size=13"), *DRAWN]


@pytest.fixture(scope="module")
def whole(options: list[str], tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    rbft(folder, "rationalize", *options)
    return folder


def files(folder: Path) -> list[Path]:
    return sorted((folder / LOGS / "rationales").glob("[!.]*.jsonl*"))


def log(folder: Path) -> str:
    return (folder / "log.txt").read_text(encoding="utf-8")[-3000:]


def test_three_different_rationales_of_each_clip(whole, options, tmp_path):
    (file,) = files(whole)
    lines = read_lines(file)
    clips = [f"target-train-{number:04d}" for number in range(13)]
    found = [(line["id"], line["sample"]) for line in lines]
    assert found == [(clip, number) for clip in clips for number in range(3)]
    for clip in clips:
        assert len({line["rationale"] for line in lines if line["id"] == clip}) == 3
    made_from = read_json(file.with_suffix(".provenance.json"))
    expected = {"temperature": 1.0, "top_p": 0.95, "top_k": 0, "seed": 0}
    assert made_from["generation"]["sampling"] == expected
    rbft(tmp_path, "rationalize", *options[: -len(DRAWN)])
    (greedy,) = files(tmp_path)
    assert greedy.name != file.name
    assert "sampling" not in read_json(greedy.with_suffix(".provenance.json"))["generation"]
    assert all("sample" not in line for line in read_lines(greedy))


def test_neither_batches_nor_the_trainer_s_seed_count(whole, options, tmp_path):
    more = ["--data.eval_batch_size=3", "--seed_everything=5", "--model.packing=false"]
    rbft(tmp_path, "rationalize", *options, *more)
    assert outcome(tmp_path) == outcome(whole)


def test_killed_between_batches_and_within_a_line(whole, options, tmp_path, capsys):
    part = "*rationale-*.jsonl.part0"
    assert run(tmp_path, options, part, 2, command="rationalize") == -9, log(tmp_path)
    (file,) = files(tmp_path)
    assert len(read_lines(file)) == 12
    file.write_bytes(file.read_bytes()[:-30])  # as a kill within the write leaves it
    rbft(tmp_path, "rationalize", *options)
    said = capsys.readouterr().out
    assert "Stage 0: 3 of 13 clips with 3 rationales each reused from " in said
    assert "Stage 0: 10 clips with 3 rationales each to write into " in said
    assert outcome(tmp_path) == outcome(whole)


@pytest.mark.long
def test_two_processes_draw_the_same_and_go_on(whole, options, tmp_path):
    more = [*options, "--trainer.devices=2", "--data.batch_size=1"]
    part = "*rationale-*.jsonl.part1"
    assert run_two(tmp_path, more, 1, part, 2, command="rationalize") != 0, log(tmp_path)
    assert 0 < sum(len(read_lines(file)) for file in files(tmp_path)) < 39
    assert run_two(tmp_path, more, command="rationalize") == 0, log(tmp_path)
    assert outcome(tmp_path) == outcome(whole)


def test_training_takes_the_one_that_is_selected(whole, options, tmp_path):
    """Also of fewer samples than there are: nothing is written anew."""
    rbft(tmp_path, "rationalize", *options)
    before = outcome(tmp_path)
    rbft(tmp_path, "rationales", *options, f"--output={tmp_path / 'page.html'}")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert [page.count(f"<span>sample {number}</span>") for number in (1, 2, 3)] == [0, 13, 13]
    assert page.count(" · not learnt<") == page.count("not learnt") == 26
    more = ["--stages=[rationale]", "--score_each_stage=false", "--trainer.max_epochs=1"]
    for rule in ("first", "consistent"):
        chosen = [*more, f"--data.rationale_selection={rule}", f"--name={rule}"]
        rbft(tmp_path, "fit", *options, *chosen)
    assert outcome(tmp_path) == before
    first, consistent = (
        read_json(tmp_path / LOGS / name / "rationale/rationales.json")
        for name in ("first", "consistent")
    )
    assert first.keys() == consistent.keys()
    assert len(first) == 13
    assert first != consistent


@pytest.mark.parametrize("copies", [0, 1])
def test_the_dry_run_counts_the_copy_of_the_prompts(options, tmp_path, monkeypatch, copies):
    tasks = []

    def note(*args):
        tasks.append(args[5])
        return scoring_memory(*args)

    monkeypatch.setattr("rbft.estimate.dry_run.scoring_memory", note)
    asked = options if copies else options[: -len(DRAWN)]
    rbft(tmp_path, "fit", *asked, "--dry_run=true")
    writing = [task for task in tasks if task.new_tokens and not task.classes]
    assert {task.extra_caches for task in writing} == {copies}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--data.rationale_selection=consistent", "--model.rationale_sampling=null"],
            "error: data.rationale_selection is consistent, but one rationale is written about "
            "each clip. Set model.rationale_sampling.samples to 2 or more, or "
            "data.rationale_selection to first.\n",
        ),
        (
            ["--model.rationale_sampling.temperature=0"],
            "error: model.rationale_sampling.temperature (0) must be 0.01 or more; "
            "model.rationale_sampling null takes the likeliest token.\n",
        ),
    ],
)
def test_what_cannot_be_drawn(options, tmp_path, monkeypatch, capsys, more, message):
    def refuse(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("rbft.backbone.loader.load_model", refuse)
    with pytest.raises(SystemExit, match="2"):
        rbft(tmp_path, "rationalize", *options, *more)
    assert capsys.readouterr().err.endswith(message)
    assert not (tmp_path / LOGS).exists()
