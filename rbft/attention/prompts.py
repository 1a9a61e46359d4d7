"""The question in other words: a generic one to divide maps by, a shuffled one as a control."""

import zlib
from dataclasses import dataclass

import numpy as np

from rbft.card import Card
from rbft.clip import Clip
from rbft.stages import Stage

GENERIC = "Describe the video."


@dataclass(frozen=True)
class GenericPrompt(Stage):
    """Asks every clip the same, whatever the task.

    Attributes:
        text: What is asked.
    """

    text: str = GENERIC

    def prompt(self, card: Card, clip: Clip, question: int = 0) -> str:
        """The text."""
        return self.text


@dataclass(frozen=True)
class ShuffledPrompt(Stage):
    """Asks a stage's question with its words in another order.

    Attributes:
        seed: Of the order, which differs from clip to clip.
    """

    seed: int = 0

    def prompt(self, card: Card, clip: Clip, question: int = 0) -> str:
        """The question's words, never in their own order where there are two of them."""
        words = super().prompt(card, clip, question).split()
        key = zlib.crc32(clip.id.encode(errors="backslashreplace"))
        rng = np.random.default_rng([self.seed, key])
        shuffled = list(words)
        while shuffled == words and len({*words}) > 1:
            shuffled = [words[place] for place in rng.permutation(len(words))]
        return " ".join(shuffled)


def generic_prompt(stage: Stage, text: str) -> GenericPrompt:
    """A stage with another question.

    Args:
        stage: The stage.
        text: What is asked instead.
    """
    return GenericPrompt(stage.name, stage.parts, stage.paper, text=text)


def shuffled_prompt(stage: Stage, seed: int) -> ShuffledPrompt:
    """A stage whose question's words stand in another order.

    Args:
        stage: The stage.
        seed: Of the order.
    """
    return ShuffledPrompt(stage.name, stage.parts, stage.paper, seed=seed)
