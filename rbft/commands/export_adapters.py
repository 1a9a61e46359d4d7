"""Several adapters of one base as a folder for others: the base once, each adapter beside it."""

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file, save_file

from rbft.backbone.adapters import (
    CONFIG,
    WEIGHTS,
    find_base,
    is_adapter,
    read_config,
    weights_fingerprint,
)
from rbft.backbone.family import Family
from rbft.backbone.loading import fingerprint, load_config, model_files
from rbft.card import Card
from rbft.commands.export_weights import (
    DTYPES,
    base_licence,
    prompt_rule_text,
    prompt_text,
    short_name,
)
from rbft.decision import DECISION, find_decision
from rbft.runs.folder import CARD, PROMPT_RULE, PROVENANCE, read_json, read_provenance
from rbft.runs.inference import INFERENCE
from rbft.runtime.files import atomically, write_json, write_text
from rbft.runtime.lock import Lock
from rbft.stages import find_stage

BASE, README = "base", "README.md"  # beside the folders of the adapters
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
DOCUMENTS = ("README*", "LICENSE*", "NOTICE*")  # go with the base's weights
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's --max-lora-rank may be
TEMPLATE = "chat_template.jinja"
CONTEXT = 32768  # tokens of a request, as in docs/serving.md


@dataclass(frozen=True)
class Adapter:
    """An adapter to export.

    Attributes:
        name: Its folder, and what a server's users call it.
        folder: Its weights folder.
        base: Folder or hub id of the base that its note names, or that was found for it.
        threshold: The file of the threshold that was chosen for it, if there is one.
    """

    name: str
    folder: Path
    base: str
    threshold: Path | None

    @property
    def config(self) -> Any:
        """Its LoraConfig of peft."""
        return read_config(self.folder)

    @property
    def note(self) -> dict[str, Any]:
        """What rbft noted in its folder."""
        return read_provenance(self.folder) or {}

    @property
    def rank(self) -> int:
        """Its largest rank."""
        return max(self.config.r, *(self.config.rank_pattern or {}).values(), 0)

    @property
    def kind(self) -> str:
        """LoRA, rsLoRA or DoRA, with rank and alpha."""
        config = self.config
        names = {"rsLoRA": config.use_rslora, "DoRA": config.use_dora}
        kind = " and ".join(name for name, holds in names.items() if holds) or "LoRA"
        merger = ", and the merger" if config.modules_to_save else ""
        quantized = (self.note.get(INFERENCE) or {}).get("model.quantize")
        stored = f", on the base in {quantized.replace('bit', ' bits')}" if quantized else ""
        return f"{kind}, rank {config.r}, alpha {config.lora_alpha}{merger}{stored}"

    @property
    def unserved(self) -> list[str]:
        """Why vLLM cannot serve it beside others; empty where it can."""
        config = self.config
        reasons = {
            "it is decomposed (model.lora.use_dora), which vLLM does not compute": config.use_dora,
            "the merger was trained with it (model.merger_learning_rate above 0), and vLLM takes "
            "no weights beside the adapters'": config.modules_to_save,
        }
        return [reason for reason, holds in reasons.items() if holds]


def find_adapters(folders: Mapping[str, Path], backbone: str) -> list[Adapter]:
    """The adapters in weights folders, all of one base.

    Args:
        folders: Weights folder by name.
        backbone: Folder or hub id of a base, tried before the one that a folder notes.

    Raises:
        ValueError: If a folder holds whole weights or says nothing of its base, if a name is none,
            or if the bases differ.
    """
    found, known = [], {}
    for name, folder in folders.items():
        if not NAME.fullmatch(name) or name in (BASE, README):
            raise ValueError(
                f"--adapters has the name '{name}', which is to be a folder beside '{BASE}' and a "
                "model's name in requests. Take letters, digits, '.', '_' and '-': "
                f"NAME={folder}."
            )
        if not is_adapter(folder):
            raise ValueError(
                f"--adapters {name} ({folder}) is no adapter: it holds no {CONFIG}. Adapters are "
                "trained with model.lora; whole weights are exported by themselves, with --weights."
            )
        read_config(folder)  # refuses kinds that rbft does not take
        base = (read_provenance(folder) or {}).get("base")
        if base is None:
            raise ValueError(
                f"--adapters {name} ({folder}) does not say which weights it was trained on. "
                "Train it on with rbft, or serve it with the weights that you know it is of."
            )
        known[name] = base["fingerprint"], base["name"]
        first = next(iter(known))
        if known[name][0] != known[first][0]:
            raise ValueError(
                f"--adapters {first} is an adapter of {known[first][1]} ({known[first][0]}), but "
                f"{name} is one of {known[name][1]} ({known[name][0]}). Adapters in one folder "
                "share their base: export them apart."
            )
        source = find_base(backbone, folder)
        decision = find_decision(folder, weights_fingerprint(folder, source))
        found.append(Adapter(name, folder, source, None if decision is None else decision.file))
    return found


