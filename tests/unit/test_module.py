import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

import rbft.backbone_module
import rbft.module
from rbft.backbone.adapters import LoRA
from rbft.backbone.attention import forward_inputs
from rbft.data.sampler import SampleSlot
from rbft.inference import classifier
from rbft.inference.classifier import Classified
from rbft.inference.generation import decode_texts, ended, prefill, score_candidates
from rbft.module import RBFTModule, answer_nll
from rbft.rationale_module import Written
from rbft.stages import STAGES
from tests.examples import (
    CARD,
    MODULE_SETTINGS,
    PAPER_STAGES,
    Yard,
    answer_of,
    batch_of,
    collator,
    examples,
    fed,
    module,
    rationale_module,
    score_answers,
    trainer,
    write_answers,
    writing,
)
from tests.unit.data.test_base import Ids

NORMAL, ABNORMAL, END, NEW_LINE = [269], [64, 292], 376, 198


def fit(
    folder: Path,
    work: Path,
    *callbacks: Callback,
    stage: str = "label",
    counts: dict[str, int] | None = None,
    ckpt_path: Path | None = None,
    model: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    **settings: Any,
) -> RBFTModule:
    """Trains a stage as the method does."""
    yard = Yard(work / "card.yaml", counts or {"train": 4}, **(data or {}))
    made = RBFTModule(str(folder), CARD, stage=stage, **{**MODULE_SETTINGS, **(model or {})})
    run = trainer(work, callbacks=list(callbacks), **settings)
    run.accumulate_grad_batches = yard.accumulation(1)  # type: ignore[attr-defined]
    run.fit(made, fed(yard, made), ckpt_path=ckpt_path, weights_only=True)
    return made


def yard_batches(yard: Yard, split: str) -> list[list[int]]:
    """Clips in the order in which they are scored, by their place in the split, batch by batch."""
    yard.feed = replace(
        yard.feed, collators=dict.fromkeys(("test", "val", "predict"), Ids(learns_class=False))
    )
    loader: Any = yard._eval_loader(split, yard.clips(split))
    return [[example.draw.index for example in made] for made in loader]


@pytest.fixture
def nondeterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What Lightning's deterministic mode sets for the whole process is taken back afterwards."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


# The loss


def test_nll_of_two_tokens_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    targets, weights = torch.tensor([1, 0]), torch.ones(2)
    expected = (math.log(4 / 3) + math.log(2)) / 2
    assert answer_nll(logits, targets, weights, torch.tensor(2.0)).item() == pytest.approx(expected)
    # A clip that weighs twice, in a global batch of 10 weighted tokens.
    expected = (2 * math.log(4 / 3) + 0.5 * math.log(2)) / 10
    loss = answer_nll(logits, targets, torch.tensor([2.0, 0.5]), torch.tensor(10.0))
    assert loss.item() == pytest.approx(expected)


def test_nll_is_computed_in_32_bits():
    logits = torch.randn(3, 50).bfloat16()
    loss = answer_nll(logits, torch.tensor([1, 2, 3]), torch.ones(3), torch.tensor(3.0))
    assert loss.dtype == torch.float32
    expected = torch.nn.functional.cross_entropy(logits.float(), torch.tensor([1, 2, 3]))
    assert loss.item() == pytest.approx(expected.item())


def test_a_batch_without_an_answer_token():
    empty = torch.zeros(0, dtype=torch.long)
    with pytest.raises(
        ValueError,
        match=r"^The batch holds no answer token\. Check the stage's target and the card\.$",
    ):
        answer_nll(torch.zeros(0, 5), empty, torch.zeros(0), torch.tensor(1.0))


@pytest.mark.parametrize("stage", PAPER_STAGES)
def test_the_head_runs_on_answer_tokens_alone(backbone: Path, stage: str):
    model = module(backbone, stage)
    seen: list[int] = []
    model.backbone.lm_head.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].numel() // inputs[0].shape[-1])
    )
    batch = batch_of(collator(backbone, target_stage=stage), examples(3))
    assert model(batch).shape == (int(batch.total), 384)
    assert seen == [int(batch.total)]


def test_the_logits_of_padded_rows_are_those_of_the_whole_forward(backbone: Path) -> None:
    model = module(backbone)
    batch = batch_of(collator(backbone, target_stage="rationale"), examples(3))
    answer = answer_of(batch)
    assert bool((answer.attention_mask == 0).any())
    whole = model.backbone(**forward_inputs(answer), **batch.video).logits
    expected = whole[:, :-1][answer.labels[:, 1:] != -100]
    torch.testing.assert_close(model(batch), expected)


def test_a_filler_clip_weighs_nothing(qwen: Path):
    model, make = module(qwen), collator(qwen, target_stage="label")
    real = batch_of(make, examples(2))
    total = float(real.total)
    padded = make(
        examples(
            3, [SampleSlot(0, 1.0, total), SampleSlot(1, 1.0, total), SampleSlot(4, 0.0, total)]
        )
    )
    assert model.loss(padded).item() == pytest.approx(model.loss(real).item(), abs=1e-6)


# Training


