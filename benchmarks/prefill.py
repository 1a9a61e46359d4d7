"""Memory of reading prompts, packed and padded, at true 7B size on tensors without data.

Run: python benchmarks/prefill.py [--size 7b] [--clips 8] [--tokens 5463]
"""

import argparse

import torch
from peak import Peak
from sizes import SIZES, make_config
from table import machine
from torch._subclasses.fake_tensor import FakeTensorMode

import rbft.backbone.attention
from rbft.backbone.attention import use_segment_attention
from rbft.batch import IGNORED, Sequences
from rbft.inference.generation import prefill, score_candidates
from rbft.runtime.console import print_rank_zero, table

GIB = 2**30
WORDS = [[1, 2, 3], [1, 4]]


def make_prompts(lengths: tuple[int, ...], *, packed: bool) -> Sequences:
    """Prompts of those lengths; the tower's outputs stand for any other embedding."""
    width, rows = max(lengths), len(lengths)
    shape = (1, sum(lengths)) if packed else (rows, width)
    ids = torch.zeros(shape, dtype=torch.long)
    positions = torch.zeros(3, *shape, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    return Sequences(ids, torch.ones_like(ids), positions, labels, lengths, padded_left=not packed)


@torch.no_grad()
def measure(size: str, lengths: tuple[int, ...], *, packed: bool) -> list[float]:
    """GiB besides the weights: as the prompts are read, their keys and values, as they are scored.

    Args:
        size: Of the model, see `sizes.SIZES`.
        lengths: Tokens of each prompt.
        packed: Whether they are packed.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.set_default_dtype(torch.bfloat16)
    rbft.backbone.attention._groups.cache_clear()
    with FakeTensorMode():
        model = Qwen2_5_VLForConditionalGeneration(make_config(size)).eval()
        use_segment_attention(model)
        prompt = make_prompts(lengths, packed=packed)
        with Peak(*model.parameters()) as peak:
            weights = peak.bytes
            (read,) = prefill(model, [prompt], {})
            reading = peak.bytes - weights
            cache = sum(2 * layer.keys.nbytes for layer in read.cache.layers)
            peak.bytes = 0
            score_candidates(model, read, WORDS)
    rbft.backbone.attention._groups.cache_clear()
    return [part / GIB for part in (reading, cache, peak.bytes - weights)]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="7b")
    parser.add_argument("--clips", type=int, default=8, help="prompts (default 8)")
    parser.add_argument("--tokens", type=int, default=5463, help="the longest one's (a 60 s clip)")
    given = parser.parse_args()
    # From the longest to three quarters of it.
    step = given.tokens // 4 // max(1, given.clips - 1)
    lengths = tuple(given.tokens - step * clip for clip in range(given.clips))
    print_rank_zero(machine("torch", "transformers"))
    rows = [
        [name, *(f"{part:.2f}" for part in measure(given.size, lengths, packed=packed))]
        for name, packed in (("padded", False), ("packed", True))
    ]
    title = f"{given.clips} prompts of {min(lengths):,} to {max(lengths):,} tokens"
    print_rank_zero(table(rows, [f"{title}, GiB", "reading", "keys, values", "scoring"]))


if __name__ == "__main__":
    main()