def export_adapters(
    adapters: Sequence[Adapter], output: Path, dtype: str | None = None, *, trust: bool = False
) -> None:
    """Writes the folder atomically.

    Args:
        adapters: What is exported, see `find_adapters`.
        output: The folder to write: README, one folder for each adapter, and the base, if it is a
            folder. A base of the hub is named.
        dtype: Precision of the adapters' weights: None leaves them as they were trained, `base` is
            that of the base, or a name in `DTYPES`.
        trust: Run code that comes with the base.

    Raises:
        ValueError: If the output exists or the disk is too full.
    """
    if output.exists():
        raise ValueError(f"--output {output} exists. Name a folder that does not, or remove it.")
    base = adapters[0].base
    config, family = load_config(base, trust)
    wanted = config.dtype if dtype == "base" else DTYPES.get(dtype or "")
    files = _base_files(base)
    every = [*files, *(file for one in adapters for file in model_files(one.folder))]
    needed = sum(file.stat().st_size for file in every)
    with Lock(output, "--output"):
        free = shutil.disk_usage(output.parent).free
        if free < 1.05 * needed:
            raise ValueError(
                f"--output {output} needs {needed / 1e9:.1f} GB, but the disk has "
                f"{free / 1e9:.1f} GB left. Make room, or name a folder elsewhere."
            )
        with atomically(output) as part:
            _copy(files, Path(base), part / BASE)
            for one in adapters:
                _write_adapter(one, part / one.name, wanted, family)
            write_text(part / README, readme(adapters))


def _base_files(base: str) -> list[Path]:
    """The files of a base's folder that are copied; none of a hub id."""
    folder = Path(base)
    if not folder.is_dir():
        return []
    found = {file for name in DOCUMENTS for file in folder.glob(name) if file.is_file()}
    return sorted({*model_files(folder), *found})


def _copy(files: Iterable[Path], source: Path, target: Path) -> None:
    for file in files:
        copied = target / file.relative_to(source)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copied)


def _write_adapter(one: Adapter, folder: Path, dtype: Any, family: Family) -> None:
    copied = Path(one.base).is_dir()
    # Not the list of training clips, which is nobody else's business.
    _copy([*model_files(one.folder), one.folder / CARD], one.folder, folder)
    if (template := folder / TEMPLATE).is_file():
        write_text(template, family.chat_template(template.read_text(encoding="utf-8")))
    if dtype is not None:
        state = load_file(one.folder / WEIGHTS)
        cast = {name: tensor.to(dtype) for name, tensor in state.items()}
        save_file(cast, folder / WEIGHTS, metadata={"format": "pt"})
    # A folder of the machine that trained says nothing elsewhere, and its name may be one of the
    # hub's.
    config = read_json(folder / CONFIG)
    write_json(folder / CONFIG, {**config, "base_model_name_or_path": None if copied else one.base})
    base = {**one.note["base"], "name": f"../{BASE}" if copied else one.base}
    write_json(folder / PROVENANCE, {**one.note, "base": base})
    if one.threshold is not None:
        chosen = read_json(one.threshold)
        own = {"weights": fingerprint(str(folder)), "chosen_for": chosen["weights"]}
        write_json(folder / DECISION, {**chosen, **own})


