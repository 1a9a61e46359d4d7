"""What a judge is asked about a rationale, and what its answers count."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from rbft.card import Card

RUBRIC = Path(__file__).with_name("rubric.yaml")
MASS = 0.5  # least probability on levels for an expectation over them


@dataclass(frozen=True)
class Level:
    """One level of the rubric.

    Attributes:
        level: Its number, from 0.
        score: What it counts, 0 to 1.
        when: The findings that put a text on it; those not named may be either.
        means: Its description.
    """

    level: int
    score: float
    when: Mapping[str, bool]
    means: str


@dataclass(frozen=True)
class Rubric:
    """What a judge is asked, and what its answers count.

    Attributes:
        name: Part of what scores are known by; another wording is another rubric.
        findings: Question by name, to be answered with yes or no.
        levels: In order; every combination of findings belongs to exactly one.
        prompt: With `{question}`, `{words}`, `{label}`, `{findings}`, `{levels}`, `{boundary}`,
            `{rationale}` and `{names}`.
        label: What the prompt says where the judge is told the class, with `{word}`.
    """

    name: str
    findings: Mapping[str, str]
    levels: tuple[Level, ...]
    prompt: str
    label: str

    def __post_init__(self) -> None:
        where = f"Rubric '{self.name}'"
        numbers, scores = [one.level for one in self.levels], [one.score for one in self.levels]
        if numbers != list(range(len(numbers))) or not 2 <= len(numbers) <= 10:
            raise ValueError(
                f"{where}: levels must be numbered from 0 on, 2 to 10 of them (one digit each); "
                f"got {numbers}."
            )
        if scores != sorted(set(scores)) or scores[0] < 0 or scores[-1] > 1:
            raise ValueError(
                f"{where}: scores must rise from level to level within 0 to 1; got {scores}."
            )
        for answers in product((False, True), repeat=len(self.findings)):
            findings = dict(zip(self.findings, answers, strict=True))
            fitting = [one.level for one in self._fitting(findings)]
            if len(fitting) != 1:
                raise ValueError(
                    f"{where}: {findings} belongs to the levels {fitting or 'none'}; it must "
                    "belong to exactly one. Mend `when` of the levels."
                )

    def _fitting(self, findings: Mapping[str, bool]) -> list[Level]:
        return [
            one
            for one in self.levels
            if all(findings.get(name) == answer for name, answer in one.when.items())
        ]

    def level_of(self, findings: Mapping[str, bool]) -> int:
        """The level that the findings put a text on."""
        return self._fitting(findings)[0].level

    @property
    def digest(self) -> str:
        """Short hash of everything that determines a score."""
        levels = [(one.level, one.score, dict(one.when), one.means) for one in self.levels]
        content = json.dumps([self.name, dict(self.findings), levels, self.prompt, self.label])
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of an answer: the reason first, the level last, and nothing else."""
        kinds: dict[str, Any] = {"reason": {"type": "string"}}
        kinds |= {name: {"type": "boolean"} for name in self.findings}
        kinds["level"] = {"type": "integer", "enum": [one.level for one in self.levels]}
        return {
            "type": "object",
            "properties": kinds,
            "required": list(kinds),
            "additionalProperties": False,
        }

    def ask(self, rationale: str, card: Card, label: int | None = None) -> str:
        """The prompt about one rationale.

        Args:
            rationale: The text to grade.
            card: The task: the question of the prompt `label`, and the class words.
            label: The clip's class, where the judge is to be told it.
        """
        words = list(card.words.values())
        told = "" if label is None else self.label.format(word=words[label])
        # Unlike any line of the text, so that the text cannot end itself.
        boundary = f"=== {hashlib.sha256(rationale.encode(errors='replace')).hexdigest()[:12]} ==="
        return self.prompt.format(
            question=card.prompt("label"),
            words=f"{', '.join(words[:-1])} and {words[-1]}",
            label=told,
            findings="\n".join(f"- {name}: {text}" for name, text in self.findings.items()),
            levels="\n".join(f"- {one.level}: {one.means}" for one in self.levels),
            boundary=boundary,
            rationale=rationale,
            names=", ".join(f'"{name}"' for name in self.findings),
        ).strip()

    @classmethod
    def load(cls, path: Path = RUBRIC) -> "Rubric":
        """Reads a rubric.

        Raises:
            ValueError: If the file cannot be read, has other keys, or its levels overlap.
        """
        content = read_yaml(path, "Rubric")
        keys = ["name", "findings", "levels", "prompt", "label"]
        parts = ["level", "score", "when", "means"]
        if not isinstance(content, dict) or sorted(content) != sorted(keys):
            raise ValueError(f"Rubric {path} must have the keys {', '.join(keys)}.")
        for one in content["levels"]:
            if not isinstance(one, dict) or sorted(one) != sorted(parts):
                raise ValueError(
                    f"Rubric {path}: each of levels must have the keys {', '.join(parts)}; got "
                    f"{one!r}."
                )
        levels = tuple(Level(**one) for one in content["levels"])
        return cls(**{**content, "levels": levels})