@pytest.mark.parametrize("stage", PAPER_STAGES)
def test_every_stage_learns_its_answers(qwen: Path, tmp_path: Path, stage: str):
    batch = batch_of(collator(qwen, target_stage=stage), examples(4))
    before = module(qwen, stage).loss(batch).item()
    after = fit(qwen, tmp_path, stage=stage, max_epochs=8, model={"learning_rate": 3e-3})
    assert after.loss(batch).item() < 0.8 * before


class Gradients(Callback):
    """Keeps what reaches the optimiser, before clipping."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.backbone.named_parameters()
        self.steps.append({name: p.grad.clone() for name, p in named})


@pytest.mark.parametrize("class_weights", [False, True])
def test_accumulation_does_not_change_the_step(qwen: Path, tmp_path: Path, class_weights: bool):
    # 7 clips: a global batch of 4 and one of 3, so the last micro-batch holds a filler.
    steps, losses = {}, {}
    for batch_size in (4, 2, 1):
        gradients, logged = Gradients(), Logged()
        fit(
            qwen,
            tmp_path,
            gradients,
            logged,
            counts={"train": 7},
            data={"batch_size": batch_size, "class_weights": class_weights},
            model=dict.fromkeys(
                ("learning_rate", "merger_learning_rate", "vision_learning_rate"), 1e-12
            ),
        )
        assert len(gradients.steps) == 2
        steps[batch_size], losses[batch_size] = gradients.steps, logged.values["train/loss"]
    for other in (2, 1):
        assert losses[other] == pytest.approx(losses[4], abs=1e-6)
        for ours, theirs in zip(steps[other], steps[4], strict=True):
            for name, gradient in ours.items():
                torch.testing.assert_close(gradient, theirs[name], atol=1e-6, rtol=0)
    assert max(float(g.abs().max()) for g in steps[4][0].values()) > 0.01


class Held(Callback):
    """Whether gradients are there after a micro-batch."""

    def __init__(self) -> None:
        self.found: list[bool] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.found.append(any(p.grad is not None for p in pl_module.parameters()))


def test_no_gradient_outlives_its_step(qwen: Path, tmp_path: Path):
    held = Held()
    fit(qwen, tmp_path, held, counts={"train": 8}, data={"batch_size": 2})
    assert held.found == [True, False, True, False]  # a global batch of 4


class Logged(Callback):
    """Keeps the figures of every optimiser step."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}
        self.modes: set[bool] = set()

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self.modes.add(pl_module.backbone.training)
        self.modes.update(block.training for block in pl_module.backbone.modules())

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        log = pl_module.log

        def keep(name: str, value: Any, **settings: Any) -> None:
            self.values.setdefault(name, []).append(float(value))
            log(name, value, **settings)

        pl_module.log = keep


def test_the_logged_loss_and_norm_are_those_of_the_global_batch(qwen: Path, tmp_path: Path):
    logged, gradients = Logged(), Gradients()
    fit(qwen, tmp_path, logged, gradients, data={"batch_size": 2})
    model = module(qwen)
    batch = batch_of(collator(qwen, target_stage="label"), examples(4))
    assert logged.values["train/loss"] == pytest.approx([model.loss(batch).item()], abs=1e-5)
    squares = sum(float((g**2).sum()) for g in gradients.steps[0].values())
    assert logged.values["train/grad_norm"] == pytest.approx([math.sqrt(squares)], rel=1e-4)


class Broken(Callback):
    """From the third step on, the loss of one clip is not finite, or a gradient."""

    def __init__(self, what: str, value: float) -> None:
        self.what, self.value = what, value
        self.before: dict[str, Tensor] = {}
        self.moments: list[int] = []

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step < 2:
            return
        named = pl_module.backbone.named_parameters()
        self.before = {name: p.detach().clone() for name, p in named}
        self.moments = [int(state["step"]) for state in trainer.optimizers[0].state.values()]
        if self.what == "loss" and 3 in batch.index.tolist():
            losses = pl_module.losses
            # Finite gradients, as where the right answer has probability 0.
            pl_module.losses = lambda batch: (losses(batch)[0] + self.value, None)
        elif self.what == "loss":
            pl_module.__dict__.pop("loss", None)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if self.what == "gradient" and trainer.global_step == 2:
            next(pl_module.backbone.parameters()).grad[0] = self.value

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        after = dict(pl_module.backbone.named_parameters())
        assert all(torch.equal(after[name], p) for name, p in self.before.items())
        optimizer = trainer.optimizers[0]
        assert [int(state["step"]) for state in optimizer.state.values()] == self.moments


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_step(
    qwen: Path, tmp_path: Path, what: str, value: float
):
    broken = Broken(what, value)
    with pytest.raises(ValueError, match="is not finite") as found:
        fit(qwen, tmp_path, broken, data={"batch_size": 2}, max_epochs=3)
    assert broken.before
    start, _, rest = str(found.value).partition(", with the clips ")
    clips, _, advice = rest.partition(". ")
    if what == "loss":
        assert start == "The loss of step 3 is not finite (gradient norm nan)"
        assert "train_3" in clips.split(", ")
        assert len(clips.split(", ")) == 2  # its micro-batch
    else:
        assert start == f"The gradient norm of step 3 is not finite (gradient norm {value:g})"
        assert sorted(clips.split(", ")) == [f"train_{n}" for n in range(4)]
    assert advice.startswith("The step was not taken and the last checkpoint is untouched. ")


