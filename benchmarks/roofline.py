"""How fast a training step of the true 7B model can be at best, operation by operation.

Runs rbft's own step, forward, backward and update, on tensors without data (no weights, no GPU),
and sees every operation of torch's that would be a kernel on one. Each takes the longer of

    its floating-point operations  /  `--tflops`     690, bf16 products as reached on an H200
    the bytes it reads and writes  /  `--bandwidth`  4.0 TB/s, of the 4.8 on its data sheet

and the step their sum. The rows differ in

    train    full: all weights, in bf16 as FSDP2 gathers them, updated in 32 bits by `--shards`
             GPUs; lora: adapters and merger in 32 bits on frozen bf16 weights, the vision tower's
             outputs from the feature cache
    again    the share of blocks that are computed twice (model.gradient_checkpointing)
    fused    norms, rotations and SwiGLU as one pass each over what they read and write, as Liger's
             kernels or torch.compile would make them; a dash leaves them to torch, operation by
             operation
    casts    peft's own casts of the adapters' inputs, which rbft turns off

and show the share of the time in products of matrices, in attention, and in all other operations
(element by element, reductions, copies), these by part of the model; the number of kernels; and
the memory that the dry run estimates. MFU is the arithmetic that the step needs
(`rbft.estimate.flops`) over time and `--peak`, 989: what the whole model needs, and what the
language model alone needs, as some trainers count.

Left out: that kernels do not reach these figures, attention's least of all; starting them; the
host; communication between GPUs; the planning of cuDNN; allocation.

Run: python benchmarks/roofline.py
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any
from unittest.mock import patch

import torch
from sizes import make_config
from table import machine
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import rbft.backbone.attention as attention
from rbft.backbone.adapters import LoRA, add_adapters
from rbft.backbone.attention import TEXT, packed_inputs
from rbft.backbone.embeddings import VIDEO_INDICES
from rbft.backbone.family import FAMILIES, Family
from rbft.backbone.loading import load_model, parameter_parts
from rbft.backbone.vision_features import embed_features
from rbft.estimate.flops import ClipTokens, Flops, StepCounter
from rbft.estimate.memory import MemorySettings, step_memory
from rbft.module import answer_nll
from rbft.runtime.console import print_rank_zero, table
from rbft.training.optim import freeze

GIB = 2**30
PROMPT = 60
RATES = {
    "full": {"language": 1e-5, "merger": 1e-5, "vision": 2e-6},
    "lora": {"language": 1e-4, "merger": 1e-5, "vision": 0.0},
}
PARTS = ("tower", "decoder", "head", "update")
KINDS = ("GEMM", "elementwise", "attention")
PATCHES = {"7b": (20, 36), "tiny": (4, 6)}  # of a frame: a 16:9 video in 151,200 pixels
aten: Any = torch.ops.aten
# Make a tensor without writing to it, or another view of one though their schema does not say so.
FREE = {aten.empty, aten.empty_like, aten.new_empty, aten.empty_strided, aten._unsafe_view}
FREE |= {aten.new_empty_strided, aten.detach, aten.lift_fresh, aten._reshape_alias}
LOOK_UP = {aten.embedding, aten.index, aten.index_select, aten.gather}
WRITTEN_ONLY = {aten.copy_, aten.zero_, aten.fill_}


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        train: full or lora.
        share: Of the blocks, computed again in the backward pass.
        fused: Whether norms, rotations and SwiGLU are a pass each.
        casts: Whether peft casts the adapters' inputs.
    """

    train: str
    share: float
    fused: bool
    casts: bool = False


@dataclass(frozen=True)
class Device:
    """What a GPU does in a second.

    Attributes:
        flops: Floating-point operations in products of matrices.
        attention: The same in attention.
        bytes: Read from and written to its memory.
        peak: Floating-point operations by its data sheet, for MFU.
    """

    flops: float
    attention: float
    bytes: float
    peak: float


