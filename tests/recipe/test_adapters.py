"""Whole runs with adapters, on plain and on 4-bit weights, and what export makes of them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rbft.callbacks.checks import TrainableParts
from rbft.card import Card
from rbft.runs.folder import revision
from rbft.video.frame_settings import FrameSettings
from rbft.video.sampling import decode_video
from tests.recipe.runs import (
    EXPERIMENTS,
    LOGS,
    STAGES,
    VIDEO_INDICES,
    digest,
    rbft,
    read_json,
    read_lines,
    small,
)

pytestmark = pytest.mark.recipe
SECRET = "hf_this_stays_between_us"
LORA = ("--model.lora.rank=8", "--model.lora.alpha=16", "--model.vision_learning_rate=0")
KINDS = {
    "full": ("--stages=[label]",),
    "lora": LORA,
    "qlora": (*LORA, "--model.quantize=4bit", "--model.lora.dropout=0.1"),
    "dora": (*LORA, "--model.lora.use_dora=true", "--model.lora.use_rslora=true"),
}


class Finished:
    """A finished run, and the weights with which each of its stages started."""

    def __init__(self, folder: Path, backbone: Path, kind: str) -> None:
        self.folder, self.kind, self.backbone = folder, kind, backbone
        frames = ("--data.min_frames=2", "--data.max_frames=2")
        self.options = [*small(backbone), *KINDS[kind], *frames]
        self.run = folder / LOGS / "small"
        self.starts: list[dict[str, torch.Tensor]] = []
        announce = TrainableParts.on_train_start

        def note_start(callback: TrainableParts, trainer: Any, module: Any) -> None:
            named = module.backbone.named_parameters()
            self.starts.append({name: value.detach().clone() for name, value in named})
            announce(callback, trainer, module)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainableParts, "on_train_start", note_start)
            patch.setenv("HF_TOKEN", SECRET)
            rbft(folder, "fit", *self.options)

    def adapter(self, stage: str) -> dict[str, torch.Tensor]:
        """What a stage left, by the names that the tensors have in memory."""
        state = load_file(self.run / stage / "weights/adapter_model.safetensors")
        return {memory_name(name): tensor for name, tensor in state.items()}


def memory_name(name: str) -> str:
    name = name.removeprefix("base_model.model.")
    for side in ("lora_A", "lora_B"):
        name = name.replace(f".{side}.", f".{side}.default.")
    name = name.replace(".lora_magnitude_vector", ".lora_magnitude_vector.default.weight")
    return name.replace("visual.merger.", "visual.merger.modules_to_save.default.")


class Runs(dict[str, Finished]):
    """The finished runs by kind, each made when it is asked for."""

    def __init__(self, folder: Path, backbone: Path) -> None:
        self.folder, self.backbone = folder, backbone

    def __missing__(self, kind: str) -> Finished:
        self[kind] = Finished(self.folder / kind, self.backbone, kind)
        return self[kind]


@pytest.fixture(scope="module")
def runs(backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("adapters"), backbones["qwen2_5_vl"])


DORA_TOO = pytest.param("dora", marks=pytest.mark.long)


@pytest.fixture(params=["lora", "qlora", DORA_TOO])
def run(request: pytest.FixtureRequest, runs: Runs) -> Finished:
    return runs[request.param]


@pytest.fixture(params=["full", "lora", "qlora", DORA_TOO])
def any_run(request: pytest.FixtureRequest, runs: Runs) -> Finished:
    return runs[request.param]


def test_a_stage_leaves_an_ordinary_adapter_with_processor_and_card(run):
    for stage in STAGES:
        names = {file.name for file in (run.run / stage / "weights").iterdir()}
        kept = {"adapter_config.json", "adapter_model.safetensors", "card.yaml", "rbft.json"}
        assert kept | {"processor_config.json", "tokenizer.json", "chat_template.jinja"} <= names
        assert not {"model.safetensors", "config.json"} & names
    for place in VIDEO_INDICES:
        assert read_json(run.run / place / "test.json")["n_scored"] == 5
    assert not list(run.run.rglob("checkpoints"))


def test_the_weights_say_what_made_them(run):
    for stage, stages in (("rationale", ["rationale"]), ("label", ["rationale", "label"])):
        note = read_json(run.run / stage / "weights/rbft.json")
        assert note["stages"] == stages
        assert note["base"] == {"name": str(run.backbone), "fingerprint": note["backbone"]}
        assert note.get("revision") == revision()


def test_stage_two_starts_from_base_and_stage_one_s_adapter_bit_for_bit(run):
    one, two = (run.adapter(stage) for stage in STAGES)
    trained = set(one)
    assert len(trained) == (42 if run.kind == "dora" else 28) + 5
    assert len(run.starts) == 2
    assert all(torch.equal(run.starts[1][name], one[name]) for name in trained)
    # Nothing else has moved, and all of this has, in both stages.
    frozen = set(run.starts[0]) - trained
    assert all(torch.equal(run.starts[0][name], run.starts[1][name]) for name in frozen)
    assert not any(torch.equal(run.starts[0][name], one[name]) for name in trained)
    assert not any(torch.equal(one[name], two[name]) for name in trained)
    # Stage I starts from nothing: the adapters' outputs are 0.
    assert all(not run.starts[0][name].any() for name in trained if "lora_B" in name)


def test_a_second_fit_changes_nothing_and_other_adapters_are_another_run(run, capsys):
    def times() -> dict[Path, int]:
        files = [file for file in run.folder.rglob("*") if file.is_file()]
        return {file: file.stat().st_mtime_ns for file in files if file.name != "log.txt"}

    before = times()
    rbft(run.folder, "fit", *run.options)
    with pytest.raises(SystemExit, match="2"):
        rbft(run.folder, "fit", *run.options, "--model.lora.rank=4")
    assert "model.lora.rank: 8 -> 4\n" in capsys.readouterr().err
    assert times() == before


def test_rationales_of_4_bits_stand_apart(runs):
    names = {
        kind: [
            file.name.rpartition("-")[0]
            for file in (runs[kind].folder / LOGS / "rationales").glob("*.jsonl")
        ]
        for kind in ("lora", "qlora")
    }
    assert names["lora"] == ["miniature0-qwen2_5_vl-rationale"]
    assert names["qlora"] == ["miniature0-qwen2_5_vl-4bit-rationale"]


def test_a_token_of_the_hub_is_nowhere(any_run):
    files = [file for file in any_run.folder.rglob("*") if file.is_file()]
    assert len(files) > 10
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]


def test_a_weights_folder_can_be_tested_without_naming_its_settings(run, tmp_path):
    shutil.copytree(run.run / "label/weights", tmp_path / "mine")
    plain = [option for option in run.options if "model.lora" not in option]
    rbft(tmp_path, "test", *plain, "--weights=mine")
    (file,) = (tmp_path / LOGS / "small").glob("mine-*/test.json")
    found = read_json(file)
    assert found["metrics"] == read_json(run.run / "label/test.json")["metrics"]


def test_an_adapter_predicts_without_its_experiment(run, tmp_path, cache, capsys):
    videos = ",".join(map(str, sorted(cache.rglob("*test-000?.mp4"))[:3]))
    given = (f"--videos=[{videos}]", "--trainer.enable_progress_bar=false")
    rbft(run.folder, "predict", *run.options, *given, f"--output={tmp_path}/known.jsonl")
    mine = shutil.copytree(run.run / "label/weights", tmp_path / "mine")
    rbft(tmp_path, "predict", "--weights=mine", *given, "--output=alone.jsonl")
    expected = (tmp_path / "known.jsonl").read_bytes()
    assert (tmp_path / "alone.jsonl").read_bytes() == expected != b""
    note = read_json(mine / "rbft.json")
    if note["inference"]["model.quantize"]:  # what follows is not about how the base is stored
        return
    # The base lies elsewhere.
    base = shutil.copytree(note["base"]["name"], tmp_path / "base")
    note["base"]["name"] = str(tmp_path / "gone")
    (mine / "rbft.json").write_text(json.dumps(note))
    alone = ("predict", "--weights=mine", *given, "--output=moved.jsonl")
    with pytest.raises(SystemExit, match="2"):
        rbft(tmp_path, *alone)
    assert "Say where it lies now: --model.backbone FOLDER." in capsys.readouterr().err
    rbft(tmp_path, *alone, f"--model.backbone={base}")
    assert (tmp_path / "moved.jsonl").read_bytes() == expected
    # Another base is no base of it.
    (base / "config.json").write_text((base / "config.json").read_text() + " ")
    with pytest.raises(SystemExit, match="2"):
        rbft(tmp_path, *alone, f"--model.backbone={base}", "--output=other.jsonl")
    assert (
        f"error: weights folder mine is an adapter of {tmp_path}/gone (" in capsys.readouterr().err
    )


def test_a_stage_alone_goes_on_from_an_adapter(run, tmp_path):
    more = ("--model.stage=label", f"--model.weights={run.run}/rationale/weights")
    rbft(tmp_path, "fit", *run.options, *more)
    file = "small/label/weights/adapter_model.safetensors"
    assert digest(tmp_path / LOGS / file) == digest(run.folder / LOGS / file)


def test_another_base_is_refused(run, backbones, tmp_path, capsys):
    options = [
        option.replace(str(run.backbone), str(backbones["qwen2_vl"])) for option in run.options
    ]
    shutil.copytree(run.run / "label/weights", tmp_path / "mine")
    note = read_json(tmp_path / "mine/rbft.json")
    note["base"]["name"] = "gone"
    (tmp_path / "mine/rbft.json").write_text(json.dumps(note))
    with pytest.raises(SystemExit, match="2"):
        rbft(tmp_path, "export", *options, "--weights=mine", "--output=out")
    assert "error: weights folder mine is an adapter of gone (" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["lora", DORA_TOO])
def test_two_adapters_on_one_base_predict_as_they_did(kind, runs, tmp_path, cache, capsys):
    """Both stages' of a run; neither an experiment nor the base's old place is needed."""
    run = runs[kind]
    folders = [f"{stage}={run.run}/{stage}/weights" for stage in STAGES]
    rbft(tmp_path, "export", f"--adapters=[{', '.join(folders)}]", "--output=both")
    said = capsys.readouterr().out
    assert f"Exported rationale, label on {run.backbone} to both.\n" in said
    assert "vLLM cannot serve label unmerged: " in said
    assert ("it is decomposed" in said) == (run.kind == "dora")
    (tmp_path / "both").rename(tmp_path / "moved")
    (clip, *_) = sorted(cache.rglob("*test-0002.mp4"))
    given = (f"--videos={clip}", "--trainer.enable_progress_bar=false")
    rbft(run.folder, "predict", *run.options, *given, f"--output={tmp_path}/known.jsonl")
    rbft(tmp_path, "predict", "--weights=moved/label", *given, "--output=found.jsonl")
    expected = (tmp_path / "known.jsonl").read_bytes()
    assert (tmp_path / "found.jsonl").read_bytes() == expected != b""


FRESH = """
import json, sys
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, inputs, output = sys.argv[1:]
given = torch.load(inputs, weights_only=True)
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()
processor = AutoProcessor.from_pretrained(folder)
content = [{"type": "video"}, {"type": "text", "text": given["prompt"]}]
turn = [{"role": "user", "content": content}]
text = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
results = []
for frames in given["videos"]:
    asked = processor(
        text=[text],
        videos=[frames],
        do_resize=False,
        do_sample_frames=False,
        return_tensors="pt",
        video_metadata=[{"total_num_frames": 2, "fps": 1.0, "frames_indices": [0, 1]}],
    )
    scores = []
    for word in given["words"]:
        answer = processor.tokenizer(word, add_special_tokens=False)["input_ids"]
        answer = torch.tensor([[*answer, processor.tokenizer.eos_token_id]])
        inputs = dict(asked)
        for name, fill in (("attention_mask", 1), ("mm_token_type_ids", 0)):
            rest = torch.full_like(answer, fill)
            inputs[name] = torch.cat([asked[name], rest], -1)
        inputs["input_ids"] = torch.cat([asked["input_ids"], answer], -1)
        with torch.no_grad():
            logits = model(**inputs).logits[0, -answer.shape[1] - 1 : -1]
        scores.append(logits.float().log_softmax(-1).gather(-1, answer[0, :, None]).sum())
    results.append(torch.stack(scores).softmax(-1).tolist())