class Overflow(Callback):
    """A gradient of the second step does not fit its precision; from the fourth on, the loss."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.scales: list[float] = []

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        named = pl_module.backbone.named_parameters()
        self.steps.append({name: p.detach().clone() for name, p in named})
        self.scales.append(trainer.precision_plugin.scaler.get_scale())
        if len(self.steps) == 4:
            infinite = next(pl_module.parameters()).sum() + math.inf
            pl_module.losses = lambda batch: (infinite, None)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if len(self.steps) == 2:
            next(pl_module.backbone.parameters()).grad[0] = math.inf


def test_a_gradient_scaler_passes_over_what_it_overflows(qwen: Path, tmp_path: Path):
    seen = Overflow()
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    half = MixedPrecision("16-mixed", "cpu", scaler)
    with pytest.raises(ValueError, match=r"^The loss of step 4 is not finite") as found:
        fit(qwen, tmp_path, seen, data={"batch_size": 4}, plugins=[half], max_epochs=5)
    assert "with the clips train_" in str(found.value)
    assert seen.scales[:4] == [1.0, 1.0, 0.5, 0.5]
    same = [
        all(torch.equal(before[name], after[name]) for name in before)
        for before, after in pairwise(seen.steps)
    ]
    assert same[:3] == [False, True, False]


def test_parts_have_their_own_learning_rates(backbone: Path, tmp_path: Path):
    groups: dict[str, dict[str, Any]] = {}
    names: dict[int, str] = {}

    class Watch(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            names.update({id(p): name for name, p in pl_module.backbone.named_parameters()})
            groups.update({g["name"]: g for g in trainer.optimizers[0].param_groups})

    rates = {"learning_rate": 3e-4, "merger_learning_rate": 2e-4, "vision_learning_rate": 1e-4}
    fit(backbone, tmp_path, Watch(), model=rates)
    assert {name: (g["initial_lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "language": (3e-4, 0.1),
        "language_no_decay": (3e-4, 0.0),
        "merger": (2e-4, 0.1),
        "merger_no_decay": (2e-4, 0.0),
        "vision": (1e-4, 0.1),
        "vision_no_decay": (1e-4, 0.0),
    }
    members = {group: {names[id(p)] for p in g["params"]} for group, g in groups.items()}
    assert sum(map(len, members.values())) == len(names)
    for group, found in members.items():
        start = {
            "language": ("model.language_model.", "lm_head."),
            "merger": ("model.visual.merger.", "model.visual.deepstack_merger_list."),
            "vision": ("model.visual.",),
        }[group.removesuffix("_no_decay")]
        assert all(name.startswith(start) for name in found)
    assert not any("merger" in name for name in members["vision"] | members["vision_no_decay"])


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("16-mixed", False)])
def test_one_kernel_steps_on_all_weights_unless_gradients_are_scaled(
    qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, fused: bool
):
    # Lightning does not scale gradients on a processor: only the setting's name is put there.
    monkeypatch.setattr(Trainer, "precision", property(lambda _: precision))
    found: list[bool] = []

    class Watch(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            found.extend(group["fused"] for group in trainer.optimizers[0].param_groups)

    fit(qwen, tmp_path, Watch())
    assert set(found) == {fused}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_recomputed_in_training(
    backbone: Path, tmp_path: Path, checkpointing: bool
):
    # Counted inside the blocks, whose own hooks transformers keeps out of the recomputation, and
    # before a forward, because the recomputation stops early.
    calls: list[int] = []

    class Count(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            for number, block in enumerate(pl_module.family.blocks(pl_module.backbone)):
                first = next(block.children())
                first.register_forward_pre_hook(lambda *_, number=number: calls.append(number))

    logged = Logged()
    made = fit(
        backbone,
        tmp_path,
        Count(),
        logged,
        counts={"train": 4, "val": 2},
        data={"batch_size": 4},
        model={"gradient_checkpointing": checkpointing},
        limit_val_batches=0,
    )
    blocks = len(made.family.blocks(made.backbone))
    assert sorted(calls) == sorted([*range(blocks)] * (2 if checkpointing else 1))
    assert logged.modes == {True}


def test_recomputing_changes_no_gradient(backbone: Path):
    batch = batch_of(collator(backbone, target_stage="rationale"), examples(3))
    gradients = []
    for checkpointing in (False, True):
        model = module(backbone, gradient_checkpointing=checkpointing).train()
        model.loss(batch).backward()
        gradients.append([p.grad for p in model.backbone.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("how", [True, "warn"])
@pytest.mark.parametrize("settings", [{}, {"lora": LoRA(rank=4), "vision_learning_rate": 0.0}])
def test_deterministic_mode_changes_no_bit_on_a_processor(
    qwen: Path, tmp_path: Path, nondeterministic: None, how: Any, settings: dict[str, Any]
):
    counts, states, modes = {"train": 5, "val": 2}, [], []

    class Mode(Callback):
        def on_train_batch_end(self, *args: Any, **settings: Any) -> None:
            modes.append(torch.get_deterministic_debug_mode())

    for mode in (None, how):
        settings = {"gradient_checkpointing": True, **settings}
        torch.manual_seed(0)  # of the adapters that begin
        made = fit(qwen, tmp_path, Mode(), counts=counts, model=settings, deterministic=mode)
        states.append(made.backbone.state_dict())
    assert modes == [0] * (len(modes) // 2) + [{"warn": 1, True: 2}[how]] * (len(modes) // 2)
    assert modes
    for name, tensor in states[0].items():
        assert torch.equal(states[1][name], tensor), name


def test_training_goes_on_in_training_mode_after_validation(qwen: Path, tmp_path: Path):
    logged = Logged()
    settings = {"gradient_checkpointing": True, "answer": "generate"}
    counts = {"train": 4, "val": 2}
    fit(qwen, tmp_path, logged, counts=counts, max_epochs=2, model=settings)
    assert logged.modes == {True}


# The resumed run saves into a folder of its own, so that every checkpoint is resumed from once.
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("batch_size", [4, 2])
def test_a_resumed_epoch_ends_in_the_same_weights(qwen: Path, tmp_path: Path, batch_size: int):
    settings: dict[str, Any] = {
        "counts": {"train": 10},
        "data": {"batch_size": batch_size},
        "model": {"warmup_ratio": 0.5},
        "max_epochs": 2,
        "enable_checkpointing": True,
    }

    def saver(folder: Path) -> ModelCheckpoint:
        return ModelCheckpoint(folder / "all", "{step}", every_n_train_steps=1, save_top_k=-1)

    whole = fit(qwen, tmp_path, saver(tmp_path), **settings)
    assert len(list((tmp_path / "all").glob("*.ckpt"))) == 6
    for step in (2, 3, 5):  # in the first epoch, at its end, in the second one
        other = tmp_path / f"from_{batch_size}_{step}"
        other.mkdir()
        resumed = fit(
            qwen,
            other,
            saver(other),
            ckpt_path=tmp_path / f"all/step={step}.ckpt",
            **settings,
        )
        for ours, theirs in zip(
            resumed.backbone.parameters(), whole.backbone.parameters(), strict=True
        ):
            assert torch.equal(ours, theirs)


def test_a_checkpoint_of_another_stage_is_refused(qwen: Path):
    model = module(qwen)
    checkpoint: dict[str, Any] = {}
    other = module(qwen, "rationale")
    other._trainer = Mock(spec=Trainer)
    other.on_save_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="checkpoint is of stage") as error:
        model.on_load_checkpoint(checkpoint)
    assert str(error.value) == (
        "The checkpoint is of stage 'rationale', this is stage 'label'. A checkpoint only resumes "
        "its own stage; to start from another stage's result, set model.weights to its weights "
        "folder."
    )
    with pytest.raises(ValueError, match=r"is of stage 'None', this is stage 'label'"):
        model.on_load_checkpoint({})


def test_lightning_s_own_sampler_is_refused(qwen: Path):
    model: Any = module(qwen)
    connector = SimpleNamespace(use_distributed_sampler=True)
    model._trainer = SimpleNamespace(world_size=2, _accelerator_connector=connector)
    with pytest.raises(ValueError, match=r"^trainer\.use_distributed_sampler must be false: "):
        model.setup("fit")


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_in_half_precision_counts_and_weights_stay_whole(
    qwen: Path, tmp_path: Path, precision: str
):
    """bfloat16 knows no 257: a loss divided by 256 tokens instead would be another."""

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):  # type: ignore[override]
            seen.append((batch.total.dtype, batch.weight.dtype, float(batch.total)))

    seen: list[Any] = []
    made = fit(qwen, tmp_path, Look(), stage="rationale", precision=precision)
    totals = {total for *_, total in seen}
    assert {kind for *kinds, _ in seen for kind in kinds} == {torch.float32}
    assert all(total == round(total) > 0 for total in totals)
    kinds = {parameter.dtype for parameter in made.backbone.parameters()}
    assert kinds == {torch.bfloat16 if precision == "bf16-true" else torch.float32}


# Classification


def classify(model: RBFTModule, folder: Path, count: int = 3) -> Classified:
    found = model.classify(
        collator(folder, prompt_stage=model.stage.classifier.name)(examples(count))
    )
    assert isinstance(found, Classified)
    return found


@pytest.mark.parametrize("stage", ["rationale", "label"])
def test_scoring_takes_the_likeliest_word(backbone: Path, stage: str):
    model = module(backbone, stage)
    # A module in the rationale stage is asked for the class as well: it classifies like Stage II.
    batch = collator(backbone, prompt_stage="label")(examples(3))
    assert batch.prompt is not None
    answers = [[*NORMAL, END], [*ABNORMAL, END]]
    expected = score_answers(model.backbone, batch.prompt, batch.video, answers)
    got = model.classify(batch)
    assert isinstance(got, Classified)
    assert got.scores is not None
    assert got.probabilities is not None
    assert torch.equal(got.scores, expected)
    assert got.prediction.tolist() == expected.argmax(-1).tolist()
    torch.testing.assert_close(got.probabilities.sum(-1), torch.ones(3))
    torch.testing.assert_close(
        got.probabilities[:, 1], torch.sigmoid(expected[:, 1] - expected[:, 0])
    )
    assert got.texts == ["", "", ""]


def writes(monkeypatch: pytest.MonkeyPatch, *answers: list[int]) -> None:
    monkeypatch.setattr(classifier, "greedy_decode", lambda *_: [list(ids) for ids in answers])


def ids(folder: Path, text: str) -> list[int]:
    return collator(folder).part_ids(text, last=True)


def test_a_written_answer_is_parsed_and_never_guessed(qwen: Path, monkeypatch: pytest.MonkeyPatch):
    model = module(qwen, answer="generate")
    texts = [" Normal.", "abnormal", "not abnormal", "normal or abnormal", ""]
    writes(monkeypatch, *(ids(qwen, text) for text in texts))
    got = classify(model, qwen, 5)
    assert got.prediction.tolist() == [0, 1, 2, 2, 2]
    assert got.texts == texts
    assert got.scores is None
    assert got.probabilities is None


def test_an_answer_cut_off_by_the_limit_still_counts_if_it_is_the_word(
    qwen: Path, monkeypatch: pytest.MonkeyPatch
):
    writes(monkeypatch, NORMAL, ABNORMAL[:1])
    assert classify(module(qwen, answer="generate"), qwen, 2).prediction.tolist() == [0, 2]


def test_unparsed_counts_as_wrong(qwen: Path, monkeypatch: pytest.MonkeyPatch):
    model = module(qwen, answer="generate")
    writes(monkeypatch, [*NORMAL, END], ids(qwen, "no idea"), [*NORMAL, END], [*ABNORMAL, END])
    batch = collator(qwen, prompt_stage="label")(examples(4))
    assert batch.label.tolist() == [0, 1, 0, 1]
    model.test_step(batch)
    metrics = model.test_metrics.compute()
    assert metrics["accuracy"] == 0.75
    assert metrics["unparsed"] == 0.25
    assert metrics["f1/quiet"] == 1.0
    assert metrics["f1/alarm"] == pytest.approx(2 / 3)


def test_a_clip_repeated_to_even_out_processes_is_not_counted(qwen: Path):
    model = module(qwen)
    model.test_step(
        collator(qwen, prompt_stage="label")(examples(2, [SampleSlot(0), SampleSlot(1, 0.0)]))
    )
    assert model.test_metrics.compute()["n"] == 1


@pytest.mark.parametrize("stage", PAPER_STAGES)
def test_a_repeated_clip_counts_neither_in_the_validation_s_loss_nor_its_figures(
    qwen: Path, stage: str
):
    sums = []
    for draws in (
        [SampleSlot(0), SampleSlot(1)],
        [SampleSlot(0), SampleSlot(1), SampleSlot(2, 0.0)],
    ):
        model = module(qwen, stage)
        asked = model.stage.classifier.name
        make = collator(qwen, target_stage=stage, prompt_stage=asked)
        if stage == "rationale":
            make = replace(make, extra_prompts=((STAGES[stage], CARD),))
        model.on_validation_epoch_start()
        model.validation_step(make(examples(len(draws), draws)))
        sums.append(model._val_loss)
        assert model.val_metrics.compute()["n"] == 2
    torch.testing.assert_close(sums[1], sums[0], atol=1e-4, rtol=0)
    assert sums[0][1] > 2


def test_the_first_class_of_the_card_wins_a_tie():
    nan = math.nan
    scores = torch.tensor(
        [[-2.0, -1.0, -1.0], [-1.0, -2.0, -1.0], [-3.0, -3.0, -3.0], [0.0, -1.0, -1.0], [nan] * 3]
    )
    got = Classified.by_scores(scores, [""] * 5)
    assert got.prediction.tolist() == [1, 0, 0, 0, 3]  # what is no number is no class
    assert got.tied is not None
    assert got.tied.tolist() == [True, True, True, False, False]
    assert got.scores is scores


def test_the_elicited_answer_can_be_parsed_too(qwen: Path, monkeypatch: pytest.MonkeyPatch):
    model = module(qwen, "rationale_class", answer="generate")
    answers = [[75, NEW_LINE, *ABNORMAL, END], [75, NEW_LINE, *NORMAL, END], [*ABNORMAL, 75, END]]
    writes(monkeypatch, *answers)
    assert classify(model, qwen).prediction.tolist() == [1, 0, 2]


OTHER_END = 70


@pytest.mark.parametrize("end", [END, OTHER_END])
def test_an_answer_may_end_with_any_end(qwen: Path, monkeypatch: pytest.MonkeyPatch, end: int):
    model = module(qwen, "rationale_class", answer="generate")
    model._generation = writing(qwen, 6, eos_token_id=[OTHER_END, END])
    # With a class; without; with the word, but the turn goes on to the limit.
    writes(monkeypatch, [75, NEW_LINE, *ABNORMAL, end], [75, end], [75, NEW_LINE, *ABNORMAL])
    got = classify(model, qwen)
    assert got.prediction.tolist() == [1, 2, 2]
    assert [text.split("\n") for text in got.texts] == [
        [one := model.processor.tokenizer.decode([75]), "abnormal"],
        [one],
        [one, "abnormal"],
    ]


def test_what_of_an_elicited_answer_the_class_is_scored_after(
    merging: Path, monkeypatch: pytest.MonkeyPatch
):
    """As it stands before a class in training, where the tokenizer merges what comes between."""
    model = module(merging, "rationale_class")
    model._generation = writing(merging, 6, eos_token_id=[OTHER_END, END])
    tokens = model.processor.tokenizer
    said = tokens("It climbs.")["input_ids"]
    before = tokens("It climbs.\n")["input_ids"]
    assert before[:-1] == said[:-1], "nothing merges"
    assert before[-1] != said[-1]
    word = model.collator.class_answers(model.stage)[1]
    writes(monkeypatch, [*before, *word], [*said, END], [*said, OTHER_END], said, [*said, *word])
    seen: list[Any] = []
    extend = classifier.extend
    monkeypatch.setattr(
        classifier, "extend", lambda *given: seen.append(given[2]) or extend(*given)
    )
    classify(model, merging, 5)
    # What the model wrote before a class stays as it was written.
    assert seen == [[before, before, before, before, said]]


def test_the_class_before_the_rationale_is_scored_up_to_the_line_break(backbone: Path):
    model = module(backbone, "class_rationale")
    batch = collator(backbone, prompt_stage="class_rationale")(examples(3))
    assert batch.prompt is not None
    words = [[*NORMAL, NEW_LINE], [*ABNORMAL, NEW_LINE]]
    expected = score_answers(model.backbone, batch.prompt, batch.video, words)
    got = model.classify(batch)
    assert got.scores is not None
    assert torch.equal(got.scores, expected)


def test_the_class_before_the_rationale_can_be_parsed_too(
    qwen: Path, monkeypatch: pytest.MonkeyPatch
):
    model = module(qwen, "class_rationale", answer="generate")
    answers = [[*ABNORMAL, NEW_LINE, 75, END], [*NORMAL, END], [75, *NORMAL, NEW_LINE]]
    writes(monkeypatch, *answers)
    assert classify(model, qwen).prediction.tolist() == [1, 2, 2]


# Through the Trainer


def test_validation_measures_the_stage_s_loss_and_the_classes(qwen: Path, tmp_path: Path):
    yard = Yard(tmp_path / "card.yaml", {"train": 4, "val": 5}, eval_batch_size=2)
    model = module(qwen, "rationale")
    yard = fed(yard, model)
    (values,) = trainer(tmp_path).validate(model, yard, verbose=False)

    make = collator(qwen, target_stage="rationale")
    collate, nll, tokens = make, 0.0, 0.0
    for clip in yard.clips("val"):
        example = yard.val_dataloader().dataset[SampleSlot(int(clip.id[-1]))]  # type: ignore[union-attr]
        batch = batch_of(collate, [example])
        nll += model.loss(batch).item() * float(batch.total)
        tokens += float(batch.total)
    assert values["val/loss"] == pytest.approx(nll / tokens, abs=1e-5)
    assert values["val/n"] == 5
    assert {"val/accuracy", "val/f1/quiet", "val/f1/alarm", "val/unparsed"} <= set(values)


@pytest.mark.parametrize(
    ("settings", "packed"),
    [({}, True), ({"packing": False}, False), ({"attention": "eager"}, False)],
)
def test_prompts_are_packed_as_training_is(qwen: Path, settings: dict[str, Any], packed: bool):
    made = module(qwen, **settings).collators()
    assert {name: make.packing for name, make in made.items()} == dict.fromkeys(
        ("train", "val", "test", "predict"), packed
    )


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_scored_split_is_logged_under_its_name(qwen: Path, tmp_path: Path, split: str):
    yard = Yard(tmp_path / "card.yaml", {"test": 3, "val": 2})
    yard.feed = replace(yard.feed, scored_split=split)
    model = module(qwen)
    model.trained_steps = 7
    (values,) = trainer(tmp_path).test(model, fed(yard, model), verbose=False)
    assert values[f"{split}/n"] == len(yard.clips(split))
    assert values["step"] == 7  # where the figures stand in TensorBoard
    assert all(name.startswith(f"{split}/") for name in set(values) - {"step"})


def test_stage_0_writes_after_the_rationale_s_prompt(qwen: Path, tmp_path: Path):
    yard = Yard(tmp_path / "card.yaml", {"train": 3})
    yard.feed = replace(
        yard.feed, predict_clips=[replace(clip, split="predict") for clip in yard.clips("train")]
    )
    model = rationale_module(qwen)
    (found,) = trainer(tmp_path).predict(model, datamodule=fed(yard, model)) or []
    batch = collator(qwen, prompt_stage="rationale")(examples(3))
    assert batch.prompt is not None
    settings = writing(qwen, model.max_new_tokens)
    expected = write_answers(model.backbone, batch.prompt, batch.video, settings)
    (written,) = found
    assert isinstance(written, Written)
    assert written.texts == decode_texts(expected, model.processor.tokenizer, settings)
    assert written.ids == expected
    assert written.ended == [ended(ids, settings) for ids in expected]


def test_predict_gives_classes(qwen: Path, tmp_path: Path):
    yard = Yard(tmp_path / "card.yaml", {"train": 3})
    yard.feed = replace(
        yard.feed, predict_clips=[replace(clip, split="predict") for clip in yard.clips("train")]
    )
    model = module(qwen)
    (got,) = trainer(tmp_path).predict(model, datamodule=fed(yard, model)) or []
    assert isinstance(got, Classified)
    assert got.prediction.tolist() == classify(model, qwen).prediction.tolist()


class Widths(Callback):
    """Precisions of the weights, of the cache of keys and values, and what the tower goes by."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.weights: set[torch.dtype] = set()
        self.caches: set[torch.dtype] = set()

        def watched(*args: Any) -> Any:
            for read in prefill(*args):
                self.caches |= {layer.keys.dtype for layer in read.cache.layers}
                self.caches |= {layer.values.dtype for layer in read.cache.layers}
                yield read

        monkeypatch.setattr(rbft.module, "prefill", watched)

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self.module = pl_module

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self.weights |= {parameter.dtype for parameter in self.module.backbone.parameters()}


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_weights_are_in_half_precision_where_nothing_trains(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any
):
    half = {"bf16-mixed": torch.bfloat16, "32-true": torch.float32}[precision]
    digests = {}
    for kind in ("test", "validate", "predict", "fit"):
        settings = {"eval_batch_size": 3, "feature_cache_gb": 0.1}
        yard = Yard(tmp_path / "card.yaml", dict.fromkeys(("train", "test", "val"), 3), **settings)
        yard.feed = replace(yard.feed, predict_clips=yard.clips("test"))
        widths = Widths(monkeypatch)
        made = RBFTModule(str(backbone), CARD, **{**MODULE_SETTINGS, "vision_learning_rate": 0.0})
        run = trainer(tmp_path, precision=precision, callbacks=[widths])
        got = getattr(run, kind)(made, datamodule=fed(yard, made))
        monkeypatch.undo()
        assert widths.weights == {torch.float32 if kind == "fit" else half}
        assert kind == "fit" or widths.caches == {half}
        if kind == "predict":
            (classified,) = got
            assert classified.scores.dtype == torch.float32
        digests[kind] = made.tower
    # What a tower in another precision has made is not taken for this one's.
    scored = {digests.pop(kind) for kind in ("test", "validate", "predict")}
    assert len(scored) == 1
    assert (digests["fit"] in scored) is (precision == "32-true")


