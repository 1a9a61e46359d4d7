"""The dry run: the steps of a run, their arithmetic and memory, without loading weights."""

import math
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from rbft.backbone.adapters import add_adapters, is_adapter
from rbft.backbone.loading import load_model, parameter_parts
from rbft.clip import Clip
from rbft.collator import Collator
from rbft.data.base import Feed, VideoDataModule
from rbft.data.rationales import RationaleStore, mix
from rbft.estimate.flops import ClipTokens, Flops, StepCounter, tower_width
from rbft.estimate.memory import (
    MemorySettings,
    StepMemory,
    compute_bytes_of,
    step_memory,
)
from rbft.estimate.scoring_memory import ScoringMemory, ScoringTask, scoring_memory
from rbft.estimate.token_counts import check_context, count_tokens
from rbft.module import RBFTModule
from rbft.runs.folder import ZERO_SHOT, Run
from rbft.runtime.console import table
from rbft.stages import CLASS, RATIONALE, STAGES, Stage, find_stage
from rbft.training.fsdp2 import is_sharded
from rbft.training.optim import freeze, parameter_groups, parameter_table
from rbft.video.times import TEMPORAL_PATCH

GIB = 2**30
CUDA_CONTEXT_BYTES = 1.0 * GIB  # what CUDA and its libraries take
FRAGMENTATION = 1.1  # factor of the estimated peak, for what the allocator wastes
CHECKPOINTING_STEPS = 20  # shares of gradient checkpointing that are tried: 0, 0.05, ..., 1


@dataclass(frozen=True)
class Plan:
    """The run that the dry run reports on.

    Attributes:
        data: The benchmark.
        model: The module, without weights.
        trainer: The Trainer; with the requested number of devices, whether they exist or not.
        run: The run on disk.
        stages: Names of the stages, in order.
        store: The rationale file.
        scored: Names of the results that the run's folder has already, made as this run would.
        whole: Whether the whole method runs, not a single stage.
        score_each: Whether the backbone and every stage are scored, not only the last.
        keeps_best: Whether the weights of the best validation are kept while a stage trains.
        endpoint: The endpoint's model, where it writes the rationales in the backbone's place.
        anew: Names of the stages before which the weights that they start from write rationales.
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
    keeps_best: bool = False
    endpoint: str | None = None
    anew: Collection[str] = ()


@dataclass(frozen=True)
class SplitTokens:
    """Tokens of every clip that a stage trains on or that is scored.

    Attributes:
        clips: The clips.
        tokens: Their tokens.
        unwritten: Number of rationales that are not written yet, and counted at their longest.
        val: Tokens of the validation clips.
        class_word: Tokens of the longest class word, end of turn included.
        answers: Sequences of each clip in a training batch: one, or one for each class that is
            looked at; of the clip that has most, where not all have as many.
        sequences_of: Sequences of each clip, where not all have as many.
    """

    clips: list[Clip]
    tokens: list[ClipTokens]
    unwritten: int = 0
    val: tuple[ClipTokens, ...] = ()
    class_word: int = 1
    answers: int = 1
    sequences_of: tuple[int, ...] = ()

    @property
    def every_sequence(self) -> list[ClipTokens]:
        """The sequences of all clips, as `sequences` gives them, each clip with its own number."""
        if not self.sequences_of:
            return self.sequences(self.tokens)
        counted = zip(self.tokens, self.sequences_of, strict=True)
        again = [replace(clip, grid=(0, 0, 0)) for clip, count in counted for _ in range(count - 1)]
        return [*self.tokens, *again]

    def sequences(self, clips: Sequence[ClipTokens]) -> list[ClipTokens]:
        """The sequences of clips in a training batch; the vision tower sees each clip once."""
        again = [replace(clip, grid=(0, 0, 0)) for clip in clips]
        return [*clips, *again * (self.answers - 1)]


def stand_in(accelerator: str, devices: Any) -> dict[str, Any]:
    """Arguments that give a Trainer the requested number of devices on a machine without them.

    Args:
        accelerator: The Trainer's setting.
        devices: The Trainer's setting.

    Returns:
        Empty if the machine has the devices.
    """
    requested = str(len(devices) if isinstance(devices, list) else devices)
    number = int(requested) if requested.isdecimal() else 1
    if accelerator == "cpu" or 0 < number <= torch.cuda.device_count():
        return {}
    return {"accelerator": "cpu", "devices": number}


def count_tokens_of_stages(plan: Plan) -> dict[str, SplitTokens]:
    """Counts the tokens of the clips of every stage and of the test split ("test").

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
        unwritten = sum(not texts.get(clip.id) for clip in clips) if stage.needs_rationales else 0
        word = max(map(len, collator.class_answers(stage.classifier)))
        answers = len(model.card.words) if stage.all_classes else stage.questions(model.card)
        answers = 1 if name == "test" else answers
        tokens, voted = [counts[clip.id] for clip in clips], ()
        if name != "test" and data.soft_labels and CLASS in stage.parts:
            shares = [clip.soft_label(len(model.card.words)) for clip in clips]
            voted = tuple(sum(share > 0 for share in own) for own in shares)
            answers = max(voted, default=1)
        found[name] = SplitTokens(clips, tokens, unwritten, val, word, answers, voted)
    return found


