"""A run's weights as a folder for others: whole weights, processor, card and a model card."""

import json
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from rbft.backbone.adapters import is_adapter
from rbft.backbone.loading import fingerprint, load_config, load_processor
from rbft.card import Card
from rbft.clip import Clip
from rbft.decision import DECISION, THRESHOLDS, describe
from rbft.runs.folder import PROMPT_RULE, PROVENANCE, read_json, read_provenance
from rbft.runs.inference import INFERENCE
from rbft.runtime.files import atomically, write_json
from rbft.runtime.lock import Lock
from rbft.stages import CLASS, RATIONALE, Stage, find_stage

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Settings that the model card shows, where a run's file has them.
SHOWN = (
    "stages",
    "data.class_path",
    *(f"data.init_args.{name}" for name in ("fps", "max_pixels", "min_pixels", "min_frames")),
    *(f"data.init_args.{name}" for name in ("max_frames", "global_batch_size", "rationale_ratio")),
    "trainer.max_epochs",
    "trainer.precision",
    *(f"model.{name}" for name in ("learning_rate", "merger_learning_rate")),
    *(f"model.{name}" for name in ("vision_learning_rate", "weight_decay", "warmup_ratio")),
    *(f"model.{name}" for name in ("lora", "quantize", "answer")),
    "seed_everything",
)
ANSWERS = {
    (CLASS,): "one of the class words",
    (RATIONALE,): "a rationale, not a class",
    (CLASS, RATIONALE): "one of the class words, and below it a rationale",
    (RATIONALE, CLASS): "a rationale, and below it one of the class words",
}
# As the base's maker wrote them; other versions of transformers, and vLLM, read these as well.
BASE_FILES = ("config.json", "preprocessor_config.json", "video_preprocessor_config.json")


def export_weights(
    weights: Path,
    base: str,
    output: Path,
    dtype: str = "base",
    *,
    trust: bool = False,
    threshold: Path | None = None,
) -> None:
    """Writes the folder atomically.

    Args:
        weights: A weights folder of rbft: whole weights or an adapter.
        base: What they were trained from. An adapter is merged into it, in its full precision,
            however it was stored in training.
        output: The folder to write.
        dtype: Precision of the weights: that of the base, or a name in `DTYPES`.
        trust: Run code that comes with the base.
        threshold: The file of the threshold that was chosen for the weights, if there is one.

    Raises:
        ValueError: If the output exists or the disk is too full.
    """
    with Lock(output, "--output"):
        _publish(weights, base, output, dtype, trust, threshold)


def _publish(
    weights: Path, base: str, output: Path, dtype: str, trust: bool, threshold: Path | None
) -> None:
    if output.exists():
        raise ValueError(f"--output {output} exists. Name a folder that does not, or remove it.")
    config, family = load_config(base, trust)
    wanted: Any = DTYPES.get(dtype) or config.dtype or torch.float32
    model = merged_model(weights, base, wanted, trust)
    needed = sum(tensor.nbytes for tensor in model.state_dict().values())
    free = shutil.disk_usage(output.parent).free
    if free < 1.05 * needed:
        raise ValueError(
            f"--output {output} needs {needed / 1e9:.1f} GB, but the disk has {free / 1e9:.1f} GB "
            "left. Make room, name a folder elsewhere, or set --dtype bfloat16."
        )
    with atomically(output) as part:
        model.save_pretrained(part)
        processor: Any = load_processor(str(weights), trust)
        processor.chat_template = family.chat_template(processor.chat_template)
        processor.save_pretrained(part)
        for name in BASE_FILES:
            _take_over(base, name, part, wanted)
        shutil.copyfile(weights / "card.yaml", part / "card.yaml")
        write_json(part / PROVENANCE, _exported(read_provenance(weights) or {}))
        if threshold is not None:
            # Merged and rounded they are other weights, which the threshold is for from here on.
            chosen = read_json(threshold)
            own = {"weights": fingerprint(str(part)), "chosen_for": chosen["weights"]}
            write_json(part / DECISION, {**chosen, **own})
        text = model_card(weights, base, str(wanted).removeprefix("torch."), threshold)
        (part / "README.md").write_text(text, encoding="utf-8")


def _exported(note: Mapping[str, Any]) -> dict[str, Any]:
    """What is noted with whole weights: no base, and no storage in 4 bits, which was that of it."""
    made = {key: value for key, value in note.items() if key != "base"}
    if INFERENCE in made:
        made[INFERENCE] = {**made[INFERENCE], "model.quantize": None}
    return made


