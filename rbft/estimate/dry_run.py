"""The dry run: what `fit` would do, how much of it, and whether it fits; loads no weights."""

import math
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from rbft.backbone.adapters import add_adapters
from rbft.backbone.loading import load_model, parameter_parts
from rbft.clip import Clip
from rbft.collator import Collator
from rbft.data.base import VideoDataModule
from rbft.data.rationales import RationaleStore, mix
from rbft.estimate.flops import ClipTokens, Flops, StepCounter, tower_width
from rbft.estimate.memory import Memory, Setup, step_memory
from rbft.estimate.scoring_memory import Asked, ScoringMemory, scoring_memory
from rbft.estimate.token_counts import check_context, count_tokens
from rbft.module import RBFTModule
from rbft.runs.folder import ZERO_SHOT, Run
from rbft.runtime.console import table
from rbft.stages import CLASS, RATIONALE, STAGES, Stage, find_stage
from rbft.training.fsdp2 import is_sharded
from rbft.training.optim import freeze, parameter_groups, parameter_table
from rbft.video.sampling import PATCH, TEMPORAL_PATCH

GIB = 2**30
CONTEXT_BYTES = 1.0 * GIB  # what CUDA and its libraries take
SPARE = 1.1  # room for fragmentation
SHARES = 20  # steps in which the share of recomputed blocks is looked for


@dataclass(frozen=True)
class Plan:
    """What the dry run looks at.

    Attributes:
        data: The benchmark.
        model: The module, without weights.
        trainer: The Trainer; of the number of devices that are asked for, whether there or not.
        run: The run on disk.
        stages: Names of the stages, in order.
        store: The rationale file.
        scored: Places in the run's folder whose results are there, made as this run makes them.
        whole: Whether the whole method runs, not a single stage.
        score_each: Whether the backbone and every stage are scored, not only the last.
    """

    data: VideoDataModule
    model: RBFTModule
    trainer: Trainer
    run: Run
    stages: Sequence[str]
    store: RationaleStore
    scored: Collection[str] = ()
    whole: bool = True
    score_each: bool = True


@dataclass(frozen=True)
class Lengths:
    """Tokens of every clip that a stage trains on or scores.

    Attributes:
        clips: The clips.
        counts: Their tokens.
        guessed: How many rationales are taken to be as long as they may get.
        val: Tokens of the clips that are validated after each epoch of the stage.
        word: Tokens of the longest class word, with what ends it.
    """

    clips: list[Clip]
    counts: list[ClipTokens]
    guessed: int = 0
    val: tuple[ClipTokens, ...] = ()
    word: int = 1


def stand_in(accelerator: str, devices: Any) -> dict[str, Any]:
    """Arguments of a Trainer for as many devices as are asked for, on a machine without them.

    Args:
        accelerator: The Trainer's setting.
        devices: The Trainer's setting.

    Returns:
        Nothing where the devices are there.
    """
    asked = str(len(devices) if isinstance(devices, list) else devices)
    number = int(asked) if asked.isdecimal() else 1
    if accelerator == "cpu" or 0 < number <= torch.cuda.device_count():
        return {}
    return {"accelerator": "cpu", "devices": number}


def count_tokens_of_stages(plan: Plan) -> dict[str, Lengths]:
    """Tokens of the clips of every stage, and of those that are scored ("test").

    Raises:
        ValueError: If a clip is longer than the backbone's context.
    """
    data, model = plan.data, plan.model
    context, found = model.config.text_config.max_position_embeddings, {}
    for name in dict.fromkeys([*plan.stages, "test"]):
        if name == "test":
            stage = find_stage(plan.stages[-1] if plan.stages else "label").classifier
            clips, texts = data.clips("test"), {}
        else:
            stage = find_stage(name)
            clips = data.clips("train") + data.clips("val")
            texts = _known_rationales(plan) if stage.needs_rationales else {}
        collator = Collator(
            model.processor, model.config, model.family, model.card, target_stage=stage
        )
        counts = count_tokens(data, collator, clips, texts, model.max_new_tokens)
        check_context(clips, counts, context, f"model.backbone {model.loader.base}")
        val = ()
        if name != "test":
            clips = data.clips("train")
            val = tuple(counts[clip.id] for clip in data.clips("val") if clip.id in counts)
        clips = [clip for clip in clips if clip.id in counts]
        guessed = sum(not texts.get(clip.id) for clip in clips) if stage.needs_rationales else 0
        word = max(map(len, collator.class_answers(stage.classifier)))
        found[name] = Lengths(clips, [counts[clip.id] for clip in clips], guessed, val, word)
    return found


