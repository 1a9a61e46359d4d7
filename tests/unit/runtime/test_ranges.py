"""Every number that a user can set has a range, and the command line checks it."""

import inspect
import math
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from lightning.pytorch import Trainer

from rbft.analysis.thresholds import Wanted
from rbft.backbone.adapters import LoRA
from rbft.cli import BENCHMARKS, _run
from rbft.commands import COMMANDS, find_command
from rbft.data.base import VideoDataModule
from rbft.data.videofolder import VideoFolder
from rbft.engines.settings import EndpointSettings
from rbft.inference.sampling import RationaleSampling, SelfConsistency
from rbft.masking.settings import Masking
from rbft.module import RBFTModule
from rbft.rationales.quality import QualityRules
from rbft.runtime.ranges import RANGES, Range, check_ranges
from tests.examples import CARD, DATA_SETTINGS, MODULE_SETTINGS, Yard

CLASSES = {
    "model.": [RBFTModule],
    "data.": [VideoDataModule, *BENCHMARKS],
    "data.rationale_rules.": [QualityRules],
    "data.masking.": [Masking],
    "model.rationale_sampling.": [RationaleSampling],
    "model.self_consistency.": [SelfConsistency],
    "model.lora.": [LoRA],
    "endpoint.": [EndpointSettings],
    "decision.": [Wanted],
    "trainer.": [Trainer],
}
TOP = {"checkpoint_every", "cpu_threads", "patience", "seed_everything", "gpu_gb"}
SEED = "must be from 0 to 4294967295."
CACHE = "must be 0 or more; GB; 0 keeps nothing."
NULL = "must be 0 or more."
ONE = "must be 1 or more."
SHARE = "must be from 0 to 1."
SHARE_OR_NULL = "must be from 0 to 1; null allows all."
NO_LIMIT = "must be 0 or more; null sets no limit."
TO_SERVER = "must be 0 or more; 0 takes the likeliest token, null leaves it to the server."
LOGPROBS = "must be from 0 to 20; 0 asks for none."
# A value that is out of range, and what is said of it.
WRONG: dict[str, tuple[float, str]] = {
    "checkpoint_every": (0, "must be 1 or more; it counts optimiser steps."),
    "cpu_threads": (0, "must be 1 or more; null leaves it to torch."),
    "seeds": (0, ONE),
    "first_seed": (-1, "must be from 0 to 4294967295."),
    "patience": (0, "must be 1 or more; it counts validations; null goes through all epochs."),
    "seed_everything": (-1, SEED),
    "gpu_gb": (0, "must be above 0; it is the GPU's memory in GiB."),
    "repeats": (0, ONE),
    "every": (0, "must be above 0; it is seconds of video time; null takes whole videos."),
    "window": (0, "must be above 0; it is seconds of video time; null is as long as every."),
    "port": (0, "must be from 1 to 65535; it is a port of this machine."),
    "max_mb": (0, "must be above 0; it is megabytes."),
    "masked_share": (1, "must be 0 or more and below 1; 0 masks nothing."),
    "pictures": (-1, NULL),
    "seed": (-1, SEED),
    "objects": (0, "must be 1 or more; it is the most boxes of a frame."),
    "threshold": (1.5, SHARE),
    "text_threshold": (-0.5, SHARE),
    "texts": (0, "must be 1 or more; null takes all."),
    "temperature": (-0.5, TO_SERVER),
    "top_logprobs": (21, LOGPROBS),
    "decision.miss": (0, "must be above 0; only its ratio to decision.false_alarm counts."),
    "decision.false_alarm": (-1, "must be above 0; only its ratio to decision.miss counts."),
    "decision.recall": (
        1.5,
        "must be above 0 and at most 1; 1 finds all, whatever the false alarms.",
    ),
    "endpoint.side": (0, ONE),
    "endpoint.temperature": (-1, TO_SERVER),
    "endpoint.top_logprobs": (-1, LOGPROBS),
    "endpoint.concurrency": (0, ONE),
    "endpoint.attempts": (0, ONE),
    "endpoint.timeout": (0, "must be above 0; it is seconds."),
    "endpoint.requests_per_minute": (0, "must be 1 or more; null sets no limit."),
    "endpoint.tokens_per_minute": (0, "must be 1 or more; null sets no limit."),
    "endpoint.max_requests": (-1, NO_LIMIT),
    "endpoint.max_tokens": (-1, NO_LIMIT),
    "endpoint.max_money": (-0.5, NO_LIMIT),
    "data.fps": (0, "must be above 0; it is frames per second of video time."),
    "data.image_fps": (0, "must be above 0; it is images per second."),
    "data.num_frames": (1, "must be 2 or more; null samples by data.fps."),
    "data.min_pixels": (-1, NULL),
    "data.max_pixels": (783, "must be 784 or more; a token shows 28 x 28 pixels."),
    "data.min_frames": (-1, NULL),
    "data.max_frames": (1, "must be 2 or more; a token shows two frames."),
    "data.batch_size": (0, ONE),
    "data.global_batch_size": (0, ONE),
    "data.eval_batch_size": (0, ONE),
    "data.num_workers": (-1, "must be 0 or more; 0 decodes in the process that trains."),
    "data.val_fraction": (1, "must be 0 or more and below 1; 0 trains on all training clips."),
    "data.rationale_ratio": (1.5, SHARE),
    "data.min_coverage": (-0.5, SHARE),
    "data.rationale_rules.min_words": (-1, "must be 0 or more; null sets no bound."),
    "data.rationale_rules.max_words": (0, "must be 1 or more; null sets no bound."),
    "data.rationale_rules.min_tokens": (-1, "must be 0 or more; null sets no bound."),
    "data.rationale_rules.max_tokens": (0, "must be 1 or more; null sets no bound."),
    "data.rationale_rules.max_repetition": (1.5, SHARE_OR_NULL),
    "data.rationale_rules.repetition_ngram": (0, ONE),
    "data.rationale_rules.min_script_share": (-0.5, SHARE_OR_NULL),
    "data.rationale_rules.max_similarity": (0, "must be above 0 and at most 1; null allows all."),
    "data.rationale_rules.similarity_ngram": (0, ONE),
    "data.label_share": (1.5, SHARE),
    "data.vague_share": (1.5, SHARE),
    "data.masking.repeats": (0, ONE),
    "data.masking.seed": (-1, SEED),
    "data.masking.repeat": (-1, "must be 0 or more; draws are counted from 0; null scores all."),
    "data.frame_cache_gb": (-1, CACHE),
    "data.feature_cache_gb": (-0.25, CACHE),
    "data.seed": (2**32, SEED),
    "data.split_seed": (-1, SEED),
    "data.test_fraction": (1.25, SHARE),
    "data.train_size": (0, ONE),
    "data.val_size": (-1, NULL),
    "data.test_size": (0, ONE),
    "data.clip_seed": (-1, SEED),
    "model.learning_rate": (-1, "must be 0 or more; 0 freezes the language model."),
    "model.merger_learning_rate": (-1e-5, "must be 0 or more; 0 freezes the merger."),
    "model.vision_learning_rate": (-2, "must be 0 or more; 0 freezes the vision tower."),
    "model.weight_decay": (-0.1, NULL),
    "model.warmup_ratio": (1.5, SHARE),
    "model.gradient_checkpointing": (1.5, "must be from 0 to 1; true is all blocks, false none."),
    "model.max_new_tokens": (0, ONE),
    "model.answer_weight": (0, "must be above 0; 1 weighs all tokens alike."),
    "model.self_consistency.temperature": (
        0,
        "must be 0.01 or more; model.self_consistency null takes the likeliest token.",
    ),
    "model.self_consistency.top_p": (
        0,
        "must be above 0 and at most 1; 1 draws from all tokens.",
    ),
    "model.self_consistency.top_k": (-1, "must be 0 or more; 0 draws from all tokens."),
    "model.self_consistency.samples": (0, ONE),
    "model.self_consistency.seed": (-1, SEED),
    "model.rationale_sampling.temperature": (
        0,
        "must be 0.01 or more; model.rationale_sampling null takes the likeliest token.",
    ),
    "model.rationale_sampling.top_p": (
        0,
        "must be above 0 and at most 1; 1 draws from all tokens.",
    ),
    "model.rationale_sampling.top_k": (-1, "must be 0 or more; 0 draws from all tokens."),
    "model.rationale_sampling.samples": (0, ONE),
    "model.rationale_sampling.seed": (-1, SEED),
    "model.lora.rank": (0, ONE),
    "model.lora.alpha": (0, ONE),
    "model.lora.dropout": (1, "must be 0 or more and below 1."),
    "trainer.devices": (0, "must be 1 or more, or -1; -1 takes all that are present."),
    "trainer.num_nodes": (0, ONE),
    "trainer.max_epochs": (
        -1,
        "must be 1 or more; rbft trains no stage for 0 epochs, nor without an end.",
    ),
    "trainer.min_epochs": (-1, NULL),
    "trainer.max_steps": (
        0,
        "must be 1 or more, or -1; -1 sets no limit beside trainer.max_epochs.",
    ),
    "trainer.min_steps": (-1, NULL),
    "trainer.limit_train_batches": (0, "must be above 0; null takes all batches."),
    "trainer.limit_val_batches": (-1, NULL),
    "trainer.limit_test_batches": (-1, NULL),
    "trainer.limit_predict_batches": (-1, NULL),
    "trainer.overfit_batches": (-1, NULL),
    "trainer.fast_dev_run": (-1, NULL),
    "trainer.val_check_interval": (0, "must be above 0."),
    "trainer.check_val_every_n_epoch": (0, ONE),
    "trainer.num_sanity_val_steps": (-2, "must be 0 or more, or -1; -1 takes all batches."),
    "trainer.log_every_n_steps": (0, "must be 1 or more; it counts optimiser steps."),
    "trainer.accumulate_grad_batches": (0, ONE),
    "trainer.gradient_clip_val": (-1, "must be 0 or more; 0 and null do not clip."),
    "trainer.reload_dataloaders_every_n_epochs": (-1, NULL),
}


