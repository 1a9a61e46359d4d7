"""What a run is made from, by content, and in what it differs from what it was started with."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rbft.card import Card
from rbft.clip import interval
from rbft.runs.folder import CARD, CLIPS, read_json
from rbft.runtime.differences import differences, flat
from rbft.runtime.files import write_json, write_text
from rbft.video.frame_settings import determining

SETTINGS, DIGESTS = "settings.yaml", "record.json"  # in a run's folder, beside CARD and CLIPS
SPLITS = ("train", "val", "test")
ANEW = (
    "Give the experiment another name, or add --restart true to throw away what the run has left "
    "so far."
)
NAMED = 3  # clips that a message names
# What is noted about a clip beside its id, and how a message calls it when it has changed.
FIELDS = {
    "label": "label",
    "video": "video",
    "start": "segment",
    "end": "segment",
    "reference": "reference",
    "text": "text",
    "votes": "share of votes",
}
# Settings that decide what a score is, by their place in the settings.
SCORING = {
    "frames": (
        "data.init_args.fps",
        "data.init_args.num_frames",
        "data.init_args.min_pixels",
        "data.init_args.max_pixels",
        "data.init_args.min_frames",
        "data.init_args.max_frames",
        "data.init_args.sampling",
        "data.init_args.damaged",
    ),
    "answer": ("model.answer",),
    "max_new_tokens": ("model.max_new_tokens",),
    "quantize": ("model.quantize",),
    "precision": ("trainer.precision",),
}

CONSISTENCY = "model.self_consistency."  # decides it too, where it is set

# Settings that a run may change when it is started again: they decide where and how fast it
# runs and what it shows, not what comes out.
FREE_SETTINGS = (
    "config",
    "name",
    "score_each_stage",
    "checkpoint_every",
    "cpu_threads",
    "ckpt_path",
    "restart",
    "dry_run",
    "gpu_gb",
    # Where things are: what is there is compared by content.
    "data.init_args.card",
    "data.init_args.annotations",
    "data.init_args.videos",
    "data.init_args.urls",
    "data.init_args.split_file",
    "data.init_args.trim",
    "data.init_args.root",
    "data.init_args.images",
    "data.init_args.image_fps",
    "data.init_args.table",
    "data.init_args.tables",
    "data.init_args.class_list",
    "data.init_args.rationale_file",
    "data.init_args.num_workers",
    "data.init_args.cache_folder",
    "data.init_args.frame_cache_gb",
    "data.init_args.feature_cache_gb",
    "data.init_args.reader",
    "data.init_args.batch_size",
    "data.init_args.eval_batch_size",
    "model.gradient_checkpointing",
    "model.attention",
    "model.packing",
    "model.compile",
    "model.liger",
    "model.cudnn_attention",
    "trainer.accelerator",
    "trainer.deterministic",
    "trainer.benchmark",
    "trainer.strategy",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.logger",
    "trainer.callbacks",
    "trainer.log_every_n_steps",
    "trainer.enable_progress_bar",
    "trainer.profiler",
    "trainer.default_root_dir",
    # A threshold is chosen after training, and noted with the weights that it is for.
    "decision",
    # Rationales are compared by their text, whoever wrote them.
    "endpoint",
)

# What settings were that runs of earlier versions do not note.
EARLIER = {
    "keep": "last",
    "keep_metric": "val/loss",
    "patience": None,
    "data.init_args.rationale_selection": "first",
    "data.init_args.masking": None,
    "data.init_args.rationale_control": None,
    "data.init_args.label_share": 0.5,
    "data.init_args.soft_labels": False,
    "data.init_args.vague_share": 0.5,
    "model.answer_weight": 1.0,
    "model.costs": None,
    "model.self_consistency": None,
    "model.lora.use_dora": False,
    "model.lora.use_rslora": False,
    "model.lora.target_modules": None,
    "model.lora.layers_to_transform": None,
    "rationales_from": "backbone",
}

ClipRecord = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """What a run is made from.

    Attributes:
        settings: All settings, as YAML.
        card: Its words.
        clips: The usable clips of each split, see `rbft.data.content.describe_clips`.
        backbone: Fingerprint of the backbone.
        weights: Fingerprint of the weights that the first stage starts from; None for the backbone.
    """

    settings: str
    card: Card
    clips: dict[str, list[ClipRecord]]
    backbone: str
    weights: str | None

    @property
    def digests(self) -> dict[str, Any]:
        """The parts by digest."""
        clips = {split: digest(clips) for split, clips in self.clips.items()}
        parts = {"backbone": self.backbone, "weights": self.weights, "card": self.card.digest}
        return {**parts, "clips": clips}

    def check(self, folder: Path) -> None:
        """Compares with what the run in a folder was started with, as far as it is noted there.

        Raises:
            ValueError: Naming what differs.
        """
        check_settings(folder / SETTINGS, yaml.safe_load(self.settings))
        check_card(folder / CARD, self.card)
        check_clips(folder / CLIPS, self.clips)
        if not (folder / DIGESTS).exists():
            return
        before, now = read_json(folder / DIGESTS), self.digests
        for name in ("backbone", "weights"):
            if before[name] != now[name]:
                raise ValueError(
                    f"The run {folder} was started from a model.{name} with the digest "
                    f"{before[name]}, which is {now[name]} now: the files were changed in place. "
                    f"Put them back. {ANEW}"
                )

    def keep(self, folder: Path, *, anew: bool) -> list[str]:
        """Writes what is not noted yet in a run's folder.

        Args:
            folder: The run's.
            anew: Nothing is finished with what is noted there: write all of it.

        Returns:
            The settings that differ from those that were noted.
        """
        changes, file = [], folder / SETTINGS
        if anew and file.exists():
            before = yaml.safe_load(file.read_text(encoding="utf-8"))
            changes = setting_differences(before, yaml.safe_load(self.settings))
        if anew or not (folder / CLIPS).exists():  # a kill may have come between two of them
            write_json(folder / CLIPS, self.clips)
        if anew or not (folder / CARD).exists():
            write_text(folder / CARD, self.card.text())
        if anew or not (folder / DIGESTS).exists():
            write_json(folder / DIGESTS, self.digests)
        if anew or not file.exists():
            write_text(file, self.settings)
        return changes


def scoring_of(folder: Path, split: str) -> dict[str, Any] | None:
    """What determines the scores that a run's `fit` leaves; None where no run was started.

    Args:
        folder: The run's.
        split: The scored split.
    """
    if not (folder / SETTINGS).exists() or not (folder / DIGESTS).exists():
        return None
    settings = yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8"))
    noted = read_json(folder / DIGESTS)
    own = {"card": noted["card"], "clips": noted["clips"][split]}
    return {**scoring_settings(flat(settings)), **own}


def digest(content: Any) -> str:
    """Short hash of whatever JSON can hold; the order of keys does not matter."""
    # Ids of files whose names are no UTF-8 hold surrogates, which JSON escapes.
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def clip_differences(
    before: Mapping[str, Sequence[ClipRecord]], now: Mapping[str, Sequence[ClipRecord]]
) -> list[str]:
    """In what the clips of two times differ, in words; empty where they are the same.

    Args:
        before: As from `rbft.data.content.describe_clips`.
        now: The same at another time.
    """
    changes = []
    for split in SPLITS:
        old = {clip["id"]: clip for clip in before.get(split, ())}
        new = {clip["id"]: clip for clip in now.get(split, ())}
        came, went = sorted(new.keys() - old.keys()), sorted(old.keys() - new.keys())
        for names, what in ((came, "came"), (went, "went")):
            if names:
                changes.append(f"{_count(names, split)} {what} ({_first(names)})")
        both = [name for name in old if name in new]
        if [name for name in new if name in old] != both:
            changes.append(f"the {split} clips are in another order")
        for what in dict.fromkeys(FIELDS.values()):
            keys = [key for key, word in FIELDS.items() if word == what]
            changed = [n for n in both if any(old[n].get(k) != new[n].get(k) for k in keys)]
            if changed:
                shown = ", ".join(
                    f"{name}: {_values(old[name], keys)} -> {_values(new[name], keys)}"
                    for name in changed[:NAMED]
                )
                verb = "has" if len(changed) == 1 else "have"
                changes.append(f"{_count(changed, split)} {verb} another {what} ({shown})")
    return changes


def check_settings(file: Path, settings: dict[str, Any]) -> None:
    """Refuses to go on with a run under other settings than it was started with.

    Args:
        file: The run's settings from when it was first started; need not exist.
        settings: The settings of now.

    Raises:
        ValueError: Naming every difference.
    """
    if not file.exists():
        return
    names = setting_differences(yaml.safe_load(file.read_text(encoding="utf-8")), settings)
    if names:
        raise ValueError(
            f"The run {file.parent} was started with other settings:\n{indented(names)}\n{ANEW}"
        )


def setting_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """In what settings differ that decide what comes out, by dotted name."""
    return [
        f"{name}: {old} -> {new}"
        for name, (old, new) in sorted(
            differences({**EARLIER, **flat(before)}, {**EARLIER, **flat(now)}).items()
        )
        if not any(name == free or name.startswith(f"{free}.") for free in FREE_SETTINGS)
    ]


def check_card(file: Path, card: Card) -> None:
    """Refuses to go on with a run with other words than it was started with.

    Args:
        file: The run's card from when it was first started; need not exist.
        card: The card of now.

    Raises:
        ValueError: Naming every difference.
    """
    if not file.exists():
        return
    changes = card_differences(Card.load(file).content, card.content)
    if changes:
        raise ValueError(
            f"The run {file.parent} was started with another card:\n{indented(changes)}\nPut the "
            f"card back as it was ({file}). {ANEW}"
        )


def check_clips(file: Path, clips: dict[str, list[ClipRecord]]) -> None:
    """Refuses to go on with a run on other clips than it was started with.

    Args:
        file: The run's clips from when it was first started; need not exist.
        clips: The usable clips of now by split, see `rbft.data.content.describe_clips`.

    Raises:
        ValueError: Naming some of the clips that came, went or changed.
    """
    if not file.exists():
        return
    before = read_json(file)
    if any(not isinstance(clip, dict) for split in before.values() for clip in split):
        raise ValueError(f"{file} was left by an earlier version, which noted ids only. {ANEW}")
    changes = clip_differences(before, clips)
    if changes:
        raise ValueError(
            f"The run {file.parent} was started with other clips: {'; '.join(changes)}. Put "
            f"files and annotations back as they were. {ANEW}"
        )


def card_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what two cards differ, by key; empty where they are the same.

    Args:
        before: A card's fields, or what `Card.shown` returns.
        now: The same of another card.
    """
    changes = [
        f"{name}: {json.dumps(old, ensure_ascii=False)} -> {json.dumps(new, ensure_ascii=False)}"
        for name, (old, new) in differences(before, now).items()
    ]
    order = [list(card["words"]) for card in (before, now)]
    if not changes and order[0] != order[1]:
        changes.append(f"order of words: {', '.join(order[0])} -> {', '.join(order[1])}")
    return changes


