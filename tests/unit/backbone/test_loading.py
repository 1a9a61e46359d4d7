import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rbft.backbone.attention import forward_inputs
from rbft.backbone.family import FAMILIES, PARTS
from rbft.backbone.loading import (
    fingerprint,
    frozen_dtype,
    generation_settings,
    load_config,
    load_model,
    load_processor,
    parameter_parts,
    short_name,
)
from rbft.runs.folder import PROVENANCE
from tests.examples import answer_of, batch_of, collator, examples
from tests.tiny import FAMILY_NAMES, FamilyName, tiny_backbone


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_family_follows_from_the_config_not_from_the_folder(
    backbones: dict[str, Path], family: FamilyName, tmp_path: Path
) -> None:
    misnamed = tmp_path / "Qwen3-VL-llava-qwen2_5_vl"
    misnamed.symlink_to(backbones[family])
    config, found = load_config(str(misnamed))
    assert config.model_type == family
    assert found is FAMILIES[family]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read") as error:
        load_config(str(tmp_path / "gone"))
    assert str(error.value).startswith(f"model.backbone '{tmp_path / 'gone'}' cannot be read: ")
    assert str(error.value).endswith(
        " Give a folder that holds config.json, model weights and processor, or the hub id of a "
        "Qwen2-VL, Qwen2.5-VL, Qwen3-VL or Qwen3.5."
    )


@pytest.mark.parametrize("content", ["{", "{}"])
def test_a_folder_without_a_usable_config(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"^model\.backbone '.*' cannot be read: .+ Give a folder"):
        load_config(str(tmp_path))


def test_another_architecture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="is of kind") as error:
        load_config(str(tmp_path))
    assert str(error.value) == (
        f"model.backbone '{tmp_path}' is of kind 'bert'; supported are qwen2_vl, qwen2_5_vl, "
        "qwen3_vl, qwen3_vl_moe, qwen3_5. See CONTRIBUTING.md for how to add a family."
    )


@pytest.mark.parametrize("checkpointing", [False, 0.5, True])
def test_the_model_trains_in_the_default_dtype(qwen: Path, checkpointing: float) -> None:
    model: Any = load_model(str(qwen), "sdpa", checkpointing)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in model.parameters())
    assert model.training
    for stack in (model.model.language_model.layers, model.model.visual.blocks):
        again = [getattr(block.forward, "recompute", False) for block in stack]
        assert again == [bool(checkpointing), checkpointing is True]


def test_weights_saved_in_bf16_are_not_trained_in_bf16(qwen: Path, tmp_path: Path) -> None:
    model: Any = load_model(str(qwen), "sdpa", False)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(str(tmp_path), "sdpa", False).dtype == torch.float32


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attention_is_the_one_asked_for(qwen: Path, attention: str) -> None:
    config = load_model(str(qwen), attention, False).config
    assert config._attn_implementation == attention


ENDS = ("weight", "bias")


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_parameter_is_in_exactly_one_part(
    backbones: dict[str, Path], family: FamilyName
) -> None:
    model = load_model(str(backbones[family]), "sdpa", False)
    parts = parameter_parts(model, FAMILIES[family])
    assert tuple(parts) == PARTS
    names = {part: {name for name, _ in members} for part, members in parts.items()}
    every = [name for name, _ in model.named_parameters()]
    assert sorted(name for members in names.values() for name in members) == sorted(every)

    vision = "model.visual."
    merger = ("model.visual.merger.", "model.visual.deepstack_merger_list.")
    assert names["merger"] == {name for name in every if name.startswith(merger)}
    assert names["vision"] == {n for n in every if n.startswith(vision)} - names["merger"]
    assert names["language"] == {
        n for n in every if n.startswith(("model.language_model.", "lm_head."))
    }
    # Literally, so that a renaming in transformers is seen.
    mlp = ("mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias")
    both = [f"{name}.{kind}" for name in ("norm", "linear_fc1", "linear_fc2") for kind in ENDS]
    expected = {
        "qwen2_vl": ["ln_q.weight", "ln_q.bias", *mlp],
        "qwen2_5_vl": ["ln_q.weight", *mlp],
        "qwen3_vl": both,
    }[family]
    modules = ["merger", "deepstack_merger_list.0"] if family == "qwen3_vl" else ["merger"]
    assert names["merger"] == {f"model.visual.{one}.{name}" for one in modules for name in expected}
    assert {"lm_head.weight", "model.language_model.embed_tokens.weight"} <= names["language"]
    assert "model.visual.patch_embed.proj.weight" in names["vision"]