def report(plan: Plan, name: str, gpu_gb: float | None) -> str:
    """The dry run's text: steps, trainable parameters, tokens, memory and disk space.

    Args:
        plan: The run.
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
        lines += ["", steps_table(plan, found, None), "", tokens_table(plan, found), ""]
        scoring = scoring_peaks(plan, found, None, 0)
        peak = max((own.peak for own in scoring.values()), default=0)
        lines += [scoring_table(scoring, data.eval_batch_size), fit_message(peak, gpu_gb)]
        return "\n".join(lines)
    groups = parameter_groups(parts, model.learning_rates, model.weight_decay)
    accumulation = data.accumulation(world)
    batch = f"{devices} x {clips} x {accumulation} micro-batches"
    lines += [
        f"global batch  {data.global_batch_size} = {batch}",
        "",
        steps_table(plan, found, _step_counter(plan, backbone)),
        "",
    ]
    headers, rows = parameter_table(groups, parts)
    lines += [table(rows, headers), "", tokens_table(plan, found), "", *_rules(plan)]
    longest = max((found[stage] for stage in plan.stages), key=_longest_clip)
    micro = sorted(longest.tokens, key=lambda count: count.total)[-data.batch_size :]
    rows = longest.sequences(micro)
    micro_batch = _without_cached_tower(plan, rows if model.packing else _pad_to_longest(rows))
    settings = _memory_settings(plan)
    memory = step_memory(backbone, model.family, model.config, micro_batch, settings)
    scoring = scoring_peaks(plan, found, backbone, memory.optimizer_states)
    scored = max((own.peak for own in scoring.values()), default=0)

    def peak_with(share: float) -> int:
        own = replace(settings, checkpointing=share)
        return max(scored, step_memory(backbone, model.family, model.config, micro_batch, own).peak)

    lines += [memory_table(memory, len(micro)), "", scoring_table(scoring, data.eval_batch_size)]
    lines += [fit_message(max(memory.peak, scored), gpu_gb)]
    lines += [*suggest_checkpointing(settings.checkpointing, peak_with, gpu_gb), ""]
    lines += [disk_table(plan, found, backbone)]
    return "\n".join(lines)


def empty_backbone(model: RBFTModule, trainer: Trainer, *, training: bool = True) -> Any:
    """The backbone on the meta device, with the dtypes and adapters that it trains with.

    Args:
        model: The module.
        trainer: The Trainer.
        training: Whether it trains; otherwise the dtypes are those that it is scored with.
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
                model.weights if is_adapter(model.weights) else None,
                merger=merger,
                read=False,
                autocast=precision.endswith("-mixed"),
            )
    freeze(parameter_parts(backbone, model.family), model.learning_rates)
    return backbone


