import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from rbft.backbone.adapters import (
    LoRA,
    add_adapters,
    base_note,
    check_adapters,
    check_targets,
    find_base,
    is_adapter,
    read_config,
    weights_dtype,
    weights_fingerprint,
)
from rbft.backbone.loading import fingerprint, load_config, load_model, parameter_parts
from rbft.backbone.targets import linear_layers
from rbft.module import RBFTModule
from rbft.runs.folder import PROVENANCE, Run
from rbft.training.fsdp2 import FSDP2
from rbft.training.optim import parameter_groups, parameter_table
from tests.examples import CARD, MODULE_SETTINGS, Yard, fed, module, trainer
from tests.tiny import tiny_backbone

SETTINGS = LoRA(rank=4, alpha=8)
FROZEN = {"language": 1e-4, "merger": 1e-4, "vision": 0.0}


def adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """A trained adapter with rbft's note of its base."""
    model: Any = load_model(str(base), "sdpa", False)
    add_adapters(model, SETTINGS, None, **{"merger": True, **settings})
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    model.save_pretrained(folder)
    (folder / PROVENANCE).write_text(json.dumps({"base": base_note(str(base))}))
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "model.lora.rank (0) must be 1 or more."),
        ({"alpha": 0}, "model.lora.alpha (0) must be 1 or more."),
        ({"dropout": 1.0}, "model.lora.dropout (1) must be 0 or more and below 1."),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="must be") as error:
        LoRA(**settings)
    assert str(error.value) == message


def test_the_vision_tower_cannot_train_beside_adapters(qwen: Path) -> None:
    settings = {**MODULE_SETTINGS, "vision_learning_rate": 2e-6, "lora": SETTINGS}
    with pytest.raises(ValueError, match="vision_learning_rate") as error:
        RBFTModule(str(qwen), CARD, **settings).check_trainable()
    assert str(error.value) == (
        "model.vision_learning_rate is 2e-06, but with adapters (model.lora) the vision tower is "
        "frozen. Set model.vision_learning_rate to 0, or model.lora to null to train all weights."
    )


def test_four_bits_cannot_train(qwen: Path) -> None:
    made = RBFTModule(str(qwen), CARD, **MODULE_SETTINGS, quantize="4bit")
    with pytest.raises(ValueError, match="4bit") as error:
        made.check_trainable()
    assert str(error.value) == (
        "model.quantize is 4bit, but weights in 4 bits cannot be trained, only adapters on them. "
        "Set model.lora (for instance --model.lora.rank 64), or model.quantize to null to train "
        "all weights."
    )


def test_an_adapter_is_trained_on_as_it_is(qwen: Path, tmp_path: Path) -> None:
    folder = adapter(qwen, tmp_path / "adapter")
    check_adapters(LoRA(rank=4, alpha=8, dropout=0.5), "4bit", folder, FROZEN)
    with pytest.raises(ValueError, match="is an adapter") as error:
        check_adapters(None, None, folder, FROZEN)
    assert str(error.value) == (
        f"model.weights {folder} is an adapter. Set model.lora to train it on, or merge it into "
        "whole weights (python -m rbft export --weights ... --output ...) and start from those."
    )
    with pytest.raises(ValueError, match="of rank 4") as error:
        check_adapters(LoRA(rank=8, alpha=16), None, folder, FROZEN)
    assert str(error.value) == (
        f"model.weights {folder} is an adapter of rank 4 and alpha 8, but model.lora asks for rank "
        "8 and alpha 16. An adapter is trained on as it is: set model.lora to its values."
    )


@pytest.mark.parametrize(
    ("asked", "own", "wanted"),
    [
        (
            {"use_dora": True},
            "rank 4, alpha 8 and use_dora false",
            "rank 4, alpha 8 and use_dora true",
        ),
        (
            {"use_rslora": True, "rank": 8},
            "rank 4, alpha 8 and use_rslora false",
            "rank 8, alpha 8 and use_rslora true",
        ),
    ],
)
def test_an_adapter_keeps_its_kind(
    qwen: Path, tmp_path: Path, asked: dict[str, Any], own: str, wanted: str
) -> None:
    folder = adapter(qwen, tmp_path / "adapter")
    with pytest.raises(ValueError, match="is an adapter of") as error:
        check_adapters(LoRA(**{"rank": 4, "alpha": 8, **asked}), None, folder, FROZEN)
    assert str(error.value) == (
        f"model.weights {folder} is an adapter of {own}, but model.lora asks for {wanted}. An "
        "adapter is trained on as it is: set model.lora to its values."
    )


