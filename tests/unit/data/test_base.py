import logging
import math
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rbft.clip import Clip
from rbft.data.base import ClipCollator, VideoDataModule
from rbft.data.clip_files import ClipFiles
from rbft.data.clip_reader import ClipReader
from rbft.data.content import describe_clips
from rbft.data.dataset import Example, Supervision
from rbft.data.sampler import SampleSlot
from rbft.runtime.digests import hash_file
from rbft.video.sampling import Video, VideoError
from tests.examples import (
    CARD,
    DATA_SETTINGS,
    Damaged,
    Texts,
    Yard,
    YardFiles,
    clips,
    collator,
    examples,
    rationale,
)
from tests.several import PETS, Pets
from tests.videos import make_video


@pytest.fixture
def card_file(tmp_path: Path) -> Path:
    return tmp_path / "card.yaml"


class Ids:
    """A collator that gives back what it was given."""

    def __init__(self, needs_rationales: bool = False, learns_class: bool = True) -> None:
        self.needs_rationales, self.learns_class = needs_rationales, learns_class

    @property
    def reads_rationales(self) -> list[bool]:
        return [self.needs_rationales]

    def loss_tokens(self, taught: Supervision) -> int | float:
        return len(taught.rationale or "word") - taught.cut

    def __call__(self, examples: list[Example]) -> list[Example]:
        return examples


def with_collators(yard: Yard, **settings: bool) -> Yard:
    yard.feed = replace(
        yard.feed,
        collators={split: Ids(**settings) for split in ("train", "val", "test", "predict")},
    )
    return yard


