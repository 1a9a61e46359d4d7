"""Does a vLLM server that serves an exported folder answer as rbft does?

Asks it about the videos of a `predict` file, over HTTP, with the card's prompt as in training.

Run: python benchmarks/served.py predictions.jsonl --folder EXPORTED [--url http://localhost:8000/v1]
"""

import argparse
import json
import math
import statistics
import urllib.request
from pathlib import Path
from typing import Any

from rbft.card import Card
from rbft.runtime.console import print_rank_zero


def ask(url: str, model: str, prompt: str, video: str) -> dict[str, Any]:
    """What the server answers, with the likeliest tokens of its first place."""
    content = [
        {"type": "video_url", "video_url": {"url": Path(video).absolute().as_uri()}},
        {"type": "text", "text": prompt},
    ]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 16,
        "logprobs": True,
        "top_logprobs": 10,
    }
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), kind)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["choices"][0]


def probabilities(choice: dict[str, Any], card: Card) -> dict[str, float]:
    """Of each class by the first token of its word; 0 where it is not among the likeliest."""
    found = {
        place["token"].strip(): math.exp(place["logprob"])
        for place in choice["logprobs"]["content"][0]["top_logprobs"]
    }
    first = {
        name: sum(p for token, p in found.items() if token and word.startswith(token))
        for name, word in card.words.items()
    }
    return {name: value / (sum(first.values()) or 1) for name, value in first.items()}


def main() -> None:
    """Asks, compares, prints."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("predictions", type=Path, help="what predict has written, JSON lines")
    parser.add_argument("--folder", type=Path, required=True, help="the exported folder")
    parser.add_argument("--url", default="http://localhost:8000/v1")
    parser.add_argument("--model", help="name that the server gives it (default: the folder's)")
    given = parser.parse_args()
    card = Card.load(given.folder / "card.yaml")
    prompt = card.prompt("label")
    lines = given.predictions.read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "probabilities" in row]
    if not rows:
        raise SystemExit(f"{given.predictions} holds no probabilities: let predict score videos.")
    same, apart = 0, []
    for row in rows:
        choice = ask(given.url, given.model or str(given.folder), prompt, row["path"])
        said = card.parse(choice["message"]["content"])
        same += said is not None and card.classes[said] == row["label"]
        theirs = probabilities(choice, card)
        apart.append(max(abs(theirs[name] - row["probabilities"][name]) for name in card.classes))
    print_rank_zero(f"{same} of {len(rows)} videos have the same class")
    mean = statistics.mean(apart)
    print_rank_zero(f"probabilities differ by {mean:.4f} on average, by {max(apart):.4f} at most")


if __name__ == "__main__":
    main()