def report(plan: Plan, name: str, gpu_gb: float | None) -> str:
    """What would run, what would train, how long clips are, memory and disk, as text.

    Args:
        plan: What to look at.
        name: The run's name.
        gpu_gb: Memory of the GPU to compare with, in GiB; None takes the one present.

    Raises:
        ValueError: If a clip is longer than the backbone's context, or nothing would train.
    """
    data, model, world = plan.data, plan.model, plan.trainer.world_size
    found = count_tokens_of_stages(plan)
    backbone = empty_backbone(model, plan.trainer)
    parts = parameter_parts(backbone, model.family)
    size = sum(parameter.numel() for parameter in backbone.parameters())
    devices = "1 device" if world == 1 else f"{world} devices"
    clips = "1 clip" if data.batch_size == 1 else f"{data.batch_size} clips"
    strategy = type(plan.trainer.strategy).__name__.removesuffix("Strategy")
    lines = [
        f"Dry run of {name}: no weights are loaded, nothing is trained or written.",
        "",
        f"backbone      {model.loader.source}, {size:,} parameters",
        f"precision     {plan.trainer.precision}; {strategy}, {devices}",
    ]
    if not plan.stages:
        lines += ["", steps_table(plan, found, None), "", lengths_table(plan, found), ""]
        scoring = scoring_peaks(plan, found, None, 0)
        peak = max((own.peak for own in scoring.values()), default=0)
        lines += [scoring_table(scoring, data.eval_batch_size), verdict(peak, gpu_gb)]
        return "\n".join(lines)
    groups = parameter_groups(parts, model.learning_rates, model.weight_decay)
    accumulation = data.accumulation(world)
    batch = f"{devices} x {clips} x {accumulation} micro-batches"
    lines += [
        f"global batch  {data.global_batch_size} = {batch}",
        "",
        steps_table(plan, found, _counter(plan, backbone)),
        "",
    ]
    headers, rows = parameter_table(groups, parts)
    lines += [table(rows, headers), "", lengths_table(plan, found), ""]
    longest = max((found[stage] for stage in plan.stages), key=lambda own: _largest(own.counts, 1))
    micro = sorted(longest.counts, key=lambda count: count.total)[-data.batch_size :]
    shown = _seen(plan, micro if model.packing else _padded(micro))
    setup = _setup(plan)
    memory = step_memory(backbone, model.family, model.config, shown, setup)
    scoring = scoring_peaks(plan, found, backbone, memory.optimiser)
    scored = max((own.peak for own in scoring.values()), default=0)

    def worst(share: float) -> int:
        own = replace(setup, checkpointing=share)
        return max(scored, step_memory(backbone, model.family, model.config, shown, own).peak)

    lines += [memory_table(memory, len(micro)), "", scoring_table(scoring, data.eval_batch_size)]
    lines += [verdict(max(memory.peak, scored), gpu_gb)]
    lines += [*advice(setup.checkpointing, worst, gpu_gb), ""]
    lines += [disk_table(plan, found, backbone)]
    return "\n".join(lines)


def empty_backbone(model: RBFTModule, trainer: Trainer, *, training: bool = True) -> Any:
    """The backbone without weights, with the precisions and adapters that it trains with.

    Args:
        model: The module.
        trainer: The Trainer.
        training: Whether it trains; otherwise the precisions are those that it is scored with.
    """
    sharded = is_sharded(trainer.strategy)
    precision = str(trainer.precision)
    with trainer.precision_plugin.tensor_init_context():
        backbone = load_model(
            model.loader.base,
            "eager",  # no forward pass is made
            model.loader.gradient_checkpointing,
            empty=True,
            trust=model.loader.trust,
            dtype=model.loader.dtype(precision, sharded=sharded, training=training),
        )
        if model.loader.lora is not None:
            merger = model.learning_rates["merger"] > 0
            add_adapters(
                backbone,
                model.loader.lora,
                None,
                merger=merger,
                read=False,
                autocast=precision.endswith("-mixed"),
            )
    freeze(parameter_parts(backbone, model.family), model.learning_rates)
    return backbone


