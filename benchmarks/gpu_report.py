"""What a GPU makes of rbft, in about ten minutes: steps at true 7B size, and Stage 0.

Training goes through rbft's own module, collator and Lightning's Trainer: autocast, clipping by
norm, `found_inf`, AdamW, adapters of peft, grids and places that the host knows. Weights are random
and videos are noise (`gpu_world.py`); what decoding costs, `input_pipeline.py` measures. The cases:

    lora_kept             adapters of rank 64 and the merger, tower outputs kept (one_80gb_gpu.yaml)
    lora_kept_checkpoint  the same with gradient checkpointing
    lora_kept_rationale   the same as the first in Stage I, answers of 150 tokens
    lora_tower            the vision tower runs in every step
    full_half_checkpoint  all weights in bf16-true, gradient checkpointing
    full_half             the same without
    full_half_rationale   with it, in Stage I
    full_mixed            all weights in 32 bits (bf16-mixed), checkpointing, one clip of 30 frames
    lora_kept_compile     the first, with model.compile
    lora_kept_liger       the first, with model.liger, where liger-kernel is installed
    stage0                8 clips, 64 tokens each
    stage0_cudnn          the same with cuDNN's attention

A step has two clips of 60 and 30 frames, 280 x 504 pixels. Seconds are those between the ends of
two steps, by events on the device: nothing waits in between. MFU counts what the model needs
(`rbft.estimate.flops`) over time and the GPU's peak in dense bf16, of the whole model and, as some
count it, of the language model alone. The estimate of memory is that of the dry run
(`rbft.estimate.memory`).

Run: python benchmarks/gpu_report.py --folder FOLDER [--checks]
"""

import argparse
import gc
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
if __name__ == "__main__":
    from cases import own_packages  # type: ignore[import-not-found]

    own_packages()

from lightning.pytorch import Callback

from benchmarks.cases import PASSED, Case, Cases, Findings, LeftOutError
from benchmarks.cases import show as shown
from benchmarks.gpu_world import (
    PIXELS,
    Noise,
    language_only,
    random_weights,
    write_backbone,
)
from benchmarks.sizes import PEAKS
from rbft.backbone.adapters import LoRA
from rbft.backbone.kernels import can_compile, has_liger
from rbft.backbone.loader import BackboneLoader
from rbft.estimate.flops import Flops, StepCounter, tower_width
from rbft.estimate.memory import MemorySettings, compute_bytes_of, step_memory
from rbft.module import RBFTModule
from rbft.rationale_module import RationaleModule
from rbft.runtime.fault_tolerance import take_signals
from tests.examples import CARD, fed, trainer

GIB = 2**30
TOP = 20  # operators that are shown
WARM_UP = 3  # steps before the clock starts


@dataclass(frozen=True)
class Training:
    """How a step is taken.

    Attributes:
        adapters: Train adapters and the merger on frozen weights in bf16; else all weights.
        checkpointing: Recompute activations.
        stage: label or rationale.
        kept: Whether the vision tower's outputs are kept from an earlier epoch.
        precision: The Trainer's.
        frames: Frames of the longer clips.
        clips: Clips of a step.
        steps: Steps that are timed.
        size: 7b or tiny.
        faster: model.compile or model.liger.
    """

    adapters: bool
    checkpointing: bool = False
    stage: str = "label"
    kept: bool = True
    precision: str = "bf16-mixed"
    frames: int = 60
    clips: int = 2
    steps: int = 6
    size: str = "7b"
    faster: str | None = None