def kinds(annotation: Any) -> set[Any]:
    """The types of a union, without what stands in a Literal or a container."""
    if get_origin(annotation) in (Union, types.UnionType):
        return set().union(*map(kinds, get_args(annotation)))
    return set() if get_origin(annotation) is Literal else {annotation}


def numbers(made: Any) -> set[str]:
    """Names of the parameters that take a number."""
    parameters = inspect.signature(made).parameters.values()
    return {p.name for p in parameters if kinds(p.annotation) & {int, float}}


def typed(made: Any, name: str, value: float) -> dict[str, Any]:
    """The value as the parameter's annotation has it, as the parser makes it."""
    whole = int in kinds(inspect.signature(made).parameters[name].annotation)
    return {name: value if whole else float(value)}


def all_numbers() -> set[str]:
    found = {
        f"{prefix}{name}"
        for prefix, classes in CLASSES.items()
        for one in classes
        for name in numbers(one)
    }
    commands = map(find_command, COMMANDS)
    return found | TOP | {name for command in commands for name in numbers(command)}


def test_every_number_has_a_range_and_every_range_a_number():
    assert "model.learning_rate" in all_numbers()
    assert all_numbers() == set(RANGES) == set(WRONG)


def refusal(name: str) -> str:
    value, said = WRONG[name]
    return f"{name} ({value:.10g}) {said}"


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_number_is_infinite_or_none(name, bad):
    said = WRONG[name][1]
    with pytest.raises(ValueError, match="must be") as error:
        check_ranges("", {name: bad})
    assert str(error.value) == f"{name} ({bad}) {said}"


