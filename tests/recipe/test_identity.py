"""Two things are never taken for one: settings, words, clips, videos and weights by content."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from rbft.data.base import VideoDataModule
from rbft.data.learnt_rationales import LearntRationales
from rbft.miniature.data import Miniature
from rbft.module import RBFTModule
from rbft.runtime.files import write_json
from tests.recipe.runs import LOGS, outcome, rationales, rbft, read_json, read_lines, small

pytestmark = pytest.mark.recipe
QUICK = ("--trainer.max_epochs=1", "--data.train_size=6", "--data.test_size=4")
CARD = "card.yaml"  # a copy of the miniature's, to be changed


class BrokenError(Exception):
    """Ends a run where a test wants it."""


@pytest.fixture(scope="module")
def options(backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    card = tmp_path_factory.mktemp("card") / CARD
    shutil.copy(Path(str(Miniature.card_file)), card)
    # Nothing is warmed up: every step of so short a stage moves the weights.
    return small(backbones["qwen2_5_vl"], *QUICK, f"--data.card={card}", "--model.warmup_ratio=0")


@pytest.fixture(scope="module")
def finished(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    rbft(folder, "fit", *options)
    return folder


@pytest.fixture(scope="module")
def half(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended between the two stages."""
    folder = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RBFTModule, "check_trainable", refuse_labels)
        broken(folder, "fit", *options)
    assert (folder / LOGS / "small/rationale/weights").is_dir()
    return folder


def broken(folder: Path, *arguments: str) -> None:
    with pytest.raises(BrokenError):
        rbft(folder, *arguments)


def refuse_labels(module: RBFTModule) -> None:
    if module.weights is not None:
        raise BrokenError


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def stopped(half: Path, tmp_path: Path) -> Path:
    shutil.copytree(half, tmp_path / "copy")
    return tmp_path / "copy"


def changed_card(tmp_path: Path, **changes: Any) -> str:
    """An option with another card than the run's."""
    card = yaml.safe_load(Path(str(Miniature.card_file)).read_text(encoding="utf-8"))
    file = tmp_path / "changed.yaml"
    file.write_text(yaml.safe_dump({**card, **changes}, sort_keys=False), encoding="utf-8")
    return f"--data.card={file}"


def refused(folder: Path, capsys: Any, *arguments: str) -> str:
    """What a command that must not run says; it leaves everything as it was."""
    before = outcome(folder)
    with pytest.raises(SystemExit, match="2"):
        rbft(folder, *arguments)
    assert outcome(folder) == before
    return capsys.readouterr().err


def other_clips(monkeypatch: pytest.MonkeyPatch, change: Callable[[list[Any]], list[Any]]) -> None:
    read = Miniature.read
    monkeypatch.setattr(Miniature, "read", lambda self: change(read(self)))


def test_words_that_change_between_the_stages(stopped, options, tmp_path, capsys):
    card = yaml.safe_load(Path(str(Miniature.card_file)).read_text(encoding="utf-8"))
    words = {**card["words"], "abnormal": "unsafe"}
    error = refused(stopped, capsys, "fit", *options, changed_card(tmp_path, words=words))
    assert 'words.abnormal: "abnormal" -> "unsafe"\n' in error
    prompts = {**card["prompts"], "label": "Which is it: {words}?"}
    error = refused(stopped, capsys, "fit", *options, changed_card(tmp_path, prompts=prompts))
    assert 'prompts.label: "' in error
    assert '-> "Which is it: {words}?"\n' in error


