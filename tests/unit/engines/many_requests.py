"""Asks many questions; run as a program so that it can be killed."""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from rbft.engines.budget import Budget, Limits, Price, Prices
from rbft.engines.chat import Chat
from rbft.engines.content import AsVideo
from rbft.engines.endpoint import EndpointEngine
from rbft.engines.faults import Backoff
from rbft.engines.replay import ReplayStore
from rbft.engines.request import Request, Sampling
from rbft.video.sampling import Video

PRICES = Prices(Path("p.yaml"), "USD", "2026-11-21", "made up", {"tiny-vl": Price(1.0, 2.0)})


def video(number: int) -> Video:
    """A clip of its own for each request."""
    pixels = torch.full((2, 3, 28, 28), number % 256, dtype=torch.uint8)
    return Video(pixels, [0, number], 2000, 25.0)


def requests(count: int) -> Iterator[Request]:
    for number in range(count):
        yield Request(
            f"c{number:04d}",
            f"prompt {number}",
            lambda number=number: video(number),
            sampling=Sampling(max_tokens=20),
        )


def engine(folder: Path, url: str, money: float, open: int = 24) -> EndpointEngine:
    limits = Limits(requests=3000, money=money)
    return EndpointEngine(
        Chat("tiny-vl", AsVideo()),
        [url],
        ReplayStore(folder / "answers.jsonl"),
        Budget("tiny-vl", limits, folder / "spent.jsonl", PRICES),
        concurrency=open,
        attempts=6,
        timeout=1.0,
        backoff=Backoff(first=0.001, longest=0.01),
    )


if __name__ == "__main__":
    folder, url, money, open, count = sys.argv[1:]
    made = engine(Path(folder), url, float(money), int(open))
    for answer in made.answer(requests(int(count))):
        assert answer.id
