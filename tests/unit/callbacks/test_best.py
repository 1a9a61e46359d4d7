"""The best weights of a stage, found and handed on; the scores of validations are made up."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file
from torch import Tensor

from rbft.backbone.adapters import LoRA
from rbft.callbacks.best import BEST, SCORES, BestWeights, check_keep, metric_names
from rbft.callbacks.handoff import StageHandoff
from rbft.module import RBFTModule
from rbft.runs.folder import PROVENANCE, Run, read_json
from rbft.training.checkpoints import StepCheckpoint, WholeCheckpoints
from tests.examples import CARD, Yard
from tests.several import Pets
from tests.unit.test_module import fit

pytestmark = pytest.mark.filterwarnings("ignore:.*exists and is not empty.*")


class Noted(Callback):
    """The weights at each validation, and how often each step was validated."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, Tensor]] = {}
        self.steps: list[int] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.steps.append(trainer.global_step)
        self.weights[trainer.global_step] = {
            name: value.detach().clone() for name, value in pl_module.named_parameters()
        }


class Killed(Exception):  # noqa: N818 (stands for a kill)
    pass


class Stage:
    """A stage of four epochs of a step each that keeps its best weights."""

    def __init__(
        self,
        backbone: Path,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        scores: dict[int, float],
        metric: str = "val/accuracy",
        patience: int | None = None,
        clips: int = 4,
        every: int = 100,
        **settings: Any,
    ) -> None:
        self.clips, self.every = clips, every
        self.backbone, self.folder, self.metric = backbone, folder, metric
        self.run, self.patience, self.settings = Run(folder / "run"), patience, settings
        self.noted = Noted()

        def log(module: RBFTModule) -> None:
            module.log(metric, scores[module.trainer.global_step])

        monkeypatch.setattr(RBFTModule, "_log_metrics", lambda *_: None)
        monkeypatch.setattr(RBFTModule, "on_validation_epoch_end", log)

    def fit(self, *callbacks: Callback, ckpt_path: Path | None = None) -> RBFTModule:
        folder = self.run.checkpoints("label")
        best = BestWeights(folder, self.metric, self.patience)
        resume = ckpt_path or self.run.checkpoint("label")
        return fit(
            self.backbone,
            self.folder,
            *callbacks,
            self.noted,
            best,
            StepCheckpoint(folder, self.every),
            StageHandoff(self.run.weights("label"), {"stages": ["label"]}, best=best),
            counts={"train": self.clips, "val": 2},
            ckpt_path=resume,
            **{"max_epochs": 4, "enable_checkpointing": True, **self.settings},
            plugins=[WholeCheckpoints()],
        )

    def checkpoint(self) -> Path:
        """The newest one, which is there."""
        found = self.run.checkpoint("label")
        assert found is not None
        return found

    @property
    def provenance(self) -> dict[str, Any]:
        return read_json(self.run.weights("label") / PROVENANCE)

    def check_kept(self, step: int) -> None:
        """The folder holds the weights of that step, to the bit, and not those of another."""
        kept = load_file(self.run.weights("label") / "model.safetensors")
        names = {"lm_head.weight": "backbone.lm_head.weight"}
        changed = 0
        for name, tensor in kept.items():
            long = names.get(name, f"backbone.{name}")
            if long not in self.noted.weights[step]:  # names of the file differ from the module's
                continue
            assert torch.equal(tensor, self.noted.weights[step][long]), name
            last = max(self.noted.weights)
            changed += not torch.equal(tensor, self.noted.weights[last][long])
        assert changed or step == max(self.noted.weights)
        assert any(f"backbone.{name}" in self.noted.weights[step] for name in kept)


SCORED = {1: 0.25, 2: 0.75, 3: 0.75, 4: 0.5}


def test_the_weights_of_the_best_validation_are_handed_on(qwen, tmp_path, monkeypatch, capsys):
    stage = Stage(qwen, tmp_path, monkeypatch, SCORED)
    stage.fit()
    stage.check_kept(2)  # of two equal scores the earlier one
    assert stage.provenance == {
        "stages": ["label"],
        "steps": 4,
        "epochs": 4,
        "clips_seen": 16,
        "kept": {
            "metric": "val/accuracy",
            "step": 2,
            "score": 0.75,
            "validations": [{"step": step, "score": score} for step, score in SCORED.items()],
        },
    }
    assert not stage.run.checkpoints("label").exists()
    said = "Kept the weights of step 2 of 4: val/accuracy 0.7500, the best of 4 validations."
    assert said in capsys.readouterr().out


