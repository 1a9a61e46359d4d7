"""Checks of kernels: attention with masked rows and of packed rows, patches, compiled, fused."""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.cases import Findings, LeftOutError
from rbft.backbone import kernels
from rbft.backbone.attention import attend
from rbft.backbone.kernels import PatchProjection, apply_kernels, has_liger, set_cudnn_attention
from tests.gpu.world import (
    HALF,
    apart,
    distance,
    flags_kept,
    fresh,
    make_batch,
    predict,
    step,
    wait,
)

BACKENDS = ("MATH", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION")  # flash takes no mask


def masked_rows(found: Findings, device: torch.device, folder: Path) -> None:
    """Kernels that are given rows which see nothing: which of them answer NaN, which rbft gives.

    The first is noted; the second must be none, in scoring and writing of padded clips.
    """
    dtype = HALF if device.type == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(0)
    for tokens in (33, 64, 704):
        heads = [
            torch.randn(2, 4, tokens, 64, generator=generator).to(device, dtype).requires_grad_()
            for _ in range(3)
        ]
        seen = torch.ones(2, 1, tokens, tokens, dtype=torch.bool).tril()
        seen[0, :, :, : tokens // 3] = False  # the first clip is shorter, padded on the left
        for name in BACKENDS:
            said = _masked_answer(getattr(SDPBackend, name, None), heads, seen.to(device))
            found.note(f"{name.lower()}, {tokens} tokens, a third of them masked rows", said)
    empty: list[int] = []
    sdpa = nn.functional.scaled_dot_product_attention

    def watched(query: Tensor, *args: Any, **given: Any) -> Tensor:
        mask = given.get("attn_mask")
        if mask is not None:
            sees = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min
            empty.append(int((~sees.any(-1)).sum()))
        return sdpa(query, *args, **given)

    precision = "bf16-mixed" if device.type == "cuda" else "32-true"
    with patch.object(nn.functional, "scaled_dot_product_attention", watched):
        for stage in ("label", "rationale"):
            predict(folder, device, stage, precision=precision, batch=4)
    found.note("calls with a mask in scoring and writing", len(empty))
    found.same("rows that see nothing in them", sum(empty), 0)


def _masked_answer(backend: Any, heads: list[Tensor], seen: Tensor) -> str:
    """What a kernel makes of such rows, forward and backward."""
    if backend is None:
        return "not in this torch"
    kept = seen.any(-1)[:, :, :, None]
    try:
        with warnings.catch_warnings(), sdpa_kernel(backend):
            warnings.simplefilter("ignore")  # torch says why it cannot take the kernel
            out = nn.functional.scaled_dot_product_attention(*heads, attn_mask=seen)
            # As in a model: what is masked takes no part in the loss.
            made = torch.autograd.grad(out.masked_fill(~kept, 0.0).float().square().sum(), heads)
    except RuntimeError as error:
        return f"does not run: {str(error).strip().splitlines()[0][:80]}"
    rows = out.masked_select(~kept)
    parts = ["NaN in masked rows" if rows.isnan().any() else "numbers in masked rows"]
    parts += ["NaN in other rows"] * bool(out.masked_select(kept).isnan().any())
    parts += ["NaN in gradients"] * any(bool(grad.isnan().any()) for grad in made)
    return ", ".join(parts)


def patches(found: Findings, device: torch.device, folder: Path) -> None:
    """The patch embedding as a convolution and as rbft's product: same numbers, time, memory."""
    on_gpu = device.type == "cuda"
    count, width = (43200, 1280) if on_gpu else (96, 32)
    torch.manual_seed(0)
    convolution = nn.Conv3d(3, width, (2, 14, 14), stride=(2, 14, 14), bias=False).to(device)
    given = torch.randn(count, 3, 2, 14, 14, device=device)
    few = given[:64]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = convolution(few).flatten(1)
    made = PatchProjection.of(convolution)(few).flatten(1)
    found.at_most("float32, apart", apart(made, expected), 1e-4)
    convolution, given = convolution.to(HALF), given.to(HALF)
    product = PatchProjection.of(convolution)
    for name, layer in (("product", product), ("convolution", convolution)):

        def once(layer: nn.Module = layer) -> Tensor:
            layer.zero_grad()
            out = layer(given)
            out.float().square().mean().backward()
            return out.detach()

        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = [_seconds(once, device) for _ in range(3)]
        found.note(f"bf16 {name}, {count} patches, forward and backward, ms", 1e3 * min(seconds))
        found.note(f"bf16 {name}, first time, ms", 1e3 * seconds[0])
        if on_gpu:
            found.note(f"bf16 {name}, peak GiB", torch.cuda.max_memory_allocated() / 2**30)
    rows = product(given[:64]).flatten(1).float()
    found.at_most("bf16, apart from float32", apart(rows, expected), 2e-2)


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    wait(device)
    started = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - started


def packed_rows(found: Findings, device: torch.device, folder: Path) -> None:
    """Attention of packed rows, cuDNN's kernel off and on: right numbers, and time by geometry."""
    on_gpu = device.type == "cuda"
    dtype, limit = (HALF, 3e-2) if on_gpu else (torch.float32, 1e-5)
    # Decoder: clips of a micro-batch; tower: windows of 64 patches, and smaller ones at the edges.
    sizes = [(2700 + 37 * n, 5463 - 91 * n) for n in range(10)] if on_gpu else [(5, 9), (4, 4, 7)]
    windows = [(64,) * (40 + n) + (32,) * 5 for n in range(10)] if on_gpu else [(4, 4, 2), (3, 4)]
    shapes = {"decoder": (28, 4, 128), "tower": (16, 16, 80)} if on_gpu else {"decoder": (4, 2, 16)}
    for part, (queries, keys, width) in shapes.items():
        causal = part == "decoder"
        geometries = sizes if causal else windows
        for cudnn in (False, True):
            torch.manual_seed(0)
            seconds, worst = [], 0.0
            with flags_kept():
                set_cudnn_attention(cudnn=cudnn)
                for turn, segments in product(range(2), geometries):
                    heads = [
                        torch.randn(sum(segments), own, width, device=device, dtype=dtype)
                        .transpose(0, 1)[None]
                        .requires_grad_()
                        for own in (queries, keys, keys)
                    ]
                    wait(device)
                    started = time.perf_counter()
                    made = _packed(heads, segments, causal)
                    wait(device)
                    seconds.append(time.perf_counter() - started)
                    if turn == 0 and segments in (geometries[0], geometries[-1]):
                        right = _one_by_one(heads, segments, causal)
                        worst = max([worst, *map(apart, made, right)])
            name, count = f"{part}, cuDNN {'on' if cudnn else 'off'}", len(geometries)
            first, again = (statistics.median(s) for s in (seconds[:count], seconds[count:]))
            found.at_most(f"{name}: apart from one by one in float32", worst, limit)
            found.note(f"{name}: ms, each geometry for the first time", 1e3 * first)
            found.note(f"{name}: ms, again", 1e3 * again)


def _packed(heads: list[Tensor], segments: tuple[int, ...], causal: bool) -> list[Tensor]:
    """rbft's attention of a packed row, and the gradients of a sum of it."""
    query, key, value = heads
    width = query.shape[-1]
    how: dict[str, Any] = {"scaling": width**-0.5, "dropout": 0.0, "causal": causal}
    out = attend(query, key, value, segments, **how)
    weight = torch.linspace(-1, 1, width, device=out.device)
    return [out.detach(), *torch.autograd.grad((out.float() * weight).sum(), heads)]


def _one_by_one(heads: list[Tensor], segments: tuple[int, ...], causal: bool) -> list[Tensor]:
    """The same by the textbook, segment by segment, in float32."""
    query, key, value = whole = [h.detach().float().requires_grad_() for h in heads]
    shared = query.shape[1] // key.shape[1]
    outs, start = [], 0
    for length in segments:
        q, k, v = (h[0, :, start : start + length] for h in (query, key, value))
        k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
        scores = q @ k.mT * query.shape[-1] ** -0.5
        if causal:
            hidden = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(hidden, float("-inf"))
        outs.append((scores.softmax(-1) @ v).transpose(0, 1))
        start += length
    out = torch.cat(outs)[None]
    weight = torch.linspace(-1, 1, out.shape[-1], device=out.device)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), whole)]