class UnreadableVerdict(ValueError):  # noqa: N818
    """An answer that does not follow the schema; the message says what is wrong with it."""


@dataclass(frozen=True)
class Verdict:
    """An answer, read.

    Attributes:
        reason: The judge's own words.
        findings: Its answers to the questions.
        level: The level that it gave.
    """

    reason: str
    findings: Mapping[str, bool]
    level: int


@dataclass(frozen=True)
class Token:
    """A generated token.

    Attributes:
        text: The token.
        logprobs: Natural logarithm of the probability of the likeliest tokens at its place, by
            text, itself among them.
    """

    text: str
    logprobs: Mapping[str, float]


def parse_verdict(text: str, rubric: Rubric) -> Verdict:
    """Reads an answer by the schema; nothing is guessed.

    White space and a code fence around the object are allowed.

    Raises:
        UnreadableVerdict: If the answer is no such object.
    """
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", text, re.DOTALL)
    try:
        found = json.loads(fenced[1] if fenced else text, object_pairs_hook=_no_key_twice)
    except json.JSONDecodeError as error:
        raise UnreadableVerdict("empty" if not text.strip() else "no JSON") from error
    if not isinstance(found, dict):
        raise UnreadableVerdict("no JSON object")
    wanted = {"reason": str, **dict.fromkeys(rubric.findings, bool), "level": int}
    for name in wanted:
        if name not in found:
            raise UnreadableVerdict(f"without {name}")
    for name, value in found.items():
        if name not in wanted:
            raise UnreadableVerdict("with another key")
        if type(value) is not wanted[name]:
            raise UnreadableVerdict(f"{name} is no {wanted[name].__name__}")
    if not 0 <= found["level"] < len(rubric.levels):
        raise UnreadableVerdict("level out of range")
    return Verdict(found["reason"], {name: found[name] for name in rubric.findings}, found["level"])


def expected_score(tokens: Sequence[Token], rubric: Rubric) -> float | None:
    """Expectation of the score over the levels that the judge could have given.

    Sum of p(level) * score(level) over the levels among the alternatives of the token that holds
    the level, p normalised over them.

    Args:
        tokens: The whole answer.
        rubric: Whose levels they are.

    Returns:
        None where no token holds the level, or less than half of the probability lies on levels.
    """
    text = "".join(one.text for one in tokens)
    places = [match.start(1) for match in re.finditer(r'"level"\s*:\s*(\d)', text)]
    if not places:
        return None
    begin, number = 0, 0
    while begin + len(tokens[number].text) <= places[-1]:
        begin += len(tokens[number].text)
        number += 1
    token, cut = tokens[number], places[-1] - begin
    # The digit may stand in one token with what is around it.
    before, after = token.text[:cut].strip(), token.text[cut + 1 :].strip()
    weights = [0.0] * len(rubric.levels)
    for alternative, logprob in token.logprobs.items():
        plain = alternative.strip()
        if not plain.startswith(before) or not plain.endswith(after):
            continue
        digit = plain[len(before) : len(plain) - len(after)].strip()
        if re.fullmatch("[0-9]", digit) and int(digit) < len(weights):
            weights[int(digit)] += math.exp(logprob)
    mass = sum(weights)
    if mass < MASS:
        return None
    scores = [one.score for one in rubric.levels]
    return sum(weight * score for weight, score in zip(weights, scores, strict=True)) / mass


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise UnreadableVerdict("with a key twice")
    return found


def read_yaml(path: Path, what: str) -> Any:
    """What stands in a YAML file; `what` it is begins the messages."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{what} {path} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{what} {path} is no valid YAML: {error}") from error
