"""That every step of the method is handed the right thing; no weights are loaded or trained."""

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from safetensors.torch import load_file, save_file

import rbft.build
from rbft.backbone.adapters import weights_fingerprint
from rbft.backbone.loading import fingerprint
from rbft.build import Experiment, Objects
from rbft.callbacks.checks import TrainableParts
from rbft.callbacks.cut import CutRationales
from rbft.callbacks.handoff import StageHandoff
from rbft.callbacks.history import History
from rbft.callbacks.own_loggers import OwnLoggers
from rbft.callbacks.pictures import Pictures
from rbft.callbacks.predictions import PredictionWriter
from rbft.callbacks.progress import StepProgress
from rbft.callbacks.results import ResultsWriter
from rbft.callbacks.throughput import Throughput
from rbft.card import Card
from rbft.clip import Clip
from rbft.commands import score
from rbft.commands.export import export
from rbft.commands.fit import fit
from rbft.commands.predict import predict as predict_command
from rbft.commands.rationalize import rationalize
from rbft.data.base import Feed
from rbft.data.clip_files import ClipFiles
from rbft.data.content import describe_clips
from rbft.data.rationales import RationaleStore
from rbft.inputs import check_inputs
from rbft.method import Method
from rbft.module import RBFTModule
from rbft.rationale_module import RationaleModule, RationaleWriter
from rbft.run_end import one_of_several
from rbft.runs.folder import read_json
from rbft.runs.record import digest
from rbft.runtime.digests import LENGTH
from rbft.runtime.fault_tolerance import signals
from rbft.runtime.files import write_json
from rbft.runtime.lock import Lock
from rbft.stages import STAGES
from rbft.training.checkpoints import StepCheckpoint, WholeCheckpoints
from tests.examples import CARD, MODULE_SETTINGS, Yard

COUNTS = {"train": 4, "val": 2, "test": 2}
TRAIN, VAL = [f"train_{n}" for n in range(4)], ["val_0", "val_1"]
DESCRIBED = TRAIN + VAL


class Fence(Yard):
    """A benchmark whose facts a test may change."""

    def __init__(self, card_file: Path, bench: "Bench", **settings: Any) -> None:
        super().__init__(card_file, bench.counts, **settings)
        self.feed, self.bench = Feed(), bench
        self.notes = ["Two files are missing."]

    def read(self) -> list[Clip]:
        return [replace(clip, **self.bench.other.get(clip.id, {})) for clip in super().read()]

    def check(self, stages: Sequence[str]) -> None:
        self.bench.checked.append(list(stages))

    @cached_property
    def files(self) -> ClipFiles:
        made = super().files
        made.digest = self._digest  # type: ignore[method-assign]
        return made

    def _digest(self, clip: Clip) -> str:
        content = self.bench.contents.get(clip.id, clip.id)
        return hashlib.sha256(content.encode()).hexdigest()[:LENGTH]


@dataclass
class Step:
    """What one call of a Trainer was given."""

    what: str
    model: RBFTModule
    data: Fence
    trainer: Any
    given: dict[str, Any]  # to the Trainer
    options: dict[str, Any]  # of the call

    @property
    def name(self) -> str:
        stage = self.model.stage.name if isinstance(self.model, RBFTModule) else "rationale"
        return f"{self.what} {stage}"

    @property
    def stores(self) -> list[RationaleStore]:
        return list(self.callback(RationaleWriter).stores)

    @property
    def weights(self) -> str | None:
        weights = self.model.loader.weights
        return None if weights is None else str(weights)

    def callback(self, kind: type) -> Any:
        (found,) = (callback for callback in self.given["callbacks"] if isinstance(callback, kind))
        return found

    @property
    def kinds(self) -> list[type]:
        return [type(callback) for callback in self.given["callbacks"]]

    @property
    def texts(self) -> dict[str, str] | None:
        store = self.data.feed.rationales
        return None if store is None else store.texts()


class Planned(Experiment):
    """An experiment on the made-up benchmark."""

    def __init__(self, settings: Namespace, parser: Any) -> None:
        super().__init__(settings, parser)
        self.bench: Bench = parser.bench

    def as_yaml(self) -> str:
        settings = json.loads(json.dumps(self.settings.as_dict(), default=str))
        return yaml.safe_dump(settings, sort_keys=False)

    def data(self) -> "Fence":
        settings = self.settings.data.init_args.as_dict()
        return Fence(self.bench.folder / "card.yaml", self.bench, **settings)

    def objects(self) -> Objects:
        data, model = self.data(), self.settings.model
        own = ("stage", "weights", "answer", "quantize", "lora", "trust_remote_code")
        settings = {name: model[name] for name in (*own, *MODULE_SETTINGS)}
        module = RBFTModule(model.backbone, data.card, **settings)
        trainer = {"accelerator": "cpu", "devices": 1, "callbacks": None, "plugins": None}
        return Objects(data, module, trainer)

    # The commands

    def fit(self, ckpt_path: Path | None = None, **options: Any) -> None:
        fit(self, ckpt_path, **options)

    def rationalize(self, prompts: list[str] | None = None) -> None:
        rationalize(self, prompts)

    def score(self, split: str, weights: str) -> None:
        {"test": score.test, "val": score.validate}[split](self, weights)

    def export(self, output: Path, **options: Any) -> None:
        export(self, output, **options)

    def store(self) -> RationaleStore:
        """The rationale file as a command finds it."""
        return check_inputs(self).rationale_store()