class Roofline(TorchDispatchMode):
    """Adds up the least time of every operation by part of the model and kind.

    Attributes:
        seconds: By part and kind.
        flops: By part and kind.
        kernels: Number of operations that take time.
        part: The part that is being computed.
    """

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device, self.part = device, "decoder"
        self.seconds: Counter[tuple[str, str]] = Counter()
        self.flops: Counter[tuple[str, str]] = Counter()
        self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Counts an operation."""
        made = func(*args, **(kwargs or {}))
        operation = func.overloadpacket
        # Of prim are questions, such as on which device a tensor is.
        if operation in FREE or func.namespace == "prim" or is_view(func):
            return made
        flops, kind = 0, "elementwise"
        if operation is torch.ops.rbft_roofline.one_pass:
            moved, (*_, flops, kind) = bytes_of(args[0]) + bytes_of(made), args
        elif operation in flop_registry:
            flops, kind = flop_registry[operation](*args, **(kwargs or {}), out_val=made), "GEMM"
            moved = traffic(func, args, kwargs or {}, made)
        else:
            moved = traffic(func, args, kwargs or {}, made)
        rate = self.device.attention if kind == "attention" else self.device.flops
        # The embedding's gradient comes last, when the tower's is done.
        part = "decoder" if operation is aten.embedding_dense_backward else self.part
        self.seconds[part, kind] += max(flops / rate, moved / self.device.bytes)
        self.flops[part, kind] += flops
        self.kernels += moved > 0
        return made

    def enter(self, part: str) -> Any:
        """A hook that says which part comes next."""

        def note(*_: Any) -> None:
            self.part = part

        return note


def is_view(func: Any) -> bool:
    """Whether an operation only looks at a tensor in another way."""
    alias = [result.alias_info for result in func._schema.returns]
    return any(info is not None and not info.is_write for info in alias)


def bytes_of(tensors: Any) -> int:
    """Bytes of all tensors in a structure, each once; what is expanded counts as it is stored."""
    found = {id(leaf): leaf for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor)}
    total = 0
    for tensor in found.values():
        stored = 1
        for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
            stored *= length if stride else min(length, 1)
        total += stored * tensor.element_size()
    return total


def traffic(func: Any, args: Any, kwargs: Any, made: Any) -> int:
    """Bytes that an operation reads and writes at least."""
    operation, read = func.overloadpacket, (args, kwargs)
    if operation in LOOK_UP:  # reads as much of the table as it writes
        return 2 * bytes_of(made) + bytes_of((args[1:], kwargs))
    if operation in (aten.index_put_, aten.index_add_):  # reads and writes the rows it adds to
        return 3 * bytes_of(args[-1] if isinstance(args[-1], Tensor) else args[2])
    if operation in WRITTEN_ONLY:
        read = (args[1:], kwargs)
    changed = [
        value
        for argument, value in zip(func._schema.arguments, args, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    inputs = {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
    new = [leaf for leaf in tree_leaves(made) if id(leaf) not in inputs]
    return bytes_of(read) + bytes_of(changed) + bytes_of(new)


@torch.library.custom_op("rbft_roofline::one_pass", mutates_args=())
def one_pass(read: list[Tensor], like: list[Tensor], flops: int, kind: str) -> list[Tensor]:
    """Stands for a kernel that reads some tensors and writes others, shaped as `like`."""
    raise NotImplementedError("there is no such kernel: it is counted, not run")


@one_pass.register_fake
def _(read: list[Tensor], like: list[Tensor], flops: int, kind: str) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in like]


def kernel(read: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """A kernel that is bound by memory."""
    return one_pass(list(read), list(like), 0, "elementwise")


class Norm(torch.autograd.Function):
    """RMSNorm: the hidden state once in, once out."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        """As transformers computes it, in the wider of both precisions."""
        ctx.save_for_backward(hidden, weight)
        wider = torch.promote_types(hidden.dtype, weight.dtype)
        return kernel([hidden, weight], [torch.empty_like(hidden, dtype=wider)])[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Both gradients in one pass."""
        saved = ctx.saved_tensors  # once: checkpointing hands it out no second time
        return tuple(kernel([*gradients, *saved], saved))


class Rotation(torch.autograd.Function):
    """Rotary embedding of queries and keys."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Any:
        """Both at once."""
        ctx.save_for_backward(cos, sin)
        return tuple(kernel([query, key, cos, sin], [query, key]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The rotation back."""
        return (*kernel([*gradients, *ctx.saved_tensors], gradients), None, None)


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Their product, without what lies between."""
        ctx.save_for_backward(gate, up)
        return kernel([gate, up], [gate])[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Both gradients in one pass."""
        saved = ctx.saved_tensors  # once: checkpointing hands it out no second time
        return tuple(kernel([*gradients, *saved], saved))


