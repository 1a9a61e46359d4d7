import errno
import json
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerStatus
from transformers import AutoModelForImageTextToText, AutoProcessor

from rbft.backbone.positions import POSITION_RULE
from rbft.callbacks.handoff import StageHandoff
from rbft.card import Card
from rbft.module import RBFTModule
from rbft.runs.folder import PROVENANCE, Run, check_weights, provenance
from tests.examples import CARD, MODULE_SETTINGS, Texts, Yard, fed, module, rationale, trainer


def train(
    folder: Path,
    run: Run,
    *callbacks: Callback,
    stage: str = "rationale",
    cut: Collection[str] = (),
) -> RBFTModule:
    """One stage, with its checkpoints, into the run's folder."""
    made = RBFTModule(str(folder), CARD, stage=stage, **MODULE_SETTINGS)
    origin = provenance(
        POSITION_RULE, stages=[stage], backbone="abc", card=CARD.digest, clips={"train": "c"}
    )
    saver = ModelCheckpoint(run.stage(stage) / "checkpoints", "{step}", every_n_train_steps=1)
    handoff = StageHandoff(run.weights(stage), origin, {"clips.json": {"train": ["a"]}})
    run.folder.mkdir(exist_ok=True)
    yard = Yard(run.folder / "card.yaml", {"train": 2})
    yard.feed = replace(
        yard.feed, rationales=Texts({c.id: rationale(c) for c in yard.clips("train")}, cut)
    )  # type: ignore[arg-type]
    whole = trainer(run.folder, callbacks=[*callbacks, saver, handoff], enable_checkpointing=True)
    whole.fit(made, fed(yard, made))
    return made


def test_a_stage_leaves_a_folder_that_transformers_opens(backbone: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    trained = train(backbone, run)
    weights = run.weights("rationale")
    before = dict(module(backbone).backbone.named_parameters())

    loaded = AutoModelForImageTextToText.from_pretrained(weights)
    names = [name for name, _ in trained.backbone.named_parameters()]
    assert [name for name, _ in loaded.named_parameters()] == names
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, trained.backbone.get_parameter(name))
        assert not torch.equal(parameter, before[name]), f"{name} was not trained"

    # The next stage starts from it, bit for bit.
    following = RBFTModule("unused", CARD, stage="label", weights=weights, **MODULE_SETTINGS)
    following.configure_model()
    for ours, theirs in zip(
        following.backbone.parameters(), trained.backbone.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_the_weights_note_which_rationales_they_have_learnt(qwen: Path, tmp_path: Path) -> None:
    for stage, noted in (("rationale", {"learnt": 2, "cut": 1, "share_cut": 0.5}), ("label", None)):
        run = Run(tmp_path / stage)
        train(qwen, run, stage=stage, cut=["train_1"])
        made = json.loads((run.weights(stage) / PROVENANCE).read_text(encoding="utf-8"))
        assert made.get("rationales") == noted


def test_processor_card_and_provenance_come_along(qwen: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    trained = train(qwen, run)
    weights = run.weights("rationale")
    processor, original = (AutoProcessor.from_pretrained(path) for path in (weights, qwen))
    assert processor.chat_template == original.chat_template
    text = "Is it <|video_pad|>?"
    assert processor.tokenizer(text)["input_ids"] == original.tokenizer(text)["input_ids"]
    assert Card.load(weights / "card.yaml") == CARD
    content = json.loads((weights / PROVENANCE).read_text(encoding="utf-8"))
    steps = content.pop("steps")
    assert (content.pop("epochs"), content.pop("clips_seen")) == (1, 2)
    del content["rationales"]
    assert content == provenance(
        POSITION_RULE, stages=["rationale"], backbone="abc", card=CARD.digest, clips={"train": "c"}
    )
    assert json.loads((weights / "clips.json").read_text()) == {"train": ["a"]}
    assert steps == trained.trainer.global_step > 0
    check_weights(weights, ["rationale"], "abc", CARD.digest, {"train": "c"})
    with pytest.raises(ValueError, match=r"is the result of the stages \['rationale'\]"):
        check_weights(weights, ["label"], "abc", CARD.digest, {"train": "c"})


def test_the_folder_appears_whole_or_not_at_all(
    qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("rbft.callbacks.handoff.write_json", full)
        wanted = rf"{run.weights('rationale')} cannot be written: No space left on device\. "
        with pytest.raises(ValueError, match=wanted):
            train(qwen, run)
    assert not run.trained("rationale")
    assert not run.weights("rationale").exists()
    assert [path.name for path in run.stage("rationale").iterdir()] == ["checkpoints"]
    assert run.checkpoint("rationale") is not None, "nothing left to resume from"

    with pytest.warns(UserWarning, match="is not empty"):  # Lightning, of the old checkpoints
        train(qwen, run)
    assert run.trained("rationale")
    assert run.checkpoint("rationale") is None, "the stage is done, its checkpoints stay"


@pytest.mark.parametrize("before", [False, True])
def test_checkpoints_stay_until_the_weights_are_in_place(
    qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """At every rename of the hand-off, and when the checkpoints are removed."""
    run, seen = Run(tmp_path / "run"), []
    if before:  # a folder that is no finished stage's
        run.weights("rationale").mkdir(parents=True)
        (run.weights("rationale") / "notes.txt").touch()

    def look(what: str) -> None:
        seen.append((what, run.trained("rationale"), run.checkpoint("rationale") is not None))

    replace, rmtree = Path.replace, shutil.rmtree

    def renamed(source: Path, target: Path) -> Path:
        if "weights" in {source.name, Path(target).name}:
            look("rename")
        return replace(source, target)

    def removed(path: Path, **options: Any) -> None:
        if path.name == "checkpoints":
            look("remove")
        rmtree(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", renamed)
        patched.setattr(shutil, "rmtree", removed)
        train(qwen, run)
    renames = 2 if before else 1
    assert seen == [*[("rename", False, True)] * renames, ("remove", True, True)]
    assert run.trained("rationale")
    assert not (run.weights("rationale") / "notes.txt").exists()
    assert run.checkpoint("rationale") is None


def test_a_hand_off_that_cannot_be_renamed_keeps_the_checkpoints(
    qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, replace = Run(tmp_path / "run"), Path.replace

    def refused(source: Path, target: Path) -> Path:
        if Path(target) == run.weights("rationale"):
            raise OSError(errno.EIO, "Input/output error")
        return replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", refused)
        with pytest.raises(ValueError, match=r"weights cannot be written: Input/output error\. "):
            train(qwen, run)
    assert run.checkpoint("rationale") is not None, "nothing left to resume from"
    assert [path.name for path in run.stage("rationale").iterdir()] == ["checkpoints"]


class Interrupt(Callback):
    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        raise KeyboardInterrupt


def test_an_interrupted_stage_leaves_nothing(qwen: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    # Lightning ends the fit in order and then the process.
    with pytest.raises(SystemExit):
        train(qwen, run, Interrupt())
    assert not run.trained("rationale")
    assert not run.weights("rationale").exists()


def test_nor_does_a_fit_that_ends_as_interrupted(qwen: Path, tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.state.status = TrainerStatus.INTERRUPTED
    StageHandoff(tmp_path / "weights", {}).on_fit_end(run, module(qwen))
    assert not (tmp_path / "weights").exists()
