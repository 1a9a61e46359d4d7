"""Rationales per minute: the backbone in rbft's own process, and through servers.

The miniature's base in 32 bits on one thread, greedily, with one prompt and with three about each
clip. Before anything is timed, the texts are compared: vLLM, which takes the frames as a video,
must write the backbone's, and `transformers serve`, which takes images, what `generate` writes from
images. Timed is the whole `rationalize` in a process that has imported everything; frames come from
a full cache.

Run: python benchmarks/rationales.py --rounds 3 (vLLM takes part if a program vllm is on the PATH)
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from table import machine, middle

from rbft.miniature.data import Miniature
from rbft.runtime.console import print_rank_zero, table
from rbft.video.sampling import Video
from tests.recipe.runs import EXPERIMENTS, LOGS, ROOT, rbft, read_lines
from tests.servers import Serving, find_vllm, transformers_serve, vllm_serve, written_from_images

BASE = ROOT / "rbft/miniature/base"
PROMPTS = ("rationale", "less", "least")
PIXELS = {"min_pixels": 784, "max_pixels": 7056}  # as experiments/miniature.yaml has them
BACKBONE = "backbone"
TRANSFORMERS, VLLM = "transformers serve", "vllm serve"
Texts = dict[tuple[str, str], str]  # by prompt and clip


def through(server: Serving, frames: str) -> list[str]:
    """Options that have a server write."""
    return [
        f"--endpoint.model={server.model}",
        f"--endpoint.same_model=[{server.answers_as}]",
        f"--endpoint.urls=[{server.url}]",
        "--endpoint.key_variable=null",
        f"--endpoint.frames={frames}",
    ]


def write(
    folder: Path, prompts: tuple[str, ...], clips: int, longest: int, way: list[str]
) -> tuple[float, Texts]:
    """Writes rationales with the command.

    Returns:
        Seconds, and the texts.
    """
    options = [
        f"--config={EXPERIMENTS / 'miniature.yaml'}",
        f"--model.backbone={BASE}",
        f"--model.max_new_tokens={longest}",
        f"--data.train_size={clips}",
        "--data.test_size=1",
        "--trainer.enable_progress_bar=false",
        f"--prompts=[{', '.join(prompts)}]",
        *way,
    ]
    begun = time.monotonic()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        rbft(folder, "rationalize", *options)
    seconds = time.monotonic() - begun
    texts = {}
    for prompt in prompts:
        (file,) = (folder / LOGS / "rationales").glob(f"*-{prompt}-*.jsonl")
        texts |= {(prompt, one["id"]): one["rationale"] for one in read_lines(file)}
    assert len(texts) == clips * len(prompts)
    return seconds, texts


def from_images(backbone: Path, clips: int, longest: int) -> Texts:
    """What transformers' `generate` writes from images, in this process."""
    defaults = yaml.safe_load((ROOT / "rbft/defaults.yaml").read_text(encoding="utf-8"))
    settings = {**defaults["data"]["init_args"], **PIXELS}
    data = Miniature(train_size=clips, test_size=1, **settings)
    with redirect_stderr(io.StringIO()):
        found = {clip.id: data.reader.decode(clip) for clip in data.clips_to_describe()}
    asked: list[tuple[tuple[str, str], str, Video]] = []
    for prompt in PROMPTS:
        words = data.card.prompt(prompt)
        asked += [((prompt, name), words, video) for name, video in found.items()]
    texts = written_from_images(backbone, [(words, video) for _, words, video in asked], longest)
    return {key: text.strip() for (key, *_), text in zip(asked, texts, strict=True)}


def refuse_other_texts(way: str, found: Mapping[Any, str], right: Mapping[Any, str]) -> str:
    """Says how many texts are the same.

    Raises:
        SystemExit: If one is not: other work is not to be timed.
    """
    other = [key for key, text in right.items() if found[key] != text]
    if other:
        first = other[0]
        raise SystemExit(
            f"{way}: {len(other)} of {len(right)} texts differ, so nothing is timed. The first, "
            f"{first}: {found[first]!r} instead of {right[first]!r}."
        )
    return f"{way}: {len(right)} of {len(right)} texts are the same"


def main() -> None:
    """Compares, times all ways in turn, prints a table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all ways (default 3)")
    parser.add_argument("--clips", type=int, default=48, help="clips to describe (default 48)")
    parser.add_argument("--longest", type=int, default=64, help="most tokens (default 64)")
    parser.add_argument("--tiny", action="store_true", help="three clips, to try the script")
    given = parser.parse_args()
    clips, longest = (3, 16) if given.tiny else (given.clips, given.longest)
    print_rank_zero(machine("torch", "transformers"))
    with tempfile.TemporaryDirectory() as name, ExitStack() as servers:
        root = Path(name).resolve()
        os.environ["RBFT_CACHE"] = str(root / "cache")
        ways: dict[str, list[str]] = {BACKBONE: []}
        _, right = write(root / "first", PROMPTS, clips, longest, [])  # fills the frame cache
        if find_spec("fastapi") is not None and find_spec("uvicorn") is not None:
            (root / "transformers").mkdir()
            server = servers.enter_context(transformers_serve(BASE, root / "transformers"))
            ways[TRANSFORMERS] = through(server, "images")
            images = from_images(Path(server.model), clips, longest)
            _, texts = write(root / "t", PROMPTS, clips, longest, ways[TRANSFORMERS])
            print_rank_zero(refuse_other_texts(f"{TRANSFORMERS}, images", texts, images))
        else:
            print_rank_zero(f"{TRANSFORMERS} takes no part: pip install 'rbft[dev]'")
        if find_vllm() is not None:
            server = servers.enter_context(vllm_serve(BASE, root))
            ways[VLLM] = through(server, "video")
            _, texts = write(root / "v", PROMPTS, clips, longest, ways[VLLM])
            print_rank_zero(refuse_other_texts(f"{VLLM}, video", texts, right))
        else:
            print_rank_zero(f"{VLLM} takes no part: there is no program vllm on the PATH")
        speeds: dict[tuple[str, int], list[float]] = {}
        for number in range(given.rounds):
            for way, options in ways.items():
                for prompts in (PROMPTS[:1], PROMPTS):
                    place = root / f"{way}-{len(prompts)}-{number}"
                    seconds, texts = write(place, prompts, clips, longest, options)
                    speeds.setdefault((way, len(prompts)), []).append(60 * len(texts) / seconds)
    base = statistics.median(speeds[BACKBONE, 1])
    rows = [
        [way, str(prompts), middle(values, ".0f"), f"{statistics.median(values) / base:.2f}x"]
        for (way, prompts), values in speeds.items()
    ]
    print_rank_zero(f"{clips} clips, {given.rounds} rounds, medians (lowest-highest)")
    print_rank_zero(table(rows, ["way", "prompts", "rationales/min", "of the backbone's one"]))


if __name__ == "__main__":
    main()