def steps_table(plan: Plan, found: Mapping[str, Lengths], counter: StepCounter | None) -> str:
    """The steps of the method, what is done of them, and the arithmetic of those that train."""
    data, rows = plan.data, []
    scored = len(found["test"].clips)

    def scoring(place: str, title: str) -> list[str]:
        done = place in plan.scored
        return [f"scoring: {title}", str(scored), "", "", "done" if done else "to do"]

    if any(find_stage(stage).needs_rationales for stage in plan.stages):
        ids = [clip.id for clip in data.clips_to_describe()]
        missing = len(plan.store.missing(ids)) if data.rationale_ratio else 0
        state = f"{missing} to write" if missing else "done"
        rows.append(["Stage 0 (writing rationales)", str(len(ids)), "", "", state])
    if plan.whole and (plan.score_each or not plan.stages):
        rows.append(scoring(ZERO_SHOT, "backbone, zero-shot"))
    epochs = plan.trainer.max_epochs or 1
    for stage in plan.stages:
        steps = data.steps(plan.trainer.world_size, epochs)
        checkpoint = plan.run.checkpoint(stage)
        state = "done" if plan.run.trained(stage) else "to do"
        if checkpoint is not None and state != "done":
            state = f"resumes at {checkpoint.stem}"
        assert counter is not None
        flops = sum(map(counter.step, _seen(plan, found[stage].counts)), Flops()) * epochs
        title = STAGES[stage].paper + (f", {epochs} epochs" if epochs > 1 else "")
        work = flops.total / 1e15
        arithmetic = f"{work:.3g}" if work < 1000 else f"{work:,.0f}"
        rows.append([title, str(len(found[stage].clips)), str(steps), arithmetic, state])
        if plan.score_each or stage == plan.stages[-1]:
            rows.append(scoring(stage, f"after {STAGES[stage].paper}"))
    return table(rows, ["step", "clips", "optimiser steps", "PFLOP", "state"], align="lrrrl")


def lengths_table(plan: Plan, found: Mapping[str, Lengths]) -> str:
    """Tokens of a clip: mean, 95th percentile and the most, with the clip that has it."""
    rows = []

    def row(title: str, own: Lengths, numbers: list[int]) -> None:
        most = max(range(len(numbers)), key=numbers.__getitem__)
        mean = sum(numbers) / len(numbers)
        high = sorted(numbers)[math.ceil(0.95 * len(numbers)) - 1]
        rows.append([title, f"{mean:,.0f}", f"{high:,}", f"{numbers[most]:,}", own.clips[most].id])

    for name, own in found.items():
        title = "test" if name == "test" else STAGES[name].paper
        if not own.counts:
            continue
        row(f"{title}: video", own, [count.video for count in own.counts])
        row("  prompt", own, [count.prompt for count in own.counts])
        guess = " (at most)" if own.guessed else ""
        row(f"  answer{guess}", own, [count.answer for count in own.counts])
        row("  together", own, [count.total for count in own.counts])
    context = plan.model.config.text_config.max_position_embeddings
    headers = ["tokens of a clip", "mean", "p95", "most", "clip"]
    return f"{table(rows, headers, align='lrrrl')}\ncontext of the backbone: {context:,} tokens"


def memory_table(memory: Memory, clips: int) -> str:
    """Bytes on one device, by what they are for."""
    batch = "the longest clip" if clips == 1 else f"the {clips} longest clips"
    rows = [
        ["weights", memory.weights, ""],
        ["gradients", memory.gradients, ""],
        ["optimiser state", memory.optimiser, "AdamW's two moments"],
        ["activations, decoder", memory.kept, f"kept for the backward pass, {batch}"],
        ["activations, vision tower", memory.kept_vision, "the same"],
        ["logits", memory.logits, "at answer tokens only"],
        ["head's gradient", memory.head, "for a moment"],
        ["backward pass of a block", memory.block, "for a moment"],
        ["weights in half precision", memory.copies, "copies that autocast makes"],
        ["gathered weights", memory.gathered, "sharding: for a moment"],
    ]
    lines = [[name, f"{size / GIB:.2f}", note] for name, size, note in rows if size]
    where = max(memory.moments, key=memory.moments.__getitem__)
    lines.append(["peak", f"{memory.peak / GIB:.2f}", where])
    return table(lines, ["memory of one device (estimate)", "GiB", ""], align="lrl")