def test_a_fingerprint_tells_weights_apart(qwen: Path, tmp_path: Path) -> None:
    first = fingerprint(str(qwen))
    assert len(first) == 32
    copy = shutil.copytree(qwen, tmp_path / "copy")
    assert fingerprint(str(copy)) == first, "the folder's name or time counts"

    other = tiny_backbone(tmp_path / "other", "qwen2_5_vl", seed=1)
    assert (other / "config.json").read_bytes() == (qwen / "config.json").read_bytes()
    assert fingerprint(str(other)) != first


def weights_folder(folder: Path, changed: int | None = None, name: str = "model") -> Path:
    """A folder with 6 MB of weights, all but one byte of them the same each time."""
    folder.mkdir()
    values = torch.arange(1_500_000, dtype=torch.float32)
    if changed is not None:
        values.view(torch.uint8)[changed] ^= 1
    save_file({"weight": values}, folder / f"{name}.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


# The middle of the tensor lies more than a MiB from both ends of the file.
@pytest.mark.parametrize("changed", [0, 3_000_000, 5_999_999])
def test_one_bit_anywhere_in_the_weights_counts(tmp_path: Path, changed: int) -> None:
    one, other = weights_folder(tmp_path / "one"), weights_folder(tmp_path / "other", changed)
    sizes = {(folder / "model.safetensors").stat().st_size for folder in (one, other)}
    assert len(sizes) == 1
    assert fingerprint(str(one)) != fingerprint(str(other))


def test_two_exports_trained_differently_and_their_base(tmp_path: Path) -> None:
    """Adapters merged into a base: the same shapes and the same first and last tensors."""
    trained = {"base": None, "export": 2_000_000, "export2": 2_000_001}
    made = {name: weights_folder(tmp_path / name, changed) for name, changed in trained.items()}
    assert len({fingerprint(str(folder)) for folder in made.values()}) == 3


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "merges.txt",
        "added_tokens.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "chat_template.json",
        "additional_chat_templates/tools.jinja",
        "model.safetensors.index.json",
        "model-00002-of-00002.safetensors",
        "tokenizer.model",
        "modeling_theirs.py",
    ],
)
def test_all_that_decides_what_the_model_does_counts(tmp_path: Path, name: str) -> None:
    folder = weights_folder(tmp_path / "folder")
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    seen = {fingerprint(str(folder))}
    for content in ("{} ", " {}"):
        file.write_text(content)
        seen.add(fingerprint(str(folder)))
    assert len(seen) == 3


def test_what_decides_nothing_does_not_count(tmp_path: Path) -> None:
    folder = weights_folder(tmp_path / "folder")
    before = fingerprint(str(folder))
    # Without safetensors, transformers would read the .bin.
    for name in ("README.md", "card.yaml", "rbft.json", ".gitattributes", "pytorch_model.bin"):
        (folder / name).write_text("{}")
    (folder / "config.json").touch()
    assert fingerprint(str(folder)) == before


