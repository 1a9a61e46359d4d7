"""What all benchmarks share: from a list of clips to batches, for every split and process."""

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Sampler

from rbft.annotations.video_list import find_videos
from rbft.card import Card
from rbft.clip import Clip, Images
from rbft.data.clip_files import ClipFiles
from rbft.data.clip_reader import ClipMasks, ClipReader
from rbft.data.dataset import ClipDataset, Example, Supervision, replacements
from rbft.data.learnt_rationales import LearntRationales, learnt_rationales
from rbft.data.manifest import check_same_on_all_processes
from rbft.data.rationales import RationaleStore, mix
from rbft.data.sampler import EvalSampler, SampleSlot, TrainSampler
from rbft.data.splits import check_classes, empty_classes, hold_out
from rbft.masking.settings import Masking, Masks
from rbft.rationales.controls import Control
from rbft.rationales.quality import QualityRules
from rbft.rationales.selection import HINT, check_fallback
from rbft.runtime.digests import default_cache
from rbft.runtime.ranges import check_ranges
from rbft.video.feature_cache import FeatureCache
from rbft.video.frame_cache import FrameCache
from rbft.video.frame_settings import FrameSettings


@runtime_checkable
class ClipCollator(Protocol):
    """What turns examples into a batch; the module hands one over for each split."""

    @property
    def needs_rationales(self) -> bool:
        """Whether examples must carry a rationale."""
        ...

    @property
    def learns_class(self) -> bool:
        """Whether the class is all that is learnt (Stage II)."""
        ...

    @property
    def reads_rationales(self) -> Sequence[bool]:
        """For each turn of the stage whether it needs rationales."""
        ...

    def loss_tokens(self, taught: Supervision) -> int | float:
        """What the clip counts in the loss, without decoding the video."""
        ...

    def __call__(self, examples: list[Example]) -> Any:
        """One batch."""
        ...


@dataclass(frozen=True)
class Feed:
    """What the loaders of a data module serve, and who makes batches of it.

    Attributes:
        collators: By the name of the loader: train, val, test, predict.
        rationales: The rationale file; None where no stage needs it.
        soft_labels: Probability of each class by the id of the training clip; None where no stage
            learns them.
        scored_split: The split that `Trainer.test` scores.
        predict_clips: The clips that `Trainer.predict` is given.
        tower: Gives the digest of the loaded vision tower, empty where its outputs are not kept;
            called as a loader is made.
    """

    collators: Mapping[str, ClipCollator] = field(default_factory=dict)
    rationales: RationaleStore | None = None
    soft_labels: Mapping[str, Sequence[float]] | None = None
    scored_split: str = "test"
    predict_clips: Sequence[Clip] = ()
    tower: Callable[[], str] = str