def scoring_peaks(
    plan: Plan, found: Mapping[str, Lengths], backbone: Any, optimiser: int
) -> dict[str, ScoringMemory]:
    """Memory of what is written and scored, by its title, each with its longest clips.

    Args:
        plan: What to look at.
        found: Tokens of the clips, from `count_tokens_of_stages`.
        backbone: The backbone as it trains; None where nothing does.
        optimiser: Bytes of the optimiser's state, which are there while a stage is validated.
    """
    data, model = plan.data, plan.model
    frozen = empty_backbone(model, plan.trainer, training=False)
    texts = model.max_new_tokens

    def peak(counts: Sequence[ClipTokens], asked: Asked, learning: bool = False) -> ScoringMemory:
        prompted = sorted(counts, key=lambda count: count.video + count.prompt)
        micro = _seen(plan, prompted[-data.eval_batch_size :])
        used, beside = (backbone, optimiser) if learning else (frozen, 0)
        asked = replace(asked, packed=model.packing, eager=model.loader.attention == "eager")
        setup = _setup(plan)
        return scoring_memory(used, model.family, model.config, micro, setup, asked, beside)

    def classes(stage: Stage, word: int, held: int = 0) -> Asked:
        rationale = stage.parts[0] == RATIONALE
        written = texts if rationale or model.answer == "generate" else 0
        scored = len(model.card.words) if model.answer == "score" else 0
        return Asked(scored, word, written, max(held, int(bool(written))))

    peaks = {}
    described = [found[name] for name in plan.stages if find_stage(name).needs_rationales]
    if described and data.rationale_ratio:
        peaks["Stage 0, writing"] = peak(described[0].counts, Asked(written=texts))
    for name in plan.stages:
        own, stage = found[name], find_stage(name)
        if own.val:
            # The classes are scored from a copy of the prompt, and the loss goes on from another;
            # of two prompts about a clip, what they begin with is held besides.
            held = 1 if stage.classifier is stage else 2
            asked = [classes(stage.classifier, own.word, held)]
            if stage.parts != (CLASS,):
                asked.append(Asked(1, max(count.answer for count in own.val), 0, held))
            peaks[f"validation, {stage.paper}"] = max(
                (peak(own.val, one, learning=True) for one in asked), key=lambda made: made.peak
            )
    last = find_stage(plan.stages[-1] if plan.stages else "label").classifier
    if found["test"].counts:
        peaks["scoring"] = peak(found["test"].counts, classes(last, found["test"].word))
    return peaks


def scoring_table(peaks: Mapping[str, ScoringMemory], clips: int) -> str:
    """Bytes on one device as texts are written and classes scored."""
    rows = []
    for title, memory in peaks.items():
        sizes = (memory.weights, memory.pixels, memory.cache, memory.peak)
        where = max(memory.moments, key=memory.moments.__getitem__)
        rows.append([title, *(f"{size / GIB:.2f}" for size in sizes), where])
    batch = "the longest clip" if clips == 1 else f"the {clips} longest clips"
    headers = [f"{batch} (estimate, GiB)", "weights", "pixels", "keys, values", "peak", ""]
    return table(rows, headers, align="lrrrrl")


def advice(share: float, peak: Callable[[float], int], gpu_gb: float | None) -> list[str]:
    """The least gradient checkpointing with which a step fits the GPU, if it is another share.

    Args:
        share: Share of the blocks that is recomputed by the settings.
        peak: Bytes of a step by that share.
        gpu_gb: Memory of the GPU in GiB; None takes the one present.

    Returns:
        A line, or none where the share is right or no share fits.
    """
    room = None if (card := _card(gpu_gb)) is None else card[0]
    shares = (step / SHARES for step in range(SHARES + 1))
    least = next((s for s in shares if room is not None and _needed(peak(s)) <= room), None)
    if least is None or math.isclose(least, share):
        return []
    value = {0.0: "false", 1.0: "true"}.get(least, f"{least:g}")
    setting = f"model.gradient_checkpointing {value} ({peak(least) / GIB:.1f} GiB)"
    if least > share:
        return [f"It fits with {setting}, which recomputes more blocks."]
    return [f"There is room for {setting}, which recomputes fewer blocks and so is faster."]


def verdict(peak: int, gpu_gb: float | None) -> str:
    """Whether the peak fits the GPU."""
    found = _card(gpu_gb)
    if found is None:
        return "No GPU here: compare the peak with your card's memory, or give --gpu_gb."
    room, card = found
    needed = _needed(peak)
    what = f"{peak / GIB:.1f} GiB, with a tenth to spare and 1 GiB for CUDA {needed / GIB:.1f} GiB"
    if needed <= room:
        return f"Fits {card}: {what}."
    cures = "more devices with trainer.strategy fsdp2, model.lora, model.gradient_checkpointing, a "
    cures += "smaller data.batch_size, data.eval_batch_size, data.max_pixels or data.max_frames"
    if peak + CONTEXT_BYTES <= room:
        return f"Tight on {card}: {what}. What helps: {cures}."
    return f"Does NOT fit {card}: {what}. What helps: {cures}."


