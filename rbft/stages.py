"""A stage: what is asked about a clip and what should be answered.

Both losses of the paper are the negative log-likelihood of the answer; only the answer differs.
Stages beyond the paper (docs/beyond_the_paper.md) put two questions in turns, or look at the
answers of all classes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rbft.card import Card
from rbft.clip import Clip

RATIONALE, CLASS = "rationale", "class"
SEPARATOR = "\n"
# What is minimised: the answer's negative log-likelihood; the expected cost of what is answered,
# over all classes; the cross-entropy with the class probabilities of a teacher.
Objective = Literal["likelihood", "expected_cost", "soft_labels"]
AGAIN = re.compile(r"(\w+)-([2-9]|[1-9]\d+)")  # a stage that stands in the list once more


@dataclass(frozen=True)
class Stage:
    """One kind of supervision.

    Attributes:
        name: As given to `model.stage` and in `stages`.
        parts: What the answer consists of, in order: the rationale R, the class C, or both.
        paper: The paper's name for it, as shown on the screen.
        hint: What the writer is told besides, in which `{word}` stands for the clip's class word:
            for a second try at rationales, see `rbft.verification`. No stage in `STAGES` has one.
        objective: What is minimised. All but the likelihood look at the answers of all classes, in
            which a rationale is only read.
        turns: Stages that take the global batches in turns; empty where all are of this one.
    """

    name: str
    parts: tuple[str, ...]
    paper: str
    hint: str = ""
    objective: Objective = "likelihood"
    turns: "tuple[Stage, ...]" = ()

    @property
    def needs_rationales(self) -> bool:
        """Whether training clips must have a rationale."""
        return RATIONALE in self.parts or any(one.needs_rationales for one in self.turns)

    @property
    def needs_teacher(self) -> bool:
        """Whether training clips must have the class probabilities of a teacher."""
        return self.objective == "soft_labels"

    @property
    def elicits(self) -> bool:
        """Whether the model writes a rationale before it names the class."""
        return self.parts == (RATIONALE, CLASS)

    @property
    def all_classes(self) -> bool:
        """Whether the answers of all classes are looked at, not only that of the clip's."""
        return self.objective != "likelihood"

    @property
    def validated(self) -> "Stage":
        """The stage whose likelihood is the validation loss: this one, if it has one alone."""
        if self.turns:
            return self.turns[-1]
        return replace(self, objective="likelihood")

    def turn(self, number: int) -> "Stage":
        """The stage of the global batches of that turn."""
        return self.turns[number] if self.turns else self

    @property
    def classifier(self) -> "Stage":
        """The stage whose question classifies a clip: the first that answers in the same parts."""
        if CLASS not in self.parts:
            return LABEL
        return next((one for one in STAGES.values() if one.parts == self.parts), self)

    @property
    def prompts(self) -> list[str]:
        """Names of the card's prompts that it puts, in order."""
        asked = {RATIONALE: "rationale", CLASS: "label"}
        # The rationale's instructions come first in either order, so that P stays the same.
        return [asked[part] for part in (RATIONALE, CLASS) if part in self.parts]

    def questions(self, card: Card) -> int:
        """How many prompts are put about a clip: one for each class where it may have several."""
        return len(card.words) if card.several is not None and CLASS in self.parts else 1

    def prompt(self, card: Card, clip: Clip, question: int = 0) -> str:
        """What the model is asked about a clip. Never holds the clip's label without a `hint`.

        Args:
            card: The words.
            clip: The clip.
            question: Index of the class that is asked about, of several `questions`.
        """
        word = list(card.words.values())[question]
        asked = [card.prompt(name, clip.text, word) for name in self.prompts]
        if self.hint:
            assert clip.label is not None
            asked.append(self.hint.format(word=_word(card, clip, question)))
        return "\n".join(asked)

    def target(self, card: Card, clip: Clip, rationale: str | None, question: int = 0) -> str:
        """What the model should answer; the arguments are those of `prompt` and `target_parts`."""
        return SEPARATOR.join(self.target_parts(card, clip, rationale, question))

    def target_parts(
        self, card: Card, clip: Clip, rationale: str | None, question: int = 0
    ) -> list[str]:
        """What the model should answer, one text for each of `parts`, without separators."""
        texts = {CLASS: _word(card, clip, question), RATIONALE: (rationale or "").strip()}
        return [texts[part] for part in self.parts]


def _word(card: Card, clip: Clip, question: int) -> str:
    """The word that answers the question about a clip's class, or about one of its classes."""
    if clip.labels is not None:
        return card.answers[0 if question in clip.labels else 1]
    return "" if clip.label is None else card.answers[clip.label]


LABEL = Stage("label", (CLASS,), "Stage II (labels)")
RATIONALE_STAGE = Stage("rationale", (RATIONALE,), "Stage I (rationales)")
ELICITED = Stage("rationale_class", (RATIONALE, CLASS), "P+R+C (Table 3)")
STAGES = {
    stage.name: stage
    for stage in (
        RATIONALE_STAGE,
        LABEL,
        Stage("class_rationale", (CLASS, RATIONALE), "P+C+R (Table 3)"),
        ELICITED,
        # Beyond the paper.
        Stage(
            "alternating",
            (CLASS,),
            "both in turns",
            turns=(RATIONALE_STAGE, LABEL),
        ),
        Stage("label_reward", (CLASS,), "expected reward", objective="expected_cost"),
        Stage(
            "rationale_class_reward",
            ELICITED.parts,
            "P+R+C, expected reward",
            objective="expected_cost",
        ),
        Stage("label_distilled", (CLASS,), "P+R+C distilled", objective="soft_labels"),
    )
}


def find_stage(name: str) -> Stage:
    """The stage of that name; `<name>-2` is the second one of it in a list of stages.

    Raises:
        ValueError: If there is none.
    """
    if not is_stage(name):
        raise ValueError(f"There is no stage '{name}'; stages are {', '.join(STAGES)}.")
    found = STAGES[_bare(name)]
    if name == found.name:
        return found
    return replace(found, name=name, paper=f"{found.paper}, round {name.rpartition('-')[2]}")


def is_stage(name: str) -> bool:
    """Whether `find_stage` finds it."""
    return _bare(name) in STAGES


def stage_names(listed: Sequence[str]) -> list[str]:
    """A name for each stage of a list: one that stands in it again is numbered, `<name>-2`.

    Args:
        listed: The stages as `stages` lists them, or with such names already.
    """
    bare = [_bare(name) for name in listed]
    numbers = [bare[: place + 1].count(name) for place, name in enumerate(bare)]
    return [
        name if number == 1 else f"{name}-{number}"
        for name, number in zip(bare, numbers, strict=True)
    ]


def _bare(name: str) -> str:
    """A stage's name without its number."""
    again = AGAIN.fullmatch(name)
    return again[1] if again else name
