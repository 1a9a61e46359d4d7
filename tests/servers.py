"""Servers of other projects with a backbone on this machine, for tests and benchmarks."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbft.video.sampling import Video

START_SECONDS = 240
# `transformers serve` looks for the end of the prompt in its decoded text. The miniature's
# tokenizer, which has a token for each word, decodes it with a space and without the line break.
TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|> assistant",
    "fields": {"content": {"close_pattern": r"\s*<\|im_end\|>", "content": "text"}},
}


@dataclass(frozen=True)
class Serving:
    """A server that is ready.

    Attributes:
        url: Its base URL.
        model: The name under which its model is asked.
        answers_as: The name under which it answers.
    """

    url: str
    model: str
    answers_as: str


@contextmanager
def transformers_serve(backbone: Path, folder: Path) -> Iterator[Serving]:
    """`transformers serve` with a backbone in 32 bits, for as long as the block lasts.

    Args:
        backbone: A `from_pretrained` folder; a copy of it is served.
        folder: Takes the copy, the server's log and an empty hub.
    """
    base = folder / "base"
    shutil.copytree(backbone, base)
    config = base / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"response_template": TEMPLATE}))
    hub = folder / "hub"
    hub.mkdir()
    port = _free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(base)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with _started(command, port, folder / "transformers.txt", {"HF_HUB_CACHE": str(hub)}) as url:
        yield Serving(url, str(base), f"{base}@main")


def written_from_images(
    backbone: Path, asked: Sequence[tuple[str, Video]], tokens: int
) -> list[str]:
    """What transformers' `generate` writes of frames as images, in this process, greedily.

    Args:
        backbone: A `from_pretrained` folder.
        asked: Prompts and clips.
        tokens: Of a text at most.
    """
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(backbone)
    model: Any = AutoModelForImageTextToText.from_pretrained(backbone, dtype=torch.float32).eval()
    texts = []
    for prompt, video in asked:
        frames = video.frames.permute(0, 2, 3, 1).numpy()
        pictures = [{"type": "image", "image": Image.fromarray(frame)} for frame in frames]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": [*pictures, {"type": "text", "text": prompt}]}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        new = ids[:, inputs["input_ids"].shape[1] :]
        texts += processor.batch_decode(new, skip_special_tokens=True)
    return texts


def find_vllm() -> str | None:
    """The program `vllm` on the PATH, whose environment is not that of rbft."""
    return shutil.which("vllm")


@contextmanager
def vllm_serve(backbone: Path, folder: Path, *options: str) -> Iterator[Serving]:
    """`vllm serve` with a backbone in 32 bits, for as long as the block lasts.

    Args:
        backbone: A `from_pretrained` folder.
        folder: Takes the server's log.
        *options: Further options of the program.
    """
    program, port = find_vllm(), _free_port()
    assert program is not None, "there is no program vllm on the PATH"
    command = [program, "serve", str(backbone), "--served-model-name", "served"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--trust-request-mm-kwargs", "--limit-mm-per-prompt", '{"video": 1, "image": 0}']
    command += ["--max-model-len", "4096", "--generation-config", "vllm", "--enforce-eager"]
    command += options
    more = {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # other programs run here too
        "VLLM_NO_USAGE_STATS": "1",
    }
    with _started(command, port, folder / "vllm.txt", more) as url:
        yield Serving(url, "served", "served")


@contextmanager
def _started(
    command: Sequence[str], port: int, log: Path, environment: Mapping[str, str]
) -> Iterator[str]:
    """Starts a server, waits until it is healthy, and ends it with all its processes."""
    with log.open("wb") as stream:
        server = subprocess.Popen(
            command,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        try:
            ready = time.monotonic() + START_SECONDS
            while not _healthy(port):
                assert server.poll() is None, log.read_text(errors="replace")
                assert time.monotonic() < ready, f"not ready: {log.read_text(errors='replace')}"
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _healthy(port: int) -> bool:
    with suppress(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        return True
    return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