def test_labels_and_order_that_change_between_the_stages(stopped, options, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        flip = lambda clips: [replace(c, label=1 - c.label) for c in clips]  # noqa: E731
        other_clips(patch, flip)
        error = refused(stopped, capsys, "fit", *options)
        assert "6 train clips have another label (" in error
        assert "4 test clips have another label (" in error
    with monkeypatch.context() as patch:
        other_clips(patch, lambda clips: clips[::-1])
        error = refused(stopped, capsys, "fit", *options)
        assert "the train clips are in another order; the test clips are in another" in error


def test_videos_that_change_between_the_stages(stopped, options, monkeypatch, tmp_path, capsys):
    """The same ids and file names in another folder, with other videos in it."""

    def elsewhere(clips: list[Any]) -> list[Any]:
        moved = []
        for place, clip in enumerate(clips):
            path = tmp_path / clip.path.name
            shutil.copy(clips[place - 1].path if place == 1 else clip.path, path)
            moved.append(replace(clip, path=path))
        return moved

    other_clips(monkeypatch, elsewhere)
    error = refused(stopped, capsys, "fit", *options)
    assert "error: The run lightning_logs/small was started with other clips: " in error
    assert "1 train clip has another video (" in error


def test_videos_that_only_moved_are_the_same(stopped, finished, options, monkeypatch, tmp_path):
    def elsewhere(clips: list[Any]) -> list[Any]:
        return [replace(c, path=Path(shutil.copy(c.path, tmp_path))) for c in clips]

    other_clips(monkeypatch, elsewhere)
    rbft(stopped, "fit", *options)
    assert outcome(stopped) == outcome(finished)


def test_a_backbone_that_changes_in_place(stopped, options, qwen, tmp_path, capsys):
    backbone = tmp_path / "qwen2_5_vl"
    shutil.copytree(qwen, backbone)
    tensors = load_file(backbone / "model.safetensors")
    next(iter(tensors.values())).view(-1)[7] += 1
    save_file(tensors, backbone / "model.safetensors", {"format": "pt"})
    file = stopped / LOGS / "small/settings.yaml"
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    settings["model"]["backbone"] = str(backbone)  # as if it had always been there
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    error = refused(stopped, capsys, "fit", *options, f"--model.backbone={backbone}")
    assert "was started from a model.backbone with the digest " in error


def test_settings_bind_only_when_something_is_finished_with_them(
    options, finished, tmp_path, monkeypatch, capsys
):
    """A stage that fails before its first checkpoint leaves nothing that binds."""

    def fail(*_: Any) -> None:
        raise BrokenError

    with monkeypatch.context() as patch:
        patch.setattr(RBFTModule, "configure_optimizers", fail)
        broken(tmp_path, "fit", *options, "--model.learning_rate=3e-4")
    assert (tmp_path / LOGS / "small/zero_shot/test.json").exists()
    capsys.readouterr()
    rbft(tmp_path, "fit", *options)
    assert "  model.learning_rate: 0.0003 -> 0.001\n" in capsys.readouterr().out
    assert outcome(tmp_path) == outcome(finished)


def test_rationales_that_change_while_their_stage_is_interrupted(
    options, tmp_path, monkeypatch, capsys
):
    step = RBFTModule.training_step

    def fail_in_the_second_step(module: RBFTModule, batch: Any) -> Any:
        if module.trainer.global_step:
            raise BrokenError
        return step(module, batch)

    with monkeypatch.context() as patch:
        patch.setattr(RBFTModule, "training_step", fail_in_the_second_step)
        broken(tmp_path, "fit", *options, "--checkpoint_every=1")
    file = rationales(tmp_path)
    lines = read_lines(file)
    lines[2]["rationale"] += " Or not."
    file.write_text("".join(f"{as_line(line)}\n" for line in lines), encoding="utf-8")
    error = refused(tmp_path, capsys, "fit", *options, "--checkpoint_every=1")
    assert (
        f"error: Stage I (rationales) began with other rationales of 1 clips (first: "
        f"{lines[2]['id']}) than lightning_logs/rationales/{file.name} has now."
    ) in error


def as_line(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False)


def test_other_frames_get_a_rationale_file_of_their_own(run, options, capsys):
    known = rationales(run)
    rbft(run, "rationalize", *options, "--name=more_frames", "--data.fps=2")
    assert "6 rationales to write into lightning_logs/rationales/" in capsys.readouterr().out
    files = sorted(known.parent.glob("*.jsonl"))
    assert len(files) == 2
    assert {file.name.rpartition("-")[0] for file in files} == {known.name.rpartition("-")[0]}
    rbft(run, "rationalize", *options, "--name=again")
    assert f"Stage 0: 6 of 6 rationales reused from {known.relative_to(run)}\n" in (
        capsys.readouterr().out
    )


def test_other_videos_of_the_same_ids_get_rationales_of_their_own(
    run, options, monkeypatch, tmp_path, capsys
):
    """What a run is told to reuse, it reuses for the videos it was written about only."""
    before = {line["id"]: line for line in read_lines(rationales(run))}
    ids = sorted(before)

    def swapped(clips: list[Any]) -> list[Any]:
        paths = {clip.id: clip.path for clip in clips}
        paths[ids[0]], paths[ids[1]] = paths[ids[1]], paths[ids[0]]
        return [replace(clip, path=paths[clip.id]) for clip in clips]

    other_clips(monkeypatch, swapped)
    rbft(run, "rationalize", *options, "--name=other")
    out = capsys.readouterr().out
    assert "Stage 0: 4 of 6 rationales reused from " in out
    assert "Stage 0: 2 rationales to write into " in out
    after = read_lines(rationales(run))
    assert len(after) == 8
    videos = {name: {line["video"] for line in after if line["id"] == name} for name in ids[:2]}
    assert videos[ids[0]] == videos[ids[1]] == {before[name]["video"] for name in ids[:2]}


def test_rationales_of_a_finished_stage_are_not_written_again(run, options, monkeypatch):
    rationales(run).unlink()

    def refuse(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("rbft.backbone.loader.load_model", refuse)
    rbft(run, "fit", *options)


def test_a_test_under_other_conditions_stands_beside_the_run_s_own(run, options, capsys):
    own = run / LOGS / "small/label/test.json"
    before = own.read_bytes()
    more = ("--data.fps=0.5", "--model.answer=generate", "--model.max_new_tokens=3")
    rbft(run, "test", *options, *more)
    table = capsys.readouterr().out
    assert own.read_bytes() == before
    (other,) = (run / LOGS / "small/label").glob("test-*.json")
    made = read_json(other)["made"]
    assert (made["frames"]["fps"], made["answer"]) == (0.5, "generate")
    assert made["weights"] == read_json(own)["made"]["weights"]
    assert other.with_name(f"{other.stem}_predictions.jsonl").exists()
    # The zero-shot row was scored otherwise.
    assert "backbone, zero-shot   " not in table
    assert "Not in the table: backbone, zero-shot, which was scored on other clips, fram" in table
    rbft(run, "fit", *options)
    table = capsys.readouterr().out
    accuracy = [line.split()[3] for line in table.splitlines() if line.startswith("Stage II")]
    assert accuracy == [f"{100 * read_json(own)['metrics']['accuracy']:.1f}"]
    assert "backbone, zero-shot   " in table


def test_results_of_other_weights_are_not_the_run_s_own(run, options, monkeypatch, capsys):
    """Stale results are scored anew, not shown."""
    own = run / LOGS / "small/label/test.json"
    expected = read_json(own)
    made = {**expected["made"], "weights": "of an earlier fit"}
    write_json(own, {**expected, "made": made, "n_scored": 77})
    rbft(run, "fit", *options)
    assert read_json(own) == expected
    assert " 77" not in capsys.readouterr().out


def test_two_weights_folders_of_one_name(run, options, tmp_path, capsys):
    places = []
    for stage in ("rationale", "label"):
        weights = run / LOGS / "small" / stage / "weights"
        rbft(run, "test", *options, f"--weights={weights}")
        places = sorted((run / LOGS / "small").glob("weights-*"))
    assert len(places) == 2
    found = {read_json(place / "test.json")["weights"] for place in places}
    assert found == {str(run / LOGS / "small" / s / "weights") for s in ("rationale", "label")}


def test_clips_that_were_trained_on_are_not_validated(run, options, capsys):
    error = refused(run, capsys, "validate", *options, "--data.val_fraction=0.3")
    assert (
        "error: weights folder lightning_logs/small/label/weights was trained on 2 of the 2 val"
        in (error)
    )


def test_test_in_other_words_is_refused(run, options, tmp_path, capsys):
    """Swapped class words would exchange the columns of F1."""
    card = yaml.safe_load(Path(str(Miniature.card_file)).read_text(encoding="utf-8"))
    swapped = dict(zip(card["words"], reversed(card["words"].values()), strict=True))
    option = changed_card(tmp_path, words=swapped)
    for command in (
        ("test", *options, option),
        ("predict", *options, option, "--videos=lightning_logs", "--output=x.jsonl"),
    ):
        error = refused(run, capsys, *command)
        assert (
            "error: weights folder lightning_logs/small/label/weights was trained with other words "
            'than it would be asked with:\n  words.normal: "normal" -> "abnormal"\n'
        ) in error
        assert "Set data.card to lightning_logs/small/label/weights/card.yaml, or train on" in error
    # What Stage II does not ask may change.
    prompts = {**card["prompts"], "less": "Describe the walls."}
    rbft(run, "test", *options, changed_card(tmp_path, prompts=prompts))


def test_only_training_and_validation_clips_may_teach(run, options, monkeypatch):
    """Whoever wrote the file: a line about a test clip is left where it is."""
    file = rationales(run)
    lines = read_lines(file)
    test_ids = [row["id"] for row in read_lines(run / LOGS / "small/label/test_predictions.jsonl")]
    foreign = {**lines[0], "id": test_ids[0], "rationale": "It is abnormal."}
    file.write_text(file.read_text() + f"{as_line(foreign)}\n", encoding="utf-8")
    taught: list[str] = []
    texts = VideoDataModule.rationales

    def keep(self: VideoDataModule, split: str) -> LearntRationales:
        found = texts(self, split)
        taught.extend(found.samples)
        return found

    monkeypatch.setattr(VideoDataModule, "rationales", keep)
    more = ("--name=other", "--score_each_stage=false", "--stages=[rationale]")
    rbft(run, "fit", *options, *more)
    assert set(taught) == {line["id"] for line in lines}
