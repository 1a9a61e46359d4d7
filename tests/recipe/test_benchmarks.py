"""The benchmarks against other libraries, at a tiny size."""

import json
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.examples import CARD
from tests.recipe.runs import ROOT

pytestmark = pytest.mark.recipe
FOLDER = ROOT / "benchmarks"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Modules of the folder, whose scripts import each other by bare names."""
    monkeypatch.syspath_prepend(FOLDER)
    import record  # type: ignore[import-not-found]
    import train_step  # type: ignore[import-not-found]
    import world  # type: ignore[import-not-found]

    return SimpleNamespace(record=record, train_step=train_step, world=world)


def run(name: str, *options: str, tiny: bool = True) -> str:
    """What a script prints, tables with one blank between words."""
    process = subprocess.run(
        [sys.executable, str(FOLDER / name), *(["--tiny"] if tiny else []), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert process.returncode == 0, process.stderr
    return re.sub(" +", " ", process.stdout)


@pytest.mark.long
def test_a_step_is_compared_and_timed_against_transformers():
    said = run("train_step.py", "--rounds=1", "--clips=4", "--stages", "rationale", "--swift=/none")
    assert "trl: not installed; give --trl PYTHON" in said
    assert "ms-swift: not installed (/none cannot be started)" in said
    assert "transformers: the same" in said
    speeds = re.findall(r"^(rbft|transformers) \S+ \S+ \S+ \S+ (\S+) (\S+)x", said, re.MULTILINE)
    assert [name for name, *_ in speeds] == ["rbft", "transformers"]
    assert speeds[0][2] == "1.00"
    assert all(float(clips) > 0 for _, clips, _ in speeds)


@pytest.mark.long
def test_scored_and_written_classes_are_those_of_transformers():
    said = run("evaluate.py", "--rounds=1", "--tests=4", "--batch=3", "--teach=30")
    ways = dict(re.findall(r"^([^\d\n]+) \d.*x \S+ (\d of 4) \d of 4 \d$", said, re.MULTILINE))
    assert ways == {
        "transformers, written one by one": "4 of 4",
        "rbft, written in batches": "4 of 4",
        "rbft, class words scored": "4 of 4",
    }


@pytest.mark.long
def test_rationales_are_those_of_transformers():
    said = run("generate.py", "--rounds=1", "--clips=4", "--batch=3", "--longest=24")
    found = re.findall(r"^(.+) \S+ \(\S+\) \S+x \S+ (\d of 4) \S+$", said, re.MULTILINE)
    assert found == [("transformers, one by one", "4 of 4"), ("rbft, 3 at a time", "4 of 4")]


@pytest.mark.long
@pytest.mark.skipif(find_spec("fastapi") is None, reason="transformers serve needs fastapi")
def test_servers_are_timed_when_they_write_the_same():
    said = run("rationales.py", "--rounds=1")
    assert "transformers serve, images: 9 of 9 texts are the same" in said
    found = re.findall(r"^(.+) ([13]) \d+ \(\d+-\d+\) \S+x$", said, re.MULTILINE)
    assert found[:4] == [
        (way, prompts) for way in ("backbone", "transformers serve") for prompts in "13"
    ]


@pytest.mark.long
def test_cost_by_frames():
    said = run("frames.py", "--rounds=1", "--frames", "4", "--clips", "1")
    # A prompt and an answer, and 18 video tokens for each of two pairs of frames.
    (row,) = re.findall(r"^ ?4 1 (\d+) (\S+) \(\S+\) \d+ \d+ \S+ (\S+) (\S+)", said, re.MULTILINE)
    assert int(row[0]) > 36
    assert all(float(value) > 0 for value in row[1:])


@pytest.mark.long
def test_the_shares_of_a_step():
    said = run("profile_step.py", "--stages", "label", "--steps=1")
    shares = dict(re.findall(r"^([A-Z]?[^\n%]+) (-?\d+)%$", said, re.MULTILINE))
    assert abs(sum(map(int, shares.values())) - 100) <= len(shares) / 2  # each is rounded
    assert int(shares["matrix products of tower and decoder"]) > 0


@pytest.mark.long
def test_the_memory_of_a_step_by_phase():
    said = run("memory_step.py", "--stages", "label")
    found = re.findall(r"^([a-zA-Z,:' ]+) ([\d.]+) ([\d.]+) ([\d.]+)$", said, re.MULTILINE)
    phases = {name: tuple(map(float, figures)) for name, *figures in found}
    steps = ("clips read", "forward pass", "backward pass", "clipping and AdamW")
    assert list(phases) == [
        "libraries, settings and clips' list",
        "weights loaded",
        *(f"first step: {name}" for name in steps),
        *(f"later steps: {name}" for name in steps),
    ]
    assert all(files < resident <= highest + 0.01 for resident, files, highest in phases.values())
    assert re.search(r"kept for the backward pass by a step's forward pass: 0\.\d\d GB", said)


def recorded(**more: Any) -> dict[str, Any]:
    step = {"patches": 2240, "tokens": 700, "supervised": 6, "loss": 12.0}
    norms = {"merger": 0.4, "vision": 0.2, "head": 0.4, "language": 0.8}
    return {**step, "norms": norms, **more}


def test_steps_within_tolerance_are_the_same(scripts):
    norms = {**recorded()["norms"], "merger": 0.4 * 1.019}
    assert scripts.train_step.differences(recorded(), recorded(norms=norms, loss=12.2)) == []


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"patches": 2239}, "patches 2239, not 2240"),
        ({"tokens": 702}, "tokens 702, not 700"),
        ({"supervised": 8}, "supervised 8, not 6"),
        ({"loss": 12.3}, "loss 12.3000, not 12.0000"),
        (
            {"norms": {"merger": 0.4, "vision": 0.19, "head": 0.4, "language": 0.8}},
            "gradient of vision 0.1900, not 0.2000",
        ),
    ],
)
def test_other_work_is_named(scripts, other, message):
    assert scripts.train_step.differences(recorded(), recorded(**other)) == [message]


@pytest.mark.parametrize(
    "asked",
    [
        {"labels": torch.tensor([[-100, -100, 5, 6], [-100, 5, -100, -100]])},
        {"logits_to_keep": torch.tensor([[False, True, True, False], [True, False, False, False]])},
        {"logits_to_keep": torch.tensor([1, 2, 4])},
    ],
)
def test_the_recorder_counts_what_the_model_gets(scripts, tmp_path, asked):
    class Model(torch.nn.Linear):
        def forward(self, **given: Any) -> None:  # type: ignore[override]
            del given

    model = Model(2, 2)
    recorder = scripts.record.Recorder(tmp_path / "record.json", steps=0, pad=0)
    recorder.watch(model)
    ids = torch.tensor([[7, 7, 5, 6], [7, 5, 0, 0]])
    model(input_ids=ids, pixel_values_videos=torch.zeros(10, 3), **asked)
    recorder.step()
    recorder.finish()
    found = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    counts = {"patches": 10, "tokens": 6, "padded": 8, "supervised": 3}
    assert {name: found[name] for name in counts} == counts
    assert len(found["cpu"]) == len(found["wall"]) == 1


def test_gradients_by_part(scripts, tmp_path):
    class Model(torch.nn.Module):
        def named_parameters(self, *_: Any, **__: Any) -> Any:
            for name, gradient in (
                ("model.visual.merger.mlp.0.weight", [3.0]),
                ("model.visual.blocks.0.attn.qkv.weight", [2.4, 3.2]),
                ("lm_head.weight", [5.0]),
                ("model.language_model.embed_tokens.weight", [6.0]),
                ("model.language_model.norm.weight", None),
            ):
                parameter = torch.nn.Parameter(
                    torch.zeros(1 if gradient is None else len(gradient))
                )
                parameter.grad = None if gradient is None else torch.tensor(gradient)
                yield name, parameter

    recorder = scripts.record.Recorder(tmp_path / "record.json", steps=1, pad=0, compare=True)
    recorder.gradients(Model())
    expected = {"merger": 3.0, "vision": 4.0, "head": 5.0, "language": 6.0}
    assert recorder.norms == pytest.approx(expected)


def test_special_tokens_have_qwens_ids(scripts):
    tokenizer = scripts.world.make_tokenizer(scripts.world.VOCABULARY)
    # As in config.json of Qwen2.5-VL-7B-Instruct.
    ids = {
        "<|endoftext|>": 151_643,
        "<|im_end|>": 151_645,
        "<|vision_start|>": 151_652,
        "<|vision_end|>": 151_653,
        "<|image_pad|>": 151_655,
        "<|video_pad|>": 151_656,
    }
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in ids} == ids
    text = "Is what happens normal or abnormal?"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


class Server(BaseHTTPRequestHandler):
    """Stands for vLLM: is sure of "abnormal" for the second video, and of "normal" for others."""

    asked: list[Any]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        video, text = body["messages"][0]["content"]
        self.asked.append((self.path, body["model"], text["text"], video["video_url"]["url"]))
        words = [("normal", 0.75), ("ab", 0.2), ("or", 0.05)]
        if video["video_url"]["url"].endswith("b.mp4"):
            words = [("ab", 0.9), ("normal", 0.1)]
        tops = [{"token": f" {word}", "logprob": math.log(share)} for word, share in words]
        said = {"content": {"normal": " normal", "ab": " Abnormal."}[words[0][0]]}
        choice = {"message": said, "logprobs": {"content": [{"top_logprobs": tops}]}}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [choice]}).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    Server.asked = []
    with HTTPServer(("127.0.0.1", 0), Server) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def test_a_server_is_asked_and_compared(server: HTTPServer, tmp_path: Path):
    CARD.save(tmp_path / "card.yaml")
    rows = [
        {"path": "/a.mp4", "label": "quiet", "probabilities": {"quiet": 0.7, "alarm": 0.3}},
        {"path": "/b.mp4", "label": "alarm", "probabilities": {"quiet": 0.1, "alarm": 0.9}},
        {"path": "/c.mp4", "label": "alarm", "probabilities": {"quiet": 0.4, "alarm": 0.6}},
        {"path": "/d.mp4", "error": "damaged"},
    ]
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    url = f"http://127.0.0.1:{server.server_port}/v1"
    options = [str(file), f"--folder={tmp_path}", f"--url={url}", "--model=yard"]
    said = run("served.py", *options, tiny=False)
    assert "2 of 3 videos have the same class" in said
    # 0.75 and 0.2 are 0.789 and 0.211 of what both have.
    assert "probabilities differ by 0.1596 on average, by 0.3895 at most" in said
    assert Server.asked[1] == (
        "/v1/chat/completions",
        "yard",
        "Is it normal or abnormal?",
        "file:///b.mp4",
    )


@pytest.mark.long
def test_frames_are_compared_with_those_of_other_readers():
    pytest.importorskip("decord")
    pytest.importorskip("qwen_vl_utils")
    kinds = ["h264_b_frames_mp4", "packed_avi", "mirrored"]
    said = run("frames_truth.py", "--rounds=0", "--only", *kinds, tiny=False)
    assert re.search(r"^h264_b_frames_mp4 40 right right right right( right)?$", said, re.MULTILINE)
    assert re.search(r"^packed_avi 40 wrong wrong right right( right)?$", said, re.MULTILINE)
    assert re.search(r"^rbft 3 0 0 \d", said, re.MULTILINE)