def compiled(found: Findings, device: torch.device, folder: Path) -> None:
    """model.compile: same loss and gradients, and no new graph for clips of another length."""
    from torch._dynamo.utils import counters

    with _compiler(device):
        torch._dynamo.reset()
        counters.clear()
        if not kernels.can_compile(device):
            raise LeftOutError("torch.compile does not work here")
        plain, faster = (fresh(folder, device, packing=True) for _ in range(2))
        apply_kernels(faster.backbone, compile=True, liger=False, device=device)
        graphs = []
        for bf16 in (False, True):
            for clips in (2, 3, 5, 4):
                batch = make_batch(folder, device, clips, packing=True)
                loss, gradients, _ = step(faster, batch, bf16=bf16)
                right, expected, _ = step(plain, batch, bf16=bf16)
                name, limit = ("bf16", 3e-2) if bf16 else ("float32", 1e-4)
                found.at_most(f"{name}, {clips} clips: loss", apart(loss, right), limit)
                found.at_most(
                    f"{name}, {clips} clips: gradients", distance(gradients, expected), limit
                )
                graphs.append(counters["stats"]["unique_graphs"])
    found.note(
        "graphs after each step, two, three, five and four clips in float32, then in bf16", graphs
    )
    found.same("something is compiled", graphs[0] > 0, True)
    found.at_most("graphs that longer clips added, float32", graphs[3] - graphs[1], 0)
    found.at_most("graphs that longer clips added, bf16", graphs[7] - graphs[5], 0)


@contextmanager
def _compiler(device: torch.device) -> Iterator[None]:
    """On a processor a compiler that passes graphs on: its own takes half a minute."""
    if device.type == "cuda":
        yield
        return
    compile = torch.compile

    def passed_on(*args: Any, **how: Any) -> Any:
        return compile(*args, **{**how, "backend": "eager"})

    with (
        patch.object(torch, "compile", passed_on),
        patch("rbft.backbone.kernels.can_compile", lambda _: True),
    ):
        yield


def liger(found: Findings, device: torch.device, folder: Path) -> None:
    """model.liger: same loss, gradients and scores."""
    if not has_liger(device):
        raise LeftOutError("the Liger kernels need a GPU and the package liger-kernel")
    precisions = (("float32", False, 1e-4), ("bf16", True, 3e-2))
    batch, made = make_batch(folder, device, 3, packing=True), fresh(folder, device, packing=True)
    # Before: Liger changes functions that all models of the family call.
    plain = {name: step(made, batch, bf16=bf16) for name, bf16, _ in precisions}
    apply_kernels(made.backbone, compile=False, liger=True, device=device)
    own = [part for part in made.backbone.modules() if "forward" in vars(part)]
    found.note("modules with a forward of Liger's", len(own))
    for name, bf16, limit in precisions:
        loss, gradients, scores = step(made, batch, bf16=bf16)
        right, expected, known = plain[name]
        found.at_most(f"{name}: loss", apart(loss, right), limit)
        found.at_most(f"{name}: gradients", distance(gradients, expected), limit)
        found.at_most(f"{name}: scores", apart(scores, known), limit)