class Bench:
    """Makes experiments, whose Trainers only note what they are asked to do."""

    def __init__(self, folder: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.steps, self.checked = folder, [], []  # type: ignore[var-annotated]
        self.steps: list[Step]
        self.checked: list[list[str]]
        self.counts = dict(COUNTS)
        self.other: dict[str, dict[str, Any]] = {}  # facts of clips
        self.contents: dict[str, str] = {}  # of videos
        self.broken: str | None = None  # the step that fails
        self.changes: dict[str, Any] = {
            "name": "run",
            "stages": ["rationale", "label"],
            "rationales_from": "backbone",
            "score_each_stage": True,
            "checkpoint_every": 7,
            "keep": "last",
            "keep_metric": "val/loss",
            "patience": None,
            "seed_everything": 5,
            "model.backbone": str(backbone),
            "model.trust_remote_code": False,
            "model.stage": None,
            "model.weights": None,
            "model.answer": "score",
            "model.quantize": None,
            "model.lora": None,
            **{f"model.{name}": value for name, value in MODULE_SETTINGS.items()},
            "data.class_path": "tests.Fence",
            "data.init_args.fps": 1.0,
            "data.init_args.rationale_prompt": "rationale",
            "data.init_args.rationale_ratio": 1.0,
            "data.init_args.rationale_file": None,
            "trainer.default_root_dir": str(folder / "logs"),
            "trainer.accelerator": "cpu",
            "trainer.devices": 1,
            "trainer.precision": "32-true",
            "trainer.strategy": "auto",
            "trainer.max_epochs": 3,
            "trainer.enable_progress_bar": None,
        }
        monkeypatch.setattr(rbft.build, "Trainer", self._trainer)

    def method(self, **changes: Any) -> Planned:
        """A command of its own; changed settings by dotted name, with __ for the dots."""
        self.changes |= {name.replace("__", "."): value for name, value in changes.items()}
        self.settings = Namespace()
        for name, value in self.changes.items():
            self.settings[name] = value
        self.steps.clear()
        return self._planned()

    def build_data(self) -> Fence:
        return self._planned().data()

    def _planned(self) -> Planned:
        parser: Any = LightningArgumentParser()
        parser.bench = self
        return Planned(self.settings, parser)

    def _trainer(self, **given: Any) -> Trainer:
        made: Any = Trainer(**given)
        drawn = torch.rand(1).item()
        for name in ("fit", "test", "predict"):
            setattr(made, name, self._note(name, made, given, drawn))
        return made

    def _note(self, what: str, trainer: Trainer, given: dict[str, Any], drawn: float) -> Any:
        def call(model: RBFTModule, datamodule: Any, **options: Any) -> None:
            step = Step(what, model, datamodule, trainer, given, {**options, "draw": drawn})
            self.steps.append(step)
            if self.broken == step.name:
                raise RuntimeError(step.name)
            getattr(self, f"_{what}")(step)

        return call

    def _fit(self, step: Step) -> None:
        """Leaves a folder as training does, with other weights than it began with."""
        handoff = step.callback(StageHandoff)
        shutil.copytree(step.model.loader.source, handoff.target)
        tensors = load_file(handoff.target / "model.safetensors")
        next(iter(tensors.values())).view(-1)[3] += 1
        save_file(tensors, handoff.target / "model.safetensors", {"format": "pt"})
        step.model.card.save(handoff.target / "card.yaml")
        for name, content in handoff.notes.items():
            write_json(handoff.target / name, content)
        write_json(handoff.target / "rbft.json", {**handoff.provenance, "steps": 11})

    def _test(self, step: Step) -> None:
        writer = step.callback(ResultsWriter)
        assert not writer.file.exists()
        metrics = {"accuracy": 0.25, "f1/quiet": 0.5, "f1/alarm": 0.75, "f1/macro": 0.625}
        counts = {"classes": {"quiet": 1, "alarm": 1}, "n_unparsed": 0, "n_scored": 2}
        rows = [
            {"id": name, "label": label, "prediction": "quiet", "probabilities": shares}
            for name, label, shares in (
                (f"{writer.split}_0", "quiet", {"quiet": 0.9, "alarm": 0.1}),
                (f"{writer.split}_1", "alarm", {"quiet": 0.7, "alarm": 0.3}),
            )
        ]
        lines = writer.file.with_name(f"{writer.file.stem}_predictions.jsonl")
        lines.parent.mkdir(parents=True, exist_ok=True)
        lines.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        facts = {**writer.facts, "split": writer.split}
        write_json(writer.file, {**facts, "metrics": metrics, **counts})

    def _predict(self, step: Step) -> None:
        clips = step.data.feed.predict_clips
        if isinstance(step.model, RationaleModule):
            for number, store in enumerate(step.callback(RationaleWriter).stores):
                how = {"finish": "length", "tokens": 3, "source": "self"}
                lines = [{"id": c.id, "rationale": f"{c.id} {number}.", **how} for c in clips]
                store.append(0, lines)
            return
        writer = step.callback(PredictionWriter)
        writer.on_predict_start(step.trainer, step.model)
        for clip in writer.todo:
            line = {"id": clip.id, "path": str(clip.path), "label": "quiet"}
            line["video"] = writer.videos[str(clip.path)]
            with writer.file.open("a") as stream:
                stream.write(f"{json.dumps(line)}\n")

    @property
    def run(self) -> Path:
        return self.folder / "logs/run"

    @property
    def names(self) -> list[str]:
        return [step.name for step in self.steps]


@pytest.fixture
def bench(tmp_path: Path, qwen: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, qwen, monkeypatch)


@pytest.fixture(scope="module")
def fitted_folder(backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("fitted")
        Bench(folder, backbones["qwen2_5_vl"], monkeypatch).method().fit(None)
    return folder


@pytest.fixture
def fitted(fitted_folder: Path, bench: Bench) -> Bench:
    """After a finished run."""
    shutil.copytree(fitted_folder, bench.folder, dirs_exist_ok=True)
    return bench


def weights_of(bench: Bench, stage: str) -> str:
    return str(bench.run / stage / "weights")


# The steps of a run


def test_the_steps_and_what_they_start_from(bench):
    bench.method().fit(None)
    first, second = weights_of(bench, "rationale"), weights_of(bench, "label")
    assert [(step.name, step.weights) for step in bench.steps] == [
        ("predict rationale", None),
        ("test label", None),
        ("fit rationale", None),
        ("test rationale", first),
        ("fit label", first),
        ("test label", second),
    ]
    assert bench.checked == [["rationale", "label"]]
    assert not signals.held


TWICE = {"stages": ["rationale", "rationale", "label"], "score_each_stage": False}


def test_the_backbone_writes_for_all_stages(bench):
    bench.method(**TWICE).fit(None)
    first, second = weights_of(bench, "rationale"), weights_of(bench, "rationale-2")
    assert [(step.name, step.weights) for step in bench.steps] == [
        ("predict rationale", None),
        ("fit rationale", None),
        ("fit rationale-2", first),
        ("fit label", second),
        ("test label", weights_of(bench, "label")),
    ]


def test_weights_write_for_the_stage_that_starts_from_them(bench):
    bench.method(**TWICE, rationales_from="previous").fit(None)
    first, second = weights_of(bench, "rationale"), weights_of(bench, "rationale-2")
    assert [(step.name, step.weights) for step in bench.steps] == [
        ("predict rationale", None),
        ("fit rationale", None),
        ("predict rationale", first),
        ("fit rationale-2", first),
        ("fit label", second),
        ("test label", weights_of(bench, "label")),
    ]
    made = read_json(Path(second) / "rbft.json")
    assert made["stages"] == ["rationale", "rationale-2"]
    assert made["writer"] == weights_fingerprint(Path(first), bench.settings.model.backbone)
    assert "writer" not in read_json(Path(first) / "rbft.json")
    files = {store.path for step in bench.steps if step.what == "predict" for store in step.stores}
    assert len(files) == 2
    # Ended between the two, it goes on with the second; ended while that trains, it writes no more.
    shutil.rmtree(Path(second).parent)
    shutil.rmtree(Path(weights_of(bench, "label")).parent)
    bench.method().fit(None)
    assert [step.name for step in bench.steps] == ["fit rationale-2", "fit label", "test label"]


def test_the_backbone_is_not_asked_for_what_other_weights_write(bench):
    """Labels first, then rationales of the weights that have learnt them; ended in between."""
    settings = {"stages": ["label", "rationale"], "rationales_from": "previous"}
    bench.broken = "fit rationale"
    with pytest.raises(RuntimeError):
        bench.method(**settings, score_each_stage=False).fit(None)
    shutil.rmtree(bench.folder / "logs/rationales")
    bench.broken, first = None, weights_of(bench, "label")
    bench.method().fit(None)
    assert [(step.name, step.weights) for step in bench.steps] == [
        ("predict rationale", first),
        ("fit rationale", first),
        ("test rationale", weights_of(bench, "rationale")),
    ]


def test_weights_that_are_given_write_too(bench):
    bench.method(score_each_stage=False).fit(None)
    given = weights_of(bench, "rationale")
    bench.method(
        name="more", stages=["rationale"], rationales_from="previous", model__weights=Path(given)
    ).fit(None)
    assert [(step.name, step.weights) for step in bench.steps][:2] == [
        ("predict rationale", given),
        ("fit rationale", given),
    ]


def test_what_training_is_handed(bench, capsys):
    bench.method().fit(None)
    described = describe_clips(bench.build_data())
    taught = {split: described[split] for split in ("train", "val")}
    digests = {split: digest(clips) for split, clips in taught.items()}
    backbone, card = fingerprint(bench.settings.model.backbone), CARD.digest
    first, second = (step for step in bench.steps if step.what == "fit")
    texts = {name: f"{name} 0." for name in DESCRIBED}
    for step, place, history in (
        (first, "rationale", ["rationale"]),
        (second, "label", ["rationale", "label"]),
    ):
        assert step.kinds == [
            TrainableParts,
            Throughput,
            History,
            CutRationales,
            LearningRateMonitor,
            StepCheckpoint,
            StageHandoff,
            StepProgress,
            Pictures,
        ]
        assert step.callback(LearningRateMonitor).logging_interval == "step"
        saves = step.callback(StepCheckpoint)
        assert saves.dirpath == str(bench.run / place / "checkpoints")
        assert saves._every_n_train_steps == 7
        handoff = step.callback(StageHandoff)
        assert str(handoff.target) == weights_of(bench, place)
        assert handoff.notes == {"clips.json": taught}
        made = handoff.provenance
        assert (made["stages"], made["backbone"]) == (history, backbone)
        assert (made["card"], made["clips"], made["run"]) == (card, digests, "run")
        assert made["backbone_name"] == bench.settings.model.backbone
        assert "base" not in made
        expected = {"backbone": backbone, "card": card}
        if step is first:
            known = digest({name: digest([text, True]) for name, text in texts.items()})
            assert made["rationale_texts"] == known
            expected["rationales"] = known
        else:
            assert "rationale_texts" not in made
            expected["starting weights"] = fingerprint(weights_of(bench, "rationale"))
        expected |= {"train clips": digests["train"], "val clips": digests["val"]}
        assert saves.made_from == expected
        assert (step.options["ckpt_path"], step.options["weights_only"]) == (None, True)
        assert step.given["enable_checkpointing"]
        assert step.trainer.accumulate_grad_batches == 4
    assert first.texts == texts
    assert second.data.feed.rationales is None
    out = capsys.readouterr().out
    assert f"Stage I (rationales): starting from {bench.settings.model.backbone}\n" in out
    assert f"Stage II (labels): starting from {weights_of(bench, 'rationale')}\n" in out
    assert out.count("Two files are missing.\n") == 1


def test_what_every_step_is_handed(bench, monkeypatch):
    seeds: list[Any] = []

    def seed(number: int, **how: Any) -> None:
        seeds.append((number, how))
        seed_everything(number, **how)

    monkeypatch.setattr("rbft.build.seed_everything", seed)
    bench.method().fit(None)
    assert all(seed == (5, {"workers": True, "verbose": False}) for seed in seeds)
    assert len(seeds) >= len(bench.steps)
    places = [None, "zero_shot", "rationale", "rationale", "label", "label"]
    titles = [
        "Stage 0 (writing rationales)",
        "Scoring test (zero_shot)",
        "Stage I (rationales)",
        "Scoring test (rationale)",
        "Stage II (labels)",
        "Scoring test (label)",
    ]
    for step, place, title in zip(bench.steps, places, titles, strict=True):
        assert step.callback(StepProgress).title == title
        assert step.given["enable_checkpointing"] == (step.what == "fit")
        assert not step.given["enable_model_summary"]
        (plugin,) = step.given["plugins"]
        assert isinstance(plugin, WholeCheckpoints)
        if place is None:
            assert step.given["logger"] is False
            assert step.options["return_predictions"] is False
            continue
        board, *tables = step.given["logger"]
        assert isinstance(board, TensorBoardLogger)
        assert board.log_dir == str(bench.run / place)
        assert not board._default_hp_metric
        assert tables == []
        if step.what == "fit":
            history = step.callback(History)
            assert (history.file, history.stage) == (bench.run / "history.csv", place)
        pictures = step.callback(Pictures)
        assert "checkpoint_every: 7\n" in pictures.settings
        trained = {"learning_rate": 1e-3, "epochs": 3}
        trained |= {"rationale_ratio": 1.0, "rationale_prompt": "rationale"}
        assert pictures.hparams == {
            "run": "run",
            "stage": place,
            "backbone": bench.settings.model.backbone,
            "benchmark": "Fence",
            "seed": 5,
            **({} if place == "zero_shot" else trained),
        }
    # Every step draws as if it were alone.
    (drawn,) = {step.options["draw"] for step in bench.steps}
    bench.method(name="other", seed_everything=6, trainer__enable_progress_bar=False).fit(None)
    assert not bench.steps[-1].callback(StepProgress).shown
    assert bench.steps[-1].options["draw"] != drawn


def test_a_row_of_a_stage_says_nothing_of_what_did_not_make_it(bench):
    """Direct-SFT has learnt no rationales; weights of another run were trained otherwise."""
    bench.method(stages=["label"]).fit(None)
    hparams = bench.steps[-1].callback(Pictures).hparams
    assert hparams["stage"] == "label"
    assert {"learning_rate", "epochs"} <= set(hparams)
    assert not {"rationale_ratio", "rationale_prompt"} & set(hparams)
    mine = bench.folder / "mine"
    shutil.copytree(weights_of(bench, "label"), mine)
    bench.method(stages=["label"]).score("test", str(mine))
    hparams = bench.steps[-1].callback(Pictures).hparams
    assert hparams["stage"].startswith("mine-")
    assert set(hparams) == {"run", "stage", "backbone", "benchmark", "seed"}


def test_what_scoring_is_handed(bench):
    bench.method().fit(None)
    described = describe_clips(bench.build_data())
    scored = [step for step in bench.steps if step.what == "test"]
    weights = [None, weights_of(bench, "rationale"), weights_of(bench, "label")]
    for step, place, folder in zip(
        scored, ("zero_shot", "rationale", "label"), weights, strict=True
    ):
        writer = step.callback(ResultsWriter)
        assert writer.file == bench.run / place / "test.json"
        assert writer.split == step.data.feed.scored_split == "test"
        assert step.model.trained_steps == (11 if folder else 0)
        assert step.options["verbose"] is False
        facts = dict(writer.facts)
        made = facts.pop("made")
        assert facts == {"run": "run", "stage": place, "weights": folder or "backbone"}
        assert made == {
            "frames": made["frames"],
            "answer": "score",
            "max_new_tokens": 6,
            "quantize": None,
            "precision": "32-true",
            "card": CARD.digest,
            "stage": "label",
            "weights": fingerprint(folder or bench.settings.model.backbone),
            "clips": digest(described["test"]),
        }
        assert made["frames"]["fps"] == 1.0


def test_the_table_at_the_end(bench, capsys):
    bench.method().fit(None)
    out = capsys.readouterr().out
    rows = ["majority class", "backbone, zero-shot", "Stage I (rationales) ", "Stage II (labels) "]
    places = [out.index(f"\n{row}") for row in rows]
    assert places == sorted(places)
    assert "Not in the table" not in out
    assert "Scored otherwise" not in out
    bench.method().fit(None)
    assert bench.steps == []
    assert [out.count(row) for row in rows] == [1] * 4


DECISION = {"decision": Namespace(positive="alarm", miss=9.0, false_alarm=1.0, recall=None)}


def test_a_threshold_is_chosen_on_the_validation_split(bench, capsys):
    bench.method(**DECISION).fit(None)
    assert bench.names[-2:] == ["test label", "test label"]
    assert [step.data.feed.scored_split for step in bench.steps[-2:]] == ["test", "val"]
    found = read_json(bench.run / "label/decision.json")
    assert (found["split"], found["chosen_on"], found["threshold"]) == ("val", "run/label", 0.2)
    assert found["weights"] == fingerprint(weights_of(bench, "label"))
    assert "'alarm' from a probability of 0.2 on (a miss costs 9" in capsys.readouterr().out
    assert not (bench.run / "rationale/decision.json").exists()
    bench.method().fit(None)
    assert bench.names == []
    # Costs may change at any time: nothing is trained or scored anew.
    bench.method(decision=Namespace(positive="quiet", recall=1.0)).fit(None)
    assert bench.names == []
    assert read_json(bench.run / "label/decision.json")["wanted"]["positive"] == "quiet"


def test_a_threshold_of_the_bare_backbone(bench):
    bench.method(stages=[], **DECISION).fit(None)
    assert bench.names == ["test label"] * 2
    assert read_json(bench.run / "zero_shot/decision.json")["weights"] == fingerprint(
        bench.settings.model.backbone
    )


def test_testing_chooses_a_threshold_too_and_validating_does_not(fitted):
    fitted.method(**DECISION).score("val", "run")
    assert not (fitted.run / "label/decision.json").exists()
    fitted.method().score("test", "run")
    assert fitted.names == ["test label"]  # what was validated is there
    assert (fitted.run / "label/decision.json").exists()


def test_no_threshold_can_be_chosen_without_a_validation_split(bench):
    bench.counts["val"] = 0
    with pytest.raises(ValueError, match=r"^decision needs a validation split with clips of both"):
        bench.method(**DECISION).fit(None)
    assert bench.names == []


def test_no_threshold_of_an_endpoint(bench):
    asked = Namespace(model="gpt-4o", urls=["http://localhost:1"])
    message = (
        "decision chooses a threshold for the probabilities of a backbone, not for endpoint.model "
        "gpt-4o. Add --decision null."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        bench.method(endpoint=asked, **DECISION).score("test", "run")


def test_predicting_and_exporting_use_the_threshold(fitted, monkeypatch, capsys):
    given = []
    monkeypatch.setattr(
        "rbft.commands.export.export_weights", lambda *_, threshold, **__: given.append(threshold)
    )
    fitted.method().export(fitted.folder / "before")
    fitted.method(**DECISION).fit(None)
    file = fitted.run / "label/decision.json"
    predict(fitted, decision=None)  # what was chosen is used, whatever the settings say
    assert fitted.steps[0].callback(PredictionWriter).threshold == ("alarm", 0.2)
    assert f"A video is 'alarm' from a probability of 0.2 on, see {file}." in (
        capsys.readouterr().out
    )
    made = read_json(fitted.folder / "out.provenance.json")
    assert made["decision"] == {"positive": "alarm", "threshold": 0.2}
    fitted.method().export(fitted.folder / "after")
    assert given == [None, file]
    message = (
        f"The threshold in {file} needs the probabilities of the classes, but model.answer is "
        "generate. Set it to score, or remove the file."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        predict(fitted, model__answer="generate")
    with pytest.raises(ValueError, match=r"\(decision\.positive: alarm -> None; "):
        predict(fitted, "backbone", model__answer="score")
    (fitted.folder / "out.jsonl").unlink()
    predict(fitted, "backbone")
    assert fitted.steps[0].callback(PredictionWriter).threshold is None
    write_json(file, {**read_json(file), "weights": "of an earlier fit"})
    with pytest.raises(ValueError, match=f"^The threshold in {re.escape(str(file))} was chosen"):
        fitted.method().export(fitted.folder / "again")


def test_a_run_that_scores_the_end_alone(bench):
    bench.method(score_each_stage=False).fit(None)
    assert bench.names == ["predict rationale", "fit rationale", "fit label", "test label"]


def test_zero_shot(bench):
    bench.method(stages=[], score_each_stage=False).fit(None)
    assert bench.names == ["test label"]
    assert (bench.run / "zero_shot/test.json").exists()


def test_labels_alone_need_no_rationales(bench):
    bench.method(stages=["label"]).fit(None)
    assert bench.names == ["test label", "fit label", "test label"]
    assert [step.weights for step in bench.steps] == [None, None, weights_of(bench, "label")]


def test_a_composition_is_asked_as_it_was_trained(bench):
    bench.method(stages=["rationale_class"]).fit(None)
    assert bench.names[-2:] == ["fit rationale_class", "test rationale_class"]
    made = bench.steps[-1].callback(ResultsWriter).facts["made"]
    assert made["stage"] == "rationale_class"
    # The bare backbone is asked for the class alone.
    assert bench.steps[1].callback(ResultsWriter).facts["made"]["stage"] == "label"


def test_a_stage_goes_on_from_its_newest_checkpoint(bench):
    bench.broken = "fit label"
    with pytest.raises(RuntimeError, match=r"^fit label$"):
        bench.method().fit(None)
    saved = bench.run / "label/checkpoints"
    saved.mkdir(parents=True)
    for step in (9, 10):
        (saved / f"step={step}.ckpt").touch()
    left = bench.run / "rationale/checkpoints"  # a kill came before they were tidied up
    left.mkdir()
    bench.broken = None
    bench.method().fit(None)
    assert bench.names == ["fit label", "test label"]
    assert bench.steps[0].options["ckpt_path"] == saved / "step=10.ckpt"
    assert not left.exists()


def test_a_checkpoint_that_is_named(bench):
    file = bench.folder / "mine.ckpt"
    torch.save({"rbft_stage": "label"}, file)
    bench.method(model__stage="label").fit(file)
    assert bench.steps[0].options["ckpt_path"] == file
    assert bench.names == ["fit label", "test label"]


def test_a_checkpoint_that_cannot_be_resumed(bench):
    file = bench.folder / "mine.ckpt"
    with pytest.raises(
        ValueError,
        match=r"^--ckpt_path resumes one stage, but this run has 2: rationale, label\. Add --model",
    ):
        bench.method().fit(file)
    with pytest.raises(ValueError, match=r"mine\.ckpt does not exist\. Leave it out: fit finds"):
        bench.method(model__stage="label").fit(file)
    file.mkdir()
    with pytest.raises(ValueError, match=r"mine\.ckpt is no checkpoint: it holds no meta\.pt\.$"):
        bench.method().fit(file)
    torch.save({"rbft_stage": "rationale"}, file / "meta.pt")
    with pytest.raises(ValueError, match=r"^The checkpoint is of stage 'rationale', this is stag"):
        bench.method().fit(file)
    assert bench.steps == []


# One stage alone


def test_one_stage_from_weights(fitted):
    given = fitted.run / "rationale/weights"
    fitted.method(name="alone", model__stage="label", model__weights=given).fit(None)
    assert [(step.name, step.weights) for step in fitted.steps] == [
        ("fit label", str(given)),
        ("test label", str(fitted.folder / "logs/alone/label/weights")),
    ]
    made = fitted.steps[0].callback(StageHandoff).provenance
    assert made["stages"] == ["rationale", "label"]
    assert made["backbone"] == fingerprint(fitted.settings.model.backbone)
    # What it was made from stands in the stage's folder: the run's other stages are others'.
    assert {path.name for path in (fitted.folder / "logs/alone").iterdir()} == {"label", "log.txt"}
    noted = read_json(fitted.folder / "logs/alone/label/record.json")
    assert noted["weights"] == fingerprint(str(given))


def test_one_stage_from_weights_of_others(bench, tmp_path):
    given = tmp_path / "theirs"
    shutil.copytree(bench.changes["model.backbone"], given)
    tensors = load_file(given / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] -= 1
    save_file(tensors, given / "model.safetensors", {"format": "pt"})
    bench.method(model__stage="label", model__weights=given).fit(None)
    made = bench.steps[0].callback(StageHandoff).provenance
    assert (made["stages"], made["backbone"]) == (["label"], fingerprint(str(given)))


def test_restart_throws_away_what_is_asked_for(fitted):
    fitted.method(model__stage="rationale", name="run").fit(None, restart=True)
    assert fitted.names == ["fit rationale", "test rationale"]
    assert (fitted.run / "label/weights").exists()
    fitted.method(model__stage=None).fit(None, restart=True)
    assert [name for name in fitted.names if "predict" not in name] == [
        "test label",
        "fit rationale",
        "test rationale",
        "fit label",
        "test label",
    ]
    assert "predict rationale" not in fitted.names  # the rationales are not the run's alone


def test_weights_that_are_no_weights(bench, tmp_path):
    with pytest.raises(ValueError, match=r"^model") as error:
        bench.method(model__weights=tmp_path, model__stage="label").fit(None)
    assert str(error.value) == (
        f"model.weights {tmp_path} is no weights folder: it holds no config.json. Give a folder "
        f"such as {weights_of(bench, 'rationale')}, or leave it out to start from the backbone."
    )


def test_given_weights_are_compared(fitted, capsys):
    """Other words are said, clips that they were trained on are not scored."""
    given = fitted.run / "rationale/weights"
    other = replace(CARD, words={"quiet": "calm", "alarm": "abnormal"})
    other.save(given / "card.yaml")
    alone = {"name": "alone", "model__stage": "label", "model__weights": given}
    fitted.method(**alone).fit(None)
    assert (
        f'model.weights {given} was trained with another card:\n  words.quiet: "calm" -> "normal"\n'
    ) in capsys.readouterr().out
    fitted.contents["test_1"] = "train_3"
    with pytest.raises(
        ValueError,
        match=r"rationale/weights was trained on 1 of the 2 test clips \(first: test_1\), so a ",
    ):
        fitted.method(**{**alone, "name": "more"}).fit(None)
    fitted.contents = {"val_0": "train_2"}
    with pytest.raises(ValueError, match=r"trained on 1 of the 2 val clips \(first: val_0\)"):
        fitted.method().fit(None)
    capsys.readouterr()
    fitted.method(data__init_args__on_leak="warn").fit(None)
    assert "so a score on them says nothing about others.\n" in capsys.readouterr().out


# Rationales


def test_only_clips_that_may_teach_are_described(bench, capsys):
    bench.method().fit(None)
    (step,) = (step for step in bench.steps if step.what == "predict")
    assert [clip.id for clip in step.data.feed.predict_clips] == DESCRIBED
    (file,) = (bench.folder / "logs/rationales").glob("*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["id"] for line in lines] == DESCRIBED
    # Those that were written are shown, up to three, and how many were cut off.
    out = capsys.readouterr().out
    assert [f"{name}: {name} 0.\n" in out for name in DESCRIBED] == [True] * 3 + [False] * 3
    assert "Stage 0: 6 of 6 rationales (100.0%) were cut off at model.max_new_tokens (6)" in out
    assert f"Stage 0: 6 rationales to write into {file}\n" in out
    assert "reused" not in out
    assert "do not say which video" not in out


def test_rationales_are_reused_and_added_to(bench, capsys):
    method = bench.method()
    method.rationalize()
    assert bench.names == ["predict rationale"]
    assert not bench.run.exists()
    bench.contents["train_1"] = "changed"
    capsys.readouterr()
    method = bench.method()
    method.rationalize()
    assert [clip.id for clip in bench.steps[0].data.feed.predict_clips] == ["train_1"]
    out = capsys.readouterr().out
    assert "Stage 0: 5 of 6 rationales reused from " in out
    assert "Stage 0: 1 rationales to write into " in out
    assert "train_1: train_1 0.\n" in out
    assert "train_0: " not in out
    method = bench.method()
    method.rationalize()
    assert bench.steps == []
    out = capsys.readouterr().out
    assert "Stage 0: 6 of 6 rationales reused from " in out
    assert "to write" not in out


def test_where_humans_write_all_the_backbone_writes_nothing(bench, capsys):
    method = bench.method(data__init_args__rationale_ratio=0.0)
    method.rationalize()
    assert bench.steps == []


def test_what_determines_the_rationale_file(bench):
    """Every change names another file; what decides nothing does not."""
    paths = [bench.method().store().path]
    assert paths[0].parent == bench.folder / "logs/rationales"
    assert paths[0].name.startswith("yard-qwen2_5_vl-rationale-")
    for change in (
        {"data__init_args__fps": 2.0},
        {"data__init_args__max_frames": 8},
        {"model__max_new_tokens": 5},
        {"data__init_args__rationale_prompt": "less"},
        {"model__quantize": "4bit"},
    ):
        paths.append(bench.method(**change).store().path)
    assert len(set(paths)) == len(paths)
    assert paths[-1].name.startswith("yard-qwen2_5_vl-4bit-less-")
    for change in ({"data__init_args__reader": "pyav"}, {"name": "other"}):
        assert bench.method(**change).store().path == paths[-1]
    Card.save(replace(CARD, prompts={**CARD.prompts, "less": "Walls?"}), bench.folder / "card.yaml")
    assert bench.method().store().path != paths[-1]


def test_what_the_rationale_file_knows_of_its_clips(bench):
    bench.other["train_2"] = {"start": 1.5, "end": 4.0}
    store = bench.method().store()
    assert list(store.clips) == DESCRIBED
    known = store.clips["train_2"]
    assert (known["start"], known["end"]) == (1.5, 4.0)
    data = bench.build_data()
    assert known["video"] == data.files.digest(data.clips("train")[2])
    asked = CARD.prompt("rationale", "Clip 2.").encode()
    assert known["prompt"] == hashlib.sha256(asked).hexdigest()[:16]
    assert not store.by_id
    file = bench.folder / "mine.jsonl"
    named = bench.method(data__init_args__rationale_file=file).store()
    assert named.path == file
    assert named.by_id
    made = named.provenance
    assert made["frames"]["fps"] == 1.0
    assert "reader" not in made["frames"]
    assert made["backbone"] == fingerprint(bench.settings.model.backbone)
    assert made["generation"]["max_new_tokens"] == 6
    assert made["prompt"] == CARD.prompt("rationale")


def test_a_rationale_file_of_other_frames_is_not_used(bench):
    file = bench.folder / "mine.jsonl"
    method = bench.method(data__init_args__rationale_file=file)
    method.rationalize()
    with pytest.raises(ValueError, match=r"frames\.fps: 1\.0 in the file, 2\.0 now"):
        bench.method(data__init_args__fps=2.0).store()


def test_several_prompts_in_one_pass(bench, capsys):
    method = bench.method()
    method.rationalize(["rationale", "less"])
    (step,) = bench.steps
    assert [card.prompts["rationale"] for card in step.model.cards] == [
        CARD.prompts["rationale"],
        CARD.prompts["less"],
    ]
    stores = step.callback(RationaleWriter).stores
    assert [store.path.name.rpartition("-")[0] for store in stores] == [
        "yard-qwen2_5_vl-rationale",
        "yard-qwen2_5_vl-less",
    ]
    assert [store.texts()["train_0"] for store in stores] == ["train_0 0.", "train_0 1."]
    out = capsys.readouterr().out
    assert "train_0, rationale: train_0 0.\n" in out
    assert "train_0, less: train_0 1.\n" in out
    assert "Stage 0, less: 6 of 6 rationales (100.0%) were cut off" in out
    assert bench.settings.data.init_args.rationale_prompt == "rationale"
    file = bench.folder / "mine.jsonl"
    method = bench.method(data__init_args__rationale_file=file)
    with pytest.raises(ValueError, match=r"^--prompts") as error:
        method.rationalize(["rationale", "less"])
    assert str(error.value) == (
        f"--prompts names 2 prompts, but data.rationale_file ({file}) is the file of one. Set it "
        "to null, or name one prompt."
    )
    method.rationalize(["less"])
    assert bench.names == ["predict rationale"]


def test_lines_that_do_not_say_their_video(bench, capsys):
    file = bench.folder / "mine.jsonl"
    how = {"finish": "stop", "tokens": 3, "source": "me"}
    lines = [{"id": name, "rationale": "So.", **how} for name in reversed(DESCRIBED)]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    bench.method(data__init_args__rationale_file=file, stages=["rationale"]).fit(None)
    assert bench.names[0] == "test label"
    out = capsys.readouterr().out
    assert (
        "6 of them do not say which video they are about and are taken by the clip's id (first: "
        "train_0).\n"
    ) in out
    assert "to write" not in out
    (step,) = (step for step in bench.steps if step.what == "fit")
    assert step.texts == dict.fromkeys(DESCRIBED, "So.")


def test_rationales_may_not_change_while_a_stage_is_interrupted(bench):
    file = bench.folder / "mine.jsonl"
    changes = {"data__init_args__rationale_file": file, "stages": ["rationale"]}
    bench.broken = "fit rationale"
    with pytest.raises(RuntimeError, match=r"^fit rationale$"):
        bench.method(**changes).fit(None)
    saved = bench.run / "rationale/checkpoints"
    saved.mkdir(parents=True)
    (saved / "step=3.ckpt").touch()
    whole = file.read_text()
    bench.broken = None
    # A text of a validation clip decides the loss that is logged.
    for before, after in (("val_1 0.", "Or not."), ('"finish": "length"', '"finish": "stop"')):
        file.write_text(whole.replace(before, after))
        with pytest.raises(ValueError, match=r"^Stage I ") as error:
            bench.method().fit(None)
        count, first = (1, "val_1") if "val" in before else (6, "train_0")
        assert str(error.value).startswith(
            f"Stage I (rationales) began with other rationales of {count} clips (first: {first}) "
            f"than {file} has now. Put them back as they were. Give the experiment another name"
        )
    file.write_text(whole)
    bench.method().fit(None)
    assert bench.names == ["fit rationale", "test rationale"]


# What a run was started with


def test_settings_bind_when_something_is_finished(bench, capsys):
    bench.broken = "fit rationale"
    with pytest.raises(RuntimeError, match=r"^fit rationale$"):
        bench.method().fit(None)
    (bench.run / "rationale/events").touch()
    capsys.readouterr()
    with pytest.raises(RuntimeError, match=r"^fit rationale$"):
        bench.method(model__learning_rate=0.5).fit(None)
    assert (
        "Nothing was finished with the settings of before; these have changed:\n"
        "  model.learning_rate: 0.001 -> 0.5\n"
    ) in capsys.readouterr().out
    assert not (bench.run / "rationale/events").exists()  # curves of other settings
    saved = bench.run / "rationale/checkpoints"
    saved.mkdir(parents=True)
    (saved / "step=3.ckpt").touch()
    with pytest.raises(ValueError, match=r"\n  model\.learning_rate: 0\.5 -> 0\.25\n"):
        bench.method(model__learning_rate=0.25).fit(None)
    assert bench.steps == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"other": {"test_0": {"label": 1}}}, "1 test clip has another label"),
        ({"contents": {"train_0": "x"}}, "1 train clip has another video"),
        ({"counts": {**COUNTS, "val": 3}}, "1 val clip came"),
    ],
)
def test_a_finished_run_is_of_these_clips(fitted, change, message):
    for name, value in change.items():
        setattr(fitted, name, value)
    with pytest.raises(ValueError, match=message):
        fitted.method().fit(None)
    assert fitted.steps == []


def test_a_stage_of_another_method_is_not_taken_over(fitted):
    shutil.rmtree(fitted.run / "rationale")
    (fitted.run / "label/weights").rename(fitted.run / "weights")
    (fitted.run / "rationale").mkdir()
    (fitted.run / "weights").rename(fitted.run / "rationale/weights")
    with pytest.raises(ValueError, match=r"is the result of the stages \['rationale', 'label'\]"):
        fitted.method().fit(None)


def test_stale_results_are_scored_anew(fitted, capsys):
    file = fitted.run / "label/test.json"
    expected = read_json(file)
    stale = {**expected["made"], "weights": "of an earlier fit"}
    write_json(file, {**expected, "made": stale, "n_scored": 98_765})
    fitted.method().fit(None)
    assert fitted.names == ["test label"]
    assert read_json(file)["made"] == expected["made"]
    assert "98765" not in capsys.readouterr().out


def test_one_command_at_a_time_owns_the_run(fitted):
    with Lock(fitted.run, "Run folder"):
        for command in (
            lambda: fitted.method().fit(None),
            lambda: fitted.method().score("test", "run"),
        ):
            with pytest.raises(ValueError, match=r"^Run folder .*/logs/run is in use"):
                command()
    assert fitted.steps == []


def test_one_command_at_a_time_owns_a_rationale_file(bench):
    """Two runs may share it."""
    other = bench.method(name="other")
    path = other.store().path
    refused = pytest.raises(ValueError, match=r"^Rationale file .*\.jsonl is in use")
    with Lock(path, "Rationale file"), refused:
        bench.method(name="run").fit(None)
    assert bench.steps == []


def test_a_global_batch_that_does_not_divide_is_found_first(bench):
    with pytest.raises(ValueError, match=r"^data\.global_batch_size \(4\) must be a multiple"):
        bench.method(data__init_args__batch_size=3).fit(None)
    assert bench.steps == []
    assert not bench.folder.joinpath("logs").exists()


# Scoring, predicting, exporting


def test_scoring_again(fitted, capsys):
    for weights, place, folder in (
        ("run", "label", weights_of(fitted, "label")),
        ("backbone", "zero_shot", None),
    ):
        fitted.method().score("test", weights)
        (step,) = fitted.steps
        assert (step.name, step.weights) == ("test label", folder)
        assert step.callback(ResultsWriter).file == fitted.run / place / "test.json"
        out = capsys.readouterr().out
        assert ("\nStage II (labels) " in out) == (place == "label")
        assert "backbone, zero-shot" in out
    other = weights_of(fitted, "rationale")
    fitted.method().score("val", other)
    (step,) = fitted.steps
    # Asked with the label's question, whatever made the weights.
    assert (step.name, step.weights) == ("test rationale", other)
    assert step.data.feed.scored_split == "val"
    place = f"weights-{fingerprint(other)[:8]}"
    assert step.callback(ResultsWriter).file == fitted.run / place / "val.json"


def test_the_folder_of_a_run_stands_for_its_last_weights(fitted):
    fitted.method(name="other").score("test", str(fitted.run))
    (step,) = fitted.steps
    assert (step.name, step.weights) == ("test label", weights_of(fitted, "label"))
    place = f"run-label-{fingerprint(weights_of(fitted, 'label'))[:8]}"
    assert step.callback(ResultsWriter).file == fitted.folder / "logs/other" / place / "test.json"
    shutil.rmtree(fitted.run / "label")
    fitted.method(name="other").score("test", str(fitted.run))
    assert fitted.steps[0].weights == weights_of(fitted, "rationale")
    shutil.rmtree(fitted.run / "rationale")
    message = (
        f"The run {fitted.run} has no finished stage (rationale, label). Run fit first, or give "
        "--weights backbone or a weights folder."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        fitted.method(name="other").score("test", str(fitted.run))


def test_scoring_in_another_way_stands_beside_the_run_s_own(fitted, capsys):
    own = (fitted.run / "label/test.json").read_bytes()
    fitted.method(data__init_args__fps=2.0).score("test", "run")
    (step,) = fitted.steps
    made = step.callback(ResultsWriter).facts["made"]
    file = fitted.run / f"label/test-{digest(made)[:8]}.json"
    assert step.callback(ResultsWriter).file == file
    assert (fitted.run / "label/test.json").read_bytes() == own
    out = capsys.readouterr().out
    assert f"Scored otherwise than the run itself: the results are in {file}.\n" in out
    assert "\nStage II (labels) " in out
    assert (
        "Not in the table: backbone, zero-shot, which was scored on other clips, frames or words, "
        f"or in another way; see {fitted.run / 'zero_shot'}.\n"
    ) in out


def test_what_cannot_be_scored(bench):
    with pytest.raises(ValueError, match=r"^The run") as error:
        bench.method().score("test", "run")
    assert str(error.value) == (
        f"The run {bench.run} has no finished stage (rationale, label). Run fit first, or give "
        "--weights backbone or a weights folder."
    )
    with pytest.raises(ValueError, match=r"^--weights") as error:
        bench.method().score("test", str(bench.folder))
    assert str(error.value).startswith(f"--weights {bench.folder} is no weights folder of rbft: ")
    bench.counts["val"] = 0
    with pytest.raises(ValueError, match=r"^Fence has no val split\. Set data\.val_fraction to "):
        bench.method().score("val", "backbone")


def test_clips_that_taught_are_not_scored(fitted):
    fitted.contents = {"val_0": "train_2", "val_1": "train_0"}
    with pytest.raises(ValueError, match=r"^weights folder") as error:
        fitted.method().score("val", "run")
    assert str(error.value) == (
        f"weights folder {weights_of(fitted, 'label')} was trained on 2 of the 2 val clips (first: "
        "val_0, val_1), so a score on them says nothing about others. Give the splits that it was "
        "trained with (data.val_fraction, data.seed, the split lists), or set data.on_leak to warn "
        "to score them anyway."
    )
    fitted.method(data__init_args__on_leak="warn").score("val", "run")
    assert fitted.names == ["test label"]


def test_weights_of_before_the_record_are_scored_with_a_word(fitted, capsys):
    folder = fitted.run / "label/weights"
    (folder / "clips.json").unlink()
    (folder / "card.yaml").unlink()
    fitted.method().score("test", "run")
    out = capsys.readouterr().out
    assert f"weights folder {folder} does not say which clips it was trained on.\n" in out


def predict(bench: Bench, weights: str = "run", rationale: bool = False, **changes: Any) -> None:
    videos = [bench.folder / f"{number}.mp4" for number in range(3)]
    for video in videos:
        video.touch()
    method = bench.method(**changes)
    predict_command(method, videos, bench.folder / "out.jsonl", weights, rationale)


def test_what_predicting_is_handed(fitted, capsys):
    predict(fitted)
    (step,) = fitted.steps
    assert (step.name, step.weights) == ("predict label", weights_of(fitted, "label"))
    assert step.options["return_predictions"] is False
    assert [clip.path.name for clip in step.data.feed.predict_clips] == ["0.mp4", "1.mp4", "2.mp4"]
    assert step.callback(StepProgress).title == "Predicting 3 videos"
    assert step.data.feed.collators["predict"].extra_prompts == ()
    assert step.callback(PredictionWriter).classes == ["quiet", "alarm"]
    output = fitted.folder / "out.jsonl"
    expected = f"Wrote 3 predictions to {output} and {output.with_suffix('.csv')}.\n"
    assert expected in (out := capsys.readouterr().out)
    assert "cannot be decoded" not in out
    assert fitted.checked == []  # the benchmark's own files need not be there
    predict(fitted)
    assert fitted.steps == []
    assert f"3 of 3 videos stand in {output} already.\n" in capsys.readouterr().out
    step.data.feed.predict_clips[1].path.write_bytes(b"another video at the same place")
    predict(fitted)
    assert [clip.path.name for clip in fitted.steps[0].data.feed.predict_clips] == ["1.mp4"]
    assert "2 of 3 videos stand in" in capsys.readouterr().out


def test_weights_of_stage_one_are_asked_for_the_class(fitted):
    predict(fitted, weights_of(fitted, "rationale"), rationale=True)
    (step,) = fitted.steps
    assert step.name == "predict label"
    assert step.data.feed.collators["predict"].extra_prompts == ((STAGES["rationale"], CARD),)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"data__init_args__fps": 2.0}, r"frames\.fps: 1\.0 -> 2\.0"),
        ({"model__answer": "generate"}, "answer: score -> generate"),
        ({"trainer__precision": "bf16-mixed"}, "precision: 32-true -> bf16-mixed"),
        ({"weights": "backbone"}, "weights: "),
        ({"rationale": True}, "rationale: False -> True"),
    ],
)
def test_predictions_are_not_continued_in_another_way(fitted, change, what):
    predict(fitted)
    with pytest.raises(ValueError, match=rf"holds predictions that were made otherwise \({what}"):
        predict(fitted, **change)
    assert fitted.steps == []


