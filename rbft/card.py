"""The card: all words of a task, kept as data beside the benchmark.

A card is a YAML file with the classes, the word that the model answers with for each class (or is
asked about, where a clip may have several), and the prompts. It is saved with the weights and with
the rationales that were made from it.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from rbft.runtime.files import write_text

ANSWERS = ("yes", "no")  # the keys of `several`, in the order in which the words are compared
EXTENDS = "extends"  # the key of a card file that names the card it differs from


@dataclass(frozen=True)
class Card:
    """Words of one classification task.

    Attributes:
        name: Short name of the task, part of file names.
        persona: The expert that the rationale prompt speaks to ("Smart Home Security Expert").
        words: Class name to the word that the model answers with, in class order.
        prompts: Prompt name to text. `label` asks for the class; `rationale` asks for the
            rationale (P_rationale); more rationale prompts may follow (`less`, `least`). A text
            may use `{persona}`, `{words}` (the class words, "normal or abnormal") and `{text}`
            (the clip's own text, where the data module gives one).
        several: Where a clip may have several of the classes, or none (multi-label): the words
            that the model answers with, `{yes: "yes", no: "no"}`. `label` is then put once for
            each class and must use `{word}`, the class's word. None where a clip has one class.
        values: Class name to its number, where the classes are levels of one scale (1 to 5):
            answers then have an expected value, a mean absolute error and a rank correlation.
            None where they are not.
    """

    name: str
    persona: str
    words: dict[str, str]
    prompts: dict[str, str]
    several: dict[str, str] | None = None
    values: Mapping[str, int | float] | None = None

    def __post_init__(self) -> None:
        where = f"Card '{self.name}'"
        if len(self.words) < 2:
            raise ValueError(
                f"{where}: words has {len(self.words)} classes ({', '.join(self.words) or 'none'})"
                "; classification needs at least 2. Add one line per class: `name: word`."
            )
        answers = [_normal_form(word) for word in self.words.values()]
        for word, answer in zip(self.words.values(), answers, strict=True):
            if not answer or answers.count(answer) > 1:
                raise ValueError(
                    f"{where}: the class word '{word}' is empty or used twice. Give each class a "
                    "word of its own, different by more than case and punctuation."
                )
        for name in ("label", "rationale"):
            if not self.prompts.get(name, "").strip():
                raise ValueError(
                    f"{where}: prompts.{name} is missing. A card needs the prompts label "
                    "(the classification query) and rationale (P_rationale)."
                )
        for name, prompt in self.prompts.items():
            allowed = ["persona", "words", "text"]
            allowed += ["word"] if name == "label" and self.several is not None else []
            for _, field, _, _ in Formatter().parse(prompt):
                if field is not None and field not in allowed:
                    *first, last = (f"{{{one}}}" for one in allowed)
                    raise ValueError(
                        f"{where}: prompts.{name} uses {{{field}}}; allowed are "
                        f"{', '.join(first)} and {last}. Write {{{{ and }}}} for plain braces."
                    )
        if self.several is not None:
            self._check_several(where)
        if self.values is not None:
            if self.several is not None:
                raise ValueError(
                    f"{where} has the keys several and values: a clip with several classes has no "
                    "place on their scale. Leave one of the two out."
                )
            self._check_values(where, self.values)
            # In class order and of one type, so that cards that say the same have one digest.
            levels = {name: float(self.values[name]) for name in self.words}
            object.__setattr__(self, "values", levels)

    def _check_values(self, where: str, values: Mapping[str, int | float]) -> None:
        lacking = [name for name in self.words if name not in values]
        foreign = [name for name in values if name not in self.words]
        if lacking or foreign:
            what = f"lacks {', '.join(lacking)}" if lacking else f"has {', '.join(foreign)}"
            raise ValueError(
                f"{where}: values {what}; the classes are {', '.join(self.words)}. Give each class "
                "its number, or leave values out."
            )
        for name, value in values.items():
            if not math.isfinite(value) or [*values.values()].count(value) > 1:
                raise ValueError(
                    f"{where}: values.{name} is {value:g}, which is not finite or stands twice. "
                    "Give each class a number of its own."
                )

    def _check_several(self, where: str) -> None:
        assert self.several is not None
        answers = [_normal_form(self.several.get(key, "")) for key in ANSWERS]
        if [*self.several] != [*ANSWERS] or not all(answers) or len(set(answers)) < len(answers):
            raise ValueError(
                f"{where}: several is {self.several}; it must hold the two words that the model "
                'answers with, first the one for a class that the clip has: {yes: "yes", no: '
                '"no"}. They must differ by more than case and punctuation.'
            )
        fields = [field for _, field, _, _ in Formatter().parse(self.prompts["label"])]
        if "word" not in fields:
            raise ValueError(
                f"{where}: with the key several, prompts.label is put once for each class, but it "
                'does not use {word}, the class word that it asks about. Such as: "Does the clip '
                'show {word}? Answer yes or no."'
            )

    @property
    def levels(self) -> tuple[float, ...]:
        """The number of each class, in class order; empty where classes are no levels."""
        return tuple(map(float, (self.values or {}).values()))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in order; a clip's label is an index into them."""
        return tuple(self.words)

    @property
    def answers(self) -> tuple[str, ...]:
        """The words that answer the prompt `label`, compared to classify a clip.

        Those of the classes, or where a clip may have several, those for yes and no.
        """
        return tuple((self.words if self.several is None else self.several).values())

    @property
    def content(self) -> dict[str, Any]:
        """Everything on the card, without what a card may have and this one has not."""
        every = asdict(self)
        return {one.name: every[one.name] for one in fields(self) if every[one.name] != one.default}

    @property
    def digest(self) -> str:
        """Short hash of everything on the card."""
        return hashlib.sha256(json.dumps(self.content).encode()).hexdigest()[:12]

    def refuse_several(self, what: str, instead: str = "") -> None:
        """Refuses what is for clips of one class.

        Args:
            what: What it is, as the message begins.
            instead: What to do, as the message ends.

        Raises:
            ValueError: If a clip may have several classes.
        """
        if self.several is not None:
            raise ValueError(
                f"{what} needs clips of one class, but card '{self.name}' has the key several: "
                f"its clips may have several classes, or none.{instead and f' {instead}'}"
            )

    def prompt(self, name: str, text: str = "", word: str = "") -> str:
        """The prompt of that name with its fields filled in.

        Args:
            name: A key of `prompts`.
            text: The clip's own text for `{text}`.
            word: The class word for `{word}`.

        Raises:
            ValueError: If the card has no prompt of that name.
        """
        if name not in self.prompts:
            raise ValueError(
                f"Card '{self.name}' has no prompt '{name}'; it has {', '.join(self.prompts)}."
            )
        *first, last = self.words.values()
        return (
            self.prompts[name]
            .format(
                persona=self.persona, words=f"{', '.join(first)} or {last}", text=text, word=word
            )
            .strip()
        )

    def using(self, rationale_prompt: str) -> "Card":
        """The same card with another of its prompts as the one that asks for rationales."""
        chosen = self.prompts.get(rationale_prompt)
        if chosen is None:
            raise ValueError(
                f"Card '{self.name}' has no prompt '{rationale_prompt}' (data.rationale_prompt); "
                f"it has {', '.join(self.prompts)}."
            )
        return replace(self, prompts={**self.prompts, "rationale": chosen})

    def shown(self, prompts: Sequence[str]) -> dict[str, dict[str, str]]:
        """What the model is shown of the card: the words, and prompts with their fields filled in.

        Args:
            prompts: Names of the prompts; `{text}` and `{word}` stay as they are.
        """
        asked = {name: self.prompt(name, "{text}", "{word}") for name in prompts}
        shown = {"words": dict(self.words), "prompts": asked}
        return shown if self.several is None else {**shown, "several": dict(self.several)}

    def parse(self, answer: str) -> int | None:
        """The class whose word is the whole answer, up to case, white space and end punctuation.

        Nothing is guessed: an answer that only contains a class word is no answer
        ("not abnormal" contains two).
        """
        form = _normal_form(answer)
        for index, word in enumerate(self.words.values()):
            if form == _normal_form(word):
                return index
        return None

    @classmethod
    def load(cls, path: Path) -> "Card":
        """Reads a card file.

        A card that differs from another in a few lines names it as `extends`, by its path from
        its own folder, and says only what differs: name, persona, words (all of them), values (all
        of them) and single prompts.

        Raises:
            ValueError: If the file is missing, is no YAML mapping or has a wrong key, or extends a
                card that extends another.
        """
        content = _read(path)
        if isinstance(content, dict) and EXTENDS in content:
            base_path = path.parent / str(content[EXTENDS])
            base = _read(base_path)
            if not isinstance(base, dict) or EXTENDS in base:
                raise ValueError(
                    f"Card file {path} extends {base_path}, which must be a whole card: it must "
                    f"not have the key {EXTENDS} itself. Name the card that it extends."
                )
            own = {key: value for key, value in content.items() if key != EXTENDS}
            before, after = base.get("prompts"), own.get("prompts")
            content = {**base, **own}
            if isinstance(before, dict) and isinstance(after, dict):
                content["prompts"] = {**before, **after}
        needed = [field.name for field in fields(cls) if field.default is MISSING]
        further = [field.name for field in fields(cls) if field.default is not MISSING]
        if not isinstance(content, dict) or not {*needed} <= {*content} <= {*needed, *further}:
            got = (
                ", ".join(map(str, content))
                if isinstance(content, dict)
                else type(content).__name__
            )
            raise ValueError(
                f"Card file {path} must have the keys {', '.join(needed)}, and may have "
                f"{', '.join(further)}; got {got}."
            )
        if isinstance(answers := content.get("several"), dict):
            # YAML reads the keys yes and no as true and false.
            names = {True: "yes", False: "no"}
            answers = {names.get(key, key): value for key, value in answers.items()}
            order = sorted(answers, key=[*ANSWERS, *answers].index)
            content = {**content, "several": {key: answers[key] for key in order}}
        for key in ("words", "prompts", "several"):
            value = content.get(key)
            if key in further and value is None:
                continue
            if not isinstance(value, dict) or not all(
                isinstance(text, str) for item in value.items() for text in item
            ):
                raise ValueError(
                    f"Card file {path}: {key} must map names to texts; got {value!r}. "
                    'Put words that YAML reads as true or false in quotes ("yes").'
                )
        values = content.get("values")
        if values is not None and not _maps_to_numbers(values):
            raise ValueError(
                f"Card file {path}: values must map class names to numbers; got {values!r}. Put "
                'names that YAML reads as numbers in quotes ("1").'
            )
        return cls(**content)

    def text(self) -> str:
        """The card as YAML."""
        return yaml.safe_dump(self.content, sort_keys=False, allow_unicode=True, width=96)

    def save(self, path: Path) -> None:
        """Writes the card as YAML."""
        write_text(path, self.text())


def _maps_to_numbers(values: Any) -> bool:
    return isinstance(values, dict) and all(
        isinstance(name, str) and isinstance(value, int | float) and not isinstance(value, bool)
        for name, value in values.items()
    )


def _read(path: Path) -> Any:
    """What stands in a card file."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"Card file {path} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"Card file {path} is no valid YAML: {error}") from error


def _normal_form(answer: str) -> str:
    return " ".join(answer.split()).strip(" .,!?:;\"'`*<>[]()").casefold()