def test_the_smallest_loss_is_the_best(qwen, tmp_path, monkeypatch):
    stage = Stage(qwen, tmp_path, monkeypatch, {1: 0.5, 2: 0.2, 3: 0.3, 4: 0.9}, "val/loss")
    stage.fit()
    stage.check_kept(2)
    assert stage.provenance["kept"]["score"] == pytest.approx(0.2)


def test_adapters_are_kept_too(qwen, tmp_path, monkeypatch):
    stage = Stage(qwen, tmp_path, monkeypatch, SCORED)
    lora = {"lora": LoRA(rank=2), "vision_learning_rate": 0.0}
    stage.settings["model"] = lora
    stage.fit()
    kept = load_file(stage.run.weights("label") / "adapter_model.safetensors")
    found, last = (
        {
            f"base_model.model.{long.removeprefix('backbone.')}".replace(".default", ""): value
            for long, value in stage.noted.weights[step].items()
        }
        for step in (2, 4)
    )
    lora_names = [name for name in kept if "lora_" in name]
    assert lora_names
    assert all(torch.equal(kept[name], found[name]) for name in lora_names)
    assert not all(torch.equal(kept[name], last[name]) for name in lora_names)


class KillIn(Callback):
    """Ends the run in the validation after a step, before its score is known."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_start(self, trainer: Any, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


def killed_at(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Ends the run just before a file is put in place for the n-th time."""
    replace, seen = Path.replace, []

    def replaced(source: Path, target: Path) -> Path:
        if Path(target).name == name:
            seen.append(target)
            if len(seen) == number:
                raise Killed
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", replaced)


