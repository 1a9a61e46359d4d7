"""A stage: what is asked about a clip and what should be answered.

Both losses of the paper are the negative log-likelihood of the answer; only the answer differs.
"""

from dataclasses import dataclass

from rbft.card import Card
from rbft.clip import Clip

RATIONALE, CLASS = "rationale", "class"
SEPARATOR = "\n"


@dataclass(frozen=True)
class Stage:
    """One kind of supervision.

    Attributes:
        name: As given to `model.stage` and in `stages`.
        parts: What the answer consists of, in order: the rationale R, the class C, or both.
        paper: The paper's name for it, as shown on the screen.
        hint: What the writer is told besides, in which `{word}` stands for the clip's class word:
            for a second try at rationales, see `rbft.verification`. No stage in `STAGES` has one.
    """

    name: str
    parts: tuple[str, ...]
    paper: str
    hint: str = ""

    @property
    def needs_rationales(self) -> bool:
        """Whether training clips must have a rationale."""
        return RATIONALE in self.parts

    @property
    def classifier(self) -> "Stage":
        """The stage whose question classifies a clip: this one if it answers with a class."""
        return self if CLASS in self.parts else LABEL

    @property
    def prompts(self) -> list[str]:
        """Names of the card's prompts that it puts, in order."""
        asked = {RATIONALE: "rationale", CLASS: "label"}
        # The rationale's instructions come first in either order, so that P stays the same.
        return [asked[part] for part in (RATIONALE, CLASS) if part in self.parts]

    def prompt(self, card: Card, clip: Clip) -> str:
        """What the model is asked about a clip. Never holds the clip's label without a `hint`."""
        asked = [card.prompt(name, clip.text) for name in self.prompts]
        if self.hint:
            assert clip.label is not None
            asked.append(self.hint.format(word=_word(card, clip)))
        return "\n".join(asked)

    def target(self, card: Card, clip: Clip, rationale: str | None) -> str:
        """What the model should answer."""
        return SEPARATOR.join(self.target_parts(card, clip, rationale))

    def target_parts(self, card: Card, clip: Clip, rationale: str | None) -> list[str]:
        """What the model should answer, one text for each of `parts`, without separators."""
        texts = {CLASS: _word(card, clip), RATIONALE: (rationale or "").strip()}
        return [texts[part] for part in self.parts]


def _word(card: Card, clip: Clip) -> str:
    return "" if clip.label is None else list(card.words.values())[clip.label]


LABEL = Stage("label", (CLASS,), "Stage II (labels)")
STAGES = {
    stage.name: stage
    for stage in (
        Stage("rationale", (RATIONALE,), "Stage I (rationales)"),
        LABEL,
        Stage("class_rationale", (CLASS, RATIONALE), "P+C+R (Table 3)"),
        Stage("rationale_class", (RATIONALE, CLASS), "P+R+C (Table 3)"),
    )
}


def find_stage(name: str) -> Stage:
    """The stage of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in STAGES:
        raise ValueError(f"There is no stage '{name}'; stages are {', '.join(STAGES)}.")
    return STAGES[name]