def readme(adapters: Sequence[Adapter]) -> str:
    """README.md of the folder: what the adapters are, and how they are loaded and served.

    Args:
        adapters: The adapters, of one base.
    """
    base, first = adapters[0].base, adapters[0]
    copied = Path(base).is_dir()
    licence, said = base_licence(base)
    head: dict[str, Any] = {"library_name": "peft", "pipeline_tag": "video-text-to-text"}
    head |= {"tags": ["rbft", "video-classification", "lora"]}
    if not copied:
        head["base_model"] = base
    if licence:
        head["license"] = licence
    model = short_name(first.note.get("backbone_name", base))
    rows = [
        f"| {one.name} | {', '.join(Card.load(one.folder / 'card.yaml').words)} | "
        f"{' -> '.join(one.note['stages'])} | {one.kind} |"
        for one in adapters
    ]
    revision = first.note["base"]["fingerprint"].rpartition("@")[2]
    where = "in `base`" if copied else f"`{base}` (revision `{revision}`)"
    others = [
        f'model.load_adapter("FOLDER/{one.name}", adapter_name="{one.name}")'
        for one in adapters[1:]
    ]
    opened = "FOLDER/base" if copied else base
    versions = ", ".join(f"{name} {version}" for name, version in first.note["versions"].items())
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# Adapters of {model}",
        f"{len(adapters)} adapters of one base, {where}, fine-tuned with rbft "
        "(rationale-bootstrapped fine-tuning) to classify videos. Each has a folder of its own, "
        "with its words (`card.yaml`) and what made it (`rbft.json`). FOLDER is this folder.",
        "\n".join(["| adapter | classes | stages | kind |", "|---|---|---|---|", *rows]),
        "## How to classify a clip",
        "With rbft, which takes the frames and puts the prompt as in training:",
        f"```\npython -m rbft predict --weights FOLDER/{first.name} --videos clip.mp4\n```",
        "## How to load them with peft",
        "\n".join(
            [
                "```python",
                "from peft import PeftModel",
                "from transformers import AutoModelForImageTextToText, AutoProcessor",
                "",
                f'base = AutoModelForImageTextToText.from_pretrained("{opened}", dtype="auto")',
                f'model = PeftModel.from_pretrained(base, "FOLDER/{first.name}", '
                f'adapter_name="{first.name}")',
                *others,
                f'model.set_adapter("{adapters[-1].name}")',
                f'processor = AutoProcessor.from_pretrained("FOLDER/{first.name}")',
                "```",
            ]
        ),
        "## How to serve them with vLLM",
        *_serving(adapters, opened),
        "## What they are asked",
        *(
            f"### {one.name}\n\n"
            + prompt_text(Card.load(one.folder / CARD), find_stage(one.note["stages"][-1]))
            for one in adapters
        ),
        f"Positions: {first.note['positions']}.",
        prompt_rule_text(first.note),
        "## What they were made with",
        f"Libraries: {versions}.",
        "## Licence of the base",
        said,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _serving(adapters: Sequence[Adapter], base: str) -> list[str]:
    """The commands that serve the adapters, those that see clips alike together, and what not."""
    together: dict[tuple[str, str], list[Adapter]] = {}
    for one in adapters:
        if not one.unserved:
            together.setdefault(_frames(one.note[INFERENCE]), []).append(one)
    parts = []
    for (media, pixels), group in together.items():
        rank = max(one.rank for one in group)
        modules = " ".join(f"{one.name}=FOLDER/{one.name}" for one in group)
        largest = next((known for known in RANKS if known >= rank), rank)
        own = f"--chat-template FOLDER/{group[0].name}/{TEMPLATE} "
        template = own if PROMPT_RULE in group[0].note else ""
        parts.append(
            f"```\nvllm serve {base} --enable-lora --max-loras {len(group)} "
            f"--max-lora-rank {largest} \\\n    --lora-modules {modules} \\\n"
            """    --limit-mm-per-prompt '{"video": 1, "image": 0}' \\\n"""
            f"    --media-io-kwargs '{media}' \\\n    --mm-processor-kwargs '{pixels}' \\\n"
            f"    {template}--max-model-len {CONTEXT} --generation-config vllm\n```"
        )
    if parts:
        served = [one.name for group in together.values() for one in group]
        names = " or ".join(f'"model": "{name}"' for name in served)
        parts.append(
            f"A request chooses by its model, {names}; the base itself is `{base}`. Put the video "
            "first and then the adapter's prompt, in one user turn."
        )
    if len(together) > 1:
        parts.append(
            "Adapters that were trained on other frames are served apart: frames are the server's."
        )
    for one in adapters:
        if one.unserved:
            parts.append(
                f"vLLM does not serve `{one.name}` beside the base: {'; '.join(one.unserved)}. "
                "Merged into whole weights it serves it: `python -m rbft export "
                f"--weights FOLDER/{one.name} --output {one.name}`."
            )
    return parts


def _frames(note: Mapping[str, Any]) -> tuple[str, str]:
    """Options of vLLM for the frames that an adapter was trained on, as JSON."""
    rule: dict[str, Any] = {"video_backend": "qwen3_vl"}  # the rule by which rbft takes frames
    if note["data.num_frames"] is None:
        rule["fps"] = note["data.fps"]
    else:
        rule["num_frames"] = note["data.num_frames"]
    pixels = {name: note[f"data.{name}"] for name in ("min_pixels", "max_pixels")}
    return json.dumps({"video": rule}), json.dumps(pixels)
