"""Answers of a real vLLM server: what the backbone in rbft's own process answers.

vLLM wants other versions of torch and transformers than rbft, so it has an environment of its own:
tests/vllm_environment.sh makes it and says how to run this file.
"""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import torch
from transformers import AutoProcessor

from rbft.backbone.adapters import LoRA
from rbft.backbone.family import FAMILIES
from rbft.clip import Clip
from rbft.data.dataset import Example
from rbft.data.sampler import SampleSlot
from rbft.engines.content import AsVideo
from rbft.video.sampling import Video
from tests import tiny
from tests.examples import collator, module
from tests.recipe.runs import LOGS, ROOT, rbft, read_json, read_lines, small
from tests.servers import Serving, find_vllm, vllm_serve
from tests.weights import adapter

pytestmark = [
    pytest.mark.recipe,
    pytest.mark.vllm,
    pytest.mark.skipif(find_vllm() is None, reason="there is no program vllm on the PATH"),
]
BASE = ROOT / "rbft/miniature/base"
FRAMES = ["--data.max_pixels=7056", "--data.max_frames=768", "--model.max_new_tokens=64"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with vllm_serve(BASE, tmp_path_factory.mktemp("vllm")) as made:
        yield made


@pytest.fixture
def spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    """A random backbone that can spell JSON, with heads of a size that vLLM has on a processor."""
    made = tiny.tiny_config

    def wider(family: tiny.FamilyName) -> Any:
        config = made(family)
        facts = config.to_dict()
        facts["text_config"]["hidden_size"] = facts["vision_config"]["out_hidden_size"] = 128
        facts["text_config"]["rope_parameters"]["mrope_section"] = [4, 6, 6]
        return type(config)(**facts)

    monkeypatch.setattr(tiny, "tiny_config", wider)
    backbone = tiny.tiny_backbone(tmp_path / "tiny")
    # Left to itself a random model may write blanks between the braces without an end.
    bare = [
        "--structured-outputs-config",
        '{"backend": "xgrammar", "disable_any_whitespace": true}',
    ]
    with vllm_serve(backbone, tmp_path, *bare) as server:
        yield server


def endpoint(server: Serving) -> list[str]:
    return [
        f"--endpoint.model={server.model}",
        f"--endpoint.urls=[{server.url}]",
        "--endpoint.key_variable=null",
        "--endpoint.frames=video",
    ]


def test_rationales_are_those_of_the_backbone(server: Serving, tmp_path: Path) -> None:
    options = small(BASE, "--data.train_size=24", "--prompts=[rationale, least]", *FRAMES)
    rbft(tmp_path, "rationalize", *options)
    rbft(tmp_path, "rationalize", *options, *endpoint(server))
    folder = tmp_path / LOGS / "rationales"
    for prompt in ("rationale", "least"):
        own, theirs = (
            {one["id"]: (one["rationale"], one["finish"], one["tokens"]) for one in read_lines(f)}
            for name in ("base", "served")
            for f in folder.glob(f"miniature0-{name}-{prompt}-*.jsonl")
        )
        assert len(own) == 24
        assert theirs == own


def test_classes_are_those_of_the_backbone(server: Serving, tmp_path: Path) -> None:
    options = small(BASE, "--data.test_size=40", *FRAMES)
    rbft(tmp_path, "test", *options, "--weights=backbone")
    rbft(tmp_path, "test", *options, *endpoint(server), "--endpoint.top_logprobs=20")
    run, place = tmp_path / LOGS / "small", "endpoint-served"
    own = {one["id"]: one for one in read_lines(run / "zero_shot/test_predictions.jsonl")}
    theirs = {one["id"]: one for one in read_lines(run / place / "test_predictions.jsonl")}
    assert len(own) == 40
    assert {one["prediction"] for one in own.values()} == {"normal", "abnormal"}
    assert read_json(run / place / "test.json")["by_logprobs"] == 40
    for name, one in own.items():
        assert theirs[name]["prediction"] == one["prediction"]
        assert theirs[name]["probabilities"] == pytest.approx(one["probabilities"], abs=1e-3)


def test_adapters_of_one_base_are_those_that_were_exported(tmp_path: Path) -> None:
    """Served by the command of the README that `export --adapters` writes.

    What is added to the weights is small: rbft's probabilities are of the class word and the end of
    the turn, those of a server of the word alone, and the end must be as good as certain.
    """
    kinds = {
        "yard": LoRA(rank=4, alpha=8),
        "hall": LoRA(rank=8, alpha=8, use_rslora=True, target_modules=["q_proj", "down_proj"]),
    }
    for name, lora in kinds.items():
        torch.manual_seed(len(name) + lora.rank)
        noise = 0.12 if lora.rank == 4 else 0.08
        folder = adapter(tmp_path / name, BASE, lora, merger=False, noise=noise)
        for file in BASE.glob("*"):
            if file.is_file() and not file.name.startswith(("model", "config")):
                shutil.copyfile(file, folder / file.name)
        shutil.copyfile(ROOT / "rbft/miniature/miniature.yaml", folder / "card.yaml")
    export = [f"--adapters=[{', '.join(f'{name}={name}' for name in kinds)}]", "--output=both"]
    rbft(tmp_path, "export", *export)
    text = (tmp_path / "both/README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"```\n(vllm serve .*?)```", text.replace("\\\n", " "), re.DOTALL)
    words = shlex.split(line.replace("FOLDER", str(tmp_path / "both")))
    end = words.index("--limit-mm-per-prompt")  # frames are each request's here
    options = small(BASE, "--data.test_size=20", *FRAMES)
    found = {}
    with vllm_serve(Path(words[2]), tmp_path, *words[3:end]) as server:
        for name in kinds:
            rbft(tmp_path, "test", *options, f"--weights=both/{name}")
            asked = endpoint(replace(server, model=name))
            rbft(tmp_path, "test", *options, *asked, "--endpoint.top_logprobs=20")
            (own,) = (tmp_path / LOGS / "small").glob(f"{name}-*/test_predictions.jsonl")
            theirs = tmp_path / LOGS / f"small/endpoint-{name}/test_predictions.jsonl"
            found[name] = [
                [tuple(one["probabilities"].values()) for one in read_lines(file)]
                for file in (own, theirs)
            ]
    for own, theirs in found.values():
        assert len(own) == 20
        for one, other in zip(own, theirs, strict=True):
            assert other == pytest.approx(one, abs=1e-3)
    apart = zip(found["yard"][0], found["hall"][0], strict=True)
    assert max(abs(one[0] - other[0]) for one, other in apart) > 0.005


def test_structured_labels_are_class_words(spelling: Serving, tmp_path: Path) -> None:
    options = small(BASE, "--data.test_size=10", *FRAMES, "--endpoint.labels=structured")
    rbft(tmp_path, "test", *options, *endpoint(spelling))
    result = read_json(tmp_path / LOGS / "small/endpoint-served/test.json")
    assert (result["n_scored"], result["answered_only"]["coverage"]) == (10, 1.0)
    # The same model says nothing of the kind when it is left to itself.
    rbft(tmp_path, "test", *options, *endpoint(spelling), "--endpoint.labels=free")
    (free,) = (tmp_path / LOGS / "small/endpoint-served").glob("test-*.json")
    assert read_json(free)["answered_only"]["n_scored"] == 0


def test_a_backbone_whose_prompts_say_the_times(tmp_path: Path) -> None:
    """The template that `export` writes has the server build the prompts that rbft builds."""
    backbone = tiny.tiny_backbone(tmp_path / "qwen3", "qwen3_vl", patch=16)
    processor: Any = AutoProcessor.from_pretrained(backbone)
    processor.chat_template = FAMILIES["qwen3_vl"].chat_template(processor.chat_template)
    processor.save_pretrained(backbone)
    frames = torch.randint(0, 256, (6, 3, 64, 96), dtype=torch.uint8)
    clip = Video(frames, [0, 13, 26, 39, 52, 65], 70, 10.0)
    content = AsVideo(32).content(clip)
    asked = {"role": "user", "content": [*content.parts, {"type": "text", "text": "Is it?"}]}
    body = {"model": "served", "messages": [asked], "max_tokens": 1, "temperature": 0}
    body |= {"return_token_ids": True, "logprobs": True, "top_logprobs": 20, **content.fields}
    with vllm_serve(backbone, tmp_path) as server:
        request = Request(
            f"{server.url}/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urlopen(request) as answer:
            theirs = json.load(answer)

    make, model = collator(backbone, prompt_stage="label"), module(backbone).backbone
    ids = make.prompt_ids("Is it?", clip.pair_times, 3 * 6)
    assert theirs["prompt_token_ids"] == ids
    assert content.tokens == ids.count(make.config.video_token_id)
    batch = make([Example(Clip("a", Path("a.mp4"), 0, "test"), clip, None, SampleSlot(0))])
    grid = batch.video["video_grid_thw"][0].tolist()
    positions = make.family.position_ids(torch.tensor(ids), grid, clip.pair_times, make.config)
    with torch.no_grad():
        given = {"input_ids": torch.tensor([ids]), "position_ids": positions[:, None]}
        ours = model(**given, **batch.video, use_cache=False).logits[0, -1].log_softmax(-1)
    (first,) = theirs["choices"][0]["logprobs"]["content"]
    found = [one["logprob"] for one in first["top_logprobs"]]
    # vLLM interpolates the tower's learnt positions in another order of operations.
    assert found == pytest.approx(ours.topk(20).values.tolist(), abs=0.02)