def steps_table(plan: Plan, found: Mapping[str, SplitTokens], counter: StepCounter | None) -> str:
    """The steps of the method, whether they are done, and the arithmetic of training."""
    data, rows = plan.data, []
    scored = len(found["test"].clips)

    def scoring(place: str, title: str) -> list[str]:
        done = place in plan.scored
        return [f"scoring: {title}", str(scored), "", "", "done" if done else "to do"]

    if any(find_stage(one).needs_rationales for one in plan.stages if one not in plan.anew):
        ids = [clip.id for clip in data.clips_to_describe()]
        missing = len(plan.store.missing(ids)) if data.rationale_ratio else 0
        todo = [f"{missing} to write"] if missing else []
        if unknown := len(plan.store.undecided(ids)) if data.rationale_ratio else 0:
            todo.append(f"{unknown} to verify")
        state = ", ".join(todo) or "done"
        title = "Stage 0 (writing rationales)"
        if plan.endpoint is not None:  # which takes none of this machine's memory
            title = f"Stage 0 (endpoint {plan.endpoint} writes rationales)"
        rows.append([title, str(len(ids)), "", "", state])
    if plan.whole and (plan.score_each or not plan.stages):
        rows.append(scoring(ZERO_SHOT, "backbone, zero-shot"))
    epochs = plan.trainer.max_epochs or 1
    for stage in plan.stages:
        if stage in plan.anew:
            done = "done" if plan.run.trained(stage) else "to do"
            number = str(len(data.clips_to_describe()))
            rows.append(["rationales of the weights before it", number, "", "", done])
        steps = data.steps(plan.trainer.world_size, epochs)
        checkpoint = plan.run.checkpoint(stage)
        state = "done" if plan.run.trained(stage) else "to do"
        if checkpoint is not None and state != "done":
            state = f"resumes at {checkpoint.stem}"
        assert counter is not None
        sequences = found[stage].every_sequence
        flops = sum(map(counter.step, _without_cached_tower(plan, sequences)), Flops()) * epochs
        title = find_stage(stage).paper + (f", {epochs} epochs" if epochs > 1 else "")
        work = flops.total / 1e15
        arithmetic = f"{work:.3g}" if work < 1000 else f"{work:,.0f}"
        rows.append([title, str(len(found[stage].clips)), str(steps), arithmetic, state])
        if plan.score_each or stage == plan.stages[-1]:
            rows.append(scoring(stage, f"after {find_stage(stage).paper}"))
    return table(rows, ["step", "clips", "optimiser steps", "PFLOP", "state"], align="lrrrl")


def tokens_table(plan: Plan, found: Mapping[str, SplitTokens]) -> str:
    """Tokens of a clip: mean, 95th percentile and maximum, and the clip that has the maximum."""
    rows = []

    def row(title: str, own: SplitTokens, numbers: list[int]) -> None:
        most = max(range(len(numbers)), key=numbers.__getitem__)
        mean = sum(numbers) / len(numbers)
        high = sorted(numbers)[math.ceil(0.95 * len(numbers)) - 1]
        rows.append([title, f"{mean:,.0f}", f"{high:,}", f"{numbers[most]:,}", own.clips[most].id])

    for name, own in found.items():
        title = "test" if name == "test" else find_stage(name).paper
        if not own.tokens:
            continue
        row(f"{title}: video", own, [count.video for count in own.tokens])
        row("  prompt", own, [count.prompt for count in own.tokens])
        guess = " (at most)" if own.unwritten else ""
        row(f"  answer{guess}", own, [count.answer for count in own.tokens])
        row("  together", own, [count.total for count in own.tokens])
    context = plan.model.config.text_config.max_position_embeddings
    headers = ["tokens of a clip", "mean", "p95", "most", "clip"]
    return f"{table(rows, headers, align='lrrrl')}\ncontext of the backbone: {context:,} tokens"


