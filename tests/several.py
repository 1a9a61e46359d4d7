"""The made-up benchmark with clips that may have several classes, or none."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rbft.backbone.loading import load_config, load_processor
from rbft.card import Card
from rbft.clip import Clip
from rbft.collator import Collator
from rbft.data.clip_reader import ClipReader
from rbft.data.dataset import Example
from rbft.data.sampler import SampleSlot
from rbft.module import RBFTModule
from rbft.stages import STAGES
from tests.examples import MODULE_SETTINGS, DamagedReader, Yard, examples

# Words of several lengths, also those that answer.
PETS = Card(
    name="pets",
    persona="Guard",
    words={"cat": "a cat", "dog": "dogs, large or small", "bird": "birds"},
    prompts={
        "label": "{text} Does it show {word}?",
        "rationale": "You are a {persona}. Describe {words}.",
    },
    several={"yes": "abnormal", "no": "normal"},
)


def having(clip: Clip) -> Clip:
    """The clip with the classes that the bits of its number say; number 0 has none."""
    number = int(clip.id.rpartition("_")[2])
    labels = tuple(place for place in range(len(PETS.words)) if number >> place & 1)
    return replace(clip, label=None, labels=labels)


def pet_examples(count: int, draws: Sequence[SampleSlot] | None = None) -> list[Example]:
    """As `tests.examples.examples`, with several classes."""
    return [replace(one, clip=having(one.clip)) for one in examples(count, draws)]


def pet_collator(
    folder: Path, target: str | None = None, prompt: str | None = None, *, packing: bool = False
) -> Collator:
    """A collator of the benchmark; stages by name."""
    config, family = load_config(str(folder))
    stages = [None if name is None else STAGES[name] for name in (target, prompt)]
    return Collator(
        load_processor(str(folder)), config, family, PETS, stages[0], stages[1], packing=packing
    )


def question(place: int, clip: Clip) -> tuple[Card, Clip]:
    """The question about one class as a card and a clip of one class: yes or no."""
    assert clip.labels is not None
    words = {"yes": PETS.answers[0], "no": PETS.answers[1]}
    word = list(PETS.words.values())[place]
    prompts = {**PETS.prompts, "label": f"{{text}} Does it show {word}?"}
    alone = replace(clip, labels=None, label=int(place not in clip.labels))
    return Card("one", PETS.persona, words, prompts), alone


def pet_module(folder: Path, stage: str = "label", **settings: Any) -> RBFTModule:
    """A module with its weights, in evaluation mode."""
    made = RBFTModule(str(folder), PETS, stage=stage, **{**MODULE_SETTINGS, **settings})
    made.configure_model()
    return made.eval()


class Pets(Yard):
    """The made-up benchmark with several classes a clip; some clips cannot be decoded."""

    def __init__(
        self,
        work: Path,
        counts: dict[str, int],
        damaged: Sequence[str] = (),
        card: Card = PETS,
        **settings: Any,
    ) -> None:
        card.save(work / "pets.yaml")
        super().__init__(work / "pets.yaml", counts, **settings)
        self.damaged = damaged

    def read(self) -> list[Clip]:
        return [having(clip) for clip in super().read()]

    @cached_property
    def reader(self) -> ClipReader:
        return DamagedReader(**vars(super().reader), damaged=self.damaged)