def merged_model(weights: Path, base: str, dtype: torch.dtype, trust: bool = False) -> Any:
    """The model with its adapter, if it is one, merged into the base's weights.

    Args:
        weights: A weights folder.
        base: What an adapter is merged into.
        dtype: Precision of the weights.
        trust: Run code that comes with them.
    """
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    how: Any = {"dtype": dtype, "trust_remote_code": trust}
    if not is_adapter(weights):
        return AutoModelForImageTextToText.from_pretrained(weights, **how)
    model = AutoModelForImageTextToText.from_pretrained(base, **how)
    with warnings.catch_warnings():
        # peft asks transformers in words that are deprecated there.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        # The adapter stays in 32 bits: only the merged weights are rounded.
        adapted: Any = PeftModel.from_pretrained(model, str(weights))
    return adapted.merge_and_unload().to(dtype)


def model_card(weights: Path, base: str, dtype: str, threshold: Path | None = None) -> str:
    """README.md of the folder: what the weights are, how they were made, what they are worth.

    Args:
        weights: The weights folder; its run's settings and results stand around it.
        base: The backbone.
        dtype: Precision of the exported weights.
        threshold: The file of the threshold that was chosen for the weights, if there is one.
    """
    card = Card.load(weights / "card.yaml")
    note = read_provenance(weights) or {}
    licence, said = base_licence(base)
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "video-text-to-text"}
    head |= {"tags": ["rbft", "video-classification"]}
    if not Path(base).is_dir():
        head["base_model"] = base
    if licence:
        head["license"] = licence
    model = short_name(note.get("backbone_name", base))
    words = ", ".join(f"{name} (`{word}`)" for name, word in card.words.items())
    if card.several is not None:
        words += ", of which a video may have several, or none"
    versions = ", ".join(f"{name} {version}" for name, version in note["versions"].items())
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {note.get('run') or card.name}",
        f"`{model}`, fine-tuned with rbft (rationale-bootstrapped fine-tuning, stages "
        f"{' -> '.join(note['stages'])}) to classify videos into {words}.",
        "## How to classify a clip",
        "With rbft, which takes the frames and puts the prompt as in training:",
        "```python\n"
        "from rbft import load\n\n"
        'model = load("FOLDER")\n'
        'print(model.predict("clip.mp4", rationale=True))\n'
        "```",
        "Or `python -m rbft predict --weights FOLDER --videos clip.mp4`, and "
        "`python -m rbft demo --weights FOLDER` for a web page.",
        "## How to load it with transformers",
        "```python\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
        'model = AutoModelForImageTextToText.from_pretrained("FOLDER", dtype="auto")\n'
        'processor = AutoProcessor.from_pretrained("FOLDER")\n'
        "```",
        prompt_text(card, find_stage(note["stages"][-1])),
        f"Positions: {note['positions']}. Serve it with an engine that follows this rule (vLLM "
        "does; transformers 5.3 to 5.23 do not for clips longer than a few seconds).",
        prompt_rule_text(note),
        _settings(weights),
        _results(weights),
        "" if threshold is None else _threshold(threshold),
        "## What it was made with",
        f"Weights in {dtype}. Libraries: {versions}. Revision of rbft: "
        f"{note.get('revision') or 'not known'}.",
        "## Licence of the base",
        said,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def prompt_text(card: Card, stage: Stage) -> str:
    """What weights were asked in training, word for word, and what they answer, as Markdown."""
    own_text = "[the clip's own text]"
    prompt = stage.prompt(card, Clip("", Path(), None, "", text=own_text))
    fence = max(re.findall("`{3,}", prompt), key=len, default="``") + "`"
    answer = ANSWERS[stage.parts]
    if stage.questions(card) > 1:
        yes, no = card.answers
        answer = (
            f"`{yes}` or `{no}`. Ask once for each class, with its word in the place of "
            f"`{next(iter(card.words.values()))}`"
        )
    parts = [
        f"Put the video first and then this prompt, in one user turn; the answer is {answer} "
        "(`card.yaml` holds all words):",
        f"{fence}text\n{prompt}\n{fence}",
    ]
    if own_text in prompt:
        parts.append(
            f"For `{own_text}` stood what the benchmark knows of each clip, such as its title or "
            "transcript; for a clip without any, nothing, and no blanks at the prompt's end."
        )
    return "\n\n".join(parts)


def prompt_rule_text(note: Mapping[str, Any]) -> str:
    """How a clip stands in the prompt, where software does it in several ways; else empty."""
    if PROMPT_RULE not in note:
        return ""
    return (
        f"Clips in the prompt: {note[PROMPT_RULE]}, as the backbone was trained. The chat template "
        "here has transformers and vLLM build such prompts; with the backbone's own, transformers "
        "5.10 to 5.23 put a pair of vision_start and vision_end around all of a clip."
    )