def memory_table(memory: StepMemory, clips: int) -> str:
    """The estimated memory of a training step, by what it is used for."""
    batch = "the longest clip" if clips == 1 else f"the {clips} longest clips"
    rows = [
        ["weights", memory.weights, ""],
        ["gradients", memory.gradients, ""],
        ["optimiser state", memory.optimizer_states, "AdamW's two moments"],
        ["activations, decoder", memory.saved_decoder, f"saved for the backward pass, {batch}"],
        ["activations, vision tower", memory.saved_vision, "the same"],
        ["logits", memory.logits, "at answer tokens only"],
        ["head's gradient", memory.head_gradient, "for a moment"],
        ["backward pass of a block", memory.block_backward, "for a moment"],
        ["weights in half precision", memory.autocast_copies, "copies that autocast makes"],
        ["gathered weights", memory.unsharded, "sharding: for a moment"],
    ]
    lines = [[name, f"{size / GIB:.2f}", note] for name, size, note in rows if size]
    where = max(memory.phases, key=memory.phases.__getitem__)
    lines.append(["peak", f"{memory.peak / GIB:.2f}", where])
    return table(lines, ["memory of one device (estimate)", "GiB", ""], align="lrl")


def scoring_peaks(
    plan: Plan, found: Mapping[str, SplitTokens], backbone: Any, optimizer_states: int
) -> dict[str, ScoringMemory]:
    """Estimated memory of writing and scoring with the longest clips, by title.

    Args:
        plan: The run.
        found: Tokens of the clips, from `count_tokens_of_stages`.
        backbone: The backbone as it trains; None if nothing is trained.
        optimizer_states: Their bytes, which are allocated during validation.
    """
    data, model = plan.data, plan.model
    frozen = empty_backbone(model, plan.trainer, training=False)
    longest_text = model.max_new_tokens

    def memory_of(
        tokens: Sequence[ClipTokens], task: ScoringTask, training: bool = False
    ) -> ScoringMemory:
        longest = sorted(tokens, key=lambda count: count.video + count.prompt)
        batch = _without_cached_tower(plan, longest[-data.eval_batch_size :])
        used, other = (backbone, optimizer_states) if training else (frozen, 0)
        task = replace(task, packed=model.packing, eager=model.loader.attention == "eager")
        settings = _memory_settings(plan)
        return scoring_memory(used, model.family, model.config, batch, settings, task, other)

    def classification(stage: Stage, class_word: int, extra_caches: int = 0) -> ScoringTask:
        rationale = stage.parts[0] == RATIONALE
        new_tokens = longest_text if rationale or model.answer == "generate" else 0
        scored = len(model.card.answers) if model.answer == "score" else 0
        # The common beginning of several questions about a clip is a copy of its own.
        extra_caches = max(extra_caches, int(stage.questions(model.card) > 1))
        return ScoringTask(scored, class_word, new_tokens, max(extra_caches, int(new_tokens > 0)))

    peaks = {}
    described = [found[name] for name in plan.stages if find_stage(name).needs_rationales]
    if described and data.rationale_ratio and plan.endpoint is None:
        # The prompts' KV cache is continued once for each sample.
        again = int(plan.store.samples > 1)
        peaks["Stage 0, writing"] = memory_of(
            described[0].tokens, ScoringTask(new_tokens=longest_text, extra_caches=again)
        )
        if data.rationale_selection == "verified":
            # Behind texts that are there: the prompts' KV cache is continued for each of them.
            verifying = classification(STAGES["rationale_class"], described[0].class_word, 1)
            verifying = replace(verifying, classes=len(model.card.words))
            peaks["Stage 0, verifying"] = memory_of(described[0].tokens, verifying)
    for name in plan.stages:
        own, stage = found[name], find_stage(name)
        if own.val:
            # The classes are scored from one copy of the prompt's KV cache and the loss from
            # another; the common beginning of two prompts about a clip is a third.
            extra = 1 if stage.classifier is stage else 2
            tasks = [classification(stage.classifier, own.class_word, extra)]
            if stage.parts != (CLASS,):
                tasks.append(ScoringTask(1, max(count.answer for count in own.val), 0, extra))
            peaks[f"validation, {stage.paper}"] = max(
                (memory_of(own.val, task, training=True) for task in tasks),
                key=lambda memory: memory.peak,
            )
    last = find_stage(plan.stages[-1] if plan.stages else "label").classifier
    if found["test"].tokens:
        peaks["scoring"] = memory_of(
            found["test"].tokens, classification(last, found["test"].class_word)
        )
    return peaks


