"""Answers of a real server: `transformers serve` with the miniature's base, over HTTP."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rbft.engines.chat import Chat
from rbft.engines.content import AsImages
from rbft.engines.endpoint import EndpointEngine
from rbft.engines.replay import ReplayStore
from rbft.engines.request import Request, Sampling
from rbft.video.frame_settings import FrameSettings
from rbft.video.sampling import Video, decode_video
from tests.recipe.runs import ROOT
from tests.videos import make_video

pytestmark = [
    pytest.mark.recipe,
    pytest.mark.skipif(
        find_spec("fastapi") is None or find_spec("uvicorn") is None,
        reason="transformers serve needs fastapi and uvicorn: pip install 'rbft[dev]'",
    ),
]
TOKENS = 24
# The server looks for the end of the prompt in its decoded text. The miniature's tokenizer, which
# has a token for each word, decodes it with a space and without the line break.
TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|> assistant",
    "fields": {"content": {"close_pattern": r"\s*<\|im_end\|>", "content": "text"}},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "base"
    shutil.copytree(ROOT / "rbft/miniature/base", folder)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"response_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def url(base: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hub = base.parent / "hub"
    hub.mkdir()
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with (base.parent / "log.txt").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "transformers.cli.transformers", "serve", base, *options],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            for _ in range(240):
                assert server.poll() is None, (base.parent / "log.txt").read_text()
                with suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(30)


def written_here(base: Path, videos: dict[str, Video], requests: list[Request]) -> dict[str, str]:
    """What transformers' `generate` writes in this process, greedily."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(base)
    model: Any = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).eval()
    texts = {}
    for request in requests:
        frames = videos[request.id].frames.permute(0, 2, 3, 1).numpy()
        pictures = [{"type": "image", "image": Image.fromarray(frame)} for frame in frames]
        content = [*pictures, {"type": "text", "text": request.prompt}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        ids = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        new = ids[:, inputs["input_ids"].shape[1] :]
        [texts[request.id]] = processor.batch_decode(new, skip_special_tokens=True)
    return texts


def test_a_server_of_transformers_writes_what_generate_writes(
    tmp_path: Path, base: Path, url: str
) -> None:
    sizes = [(56, 84), (84, 84), (112, 56), (84, 112)]
    videos = {
        f"c{number}": decode_video(
            make_video(tmp_path / f"{number}.mp4", 40 + 20 * number, *size),
            FrameSettings(fps=1.0, min_pixels=784, max_pixels=7056),
        )
        for number, size in enumerate(sizes)
    }
    requests = [
        Request(name, "what is the label ?", lambda video=video: video, sampling=Sampling(TOKENS))
        for name, video in videos.items()
    ]
    chat = Chat(str(base), AsImages(), same_model=[f"{base}@main"])
    store = ReplayStore(tmp_path / "answers.jsonl")
    engine = EndpointEngine(chat, [url], store, concurrency=2, attempts=2, timeout=120.0)
    found = {answer.id: answer for answer in engine.answer(requests)}
    assert {answer.status for answer in found.values()} == {"answered"}
    right = written_here(base, videos, requests)
    assert {name: answer.text for name, answer in found.items()} == right
    assert all(right.values())
    # Its name for the model is not the one that was asked for: unless that is said, it is flagged.
    plain = EndpointEngine(
        Chat(str(base), AsImages(), about={"again": 1}), [url], store, timeout=120.0
    )
    [answer] = plain.answer(requests[:1])
    assert (answer.status, answer.model) == ("other_model", f"{base}@main")
