"""A backbone of true 7B size with random weights, and clips of noise: what `gpu_report.py` runs on.

All else is rbft's own: the module loads the backbone as ever, with its attention, adapters, kernels
and checkpointing; the collator makes the batches; Lightning's Trainer runs the steps. Weights are
random, so that nothing is downloaded, and videos are noise that nobody decodes: what is measured is
the device.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.sizes import make_config
from rbft.batch import Batch
from rbft.clip import Clip
from rbft.collator import Collator
from rbft.data.base import Feed
from rbft.data.clip_files import ClipFiles
from rbft.data.dataset import Example
from rbft.data.sampler import SampleSlot
from rbft.estimate.flops import ClipTokens
from rbft.estimate.token_counts import count_tokens
from rbft.video.feature_cache import EncodedVideo
from rbft.video.sampling import Video, patch_grid
from tests.examples import Texts, Yard, random_video
from tests.tiny import tiny_processor

PIXELS = {"7b": (280, 504), "tiny": (56, 84)}  # 20 x 36 and 4 x 6 patches
RATIONALE = 150  # tokens, the end of the turn included
FPS = 1.0


def write_backbone(folder: Path, size: str) -> Path:
    """Configuration and processor of a backbone, without weights; see `random_weights`."""
    processor = tiny_processor("qwen2_5_vl")
    config = make_config(size)
    numbers = processor.tokenizer.convert_tokens_to_ids
    for name in ("vision_start", "vision_end", "image_pad", "video_pad"):
        field = name.replace("_pad", "") + "_token_id"
        setattr(config, field, numbers(f"<|{name}|>"))
    config.text_config.bos_token_id = config.text_config.pad_token_id = numbers("<|endoftext|>")
    config.text_config.eos_token_id = numbers("<|im_end|>")
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@contextmanager
def random_weights(device: torch.device) -> Iterator[None]:
    """Has transformers make weights on the device where it would read them."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    def make(
        source: str,
        *,
        trust_remote_code: bool = False,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **how: Any,
    ) -> Any:
        config = AutoConfig.from_pretrained(source)
        torch.manual_seed(0)
        with device:
            model = AutoModelForImageTextToText.from_config(config, **how).eval()
        nothing = dict.fromkeys(("missing_keys", "mismatched_keys", "unexpected_keys"), ())
        return (model, nothing) if output_loading_info else model

    with patch.object(AutoModelForImageTextToText, "from_pretrained", make):
        yield


class Noise(Yard):
    """Clips of noise; every other one to train on is half as long as the rest.

    Args:
        card_file: Where the card goes.
        counts: Clips of each split.
        frames: Frames of the longer clips.
        pixels: Height and width of a frame.
        kept: Whether the vision tower's outputs are known already, as from the feature cache.
        **settings: See `VideoDataModule`.
    """

    def __init__(
        self,
        card_file: Path,
        counts: dict[str, int],
        frames: int,
        pixels: tuple[int, int],
        *,
        kept: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__(card_file, counts, **settings)
        self.length, self.pixels, self.kept = frames, pixels, kept
        # No two digits make one token here.
        text = "7" * (RATIONALE - 1)
        self.feed = Feed(rationales=Texts({clip.id: text for clip in self.all_clips}))
        self.steps_of_a_run = 1

    def rationale_texts(self) -> dict[str, str]:
        """Rationale of each clip."""
        assert self.feed.rationales is not None
        return self.feed.rationales.texts()

    def _frames(self, clip: Clip) -> int:
        number = int(clip.id.rpartition("_")[2])
        half = clip.split == "train" and number % 2
        return max(2, self.length // 4 * 2) if half else self.length

    @cached_property
    def files(self) -> ClipFiles:
        """Knows the sizes of clips that have no files."""
        made = super().files
        made.grid = self.grid  # type: ignore[method-assign]
        return made

    def grid(self, clip: Clip) -> tuple[int, int, int]:
        """Frame pairs, patch rows and patch columns."""
        return patch_grid(self._frames(clip), self.pixels)

    def decode(self, clip: Clip) -> Video:
        """Noise, shown at a frame a second."""
        return random_video(clip.id, (self._frames(clip), *self.pixels))

    def micro_batch(self) -> Batch:
        """All training clips in one batch, made by the run's own collator."""
        make: Any = self.feed.collators["train"]
        clips, found = self.clips("train"), []
        total = sum(make.answer_tokens(clip, self.rationale_texts()[clip.id]) for clip in clips)
        for index, clip in enumerate(clips):
            video: Any = self.decode(clip)
            key = ""
            if self.kept is not None:
                key, grid = clip.id, self.grid(clip)
                width, dtype = self.kept
                rows = torch.randn(grid[0] * grid[1] * grid[2], width).to(dtype)
                video = EncodedVideo(rows, list(grid), FPS)
            draw = SampleSlot(index, 1.0, float(total))
            text = self.rationale_texts()[clip.id]
            found.append(Example(clip, video, text, draw, key=key))
        return make(found)

    def steps(self, world: int, epochs: int) -> int:
        """Optimiser steps of the run."""
        return self.steps_of_a_run

    def train_dataloader(self) -> DataLoader[Any]:
        """The same micro-batch again and again, through a loader as a run has it."""
        assert self.trainer is not None
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        batches: Any = [self.micro_batch()] * self.steps_of_a_run
        return DataLoader(batches, batch_size=None, collate_fn=_as_it_is, pin_memory=on_gpu)

    def tokens(self, make: Collator) -> list[ClipTokens]:
        """What each training clip takes; nothing in a tower whose outputs are kept."""
        clips = self.clips("train")
        found = count_tokens(self, make, clips, self.rationale_texts(), RATIONALE)
        counts = [found[clip.id] for clip in clips]
        return [replace(c, grid=(0, 0, 0)) for c in counts] if self.kept is not None else counts


def language_only(clip: ClipTokens) -> ClipTokens:
    """The clip as some count it: what the language model is given, and no vision tower."""
    return replace(clip, grid=(0, 0, 0), video=0, prompt=clip.prompt + clip.video)


def _as_it_is(batch: Any) -> Any:
    return batch
