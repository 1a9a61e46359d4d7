"""One optimisation step of Stage I and Stage II at true 7B size, with random weights, on one GPU.

Needs torch, transformers and this checkout, and nothing else: no weights, no videos, no other
package. What is timed is forward, backward and AdamW's step over a micro-batch of clips, every
other one half as long as the rest, so that padding costs what it costs. The rows differ in

    stage       I answers with a rationale (150 tokens), II with a class word (3 tokens)
    train       lora: adapters of rank 64 in 32 bits on frozen bf16 weights, all else frozen;
                bf16: all weights, in bf16 with bf16 moments; full: all weights in 32 bits,
                products in bf16 (132 GB of weights, gradients and moments at 7B)
    attention   packed: rbft's own, clips in one row; flash_attention_2: transformers', in one row
                too; sdpa: transformers', clips padded to the longest
    ckpt        gradient checkpointing
    frames      of the longer clips, 280 x 504 pixels each (a 16:9 video in 151,200 pixels)

MFU is `rbft.estimate.flops` (matrix products that the model needs, attention over the pairs that a
causal mask leaves, no recomputation, no padding) over time and the GPU's peak in dense bf16. A row
that does not fit says "out of memory"; the estimate of `rbft.estimate.memory` stands beside what
was measured.

Run: python benchmarks/gpu_step.py --output gpu_step.json
"""

import argparse
import gc
import json
import platform
import statistics
import sys
import time
import types
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
try:
    import jaxtyping  # noqa: F401
except ImportError:

    class _Shape:
        """Shapes in signatures are for readers and tests."""

        def __class_getitem__(cls, item: Any) -> Any:
            return item[0]

    stub: Any = types.ModuleType("jaxtyping")
    stub.Float = stub.Int = stub.Bool = stub.UInt8 = _Shape
    sys.modules["jaxtyping"] = stub

from rbft.backbone.attention import TEXT, attend_in_segments, packed_inputs
from rbft.backbone.family import FAMILIES
from rbft.estimate.flops import ClipTokens, Flops, StepCounter
from rbft.estimate.memory import Setup, step_memory
from rbft.training.loss import token_nll
from rbft.training.optim import parameter_groups

GIB = 2**30
# Dense bf16 with 32-bit sums, in TFLOP/s, by a part of the name; from the makers' data sheets.
PEAKS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H800": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}
ANSWERS = {"I": 150, "II": 3}
PROMPT = 60
TRAIN = ("lora", "bf16", "full")
ATTENTION = ("packed", "sdpa", "flash_attention_2")
RATES = {"language": 1e-5, "merger": 1e-5, "vision": 2e-6}
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SIZES = {
    "7b": {
        "text": {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128000,
        },
        "vision": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16},
        "sections": [16, 24, 24],
        "patches": (20, 36),
    },
    "tiny": {
        "text": {
            "vocab_size": 384,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        "vision": {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2},
        "sections": [2, 3, 3],
        "patches": (4, 6),
    },
}


@dataclass(frozen=True)
class Case:
    """One row: what is measured."""

    stage: str
    train: str
    attention: str
    checkpointing: bool
    frames: int


@dataclass(frozen=True)
class Step:
    """Tensors of one micro-batch."""

    inputs: dict[str, Any]
    places: Tensor
    targets: Tensor


class Adapter(nn.Module):
    """A frozen linear layer with a low-rank update, as peft's."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        where = {"device": base.weight.device, "dtype": torch.float32}
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, **where)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, **where)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, rows: Tensor) -> Tensor:
        """The layer's output and the update's."""
        return self.base_layer(rows) + 2 * self.lora_B(self.lora_A(rows.to(torch.float32)))


def make_config(size: str) -> Any:
    """Qwen2.5-VL's configuration."""
    from transformers import Qwen2_5_VLConfig

    facts = SIZES[size]
    text = {**facts["text"], "bos_token_id": 0, "eos_token_id": 1}
    sections = {"mrope_section": facts["sections"]}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, **sections}
    vision = {**facts["vision"], "out_hidden_size": text["hidden_size"], "tokens_per_second": 2}
    vision["fullatt_block_indexes"] = [7, 15, 23, 31] if size == "7b" else [1]
    ids = dict.fromkeys(("image_token_id", "vision_start_token_id", "vision_end_token_id"), 2)
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, video_token_id=3, **ids)