class Clock(Callback):
    """Times steps on the device, and has torch's profiler look at one more."""

    def __init__(self, device: torch.device, steps: int) -> None:
        self.on_gpu, self.steps = device.type == "cuda", steps
        self.marks: list[Any] = []
        self.peak: int | None = None
        self.losses: list[Any] = []
        self.operators: list[list[Any]] = []
        self._done = 0
        self._profile: Any = None

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Marks the end of a step."""
        self._done += 1
        self.losses.append(outputs["loss"].detach())
        if WARM_UP <= self._done <= WARM_UP + self.steps:
            self.marks.append(self._mark())
        if self._done == 1 and self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        if self._done == WARM_UP + self.steps:
            self._begin()
        elif self._profile is not None:
            self._end()

    def _mark(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @property
    def seconds(self) -> list[float]:
        """Of each timed step; waits for the device."""
        pairs = list(zip(self.marks, self.marks[1:], strict=False))
        if not self.on_gpu:
            return [end - begin for begin, end in pairs]
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]

    def _begin(self) -> None:
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self.on_gpu:
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated()
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self._profile = torch.profiler.profile(activities=kinds)
        self._profile.__enter__()

    def _end(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
        self._profile.__exit__(None, None, None)
        self.operators, self._profile = top_operators(self._profile, self.on_gpu), None


def top_operators(profile: Any, on_gpu: bool) -> list[list[Any]]:
    """Name, milliseconds, share in per cent and calls of what takes longest, on the device."""
    kind = "device" if on_gpu else "cpu"
    rows = []
    for event in profile.key_averages():
        own = getattr(event, f"self_{kind}_time_total", None)
        if own is None:  # an older torch
            own = event.self_cuda_time_total
        # Of a kernel and the operator that starts it, the time is the kernel's own: one of them.
        if not on_gpu or str(event.device_type).endswith("CUDA"):
            rows.append([event.key, own / 1e3, event.count])
    whole = sum(time for _, time, _ in rows) or 1.0
    rows.sort(key=lambda row: -row[1])
    return [
        [name[:100], round(time, 3), round(100 * time / whole, 1), count]
        for name, time, count in rows[:TOP]
    ]


def train(found: Findings, device: torch.device, folder: Path, setting: Training) -> None:
    """Steps of training: seconds, MFU, memory and what takes longest."""
    folder.mkdir(parents=True, exist_ok=True)
    if setting.faster == "liger" and not has_liger(device):
        raise LeftOutError("the package liger-kernel is not installed, or there is no GPU")
    if setting.faster == "compile" and not can_compile(device):
        raise LeftOutError("torch.compile does not work here")
    source = write_backbone(folder / "base", setting.size)
    faster: dict[str, Any] = {setting.faster: True} if setting.faster else {}
    module = RBFTModule(
        str(source),
        CARD,
        stage=setting.stage,
        learning_rate=1e-5,
        merger_learning_rate=1e-5,
        vision_learning_rate=0.0 if setting.adapters else 2e-6,
        weight_decay=0.1,
        warmup_ratio=0.0,
        gradient_checkpointing=setting.checkpointing,
        max_new_tokens=8,
        lora=LoRA(rank=64, alpha=128) if setting.adapters else None,
        **faster,
    )
    kept = (
        (tower_width(module.config), torch.bfloat16) if setting.kept and setting.adapters else None
    )
    data = Noise(
        folder / "card.yaml",
        {"train": setting.clips},
        setting.frames,
        PIXELS[setting.size],
        kept=kept,
        batch_size=setting.clips,
        global_batch_size=setting.clips,
    )
    clock = Clock(device, setting.steps)
    data.steps_of_a_run = WARM_UP + setting.steps + 1
    how: dict[str, Any] = {"accelerator": "gpu" if device.type == "cuda" else "cpu"}
    runner = trainer(folder, precision=setting.precision, callbacks=[clock], **how)
    take_signals(runner)
    stay(runner)
    try:
        with random_weights(device):
            runner.fit(module, fed(data, module))
    except torch.OutOfMemoryError:
        if module.backbone is not None:
            found.note("estimate GiB", estimate(module, data, setting))
        raise
    found.note("estimate GiB", estimate(module, data, setting))
    counts = data.tokens(module.collator)
    # The host asks the device only now.
    losses = [float(loss) for loss in clock.losses]
    found.note("loss", losses[-1])
    found.same("losses are finite", all(map(math.isfinite, losses)), True)
    counter = StepCounter(module.backbone, module.family, module.config)
    flops = sum(map(counter.step, counts), Flops()).total
    language = sum(map(counter.step, map(language_only, counts)), Flops()).total
    seconds = clock.seconds
    median = statistics.median(seconds)
    found.note("seconds a step", median)
    found.note("of each step", seconds)
    found.note("tokens a step", sum(count.total for count in counts))
    found.note("tokens a second", sum(count.total for count in counts) / median)
    found.note("clips a second", setting.clips / median)
    found.note("TFLOP a step", flops / 1e12)
    found.note("TFLOP/s", flops / median / 1e12)
    peak = peak_of(device)
    found.note("MFU, whole model, %", None if peak is None else 100 * flops / median / peak)
    found.note(
        "MFU, language model alone, %", None if peak is None else 100 * language / median / peak
    )
    found.note("peak GiB", None if clock.peak is None else clock.peak / GIB)
    found.note("operators", clock.operators)


def estimate(module: RBFTModule, data: Noise, setting: Training) -> float:
    """The dry run's estimate of a step's peak, in GiB."""
    setup = MemorySettings(compute_bytes_of(setting.precision), setting.checkpointing)
    counts = data.tokens(module.collator)
    memory = step_memory(module.backbone, module.family, module.config, counts, setup)
    return memory.peak / GIB


def peak_of(device: torch.device) -> float | None:
    """Operations a second of the GPU in dense bf16, None where they are not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * PEAKS[key] for key in PEAKS if key in name), None)