def test_predictions_are_not_continued_in_other_words(fitted):
    predict(fitted, "backbone")
    card = replace(CARD, words={"quiet": "calm", "alarm": "abnormal"})
    card.save(fitted.folder / "card.yaml")
    with pytest.raises(ValueError, match=r"holds predictions that were made otherwise \(card: "):
        predict(fitted, "backbone")
    with pytest.raises(
        ValueError,
        match=r"was trained with other words than it would be asked with:\n  words\.quiet: ",
    ):
        predict(fitted)
    assert fitted.steps == []


@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        ("fsdp", "fsdp"),
        ("fsdp_cpu_offload", "fsdp_cpu_offload"),
        (Namespace(class_path="lightning.pytorch.strategies.FSDPStrategy"), "FSDPStrategy"),
    ],
)
def test_older_fsdp_is_refused_before_anything_is_built(bench, monkeypatch, strategy, name):
    method = bench.method(trainer__strategy=strategy)
    monkeypatch.setattr(Planned, "objects", lambda _: pytest.fail("built"))
    with pytest.raises(ValueError, match=rf"^trainer\.strategy is {name}, torch's older FSDP: "):
        method.fit(None)


def test_exporting_a_split(fitted, capsys):
    for answers, texts in (("label", ["normal", "abnormal"]), ("rationale", ["train_0 0."])):
        output = fitted.folder / f"{answers}.json"
        fitted.method().export(output, format="llava", answers=answers)
        rows = read_json(output)
        said = [row["conversations"][1]["value"] for row in rows]
        assert said[: len(texts)] == texts
        assert capsys.readouterr().out == (
            f"Wrote 4 train clips with {answers}s as answers to {output}.\n"
        )