def test_weights_of_the_old_form(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    seen = set()
    for content in ("1", "2"):
        (tmp_path / "pytorch_model.bin").write_text(content)
        seen.add(fingerprint(str(tmp_path)))
    assert len(seen) == 2


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no weights") as error:
        fingerprint(str(tmp_path))
    assert str(error.value) == (
        f"{tmp_path} holds no weights: no file *.safetensors or *.bin. Give a folder that "
        "save_pretrained wrote whole."
    )


def test_an_adapter_s_fingerprint_depends_on_its_base(tmp_path: Path) -> None:
    folder = weights_folder(tmp_path / "adapter", name="adapter_model")
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(ValueError, match="is an adapter that") as error:
        fingerprint(str(folder))
    assert str(error.value) == (
        f"{folder} is an adapter that does not say which weights it was trained on: a name in "
        "adapter_config.json is no proof. Merge it into whole weights, or start from an adapter "
        "that rbft wrote."
    )
    given = {base: fingerprint(str(folder), base) for base in ("one", "other")}
    assert given["one"] != given["other"]
    for base, expected in given.items():
        note = {"base": {"name": "anywhere", "fingerprint": base}}
        (folder / PROVENANCE).write_text(json.dumps(note))
        assert fingerprint(str(folder)) == expected


def test_a_hub_id_stands_for_itself_and_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    def cached(commit: str | None) -> None:
        found = {} if commit is None else {"_commit_hash": commit}
        monkeypatch.setattr(
            "transformers.PretrainedConfig.get_config_dict", lambda source: (found, {})
        )

    cached("1234")
    assert fingerprint("Qwen/Any") == "Qwen/Any@1234"
    cached(None)
    with pytest.raises(ValueError, match="Which revision") as error:
        fingerprint("Qwen/Any")
    assert str(error.value) == (
        "Which revision of 'Qwen/Any' the local cache holds is not known, so that its weights "
        "cannot be told from others. Download it (hf download Qwen/Any --local-dir FOLDER) and "
        "give the folder instead."
    )


def test_a_short_name_for_files() -> None:
    assert short_name("Qwen/Qwen2.5-VL-7B-Instruct") == "qwen2.5-vl-7b-instruct"
    assert short_name("/some/where/Base/") == "base"


def generation(folder: Path, **settings: Any) -> dict[str, Any]:
    """How a backbone with this generation config writes."""
    file = folder / "generation_config.json"
    file.write_text(json.dumps(settings))
    return generation_settings(str(folder), load_processor(str(folder)), 7)


def test_an_answer_ends_with_the_turn_or_at_its_longest(qwen: Path) -> None:
    assert generation_settings(str(qwen), load_processor(str(qwen)), 7) == {
        "max_new_tokens": 7,
        "eos_token_id": [376],
        "repetition_penalty": 1.0,
    }


def test_what_counts_of_the_generation_config(qwen: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(qwen, tmp_path / "copy")
    # That of Qwen2.5-VL-7B, but for its ids.
    hub = {"do_sample": True, "temperature": 1e-6, "pad_token_id": 377}
    assert generation(copy, eos_token_id=[376, 377], repetition_penalty=1.05, **hub) == {
        "max_new_tokens": 7,
        "eos_token_id": [376, 377],
        "repetition_penalty": 1.05,
    }
    # The tokenizer's own end ends an answer in any case.
    assert generation(copy, eos_token_id=5)["eos_token_id"] == [5, 376]
    assert generation(copy)["eos_token_id"] == [376]
    (copy / "generation_config.json").unlink()
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["eos_token_id"] = [9, 376]
    (copy / "config.json").write_text(json.dumps(config))
    found = generation_settings(str(copy), load_processor(str(copy)), 7)
    assert (found["eos_token_id"], found["repetition_penalty"]) == ([9, 376], 1.0)


@pytest.mark.parametrize("penalty", [0.0, -1.5])
def test_a_penalty_that_cannot_be_one(qwen: Path, tmp_path: Path, penalty: float) -> None:
    copy = shutil.copytree(qwen, tmp_path / "copy")
    with pytest.raises(ValueError, match="repetition_penalty") as error:
        generation(copy, repetition_penalty=penalty)
    assert str(error.value) == (
        f"The generation_config.json of model.backbone '{copy}' has repetition_penalty "
        f"{penalty:g}; it must be above 0. Correct it there: 1.0 penalises nothing."
    )


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_frozen_vision_tower_costs_no_backward_pass(
    backbones: dict[str, Path], family: FamilyName
) -> None:
    model: Any = load_model(str(backbones[family]), "sdpa", True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("model.language_model.layers.0."))
    seen: dict[str, bool] = {}
    for name in ("visual", "language_model"):
        part = model.get_submodule(f"model.{name}")
        part.register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: out[0].requires_grad})
        )
    batch = batch_of(collator(backbones[family], target_stage="label"), examples(2))
    answer = answer_of(batch)
    model(**forward_inputs(answer), **batch.video).logits.sum().backward()
    assert seen == {"visual": False, "language_model": True}
    # The first trained block is reached without transformers' gradients at the embeddings.
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_precision_of_frozen_weights() -> None:
    assert frozen_dtype("bf16-mixed") == torch.bfloat16
    assert frozen_dtype("16-mixed") == torch.float16
    assert frozen_dtype("32-true") == torch.get_default_dtype()