class Attention(torch.autograd.Function):
    """Attention of all segments at once; its backward pass computes the scores again."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, pairs: int) -> Tensor:
        """Two products over each pair of tokens that see each other."""
        ctx.flops = 2 * pairs * query.shape[-2] * query.shape[-1]
        (made,) = one_pass([query, key, value], [query], 2 * ctx.flops, "attention")
        ctx.save_for_backward(query, key, value, made)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Five products."""
        saved = ctx.saved_tensors
        return (*one_pass([*gradients, *saved], list(saved[:3]), 5 * ctx.flops, "attention"), None)


class HostGrids:
    """Stands for grids in the processor's memory, whose values may be read."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def prod(self, axis: int) -> "HostGrids":
        """Patches of each clip."""
        return HostGrids([row[0] * row[1] * row[2] for row in self.rows])

    def __floordiv__(self, number: int) -> "HostGrids":
        return HostGrids([row // number for row in self.rows])

    def tolist(self) -> list[Any]:
        """The values."""
        return self.rows


def clips_from_videos(size: str, frames: Sequence[int], answer: int) -> list[ClipTokens]:
    """What clips of so many frames take."""
    rows, columns = PATCHES[size]
    grids = [(number // 2, rows, columns) for number in frames]
    videos = [pairs * rows * columns // 4 for pairs, rows, columns in grids]
    return [
        ClipTokens(grid, video, PROMPT, answer) for grid, video in zip(grids, videos, strict=True)
    ]


def empty_model(size: str, case: Case) -> tuple[Any, Family]:
    """The backbone as it trains on a GPU, on the meta device."""
    config = make_config(size)
    family = FAMILIES[config.model_type]
    with tempfile.TemporaryDirectory() as folder, on_a_gpu():
        config.save_pretrained(folder)
        model: Any = load_model(folder, "sdpa", case.share, empty=True, dtype=torch.bfloat16)
    if case.train == "lora":
        add_adapters(model, LoRA(), None, merger=True, read=False, autocast=not case.casts)
    freeze(parameter_parts(model, family), RATES[case.train])
    return model, family


@contextmanager
def on_a_gpu() -> Iterator[None]:
    """Has rbft choose what it chooses on a GPU."""
    with patch.object(torch.cuda, "is_available", return_value=True):
        yield


def without_data(model: Any) -> None:
    """Moves a model from the meta device to tensors of the current mode, in place."""
    for named in (model.named_parameters, model.named_buffers):
        for name, tensor in list(named(remove_duplicate=False)):
            owner, _, attribute = name.rpartition(".")
            there = torch.empty(tensor.shape, dtype=tensor.dtype)
            if isinstance(tensor, nn.Parameter):
                there = nn.Parameter(there, requires_grad=tensor.requires_grad)
            setattr(model.get_submodule(owner), attribute, there)


@contextmanager
def kernels(
    model: Any, family: Family, clips: Sequence[ClipTokens], window: int, fused: bool
) -> Iterator[None]:
    """Puts what is counted in the place of attention and, if fused, of what lies between products.

    Args:
        model: The backbone.
        family: Its family.
        clips: What is shown.
        window: Patches of the tower's largest window.
        fused: Whether norms, rotations and SwiGLU are a pass each.
    """
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

    vision = model.config.vision_config
    # Pairs of tokens that see each other, by the longest segment of a call.
    pairs = {max(clip.total for clip in clips): sum(c.total * (c.total + 1) // 2 for c in clips)}
    wide = len(vision.fullatt_block_indexes)
    frames = sum(clip.grid[0] * (clip.grid[1] * clip.grid[2]) ** 2 for clip in clips)
    windows = sum(family.vision_pairs(clip.grid, model.config) for clip in clips) - wide * frames
    pairs[clips[0].grid[1] * clips[0].grid[2]] = frames
    pairs[window] = windows // (vision.depth - wide)

    def attend(query: Tensor, key: Tensor, value: Tensor, *bounds: Any, **_: Any) -> Any:
        return Attention.apply(query, key, value, pairs[bounds[-1]])

    def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Any:
        return Rotation.apply(query, key, cos, sin)

    with ExitStack() as stack:
        half = torch.bfloat16
        stack.enter_context(patch.object(attention, "_kernel_dtype", lambda *_: half))
        stack.enter_context(patch.object(attention, "_varlen_attn", lambda: attend))
        attention._bounds.cache_clear()
        stack.callback(attention._bounds.cache_clear)
        if fused:
            for name in ("apply_rotary_pos_emb", "apply_rotary_pos_emb_vision"):
                stack.enter_context(patch.object(modeling, name, rotate))
            for module in model.modules():
                if type(module).__name__.endswith("RMSNorm"):
                    module.forward = MethodType(_norm, module)
                elif hasattr(module, "gate_proj"):
                    module.forward = MethodType(_mlp, module)
        yield


def _norm(self: Any, hidden: Tensor) -> Any:
    return Norm.apply(hidden, self.weight)


def _mlp(self: Any, hidden: Tensor) -> Any:
    return self.down_proj(SwiGLU.apply(self.gate_proj(hidden), self.up_proj(hidden)))


def run_step(
    case: Case, size: str, clips: Sequence[ClipTokens], device: Device, shards: int
) -> Any:
    """One step of a case.

    Returns:
        The mode that has counted it, and the model without data.
    """
    model, family = empty_model(size, case)
    grids = [list(clip.grid) for clip in clips]
    tower = family.tower_inputs(torch.tensor(grids), model.config)
    counted = Roofline(device)
    window = tower["video_max_window_seqlen"]
    with FakeTensorMode() as mode, kernels(model, family, clips, window, case.fused):
        without_data(model)
        inputs, targets, kept = make_batch(model, clips, grids, tower, mode)
        follow(model, counted, cached=case.train == "lora")
        with counted:
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                if case.train == "lora":  # as `rbft.backbone.vision_features.embed_features` does
                    inputs |= embed_features(model, family, kept)
                logits = model(**inputs, use_cache=False).logits.flatten(0, -2)
                loss = answer_nll(logits, *targets)
            counted.part = "head"
            loss.backward()
            counted.part = "update"
            update(model, shards)
    return counted, model, family


def make_batch(model: Any, clips: Any, grids: Any, tower: Any, mode: Any) -> tuple[Any, Any, Any]:
    """Arguments of the forward and of the loss, and the tower's outputs from the cache."""
    lengths = [clip.total for clip in clips]
    tokens, answers = sum(lengths), sum(clip.answer for clip in clips)
    positions = torch.empty(3, 1, tokens, dtype=torch.long)
    inputs = {"input_ids": torch.empty(1, tokens, dtype=torch.long)}
    inputs |= packed_inputs(TEXT, lengths, positions)
    inputs[VIDEO_INDICES] = torch.empty(sum(clip.video for clip in clips), dtype=torch.long)
    inputs["logits_to_keep"] = torch.empty(answers, dtype=torch.long)
    width = model.config.vision_config.hidden_size
    kept = [torch.empty(clip.patches, width, dtype=torch.bfloat16) for clip in clips]
    if model.model.visual.blocks[0].norm1.weight.requires_grad:
        there = {
            name: mode.from_tensor(value) if isinstance(value, Tensor) else value
            for name, value in tower.items()
        }
        inputs |= {**there, "video_grid_thw": HostGrids(grids)}
        inputs["pixel_values_videos"] = torch.empty(sum(clip.patches for clip in clips), 1176)
    targets = (torch.empty(answers, dtype=torch.long), torch.empty(answers), torch.empty(()))
    return inputs, targets, kept