def test_exporting_weights(fitted, monkeypatch, capsys):
    told: list[Any] = []
    monkeypatch.setattr(
        "rbft.commands.export.export_weights",
        lambda *given, threshold, trust: told.append((*given, threshold, trust)),
    )
    output, folder = fitted.folder / "mine", Path(weights_of(fitted, "label"))
    fitted.method().export(output, dtype="bfloat16")
    assert told == [(folder, fitted.settings.model.backbone, output, "bfloat16", None, False)]
    assert capsys.readouterr().out == f"Exported {folder} to {output}.\n"
    fitted.method(model__trust_remote_code=True).export(output)
    assert told[-1][-1] is True
    with pytest.raises(ValueError, match=r"^--weights backbone has nothing to export: it is the "):
        fitted.method().export(output, weights="backbone")


def test_the_dry_run_writes_nothing(bench, monkeypatch, capsys):
    plans: list[Any] = []
    monkeypatch.setattr(
        "rbft.commands.fit.report", lambda *given: plans.append(given) or "The plan."
    )
    bench.method().fit(None, dry_run=True, gpu_gb=24.0)
    ((plan, name, memory),) = plans
    assert (name, memory) == ("run", 24.0)
    assert (plan.stages, plan.whole, plan.score_each) == (["rationale", "label"], True, True)
    assert plan.scored == set()
    assert "The plan.\n" in capsys.readouterr().out
    assert bench.steps == []
    assert not (bench.folder / "logs").exists()