OF_DATA = [name for name in WRONG if name.startswith("data.") and name.count(".") == 1]


@pytest.mark.parametrize("name", OF_DATA)
def test_data_modules_check_their_own(tmp_path, name):
    """Also where no command line builds them."""
    plain, key = numbers(VideoDataModule), name.removeprefix("data.")
    for made in [Yard] if key in plain else [m for m in BENCHMARKS if key in numbers(m)]:
        settings = typed(VideoDataModule if made is Yard else made, key, WRONG[name][0])
        if made is Yard:
            settings |= {"card_file": tmp_path / "card.yaml", "counts": {"train": 1}}
        else:
            settings = {**DATA_SETTINGS, **settings}
        if made is VideoFolder:
            settings |= {"root": tmp_path, "card": tmp_path / "card.yaml"}
        make: Any = made
        with pytest.raises(ValueError, match="must be") as error:
            make(**settings)
        assert str(error.value) == refusal(name)


@pytest.mark.parametrize("name", [name for name in WRONG if "rationale_rules" in name])
def test_rules_check_their_own(name):
    with pytest.raises(ValueError, match="must be") as error:
        QualityRules(**typed(QualityRules, name.rpartition(".")[2], WRONG[name][0]))
    assert str(error.value) == refusal(name)


@pytest.mark.parametrize("name", [name for name in WRONG if name.startswith("endpoint.")])
def test_endpoints_check_their_own(name):
    with pytest.raises(ValueError, match="must be") as error:
        EndpointSettings("m", **typed(EndpointSettings, name.rpartition(".")[2], WRONG[name][0]))
    assert str(error.value) == refusal(name)