def test_scores_in_half_precision_are_close_to_those_in_32_bits(backbone: Path, tmp_path: Path):
    found = []
    for precision in ("bf16-mixed", "32-true"):
        yard = Yard(tmp_path / "card.yaml", {"test": 4})
        yard.feed = replace(yard.feed, predict_clips=yard.clips("test"))
        made = RBFTModule(str(backbone), CARD, **MODULE_SETTINGS)
        run = trainer(tmp_path, precision=precision)  # type: ignore[arg-type]
        (classified,) = run.predict(made, datamodule=fed(yard, made)) or []
        assert isinstance(classified, Classified)
        found.append(classified.scores)
    torch.testing.assert_close(*found, atol=0.1, rtol=0)
    assert not torch.equal(*found)


REASONS = (
    ": no class and no text follows from them, and none was written. Weights that are not finite "
    "do this, numbers that half precision cannot hold (set trainer.precision to 32-true to see) "
    "and faults of an attention kernel (set model.attention to eager to see)."
)


class CachedFeatures(Callback):
    """What reached those who write results."""

    def __init__(self) -> None:
        self.batches = 0

    def on_test_batch_end(self, *args: Any, **settings: Any) -> None:
        self.batches += 1

    def on_predict_batch_end(self, *args: Any, **settings: Any) -> None:
        self.batches += 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["test", "predict", "validate"])
