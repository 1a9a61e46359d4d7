"""A made-up benchmark of clips with random frames, for the tests of the core."""

import hashlib
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from rbft.backbone.loading import generation_settings, load_config, load_processor
from rbft.backbone_module import BackboneModule
from rbft.batch import Batch, Sequences
from rbft.card import Card
from rbft.clip import Clip
from rbft.collator import Collator
from rbft.data.base import Feed, VideoDataModule
from rbft.data.clip_files import ClipFiles
from rbft.data.clip_reader import ClipReader
from rbft.data.dataset import Example
from rbft.data.rationales import CUT, STOPPED, RationaleStore
from rbft.data.sampler import SampleSlot
from rbft.inference.generation import greedy_decode, prefill, score_candidates
from rbft.module import RBFTModule
from rbft.rationale_module import RationaleModule
from rbft.runtime.digests import LENGTH
from rbft.stages import STAGES, Stage
from rbft.video.sampling import Video, VideoError, patch_grid
from rbft.video.times import PairTimes, pair_times

CARD = Card(
    name="yard",
    persona="Guard",
    words={"quiet": "normal", "alarm": "abnormal"},
    prompts={
        "label": "Is it {words}? {text}",
        "rationale": "You are a {persona}. Describe it.",
        "less": "Describe the walls.",
    },
)
# (frames, height, width): frame pairs and merged patches differ, and so does which axis is longest.
SHAPES = ((4, 56, 84), (10, 84, 56), (2, 56, 56), (6, 56, 112), (8, 56, 56))
PAPER_STAGES = ("rationale", "label", "class_rationale", "rationale_class")
MODULE_SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "merger_learning_rate": 1e-3,
    "vision_learning_rate": 2e-4,
    "weight_decay": 0.1,
    "warmup_ratio": 0.0,
    "gradient_checkpointing": False,
    "max_new_tokens": 6,
}
DATA_SETTINGS: dict[str, Any] = {
    "fps": 1.0,
    "max_pixels": 112 * 112,
    "min_pixels": 28 * 28,
    "min_frames": 2,
    "max_frames": 16,
    "global_batch_size": 4,
    "rationale_ratio": 1.0,
    "num_workers": 0,
    "frame_cache_gb": 0.0,
}


def random_video(name: str, shape: Sequence[int], step: int = 10) -> Video:
    """Frames that depend on the name alone; `step` file frames at 10 a second lie between them."""
    frames, height, width = shape
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    pixels = torch.randint(256, (frames, 3, height, width), dtype=torch.uint8, generator=generator)
    return Video(pixels, [step * n for n in range(frames)], step * frames, 10.0)


def clips(count: int, split: str = "train") -> list[Clip]:
    """Clips of both classes in turn."""
    return [
        Clip(f"{split}_{n}", Path(f"{split}_{n}.mp4"), n % 2, split, text=f"Clip {n}.")
        for n in range(count)
    ]


def rationale(clip: Clip) -> str:
    """A rationale whose length differs from clip to clip."""
    number = int(clip.id.rpartition("_")[2])
    return f"A person {'walks on and on ' * (number % 3)}past the yard."


def examples(count: int, draws: Sequence[SampleSlot] | None = None) -> list[Example]:
    """The first clips with their frames, of different lengths; in a batch of their own."""
    every = clips(max([count, *(draw.index + 1 for draw in draws or ())]))
    made = []
    for draw in draws or [SampleSlot(n) for n in range(count)]:
        clip = every[draw.index]
        video = random_video(clip.id, SHAPES[draw.index % len(SHAPES)])
        made.append(Example(clip, video, rationale(clip), draw))
    return made


def collator(
    folder: Path,
    target_stage: str | None = None,
    prompt_stage: str | None = None,
    *,
    packing: bool = False,
) -> Collator:
    """A collator of the made-up task; stages by name."""

    def stage(name: str | None) -> Stage | None:
        return None if name is None else STAGES[name]

    config, family = load_config(str(folder))
    processor = load_processor(str(folder))
    return Collator(
        processor,
        config,
        family,
        CARD,
        stage(target_stage),
        stage(prompt_stage),
        packing=packing,
    )


def batch_of(make: Collator, made: list[Example]) -> Batch:
    """A batch that is the whole global batch: the total is its own weighted answer tokens."""
    if make.target_stage is None:
        return make(made)
    tokens = [e.draw.weight * make.loss_tokens(e.supervision) for e in made]
    return make([replace(e, draw=replace(e.draw, total=sum(tokens))) for e in made])


def answer_of(batch: Batch) -> Sequences:
    """The batch's answers, which it must have."""
    assert batch.answer is not None
    return batch.answer


def prompt_of(batch: Batch) -> Sequences:
    """The batch's prompts, which it must have."""
    assert batch.prompt is not None
    return batch.prompt


def module(folder: Path, stage: str = "label", **settings: Any) -> RBFTModule:
    """A module with its weights, as it is inside a Trainer, in evaluation mode."""
    made = RBFTModule(str(folder), CARD, stage=stage, **{**MODULE_SETTINGS, **settings})
    made.configure_model()
    return made.eval()


