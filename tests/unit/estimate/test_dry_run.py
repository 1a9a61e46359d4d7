"""What the dry run says about memory; what it prints as a whole is read by the recipes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rbft.clip import Clip
from rbft.estimate.dry_run import GIB, SplitTokens, suggest_checkpointing
from rbft.estimate.flops import ClipTokens

ROOM = "There is room for {}, which recomputes fewer blocks and so is faster."
FITS = "It fits with {}, which recomputes more blocks."
SETTING = "model.gradient_checkpointing"


@pytest.mark.parametrize(
    ("share", "gib", "said"),
    [
        # With a tenth and 1 GiB to spare, 40 GiB take 45.
        (1.0, 45.5, [ROOM.format(f"{SETTING} 0.7 (40.0 GiB)")]),
        (0.0, 45.5, [FITS.format(f"{SETTING} 0.7 (40.0 GiB)")]),
        (0.0, 12.1, [FITS.format(f"{SETTING} true (10.0 GiB)")]),
        (0.5, 200.0, [ROOM.format(f"{SETTING} false (110.0 GiB)")]),
        (0.7, 45.5, []),
        (0.0, 200.0, []),
        (1.0, 11.9, []),  # nothing helps
    ],
)
def test_the_share_of_blocks_that_fills_a_gpu(share: float, gib: float, said: list[str]) -> None:
    def peak(again: float) -> int:
        return round((10 + 100 * (1 - again)) * GIB)

    assert suggest_checkpointing(share, peak, gib) == said


def test_a_clip_is_counted_once_for_each_class_that_has_votes() -> None:
    clips = [Clip(name, Path(name), 0, "train") for name in "ab"]
    tokens = [ClipTokens((2, 4, 4), 8, 10 * n, 2) for n in (1, 2)]
    again = [replace(one, grid=(0, 0, 0)) for one in tokens]  # the tower sees it once
    made = SplitTokens(clips, tokens, answers=3)
    assert made.every_sequence == [*tokens, *again, *again]
    voted = replace(made, answers=3, sequences_of=(1, 3))
    assert voted.every_sequence == [*tokens, again[1], again[1]]


def test_without_a_gpu_there_is_no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert suggest_checkpointing(1.0, lambda _: 0, None) == []