def test_scores_that_are_not_finite_end_the_run_by_the_clip_s_name(
    qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, value: float
):
    # In the second batch, of the clips 2 and 3, of three.
    yard = Yard(tmp_path / "card.yaml", dict.fromkeys(("test", "val"), 5), eval_batch_size=2)
    yard.feed = replace(yard.feed, predict_clips=yard.clips("test"))
    calls, kept = [], CachedFeatures()

    def spoiled(*args: Any) -> Tensor:
        calls.append(scores := score_candidates(*args))
        if len(calls) == 2:
            scores[1, 0] = value
        return scores

    monkeypatch.setattr(classifier, "score_candidates", spoiled)
    split = "val" if kind == "validate" else "test"
    order = [place for batch in yard_batches(yard, split) for place in batch]
    run: Any = getattr(trainer(tmp_path, callbacks=[kept]), kind)
    model = module(qwen)
    with pytest.raises(ValueError, match="are not finite") as found:
        run(model, datamodule=fed(yard, model))
    name = f"{split}_{order[3]}"
    assert str(found.value) == f"The model's scores are not finite for the clip {name}{REASONS}"
    # The validation is looked at once, in the end.
    assert len(calls) == (3 if kind == "validate" else 2)
    assert kept.batches == (0 if kind == "validate" else 1)