def _card(gpu_gb: float | None) -> tuple[float, str] | None:
    """Bytes and name of the GPU to compare with; None where there is none."""
    if gpu_gb is not None:
        return gpu_gb * GIB, f"a GPU of {gpu_gb:g} GiB"
    if not torch.cuda.is_available():
        return None
    facts = torch.cuda.get_device_properties(0)
    return facts.total_memory, f"{facts.name} ({facts.total_memory / GIB:.1f} GiB)"


def _needed(peak: int) -> float:
    """Bytes that a GPU must have for a peak."""
    return peak * SPARE + CONTEXT_BYTES


def disk_table(plan: Plan, found: Mapping[str, Lengths], backbone: Any) -> str:
    """What run and caches take on disk when all is done."""
    data = plan.data
    grids = {clip.id: count.grid for own in found.values() for clip, count in _pairs(own)}
    patches = sum(math.prod(grid) for grid in grids.values())
    frames = patches * PATCH**2 * TEMPORAL_PATCH * 3
    trained = sum(p.numel() * p.element_size() for p in backbone.parameters() if p.requires_grad)
    whole = sum(p.numel() * p.element_size() for p in backbone.parameters())
    weights = whole if plan.model.loader.lora is None else trained
    stages, runs, cache = len(plan.stages), plan.run.folder, data.cache_folder
    rows = [
        ["frame cache", frames, f"within data.frame_cache_gb {data.frame_cache.max_bytes / 1e9:g}"],
        ["weights", weights * stages, f"{stages} x {weights / 1e9:.3g} GB, one folder a stage"],
        ["checkpoints", 2 * 3 * trained, "while a stage trains, two for a moment"],
    ]
    if data.feature_cache.max_bytes:
        size = patches * tower_width(plan.model.config) * _setup(plan).products
        note = f"within data.feature_cache_gb {data.feature_cache.max_bytes / 1e9:g}"
        rows.insert(1, ["feature cache", size, note])
    lines = [[name, f"{size / 1e9:.3g}", note] for name, size, note in rows]
    free = {folder: shutil.disk_usage(_existing(folder)).free / 1e9 for folder in (runs, cache)}
    text = table(lines, ["disk", "GB", ""], align="lrl")
    return f"{text}\nfree: {free[runs]:.0f} GB for the run, {free[cache]:.0f} GB for the caches"


def _known_rationales(plan: Plan) -> dict[str, str]:
    """Rationales that are written already, or come with the benchmark and are mixed in."""
    data, own = plan.data, plan.store.texts()
    train = [clip.id for clip in data.clips("train")]
    human = {c.id: c.reference for c in data.clips("train") if c.reference is not None}
    every = dict.fromkeys(train, "") | own
    return own | mix(every, human, data.rationale_ratio, train, data.seed)


def _setup(plan: Plan) -> Setup:
    trainer, model = plan.trainer, plan.model
    sharded = is_sharded(trainer.strategy)
    return Setup(
        products=Setup.product_bytes(str(trainer.precision)),
        checkpointing=float(model.loader.gradient_checkpointing),
        shards=trainer.world_size if sharded else 1,
        replicas=isinstance(trainer.strategy, DDPStrategy) and trainer.world_size > 1,
        four_bit=model.loader.quantize == "4bit",
    )


def _counter(plan: Plan, backbone: Any) -> StepCounter:
    return StepCounter(backbone, plan.model.family, plan.model.config)


def _seen(plan: Plan, counts: Sequence[ClipTokens]) -> list[ClipTokens]:
    """What the vision tower has to do: nothing where its outputs are kept."""
    if not plan.data.feature_cache.max_bytes:
        return list(counts)
    return [replace(count, grid=(0, 0, 0)) for count in counts]


def _padded(batch: Sequence[ClipTokens]) -> list[ClipTokens]:
    """Clips as long as the longest; padding is as large as what it stands for."""
    most = max(count.total for count in batch)
    return [replace(count, prompt=count.prompt + most - count.total) for count in batch]


def _pairs(own: Lengths) -> list[tuple[Clip, ClipTokens]]:
    return list(zip(own.clips, own.counts, strict=True))


def _largest(counts: Sequence[ClipTokens], number: int) -> int:
    return sum(sorted(count.total for count in counts)[-number:])


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())
