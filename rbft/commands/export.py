"""`export`: a run's weights for others, or a split for other trainers."""

from pathlib import Path
from typing import Literal

from rbft.backbone.adapters import find_base, is_adapter, weights_fingerprint
from rbft.build import Experiment
from rbft.commands.export_adapters import export_adapters, find_adapters
from rbft.commands.export_conversations import export_conversations
from rbft.commands.export_weights import export_weights
from rbft.data.base import Feed
from rbft.decision import find_decision
from rbft.inputs import check_inputs, find_weights
from rbft.rationales.selection_report import told_note
from rbft.runtime.console import print_rank_zero
from rbft.stages import find_stage
from rbft.weights_folder import named_folders


def export(
    experiment: Experiment,
    output: Path,
    format: Literal["weights", "llava", "llamafactory", "swift"] = "weights",
    weights: str | None = None,
    adapters: list[str] | str | None = None,
    dtype: Literal["base", "float32", "bfloat16", "float16"] | None = None,
    split: Literal["train", "val", "test"] | None = None,
    answers: Literal["label", "rationale"] | None = None,
) -> None:
    """Write a run's weights as a from_pretrained folder, or a split for another trainer.

    Args:
        experiment: The settings.
        output: The folder or file to write; it must not exist.
        format: weights for a folder that transformers' from_pretrained and vLLM open, adapters
            merged, with a model card; llava (also Qwen's own trainer), llamafactory and swift
            for conversations that these trainers read: a .json, .json and .jsonl file.
        weights: For weights: run (null) takes the run's last finished stage (or model.stage);
            anything else is a weights folder, which needs no experiment.
        adapters: For weights, instead of one: several adapters of one base, unmerged, as folders
            or runs, name=FOLDER or FOLDER. Each goes into a folder of its own beside the base,
            with a README that says how peft loads and vLLM serves them. No experiment is needed.
        dtype: For weights: their precision; base takes the backbone's own. null is base too, but
            leaves adapters as they were trained.
        split: For conversations: which clips; null takes train.
        answers: For conversations: what they answer with, the class word (label, null) or the
            rationale.

    Raises:
        ValueError: If an option is given that the format does not use.
    """
    of_weights = {"weights": weights, "adapters": adapters, "dtype": dtype}
    of_conversations = {"split": split, "answers": answers}
    unused = of_conversations if format == "weights" else of_weights
    for name, value in unused.items():
        if value is not None:
            meant = (
                "conversations (--format llava, llamafactory or swift)"
                if unused is of_conversations
                else "--format weights"
            )
            raise ValueError(
                f"--{name} {value} is an option of {meant}; --format {format} does not use it. "
                "Leave it out."
            )
    if adapters is not None and not adapters:
        raise ValueError("--adapters names none. Give weights folders or runs: NAME=FOLDER.")
    if adapters and weights is not None:
        raise ValueError(
            f"--weights {weights} is exported by itself, merged, and --adapters beside each other, "
            "unmerged. Leave one of them out."
        )
    if adapters:
        listed = [adapters] if isinstance(adapters, str) else adapters
        _export_adapters(experiment, output, listed, dtype)
    elif format == "weights":
        _export_weights(experiment, output, weights or "run", dtype or "base")
    else:
        _export_split(experiment, format, answers or "label", split or "train", output)


def _export_weights(experiment: Experiment, output: Path, weights: str, dtype: str) -> None:
    _, _, folder = find_weights(experiment, weights)
    if folder is None:
        raise ValueError("--weights backbone has nothing to export: it is the backbone itself.")
    model = experiment.settings.model
    base = find_base(model.backbone, folder) if is_adapter(folder) else model.backbone
    decision = find_decision(folder, weights_fingerprint(folder, model.backbone))
    threshold = None if decision is None else decision.file
    trust = model.trust_remote_code
    export_weights(folder, base, output, dtype, trust=trust, threshold=threshold)
    print_rank_zero(f"Exported {folder} to {output}.")


def _export_adapters(
    experiment: Experiment, output: Path, adapters: list[str], dtype: str | None
) -> None:
    model = experiment.settings.model
    found = find_adapters(named_folders(adapters), model.backbone)
    export_adapters(found, output, dtype, trust=model.trust_remote_code)
    names = ", ".join(one.name for one in found)
    print_rank_zero(f"Exported {names} on {found[0].base} to {output}.")
    for one in found:
        if one.unserved:
            print_rank_zero(f"vLLM cannot serve {one.name} unmerged: {'; '.join(one.unserved)}.")


def _export_split(
    experiment: Experiment,
    form: Literal["llava", "llamafactory", "swift"],
    answers: Literal["label", "rationale"],
    split: str,
    output: Path,
) -> None:
    texts, note = None, ""
    if answers == "label":
        data = experiment.data()
    else:
        inputs = check_inputs(experiment, benchmark=False)
        data = inputs.data.with_feed(Feed(rationales=inputs.rationale_store()))
        learnt = data.rationales(split)
        texts = learnt.texts
        if split == "train" and (told := len(learnt.label_conditioned)):
            note = f" {told_note(told)}"
    count = export_conversations(data, find_stage(answers), texts, split, form, output)
    print_rank_zero(f"Wrote {count} {split} clips with {answers}s as answers to {output}.{note}")