def follow(model: Any, counted: Roofline, *, cached: bool) -> None:
    """Has the mode know which part of the model is being computed."""
    tower = model.model.visual.merger if cached else model.model.visual
    tower.register_forward_pre_hook(counted.enter("tower"))
    tower.register_forward_hook(counted.enter("decoder"))
    decoder = model.model.language_model

    def begins(_: Any, args: Any, given: Any) -> None:
        if given["inputs_embeds"].requires_grad:
            given["inputs_embeds"].register_hook(counted.enter("tower"))

    def ends(_: Any, args: Any, made: Any) -> None:
        made.last_hidden_state.register_hook(counted.enter("decoder"))
        counted.part = "head"

    decoder.register_forward_pre_hook(begins, with_kwargs=True)
    decoder.register_forward_hook(ends)


def update(model: Any, shards: int) -> None:
    """Clipping and AdamW's one kernel, in 32 bits, on this GPU's share."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) // shards
    weight, gradient, first, second = (torch.empty(trained) for _ in range(4))
    kernel([gradient], [])
    kernel([gradient], [gradient])
    kernel([weight, gradient, first, second], [weight, first, second])


def measure(case: Case, size: str, clips: list[ClipTokens], device: Device, shards: int) -> Any:
    """The figures of a row."""
    shards = shards if case.train == "full" else 1
    counted, model, family = run_step(case, size, clips, device, shards)
    seen = clips
    if case.train == "lora":
        seen = [ClipTokens((0, 0, 0), c.video, c.prompt, c.answer) for c in clips]
    counter = StepCounter(model, family, model.config)
    needed = sum(map(counter.step, seen), Flops())
    words = [ClipTokens((0, 0, 0), 0, c.video + c.prompt, c.answer) for c in clips]
    language = sum(map(counter.step, words), Flops())
    setup = MemorySettings(2, case.share, shards=shards)
    held, _ = empty_model(size, case)
    if case.train == "full":
        held.float()  # the shares, of which bf16 is gathered
    memory = step_memory(held, family, model.config, seen, setup)
    seconds = sum(counted.seconds.values())
    shares = {key: value / seconds for key, value in counted.seconds.items()}
    return {
        "seconds": seconds,
        "mfu": needed.total / seconds / device.peak,
        "language_mfu": language.total / seconds / device.peak,
        "needed": needed,
        "flops": counted.flops,
        "shares": shares,
        "by_part": {part: sum(shares.get((part, kind), 0.0) for kind in KINDS) for part in PARTS},
        "by_kind": {kind: sum(shares.get((part, kind), 0.0) for part in PARTS) for kind in KINDS},
        "kernels": counted.kernels,
        "memory": memory.peak,
    }


def line(case: Case, found: dict[str, Any]) -> list[str]:
    """A row's cells."""
    cells = [case.train, f"{case.share:g}", "yes" if case.fused else "-"]
    cells += ["yes" if case.casts else "-", f"{found['seconds']:.2f}"]
    cells += [f"{100 * found['mfu']:.0f}", f"{100 * found['language_mfu']:.0f}"]
    cells += [f"{100 * found['by_kind'][kind]:.0f}" for kind in KINDS]
    other = [found["shares"].get((part, "elementwise"), 0.0) for part in PARTS]
    cells += [f"{100 * share:.0f}" for share in other]
    return [*cells, f"{found['kernels']:,}", f"{found['memory'] / GIB:.0f}"]