def base_licence(base: str) -> tuple[str | None, str]:
    """The licence of the base by its own README, and a sentence about it."""
    readme = _file(base, "README.md")
    text = readme.read_text(encoding="utf-8", errors="replace") if readme else ""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    try:
        facts = (yaml.safe_load(head[1]) if head else None) or {}
    except yaml.YAMLError:
        facts = {}
    licence = facts.get("license") if isinstance(facts, dict) else None
    if not isinstance(licence, str):
        return None, "See the base model: its folder names none."
    name = facts.get("license_name") or licence
    link = f" ({facts['license_link']})" if facts.get("license_link") else ""
    return licence, f"{name}{link}, which these weights are under as well."


def _settings(weights: Path) -> str:
    for folder in weights.resolve().parents[:2]:  # a stage trained alone, or the whole run
        if (file := folder / "settings.yaml").is_file():
            settings = yaml.safe_load(file.read_text(encoding="utf-8"))
            break
    else:
        return ""
    rows = []
    for name in SHOWN:
        value: Any = settings
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            rows.append(f"| {name} | {json.dumps(value)} |")
    return "\n".join(["## Settings\n", "| setting | value |", "|---|---|", *rows])


def _results(weights: Path) -> str:
    file = weights.parent / "test.json"
    if not file.is_file():
        return "## Results\n\nNo results of a test split stand beside these weights."
    found = json.loads(file.read_text(encoding="utf-8"))
    rows = [
        f"| {name} | {_figure(value)} | {_interval(found.get('intervals', {}).get(name))} |"
        for name, value in found["metrics"].items()
    ]
    clips = ", ".join(f"{count} {name}" for name, count in found["classes"].items())
    about = f"On {found['n_scored']} of {found['n_expected']} test clips ({clips}):"
    return "\n".join(
        [f"## Results\n\n{about}\n", "| metric | value | 95 % interval |", "|---|---|---|", *rows]
    )


def _threshold(file: Path) -> str:
    found = read_json(file)
    if THRESHOLDS in found:
        return _thresholds(found)
    test, name = found["test"], found["wanted"]["positive"]
    before, after = test["likeliest"], test["threshold"]
    others = after["n"] - after["positives"]
    return (
        f"## Threshold\n\nCall a clip {describe(found)}, and else the likeliest of the other "
        "classes. The probability is that of the class word, normalised over the class words. The "
        f"threshold was chosen on {found['decided']['n']} validation clips; on the test split it "
        f"misses {after['misses']} of {after['positives']} clips of '{name}' (the likeliest class: "
        f"{before['misses']}) and raises {after['false_alarms']} false alarms on {others} others "
        f"(the likeliest class: {before['false_alarms']}). `{DECISION}` has all figures."
    )


def _thresholds(found: Mapping[str, Any]) -> str:
    half, chosen = found["test"]["half"], found["test"][THRESHOLDS]
    rows = [f"| {name} | {value:.4g} |" for name, value in found[THRESHOLDS].items()]
    table = "\n".join(["| class | least probability |", "|---|---|", *rows])
    return (
        f"## Thresholds\n\nA clip has a class from these probabilities on:\n\n{table}\n\nThe "
        "probability is that of yes, normalised over yes and no. The thresholds are those with the "
        f"greatest F1 on {found['n']} validation clips; on the test split the macro F1 is "
        f"{_figure(chosen['f1/macro'])} with them and {_figure(half['f1/macro'])} with one half. "
        f"`{DECISION}` has all figures."
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"  # no F1 of a class without clips


def _interval(ends: Mapping[str, float | None] | None) -> str:
    if ends is None or ends["low"] is None:
        return ""
    return f"{_figure(ends['low'])} to {_figure(ends['high'])}"


def _take_over(base: str, name: str, folder: Path, dtype: torch.dtype) -> None:
    """The base's own file, if it has one, with the precision of the weights."""
    source = _file(base, name)
    if source is None:
        return
    content = json.loads(source.read_text(encoding="utf-8"))
    for key in ("dtype", "torch_dtype"):
        if key in content:
            content[key] = str(dtype).removeprefix("torch.")
    write_json(folder / name, content)


def _file(source: str, name: str) -> Path | None:
    """A file of a folder or hub id; None if it has none or cannot be reached."""
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return None
    return None if found is None else Path(found)


def short_name(source: str) -> str:
    """The last part of a folder's name; a hub id as it is."""
    return Path(source).name if Path(source).is_dir() else source