def test_code_that_comes_with_a_backbone_does_not_run(
    qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(tmp_path / "cache")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
    monkeypatch.setitem(FAMILIES, "theirs", FAMILIES["qwen2_5_vl"])
    folder = shutil.copytree(qwen, tmp_path / "backbone")
    ran = tmp_path / "ran"
    code = "from pathlib import Path\nfrom transformers import PretrainedConfig\n"
    code += f"Path({str(ran)!r}).touch()\n"
    code += "class Theirs(PretrainedConfig):\n    model_type = 'theirs'\n"
    (folder / "theirs.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Theirs"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot be read"):
        load_config(str(folder))
    assert not ran.exists()
    assert load_config(str(folder), trust=True)[0].model_type == "theirs"
    assert ran.exists()


def test_a_processor_s_code_is_run_only_when_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr(
        "transformers.AutoProcessor.from_pretrained",
        lambda source, trust_remote_code: told.append(trust_remote_code),
    )
    for trust in ((), (False,), (True,)):
        load_processor("theirs", *trust)
    assert told == [False, False, True]


# Weights that cannot be read, or are not those of the configuration

AGAIN = r" Copy or download the whole folder again, or give another one\.$"


def copied(qwen: Path, folder: Path) -> Path:
    shutil.copytree(qwen, folder / "copied")
    return folder / "copied"


def refused(source: Path, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}{AGAIN}") as error:
        load_model(str(source), "sdpa", False)
    assert "\n" not in str(error.value)


def test_weights_that_were_cut_off(qwen: Path, tmp_path: Path) -> None:
    source = copied(qwen, tmp_path)
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    refused(
        source, r"The weights in '.*/copied' cannot be read: Error while deserializing header: .*"
    )


def test_a_folder_whose_weights_are_gone(qwen: Path, tmp_path: Path) -> None:
    source = copied(qwen, tmp_path)
    (source / "model.safetensors").unlink()
    refused(source, r"The weights in '.*/copied' cannot be read: Error no file named .*")


@pytest.mark.parametrize("shape", [False, True])
def test_weights_that_lack_tensors_are_not_filled_up_at_random(
    qwen: Path, tmp_path: Path, shape: bool, caplog: pytest.LogCaptureFixture
) -> None:
    source = copied(qwen, tmp_path)
    tensors = load_file(source / "model.safetensors")
    name = next(name for name in sorted(tensors) if "mlp.up_proj.weight" in name)
    tensor = tensors.pop(name)
    if shape:
        tensors[name] = tensor[:-1].contiguous()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    refused(
        source,
        r"The weights in '.*/copied' are not those of the qwen2_5_vl that its config\.json "
        r"describes: 1 of \d+ tensors are missing or of another shape \(first: "
        rf".*{re.escape(name.partition('layers')[2])}\)\.",
    )
    assert "LOAD REPORT" not in caplog.text


def test_tensors_that_are_none_of_the_model_s_are_counted(
    qwen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = copied(qwen, tmp_path)
    tensors = load_file(source / "model.safetensors")
    save_file(tensors | {"odd.one": torch.ones(2)}, source / "model.safetensors", {"format": "pt"})
    load_model(str(source), "sdpa", False)
    assert capsys.readouterr().out == (
        f"1 tensors in '{source}' are none of the model's and are left out (first: odd.one).\n"
    )


def test_a_processor_that_is_not_there(qwen: Path, tmp_path: Path) -> None:
    source = copied(qwen, tmp_path)
    for file in {*source.iterdir()} - {source / "config.json"}:
        file.unlink()
    message = r"^The processor in '.*/copied' \(tokenizer, chat template, video processor\) cannot "
    with pytest.raises(ValueError, match=f"{message}be read: .*{AGAIN}"):
        load_processor(str(source))
