"""Adapters: which modules, parameters and numbers; peft and transformers are the reference."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForImageTextToText, Trainer

from rbft.backbone.adapters import LoRA, add_adapters
from rbft.backbone.attention import forward_inputs
from rbft.backbone.family import FAMILIES
from rbft.backbone.loading import load_model, parameter_parts
from rbft.backbone.qwen2_vl import Qwen2VL
from rbft.commands.export_weights import merged_model
from rbft.training.optim import parameter_groups
from tests.examples import Yard, answer_of, batch_of, collator, examples, fed, module, trainer
from tests.tiny import FAMILY_NAMES, FamilyName, tiny_model

SETTINGS = LoRA(rank=4, alpha=8)
LAYERS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
EXPECTED = {f"model.language_model.layers.{block}.{name}" for block in (0, 1) for name in LAYERS}


def peft_model(model: Any, **settings: Any) -> PeftModel:
    """As peft itself makes it."""
    config = LoraConfig(r=4, lora_alpha=8, **{"target_modules": Qwen2VL.targets, **settings})
    with warnings.catch_warnings():  # see rbft/commands/export_weights.py
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        return get_peft_model(model, config)  # type: ignore[return-value]


def read_peft(folder: Path, base: Path) -> Any:
    """As a user of peft opens an adapter."""
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        return PeftModel.from_pretrained(model, str(folder)).eval()


def moved(model: Any) -> Any:
    """The model after a training that has changed all that trains."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def saved(base: Path, folder: Path, merger: bool = True) -> Any:
    """A trained model, whose adapter is in the folder."""
    model: Any = load_model(str(base), "sdpa", False)
    add_adapters(model, SETTINGS, None, merger=merger)
    moved(model).eval().save_pretrained(folder)
    return model


