"""The roofline at a tiny size, and its arithmetic against torch's and rbft's own counts."""

import sys
from typing import Any

import pytest
import torch

from tests.recipe.runs import ROOT
from tests.recipe.test_benchmarks import run

pytestmark = pytest.mark.recipe


@pytest.fixture(scope="module")
def script() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import roofline  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    return roofline


@pytest.fixture(scope="module")
def clips(script: Any) -> Any:
    return script.clips_from_videos("tiny", [12, 8], 5)


def measured(script: Any, clips: Any, *case: Any, rate: float = 1e12, **settings: Any) -> Any:
    device = script.Device(rate, rate, 1e12, 2e12)
    return script.measure(script.Case(*case, **settings), "tiny", clips, device, 8)


@pytest.mark.long
def test_it_prints_a_row_for_each_case() -> None:
    said = run("roofline.py", "--size=tiny", "--frames", "4", "--again", "1", "0", tiny=False)
    rows = [line.split() for line in said.splitlines() if line.split()[:1] in (["full"], ["lora"])]
    # What it is, what is computed again, whether it is fused and casts.
    assert [row[:4] for row in rows] == [
        *(["full", share, fused, "-"] for fused in ("-", "yes") for share in "10"),
        ["lora", "1", "-", "yes"],
        *(["lora", share, fused, "-"] for fused in ("-", "yes") for share in "10"),
    ]
    assert {len(row) for row in rows} == {16}


def test_products_are_those_that_the_step_needs(script: Any, clips: Any) -> None:
    """`rbft.estimate.flops`, which is compared with torch's counter elsewhere."""
    found = measured(script, clips, "full", 0.0, False)
    flops, needed = found["flops"], found["needed"]
    products = sum(flops[part, "GEMM"] for part in script.PARTS)
    # Of attention's backward pass only what is needed is counted there: 4 of its 5 products.
    attention = sum(flops[part, "attention"] for part in script.PARTS)
    assert (products, 6 * attention) == (needed.linear, 7 * needed.attention)


@pytest.mark.parametrize("train", ["full", "lora"])
def test_what_is_computed_again_is_a_second_forward_pass(
    script: Any, clips: Any, train: str
) -> None:
    none, half, every = (
        measured(script, clips, train, share, False)["flops"] for share in (0.0, 0.5, 1.0)
    )
    for part in ("decoder", "tower"):
        if train == "lora" and part == "tower":
            assert every[part, "GEMM"] == none[part, "GEMM"]
            continue
        # Two blocks, of which a half is one; and attention's two products of seven.
        again = every[part, "GEMM"] - none[part, "GEMM"]
        assert 2 * (half[part, "GEMM"] - none[part, "GEMM"]) == again > 0
        assert 7 * every[part, "attention"] == 9 * none[part, "attention"]


@pytest.mark.parametrize("train", ["full", "lora"])
def test_fused_passes_move_less_and_compute_the_same(script: Any, clips: Any, train: str) -> None:
    plain, fused = (measured(script, clips, train, 0.5, way) for way in (False, True))
    assert fused["seconds"] < plain["seconds"]
    assert fused["kernels"] < plain["kernels"]
    products = {key: value for key, value in plain["flops"].items() if key[1] == "GEMM"}
    assert products == {key: v for key, v in fused["flops"].items() if key[1] == "GEMM"}
    assert fused["mfu"] / plain["mfu"] == pytest.approx(plain["seconds"] / fused["seconds"])


def test_casts_of_peft_are_seen(script: Any, clips: Any) -> None:
    without, cast = (
        measured(script, clips, "lora", 1.0, False, casts=casts) for casts in (False, True)
    )
    # In two blocks: the inputs of seven layers and their gradients, and the inputs once more; each
    # is cast there and back.
    assert cast["kernels"] - without["kernels"] == 2 * 7 * (2 + 2 + 2)
    assert cast["seconds"] > without["seconds"]


def test_shares_and_both_conventions(script: Any, clips: Any) -> None:
    found = measured(script, clips, "full", 1.0, False, rate=1e11)
    assert sum(found["by_kind"].values()) == pytest.approx(1)
    assert sum(found["by_part"].values()) == pytest.approx(1)
    whole = found["needed"].total / found["seconds"] / 2e12
    assert found["mfu"] == pytest.approx(whole)
    assert 0 < found["language_mfu"] < found["mfu"]
    # With the tower's outputs at hand there is no tower to tell apart, but for the merger.
    adapters = measured(script, clips, "lora", 1.0, False, rate=1e11)
    assert 0.9 < adapters["language_mfu"] / adapters["mfu"] < 1


def counted(script: Any, operation: Any) -> float:
    """Seconds of some operations at a byte and two operations a second."""
    mode = script.Roofline(script.Device(2.0, 2.0, 1.0, 1.0))
    with mode:
        operation()
    return sum(mode.seconds.values())


def test_the_bytes_of_an_operation(script: Any) -> None:
    one, two = torch.zeros(10, 4), torch.zeros(10, 4)
    size = 160
    assert counted(script, lambda: one + two) == 3 * size
    assert counted(script, lambda: one + one) == 2 * size  # read once
    assert counted(script, lambda: one.add_(two)) == 3 * size
    assert counted(script, lambda: one.copy_(two)) == 2 * size
    assert counted(script, lambda: one.zero_()) == size
    assert counted(script, lambda: one.view(4, 10).mT[None]) == 0
    assert counted(script, lambda: torch.empty_like(one)) == 0
    assert counted(script, lambda: one.bfloat16()) == size + size // 2
    assert counted(script, lambda: one + two[:1].expand(10, 4)) == 2 * size + 16
    # Three rows are read and written, and where they stand is read.
    rows = torch.tensor([1, 2, 5])
    assert counted(script, lambda: one.index_select(0, rows)) == 2 * 48 + 24
    assert counted(script, lambda: torch.nn.functional.embedding(rows, one)) == 2 * 48 + 24
    # 2 x 10 x 4 x 10 operations at two a second, against 720 bytes.
    assert counted(script, lambda: one @ two.T) == 2 * size + 400
    wide = torch.zeros(10, 400)
    assert counted(script, lambda: one.T @ wide) == 16000 + 160 + 6400