class Writing(Callback):
    """Times batches that are written."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.seconds: list[float] = []
        self.lengths: list[int] = []
        self.peak: int | None = None
        self._started = 0.0

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def on_predict_batch_start(self, *_: Any, **__: Any) -> None:
        """Starts the clock."""
        self._wait()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        self._started = time.perf_counter()

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Stops it."""
        self._wait()
        self.seconds.append(time.perf_counter() - self._started)
        self.lengths = [len(ids) for ids in outputs[0].ids]
        if self.on_gpu:
            self.peak = torch.cuda.max_memory_allocated()


def write(
    found: Findings,
    device: torch.device,
    folder: Path,
    *,
    cudnn: bool,
    size: str = "7b",
    clips: int = 8,
    frames: int = 60,
    tokens: int = 64,
) -> None:
    """Stage 0: two batches, of which the first warms up; then as many with a single token."""
    source = write_backbone(folder / "base", size)
    seconds: dict[int, float] = {}
    for most in (tokens, 1):
        loader = BackboneLoader(str(source), cudnn_attention=cudnn)
        module = RationaleModule(loader, [CARD], most, packing=True)
        module.generation["eos_token_id"] = []  # all are as long
        data = Noise(
            folder / "card.yaml", {"test": 2 * clips}, frames, PIXELS[size], eval_batch_size=clips
        )
        data.feed = replace(data.feed, predict_clips=data.clips("test"))
        clock = Writing(device)
        how: dict[str, Any] = {"accelerator": "gpu" if device.type == "cuda" else "cpu"}
        runner = trainer(folder, precision="bf16-mixed", callbacks=[clock], **how)
        stay(runner)
        with random_weights(device):
            runner.predict(module, fed(data, module), return_predictions=False)
        found.same(f"{most} tokens: length of a text", sorted(set(clock.lengths)), [most])
        seconds[most] = clock.seconds[-1]
        if most == tokens:
            found.note("seconds of each batch", clock.seconds)
            found.note("peak GiB", None if clock.peak is None else clock.peak / GIB)
            found.note("clips a minute", 60 * clips / seconds[tokens])
        del module, runner, data
        release()
    found.note("seconds to read the prompts", seconds[1])
    found.note("ms a token of the batch", 1e3 * (seconds[tokens] - seconds[1]) / (tokens - 1))


def stay(runner: Any) -> None:
    """Has a Trainer leave weights and optimiser where they are when it ends.

    It would move them to the processor, whose memory may not hold 130 GB.
    """
    runner.strategy.teardown = runner.strategy.precision_plugin.teardown