def logits(model: Any, folder: Path) -> torch.Tensor:
    """Of three clips with their answers."""
    batch = batch_of(collator(folder, target_stage="label"), examples(3))
    assert batch.answer is not None
    with torch.no_grad():
        return model(**forward_inputs(batch.answer), **batch.video).logits[
            batch.answer.attention_mask == 1
        ]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_language_model_has_adapters_and_the_vision_tower_has_none(
    backbones: dict[str, Path], family: FamilyName
) -> None:
    model = load_model(str(backbones[family]), "sdpa", False)
    add_adapters(model, SETTINGS, None, merger=True)
    ours = {name for name, part in model.named_modules() if isinstance(part, LoraLayer)}
    theirs: Any = peft_model(tiny_model(family)).base_model
    assert ours == EXPECTED
    assert set(theirs.targeted_module_names) == EXPECTED
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    adapters = {f"{name}.lora_{side}.default.weight" for name in EXPECTED for side in "AB"}
    merger = {name for name in trained if "merger" in name and ".modules_to_save." in name}
    assert trained == adapters | merger
    assert len(merger) == sum("merger" in name for name, _ in tiny_model(family).named_parameters())


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_shorter_ways_to_say_it_hit_the_vision_tower(family: FamilyName) -> None:
    """Why the whole path is spelt out."""
    hit: Any = peft_model(tiny_model(family), target_modules="all-linear").base_model
    assert any("visual" in name for name in hit.targeted_module_names)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_four_bits_are_for_the_language_model_s_blocks_alone(
    backbones: dict[str, Path], family: FamilyName
) -> None:
    from bitsandbytes.nn.modules import Linear4bit

    model = load_model(str(backbones[family]), "sdpa", False, four_bit=torch.device("cpu"))
    stored = {name for name, part in model.named_modules() if isinstance(part, Linear4bit)}
    assert stored == EXPECTED
    plain = tiny_model(family)
    for name, part in model.named_modules():
        if name not in EXPECTED:
            assert type(part).__name__ == type(plain.get_submodule(name)).__name__
    for name in EXPECTED:
        linear: Any = model.get_submodule(name)
        state = linear.weight.quant_state
        assert (state.quant_type, state.nested, state.dtype) == ("nf4", True, torch.float32)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_groups_against_trainer(backbones: dict[str, Path], family: FamilyName) -> None:
    model: Any = load_model(str(backbones[family]), "sdpa", False)
    add_adapters(model, SETTINGS, None, merger=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {"language": 1e-4, "merger": 3e-5, "vision": 0.0}
    groups = parameter_groups(parameter_parts(model, FAMILIES[family]), rates, 0.1)
    found = {
        names[id(value)]: (group["lr"], group["weight_decay"])
        for group in groups
        for value in group["params"]
    }

    reference = peft_model(
        tiny_model(family), modules_to_save=FAMILIES[family].mergers(model.config)
    )
    decayed = set(Trainer.get_decay_parameter_names(None, reference))  # type: ignore[arg-type]
    expected = {}
    for name, value in reference.named_parameters():
        if value.requires_grad:
            # A norm that the Trainer decays, see test_optim_against_transformers.py.
            decay = 0.1 if name in decayed and "ln_q" not in name else 0.0
            part = "merger" if "merger" in name else "language"
            expected[name.removeprefix("base_model.model.")] = (rates[part], decay)
    assert found == expected


def test_a_saved_adapter_opens_in_peft(backbone: Path, tmp_path: Path) -> None:
    model = saved(backbone, tmp_path)
    base = AutoModelForImageTextToText.from_pretrained(backbone, dtype=torch.float32)
    expected = logits(model, backbone)
    assert torch.equal(logits(read_peft(tmp_path, backbone), backbone), expected)
    assert (logits(base.eval(), backbone) - expected).abs().max() > 0.1, "it changes nothing"
    assert {file.name for file in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "generation_config.json",
    }


def test_an_adapter_of_peft_s_own_opens_here(backbone: Path, tmp_path: Path) -> None:
    base = AutoModelForImageTextToText.from_pretrained(backbone, dtype=torch.float32)
    theirs = moved(peft_model(base)).eval()
    theirs.save_pretrained(str(tmp_path))
    model = module(backbone, weights=tmp_path, lora=SETTINGS, vision_learning_rate=0.0).backbone
    assert torch.equal(logits(model, backbone), logits(theirs, backbone))


@pytest.mark.parametrize("merger", [False, True])
def test_merged_weights_give_the_same(backbone: Path, tmp_path: Path, merger: bool) -> None:
    model = saved(backbone, tmp_path / "adapter", merger)
    whole = merged_model(tmp_path / "adapter", str(backbone), torch.float32).eval()
    assert [name for name, _ in whole.named_parameters()] == [
        name for name, _ in load_model(str(backbone), "sdpa", False).named_parameters()
    ]
    found, expected = logits(whole, backbone), logits(model, backbone)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_merging_rounds_once(backbone: Path, tmp_path: Path) -> None:
    """In half precision: the sum of base and adapter is rounded, not the adapter."""
    model = saved(backbone, tmp_path)
    whole = merged_model(tmp_path, str(backbone), torch.bfloat16)
    for name in EXPECTED:
        layer: Any = model.get_submodule(name)
        delta = 2.0 * layer.lora_B.default.weight @ layer.lora_A.default.weight  # alpha / rank
        base = layer.base_layer.weight.bfloat16().float()
        assert torch.equal(whole.get_submodule(name).weight, (base + delta).bfloat16()), name
    visual, merged = model.model.visual, whole.model.visual
    for ours, theirs in zip(
        [merged.merger, *getattr(merged, "deepstack_merger_list", [])],
        [visual.merger, *getattr(visual, "deepstack_merger_list", [])],
        strict=True,
    ):
        trained = dict(theirs.modules_to_save.default.named_parameters())
        for name, value in ours.named_parameters():
            assert torch.equal(value, trained[name].bfloat16()), name


def test_four_bits_change_the_base_and_not_the_adapter(backbone: Path, tmp_path: Path) -> None:
    model = saved(backbone, tmp_path)
    stored: Any = load_model(str(backbone), "sdpa", False, four_bit=torch.device("cpu"))
    add_adapters(stored, None, tmp_path, merger=False)
    for name, value in model.named_parameters():
        if value.requires_grad:
            assert torch.equal(stored.get_parameter(name), value), name
    error = (logits(stored.eval(), backbone) - logits(model, backbone)).abs().mean()
    assert 1e-4 < error < 0.1


class Casts(TorchDispatchMode):
    """Counts casts of activations to 32 bits; weights have two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten._to_copy and made.dtype == torch.float32:
            self.count += args[0].ndim == 3 and args[0].dtype == torch.bfloat16
        return made


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_under_autocast_the_same_bits_without_peft_s_casts(
    backbones: dict[str, Path], family: FamilyName
) -> None:
    folder, results, casts = backbones[family], [], []
    batch = batch_of(collator(folder, target_stage="rationale"), examples(3))
    for autocast in (False, True):
        model: Any = load_model(str(folder), "sdpa", False, dtype=torch.bfloat16)
        add_adapters(model, SETTINGS, None, merger=True, autocast=autocast)
        torch.manual_seed(0)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.data = 0.1 * torch.randn_like(parameter)
        with Casts() as counted, torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            logits = model(**forward_inputs(answer_of(batch)), **batch.video).logits
            logits.float().logsumexp(-1).sum().backward()
        results.append([logits, *(parameter.grad for parameter in trained)])
        casts.append(counted.count)
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
    # Of the inputs of 7 linear layers in both blocks, and of their gradients on the way back.
    assert casts[0] - casts[1] == 2 * 14


def test_who_casts(qwen: Path, tmp_path: Path) -> None:
    """Autocast, where there is one; on weights in 4 bits peft looks for it itself."""
    for precision, casts in (("bf16-mixed", {False}), ("32-true", {True})):
        made = module(qwen, lora=SETTINGS, vision_learning_rate=0.0).train()
        made.backbone = None
        data = fed(Yard(tmp_path / precision, {"train": 4}), made)
        trainer(tmp_path, precision=precision).fit(made, data)
        layers = [part for part in made.backbone.modules() if isinstance(part, LoraLayer)]
        assert {layer.cast_input_dtype_enabled for layer in layers} == casts
    model = load_model(str(qwen), "sdpa", False, four_bit=torch.device("cpu"))
    add_adapters(model, SETTINGS, None, merger=False, autocast=True)
    layers = [part for part in model.modules() if isinstance(part, LoraLayer)]
    assert {layer.cast_input_dtype_enabled for layer in layers} == {True}