def test_the_dry_run_of_a_finished_run(fitted, monkeypatch):
    plans: list[Any] = []
    monkeypatch.setattr(
        "rbft.commands.fit.report", lambda *given: plans.append(given) or "The plan."
    )
    fitted.method().fit(None, dry_run=True)
    assert plans[0][0].scored == {"zero_shot", "rationale", "label"}
    with pytest.raises(ValueError, match=r"\n  model\.weight_decay: 0\.1 -> 0\.2\n"):
        fitted.method(model__weight_decay=0.2).fit(None, dry_run=True)
    fitted.method().fit(None, restart=True, dry_run=True)
    assert (fitted.run / "label/weights").exists()
    shutil.rmtree(fitted.run / "label")
    fitted.method(model__weight_decay=0.1, model__stage="rationale", name="x").fit(
        None, dry_run=True
    )
    assert plans[-1][0].whole is False


def test_processes_meet_before_a_run_is_begun_anew(bench, monkeypatch):
    """None reads the folder that the first one is still removing; there may be none yet."""
    told: list[str] = []
    check = Method.check_record
    monkeypatch.setattr("rbft.method.wait_for_all", lambda *_: told.append("met"))
    monkeypatch.setattr("rbft.stage_zero.wait_for_all", lambda *_: None)
    monkeypatch.setattr(
        Method, "check_record", lambda method: (told.append("checked"), check(method))
    )
    bench.method(stages=[]).fit(None, restart=True)
    assert told == ["met", "checked"]
    bench.method().fit(None)
    assert told[2:] == ["checked"]


