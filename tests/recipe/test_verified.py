"""Rationales selected by the class behind them, with a second try: whole, killed, on the page."""

from pathlib import Path
from typing import Any

import pytest

from tests.recipe.killing import run, run_two
from tests.recipe.runs import LOGS, ROOT, rbft, read_json, read_lines, small

pytestmark = pytest.mark.recipe
TRAIN = [f"target-train-{number:04d}" for number in range(8)]
VERIFIED = "--data.rationale_selection=verified"
HINT = "--data.rationale_fallback=hint"


@pytest.fixture(scope="module")
def options() -> list[str]:
    # Of this small world's model: a random one gives all clips one class.
    return small(
        ROOT / "rbft/miniature/base",
        "--data.train_size=8",
        "--data.val_size=2",
        "--data.test_size=4",
        "--model.max_new_tokens=24",
        "--model.rationale_sampling.samples=2",
        "--trainer.max_epochs=1",
        "--score_each_stage=false",
    )


@pytest.fixture(scope="module")
def whole(options: list[str], tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Any:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patched:
        said: list[str] = []
        for name in ("rbft.method", "rbft.stage_zero", "rbft.verification"):
            patched.setattr(f"{name}.print_rank_zero", said.append)
        rbft(folder, "fit", *options, VERIFIED, HINT)
    return folder, "\n".join(said)


def lines(folder: Path, what: str = "") -> list[dict[str, Any]]:
    """What stands in the rationale file, or in a file beside it."""
    named = {"": "*rationale-????????.jsonl"}.get(what, f"*-{what}-*.jsonl")
    (file,) = (folder / LOGS / "rationales").glob(named)
    return read_lines(file)


def known(folder: Path) -> dict[str, Any]:
    """All that Stage 0 leaves."""
    classes = lines(folder, "classes")
    shares = [line.pop("probabilities") for line in classes]
    made = {"own": lines(folder), "hinted": lines(folder, "hinted"), "classes": classes}
    left = sorted(file.name for file in (folder / LOGS / "rationales").glob("*.part*"))
    return {**made, "shares": shares, "left": left}


def test_what_the_run_leaves_says_whose_writer_was_told(whole):
    folder, said = whole
    classes, hinted = lines(folder, "classes"), lines(folder, "hinted")
    assert {line["id"] for line in classes} == set(TRAIN)  # no label of another split is used
    asked = [(line["prompt"], line["video"], line["rationale"]) for line in classes]
    assert len(set(asked)) == len(asked)
    selected = read_json(folder / LOGS / "small/rationale/rationale_selection.json")
    counts = selected["classes"]
    assert sum(map(sum, (own.values() for own in counts.values()))) == 8
    wrong = {*selected["label_conditioned"], *selected["dropped"]}
    assert len(wrong) >= 2
    assert selected["label_conditioned"]
    assert selected["dropped"]
    # The second try is about the clips that no own rationale leads to their class, and marked.
    assert {line["id"] for line in hinted} == wrong
    assert [line["label_conditioned"] for line in hinted] == [True] * 2 * len(wrong)
    assert all("label_conditioned" not in line for line in lines(folder))
    for line in [*lines(folder), *hinted]:
        assert len(line["frames"]) == 4
        assert line["fps"] == 4.0
    # What training has learnt, and all weights and results that come of it.
    taught = read_json(folder / LOGS / "small/rationale/rationales.json")
    assert {name for name in taught if name in TRAIN} == set(TRAIN) - {*selected["dropped"]}
    count = len(selected["label_conditioned"])
    for stage in ("rationale", "label"):
        made = read_json(folder / LOGS / "small" / stage / "weights/rbft.json")
        assert made["label_conditioned"] == count
    assert read_json(folder / LOGS / "small/label/test.json")["label_conditioned"] == count
    assert "Stage II (labels) *" in said
    assert f"* Stage II (labels): {count} rationale" in said
    assert "label-conditioned: " + selected["label_conditioned"][0] in said
    assert "dropped: " + selected["dropped"][0] in said


def test_killed_while_classes_are_elicited(whole, options, tmp_path):
    expected, alone = near(known(whole[0])), tmp_path / "alone"
    chosen = [*options, VERIFIED, HINT]
    # At the second write of the classes behind the second try.
    assert run(alone, chosen, "*-classes-*.part0", 4, command="rationalize") == -9, log(alone)
    there = len(files(alone, "classes"))
    assert 0 < there < len(expected["classes"])
    assert run(alone, chosen, command="rationalize") == 0, log(alone)
    assert known(alone) == expected


@pytest.mark.long
def test_killed_while_two_processes_elicit_classes(whole, options, tmp_path):
    expected, two = near(known(whole[0])), tmp_path / "two"
    both = [*options, VERIFIED, HINT, "--trainer.devices=2", "--data.batch_size=1"]
    killed = run_two(two, both, 1, "*-hinted-*.part1", 1, command="rationalize")
    assert killed != 0, log(two)
    assert run_two(two, both, command="rationalize") == 0, log(two)
    assert known(two) == expected


def near(found: dict[str, Any]) -> dict[str, Any]:
    """The same, up to what batches of other sizes round otherwise."""
    return {**found, "shares": [pytest.approx(one, abs=1e-5) for one in found["shares"]]}


def files(folder: Path, what: str) -> list[dict[str, Any]]:
    """The lines of a file and of its parts."""
    found = (folder / LOGS / "rationales").glob(f"*-{what}-*.jsonl*")
    return [line for file in found for line in read_lines(file)]


def log(folder: Path) -> str:
    return (folder / "log.txt").read_text(encoding="utf-8")[-3000:]


def test_the_page_and_the_dry_run_say_it(whole, options, monkeypatch, capsys):
    folder, _ = whole

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("rbft.backbone.loader.load_model", refuse)
    rbft(folder, "rationales", *options, VERIFIED, HINT)
    said = capsys.readouterr().out
    selected = read_json(folder / LOGS / "small/rationale/rationale_selection.json")
    told, dropped = len(selected["label_conditioned"]), len(selected["dropped"])
    assert f"{told} are label-conditioned, {dropped} have none that leads to their class" in said
    assert "10 of 10 clips have a rationale" in said
    (file,) = (folder / LOGS / "rationales").glob("*.html")
    page = file.read_text(encoding="utf-8")
    assert page.count('<li class="told">label-conditioned') == told
    assert page.count("Not learnt: none of its rationales leads to its class.") == dropped
    # Under another setting nothing of the second try is left; under `first` nothing is dropped.
    rbft(folder, "rationales", *options)
    assert "label-conditioned" not in capsys.readouterr().out
    assert "told" not in {*file.read_text(encoding="utf-8").split('"')}
    rbft(folder, "rationales", *options, VERIFIED, "--data.rationale_fallback=first")
    wrong = file.read_text(encoding="utf-8").count("Learnt although it leads to another class.")
    assert wrong == told + dropped
    capsys.readouterr()
    rbft(folder, "rationales", *options, VERIFIED, HINT, "--data.rationale_hint={word}!")
    assert f"{told + dropped} are not verified yet" in capsys.readouterr().out


def test_the_dry_run_counts_what_is_to_verify(options, tmp_path, capsys, cache):
    rbft(tmp_path, "rationalize", *options, "--model.rationale_sampling=null")
    one = [*options, "--model.rationale_sampling=null", VERIFIED]
    capsys.readouterr()
    rbft(tmp_path, "fit", *one, "--dry_run=true")
    said = capsys.readouterr().out
    assert "8 to verify" in said
    assert "Stage 0, verifying" in said


def test_an_endpoint_that_writes_is_refused_before_it_is_asked(options, tmp_path, capsys, cache):
    server = ["--endpoint.model=gpt-4o", "--endpoint.key_variable=null"]
    for command, more in (("rationalize", []), ("fit", []), ("fit", ["--dry_run=true"])):
        with pytest.raises(SystemExit, match="2"):
            rbft(tmp_path, command, *options, *server, VERIFIED, *more)
        assert (
            capsys.readouterr()
            .err.rstrip()
            .endswith(
                "error: data.rationale_selection is verified, but endpoint.model (gpt-4o) writes "
                "one rationale about each clip, and rbft does not elicit classes from a server. "
                "Set data.rationale_selection to first, or endpoint to null."
            )
        )
    assert not (tmp_path / LOGS / "endpoints").exists()