def make_model(size: str, train: str, device: torch.device) -> Any:
    """A model with random weights in the precisions of the way to train."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if train == "full" else torch.bfloat16)
    try:
        with device:
            model = Qwen2_5_VLForConditionalGeneration(make_config(size))
    finally:
        torch.set_default_dtype(before)
    if train == "lora":
        model.requires_grad_(False)
        decoder: Any = model.model.language_model
        for layer in decoder.layers:
            for module in (layer.self_attn, layer.mlp):
                for name, child in list(module.named_children()):
                    if name in TARGETS:
                        setattr(module, name, Adapter(child, 64))
    return model.train()


def make_step(case: Case, size: str, clips: int, device: torch.device) -> tuple[Step, list]:
    """A micro-batch with random patches and words, and what each clip of it takes."""
    config = make_config(size)
    family, generator = FAMILIES[config.model_type], torch.Generator().manual_seed(0)
    rows, columns = SIZES[size]["patches"]
    answer, merge = ANSWERS[case.stage], config.vision_config.spatial_merge_size
    counts, ids, positions = [], [], []
    for number in range(clips):
        frames = case.frames if number % 2 == 0 else max(2, case.frames // 4 * 2)
        grid = (frames // 2, rows, columns)
        video = frames // 2 * rows * columns // merge**2
        words = torch.randint(4, 300, (PROMPT + answer,), generator=generator)
        row = torch.cat([words[:20], torch.full((video,), config.video_token_id), words[20:]])
        counts.append(ClipTokens(grid, video, PROMPT, answer))
        ids.append(row)
        positions.append(family.position_ids(row, list(grid), 2.0, config))
    lengths = [len(row) for row in ids]
    inputs: dict[str, Any]
    if case.attention != "sdpa":
        row, place = torch.cat(ids)[None], torch.cat(positions, dim=1)[:, None].to(device)
        name = TEXT if case.attention == "packed" else case.attention
        inputs = {"input_ids": row, **packed_inputs(name, lengths, place)}
        ends = torch.tensor(lengths).cumsum(0)
    else:
        pad = nn.utils.rnn.pad_sequence
        inputs = {
            "input_ids": pad(ids, batch_first=True),
            "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True),
            "position_ids": pad([p.T for p in positions], batch_first=True).movedim(2, 0),
        }
        ends = torch.arange(clips) * max(lengths) + torch.tensor(lengths)
    places = (ends[:, None] - answer + torch.arange(answer)).flatten()
    targets = inputs["input_ids"].flatten()[places]
    pixels = torch.randn(sum(count.patches for count in counts), 1176, generator=generator)
    inputs |= {
        "pixel_values_videos": pixels.to(torch.bfloat16),
        "video_grid_thw": torch.tensor([count.grid for count in counts]),
    }
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    # Each token is predicted at the one before it.
    return Step(moved, (places - 1).to(device), targets.to(device)), counts


def take_step(model: Any, optimiser: torch.optim.Optimizer, step: Step, mixed: bool) -> Tensor:
    """Forward, backward, update; the head runs at the answer's places alone."""
    kind = step.places.device.type
    with torch.autocast(kind, torch.bfloat16) if mixed else nullcontext():
        hidden = model.model(**step.inputs, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden.flatten(0, 1)[step.places])
        loss = token_nll(logits, step.targets).mean()
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    return loss.detach()


def prepare(model: Any, case: Case) -> None:
    """Sets attention and checkpointing; raises where the attention is not installed."""
    model.set_attn_implementation("sdpa" if case.attention == "packed" else case.attention)
    if case.attention == "packed":
        attend_in_segments(model)
    # Older releases of transformers say "gradient".
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if case.checkpointing:
        getattr(model, f"{kind}_checkpointing_enable")()
        # It would send a gradient through a frozen vision tower.
        model.disable_input_require_grads()
    else:
        getattr(model, f"{kind}_checkpointing_disable")()


def measure(
    model: Any, optimiser: Any, case: Case, step: Step, rounds: int, warm_up: int
) -> dict[str, Any]:
    """Seconds of each round, and the peak of memory."""
    cuda = step.places.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds, loss = [], torch.zeros(())
    for number in range(warm_up + rounds):
        if cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        loss = take_step(model, optimiser, step, case.train != "bf16")
        if cuda:
            torch.cuda.synchronize()
        if number >= warm_up:
            seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if cuda else None
    return {"seconds": seconds, "peak_bytes": peak, "loss": float(loss)}


