"""Words of a text, and the class words among them."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from rbft.card import Card

# Chinese and Japanese do not set spaces between words: there each character counts as one.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+(?:['\u2019][^\W_{_UNSPACED}]+)*")
_POSSESSIVE = re.compile(r"['\u2019]s$")
# English endings and what stands in their place in the word they were put on.
_ENDINGS = {
    "s": ("",),
    "es": ("",),
    "ies": ("y",),
    "ed": ("", "e"),
    "ied": ("y",),
    "ing": ("", "e"),
    "ly": ("", "le"),
    "ily": ("y",),
    "ness": ("",),
    "iness": ("y",),
    "ity": ("", "e"),
    "ities": ("", "e"),
}
_SHORTEST = 3  # letters that must be left when an ending is taken off: "bring" is not "br" + "ing"


def fold(text: str) -> str:
    """The text without differences of case and of width (full-width letters)."""
    return unicodedata.normalize("NFKC", text).casefold()


def words(text: str) -> list[str]:
    """The words in order, folded; a hyphen separates, an apostrophe does not.

    In Chinese and Japanese each character counts as a word.
    """
    return [fold(match.group()) for match in WORD.finditer(text)]


@lru_cache(maxsize=100_000)
def bases(word: str) -> frozenset[str]:
    """A folded word, and what it may be an English inflection of.

    "abnormalities" gives "abnormal", "unsafely" "unsafe", "dropped" "drop". Two words are forms of
    each other where these sets meet. Irregular forms are not known.
    """
    found = {word}
    for ending, places in _ENDINGS.items():
        stem = word.removesuffix(ending)
        if stem == word or len(stem) < _SHORTEST or (ending == "s" and stem.endswith("s")):
            continue
        found |= {stem + place for place in places}
        if ending in ("ed", "ing") and stem[-1] == stem[-2]:
            found.add(stem[:-1])
    return frozenset(found)


@dataclass(frozen=True)
class ClassWords:
    """Finds a card's class words and class names in texts.

    As whole words, in any case, with English inflections of the last word ("abnormally"). Between
    Chinese or Japanese characters there is no telling where a word ends, so there a class word is
    found within others too.

    Attributes:
        terms: What to find; each may be of several words.
    """

    terms: tuple[str, ...]

    @classmethod
    def of(cls, card: Card) -> "ClassWords":
        """The class words and class names of a card."""
        return cls(tuple(dict.fromkeys([*card.words.values(), *card.words])))

    @cached_property
    def _split(self) -> list[tuple[str, list[str]]]:
        """Terms with their words, those of more words first."""
        split = [(term, [_POSSESSIVE.sub("", word) for word in words(term)]) for term in self.terms]
        return sorted((pair for pair in split if pair[1]), key=lambda pair: -len(pair[1]))

    def find(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Where they stand.

        Yields:
            First character, last character + 1, and the term; in order, without overlap.
        """
        found = list(WORD.finditer(text))
        forms = [_POSSESSIVE.sub("", fold(match.group())) for match in found]
        place = 0
        while place < len(found):
            for term, wanted in self._split:
                stop = place + len(wanted)
                if forms[place : stop - 1] != wanted[:-1] or stop > len(forms):
                    continue
                if bases(forms[stop - 1]) & bases(wanted[-1]):
                    yield found[place].start(), found[stop - 1].end(), term
                    place = stop
                    break
            else:
                place += 1

    def mask(self, text: str) -> str:
        """The text without them.

        They are taken out, not replaced by a mark: a mark would still tell whether a text names
        a class.
        """
        kept, last = [], 0
        for start, stop, _ in self.find(text):
            kept.append(text[last:start])
            last = stop
        return " ".join([*kept, text[last:]])


def scripts(text: str) -> dict[str, int]:
    """Number of letters of each Unicode script ("LATIN", "CJK", "CYRILLIC", ...), most first.

    The script is the first word of the letter's Unicode name.
    """
    found: dict[str, int] = {}
    for letter in unicodedata.normalize("NFKC", text):
        if letter.isalpha():
            name = _script(letter)
            found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


@lru_cache(maxsize=10_000)
def _script(letter: str) -> str:
    return re.split(r"[ -]", unicodedata.name(letter, "UNKNOWN"), maxsplit=1)[0]