def test_an_adapter_keeps_its_layers(qwen: Path, tmp_path: Path) -> None:
    config, family = load_config(str(qwen))
    names = linear_layers(config)
    asked: list[int] = []

    def given() -> list[str]:
        asked.append(1)
        return names

    def check(lora: LoRA | None) -> None:
        check_targets(lora, folder, family, config, given)

    folder = adapter(qwen, tmp_path / "adapter")
    check(None)
    check(SETTINGS)
    assert not asked, "the backbone was made for nothing"
    lora = LoRA(rank=4, alpha=8, target_modules=["q_proj", "v_proj"])
    with pytest.raises(ValueError, match="linear layers") as error:
        check(lora)
    assert str(error.value) == (
        f"model.weights {folder} is an adapter of 14 linear layers, but model.lora asks for 4 "
        "(first that differs: model.language_model.layers.0.mlp.down_proj). An adapter is trained "
        "on as it is: set model.lora.target_modules and model.lora.layers_to_transform to its "
        f"layers (in its adapter_config.json: {family.targets})."
    )
    # The same layers in other words, as somebody else has written them.
    known = json.loads((folder / "adapter_config.json").read_text())
    known |= {"target_modules": ["v_proj", "q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(known))
    check(lora)
    with pytest.raises(ValueError, match=re.escape("(in its adapter_config.json: ['q_proj', 'v_p")):
        check(SETTINGS)


def test_the_layers_are_looked_at_before_anything_is_loaded(qwen: Path) -> None:
    lora = LoRA(target_modules=["qkv"])
    settings = {**MODULE_SETTINGS, "vision_learning_rate": 0.0, "lora": lora}
    with pytest.raises(ValueError, match="target_modules names 'qkv', which is no"):
        RBFTModule(str(qwen), CARD, **settings).check_trainable()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bias": "all"}, "with bias all"),
        ({"modules_to_save": ["merger", "lm_head"]}, "with modules_to_save ['lm_head']"),
        ({"init_lora_weights": "pissa"}, "with init_lora_weights pissa"),
        ({"trainable_token_indices": [3]}, "with trainable_token_indices [3]"),
        ({"peft_type": "IA3"}, "of peft_type IA3, but rbft takes LORA alone (LoRA, rsLoRA, DoRA)"),
    ],
)
def test_an_adapter_of_a_kind_that_is_not_taken(
    qwen: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    folder = adapter(qwen, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    if "peft_type" in change:
        config = {"feedforward_modules": [], "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match="is an adapter") as error:
        read_config(folder, ["merger"])
    middle = "" if "peft_type" in change else ", which rbft does not take"
    assert str(error.value) == (
        f"{folder} is an adapter {said}{middle}. Merge it into whole weights with peft "
        "(merge_and_unload), and start from those."
    )


def test_an_adapter_without_its_tensors(qwen: Path, tmp_path: Path) -> None:
    folder = adapter(qwen, tmp_path / "adapter")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match="holds adapter_config") as error:
        read_config(folder)
    assert str(error.value) == (
        f"{folder} holds adapter_config.json but no adapter_model.safetensors. Save the adapter "
        "again with peft's save_pretrained, which writes it."
    )


def test_an_adapter_of_the_head(qwen: Path, tmp_path: Path) -> None:
    """The head runs on answer tokens alone, past what peft would add to it."""
    model: Any = load_model(str(qwen), "sdpa", False)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with pytest.warns(UserWarning, match="embedding layers found"):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="lm_head") as error:
        add_adapters(load_model(str(qwen), "sdpa", False), None, tmp_path, merger=False)
    assert str(error.value) == (
        f"{tmp_path} is an adapter of lm_head, but rbft takes adapters of the language model's "
        "blocks and of the vision tower alone. Merge it into whole weights with peft "
        "(merge_and_unload), and start from those."
    )


def test_the_base_of_whole_weights_is_themselves(qwen: Path, tmp_path: Path) -> None:
    assert find_base("hub/id", None) == "hub/id"
    assert find_base("hub/id", qwen) == str(qwen)
    assert not is_adapter(qwen)
    assert not is_adapter(None)
    assert is_adapter(adapter(qwen, tmp_path))


def test_the_base_is_found_by_its_weights(qwen: Path, tmp_path: Path) -> None:
    folder = adapter(qwen, tmp_path / "adapter")
    assert find_base("hub/other", folder) == str(qwen), "not where rbft noted it"
    shutil.copytree(qwen, tmp_path / "elsewhere")
    assert find_base(str(tmp_path / "elsewhere"), folder) == str(tmp_path / "elsewhere")
    (folder / PROVENANCE).unlink()
    assert find_base("any/thing", folder) == "any/thing"


def test_the_digest_of_an_adapter_covers_its_base(qwen: Path, tmp_path: Path) -> None:
    assert weights_fingerprint(qwen, "hub/other") == fingerprint(str(qwen))
    folder = adapter(qwen, tmp_path / "adapter")
    noted = weights_fingerprint(folder, str(qwen))
    assert noted == fingerprint(str(folder))
    (folder / PROVENANCE).unlink()
    other = tiny_backbone(tmp_path / "other", seed=1)
    assert weights_fingerprint(folder, str(qwen)) == noted
    assert weights_fingerprint(folder, str(other)) != noted


def test_a_base_that_has_changed(tmp_path: Path) -> None:
    base = tiny_backbone(tmp_path / "base", seed=0)
    folder = adapter(base, tmp_path / "adapter")
    noted = fingerprint(str(base))
    other = tiny_backbone(tmp_path / "other", seed=1)
    tiny_backbone(base, seed=2)
    with pytest.raises(ValueError, match="is an adapter of") as error:
        RBFTModule(str(other), CARD, weights=folder, **MODULE_SETTINGS)
    assert str(error.value) == (
        f"weights folder {folder} is an adapter of {base} ({noted}), but model.backbone {other} is "
        f"{fingerprint(str(other))} and {base} is {fingerprint(str(base))}. Set model.backbone to "
        "the weights that the adapter was trained on."
    )
    shutil.rmtree(base)
    with pytest.raises(ValueError, match=f"and {base} is not to be read. Set model.backbone"):
        find_base(str(other), folder)


def test_adapters_train_in_32_bits_on_weights_in_16(qwen: Path) -> None:
    model = load_model(str(qwen), "sdpa", False, dtype=torch.bfloat16)
    add_adapters(model, SETTINGS, None, merger=True)
    dtypes = {p.requires_grad: p.dtype for p in model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


def test_weights_that_do_not_train_are_loaded_in_the_precision_of_the_products(
    qwen: Path, tmp_path: Path
) -> None:
    made = adapter(qwen, tmp_path / "adapter")
    for frozen in ((SETTINGS, None, None), (None, "4bit", None), (None, None, made)):
        for training in (False, True):
            how = {"sharded": False, "training": training}
            assert weights_dtype(*frozen, "bf16-mixed", **how) == torch.bfloat16
            assert weights_dtype(*frozen, "32-true", **how) == torch.float32
            how["sharded"] = True
            assert weights_dtype(*frozen, "bf16-mixed", **how) == torch.float32


@pytest.mark.parametrize(
    ("precision", "half"),
    [
        ("bf16-mixed", torch.bfloat16),
        ("16-mixed", torch.float16),
        ("32-true", torch.float32),
        ("64-true", torch.float32),  # Lightning sets torch's default
    ],
)
def test_whole_weights_train_in_32_bits_and_are_scored_in_half(
    qwen: Path, precision: str, half: torch.dtype
) -> None:
    for whole in (None, qwen):
        given = None, None, whole, precision
        assert weights_dtype(*given, sharded=False, training=True) == torch.float32
        assert weights_dtype(*given, sharded=False, training=False) == half
        assert weights_dtype(*given, sharded=True, training=False) == torch.float32


def test_new_adapters_change_nothing(qwen: Path) -> None:
    plain = load_model(str(qwen), "sdpa", False).eval()
    model = load_model(str(qwen), "sdpa", False).eval()
    add_adapters(model, SETTINGS, None, merger=True)
    ids = torch.arange(20)[None]
    assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)


@pytest.mark.parametrize(("before", "after"), [(False, False), (True, True), (True, False)])
def test_what_was_trained_is_there_again(
    qwen: Path, tmp_path: Path, before: bool, after: bool
) -> None:
    folder = adapter(qwen, tmp_path, merger=before)
    model: Any = load_model(str(qwen), "sdpa", False)
    add_adapters(model, SETTINGS, folder, merger=after)
    model.save_pretrained(tmp_path / "again")
    folders = (folder, tmp_path / "again")
    one, other = (load_file(path / "adapter_model.safetensors") for path in folders)
    assert one.keys() == other.keys()
    assert any("merger" in name for name in one) == before
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_dropout_is_that_of_the_settings(qwen: Path, tmp_path: Path) -> None:
    """It is no part of what an adapter is."""
    folder = adapter(qwen, tmp_path, merger=False)
    for lora, expected in ((LoRA(rank=4, alpha=8, dropout=0.25), {0.25}), (SETTINGS, {None})):
        model = load_model(str(qwen), "sdpa", False)
        add_adapters(model, lora, folder, merger=False)
        layers = [part for part in model.modules() if isinstance(part, LoraLayer)]
        found = {getattr(layer.lora_dropout["default"], "p", None) for layer in layers}
        assert found == expected


def test_a_merger_that_was_frozen_so_far_starts_from_the_base(qwen: Path, tmp_path: Path) -> None:
    folder = adapter(qwen, tmp_path, merger=False)
    plain = dict(load_model(str(qwen), "sdpa", False).named_parameters())
    model = load_model(str(qwen), "sdpa", False)
    add_adapters(model, SETTINGS, folder, merger=True)
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    trained = {name: value for name, value in named if "merger" in name}
    assert len(trained) == 5
    for name, parameter in trained.items():
        assert torch.equal(parameter, plain[name.replace("modules_to_save.default.", "")])


def test_an_adapter_with_other_tensors(qwen: Path, tmp_path: Path) -> None:
    folder = adapter(qwen, tmp_path)
    file = folder / "adapter_model.safetensors"
    state = load_file(file)
    name = "model.language_model.layers.1.self_attn.q_proj.lora_B.weight"
    del state[f"base_model.model.{name}"]
    save_file(state, file)
    model = load_model(str(qwen), "sdpa", False)
    with pytest.raises(ValueError, match="does not fit its backbone") as error:
        add_adapters(model, None, folder, merger=False)
    assert str(error.value) == (
        f"{file} does not fit its backbone: 1 tensors are in one of them only (first: {name}). Set "
        "model.backbone to the weights that the adapter was trained on, or make the adapter anew."
    )


def test_only_what_trains_is_in_the_groups(qwen: Path, tmp_path: Path) -> None:
    made = RBFTModule(
        str(qwen),
        CARD,
        **{**MODULE_SETTINGS, "vision_learning_rate": 0.0, "merger_learning_rate": 0.0},
        lora=SETTINGS,
    )
    made.configure_model()
    before = {name: value.clone() for name, value in made.backbone.named_parameters()}
    run = trainer(tmp_path)
    run.fit(made, fed(Yard(tmp_path / "card.yaml", {"train": 4}), made))
    changed = {n for n, p in made.backbone.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {name for name in before if ".lora_" in name}
    (group,) = run.optimizers[0].param_groups
    assert (group["name"], len(group["params"])) == ("language", len(changed))


def test_the_table_counts_numbers_not_bytes(qwen: Path) -> None:
    rows = {}
    for quantize in (None, "4bit"):
        made = module(qwen, vision_learning_rate=0.0, lora=SETTINGS, quantize=quantize)
        parts = parameter_parts(made.backbone, made.family)
        groups = parameter_groups(parts, made.learning_rates, made.weight_decay)
        rows[quantize] = parameter_table(groups, parts)[1]
    assert rows[None] == rows["4bit"]
    assert rows[None][0][:3] == ["language adapters", "28", "8,192"]
    frozen = ["language", "merger", "vision"]
    assert [row[0] for row in rows[None][1:]] == ["merger", "merger_no_decay", *frozen]


def test_adapters_are_for_training_alone(qwen: Path, tmp_path: Path) -> None:
    """The bare backbone is scored without them."""
    made = RBFTModule(str(qwen), CARD, **{**MODULE_SETTINGS, "lora": SETTINGS})
    data = fed(Yard(tmp_path / "card.yaml", {"test": 2}), made)
    trainer(tmp_path).test(made, data, verbose=False)
    assert not any(".lora_" in name for name, _ in made.backbone.named_parameters())


def test_a_run_is_not_trained_before_the_settings_are_looked_at(
    qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("rbft.backbone.loader.load_model", refuse)
    made = RBFTModule(str(qwen), CARD, **MODULE_SETTINGS, quantize="4bit")
    with pytest.raises(ValueError, match="weights in 4 bits cannot be trained"):
        trainer(tmp_path).fit(made, Yard(tmp_path / "card.yaml", {"train": 2}))


def test_weights_of_4_bits_are_in_one_piece(qwen: Path, tmp_path: Path) -> None:
    made = RBFTModule(str(qwen), CARD, **MODULE_SETTINGS, quantize="4bit")
    run = trainer(tmp_path)
    run.strategy._lightning_module = made
    made.trainer = run
    run._accelerator_connector.strategy = FSDP2()
    with pytest.raises(ValueError, match="shares out whole weights only") as error:
        made.setup("test")
    assert str(error.value) == (
        "model.quantize is 4bit, but trainer.strategy FSDP2 shares out whole weights only. Set "
        "model.quantize to null, or trainer.strategy to auto."
    )


def test_a_run_folder_with_an_adapter_counts_as_trained(qwen: Path, tmp_path: Path) -> None:
    run = Run(tmp_path)
    adapter(qwen, run.weights("rationale"))
    assert run.trained("rationale")
    assert len(fingerprint(str(run.weights("rationale")))) == 32