@pytest.mark.parametrize("name", [name for name in WRONG if name.startswith("model.")])
def test_the_module_checks_its_own(name):
    key = name.rpartition(".")[2]
    parts: dict[str, Any] = {
        "lora": LoRA,
        "rationale_sampling": RationaleSampling,
        "self_consistency": SelfConsistency,
    }
    made = parts.get(name.split(".")[1], RBFTModule)
    settings = typed(made, key, WRONG[name][0])
    if made is RBFTModule:
        settings = {"backbone": "nowhere", "card": CARD, **MODULE_SETTINGS, **settings}
    with pytest.raises(ValueError, match="must be") as error:
        made(**settings)
    assert str(error.value) == refusal(name)


JUDGE = ("repeats", "texts", "temperature", "top_logprobs")
OPTIONS = {
    "data.split_seed": "--data=SmartHome",
    "data.test_fraction": "--data=VideoFolder --data.root=nowhere --data.card=nowhere.yaml",
}
THROUGH_THE_PARSER = [
    *(name for name in WRONG if name.startswith("trainer.") or name in TOP),
    *JUDGE,
    *("endpoint.concurrency", "endpoint.timeout", "decision.recall"),
    *("data.fps", "data.split_seed", "data.test_fraction", "data.clip_seed"),
    *("model.learning_rate", "model.warmup_ratio", "model.lora.rank"),
    *("model.rationale_sampling.temperature", "model.rationale_sampling.samples"),
]


@pytest.mark.parametrize("name", THROUGH_THE_PARSER)
def test_the_command_line_checks_before_anything_else(tmp_path, monkeypatch, capsys, name):
    """Not even the backbone is looked at: there is none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["rbft"])  # Lightning compares
    data = OPTIONS.get(name, "--data=Miniature").split()
    options = [*data, "--model.backbone=nowhere", f"--{name}={WRONG[name][0]}"]
    if name.startswith("endpoint."):
        options.append("--endpoint.model=m")
    if name.startswith("decision."):
        options.append("--decision.positive=alarm")
    with pytest.raises((ValueError, SystemExit)) as error:
        _run(["judge" if name in JUDGE else "fit", *options])
    said = capsys.readouterr().err if error.type is SystemExit else str(error.value)
    assert refusal(name) in said
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "text"),
    [
        (Range(1), (1, 2, 1e300), (0.999, 0, -1), "1 or more"),
        (Range(0, above=True), (1e-300, 5), (0, -1), "above 0"),
        (Range(0, 1), (0, 0.5, 1), (-1e-9, 1.0001), "from 0 to 1"),
        (Range(0, 1, below=True), (0, 0.999), (1, -1), "0 or more and below 1"),
        (Range(0, 1, above=True), (0.001, 1), (0, 1.5), "above 0 and at most 1"),
        (Range(1, also=-1), (1, -1), (0, -2), "1 or more, or -1"),
        (Range(0, 2**32 - 1), (0, 2**32 - 1), (-1, 2**32), "from 0 to 4294967295"),
    ],
)
def test_ranges(allowed, inside, outside, text):
    assert str(allowed) == text
    for value in inside:
        assert allowed.holds(value), value
    for value in outside:
        assert not allowed.holds(value), value


def test_what_is_no_number_is_left_to_others():
    check_ranges("trainer.", {"devices": "auto", "fast_dev_run": False, "max_epochs": None})
    check_ranges("data.", {"fps": 1.0, "unknown": -1, "self": object()})
    with pytest.raises(ValueError, match=r"^data\.fps \(-0\.5\) must be above 0; it is frames"):
        check_ranges("data.", {"fps": -0.5, "num_frames": 1})