loaded = {"results": results, "dtype": str(model.dtype), "own": "rbft" in sys.modules}
json.dump(loaded, open(output, "w"))
"""


def test_an_exported_run_scores_the_same_in_a_fresh_process(any_run, cache, tmp_path):
    """With plain transformers: clips of one pair of frames stand where its positions are ours."""
    rbft(any_run.folder, "export", *any_run.options, f"--output={tmp_path / 'mine'}")
    folder = sorted({path.parent for path in cache.rglob("*test-0004.mp4")})[0]
    files = sorted(folder.glob("*test-*.mp4"))[:5]
    # In 4 bits the base was another one while it was scored; the merged weights score like this.
    weights = f"--weights={tmp_path / 'mine'}" if any_run.kind == "qlora" else "--weights=run"
    videos = f"--videos=[{','.join(map(str, files))}]"
    output = f"--output={tmp_path / 'predictions.jsonl'}"
    plain = [option for option in any_run.options if "quantize" not in option]
    rbft(any_run.folder, "predict", *plain, videos, output, weights)
    rows = read_lines(tmp_path / "predictions.jsonl")

    card = Card.load(tmp_path / "mine/card.yaml")
    settings = FrameSettings(fps=1.0, min_frames=2, max_frames=2, min_pixels=784, max_pixels=3136)
    frames = [decode_video(file, settings) for file in files]
    given = {"prompt": card.prompt("label"), "words": list(card.words.values())}
    torch.save({**given, "videos": [video.frames for video in frames]}, tmp_path / "given.pt")
    subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "mine"), "given.pt", "found.json"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        check=True,
        capture_output=True,
    )
    found = read_json(tmp_path / "found.json")
    assert (found["dtype"], found["own"]) == ("torch.float32", False)
    assert len(rows) == len(found["results"]) == 5
    for row, probabilities in zip(rows, found["results"], strict=True):
        assert row["probabilities"] == pytest.approx(
            dict(zip(card.classes, probabilities, strict=True)), abs=2e-5
        )
    assert len({tuple(row["probabilities"].values()) for row in rows}) > 1


def test_an_export_is_no_adapter_any_more(any_run, tmp_path, capsys):
    rbft(any_run.folder, "export", *any_run.options, f"--output={tmp_path / 'mine'}")
    names = {file.name for file in (tmp_path / "mine").iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "README.md"} <= names
    assert {"card.yaml", "rbft.json", "processor_config.json", "tokenizer.json"} <= names
    assert not [name for name in names if "adapter" in name]
    assert "base" not in read_json(tmp_path / "mine/rbft.json")
    state = load_file(tmp_path / "mine/model.safetensors")
    assert set(state) == set(load_file(any_run.backbone / "model.safetensors"))
    # And scores as whole weights, where the run did not score in 4 bits.
    if any_run.kind != "qlora":
        mine = f"--weights={tmp_path / 'mine'}"
        plain = [option for option in any_run.options if "model.lora" not in option]
        rbft(tmp_path, "test", *plain, mine)
        (file,) = (tmp_path / LOGS / "small").glob("mine-*/test.json")
        found = read_json(file)
        assert found["metrics"] == read_json(any_run.run / "label/test.json")["metrics"]


@pytest.mark.parametrize("overlay", ["one_80gb_gpu", "one_24gb_gpu"])
def test_an_overlay_for_one_gpu_runs_where_there_is_none(overlay, backbones, tmp_path):
    """With the tiny overlay after it, which says otherwise for accelerator and precision."""
    options = small(backbones["qwen2_vl"], "--trainer.max_epochs=1", "--score_each_stage=false")
    options.insert(1, f"--config={EXPERIMENTS / 'hardware' / overlay}.yaml")
    rbft(tmp_path, "fit", *options, f"--data.cache_folder={tmp_path / 'cache'}")
    run = tmp_path / LOGS / "small"
    assert read_json(run / "label/test.json")["n_scored"] == 5
    config = read_json(run / "label/weights/adapter_config.json")
    assert (config["r"], config["lora_alpha"]) == (64, 128)
    assert len(list((tmp_path / "cache/features").glob("*.features"))) == 14 + 5
