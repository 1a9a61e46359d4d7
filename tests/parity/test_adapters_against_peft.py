"""Adapters: which modules, parameters and numbers; peft and transformers are the reference."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
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


OPTIONS: dict[str, dict[str, Any]] = {
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "layers": {"target_modules": ["q_proj", "mlp.gate_proj"], "layers_to_transform": [1]},
    "all": {"use_rslora": True, "use_dora": True, "target_modules": ".*(v|down)_proj"},
}
CHOSEN = {
    "layers": {
        f"model.language_model.layers.1.{name}" for name in ("self_attn.q_proj", "mlp.gate_proj")
    },
    "all": {name for name in EXPECTED if name.endswith(("v_proj", "down_proj"))},
}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("family", "options"),
    [*(("qwen2_5_vl", options) for options in OPTIONS), ("qwen3_vl", "all")],
)
def test_the_options_do_what_they_do_in_peft(
    backbones: dict[str, Path], tmp_path: Path, family: str, options: str, half: bool
) -> None:
    """Forward, gradients, tensors and configuration; in half precision under autocast."""
    qwen = backbones[family]
    given, dtype = OPTIONS[options], torch.bfloat16 if half else torch.float32
    layers = sorted(CHOSEN.get(options, EXPECTED))
    torch.manual_seed(1)
    ours: Any = load_model(str(qwen), "sdpa", False, dtype=dtype)
    add_adapters(ours, LoRA(rank=4, alpha=8, **given), None, merger=not half, autocast=half)
    torch.manual_seed(1)
    base = AutoModelForImageTextToText.from_pretrained(qwen, dtype=dtype)
    plain = {name: given[name] for name in ("use_rslora", "use_dora") if name in given}
    saved = None if half else FAMILIES[family].mergers(base.config)
    theirs: Any = peft_model(
        base, target_modules=layers, modules_to_save=saved, task_type="CAUSAL_LM", **plain
    )
    batch = batch_of(collator(qwen, target_stage="label"), examples(3))
    results = []
    for model in (ours, theirs):
        moved(model).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=half, cache_enabled=False):
            found = model(**forward_inputs(answer_of(batch)), **batch.video).logits
            found.float().logsumexp(-1).sum().backward()
        trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        grads = {name.removeprefix("base_model.model."): value.grad for name, value in trained}
        results.append({"logits": found.detach(), **grads})
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name
        assert value.any(), name
    assert ("magnitude" in " ".join(results[0])) == ("use_dora" in given)

    ours.eval().save_pretrained(tmp_path / "ours")
    theirs.eval().save_pretrained(tmp_path / "theirs")
    one, other = (
        load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    config, known = (
        json.loads((tmp_path / who / "adapter_config.json").read_text())
        for who in ("ours", "theirs")
    )
    assert {re.fullmatch(config["target_modules"], name) is not None for name in layers} == {True}
    # Of inference mode, peft and transformers save another value, and neither reads it.
    for name in ("target_modules", "inference_mode", "base_model_name_or_path"):
        del config[name], known[name]
    assert config == known
    if not half:
        expected = logits(ours, qwen)
        assert torch.equal(logits(read_peft(tmp_path / "ours", qwen), qwen), expected)
        merged = theirs.merge_and_unload()
        exported = merged_model(tmp_path / "ours", str(qwen), torch.float32).eval()
        state = merged.state_dict()
        for name, value in exported.state_dict().items():
            assert torch.equal(value, state[name]), name
        torch.testing.assert_close(logits(exported, qwen), expected, atol=2e-5, rtol=1e-5)


def test_an_adapter_of_peft_s_own_with_patterns_in_half_precision(
    qwen: Path, tmp_path: Path
) -> None:
    """Other ranks and scales for some layers, and layers of the vision tower."""
    base = AutoModelForImageTextToText.from_pretrained(qwen, dtype=torch.float32)
    patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.*up_proj": 32}}
    targets = ["q_proj", "up_proj", "attn.qkv"]
    moved(peft_model(base, target_modules=targets, **patterns)).save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_model.safetensors"
    state = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
    assert {tensor.shape[0] for name, tensor in state.items() if "lora_A" in name} == {2, 4}
    assert any(".visual.blocks." in name for name in state)
    save_file(state, file, {"format": "pt"})
    model: Any = load_model(str(qwen), "sdpa", False)
    add_adapters(model, None, tmp_path, merger=False)
    assert {v.dtype for n, v in model.named_parameters() if ".lora_" in n} == {torch.float32}
    expected = logits(read_peft(tmp_path, qwen), qwen)
    assert torch.equal(logits(model.eval(), qwen), expected)
    # Trained on, it keeps them.
    more: Any = load_model(str(qwen), "sdpa", False)
    add_adapters(more, SETTINGS, tmp_path, merger=True)
    assert torch.equal(logits(more.eval(), qwen), expected)
    more.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again/adapter_config.json").read_text())
    assert {name: config[name] for name in patterns} == patterns
    assert (sorted(config["target_modules"]), config["modules_to_save"]) == (
        sorted(targets),
        ["merger"],
    )


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
