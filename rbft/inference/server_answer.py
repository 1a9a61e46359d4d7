"""How the answer of a server becomes a class: by log-probabilities, its form, or its text."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rbft.card import Card
from rbft.engines.request import Answer, Token

NO_CLASS = "no_class"  # the status of an answer that is none of the classes
LABEL_KEY = "label"  # of a structured answer


@dataclass(frozen=True)
class AnsweredClass:
    """The class that a server answered with.

    Attributes:
        prediction: Name of the class; None where the answer is none of them.
        probabilities: By class, normalised over the classes; None where the text decided.
        tied: Whether several classes are the likeliest; the first of them on the card is taken.
        problem: Why a structured answer has no class; empty otherwise.
    """

    prediction: str | None
    probabilities: dict[str, float] | None = None
    tied: bool = False
    problem: str = ""


def answered_class(answer: Answer, card: Card, *, structured: bool = False) -> AnsweredClass:
    """The class of a clip.

    By the log-probabilities of the answer's first token where they decide without doubt, see
    `class_probabilities`; else the text must be a class word (`Card.parse`). A structured answer
    must have the form that was asked, see `label_form`.

    Args:
        answer: What the server answered; only a text by the model that was asked has a class.
        card: The classes and their words.
        structured: Whether `label_form` was asked.
    """
    if not answer.ok:
        return AnsweredClass(None)
    if structured:
        return _structured_class(answer, card)
    found = class_probabilities(answer, card.words)
    if found is not None:
        most = max(found.values())
        likeliest = [name for name, value in found.items() if value == most]
        return AnsweredClass(likeliest[0], found, tied=len(likeliest) > 1)
    index = card.parse(answer.text)
    return AnsweredClass(None if index is None else card.classes[index])


def label_form(words: Mapping[str, str]) -> dict[str, Any]:
    """The form of an answer that can be nothing but a class word, as OpenAI's API takes it.

    An object with one key: OpenAI takes no schema whose root is a mere text. The word stands in it
    as on the card, so that the model writes what it writes in a free answer.

    Args:
        words: The class words by class.
    """
    schema = {
        "type": "object",
        "properties": {LABEL_KEY: {"type": "string", "enum": list(words.values())}},
        "required": [LABEL_KEY],
        "additionalProperties": False,
    }
    form = {"name": LABEL_KEY, "strict": True, "schema": schema}
    return {"type": "json_schema", "json_schema": form}


def _structured_class(answer: Answer, card: Card) -> AnsweredClass:
    try:
        found = json.loads(answer.text)
    except ValueError:
        found = None
    word = found.get(LABEL_KEY) if isinstance(found, dict) else None
    for name, own in card.words.items():
        if word == own:
            return AnsweredClass(name)
    problem = (
        f"The answer has no class word under {LABEL_KEY!r}, which endpoint.labels structured asks "
        "for: "
    )
    if answer.finish == "length":
        return AnsweredClass(None, problem=f"{problem}model.max_new_tokens cut it off.")
    return AnsweredClass(None, problem=f"{problem}the server may not keep to response_format.")


def class_probabilities(answer: Answer, words: Mapping[str, str]) -> dict[str, float] | None:
    """Probability of each class by the first token of an answer, normalised over the classes.

    A token speaks for the class whose word it begins, whatever its case and the blanks before it;
    those that begin the same word are added up. Nothing follows from them, and None is returned, if
    the text does not begin with a class word (it may be a refusal), a token of the list begins
    several class words, or a class has no token in the list.

    Args:
        answer: With the log-probabilities of its tokens.
        words: The class words by class.
    """
    plain = {name: _plain(word) for name, word in words.items()}
    token = next((token for token in answer.tokens or () if _plain(token.text)), None)
    if token is None or not _begins_with_a_word(_plain(answer.text), list(plain.values())):
        return None
    shares = dict.fromkeys(words, 0.0)
    for text, logprob in _alternatives(token):
        if not (begin := _plain(text)):
            continue
        meant = [name for name, word in plain.items() if word.startswith(begin)]
        if len(meant) > 1:
            return None
        for name in meant:
            shares[name] += math.exp(logprob)
    total = sum(shares.values())
    if min(shares.values()) <= 0:
        return None
    return {name: share / total for name, share in shares.items()}


def _alternatives(token: Token) -> Sequence[tuple[str, float]]:
    """The tokens of a place; of the same text written twice the first counts."""
    found: dict[str, float] = {}
    for text, logprob in token.top or ((token.text, token.logprob),):
        found.setdefault(text, logprob)
    return list(found.items())


def _begins_with_a_word(text: str, words: Sequence[str]) -> bool:
    return any(
        text.startswith(word) and not text[len(word) : len(word) + 1].isalnum() for word in words
    )


def _plain(text: str) -> str:
    # The marks that Card.parse takes off an answer may open one.
    return text.lstrip(" \t\r\n\"'`*<[(").rstrip().casefold()