def release() -> None:
    """Gives the device's memory back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


LORA = partial(Training, adapters=True)
FULL = partial(Training, adapters=False, kept=False)
TRAININGS = {
    "lora_kept": LORA(),
    "lora_kept_checkpoint": LORA(checkpointing=True),
    "lora_kept_rationale": LORA(stage="rationale"),
    "lora_tower": LORA(kept=False),
    "full_half_checkpoint": FULL(precision="bf16-true", checkpointing=True),
    "full_half": FULL(precision="bf16-true"),
    "full_half_rationale": FULL(precision="bf16-true", checkpointing=True, stage="rationale"),
    "full_mixed": FULL(checkpointing=True, clips=1, frames=30),
    "lora_kept_compile": LORA(faster="compile"),
    "lora_kept_liger": LORA(faster="liger"),
}
LIMIT = 120.0  # seconds of a case
CASES = {
    **{
        # Compiling alone may take a minute.
        name: Case(partial(train, setting=setting), LIMIT * (1 + (setting.faster == "compile")), "")
        for name, setting in TRAININGS.items()
    },
    "stage0": Case(partial(write, cudnn=False), LIMIT, ""),
    "stage0_cudnn": Case(partial(write, cudnn=True), LIMIT, ""),
}
COLUMNS = ("seconds a step", "tokens a second", "clips a second", "TFLOP/s")
COLUMNS += ("MFU, whole model, %", "MFU, language model alone, %", "peak GiB", "estimate GiB")
WRITTEN = ("clips a minute", "ms a token of the batch", "seconds to read the prompts", "peak GiB")


def show(known: Mapping[str, dict[str, Any]]) -> list[str]:
    """Tables of training and writing, and of what takes longest."""
    lines = []
    for title, columns in (("Training", COLUMNS), ("Stage 0", WRITTEN)):
        heads = ["case", *columns, "said"]
        lines += ["", f"## {title}", "", _row(heads), "|---" * len(heads) + "|"]
        for name, record in known.items():
            if name.startswith("stage0") == (title == "Stage 0"):
                figures = [_cell(record["figures"].get(column)) for column in columns]
                said = [] if record["outcome"] == PASSED else [record["outcome"], *record["wrong"]]
                lines.append(_row([name, *figures, "; ".join(said)[:200]]))
    for name, record in known.items():
        if rows := record["figures"].get("operators"):
            lines += ["", f"## {name}: what takes longest", ""]
            lines += [_row(["", "ms", "%", "calls"]), "|---|---|---|---|"]
            lines += [_row(list(map(_cell, row))) for row in rows]
    return lines[1:]


def _cell(value: Any) -> str:
    return "" if value is None else shown(value)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def run_all(made: Cases, cases: Mapping[str, Case], limit: float | None) -> None:
    """Runs what is not known yet, and says how each case ended."""
    names = list(cases)
    try:
        for name, follows in zip(names, [*names[1:], None], strict=True):
            record = made.run(name, limit or cases[name].limit, follows)
            said = "; ".join([record["outcome"], *record["wrong"]])
            sys.stdout.write(f"{name}: {said} ({record['seconds']:.0f} s)\n")
            sys.stdout.flush()
    finally:
        made.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs checks and cases, one by one."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where JSON and Markdown go")
    parser.add_argument("--checks", action="store_true", help="first those of pytest -m gpu")
    parser.add_argument("--cases", nargs="*", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--limit", type=float, help="seconds of a case (120; with compile 240)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("no GPU here; tests/gpu runs the same code at a tiny size on a processor.")
    if options.checks:
        from tests.gpu import checks

        made = Cases(checks.__name__, options.folder, checks.FILE, checks.TITLE, "cuda")
        run_all(made, checks.CASES, options.limit)
    name = "benchmarks.gpu_report"
    made = Cases(name, options.folder, "gpu_report", "rbft on a GPU", "cuda", show)
    run_all(made, {name: CASES[name] for name in options.cases}, options.limit)
    if made.markdown.exists():
        sys.stdout.write(made.markdown.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