HEADERS = ["train", "again", "fused", "casts", "s", "MFU %", "of LM %", "GEMM %", "other %"]
HEADERS += ["attention %", *(f"other: {part}" for part in PARTS), "kernels", "GiB"]


def cases(shares: Sequence[float]) -> list[Case]:
    """All rows; peft's casts as an extra row of the first share."""
    rows = []
    for train in ("full", "lora"):
        if train == "lora":
            rows.append(Case(train, shares[0], fused=False, casts=True))
        rows += [Case(train, share, fused) for fused in (False, True) for share in shares]
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--size", choices=tuple(PATCHES), default="7b")
    parser.add_argument("--frames", nargs="+", type=int, default=[60, 60], help="of each clip")
    parser.add_argument("--answer", type=int, default=3, help="tokens of an answer (Stage I: 150)")
    parser.add_argument("--again", nargs="+", type=float, default=[1.0, 0.5, 0.0])
    parser.add_argument("--shards", type=int, default=8, help="GPUs of a full fine-tune")
    parser.add_argument("--tflops", type=float, default=690.0, help="in products of matrices")
    parser.add_argument("--attention_tflops", type=float, help="in attention; the same by default")
    parser.add_argument("--bandwidth", type=float, default=4.0, help="TB/s")
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s that MFU is of")
    given = parser.parse_args(arguments)
    flops = given.tflops * 1e12
    in_attention = (given.attention_tflops or given.tflops) * 1e12
    device = Device(flops, in_attention, given.bandwidth * 1e12, given.peak * 1e12)
    clips = clips_from_videos(given.size, given.frames, given.answer)
    print_rank_zero(machine("torch", "transformers", "peft"))
    print_rank_zero(f"{len(clips)} clips, {sum(clip.total for clip in clips):,} tokens")
    rows = [
        line(case, measure(case, given.size, clips, device, given.shards))
        for case in cases(given.again)
    ]
    print_rank_zero(table(rows, HEADERS))


if __name__ == "__main__":
    main()