def run_case(model: Any, optimiser: Any, case: Case, options: Any, peak: float | None) -> dict:
    """One row of the table."""
    row: dict[str, Any] = {**asdict(case), "clips": options.clips}
    device = next(model.parameters()).device
    family, config = FAMILIES[model.config.model_type], model.config
    try:
        prepare(model, case)
        step, counts = make_step(case, options.size, options.clips, device)
        counter = StepCounter(model, family, config)
        flops = sum(map(counter.step, counts), Flops())
        memory = step_memory(model, family, config, counts, Setup(2, case.checkpointing))
        tokens = sum(count.total for count in counts)
        row |= {"tokens": tokens, "estimate_bytes": memory.peak}
        row |= {"flops_linear": flops.linear, "flops_attention": flops.attention}
        row |= measure(model, optimiser, case, step, options.rounds, options.warm_up)
    except torch.OutOfMemoryError:
        return {**row, "failed": "out of memory"}
    except (ImportError, ValueError, RuntimeError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        return {**row, "failed": f"{type(error).__name__}: {reason}"}
    finally:
        optimiser.zero_grad()
        release()
    median = statistics.median(row["seconds"])
    row |= {"clips_per_second": options.clips / median, "tokens_per_second": tokens / median}
    row["tflops"] = flops.total / median / 1e12
    row["mfu"] = None if peak is None else row["tflops"] / peak
    return row


def release() -> None:
    """Gives memory back before the next case."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run_all(options: Any, device: torch.device, peak: float | None) -> Iterable[dict]:
    """All rows; a way to train that does not even fit its weights gives its rows as such."""
    for train in options.train:
        cases = [
            Case(stage, train, attention, checkpointing, frames)
            for stage, attention, checkpointing, frames in product(
                options.stage, options.attention, options.checkpointing, options.frames
            )
        ]
        model: Any = None
        optimiser: Any = None
        try:
            model = make_model(options.size, train, device)
            family = FAMILIES[model.config.model_type]
            parts: dict[str, list] = {part: [] for part in RATES}
            for name, parameter in model.named_parameters():
                parts[family.part(name)].append((name, parameter))
            optimiser = torch.optim.AdamW(parameter_groups(parts, RATES, 0.1), fused=True)
        except torch.OutOfMemoryError:
            model = None
        for case in cases:
            if model is None:
                yield {**asdict(case), "clips": options.clips, "failed": "out of memory"}
            else:
                yield run_case(model, optimiser, case, options, peak)
        del model, optimiser
        release()


def line(row: dict[str, Any]) -> list[str]:
    """A row's cells."""
    cells = [row["stage"], row["train"], row["attention"]]
    cells += ["yes" if row["checkpointing"] else "no", str(row["frames"])]
    if "failed" in row:
        return [*cells, f"{row.get('tokens', '')}", row["failed"][:40], "", "", "", "", "", ""]
    seconds = row["seconds"]
    spread = f"{statistics.median(seconds):.3f} ({min(seconds):.3f}-{max(seconds):.3f})"
    share = row["flops_attention"] / (row["flops_attention"] + row["flops_linear"])
    measured = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / GIB:.1f}"
    return [
        *cells,
        str(row["tokens"]),
        spread,
        f"{row['clips_per_second']:.2f}",
        f"{row['tokens_per_second']:.0f}",
        f"{100 * share:.1f}",
        "" if row["mfu"] is None else f"{100 * row['mfu']:.1f}",
        measured,
        f"{row['estimate_bytes'] / GIB:.1f}",
    ]


def show(lines: Sequence[Sequence[str]]) -> str:
    """A plain table; rbft's own needs lightning."""
    headers = ["stage", "train", "attention", "ckpt", "frames", "tokens", "s a step", "clips/s"]
    headers += ["tokens/s", "attention %", "MFU %", "GiB", "estimate"]
    widths = [max(map(len, column)) for column in zip(headers, *lines, strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    made = [
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in (headers, *lines)
    ]
    return "\n".join([rule, made[0], rule, *made[1:], rule])


def versions() -> dict[str, str]:
    """Of what decides the speed, as far as it is installed."""
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for name in ("torch", "transformers", "flash-attn", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--size", choices=tuple(SIZES), default="7b")
    parser.add_argument("--stage", nargs="+", choices=tuple(ANSWERS), default=list(ANSWERS))
    parser.add_argument("--train", nargs="+", choices=TRAIN, default=list(TRAIN))
    parser.add_argument("--attention", nargs="+", choices=ATTENTION, default=list(ATTENTION))
    parser.add_argument("--checkpointing", nargs="+", choices=("yes", "no"), default=["yes", "no"])
    parser.add_argument("--frames", nargs="+", type=int, default=[8, 32, 128])
    parser.add_argument("--clips", type=int, default=4, help="clips of a micro-batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm_up", type=int, default=2)
    parser.add_argument("--peak", type=float, help="the GPU's TFLOP/s in dense bf16")
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    options = parser.parse_args(arguments)
    options.checkpointing = [choice == "yes" for choice in options.checkpointing]
    on_gpu = torch.cuda.is_available()
    if options.size == "7b" and not on_gpu:
        parser.error("no GPU here; --size tiny shows on a processor that the script works.")
    device = torch.device("cuda" if on_gpu else "cpu")
    name = torch.cuda.get_device_name() if on_gpu else f"no GPU, {platform.machine()}"
    peak = options.peak or next((PEAKS[key] for key in PEAKS if key in name), None)
    facts = {"date": date.today().isoformat(), "device": name, "peak_tflops": peak}
    facts |= {"versions": versions(), "command": " ".join(sys.argv)}
    sys.stdout.write(f"{json.dumps(facts, indent=2)}\n")
    rows = []
    for row in run_all(options, device, peak):
        rows.append(row)
        # One by one: a later case may end the process.
        sys.stdout.write("  ".join(filter(None, line(row))) + "\n")
        sys.stdout.flush()
        if options.output is not None:
            text = json.dumps({**facts, "size": options.size, "rows": rows}, indent=2)
            options.output.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(show([line(row) for row in rows]) + "\n")


if __name__ == "__main__":
    main()