# Loggers of the user


def test_a_stage_logs_beside_tensorboard(bench):
    """Each step with a logger of its own, which knows the run and the stage."""
    made = []

    def objects(experiment: Planned) -> Objects:
        logger = experiment.settings.trainer.get("logger")
        given = CSVLogger(**logger.init_args.as_dict()) if isinstance(logger, Namespace) else logger
        made.append(given)
        found = plain(experiment)
        return replace(found, trainer={**found.trainer, "logger": given})

    plain = Planned.objects
    csv = Namespace(class_path="lightning.pytorch.loggers.CSVLogger", init_args=Namespace())
    csv.init_args["save_dir"] = str(bench.folder / "csv")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Planned, "objects", objects)
        bench.method(trainer__logger=csv).fit(None)
    names = []
    for step in bench.steps:
        if step.what == "predict":
            assert step.given["logger"] is False
            continue
        board, given = step.given["logger"]
        assert isinstance(board, TensorBoardLogger)
        names.append(given.name)
        assert OwnLoggers in step.kinds
        assert step.callback(OwnLoggers).loggers == [given]
        hparams = step.callback(OwnLoggers).hparams
        assert (hparams["run"], f"run/{hparams['stage']}") == ("run", given.name)
    stages = ["zero_shot", "rationale", "rationale", "label", "label"]
    assert names == [f"run/{stage}" for stage in stages]
    used = [id(step.given["logger"][1]) for step in bench.steps if step.what != "predict"]
    assert len(set(used)) == len(used)