def loop(*, batches: int = 0, processed: int = 0, started: int = 0) -> Any:
    """A Trainer of one process whose fit loop has got so far."""
    return SimpleNamespace(
        global_rank=0,
        world_size=1,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        fit_loop=SimpleNamespace(
            epoch_progress=SimpleNamespace(
                current=SimpleNamespace(processed=processed, started=started)
            ),
            epoch_loop=SimpleNamespace(
                batch_progress=SimpleNamespace(current=SimpleNamespace(processed=batches))
            ),
        ),
    )


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"val_fraction": 1.0},
            "data.val_fraction (1) must be 0 or more and below 1; 0 trains on all training clips.",
        ),
        (
            {"val_fraction": -0.1},
            "data.val_fraction (-0.1) must be 0 or more and below 1; 0 trains on all "
            "training clips.",
        ),
        ({"rationale_ratio": 1.5}, "data.rationale_ratio (1.5) must be from 0 to 1."),
        (
            {"min_pixels": 999, "max_pixels": 998},
            "data.min_pixels (999) must not exceed data.max_pixels (998).",
        ),
        (
            {"rationale_prompt": "least"},
            "Card 'yard' has no prompt 'least' (data.rationale_prompt); it has label, rationale, "
            "less.",
        ),
    ],
)
def test_settings_out_of_range(card_file: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^(data|Card)") as error:
        Yard(card_file, {}, **settings)
    assert str(error.value) == message


def test_a_benchmark_without_a_card() -> None:
    class Bare(VideoDataModule):
        def read(self) -> list[Clip]:
            return []

    with pytest.raises(
        ValueError,
        match=r"^Bare has no card of its own\. Set data\.card to a card file with your classes and "
        r"prompts\.$",
    ):
        Bare(**DATA_SETTINGS)


def test_a_benchmark_with_a_card_of_its_own(card_file: Path) -> None:
    CARD.save(card_file)

    class Own(VideoDataModule):
        def read(self) -> list[Clip]:
            return []

    Own.card_file = card_file
    assert Own(**DATA_SETTINGS).card == CARD
    assert Own(**DATA_SETTINGS, rationale_prompt="less").card == CARD.using("less")
    other = card_file.with_name("other.yaml")
    replace(CARD, name="other").save(other)
    assert Own(**DATA_SETTINGS, card=other).benchmark == "other"


@pytest.mark.parametrize(
    ("world", "batch_size", "global_batch_size", "steps"),
    [(1, 1, 16, 16), (1, 16, 16, 1), (2, 4, 16, 2), (8, 2, 16, 1)],
)
def test_accumulation_is_computed(
    card_file: Path, world: int, batch_size: int, global_batch_size: int, steps: int
) -> None:
    yard = Yard(card_file, {}, batch_size=batch_size, global_batch_size=global_batch_size)
    assert yard.accumulation(world) == steps


def test_a_global_batch_that_does_not_divide(card_file: Path) -> None:
    yard = Yard(card_file, {}, batch_size=2, global_batch_size=16)
    with pytest.raises(ValueError, match="must be a multiple") as error:
        yard.accumulation(3)
    assert str(error.value) == (
        "data.global_batch_size (16) must be a multiple of devices x data.batch_size (3 x 2 = 6). "
        "Change data.batch_size, trainer.devices or data.global_batch_size."
    )


@pytest.mark.parametrize(
    ("size", "world", "epochs", "steps"), [(16, 1, 1, 4), (17, 1, 1, 5), (9, 2, 3, 9), (1, 4, 2, 2)]
)
def test_steps_of_a_stage(card_file: Path, size: int, world: int, epochs: int, steps: int) -> None:
    assert Yard(card_file, {"train": size}).steps(world, epochs) == steps


# Splits


def test_splits(card_file: Path) -> None:
    yard = Yard(card_file, {"train": 4, "test": 3, "private": 2})
    assert [clip.id for clip in yard.clips("test")] == ["test_0", "test_1", "test_2"]
    assert yard.clips("val") == []
    assert yard.clips_to_describe() == yard.clips("train")


def test_a_validation_split_is_carved_from_train(card_file: Path) -> None:
    yard = Yard(card_file, {"train": 20, "test": 4}, val_fraction=0.2)
    assert Counter(clip.label for clip in yard.clips("val")) == {0: 2, 1: 2}
    assert Counter(clip.label for clip in yard.clips("train")) == {0: 8, 1: 8}
    assert len(yard.clips("test")) == 4
    ids = {clip.id for clip in yard.clips("train")}
    assert ids.isdisjoint(clip.id for clip in yard.clips("val"))
    assert yard.clips_to_describe() == yard.clips("train") + yard.clips("val")


@pytest.mark.parametrize("what", ["text", "reference"])
def test_half_a_character(card_file: Path, what: str) -> None:
    """JSON can hold one where a text with emoji was cut."""

    class Cut(Yard):
        def read(self) -> list[Clip]:
            return [replace(clip, **{what: "A cat \ud83d"}) for clip in super().read()]

    with pytest.raises(
        ValueError,
        match=rf"^Cut: the {what} of clip train_0 holds '\\ud83d', half a character, which no "
        r"model can read\. Correct it in the annotations\.$",
    ):
        _ = Cut(card_file, {"train": 1}).all_clips


class Files(Yard):
    """Yard, but clips have files."""

    files_class, reader_class = ClipFiles, ClipReader

    def read(self) -> list[Clip]:
        folder = self.cache_folder.parent
        return [replace(clip, path=folder / clip.path) for clip in super().read()]


def test_clips_without_a_file(card_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_video(card_file.with_name("train_0.mp4"), frames=20, height=56, width=84)
    counts = {"train": 2, "private": 1}
    with pytest.raises(ValueError, match=r"1 of 2 train clips of Files are not usable") as error:
        Files(card_file, counts, min_coverage=0.5).clips("train")
    assert "data.on_missing" in str(error.value)

    yard = Files(card_file, counts, min_coverage=0.5, on_missing="warn")
    assert [clip.id for clip in yard.clips("train")] == ["train_0"]
    (note,) = yard.notes
    assert note.startswith("1 of 2 train clips of Files are not usable")
    assert len(yard.all_clips) == 3

    yard = Files(card_file, counts, min_coverage=0.5, on_missing="skip")
    with caplog.at_level(logging.INFO):
        assert [clip.id for clip in yard.clips("train")] == ["train_0"]
    assert "1 of 2 train clips of Files are not usable" in caplog.text
    assert yard.notes == []

    video = yard.reader.decode(yard.clips("train")[0])
    assert video.frames.shape[1:] == (3, 56, 84)
    assert (video.total_frames, video.fps) == (20, 10.0)


def test_processes_compare_the_clips_that_they_use(
    card_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[list[str]] = []
    monkeypatch.setattr("rbft.data.base.check_same_on_all_processes", compared.append)
    yard = Yard(card_file, {"train": 2, "test": 2})
    yard.files.usable = {"train_1", "test_0"}
    yard.feed = replace(yard.feed, predict_clips=clips(1, "predict"))
    for world in (1, 2):
        yard.trainer = SimpleNamespace(world_size=world)  # type: ignore[assignment]
        for stage in ("fit", "predict"):
            yard.setup(stage)
    assert compared == [
        ["train clip train_1", "test clip test_0"],
        ["predict clip predict_0"],
    ]


def test_nothing_to_train_or_score(card_file: Path) -> None:
    with pytest.raises(ValueError, match=r"^Yard has no test clips\. Check its annotations\.$"):
        Yard(card_file, {"train": 4}).check(["label"])
    with pytest.raises(ValueError, match=r"^Yard has no train clips\. Check its annotations\.$"):
        Yard(card_file, {"test": 4}).check(["label"])
    Yard(card_file, {"test": 4}).check([])  # zero-shot needs no training clips


def test_a_class_without_training_clips(card_file: Path) -> None:
    with pytest.raises(ValueError, match="has no training clip") as error:
        Yard(card_file, {"train": 1, "test": 4}).check(["label"])
    assert str(error.value) == (
        "Yard: class 'alarm' has no training clip (2 in validation and test); the training split "
        "has 1 quiet, 0 alarm. Add clips, or take the class off the card's words."
    )


def test_human_rationales_that_are_needed_but_not_there(card_file: Path) -> None:
    yard = Yard(card_file, {"train": 4, "test": 1}, rationale_ratio=0.5)
    with pytest.raises(ValueError, match=r"^No human rationale for 2 of the 2 clips that should"):
        yard.check(["rationale"])


# Rationales


class Described(Yard):
    """Yard with human rationales."""

    def read(self) -> list[Clip]:
        return [replace(clip, reference=f"human {clip.id}") for clip in super().read()]


@pytest.mark.parametrize(("ratio", "own"), [(1.0, 10), (0.6, 6), (0.2, 2), (0.0, 0)])
def test_a_share_of_the_training_rationales_is_self_generated(
    card_file: Path, ratio: float, own: int
) -> None:
    yard = Described(card_file, {"train": 10, "val": 4}, rationale_ratio=ratio)
    texts = yard.rationales("train").texts
    assert list(texts) == [clip.id for clip in yard.clips("train")]
    assert sum(not text.startswith("human") for text in texts.values()) == own
    # The loss on the validation split stays comparable over ratios.
    assert yard.rationales("val").texts == {clip.id: rationale(clip) for clip in yard.clips("val")}


def test_which_of_the_mixed_rationales_were_cut_off(card_file: Path) -> None:
    yard = Described(card_file, {"train": 10, "val": 4}, rationale_ratio=0.6)
    clips = yard.clips("train") + yard.clips("val")
    cut = [f"train_{n}" for n in range(5)] + ["val_1", "val_3", "test_0"]
    yard.feed = replace(yard.feed, rationales=Texts({c.id: rationale(c) for c in clips}, cut))
    texts = yard.rationales("train").texts
    own = {name for name, text in texts.items() if not text.startswith("human")}
    # Those written by humans are whole.
    assert yard.rationales("train").cut == own & set(cut)
    assert 0 < len(own & set(cut)) < 5
    assert yard.rationales("val").cut == {"val_1", "val_3"}
    count = len(own & set(cut))
    assert yard.rationales("train").counts() == {
        "learnt": 10,
        "cut": count,
        "share_cut": count / 10,
    }
    yard.feed = replace(yard.feed, rationales=None)
    yard.rationale_ratio = 0.0
    assert yard.rationales("train").cut == set()


def test_a_training_clip_without_a_rationale(card_file: Path) -> None:
    yard = Yard(card_file, {"train": 3})
    yard.feed = replace(yard.feed, rationales=Texts({"train_0": "x"}))
    with pytest.raises(ValueError, match=r"^No self-generated rationale for 2 of the 3 clips"):
        yard.rationales("train")
    yard.feed = replace(yard.feed, rationales=None)
    with pytest.raises(ValueError, match=r"for 3 of the 3 clips that should take one \(first: tr"):
        yard.rationales("train")


# Loaders


def test_training_batches(card_file: Path) -> None:
    yard = with_collators(Yard(card_file, {"train": 5}, batch_size=2), needs_rationales=True)
    batches: list[list[Example]] = list(yard.train_dataloader())  # type: ignore[arg-type]
    assert [len(batch) for batch in batches] == [2, 2, 2]
    counted = [example for batch in batches for example in batch if example.draw.weight]
    assert sorted(example.clip.id for example in counted) == [f"train_{n}" for n in range(5)]
    for example in counted:
        assert example.rationale == rationale(example.clip)
        assert isinstance(example.video, Video)
        assert example.video.frames.shape == yard.reader.decode(example.clip).frames.shape
    lengths = [len(example.rationale or "") for example in counted]
    assert [example.draw.total for example in counted[:4]] == [sum(lengths[:4])] * 4


def test_labels_are_learnt_without_rationales(card_file: Path) -> None:
    yard = with_collators(Yard(card_file, {"train": 5}))
    yard.feed = replace(yard.feed, rationales=None)
    batches: list[list[Example]] = list(yard.train_dataloader())  # type: ignore[arg-type]
    assert {example.rationale for batch in batches for example in batch} == {None}


@pytest.mark.parametrize(
    ("learns_class", "weights"), [(True, {0: 5 / 6, 1: 5 / 4}), (False, {0: 1.0, 1: 1.0})]
)
def test_class_weights_on_the_label_loss_alone(
    card_file: Path, learns_class: bool, weights: dict[int, float]
) -> None:
    yard = Yard(card_file, {"train": 5}, class_weights=True)
    with_collators(yard, learns_class=learns_class)
    batches: list[list[Example]] = list(yard.train_dataloader())  # type: ignore[arg-type]
    draws = [(e.clip.label, e.draw) for batch in batches for e in batch]
    for label, draw in draws:
        assert label is not None
        assert draw.weight == pytest.approx(weights[label])
    # Inverse frequencies that keep the loss's scale.
    assert math.fsum(draw.weight for _, draw in draws) == pytest.approx(5)


def test_balanced_sampling(card_file: Path) -> None:
    class Uneven(Yard):
        def read(self) -> list[Clip]:
            return [replace(c, label=int(c.id == "train_0")) for c in super().read()]

    yard = with_collators(Uneven(card_file, {"train": 8}, balanced_sampling=True))
    batches: list[list[Example]] = list(yard.train_dataloader())  # type: ignore[arg-type]
    assert Counter(e.clip.label for batch in batches for e in batch) == {0: 4, 1: 4}


def order(yard: Yard, trainer: Any = None) -> list[list[SampleSlot]]:
    """The micro-batches of the first iteration, made before Lightning announces the epoch."""
    yard.trainer = trainer
    sampler: Any = yard.train_dataloader().batch_sampler
    return list(sampler)


def test_where_training_goes_on(card_file: Path) -> None:
    yard = with_collators(Yard(card_file, {"train": 10}, batch_size=2))
    first = order(yard)
    assert order(yard, loop()) == first
    sampler: Any = yard.train_dataloader().batch_sampler
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    # In the middle of an epoch.
    assert order(yard, loop(batches=3, started=1)) == first[3:]
    assert order(yard, loop(batches=2, processed=1, started=2)) == second[2:]
    # After an epoch's last batch, before and after Lightning has counted the epoch.
    assert order(yard, loop(batches=5, started=1)) == second
    assert order(yard, loop(batches=5, processed=1, started=1)) == second


def test_the_processes_share_an_epoch(card_file: Path) -> None:
    yard = with_collators(Yard(card_file, {"train": 10, "test": 3}, batch_size=2))
    seen: list[int] = []
    scored: list[int] = []
    for rank in range(2):
        yard.trainer = SimpleNamespace(**{**vars(loop()), "global_rank": rank, "world_size": 2})  # type: ignore[assignment]
        train: Any = yard.train_dataloader().batch_sampler
        test: Any = yard.test_dataloader().batch_sampler
        seen += [draw.index for batch in train for draw in batch if draw.weight]
        scored += [draw.index for batch in test for draw in batch if draw.weight]
    assert sorted(seen) == list(range(10))
    assert sorted(scored) == list(range(3))


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_batches_are_pinned_for_a_gpu(card_file: Path, device: str, pinned: bool) -> None:
    yard = with_collators(Yard(card_file, {"train": 4}))
    yard.trainer = loop()
    yard.trainer.strategy.root_device = torch.device(device)  # type: ignore[union-attr,misc]
    assert yard.train_dataloader().pin_memory is pinned


def test_scored_splits_longest_first(card_file: Path) -> None:
    yard = with_collators(Yard(card_file, {"val": 3, "test": 5}, eval_batch_size=2))
    batches: list[list[Example]] = list(yard.test_dataloader())  # type: ignore[arg-type]
    assert [[e.clip.id for e in batch] for batch in batches] == [
        ["test_1", "test_3"],
        ["test_4", "test_0"],
        ["test_2"],
    ]
    yard.feed = replace(yard.feed, scored_split="val")
    batches = list(yard.test_dataloader())  # type: ignore[arg-type]
    assert [e.clip.id for batch in batches for e in batch] == ["val_1", "val_0", "val_2"]
    yard.feed = replace(yard.feed, predict_clips=clips(2))
    batches = list(yard.predict_dataloader())  # type: ignore[arg-type]
    assert [e.clip.id for batch in batches for e in batch] == ["train_1", "train_0"]


def test_videos_that_were_not_scanned_in_their_order(card_file: Path) -> None:
    yard = with_collators(Yard(card_file, {}))
    yard.feed = replace(yard.feed, predict_clips=clips(3, "predict"))
    batches: list[list[Example]] = list(yard.predict_dataloader())  # type: ignore[arg-type]
    names = [e.clip.id for batch in batches for e in batch]
    assert names == ["predict_0", "predict_1", "predict_2"]


def test_a_clip_of_unknown_length_comes_last(card_file: Path) -> None:
    class RibbonFiles(YardFiles):
        def grid(self, clip: Clip) -> tuple[int, int, int]:
            if clip.id == "test_1":
                raise ValueError("Frames of 1 x 900 pixels cannot be used")
            return super().grid(clip)

    class Ribbon(Yard):
        files_class = RibbonFiles

    yard = with_collators(Ribbon(card_file, {"test": 3}))
    batches: list[list[Example]] = list(yard.test_dataloader())  # type: ignore[arg-type]
    assert [e.clip.id for batch in batches for e in batch] == ["test_0", "test_2", "test_1"]


@pytest.mark.parametrize("needs_rationales", [True, False])
def test_validation(card_file: Path, needs_rationales: bool) -> None:
    yard = with_collators(Yard(card_file, {"val": 3}), needs_rationales=needs_rationales)
    batches: list[list[Example]] = list(yard.val_dataloader())
    found = {e.clip.id: e.rationale for batch in batches for e in batch}
    assert found == {c.id: rationale(c) if needs_rationales else None for c in yard.clips("val")}
    assert with_collators(Yard(card_file, {"train": 3})).val_dataloader() == []


def test_a_batch_through_the_real_collator(card_file: Path, qwen: Path) -> None:
    yard = Yard(card_file, {"train": 4}, batch_size=2, global_batch_size=4)
    make = collator(qwen, target_stage="rationale")
    assert isinstance(make, ClipCollator)
    yard.feed = replace(yard.feed, collators={"train": make})
    batches: list[Any] = list(yard.train_dataloader())
    tokens = sum(make.answer_tokens(e.clip, e.rationale) for e in examples(4))
    assert [float(batch.total) for batch in batches] == [tokens, tokens]
    assert sorted(index for batch in batches for index in batch.index.tolist()) == [0, 1, 2, 3]


# What is known of a clip's file


class Films(VideoDataModule):
    """Clips that are files, whatever they hold."""

    def __init__(self, folder: Path, clips: list[Clip], **settings: Any) -> None:
        CARD.save(folder / "card.yaml")
        cache = folder / "cache"
        super().__init__(
            card=folder / "card.yaml", cache_folder=cache, **{**DATA_SETTINGS, **settings}
        )
        self.made = clips

    def read(self) -> list[Clip]:
        return self.made


def test_the_content_of_a_clip_is_known_from_the_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "a.mp4", frames=4)
    os.utime(path, (1, 1))
    clip, expected = Clip("a", path, 0, "train"), hash_file(path)
    assert Films(tmp_path, [clip]).files.digest(clip) == expected
    monkeypatch.setattr(
        "rbft.runtime.digests.hash_file", lambda path: pytest.fail("was read again")
    )
    assert Films(tmp_path, [clip]).files.digest(clip) == expected


def test_videos_to_predict_need_no_annotations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "a.mp4", frames=4)
    films = Films(tmp_path, [])
    monkeypatch.setattr(films, "read", lambda: pytest.fail("reads annotations"))
    (clip,) = films.clips_from_videos([path])
    assert (clip.path, clip.split) == (path, "predict")
    assert films.reader.decode(clip).indices == [0, 3]


def test_another_file_under_a_known_id_is_looked_into(tmp_path: Path) -> None:
    one, other = (make_video(tmp_path / f"{n}.mp4", frames=n) for n in (4, 6))
    films = Films(tmp_path, [Clip("a", one, 0, "train")])
    assert films.files.digest(Clip("a", other, 0, "train")) == hash_file(other)


def films(folder: Path, *splits: str, **settings: Any) -> Films:
    """Clips a, b, ... of both classes in turn: copies of one video, and one of another."""
    folder.mkdir()
    one = make_video(folder / "one.mp4", frames=40)
    other = make_video(folder / "other.mp4", frames=40, first=40)
    made = [Clip("other", other, 1, "train")]
    for number, split in enumerate(splits):
        path = folder / f"{number}.mp4"
        path.write_bytes(one.read_bytes())
        made.append(Clip("abc"[number], path, number % 2, split))
    return Films(folder, made, **settings)


def test_a_video_in_train_and_test(tmp_path: Path) -> None:
    data = films(tmp_path / "x", "train", "test", "test")
    said = (
        "2 of 2 test clips of Films show what a training or validation clip shows, so they test "
        f"what was learnt by heart (test b ({tmp_path}/x/1.mp4) = train a ({tmp_path}/x/0.mp4), "
        f"test c ({tmp_path}/x/2.mp4) = train a ({tmp_path}/x/0.mp4))."
    )
    with pytest.raises(ValueError, match="learnt by heart") as error:
        data.check(["label"])
    assert str(error.value) == (
        f"{said} python -m rbft scan lists them all. Take each out of one of the splits, or set "
        "data.on_leak to warn to go on with them."
    )
    data.check([])  # nothing is learnt
    assert data.notes == []
    data = films(tmp_path / "warned", "train", "test", "test", on_leak="warn")
    data.check(["label"])
    assert data.notes == [said.replace("/x/", "/warned/")]


def test_a_video_in_train_alone(tmp_path: Path) -> None:
    data = films(tmp_path / "x", "train", "train")
    data.made.append(Clip("t", make_video(tmp_path / "t.mp4", frames=8), 0, "test"))
    data.made.append(Clip("u", make_video(tmp_path / "u.mp4", frames=9), 1, "test"))
    data.check(["label"])
    assert data.notes == []
    assert [(one.id, other.id) for one, other in data.files.shared.repeats] == [("a", "b")]


def test_other_seconds_of_one_file_are_other_clips(tmp_path: Path) -> None:
    data = films(tmp_path / "x", "train", "test", "test")
    data.made = [
        replace(clip, start=2.0 * (clip.split == "test"), end=2.0 + 2 * (clip.split == "test"))
        for clip in data.made
    ]
    data.check(["label"])
    assert data.files.shared.apart == 2


def test_a_class_that_the_test_has_no_clip_of(card_file: Path) -> None:
    yard = Yard(card_file, {"train": 4, "val": 1, "test": 1})
    yard.check(["label"])
    rest = "alarm: there is no F1 of that, and the macro F1 is the mean over quiet."
    assert yard.notes == [f"Yard has no {split} clip of {rest}" for split in ("val", "test")]


def test_cut_rationales_reach_the_batches_of_training_and_validation(card_file: Path) -> None:
    yard = with_collators(
        Damaged(card_file, {"train": 6, "val": 3}, damaged=["val_2"], batch_size=2),
        needs_rationales=True,
    )
    texts = {clip.id: "word" for split in ("train", "val") for clip in yard.clips(split)}
    yard.feed = replace(yard.feed, rationales=Texts(texts, ["train_1", "val_0", "val_2"]))
    batches: list[list[Example]] = list(yard.train_dataloader())  # type: ignore[arg-type]
    found = [example for batch in batches for example in batch if example.draw.weight]
    assert {example.clip.id for example in found if example.cut} == {"train_1"}
    # 4 and 2 clips of four "tokens", one of them without its end.
    assert sorted({example.draw.total for example in found}) in ([7.0, 16.0], [8.0, 15.0])
    batches = list(yard.val_dataloader())
    assert {e.clip.id for batch in batches for e in batch if e.cut} == {"val_0", "val_2"}


# Videos to predict


def test_videos_of_files_and_folders(card_file: Path) -> None:
    folder = card_file.parent / "videos"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.mp4", "a.MOV", "deep/c.webm", "notes.txt"):
        (folder / name).touch()
    single = folder / "deep/c.webm"
    yard = Yard(card_file, {})
    found = yard.clips_from_videos([single, folder])
    assert yard.notes == [
        f"--videos {folder}: left alone 1 files that are no videos: 1 .txt (first: "
        f"{folder}/notes.txt).",
        f"--videos names 1 file again (first: {single}); each counts once.",
    ]
    assert [clip.path for clip in found] == [
        single,
        folder / "a.MOV",
        folder / "b.mp4",
        single,
    ]
    assert {clip.label for clip in found} == {None}
    assert found[0].id == str(single)


def test_videos_that_are_not_there(card_file: Path) -> None:
    yard, gone, empty = Yard(card_file, {}), card_file.with_name("x.mp4"), card_file.parent / "none"
    with pytest.raises(ValueError, match="does not exist") as error:
        yard.clips_from_videos([gone])
    assert str(error.value) == f"--videos {gone} does not exist. Give video files or folders."
    empty.mkdir()
    with pytest.raises(ValueError, match=r"^--videos holds no video files; looked for those"):
        yard.clips_from_videos([empty])


def test_videos_that_have_gone(card_file: Path, tmp_path: Path) -> None:
    """One file can be replaced or counted; if their folder has gone, nothing is right any more."""
    reader = ClipReader(**vars(Yard(card_file, {"train": 2}).reader))
    path = tmp_path / "videos" / "a.mp4"
    path.parent.mkdir()
    clip = Clip("a", path, 0, "train")
    with pytest.raises(VideoError):
        reader.decode(clip)
    path.parent.rmdir()
    with pytest.raises(ValueError, match="is gone") as found:
        reader.decode(clip)
    assert str(found.value) == (
        f"The folder {path.parent} is gone, with the clip a in it. Bring it back (is a disk no "
        "longer mounted?); started again, the run goes on from its last checkpoint."
    )
    # A list of videos may name what is not there: predict notes that in its line.
    with pytest.raises(VideoError):
        reader.decode(replace(clip, split="predict"))


def test_the_clips_at_hand_are_named(tmp_path):
    yard = Yard(tmp_path / "card.yaml", {"train": 3, "test": 2})
    assert yard.describe_current_batch() == "no clip yet"
    asked = SimpleNamespace(input_ids=torch.zeros(2, 5))
    learnt = SimpleNamespace(input_ids=torch.zeros(1, 9))
    for split, answer, tokens in (("train", learnt, 9), ("test", None, 10)):
        clips = [yard.clips(split)[place] for place in (1, 0)]
        yard.current_batch = SimpleNamespace(clips=clips, answer=answer, prompt=asked)
        assert yard.describe_current_batch() == (
            f"{split}_1, {split}_0 ({tokens} tokens, padding included)"
        )


@pytest.mark.parametrize(
    ("kind", "card", "message"),
    [
        (
            Pets,
            CARD,
            "Pets gives clip train_0 several classes, but card 'yard' lets a clip have one. Add "
            "the key several to the card.",
        ),
        (
            Yard,
            PETS,
            "Yard gives clip train_0 one class, but card 'pets' lets a clip have several. Take the "
            "key several off the card.",
        ),
    ],
)
def test_the_card_says_whether_a_clip_has_several_classes(tmp_path, kind, card, message):
    if kind is Yard:
        card.save(tmp_path / "card.yaml")
    data = (
        Pets(tmp_path, {"train": 2}, card=card)
        if kind is Pets
        else Yard(tmp_path / "card.yaml", {"train": 2})
    )
    with pytest.raises(ValueError, match="train_0") as error:
        _ = data.all_clips
    assert str(error.value) == message


def test_what_a_run_notes_of_clips_with_several_classes(tmp_path):
    found = describe_clips(Pets(tmp_path, {"train": 4}))["train"]
    assert [one["label"] for one in found] == [[], ["cat"], ["dog"], ["cat", "dog"]]
