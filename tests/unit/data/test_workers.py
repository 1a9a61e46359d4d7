"""Processes that decode ahead of the model: however they are started, and over a whole epoch."""

import multiprocessing
import os
import pickle
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from rbft.clip import Clip
from rbft.data.base import VideoDataModule
from rbft.data.dataset import Example, Supervision
from tests.examples import CARD, DATA_SETTINGS, collator, trainer
from tests.videos import make_video

SIZE = 8


class Folder(VideoDataModule):
    """Real files, more clips than files."""

    def __init__(self, folder: Path, size: int = SIZE, **settings: Any) -> None:
        CARD.save(folder / "card.yaml")
        card, cache = folder / "card.yaml", folder / "cache"
        super().__init__(card=card, cache_folder=cache, **{**DATA_SETTINGS, **settings})
        self.folder, self.size = folder, size

    def read(self) -> list[Clip]:
        return [
            Clip(str(number), self.folder / f"{number % SIZE}.mp4", number % 2, "train")
            for number in range(self.size)
        ]


class Report:
    """A collator that says which clips it got, in which process, and how large that one is."""

    needs_rationales = False
    learns_class = True

    @property
    def reads_rationales(self) -> list[bool]:
        return [self.needs_rationales]

    def loss_tokens(self, taught: Supervision) -> int | float:
        return 1

    def __call__(self, examples: list[Example]) -> dict[str, Any]:
        return {
            "ids": [example.clip.id for example in examples],
            "sums": [int(example.video.frames.int().sum()) for example in examples],  # type: ignore[union-attr]
            "process": os.getpid(),
            "memory": own_memory(),
        }


def own_memory() -> int:
    """Bytes that this process shares with no file, so without the mapped frame cache."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(SIZE):
        make_video(tmp_path / f"{number}.mp4", frames=20 + number, height=56, width=84)
    return tmp_path


def loader(data: VideoDataModule, start: str | None = None) -> DataLoader:
    made = data.train_dataloader()
    if start is not None:
        made.multiprocessing_context = multiprocessing.get_context(start)
    return made


def test_spawned_workers_give_the_same_batches(folder: Path, qwen: Path) -> None:
    """Also inside a Trainer, which they do not get, nor with it the model."""
    seen = []
    for workers, start in ((0, None), (2, "fork"), (1, "spawn")):
        data = Folder(folder, num_workers=workers, batch_size=2, seed=3)
        data.feed = replace(data.feed, collators={"train": collator(qwen, target_stage="label")})
        data.trainer = trainer(folder)
        seen.append(list(loader(data, start)))
    for one, *others in zip(*seen, strict=True):
        for other in others:
            assert torch.equal(one.index, other.index)
            assert torch.equal(one.answer.input_ids, other.answer.input_ids)
            for name, tensor in one.video.items():
                assert torch.equal(tensor, other.video[name])


def test_workers_get_neither_trainer_nor_model(folder: Path) -> None:
    class Unpicklable(Report):
        def __reduce__(self) -> Any:
            raise AssertionError("is sent to the workers")

    data = Folder(folder)
    data.feed = replace(data.feed, collators={"train": Unpicklable()})
    made = loader(data)
    data.trainer = Unpicklable()  # type: ignore[assignment]
    copy = pickle.loads(pickle.dumps(made.dataset))
    video, _ = copy.load(data.read()[3])
    assert torch.equal(video.frames, data.reader.decode(data.read()[3]).frames)


def test_batches_are_made_ahead(folder: Path) -> None:
    """Before the second batch is asked for, a worker has it: the training step need not wait."""

    class Marking(Report):
        def __call__(self, examples: list[Example]) -> dict[str, Any]:
            for example in examples:
                (folder / f"{example.clip.id}.seen").touch()
            return super().__call__(examples)

    data = Folder(folder, num_workers=1, batch_size=1, global_batch_size=1)
    data.feed = replace(data.feed, collators={"train": Marking()})
    batches = iter(loader(data, "fork"))
    next(batches)
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.seen"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 3 <= len(list(folder.glob("*.seen"))) <= 4
    del batches


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("cache", [0.0, 1.0])
def test_the_memory_of_a_worker_does_not_grow(folder: Path, cache: float) -> None:
    size = 640
    data = Folder(
        folder, size, num_workers=1, batch_size=4, global_batch_size=4, frame_cache_gb=cache
    )
    data.feed = replace(data.feed, collators={"train": Report()})
    batches = list(loader(data, "fork"))
    assert sorted(int(name) for batch in batches for name in batch["ids"]) == list(range(size))
    assert len({batch["process"] for batch in batches} - {os.getpid()}) == 1
    memory = [batch["memory"] for batch in batches]
    settled = max(memory[40:80])
    # A clip's frames are 28 kB: keeping those of the second half would be 9 MB.
    assert max(memory[80:]) - settled < 4_000_000