@pytest.mark.parametrize(
    ("stage", "kind", "settings"),
    [
        ("rationale", "predict", {}),
        ("label", "predict", {"answer": "generate"}),
        ("label", "test", {"answer": "generate"}),
        ("rationale_class", "test", {}),
        ("label", "validate", {"answer": "generate"}),
    ],
)
def test_texts_from_scores_that_are_not_finite_are_not_written(
    qwen: Path, tmp_path: Path, stage: str, kind: str, settings: dict[str, Any]
):
    yard = Yard(tmp_path / "card.yaml", dict.fromkeys(("test", "val"), 3), eval_batch_size=3)
    yard.feed = replace(yard.feed, predict_clips=yard.clips("test"))
    made = rationale_module(qwen) if stage == "rationale" else module(qwen, stage, **settings)
    model, kept = made, CachedFeatures()

    def spoil(head: Any, inputs: Any, logits: Tensor) -> Tensor:
        if len(logits) < 3:
            return logits
        lost = torch.tensor([0.0, 1.0, 1.0])[:, None, None] * math.inf
        return logits + lost.nan_to_num(0.0, posinf=math.inf)

    model.backbone.lm_head.register_forward_hook(spoil)
    split = "val" if kind == "validate" else "test"
    (order,) = yard_batches(yard, split)
    with pytest.raises(ValueError, match="are not finite") as found:
        getattr(trainer(tmp_path, callbacks=[kept]), kind)(model, datamodule=fed(yard, model))
    names = ", ".join(f"{split}_{place}" for place in order[1:])
    assert str(found.value) == f"The model's scores are not finite for the clips {names}{REASONS}"
    assert kept.batches == 0