# The moment, and the scores on disk after it.
MOMENTS = {
    "in a validation that is the best": (KillIn(2), None, 1),
    "in one that is not": (KillIn(3), None, 2),
    "in the last": (KillIn(4), None, 3),
    "before the weights": (None, (BEST, 2), 1),
    "between weights and score": (None, (SCORES, 2), 1),
    "before a score that is not the best": (None, (SCORES, 3), 2),
    "in the hand-off": (None, ("weights", 1), 4),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_neither_loses_nor_repeats_a_score(qwen, tmp_path, monkeypatch, moment):
    callback, file, scored = MOMENTS[moment]
    stage = Stage(qwen, tmp_path, monkeypatch, dict(SCORED))
    with monkeypatch.context() as patched:
        if file is not None:
            killed_at(patched, *file)
        with pytest.raises(Killed):
            stage.fit(*([] if callback is None else [callback]))
    noted = read_json(stage.run.checkpoints("label") / SCORES)
    assert len(noted) == scored
    stage.fit()
    stage.check_kept(2)
    assert [(one["step"], one["score"]) for one in stage.provenance["kept"]["validations"]] == [
        *SCORED.items()
    ]
    assert stage.provenance["steps"] == 4
    # Nothing that was scored is measured again, but for what a kill came before.
    assert set(stage.noted.steps) == set(SCORED)


def test_two_kills_between_weights_and_score(qwen, tmp_path, monkeypatch):
    """The first score is not lost with the second weights."""
    stage, replace = Stage(qwen, tmp_path, monkeypatch, dict(SCORED)), Path.replace
    for step in (1, 2):

        def replaced(source: Path, target: Path, step: int = step) -> Path:
            if Path(target).name == SCORES:
                best = torch.load(Path(target).with_name(BEST), weights_only=True)
                if best["step"] == step:
                    raise Killed
            return replace(source, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", replaced)
            with pytest.raises(Killed):
                stage.fit()
    stage.fit()
    assert [one["step"] for one in stage.provenance["kept"]["validations"]] == [1, 2, 3, 4]
    stage.check_kept(2)


def test_patience_ends_the_stage_and_a_resumed_one(qwen, tmp_path, monkeypatch):
    stage = Stage(qwen, tmp_path, monkeypatch, SCORED, patience=1)
    with monkeypatch.context() as patched:
        killed_at(patched, "weights", 1)
        with pytest.raises(Killed):
            stage.fit()
    assert stage.noted.steps == [1, 2, 3]
    stage.fit()  # resumes where patience was at its end
    assert stage.noted.steps == [1, 2, 3]
    assert stage.provenance["steps"] == 3
    stage.check_kept(2)


def test_validation_within_an_epoch(qwen, tmp_path, monkeypatch):
    scores = {1: 0.1, 2: 0.2, 3: 0.9, 4: 0.3}
    stage = Stage(qwen, tmp_path, monkeypatch, scores, clips=8, val_check_interval=4, max_epochs=2)
    with pytest.raises(Killed):
        stage.fit(KillIn(3))
    with monkeypatch.context() as patched:
        killed_at(patched, SCORES, 1)  # the weights of step 3 are written, with a checkpoint
        with pytest.raises(Killed):
            stage.fit()
    stage.fit()
    stage.check_kept(3)
    assert [one["step"] for one in stage.provenance["kept"]["validations"]] == [1, 2, 3, 4]


def test_validation_in_the_middle_of_a_global_batch(qwen, tmp_path, monkeypatch):
    stage = Stage(qwen, tmp_path, monkeypatch, SCORED, val_check_interval=2)
    wanted = (
        r"^keep is best, but trainer\.val_check_interval 2 has validation come after 2 "
        r"micro-batches, in the middle of a global batch of 4\. Make it come after a multiple of "
        r"these, or at the end of the epoch\.$"
    )
    with pytest.raises(ValueError, match=wanted):
        stage.fit()


def test_best_weights_of_another_time(qwen, tmp_path, monkeypatch):
    stage = Stage(qwen, tmp_path, monkeypatch, SCORED)
    with pytest.raises(Killed):
        stage.fit(KillIn(3))
    (tmp_path / "old.ckpt").write_bytes(stage.checkpoint().read_bytes())
    with pytest.raises(Killed):
        stage.fit(KillIn(4))
    wanted = (
        r"^The checkpoint is of step 3, but .*/label/checkpoints has validation scores up to step "
        r"4 and best weights of step 4, where those of step 4 are the best: they do not belong "
        r"together\. Leave --ckpt_path out, or add --restart true\.$"
    )
    best = stage.run.checkpoints("label") / BEST
    weights = torch.load(best, weights_only=True)
    torch.save({**weights, "step": 4, "score": 0.9}, best)
    with pytest.raises(ValueError, match=wanted):
        stage.fit(ckpt_path=tmp_path / "old.ckpt")


class KillAfter(Callback):
    """Ends the run at the start of the micro-batch after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


def test_what_a_run_without_a_checkpoint_has_left_is_not_taken(qwen, tmp_path, monkeypatch):
    scores = {2: 0.9, 4: 0.1}
    stage = Stage(qwen, tmp_path, monkeypatch, scores, clips=8, every=1, max_epochs=2)
    with pytest.raises(Killed):
        stage.fit(KillIn(4))
    stage.checkpoint().unlink()
    assert stage.run.checkpoint("label") is None
    with pytest.raises(Killed):
        stage.fit(KillAfter(1))  # with a checkpoint of step 1, where scores of step 2 lay about
    scores |= {2: 0.1, 4: 0.2}
    stage.fit()
    assert stage.noted.steps == [2, 2, 4]
    assert stage.provenance["kept"]["score"] == pytest.approx(0.2)


def test_a_score_that_is_no_number(qwen, tmp_path, monkeypatch):
    stage = Stage(qwen, tmp_path, monkeypatch, {1: 0.5, 2: float("nan")})
    wanted = (
        r"^keep_metric val/accuracy of the validation after step 2 is no number, so no weights are "
        r"the best\. Look at the validation clips, or choose another metric\.$"
    )
    with pytest.raises(ValueError, match=wanted):
        stage.fit()


def test_a_stage_without_a_validation(qwen, tmp_path, monkeypatch):
    stage = Stage(qwen, tmp_path, monkeypatch, SCORED, clips=8, max_steps=1)
    wanted = r"^keep is best, but the stage ended without a validation \(trainer\.max_steps, "
    with pytest.raises(ValueError, match=wanted):
        stage.fit()


# Settings


def yard(tmp_path: Path, **counts: int) -> Yard:
    return Yard(tmp_path / "card.yaml", {"train": 4, **counts})


TRAINER = {
    "limit_val_batches": None,
    "check_val_every_n_epoch": 1,
    "max_epochs": 2,
    "val_check_interval": None,
}


def test_the_metrics_are_those_that_the_module_logs(qwen, tmp_path):
    class Names(Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self.found = {name for name in trainer.callback_metrics if name.startswith("val/")}

    names = Names()
    fit(qwen, tmp_path, names, counts={"train": 4, "val": 2})
    assert {*metric_names(CARD.classes)} <= names.found


@pytest.mark.parametrize("metric", metric_names(CARD.classes))
def test_settings_that_are_fine(tmp_path, metric):
    check_keep("best", metric, 2, yard(tmp_path, val=2), TRAINER)
    check_keep("last", metric, None, yard(tmp_path), TRAINER)


def test_metrics_of_a_scale(tmp_path):
    names = metric_names(CARD.classes, ordered=True)
    assert names == [*metric_names(CARD.classes), "val/mae", "val/mae/answer", "val/spearman"]
    data = yard(tmp_path, val=2)
    with pytest.raises(
        ValueError, match=r"^keep_metric is 'val/mae'; allowed are val/loss, val/ac"
    ):
        check_keep("best", "val/mae", 2, data, TRAINER)
    data.card = replace(CARD, values={"quiet": 1, "alarm": 2})
    for name in names:
        check_keep("best", name, 2, data, TRAINER)


@pytest.mark.parametrize(
    ("metric", "step"),
    [("val/mae", 2), ("val/mae/answer", 2), ("val/loss", 2), ("val/spearman", 1), ("val/f1/x", 1)],
)
def test_errors_are_best_where_they_are_smallest(tmp_path, metric, step):
    kept = BestWeights(tmp_path, metric)
    kept.scores = [{"step": 1, "score": 0.5}, {"step": 2, "score": 0.25}]
    assert kept.best == kept.scores[step - 1]


def test_no_validation_split(tmp_path):
    wanted = (
        r"^keep is best, but Yard has no validation split, and the best weights are never chosen "
        r"on test\. Set data\.val_fraction to carve one from the training clips, or keep to last\.$"
    )
    with pytest.raises(ValueError, match=wanted):
        check_keep("best", "val/loss", None, yard(tmp_path, test=4), TRAINER)


def test_an_unknown_metric(tmp_path):
    wanted = (
        r"^keep_metric is 'test/accuracy'; allowed are val/loss, val/accuracy, val/f1/macro, "
        r"val/f1/quiet, val/f1/alarm\.$"
    )
    with pytest.raises(ValueError, match=wanted):
        check_keep("best", "test/accuracy", None, yard(tmp_path, val=2), TRAINER)


def test_a_class_without_validation_clips(tmp_path):
    wanted = (
        r"^keep_metric is val/f1/alarm, but Yard has no validation clip of the class alarm\. "
        r"Choose another \(val/loss, "
    )
    with pytest.raises(ValueError, match=wanted):
        check_keep("best", "val/f1/alarm", None, yard(tmp_path, val=1), TRAINER)


def test_patience_without_keep(tmp_path):
    wanted = (
        r"^patience \(3\) ends a stage by its validation scores, but keep is last\. Add --keep "
        r"best, or leave patience out\.$"
    )
    with pytest.raises(ValueError, match=wanted):
        check_keep("last", "val/loss", 3, yard(tmp_path, val=2), TRAINER)


@pytest.mark.parametrize("change", [{"limit_val_batches": 0}, {"check_val_every_n_epoch": 3}])
def test_a_trainer_that_never_validates(tmp_path, change):
    wanted = r"^keep is best, but the Trainer is set to validate never: trainer\.limit_val_batches"
    with pytest.raises(ValueError, match=wanted):
        check_keep("best", "val/loss", None, yard(tmp_path, val=2), TRAINER | change)


def test_validation_by_the_clock(tmp_path):
    wanted = (
        r"^keep is best, but trainer\.val_check_interval is 00:00:15:00, a time: a run that is "
        r"started again would validate at other steps\. Give a share of an epoch or a number of "
    )
    change = {"val_check_interval": "00:00:15:00"}
    with pytest.raises(ValueError, match=wanted):
        check_keep("best", "val/loss", None, yard(tmp_path, val=2), TRAINER | change)


def test_the_file_holds_the_trainable_weights_alone(qwen, tmp_path, monkeypatch):
    stage = Stage(qwen, tmp_path, monkeypatch, SCORED)
    stage.settings["model"] = {"vision_learning_rate": 0.0}
    with pytest.raises(Killed):
        stage.fit(KillIn(4))
    kept = torch.load(stage.run.checkpoints("label") / BEST, weights_only=True)
    assert kept["weights"].keys()
    assert not [name for name in kept["weights"] if ".visual.blocks." in name]
    assert (kept["step"], kept["score"], kept["metric"]) == (2, 0.75, "val/accuracy")
    assert json.loads((stage.run.checkpoints("label") / SCORES).read_text())[-1]["step"] == 3


def test_metrics_of_clips_with_several_classes(tmp_path):
    pets = Pets(tmp_path, {"val": 4})
    for metric in ("val/loss", "val/f1/micro", "val/ap/macro", "val/f1/dog"):
        check_keep("best", metric, 2, pets, TRAINER)
    with pytest.raises(ValueError, match="no validation clip of the class bird"):
        check_keep("best", "val/f1/bird", None, pets, TRAINER)
    wanted = (
        r"^keep_metric is 'val/ap'; allowed are val/loss, val/accuracy, val/f1/macro, "
        r"val/f1/micro, val/ap/macro, val/f1/cat, val/f1/dog, val/f1/bird\.$"
    )
    with pytest.raises(ValueError, match=wanted):
        check_keep("best", "val/ap", None, pets, TRAINER)
