"""The dry run: what it prints, that it leaves nothing, what it refuses; what the docs show."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rbft.backbone.family import FAMILIES
from rbft.backbone.loading import parameter_parts
from tests.recipe.runs import EXPERIMENTS, LOGS, ROOT, rbft, small
from tests.tiny import tiny_config, tiny_model, tiny_processor
from tests.trust import EMPTY, note_trust
from tests.unit.estimate.test_memory import PARAMETERS, SEVEN, backbone

pytestmark = pytest.mark.recipe
DRY = "--dry_run=true"
VALIDATED = "--data.val_size=3"


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", refuse)


def dry_run(folder: Path, capsys: Any, *arguments: str) -> str:
    """What it prints; it must leave nothing but the scan."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    rbft(folder, "fit", *arguments, DRY)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    return capsys.readouterr().out


def refusal(folder: Path, capsys: Any, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        rbft(folder, "fit", *arguments)
    assert ended.value.code == 2
    assert not (folder / LOGS).exists()
    return capsys.readouterr().err.splitlines()[-1]


def row(text: str, title: str) -> list[str]:
    """Cells of the first row of that title."""
    (line, *_) = (line for line in text.splitlines() if line.startswith(f"{title}  "))
    return re.split(r"  +", line)[1:]


def test_it_says_what_would_run(tmp_path, qwen, capsys):
    out = dry_run(tmp_path, capsys, *small(qwen))
    assert max(map(len, out.splitlines())) <= 100
    assert "global batch  4 = 1 device x 2 clips x 2 micro-batches" in out
    assert row(out, "Stage 0 (writing rationales)") == ["14", "14 to write"]
    clips, steps, _, state = row(out, "Stage I (rationales), 2 epochs")
    assert (clips, steps, state) == ("14", "8", "to do")
    assert row(out, "scoring: backbone, zero-shot") == ["5", "to do"]
    parts = parameter_parts(tiny_model("qwen2_5_vl"), FAMILIES["qwen2_5_vl"])
    for part, named in parts.items():
        wide = sum(p.numel() for _, p in named if p.ndim > 1)
        assert row(out, part)[1] == f"{wide:,}"
    assert row(out, "language")[2:] == ["0.001", "0.1"]
    assert "context of the backbone: 4,096 tokens" in out
    assert "No GPU here: compare the peak" in out or torch.cuda.is_available()


def test_rationales_of_an_endpoint_are_not_the_backbone_s(tmp_path, qwen, capsys):
    more = ["--endpoint.model=tiny-vl", "--endpoint.key_variable=null"]
    out = dry_run(tmp_path, capsys, *small(qwen, *more))
    title = "Stage 0 (endpoint tiny-vl writes rationales)"
    assert row(out, title) == ["14", "14 to write"]
    assert "Stage 0, writing" not in out
    assert "Stage 0 (writing" not in out


@pytest.mark.parametrize("trust", [True, False])
def test_the_backbone_s_own_code_is_trusted_as_asked(tmp_path, qwen, capsys, monkeypatch, trust):
    told = note_trust(monkeypatch)
    dry_run(tmp_path, capsys, *small(qwen), f"--model.trust_remote_code={str(trust).lower()}")
    assert {name for name, _ in told} == {"AutoConfig", "AutoProcessor", EMPTY}
    assert {given for _, given in told} == {trust}


def test_scoring_and_writing_have_a_peak_too(tmp_path, qwen, capsys):
    out = dry_run(tmp_path, capsys, *small(qwen, VALIDATED))
    assert "the 4 longest clips (estimate, GiB)" in out
    titles = ("Stage 0, writing", "validation, Stage I (rationales)", "scoring")
    for title in (*titles, "validation, Stage II (labels)"):
        *sizes, peak, moment = row(out, title)
        assert len(sizes) == 3
        assert float(peak) >= max(map(float, sizes))
        assert moment in ("vision tower", "prefill", "scoring the classes", "writing")
    out = dry_run(tmp_path, capsys, *small(qwen, "--data.eval_batch_size=1"))
    assert "the longest clip (estimate, GiB)" in out


def test_it_says_what_is_done(tmp_path, qwen, capsys, monkeypatch):
    arguments = [*small(qwen), "--model.stage=label", "--data.train_size=4"]
    monkeypatch.undo()
    rbft(tmp_path, "fit", *arguments)
    out = dry_run(tmp_path, capsys, *arguments)
    assert row(out, "Stage II (labels), 2 epochs")[-1] == "done"
    assert row(out, "scoring: after Stage II (labels)")[-1] == "done"
    assert "zero-shot" not in out  # a single stage scores nothing else
    with pytest.raises(SystemExit):
        rbft(tmp_path, "fit", *arguments, DRY, "--model.learning_rate=0.5")
    assert "model.learning_rate: 0.001 -> 0.5" in capsys.readouterr().err


def test_frozen_parts_and_zero_shot(tmp_path, qwen, capsys):
    out = dry_run(tmp_path, capsys, *small(qwen, "--model.vision_learning_rate=0"))
    assert row(out, "vision")[-2:] == ["frozen", "-"]
    assert "activations, vision tower" not in out  # nothing of it is kept for a backward pass
    out = dry_run(tmp_path, capsys, *small(qwen, "--stages=[]", "--gpu_gb=2"))
    assert row(out, "scoring: backbone, zero-shot") == ["5", "to do"]
    assert len(row(out, "scoring")) == 5
    assert "Fits a GPU of 2 GiB: " in out
    assert "learning rate" not in out


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configuration of Qwen2.5-VL-7B, a tiny tokenizer, and no weights."""
    folder = tmp_path_factory.mktemp("seven")
    with torch.device("meta"):
        config = backbone("qwen2_5_vl", SEVEN).config
    tiny = tiny_config("qwen2_5_vl")
    for name in ("vision_start", "vision_end", "image", "video"):
        setattr(config, f"{name}_token_id", getattr(tiny, f"{name}_token_id"))
    config.save_pretrained(folder)
    tiny_processor("qwen2_5_vl").save_pretrained(folder)
    return folder


def test_eight_gpus_on_a_machine_without(tmp_path, seven, capsys):
    sharing = ("--trainer.devices=8", "--trainer.strategy=fsdp2", "--trainer.precision=bf16-mixed")
    batch = ("--data.batch_size=1", "--data.global_batch_size=16", "--gpu_gb=80")
    on_gpus = ("--trainer.accelerator=gpu", "--model.gradient_checkpointing=true")
    out = dry_run(tmp_path, capsys, *small(seven, *sharing, *batch, *on_gpus, VALIDATED))
    assert f"{PARAMETERS['qwen2_5_vl']:,} parameters" in out
    assert "global batch  16 = 8 devices x 1 clip x 2 micro-batches" in out
    share = 4 * PARAMETERS["qwen2_5_vl"] / 8 / 2**30
    assert row(out, "weights")[0] == row(out, "gradients")[0] == f"{share:.2f}"
    assert "Fits a GPU of 80 GiB: " in out
    # Scoring gathers the weights in half precision; the optimiser's state is there while training.
    size = PARAMETERS["qwen2_5_vl"] / 2**30
    assert row(out, "scoring")[0] == f"{size * (4 / 8 + 2):.2f}"
    assert row(out, "validation, Stage II (labels)")[0] == f"{size * (4 / 8 + 2 + 8 / 8):.2f}"
    found = re.search(
        r"There is room for model\.gradient_checkpointing false \((\S+) GiB\), which recomputes "
        r"fewer blocks and so is faster\.$",
        out,
        re.MULTILINE,
    )
    assert found is not None
    # These clips are short. Nothing is left to say when it is set.
    none = ("--trainer.accelerator=gpu", "--model.gradient_checkpointing=false")
    out = dry_run(tmp_path, capsys, *small(seven, *sharing, *batch, *none))
    assert "model.gradient_checkpointing" not in out


def test_the_batch_that_is_scored_can_be_what_does_not_fit(tmp_path, seven, capsys):
    size = PARAMETERS["qwen2_5_vl"] / 2**30
    options = ("--stages=[]", "--trainer.precision=bf16-mixed", "--gpu_gb=24")
    out = dry_run(tmp_path, capsys, *small(seven, *options))
    assert row(out, "scoring")[0] == f"{2 * size:.2f}"  # in half precision, as nothing trains
    assert "Fits a GPU of 24 GiB: " in out
    out = dry_run(tmp_path, capsys, *small(seven, *options, "--gpu_gb=16"))
    assert "Does NOT fit a GPU of 16 GiB: " in out
    assert "data.eval_batch_size" in out


def test_one_gpu_is_too_small_for_all_weights_but_not_for_adapters(tmp_path, seven, capsys):
    options = (
        "--trainer.precision=bf16-mixed",
        "--data.batch_size=1",
        "--data.global_batch_size=4",
    )
    out = dry_run(tmp_path, capsys, *small(seven, *options, "--gpu_gb=80"))
    assert "Does NOT fit a GPU of 80 GiB: " in out
    adapters = ("--model.lora.rank=64", "--model.quantize=4bit", "--model.vision_learning_rate=0")
    out = dry_run(tmp_path, capsys, *small(seven, *options, *adapters, "--gpu_gb=24"))
    assert "Fits a GPU of 24 GiB: " in out
    assert row(out, "language adapters")[1] == f"{64 * 28 * 2 * 45056:,}"


def test_wrong_combinations_are_refused(tmp_path, seven, capsys):
    error = refusal(tmp_path, capsys, *small(seven, "--model.quantize=4bit"), DRY)
    assert "model.quantize is 4bit, but weights in 4 bits cannot be trained" in error
    error = refusal(tmp_path, capsys, *small(seven, "--trainer.devices=3"), DRY)
    assert error == (
        "error: data.global_batch_size (4) must be a multiple of devices x data.batch_size (3 x 2 "
        "= 6). Change data.batch_size, trainer.devices or data.global_batch_size."
    )
    frozen = [f"--model.{part}learning_rate=0" for part in ("", "merger_", "vision_")]
    error = refusal(tmp_path, capsys, *small(seven, *frozen), DRY)
    assert error.startswith("error: Nothing would train: language, merger, vision are all frozen.")
    error = refusal(tmp_path, capsys, *small(seven, "--gpu_gb=-3"), DRY)
    assert error == "error: gpu_gb (-3) must be above 0; it is the GPU's memory in GiB."


@pytest.mark.parametrize("more", [(DRY,), ()])
def test_a_clip_beyond_the_context_ends_the_run_at_once(more, tmp_path, qwen, capsys):
    short = tmp_path / "short"
    shutil.copytree(qwen, short)
    config = json.loads((short / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 30
    (short / "config.json").write_text(json.dumps(config))
    error = refusal(tmp_path, capsys, *small(short), *more)
    assert re.fullmatch(
        r"error: Clip target-train-\d{4} \(.+\.mp4\) takes [\d,]+ tokens \([\d,]+ of video, "
        r"[\d,]+ of prompt, [\d,]+ of answer\), but model\.backbone .+short takes at most 30 "
        r"\(max_position_embeddings\)\. 14 of 14 clips are too long\. Lower data\.max_frames, "
        r"data\.fps or data\.max_pixels\.",
        error,
    )


def test_the_output_shown_in_the_docs_is_what_it_prints(tmp_path, capsys):
    text = (ROOT / "docs/hardware.md").read_text(encoding="utf-8")
    chapter = text.split("\n## Before you start: the dry run\n")[1].split("\n## ")[0]
    (command, shown) = re.findall(r"```\n(.*?)```", chapter, re.DOTALL)
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "rbft", "fit"]
    for name in ("experiments", "rbft"):
        (tmp_path / name).symlink_to(EXPERIMENTS.parent / name)
    capsys.readouterr()
    rbft(tmp_path, *words[3:])
    printed = capsys.readouterr().out
    for part in shown.split("[...]\n"):
        assert part.strip() in printed