def scoring_table(peaks: Mapping[str, ScoringMemory], clips: int) -> str:
    """The estimated memory of writing and scoring, one row for each title."""
    rows = []
    for title, memory in peaks.items():
        sizes = (memory.weights, memory.pixels, memory.kv_cache, memory.peak)
        where = max(memory.phases, key=memory.phases.__getitem__)
        rows.append([title, *(f"{size / GIB:.2f}" for size in sizes), where])
    batch = "the longest clip" if clips == 1 else f"the {clips} longest clips"
    headers = [f"{batch} (estimate, GiB)", "weights", "pixels", "keys, values", "peak", ""]
    return table(rows, headers, align="lrrrrl")


def suggest_checkpointing(
    share: float, peak: Callable[[float], int], gpu_gb: float | None
) -> list[str]:
    """Names the least gradient checkpointing that fits the GPU, if the settings have another.

    Args:
        share: Share of the blocks with gradient checkpointing in the settings.
        peak: Estimates the peak in bytes with a share.
        gpu_gb: Memory of the GPU in GiB; None takes the one present.

    Returns:
        One line, or none if the share is the least that fits, or none fits.
    """
    room = None if (gpu := _gpu(gpu_gb)) is None else gpu[0]
    shares = (step / CHECKPOINTING_STEPS for step in range(CHECKPOINTING_STEPS + 1))
    least = next((s for s in shares if room is not None and _required_bytes(peak(s)) <= room), None)
    if least is None or math.isclose(least, share):
        return []
    value = {0.0: "false", 1.0: "true"}.get(least, f"{least:g}")
    setting = f"model.gradient_checkpointing {value} ({peak(least) / GIB:.1f} GiB)"
    if least > share:
        return [f"It fits with {setting}, which recomputes more blocks."]
    return [f"There is room for {setting}, which recomputes fewer blocks and so is faster."]


def fit_message(peak: int, gpu_gb: float | None) -> str:
    """Says whether the peak fits the GPU, and which settings help if it does not."""
    found = _gpu(gpu_gb)
    if found is None:
        return "No GPU here: compare the peak with your card's memory, or give --gpu_gb."
    room, gpu = found
    needed = _required_bytes(peak)
    what = f"{peak / GIB:.1f} GiB, with a tenth to spare and 1 GiB for CUDA {needed / GIB:.1f} GiB"
    if needed <= room:
        return f"Fits {gpu}: {what}."
    cures = "more devices with trainer.strategy fsdp2, model.lora, model.gradient_checkpointing, a "
    cures += "smaller data.batch_size, data.eval_batch_size, data.max_pixels or data.max_frames"
    if peak + CUDA_CONTEXT_BYTES <= room:
        return f"Tight on {gpu}: {what}. What helps: {cures}."
    return f"Does NOT fit {gpu}: {what}. What helps: {cures}."


def _gpu(gpu_gb: float | None) -> tuple[float, str] | None:
    """Memory in bytes and name of the GPU to compare with; None if there is none."""
    if gpu_gb is not None:
        return gpu_gb * GIB, f"a GPU of {gpu_gb:g} GiB"
    if not torch.cuda.is_available():
        return None
    facts = torch.cuda.get_device_properties(0)
    return facts.total_memory, f"{facts.name} ({facts.total_memory / GIB:.1f} GiB)"


def _required_bytes(peak: int) -> float:
    """Memory that a GPU must have for an estimated peak, in bytes."""
    return peak * FRAGMENTATION + CUDA_CONTEXT_BYTES