def scoring_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what a score is: frames, answer, precision.

    Args:
        settings: All settings of a command by dotted name.
    """
    found: dict[str, Any] = {}
    for name, keys in SCORING.items():
        values = {key.rsplit(".", 1)[-1]: settings.get(key) for key in keys}
        found[name] = next(iter(values.values()))
        if name == "frames":
            new = {key for key in ("sampling", "damaged") if values[key] is None}  # older settings
            found[name] = {key: v for key, v in determining(values).items() if key not in new}
    averaged = {k.rpartition(".")[2]: v for k, v in settings.items() if k.startswith(CONSISTENCY)}
    if averaged:
        found["self_consistency"] = averaged
    # What the Trainer takes where nothing is said.
    found["precision"] = str(found["precision"] or "32-true")
    return found


def comparable(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two results may stand in one table: all but the weights and the stage is equal."""
    apart = {"weights", "stage"}
    names = (one.keys() | other.keys()) - apart
    return all(one.get(name) == other.get(name) for name in names)


def indented(lines: Sequence[str]) -> str:
    """Differences as they stand in a message, one a line."""
    return "\n".join(f"  {line}" for line in lines)


def _count(names: Sequence[str], split: str) -> str:
    return f"{len(names)} {split} clip{'s' * (len(names) != 1)}"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED])


def _values(clip: ClipRecord, keys: Sequence[str]) -> str:
    return " to ".join(str(clip.get(key)) for key in keys)


def trained_on(
    train: Sequence[ClipRecord],
    scored: Sequence[ClipRecord],
    durations: Mapping[str, float | None],
) -> list[str]:
    """Ids of scored clips that show what a training clip shows.

    Args:
        train: Training clips, as from `rbft.data.content.describe_clips`.
        scored: Clips to score, likewise.
        durations: Seconds of each scored video by digest; None where a file does not say.
    """
    known: dict[str, list[ClipRecord]] = {}
    for clip in train:
        known.setdefault(clip["video"], []).append(clip)
    return [
        clip["id"]
        for clip in scored
        if any(_overlap(clip, other, durations) for other in known.get(clip["video"], ()))
    ]


def _overlap(one: ClipRecord, other: ClipRecord, durations: Mapping[str, float | None]) -> bool:
    """Whether two clips of one file share a moment."""
    duration = durations.get(one["video"])
    (start, end), (begin, until) = (
        interval(clip["start"], clip["end"], duration) for clip in (one, other)
    )
    return start < until and begin < end