class VideoDataModule(LightningDataModule):
    """Base of all benchmarks: splits, frames, batches and rationales.

    A subclass states facts: its card, and in `read` how its annotations become clips.

    Args:
        card: Card file with classes, class words and prompts. None takes the benchmark's own.
        fps: Frames per second of video time.
        max_pixels: Pixel budget per frame (height x width); the aspect ratio is kept.
        min_pixels: Frames smaller than this are enlarged.
        min_frames: Fewest frames per clip, as far as the file has them.
        max_frames: Most frames per clip; longer clips are sampled more thinly.
        num_frames: A fixed number of frames per clip instead of `fps`.
        sampling: How the frames of a clip are chosen: evenly by their number (frame, as
            qwen-vl-utils does) or by the time at which they are shown (time), which differs where
            the frame rate varies.
        damaged: What a video does that was cut off (the scan calls it truncated) or whose frames
            are decoded with errors: error makes its clips unusable, use takes what is there.
        reader: Who decodes: pyav, decord or torchcodec; null for pyav. The last two are used
            only for files of which they give the right frames, and do not notice all damage.
        batch_size: Clips per forward and device in training; gradient accumulation fills up
            the global batch.
        global_batch_size: Clips per optimiser step over all devices.
        eval_batch_size: Clips per forward and device when scoring and writing.
        num_workers: Processes per device that decode ahead of the model.
        val_fraction: Share of the training clips carved off as validation split, by hash of the
            id and stratified by class. 0 trains on all of them.
        rationale_prompt: The card's prompt that asks for rationales: rationale (P_original),
            less (P_less), least (P_least) or any other on the card.
        rationale_ratio: Share of training clips whose rationale is self-generated; the others
            take the human reference.
        rationale_selection: Which of the rationales of a clip training learns, where
            model.rationale_sampling.samples has several written: first takes that with the
            smallest number, consistent the one most like the others, verified the first behind
            which the backbone names the clip's class (rejection sampling; also of one rationale).
        rationale_fallback: What verified does with training clips of which no rationale leads to
            their class: drop has another clip of the class take their place in Stage I, first
            takes their first rationale all the same, hint has the backbone write again, told the
            class. Such rationales are label-conditioned, unlike any of the paper's; they must
            lead to the class without the hint, or the clip is dropped. null is drop.
        rationale_hint: What hint adds to the prompt; {word} stands for the clip's class word. null
            takes "Hint: the right answer is {word}. Explain what in it shows that."
        on_missing: What clips without a usable video file do: error stops, skip goes on without
            them, warn does so too and says how many there are.
        min_coverage: Share of each split's clips that must be usable in any case.
        on_leak: What a video of the training or validation split that is a test clip as well does,
            under whatever name: error stops, warn goes on and says how many there are.
        cache_folder: Folder of scan results and decoded frames. null takes $RBFT_CACHE, or
            ~/.cache/rbft.
        frame_cache_gb: Size that the decoded frames are kept within, in GB; each clip is decoded
            once and then read. 0 decodes every time.
        feature_cache_gb: Size that the outputs of a frozen vision tower are kept within, in GB;
            the tower then sees each clip once, for all epochs, stages and tests. 0 runs it every
            time. Needs model.vision_learning_rate 0.
        rationale_file: JSONL file of rationales. null names it after what determines it, under
            lightning_logs/rationales.
        rationale_rules: Rules that a training clip's rationale must keep; in training, the next
            clip of its class that keeps them takes the place of one that does not. null, as in the
            paper, trains on all as they were written.
        rationale_control: Has worthless rationales learnt, to see what a gain comes from: shuffled
            gives each clip the text of another, half cuts each text in the middle, blank puts a
            full stop in the place of each word. null learns them as they are.
        label_share: Share of the optimiser steps of the stage alternating that learn labels; the
            others learn rationales.
        soft_labels: Weigh the likelihood of each class's answer by its share of the annotators'
            votes about the training clip, where the annotations have votes; clips are scored by
            their label all the same. false learns the label alone.
        class_weights: Weigh each clip's label loss by the inverse frequency of its class.
        balanced_sampling: Draw every class equally often in training.
        images: What image files are that lie among the videos in folders, or are found by id: clips
            makes each a clip of one still image, frames each folder of nothing but images one
            clip, by data.image_fps. null leaves them alone. Images and folders that are named
            by their path are clips in any case.
        image_fps: Images per second of clips that are folders or lists of images and do not say
            themselves when they are shown.
        masking: What test and validate mask in the clips they score (Table 5): the objects of a box
            file, or as much of anything else. null masks nothing.
        seed: Seed of the training order, of the validation split and of mixing rationales.
    """

    card_file: ClassVar[Path | None] = None

    def __init__(
        self,
        *,
        fps: float,
        max_pixels: int,
        min_pixels: int,
        min_frames: int,
        max_frames: int,
        global_batch_size: int,
        rationale_ratio: float,
        card: Path | None = None,
        num_frames: int | None = None,
        sampling: Literal["frame", "time"] = "frame",
        damaged: Literal["error", "use"] = "error",
        reader: Literal["pyav", "decord", "torchcodec"] | None = None,
        batch_size: int = 1,
        eval_batch_size: int = 4,
        num_workers: int = 2,
        val_fraction: float = 0.0,
        rationale_prompt: str = "rationale",
        rationale_selection: Literal["first", "consistent", "verified"] = "first",
        rationale_fallback: Literal["drop", "first", "hint"] | None = None,
        rationale_hint: str | None = None,
        on_missing: Literal["error", "skip", "warn"] = "error",
        min_coverage: float = 0.9,
        on_leak: Literal["error", "warn"] = "error",
        cache_folder: Path | None = None,
        frame_cache_gb: float = 20.0,
        feature_cache_gb: float = 0.0,
        rationale_file: Path | None = None,
        rationale_rules: QualityRules | None = None,
        rationale_control: Literal["shuffled", "half", "blank"] | None = None,
        label_share: float = 0.5,
        soft_labels: bool = False,
        class_weights: bool = False,
        balanced_sampling: bool = False,
        images: Literal["clips", "frames"] | None = None,
        image_fps: float | None = None,
        masking: Masking | None = None,
        seed: int = 0,
    ) -> None:
        check_ranges("data.", locals())
        super().__init__()
        if min_pixels > max_pixels:
            raise ValueError(
                f"data.min_pixels ({min_pixels}) must not exceed data.max_pixels ({max_pixels})."
            )
        check_fallback(rationale_selection, rationale_fallback, rationale_hint)
        card_path = card or self.card_file
        if card_path is None:
            raise ValueError(
                f"{type(self).__name__} has no card of its own. Set data.card to a card file with "
                "your classes and prompts."
            )
        self.card = Card.load(Path(card_path)).using(rationale_prompt)
        self.frames = FrameSettings(
            fps=fps,
            num_frames=num_frames,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            min_frames=min_frames,
            max_frames=max_frames,
            reader=reader,
            sampling=sampling,
            damaged=damaged,
        )
        self.on_missing: Literal["error", "skip", "warn"] = on_missing
        self.min_coverage = min_coverage
        self.on_leak: Literal["error", "warn"] = on_leak
        self.cache_folder = cache_folder or default_cache()
        self.frame_cache = FrameCache(self.cache_folder / "frames", int(frame_cache_gb * 1e9))
        features = self.cache_folder / "features"
        self.feature_cache = FeatureCache(features, int(feature_cache_gb * 1e9))
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.global_batch_size, self.num_workers = global_batch_size, num_workers
        self.val_fraction, self.rationale_ratio = val_fraction, rationale_ratio
        self.rationale_file, self.rationale_prompt = rationale_file, rationale_prompt
        self.rationale_selection: Literal["first", "consistent", "verified"] = rationale_selection
        self.rationale_fallback: Literal["drop", "first", "hint"] = rationale_fallback or "drop"
        self.rationale_hint = HINT if rationale_hint is None else rationale_hint
        self.rationale_rules = rationale_rules
        self.rationale_control: Control | None = rationale_control
        self.label_share, self.soft_labels = label_share, soft_labels
        self.class_weights, self.balanced_sampling = class_weights, balanced_sampling
        self.images: Literal["clips", "frames"] | None = images
        self.image_fps, self.masking = image_fps, masking
        self.seed = seed
        self.feed = Feed()
        self.current_batch: Any = None  # the batch that the model works on
        self.notes: list[str] = []  # what a person should know about the data, see `check`

    def resize_to_tokens(self, side: int) -> None:
        """Has frames resized for a backbone whose tokens have so many pixels per side.

        Args:
            side: See `rbft.video.frame_settings.FrameSettings`.
        """
        self.frames = replace(self.frames, side=side)

    def with_feed(self, feed: Feed) -> "VideoDataModule":
        """The same benchmark, whose loaders serve a feed; what was read is not read again."""
        made = copy(self)
        made.trainer, made.feed, made.current_batch = None, feed, None
        return made

    @abstractmethod
    def read(self) -> list[Clip]:
        """All clips of the benchmark, every split, in a fixed order."""

    @cached_property
    def all_clips(self) -> list[Clip]:
        """All annotated clips, the validation split carved off, whatever files there are."""
        clips = self.read()
        for clip in clips:
            for what, text in (("text", clip.text), ("reference", clip.reference or "")):
                if halves := [char for char in text if "\ud800" <= char <= "\udfff"]:
                    raise ValueError(
                        f"{type(self).__name__}: the {what} of clip {clip.id} holds "
                        f"{halves[0]!a}, half a character, which no model can read. Correct "
                        "it in the annotations."
                    )
            if (known := clip.labels is not None) != (self.card.several is not None) and (
                known or clip.label is not None
            ):
                has, lets = ("several classes", "one") if known else ("one class", "several")
                raise ValueError(
                    f"{type(self).__name__} gives clip {clip.id} {has}, but card "
                    f"'{self.card.name}' lets a clip have {lets}. "
                    f"{'Add the key several to' if known else 'Take the key several off'} the card."
                )
        if self.val_fraction:
            clips = hold_out(clips, self.val_fraction, self.seed)
        return clips

    @cached_property
    def files(self) -> ClipFiles:
        """The clips' video files, as the scan found them; reads the annotations."""
        return ClipFiles(
            type(self).__name__,
            self.all_clips,
            self.frames,
            cache_folder=self.cache_folder,
            scan_name=self.benchmark,
            on_missing=self.on_missing,
            min_coverage=self.min_coverage,
            notes=self.notes,
        )

    @cached_property
    def reader(self) -> ClipReader:
        """Reads clips through the caches."""
        masks = None if self.masking is None else ClipMasks(Masks(self.masking), self.files)
        return ClipReader(self.frames, self.frame_cache, self.feature_cache, masks)

    def clips(self, split: str) -> list[Clip]:
        """The usable clips of one split ("train", "val" or "test")."""
        return [
            clip for clip in self.all_clips if clip.split == split and clip.id in self.files.usable
        ]

    @property
    def benchmark(self) -> str:
        """Name of the benchmark in file names; another draw of clips has another name."""
        return self.card.name

    def check(self, stages: Sequence[str]) -> None:
        """Reads annotations and looks at files and classes; opens no model.

        Leaves in `notes` what was repaired, dropped or is missing.

        Args:
            stages: Names of the stages that will be trained.

        Raises:
            ValueError: If there is nothing to train or score, a class has no training clip, a
                needed file is missing, or a video is in training and test (see `on_leak`).
        """
        benchmark = type(self).__name__
        for split in ("train", "test") if stages else ("test",):
            if not any(clip.split == split for clip in self.all_clips):
                raise ValueError(f"{benchmark} has no {split} clips. Check its annotations.")
        self.note_unused_files(clip.path for clip in self.all_clips)
        usable = [clip for clip in self.all_clips if clip.id in self.files.usable]
        self.notes += empty_classes(usable, self.card.classes, benchmark)
        if stages:
            check_classes(usable, self.card.classes, benchmark)
            self._check_leaks()
            self._check_votes()
        if self.rationale_ratio < 1 and stages:
            every = dict.fromkeys([clip.id for clip in self.clips("train")], "")
            human = {c.id: c.reference for c in self.clips("train") if c.reference is not None}
            mix(every, human, self.rationale_ratio, list(every), self.seed)

    def note_unused_files(self, paths: Iterable[Path]) -> None:
        """Leaves in `notes` what lies beside the clips and is not used.

        Called only where notes are shown: to look takes time where folders are large.

        Args:
            paths: The files of all clips.
        """

    def _check_votes(self) -> None:
        """Refuses to weigh by votes that there are not, or says how many clips have any.

        Raises:
            ValueError: If no training clip has votes.
        """
        if not self.soft_labels:
            return
        clips, benchmark = self.clips("train"), type(self).__name__
        voted = [clip for clip in clips if clip.votes is not None]
        if not voted:
            raise ValueError(
                f"data.soft_labels is true, but no training clip of {benchmark} has votes. "
                "Say where they stand (VideoFolder: data.columns.votes, or data.repeats votes), or "
                "leave data.soft_labels out."
            )
        divided = sum(max(clip.soft_label(len(self.card.classes))) < 1 for clip in voted)
        self.notes.append(
            f"{benchmark}: {len(voted)} of {len(clips)} training clips have votes, {divided} of "
            "them divided; the others count with their label."
        )

    def _check_leaks(self) -> None:
        """Refuses, or says, that a test clip shows what is trained on."""
        benchmark = type(self).__name__
        message = self.files.shared.leak_message(benchmark, len(self.clips("test")))
        if message and self.on_leak == "error":
            raise ValueError(
                f"{message} python -m rbft scan lists them all. Take each out of one of the "
                "splits, or set data.on_leak to warn to go on with them."
            )
        self.notes += [message] if message else []

    def setup(self, stage: str) -> None:
        """Makes sure that all processes have the same clips: their batches would not match.

        Raises:
            ValueError: If they have not, on every process; names a clip.
        """
        if self.trainer is None or self.trainer.world_size == 1:
            return
        clips = self.all_clips if stage != "predict" else self.feed.predict_clips
        usable = self.files.usable if stage != "predict" else {clip.id for clip in clips}
        check_same_on_all_processes(
            [f"{clip.split} clip {clip.id}" for clip in clips if clip.id in usable]
        )

    def accumulation(self, world: int) -> int:
        """Micro-batches per optimiser step on so many devices.

        Raises:
            ValueError: If the global batch is not a multiple of devices x batch_size.
        """
        per_step = world * self.batch_size
        if self.global_batch_size % per_step:
            raise ValueError(
                f"data.global_batch_size ({self.global_batch_size}) must be a multiple of devices "
                f"x data.batch_size ({world} x {self.batch_size} = {per_step}). Change "
                "data.batch_size, trainer.devices or data.global_batch_size."
            )
        return self.global_batch_size // per_step

    def clips_to_describe(self) -> list[Clip]:
        """Clips whose rationale the backbone writes: training, and validation for its loss."""
        return self.clips("train") + self.clips("val")

    def rationales(self, split: str) -> LearntRationales:
        """The rationales of a split that a stage learns.

        In training, self-generated and human ones are mixed by `rationale_ratio`, and
        `rationale_rules` apply.

        Raises:
            ValueError: If a clip lacks its rationale, or selection or rules leave a class none.
        """
        train = split == "train"
        return learnt_rationales(
            self.clips(split),
            self.feed.rationales,
            self.card,
            ratio=self.rationale_ratio if train else 1.0,
            seed=self.seed,
            rules=self.rationale_rules if train else None,
            control=self.rationale_control,
        )

    def steps(self, world: int, epochs: int) -> int:
        """Optimiser steps of a whole stage."""
        micro_batches = math.ceil(len(self.clips("train")) / (self.batch_size * world))
        return epochs * math.ceil(micro_batches / self.accumulation(world))

    def train_dataloader(self) -> DataLoader[Example]:
        """Shuffled micro-batches of this process, from where the run stopped."""
        assert self.masking is None, "training is on whole frames"
        clips, collator = self.clips("train"), self.feed.collators["train"]
        learnt = self.rationales("train") if collator.needs_rationales else None
        texts, cut = (None, set()) if learnt is None else (learnt.texts, learnt.cut)
        soft, reads = self._soft_labels(), collator.reads_rationales

        def loss_tokens(index: int, turn: int) -> int | float:
            # A clip that could not be decoded when rationales were written, is dropped, or whose
            # rationale breaks the rules, counts with the answer of the clip that will take its
            # place; where none can, training stops there.
            needed = texts if reads[turn] else soft
            if needed is not None and clips[index].id not in needed:
                index = next(iter(replacements(clips, index, needed)), index)
            name = clips[index].id
            text, soft_label = (texts or {}).get(name), (soft or {}).get(name)
            return collator.loss_tokens(
                Supervision(clips[index], text, name in cut, soft_label, turn)
            )

        tokens = [
            [loss_tokens(index, turn) for index in range(len(clips))] for turn in range(len(reads))
        ]
        counts = Counter(clip.label for clip in clips)
        weights = [len(clips) / (len(counts) * counts[clip.label]) for clip in clips]
        rank, world = self._place()
        sampler = TrainSampler(
            tokens[0],
            weights if self.class_weights and collator.learns_class else [1.0] * len(clips),
            batch_size=self.batch_size,
            accumulate=self.accumulation(world),
            rank=rank,
            world=world,
            seed=self.seed,
            groups=[clip.label or 0 for clip in clips] if self.balanced_sampling else None,
            second_tokens=tokens[1] if len(tokens) > 1 else None,
            second_share=self.label_share,
        )
        if self.trainer is not None:
            # Lightning saves a checkpoint before it counts the last micro-batch as completed, and
            # makes the first iterator before it announces the epoch.
            loop: Any = self.trainer.fit_loop
            done = loop.epoch_loop.batch_progress.current.processed
            if done < len(sampler):
                sampler.start, sampler.epoch = done, loop.epoch_progress.current.processed
            else:
                sampler.epoch = loop.epoch_progress.current.started
        return self._loader("train", clips, sampler, learnt, tokens)

    def _soft_labels(self) -> Mapping[str, Sequence[float]] | None:
        """Share of each class by the id of the training clip: a teacher's, or that of the votes."""
        if not self.soft_labels:
            return self.feed.soft_labels
        size = len(self.card.classes)
        return {clip.id: clip.soft_label(size) for clip in self.clips("train")}

    def val_dataloader(self) -> DataLoader[Example] | list[Any]:
        """The validation split, longest clips first; empty where there is none."""
        clips = self.clips("val")
        if not clips:
            return []
        if not self.feed.collators["val"].needs_rationales:
            return self._eval_loader("val", clips)
        return self._eval_loader("val", clips, self.rationales("val"))

    def test_dataloader(self) -> DataLoader[Example]:
        """The scored split, longest clips first."""
        return self._eval_loader("test", self.clips(self.feed.scored_split))

    def clips_from_videos(self, videos: Sequence[Path]) -> list[Clip]:
        """Unlabelled clips for video files, all videos in folders and those of lists, in order.

        Leaves in `notes` what else the folders hold.

        Raises:
            ValueError: See `rbft.annotations.video_list.find_videos`.
        """
        found, notes = find_videos(videos, self.images, self.image_fps)
        self.notes += notes
        return [
            Clip(name, source.path, None, "predict", images=source)
            if isinstance(source, Images)
            else Clip(name, source, None, "predict")
            for name, source in found
        ]

    def predict_dataloader(self) -> DataLoader[Example]:
        """The feed's `predict_clips`, those of the benchmark longest first, others in order."""
        return self._eval_loader("predict", list(self.feed.predict_clips))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Notes the batch, while it is in the processor's memory, for messages that name it."""
        self.current_batch = batch
        return batch

    def describe_current_batch(self) -> str:
        """The clips that the model is working on and their tokens, for messages."""
        if self.current_batch is None:
            return "no clip yet"
        tokens = (self.current_batch.answer or self.current_batch.prompt).input_ids.numel()
        names = ", ".join(clip.id for clip in self.current_batch.clips)
        return f"{names} ({tokens} tokens, padding included)"

    def _eval_loader(
        self, split: str, clips: list[Clip], learnt: LearntRationales | None = None
    ) -> DataLoader[Example]:
        rank, world = self._place()
        # Any videos at all are not scanned first: their results appear in the order given.
        known = all(clip.split != "predict" for clip in clips)
        lengths = [self.files.patches(clip) for clip in clips] if known else None
        sampler = EvalSampler(
            len(clips), batch_size=self.eval_batch_size, rank=rank, world=world, lengths=lengths
        )
        return self._loader(split, clips, sampler, learnt)

    def _loader(
        self,
        split: str,
        clips: list[Clip],
        sampler: Sampler[list[SampleSlot]],
        learnt: LearntRationales | None,
        tokens: Sequence[Sequence[int | float]] | None = None,
    ) -> DataLoader[Example]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        load = partial(self.reader.load, tower=self.feed.tower())
        return DataLoader(
            ClipDataset(
                clips,
                load,
                None if learnt is None else learnt.texts,
                tokens,
                set() if learnt is None else learnt.cut,
                None if learnt is None else learnt.why_without(clips),
                self.feed.collators[split].reads_rationales,
                self._soft_labels() if split == "train" else None,
                self.frames.side,
            ),
            batch_sampler=sampler,
            collate_fn=self.feed.collators[split],
            num_workers=self.num_workers,
            pin_memory=on_gpu,
        )

    def _place(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