@pytest.mark.parametrize("several", [False, True])
def test_a_logger_that_cannot_be_made(bench, monkeypatch, several):
    """With the words that jsonargparse finds for it, as one line."""
    said = (
        "Does not validate against any of the Union subtypes\nErrors:\n  - Problem with given "
        "class_path 'loggers.WandbLogger':\n      Requirement 'wandb>=0.12.10' not met.\n  - "
        "Expected a <class 'bool'>"
    )

    def missing(*_: Any) -> Any:
        raise ValueError(said)

    logger: Any = Namespace(class_path="loggers.WandbLogger")
    method = bench.method(trainer__logger=[logger] if several else logger)
    monkeypatch.setattr(LightningArgumentParser, "instantiate_classes", missing)
    wanted = (
        r"^trainer\.logger names WandbLogger, which cannot be made: Requirement 'wandb>=0\.12\.10' "
        r"not met\. Install or correct what it needs, or leave it out: TensorBoard is always "
        r"written\.$"
    )
    with pytest.raises(ValueError, match=wanted):
        Experiment.objects(method)
    with pytest.raises(ValueError, match=r"^Problem with given class_path"):  # no logger's fault
        Experiment.objects(bench.method(trainer__logger=None))


def test_each_step_knows_what_comes_after_it(bench, monkeypatch):
    """So that its progress line tells the time that is left of the whole run."""
    seen: list[tuple[str, dict[str, int]]] = []

    class Seen(StepProgress):
        def __init__(self, title: str, pace: Any, **how: Any) -> None:
            super().__init__(title, pace, **how)
            seen.append((title, dict(pace.ahead)))

    monkeypatch.setattr("rbft.build.StepProgress", Seen)
    bench.method().fit(None)
    data = bench.build_data()
    train, test = (len(data.clips(split)) for split in ("train", "test"))
    assert seen == [
        ("Stage 0 (writing rationales)", {"score": 3 * test, "train": 6 * train}),  # three epochs
        ("Scoring test (zero_shot)", {"train": 6 * train, "score": 2 * test}),
        ("Stage I (rationales)", {"score": 2 * test, "train": 3 * train}),
        ("Scoring test (rationale)", {"train": 3 * train, "score": test}),
        ("Stage II (labels)", {"score": test}),
        ("Scoring test (label)", {}),
    ]
    # What is finished is not counted; the answers of P+R+C are texts that must be written.
    seen.clear()
    shutil.rmtree(bench.run / "label")
    bench.method().fit(None)
    assert seen == [("Stage II (labels)", {"score": test}), ("Scoring test (label)", {})]
    seen.clear()
    bench.method(name="other", stages=["rationale_class"], score_each_stage=False).fit(None)
    assert seen == [("P+R+C (Table 3)", {"answer": test}), ("Scoring test (rationale_class)", {})]