def test_of_many_clips_without_finite_scores_some_are_named(
    qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    yard = Yard(tmp_path / "card.yaml", {"test": 12}, eval_batch_size=12)
    lost, model = torch.full((12, 2), math.nan), module(qwen)
    monkeypatch.setattr(classifier, "score_candidates", lambda *_: lost)
    with pytest.raises(ValueError, match="are not finite") as found:
        trainer(tmp_path).test(model, fed(yard, model), verbose=False)
    names = (
        str(found.value)
        .split(":")[0]
        .removeprefix("The model's scores are not finite for the clips ")
    )
    assert names.endswith(" and 2 more")
    assert names.count("test_") == 10


def test_what_each_split_s_batches_hold(qwen: Path):
    asked = {}
    for stage in STAGES:
        asked[stage] = {
            name: (
                made.target_stage and made.target_stage.name,
                made.prompt_stage and made.prompt_stage.name,
            )
            for name, made in module(qwen, stage).collators().items()
        }
    assert asked["rationale"] == {
        "train": ("rationale", None),
        "val": ("rationale", "label"),
        "test": (None, "label"),
        "predict": (None, "label"),
    }
    assert asked["rationale_class"] == {
        "train": ("rationale_class", None),
        "val": ("rationale_class", "rationale_class"),
        "test": (None, "rationale_class"),
        "predict": (None, "rationale_class"),
    }
    # Beyond the paper: validation asks what the stage is judged by.
    for stage, validated in (
        ("alternating", "label"),
        ("label_reward", "label"),
        ("label_distilled", "label"),
        ("rationale_class_reward", "rationale_class"),
    ):
        assert asked[stage]["train"] == (stage, None)
        assert asked[stage]["val"][1] == asked[stage]["test"][1] == validated


def test_whole_weights_are_at_hand_while_clips_are_scored(qwen: Path, tmp_path: Path, monkeypatch):
    told: list[str] = []
    for name in ("unshard", "reshard"):
        monkeypatch.setattr(
            rbft.backbone_module, name, lambda backbone, name=name: told.append(name)
        )
    made = fit(qwen, tmp_path, counts={"train": 4, "val": 1})
    assert told == ["unshard", "reshard"]
    assert made.monitor.stopping == 0
    yard = Yard(tmp_path / "card.yaml", {"test": 1})
    yard.feed = replace(
        yard.feed, predict_clips=[replace(clip, split="predict") for clip in yard.clips("test")]
    )
    trainer(tmp_path).test(made, fed(yard, made), verbose=False)
    trainer(tmp_path).predict(made, datamodule=fed(yard, made))
    assert told[2:] == ["unshard", "unshard"]


def test_no_run_is_asked_to_end_before_it_begins(qwen: Path):
    made: Any = module(qwen)
    made.monitor.check_last(Mock(spec=Trainer))
    assert made.monitor.stopping == 0
