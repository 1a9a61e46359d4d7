"""Several adapters on one base: what is written, and that peft, vLLM's options and rbft read it."""

import json
import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from rbft.backbone.adapters import LoRA, base_note, weights_fingerprint
from rbft.backbone.family import FAMILIES
from rbft.backbone.loading import fingerprint
from rbft.commands.export_adapters import Adapter, export_adapters, find_adapters, readme
from rbft.commands.export_weights import merged_model
from rbft.decision import Decision, find_decision
from rbft.runs.folder import PROMPT_RULE, PROVENANCE, read_json
from rbft.runs.inference import INFERENCE
from rbft.runtime.files import write_json
from tests.tiny import tiny_backbone, tiny_processor
from tests.weights import adapter, whole_weights

HALL = LoRA(rank=16, alpha=8, use_rslora=True, target_modules=["q_proj", "down_proj"])
DORA = LoRA(rank=4, alpha=8, use_dora=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with files that do not belong to the model, and a licence."""
    folder = tiny_backbone(tmp_path_factory.mktemp("base") / "mine", "qwen2_5_vl")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A base\n")
    (folder / "training.log").write_text("nothing for others\n")
    return folder


@pytest.fixture(scope="module")
def folders(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three weights folders as runs leave them."""
    root = tmp_path_factory.mktemp("runs")
    made = {
        "yard": adapter(root / "yard", base, merger=False),
        "hall": adapter(root / "hall", base, HALL, merger=False),
        "dora": adapter(root / "dora", base, DORA),
    }
    for folder in made.values():
        write_json(folder / "clips.json", {"train": [{"id": "secret.mp4"}]})
    return made


@pytest.fixture(scope="module")
def exported(
    folders: dict[str, Path], base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp("out") / "served"
    export_adapters(find_adapters(folders, str(base)), output)
    # Elsewhere, as another machine has it.
    return output.rename(output.parent / "moved")


def test_the_base_is_there_once_and_each_adapter_as_it_was_trained(
    exported: Path, folders: dict[str, Path], base: Path
) -> None:
    assert {file.name for file in exported.iterdir()} == {"README.md", "base", *folders}
    assert fingerprint(str(exported / "base")) == fingerprint(str(base))
    assert (exported / "base/README.md").is_file()
    assert not (exported / "base/training.log").exists()
    for name, folder in folders.items():
        own = exported / name
        file = "adapter_model.safetensors"
        assert (own / file).read_bytes() == (folder / file).read_bytes()
        config = read_json(own / "adapter_config.json")
        known = read_json(folder / "adapter_config.json")
        assert config == {**known, "base_model_name_or_path": None}
        note = read_json(own / PROVENANCE)
        noted = read_json(folder / PROVENANCE)
        assert note == {**noted, "base": {**noted["base"], "name": "../base"}}
        assert not (own / "clips.json").exists()
    text = (exported / "README.md").read_text(encoding="utf-8")
    assert str(base) not in text
    assert str(exported) not in text


def test_the_readme_s_lines_open_them_in_peft(exported: Path, folders: dict[str, Path]) -> None:
    text = (exported / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    made: dict[str, Any] = {}
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        exec(block.replace("FOLDER", str(exported)), made)
    model, ids = made["model"].eval(), torch.arange(20)[None]
    assert made["processor"].chat_template
    plain = AutoModelForImageTextToText.from_pretrained(exported / "base", dtype="auto").eval()
    with torch.no_grad():
        bare = plain(input_ids=ids).logits
        for name, folder in folders.items():
            model.set_adapter(name)
            whole = merged_model(folder, str(exported / "base"), torch.float32).eval()
            expected = whole(input_ids=ids).logits
            torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=2e-4, rtol=1e-4)
            assert (bare - expected).abs().max() > 0.01


def served(text: str) -> list[dict[str, Any]]:
    """The options of the commands `vllm serve` of a README, each with its values."""
    found = []
    for block in re.findall(r"```\n(vllm serve .*?)```", text.replace("\\\n", " "), re.DOTALL):
        words = shlex.split(block)
        told: dict[str, Any] = {"base": words[2]}
        for one, following in pairwise(words):
            if one.startswith("--"):
                told[one] = following
        start = words.index("--lora-modules") + 1
        told["adapters"] = [word for word in words[start:] if "=" in word and "{" not in word]
        found.append(told)
    return found


def test_one_server_has_the_adapters_that_vllm_serves(exported: Path) -> None:
    text = (exported / "README.md").read_text(encoding="utf-8")
    (told,) = served(text)
    assert told["base"] == "FOLDER/base"
    assert told["adapters"] == ["yard=FOLDER/yard", "hall=FOLDER/hall"]
    assert (told["--max-loras"], told["--max-lora-rank"]) == ("2", "16")
    assert "--enable-lora" in told
    assert "--chat-template" not in told
    frames = json.loads(told["--media-io-kwargs"])
    assert frames == {"video": {"video_backend": "qwen3_vl", "fps": 2.0}}
    pixels = json.loads(told["--mm-processor-kwargs"])
    assert pixels == {"min_pixels": 784, "max_pixels": 3136}
    for expected in (
        "| yard | quiet, alarm | rationale -> label | LoRA, rank 4, alpha 8 |\n",
        "| hall | quiet, alarm | rationale -> label | rsLoRA, rank 16, alpha 8 |\n",
        "| dora | quiet, alarm | rationale -> label | DoRA, rank 4, alpha 8, and the merger |\n",
        'A request chooses by its model, "model": "yard" or "model": "hall"; the base itself is '
        "`FOLDER/base`.",
        "vLLM does not serve `dora` beside the base: it is decomposed (model.lora.use_dora), which "
        "vLLM does not compute; the merger was trained with it (model.merger_learning_rate above "
        "0), and vLLM takes no weights beside the adapters'. Merged into whole weights it serves "
        "it: `python -m rbft export --weights FOLDER/dora --output dora`.",
        "### hall\n\nPut the video first and then this prompt",
        "license: apache-2.0\n",
    ):
        assert expected in text, expected


def test_a_base_of_the_hub_is_named_and_other_frames_are_served_apart(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    hub = "Qwen/Qwen2.5-VL-7B-Instruct"
    other = shutil.copytree(folders["hall"], tmp_path / "hall")
    note = read_json(other / PROVENANCE)
    note[INFERENCE] |= {"data.num_frames": 8, "data.max_pixels": 6272, "model.quantize": "4bit"}
    write_json(other / PROVENANCE, note)
    yard = shutil.copytree(folders["yard"], tmp_path / "yard")
    known = read_json(yard / PROVENANCE)
    write_json(yard / PROVENANCE, {**known, "base": {"name": hub, "fingerprint": f"{hub}@1a2b"}})
    text = readme([Adapter("yard", yard, hub, None), Adapter("hall", other, hub, None)])
    assert f"2 adapters of one base, `{hub}` (revision `1a2b`), fine-tuned" in text
    assert "rsLoRA, rank 16, alpha 8, on the base in 4 bits |" in text
    assert f"base_model: {hub}\n" in text
    assert f'from_pretrained("{hub}", dtype="auto")' in text
    one, two = served(text)
    assert one["base"] == two["base"] == hub
    assert (one["adapters"], two["adapters"]) == (["yard=FOLDER/yard"], ["hall=FOLDER/hall"])
    assert json.loads(two["--media-io-kwargs"])["video"]["num_frames"] == 8
    assert json.loads(two["--mm-processor-kwargs"])["max_pixels"] == 6272
    assert (two["--max-loras"], one["--max-lora-rank"], two["--max-lora-rank"]) == ("1", "8", "16")
    assert "Adapters that were trained on other frames are served apart" in text


def test_a_prompt_that_software_makes_in_several_ways(
    backbones: dict[str, Path], tmp_path: Path
) -> None:
    """A template goes with the adapters, and the server is told of it."""
    base, rule = backbones["qwen3_vl"], "times before pairs"
    folder = adapter(tmp_path / "yard", base, LoRA(rank=4, alpha=8), merger=False)
    tiny_processor("qwen3_vl").save_pretrained(folder)
    write_json(folder / PROVENANCE, {**read_json(folder / PROVENANCE), PROMPT_RULE: rule})
    export_adapters(find_adapters({"yard": folder}, str(base)), tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    (told,) = served(text)
    assert told["--chat-template"] == "FOLDER/yard/chat_template.jinja"
    assert f"Clips in the prompt: {rule}, as the backbone was trained." in text
    template, known = (
        (one / "chat_template.jinja").read_text(encoding="utf-8")
        for one in (tmp_path / "out/yard", folder)
    )
    assert template == FAMILIES["qwen3_vl"].chat_template(known) != known
    assert AutoProcessor.from_pretrained(tmp_path / "out/yard").chat_template == template


def test_the_largest_rank_of_a_layer_counts(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["yard"], tmp_path / "own")
    config = read_json(folder / "adapter_config.json")
    patterns = {"rank_pattern": {"q_proj": 32, "v_proj": 2}, "alpha_pattern": {"q_proj": 9}}
    write_json(folder / "adapter_config.json", {**config, **patterns})
    one = Adapter("own", folder, "Qwen/Qwen2.5-VL-7B-Instruct", None)
    assert one.unserved == []
    (told,) = served(readme([one]))
    assert told["--max-lora-rank"] == "32"


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", torch.bfloat16), ("base", None)])
def test_adapters_in_another_precision(
    folders: dict[str, Path], base: Path, tmp_path: Path, dtype: str, expected: torch.dtype | None
) -> None:
    """The tiny base is in 32 bits."""
    found = find_adapters({"yard": folders["yard"]}, str(base))
    export_adapters(found, tmp_path / "out", dtype)
    state, before = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (tmp_path / "out/yard", folders["yard"])
    )
    assert state.keys() == before.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, before[name].to(expected or torch.float32))
        assert tensor.dtype == (expected or torch.float32)


def test_the_threshold_goes_with_its_adapter(
    folders: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["yard"], tmp_path / "label/weights")
    known = weights_fingerprint(folder, str(base))
    wanted = {"positive": "alarm", "miss": 9.0, "false_alarm": 1.0, "recall": None}
    content = {"weights": known, "wanted": wanted, "threshold": 0.125}
    write_json(folder.parent / "decision.json", content)
    export_adapters(find_adapters({"yard": folder}, str(base)), tmp_path / "out")
    own = tmp_path / "out/yard"
    decision = find_decision(own, weights_fingerprint(own, str(tmp_path / "out/base")))
    assert isinstance(decision, Decision)
    assert (decision.positive, decision.threshold) == ("alarm", 0.125)
    assert read_json(own / "decision.json")["chosen_for"] == known


def test_adapters_of_another_base(folders: dict[str, Path], base: Path, tmp_path: Path) -> None:
    other = tiny_backbone(tmp_path / "other", seed=1)
    folder = adapter(tmp_path / "attic", other)
    with pytest.raises(ValueError, match="share their base") as error:
        find_adapters({"yard": folders["yard"], "attic": folder}, str(base))
    assert str(error.value) == (
        f"--adapters yard is an adapter of {base} ({fingerprint(str(base))}), but attic is one of "
        f"{other} ({fingerprint(str(other))}). Adapters in one folder share their base: export "
        "them apart."
    )
    # The same base elsewhere is the same base.
    twin = shutil.copytree(base, tmp_path / "twin")
    note = read_json(folder / PROVENANCE)
    write_json(folder / PROVENANCE, {**note, "base": base_note(str(twin))})
    assert len(find_adapters({"yard": folders["yard"], "attic": folder}, str(base))) == 2


def test_what_is_no_adapter_to_export(folders: dict[str, Path], base: Path, tmp_path: Path) -> None:
    whole = whole_weights(tmp_path / "whole", base)
    with pytest.raises(ValueError, match="is no adapter") as error:
        find_adapters({"whole": whole}, str(base))
    assert str(error.value) == (
        f"--adapters whole ({whole}) is no adapter: it holds no adapter_config.json. Adapters are "
        "trained with model.lora; whole weights are exported by themselves, with --weights."
    )
    for name in ("base", "my yard", "../yard", "-yard", "", "README.md"):
        with pytest.raises(ValueError, match="has the name") as error:
            find_adapters({name: folders["yard"]}, str(base))
        assert str(error.value) == (
            f"--adapters has the name '{name}', which is to be a folder beside 'base' and a "
            "model's name in requests. Take letters, digits, '.', '_' and '-': "
            f"NAME={folders['yard']}."
        )
    folder = shutil.copytree(folders["yard"], tmp_path / "yard")
    note = read_json(folder / PROVENANCE)
    del note["base"]
    write_json(folder / PROVENANCE, note)
    with pytest.raises(ValueError, match="does not say which weights") as error:
        find_adapters({"yard": folder}, str(base))
    assert str(error.value) == (
        f"--adapters yard ({folder}) does not say which weights it was trained on. Train it on "
        "with rbft, or serve it with the weights that you know it is of."
    )


def test_nothing_is_overwritten_and_a_full_disk_is_seen_before(
    folders: dict[str, Path], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_adapters({"yard": folders["yard"]}, str(base))
    with pytest.raises(ValueError, match="exists") as error:
        export_adapters(found, tmp_path)
    assert str(error.value) == (
        f"--output {tmp_path} exists. Name a folder that does not, or remove it."
    )
    usage = shutil.disk_usage(tmp_path)._replace(free=300_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match="left") as error:
        export_adapters(found, tmp_path / "out")
    assert str(error.value) == (
        f"--output {tmp_path / 'out'} needs 0.0 GB, but the disk has 0.0 GB left. Make room, or "
        "name a folder elsewhere."
    )
    assert not (tmp_path / "out").exists()