def rationale_module(folder: Path, *cards: Card, **settings: Any) -> RationaleModule:
    """Stage 0's module with its weights, in evaluation mode; it asks by the card's own prompt."""
    model = module(folder, "rationale", **settings)
    longest, packing = model.max_new_tokens, model.packing
    made = RationaleModule(model.loader, cards or [CARD], longest, packing=packing)
    made.backbone = model.backbone
    return made.eval()


def fed(data: VideoDataModule, module: BackboneModule) -> VideoDataModule:
    """A benchmark that serves a module, as `rbft.build` has it."""
    feed = replace(data.feed, collators=module.collators(), tower=lambda: module.tower)
    return data.with_feed(feed)


def is_padded(prompt: Sequences) -> bool:
    """Whether prompts stand in rows of their own, some of them behind padding."""
    return len(prompt.input_ids) > 1 and bool((prompt.attention_mask[:, 0] == 0).any())


def score_answers(
    backbone: Any, prompt: Sequences, video: dict[str, Any], answers: Sequence[Sequence[int]]
) -> Tensor:
    """Reads prompts and scores answers after them, see `score_candidates`."""
    (read,) = prefill(backbone, [prompt], video)
    return score_candidates(backbone, read, answers)


def write_answers(
    backbone: Any, prompt: Sequences, video: dict[str, Any], settings: dict[str, Any]
) -> list[list[int]]:
    """Reads prompts and writes answers to them, see `greedy_decode`."""
    (read,) = prefill(backbone, [prompt], video)
    return greedy_decode(backbone, read, settings)


def writing(folder: Path, longest: int, **settings: Any) -> dict[str, Any]:
    """How the backbone writes, with other settings where they are given."""
    return {**generation_settings(str(folder), load_processor(str(folder)), longest), **settings}


class Texts(RationaleStore):
    """Stands for the rationale file."""

    def __init__(
        self, texts: dict[str, str], cut: Collection[str] = (), lost: Collection[str] = ()
    ) -> None:
        self.made, self.cut_off, self.lost = texts, set(cut), set(lost)
        ends = {name: CUT if name in self.cut_off else STOPPED for name in texts}
        self.lines_by_id = {
            name: {"id": name, "rationale": text, "finish": ends[name], "tokens": len(text.split())}
            for name, text in texts.items()
        }

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        return self.lines_by_id

    def texts(self) -> dict[str, str]:
        return self.made

    def cut(self) -> set[str]:
        return self.cut_off

    def undecodable(self) -> set[str]:
        return self.lost

    def dropped(self) -> set[str]:
        return set()


class YardFiles(ClipFiles):
    """Stands for files that there are not."""

    @cached_property
    def usable(self) -> set[str]:
        return {clip.id for clip in self.clips}

    def grid(self, clip: Clip) -> tuple[int, int, int]:
        frames, height, width = SHAPES[int(clip.id.rpartition("_")[2]) % len(SHAPES)]
        return patch_grid(frames, (height, width), self.frames.side)

    def pair_times(self, clip: Clip) -> PairTimes:
        return pair_times(range(self.grid(clip)[0] * 2), 1.0, 1.0)

    def digest(self, clip: Clip) -> str:
        return hashlib.sha256(clip.id.encode()).hexdigest()[:LENGTH]


@dataclass(frozen=True)
class YardReader(ClipReader):
    """Makes the frames up."""

    def decode(self, clip: Clip) -> Video:
        number = int(clip.id.rpartition("_")[2])
        return random_video(clip.id, SHAPES[number % len(SHAPES)])


class Yard(VideoDataModule):
    """The made-up benchmark."""

    files_class: ClassVar[type[ClipFiles]] = YardFiles
    reader_class: ClassVar[type[ClipReader]] = YardReader

    def __init__(self, card_file: Path, counts: dict[str, int], **settings: Any) -> None:
        if not card_file.exists():
            CARD.save(card_file)
        cache = card_file.parent / "cache"
        super().__init__(card=card_file, cache_folder=cache, **{**DATA_SETTINGS, **settings})
        self.counts = counts
        every = [clip for split, count in counts.items() for clip in clips(count, split)]
        self.feed = Feed(rationales=Texts({clip.id: rationale(clip) for clip in every}))

    def read(self) -> list[Clip]:
        return [clip for split, count in self.counts.items() for clip in clips(count, split)]

    @cached_property
    def files(self) -> ClipFiles:
        return self.files_class(**vars(super().files))

    @cached_property
    def reader(self) -> ClipReader:
        return self.reader_class(**vars(super().reader))


@dataclass(frozen=True)
class DamagedReader(YardReader):
    """Cannot decode some clips."""

    damaged: Sequence[str] = ()

    def decode(self, clip: Clip) -> Video:
        if clip.id in self.damaged:
            raise VideoError.of(clip.path, "is damaged.")
        return super().decode(clip)


class Damaged(Yard):
    """A benchmark some of whose files cannot be decoded."""

    def __init__(self, *args: Any, damaged: Sequence[str], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.damaged = damaged

    @cached_property
    def reader(self) -> ClipReader:
        return DamagedReader(**vars(super().reader), damaged=self.damaged)


def trainer(folder: Path, **settings: Any) -> Trainer:
    """A Trainer on one CPU process that shows and writes nothing unless asked to."""
    return Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": folder,
            "use_distributed_sampler": False,
            "log_every_n_steps": 1,
            "gradient_clip_val": 1.0,
            **settings,
        }
    )
