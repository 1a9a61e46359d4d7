"""Filters of rationales: small objects that say which samples break one rule, and why."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import ClassVar, Literal, Protocol, runtime_checkable

import yaml

from rbft.card import Card
from rbft.rationales.duplicates import near_duplicates, repeated_share
from rbft.rationales.sample import CUT, Sample
from rbft.rationales.words import ClassWords, scripts, words

FilterName = Literal[
    "length",
    "repetition",
    "truncated",
    "refusal",
    "class_words",
    "language",
    "near_duplicate",
]
FILTERED = "content_filter"  # finish reason of endpoints that withheld a text
SENTENCES = 3  # first sentences in which a refusal is looked for
SCRIPT_SHARE = 0.05  # of the prompts' letters; a script with fewer is that of a name or a term
KANA = {"HIRAGANA", "KATAKANA"}


@runtime_checkable
class Filter(Protocol):
    """One rule.

    Attributes:
        name: What reports call it.
    """

    name: ClassVar[FilterName]

    def __call__(self, samples: Sequence[Sample]) -> dict[int, str]:
        """Why samples break the rule, by their place in the sequence; others are left out."""
        ...

    def __str__(self) -> str:
        """What the rule is set to."""
        ...


@dataclass(frozen=True)
class Length:
    """Bounds on the length.

    Attributes:
        min_words: Fewest words, None sets no bound.
        max_words: Most words.
        min_tokens: Fewest tokens of the writer; samples whose tokens nobody counted pass.
        max_tokens: Most tokens.
    """

    min_words: int | None = None
    max_words: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    name: ClassVar[FilterName] = "length"

    def __call__(self, samples: Sequence[Sample]) -> dict[int, str]:
        """Why samples break the rule, by place."""
        return _each(samples, self._reason)

    def _reason(self, sample: Sample) -> str | None:
        for count, least, most, unit in (
            (len(words(sample.text)), self.min_words, self.max_words, "words"),
            (sample.tokens, self.min_tokens, self.max_tokens, "tokens"),
        ):
            if count is not None and least is not None and count < least:
                return f"{count} {unit}, fewer than {least}"
            if count is not None and most is not None and count > most:
                return f"{count} {unit}, more than {most}"
        return None

    def __str__(self) -> str:
        bounds = {
            "words": (self.min_words, self.max_words),
            "tokens": (self.min_tokens, self.max_tokens),
        }
        return ", ".join(
            f"{'any' if least is None else least} to {'any' if most is None else most} {unit}"
            for unit, (least, most) in bounds.items()
            if (least, most) != (None, None)
        )


@dataclass(frozen=True)
class Repetition:
    """A limit on the share of n-grams that the text has said before.

    Attributes:
        most: Largest share of repeated n-grams, 0 to 1.
        size: Words of an n-gram.
    """

    most: float
    size: int
    name: ClassVar[FilterName] = "repetition"

    def __call__(self, samples: Sequence[Sample]) -> dict[int, str]:
        """Why samples break the rule, by place."""
        return _each(samples, self._reason)

    def _reason(self, sample: Sample) -> str | None:
        share = repeated_share(sample.text, self.size)
        return f"{share:.0%} of its {self.size}-grams are repeated" if share > self.most else None

    def __str__(self) -> str:
        return f"at most {self.most:.0%} of {self.size}-grams repeated"


@dataclass(frozen=True)
class Truncated:
    """No text that the limit of tokens cut off."""

    name: ClassVar[FilterName] = "truncated"

    def __call__(self, samples: Sequence[Sample]) -> dict[int, str]:
        """Why samples break the rule, by place."""
        return _each(
            samples, lambda one: "cut off at the limit of tokens" if one.finish == CUT else None
        )

    def __str__(self) -> str:
        return "ended by itself"


@dataclass(frozen=True)
class Refusal:
    """No text that refuses, or says that there is no video.

    Attributes:
        patterns: Regular expressions for how a sentence of a refusal begins.
    """

    patterns: tuple[str, ...]
    name: ClassVar[FilterName] = "refusal"

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(f"(?:{one})" for one in self.patterns), re.IGNORECASE)

    def __call__(self, samples: Sequence[Sample]) -> dict[int, str]:
        """Why samples break the rule, by place."""
        return _each(samples, self._reason)

    def _reason(self, sample: Sample) -> str | None:
        if sample.finish == FILTERED:
            return "withheld by the endpoint's content filter"
        for sentence in _first_sentences(sample.text):
            if match := self._pattern.match(sentence):
                return f"a sentence begins with {match.group().strip()!r}"
        return None

    def __str__(self) -> str:
        return f"none of {len(self.patterns)} patterns"


@dataclass(frozen=True)
class NoClassWords:
    """No text that names a class.

    Attributes:
        class_words: The class words and class names of the card.
    """

    class_words: ClassWords
    name: ClassVar[FilterName] = "class_words"

    def __call__(self, samples: Sequence[Sample]) -> dict[int, str]:
        """Why samples break the rule, by place."""
        return _each(samples, self._reason)

    def _reason(self, sample: Sample) -> str | None:
        found = {sample.text[start:stop] for start, stop, _ in self.class_words.find(sample.text)}
        return f"says {', '.join(sorted(found))}" if found else None

    def __str__(self) -> str:
        return f"none of {', '.join(self.class_words.terms)}"


@dataclass(frozen=True)
class Language:
    """A text in the scripts of the card's prompts; languages of one script are not told apart.

    Attributes:
        allowed: Unicode scripts.
        least: Smallest share of the text's letters that must be in them.
    """

    allowed: tuple[str, ...]
    least: float
    name: ClassVar[FilterName] = "language"

    def __call__(self, samples: Sequence[Sample]) -> dict[int, str]:
        """Why samples break the rule, by place."""
        return _each(samples, self._reason)

    def _reason(self, sample: Sample) -> str | None:
        found = scripts(sample.text)
        letters = sum(found.values())
        if not letters:
            return "has no letters"
        share = sum(count for name, count in found.items() if name in self.allowed) / letters
        if share >= self.least:
            return None
        strange = [name for name in found if name not in self.allowed]
        return f"{1 - share:.0%} of its letters are {' and '.join(strange)}"

    def __str__(self) -> str:
        return f"at least {self.least:.0%} of letters {' or '.join(self.allowed)}"


@dataclass(frozen=True)
class NearDuplicate:
    """No text that is nearly that of another clip: it tells neither of the two.

    The first of them stays. Samples of one clip may be as like as they please.

    Attributes:
        similarity: Jaccard similarity of the sets of shingles from which on two texts count as the
            same.
        size: Words of a shingle.
    """

    similarity: float
    size: int
    name: ClassVar[FilterName] = "near_duplicate"

    def __call__(self, samples: Sequence[Sample]) -> dict[int, str]:
        """Why samples break the rule, by place."""
        found = near_duplicates(samples, self.similarity, self.size)
        return {
            place: f"{value:.0%} like the rationale of {samples[other].clip}"
            for place, (other, value) in found.items()
        }

    def __str__(self) -> str:
        return f"below {self.similarity:.0%} of {self.size}-grams of another clip's"


@lru_cache(maxsize=1)
def refusal_patterns() -> tuple[str, ...]:
    """The patterns of `refusals.yaml`."""
    content = yaml.safe_load(Path(__file__).with_name("refusals.yaml").read_text(encoding="utf-8"))
    return tuple(content["patterns"])


def card_scripts(card: Card) -> tuple[str, ...]:
    """Unicode scripts that the card's prompts are written in.

    Raises:
        ValueError: If the prompts have no letters.
    """
    found = scripts("\n".join(card.prompt(name) for name in card.prompts))
    letters = sum(found.values())
    if not letters:
        raise ValueError(
            f"Card '{card.name}' has prompts without letters, so "
            "data.rationale_rules.min_script_share has no script to go by. Set it to null."
        )
    names = [name for name, count in found.items() if count >= SCRIPT_SHARE * letters]
    if KANA & set(names):  # Japanese is written in three scripts at once
        names = list(dict.fromkeys([*names, *sorted(KANA), "CJK"]))
    return tuple(names)


def _each(samples: Sequence[Sample], why: Callable[[Sample], str | None]) -> dict[int, str]:
    reasons = {place: why(sample) for place, sample in enumerate(samples)}
    return {place: reason for place, reason in reasons.items() if reason is not None}


def _first_sentences(text: str) -> list[str]:
    """The first sentences, without marks before them, with straight apostrophes."""
    plain = text.replace("\u2019", "'").replace("\u2018", "'")
    split = re.split(r"(?<=[.!?;])\s+|(?<=[\u3002\uff01\uff1f\uff0c])|\n+", plain.strip())
    found = [re.sub(r"\s+", " ", one).lstrip(" *_#>-.!,\t") for one in split]
    return [one for one in found if one][:SENTENCES]