def test_the_end_says_where_how_long_and_what_comes_next(bench, capsys):
    def end() -> list[str]:
        return capsys.readouterr().out.splitlines()[-6:]

    bench.method().fit(None)
    logs, run = bench.folder / "logs", bench.run
    place, clips, *following = end()
    assert place == f"Everything is in {run} (log.txt)."  # nothing was really trained
    # The clips of this benchmark have no files.
    lost = r"8 lost \(rbft scan lists them\)"
    assert re.fullmatch(rf"Clips: 4 to train, 2 to test, {lost}\. It took 0:\d\d\.", clips)
    assert following == [
        "Next:",
        f"  python -m rbft predict --weights {run} --videos FOLDER",
        f"  python -m rbft report --logs {logs}",
        f"  tensorboard --logdir {logs}",
    ]
    # An earlier start, of two minutes; then one in which nothing is left to do.
    write_json(run / "usage/1-00000000.json", {"training": {"seconds": 120.0}})
    bench.method().fit(None)
    assert re.search(r" It took 2:0\d\.$", end()[1])
    shutil.rmtree(run / "label")
    bench.method().fit(None)
    assert re.search(r" It took 0:\d\d, 2:\d\d with the starts before\.$", end()[1])
    # A stage alone: the run's folder does not stand for its weights.
    given = run / "rationale/weights"
    bench.method(name="alone", model__stage="label", model__weights=given).fit(None)
    weights = logs / "alone/label/weights"
    assert end()[3] == f"  python -m rbft predict --weights {weights} --videos FOLDER"


def test_where_runs_are_parts_of_something_it_says_what_comes_next(bench, capsys):
    with one_of_several():
        bench.method().fit(None)
    assert "Next:" not in capsys.readouterr().out
