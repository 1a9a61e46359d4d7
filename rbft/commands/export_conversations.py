"""A split with labels or rationales as answers, in the files that other trainers read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rbft.annotations.conversations import write_conversation
from rbft.clip import IMAGE_SUFFIXES
from rbft.data.base import VideoDataModule
from rbft.runtime.files import write_json, write_text
from rbft.runtime.lock import Lock
from rbft.stages import Stage

SUFFIXES = {"llava": ".json", "llamafactory": ".json", "swift": ".jsonl"}
DATASET_INFO = "dataset_info.json"  # where LLaMA-Factory looks up its data sets


def export_conversations(
    data: VideoDataModule,
    stage: Stage,
    texts: Mapping[str, str] | None,
    split: str,
    form: Literal["llava", "llamafactory", "swift"],
    output: Path,
) -> int:
    """Writes a split as conversations: the stage's prompt, and what should be answered.

    Args:
        data: The benchmark.
        stage: What is asked and answered: that of labels or that of rationales.
        texts: Rationale by id, None for labels. Clips without one are left out.
        split: Which clips.
        form: Whose format. For LLaMA-Factory, the data set is entered in `dataset_info.json`
            beside the output.
        output: The file to write; it must not exist.

    Returns:
        The number of clips written.

    Raises:
        ValueError: If the output exists or has another suffix than the format's, the split is
            empty, or a clip cannot be expressed in the format.
    """
    data.card.refuse_several("A file of conversations")
    if output.suffix != SUFFIXES[form]:
        raise ValueError(f"--output {output} must end in {SUFFIXES[form]}, which {form} reads.")
    with Lock(output, "--output"):
        return _export(data, stage, texts, split, form, output)


def _export(
    data: VideoDataModule,
    stage: Stage,
    texts: Mapping[str, str] | None,
    split: str,
    form: Literal["llava", "llamafactory", "swift"],
    output: Path,
) -> int:
    if output.exists():
        raise ValueError(f"--output {output} exists. Name a file that does not, or remove it.")
    clips = [clip for clip in data.clips(split) if texts is None or clip.id in texts]
    if not clips:
        raise ValueError(
            f"{type(data).__name__} has no {split} clips to export. Choose another --split."
        )
    records = []
    for clip in clips:
        if clip.start is not None or clip.end is not None:
            raise ValueError(
                f"Clip {clip.id} is a part of its file ({clip.start} to {clip.end} s), which "
                f"{form} cannot express. Cut the file, or use the whole one."
            )
        if clip.images is not None or clip.path.suffix.lower() in IMAGE_SUFFIXES:
            raise ValueError(
                f"Clip {clip.id} ({clip.path}) is of images, and {form} is given a video file for "
                "each clip. Make a video of them, or leave the clip out."
            )
        prompt = stage.prompt(data.card, clip)
        answer = stage.target(data.card, clip, None if texts is None else texts[clip.id])
        records.append(
            write_conversation(
                clip.id,
                # Absolute: what other trainers take relative paths from differs.
                str(clip.path.absolute()),
                prompt,
                answer,
                turns="conversations" if form == "llava" else "messages",
                split=split,
                label=None
                if texts is None or clip.label is None
                else data.card.classes[clip.label],
            )
        )
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    text = (
        "[\n" + ",\n".join(lines) + "\n]\n" if output.suffix == ".json" else "\n".join(lines) + "\n"
    )
    if form != "llamafactory":
        write_text(output, text)
        return len(records)
    table = output.with_name(DATASET_INFO)
    with Lock(table, "Data set table"):  # which other outputs of the folder are entered in, too
        info = _dataset_info(output)
        write_text(output, text)
        write_json(table, info)
    return len(records)


def _dataset_info(output: Path) -> dict[str, Any]:
    """The content of `dataset_info.json` with this data set in it."""
    file = output.with_name(DATASET_INFO)
    info = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if output.stem in info:
        raise ValueError(
            f"{file} has a data set '{output.stem}' already. Give --output another name."
        )
    info[output.stem] = {
        "file_name": output.name,
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "videos": "videos"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
        },
    }
    return info