def disk_table(plan: Plan, found: Mapping[str, SplitTokens], backbone: Any) -> str:
    """Disk space of the run and the caches when all is done."""
    data = plan.data
    grids = {
        clip.id: count.grid
        for own in found.values()
        for clip, count in zip(own.clips, own.tokens, strict=True)
    }
    patches = sum(math.prod(grid) for grid in grids.values())
    vision = plan.model.config.vision_config
    frames = patches * vision.patch_size**2 * TEMPORAL_PATCH * 3
    trained = sum(p.numel() * p.element_size() for p in backbone.parameters() if p.requires_grad)
    whole = sum(p.numel() * p.element_size() for p in backbone.parameters())
    weights = whole if plan.model.loader.lora is None else trained
    stages, runs, cache = len(plan.stages), plan.run.folder, data.cache_folder
    rows = [
        ["frame cache", frames, f"within data.frame_cache_gb {data.frame_cache.max_bytes / 1e9:g}"],
        ["weights", weights * stages, f"{stages} x {weights / 1e9:.3g} GB, one folder a stage"],
        ["checkpoints", 2 * 3 * trained, "while a stage trains, two for a moment"],
    ]
    if plan.keeps_best and stages:
        rows.append(["best weights", 2 * trained, "while a stage trains, two for a moment"])
    if data.feature_cache.max_bytes:
        states = plan.model.family.feature_states(plan.model.config)
        size = (
            patches * states * tower_width(plan.model.config) * _memory_settings(plan).compute_bytes
        )
        note = f"within data.feature_cache_gb {data.feature_cache.max_bytes / 1e9:g}"
        rows.insert(1, ["feature cache", size, note])
    lines = [[name, f"{size / 1e9:.3g}", note] for name, size, note in rows]
    free = {
        folder: shutil.disk_usage(_existing_parent(folder)).free / 1e9 for folder in (runs, cache)
    }
    text = table(lines, ["disk", "GB", ""], align="lrl")
    return f"{text}\nfree: {free[runs]:.0f} GB for the run, {free[cache]:.0f} GB for the caches"


def _rules(plan: Plan) -> list[str]:
    """What `data.rationale_rules` drop of what is written; nothing where none are set.

    Raises:
        ValueError: If they leave a class no rationale.
    """
    data = plan.data.with_feed(Feed(rationales=plan.store))
    if data.rationale_rules is None or not any(find_stage(s).needs_rationales for s in plan.stages):
        return []
    ids = [clip.id for clip in data.clips_to_describe()] if data.rationale_ratio else []
    if plan.store.missing(ids) or plan.store.undecided(ids):
        return ["data.rationale_rules: what they drop is said when all rationales are written.", ""]
    return [f"data.rationale_rules: {data.rationales('train').report}", ""]


def _known_rationales(plan: Plan) -> dict[str, str]:
    """Rationales that are written already or come with the benchmark."""
    data, own = plan.data, plan.store.texts()
    train = [clip.id for clip in data.clips("train")]
    human = {c.id: c.reference for c in data.clips("train") if c.reference is not None}
    every = dict.fromkeys(train, "") | own
    return own | mix(every, human, data.rationale_ratio, train, data.seed)


def _memory_settings(plan: Plan) -> MemorySettings:
    trainer, model = plan.trainer, plan.model
    sharded = is_sharded(trainer.strategy)
    return MemorySettings(
        compute_bytes=compute_bytes_of(str(trainer.precision)),
        checkpointing=float(model.loader.gradient_checkpointing),
        shards=trainer.world_size if sharded else 1,
        ddp=isinstance(trainer.strategy, DDPStrategy) and trainer.world_size > 1,
        four_bit=model.loader.quantize == "4bit",
    )


def _step_counter(plan: Plan, backbone: Any) -> StepCounter:
    return StepCounter(backbone, plan.model.family, plan.model.config)


def _without_cached_tower(plan: Plan, counts: Sequence[ClipTokens]) -> list[ClipTokens]:
    """The clips without patches if the tower's outputs are cached: then it does not run."""
    if not plan.data.feature_cache.max_bytes:
        return list(counts)
    return [replace(count, grid=(0, 0, 0)) for count in counts]


def _pad_to_longest(batch: Sequence[ClipTokens]) -> list[ClipTokens]:
    """The clips as long as the longest one; padding takes as much memory as text."""
    most = max(count.total for count in batch)
    return [replace(count, prompt=count.prompt + most - count.total) for count in batch]


def _longest_clip(own: SplitTokens) -> int:
    return max((count.total for count in own.tokens), default=0) * own.answers


def _existing_parent(folder: Path) -> Path:
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())
