"""LLM as a judge: how much rationales have to do with the task, 0 to 1 (Table 6).

The judge answers questions about a text and gives it one of a few levels. It is asked several
times, along with anchor texts whose level is known; scores that people gave to some of the texts
correct its mean. Who is asked is the caller's business: a function from requests to answers.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, variance
from typing import Any

from rbft.card import Card
from rbft.rationales.calibration import Estimate, Key, calibrated_mean, mean_of
from rbft.rationales.rubric import (
    Rubric,
    Token,
    UnreadableVerdict,
    expected_score,
    parse_verdict,
    read_yaml,
)
from rbft.rationales.words import WORD

ANCHORS = Path(__file__).with_name("anchors")  # <card>.yaml
REPEATS = 3
MAX_WORDS = 400
HALF_A_LEVEL = 0.125


@dataclass(frozen=True)
class Item:
    """A text to grade.

    Attributes:
        condition: What is compared, such as the prompt's name; the judge is never told.
        id: The clip's id.
        rationale: The text.
        label: The clip's class.
        expected: For an anchor, the score that it should get.
    """

    condition: str
    id: str
    rationale: str
    label: int | None = None
    expected: float | None = None

    @property
    def key(self) -> Key:
        """Condition and id."""
        return self.condition, self.id


@dataclass(frozen=True)
class Request:
    """One question to the judge.

    Attributes:
        key: What its answer is known by.
        prompt: The whole prompt; there is nothing else to show.
        schema: JSON schema that the answer should follow, for engines that can enforce one.
        seed: For engines that take one: another for each repeat.
    """

    key: str
    prompt: str
    schema: Mapping[str, Any]
    seed: int


@dataclass(frozen=True)
class Answer:
    """What the judge answered.

    Attributes:
        text: The answer; empty where there is none.
        tokens: Its tokens, where the engine gives log-probabilities.
        model: The model that answered, as the engine names it.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    model: str = ""


Ask = Callable[[Sequence[Request]], Sequence[Answer]]


@dataclass(frozen=True)
class ItemScore:
    """What the judge gave one text.

    Attributes:
        item: The text.
        scores: Of each readable answer.
        unreadable: Why each of the other answers could not be read.
    """

    item: Item
    scores: tuple[float, ...]
    unreadable: tuple[str, ...] = ()

    @property
    def mean(self) -> float | None:
        """Mean over the repeats, None where no answer could be read."""
        return fmean(self.scores) if self.scores else None


@dataclass(frozen=True)
class JudgeReport:
    """What the judge gave all texts.

    Attributes:
        items: Each text's scores, in the order of the texts.
        anchors: The anchors' scores.
        models: Number of answers of each model.
        expectations: Number of answers whose score is an expectation over log-probabilities.
        inconsistent: Number of answers whose level is not the one of their own findings.
        shortened: Number of texts that were longer than allowed and were cut.
        rubric: Name and digest of the rubric.
    """

    items: tuple[ItemScore, ...]
    anchors: tuple[ItemScore, ...] = ()
    models: Mapping[str, int] = field(default_factory=dict)
    expectations: int = 0
    inconsistent: int = 0
    shortened: int = 0
    rubric: str = ""

    @property
    def conditions(self) -> list[str]:
        """Names of the conditions, in order."""
        return list(dict.fromkeys(one.item.condition for one in self.items))

    @property
    def unreadable(self) -> Counter[str]:
        """Number of answers that could not be read, by what was wrong with them."""
        return Counter(why for one in (*self.items, *self.anchors) for why in one.unreadable)

    @property
    def spread(self) -> float | None:
        """The judge's own standard deviation: of its scores for one and the same text.

        The root of the mean variance over the texts that have two scores or more; None where none
        has.
        """
        found = [
            variance(one.scores) for one in (*self.items, *self.anchors) if len(one.scores) > 1
        ]
        return math.sqrt(fmean(found)) if found else None

    def scores(self, condition: str) -> dict[Key, float]:
        """Mean score of each text of a condition that has one."""
        return {
            one.item.key: one.mean
            for one in self.items
            if one.item.condition == condition and one.mean is not None
        }

    def mean(self, condition: str) -> Estimate:
        """Mean over a condition's texts, with a normal interval over texts.

        Raises:
            ValueError: If no text of the condition has a score.
        """
        values = list(self.scores(condition).values())
        if not values:
            raise ValueError(
                f"The judge gave no readable answer for '{condition}' ({_listed(self.unreadable)})."
            )
        return mean_of(values)

    def calibrated(self, condition: str, human: Mapping[Key, float]) -> Estimate:
        """Mean over a condition's texts, corrected by the scores that people gave to some of them.

        Args:
            condition: The condition.
            human: Scores from 0 to 1 by condition and id; others than this condition's may be
                among them.
        """
        mine = {key: value for key, value in human.items() if key[0] == condition}
        return calibrated_mean(self.scores(condition), mine)

    @property
    def misplaced(self) -> dict[str, tuple[float, float | None]]:
        """Anchors that are half a level or more from where they belong: expected and given."""
        return {
            one.item.id: (one.item.expected, one.mean)
            for one in self.anchors
            if one.item.expected is not None
            and (one.mean is None or abs(one.mean - one.item.expected) >= HALF_A_LEVEL)
        }

    def drift(self, before: Mapping[str, float]) -> dict[str, tuple[float, float]]:
        """Anchors that the judge now scores half a level or more away from an earlier run.

        Args:
            before: Mean score of each anchor then.

        Returns:
            Score then and now.
        """
        now = self.anchor_scores()
        return {
            name: (before[name], value)
            for name, value in now.items()
            if name in before and abs(value - before[name]) >= HALF_A_LEVEL
        }

    def anchor_scores(self) -> dict[str, float]:
        """Mean score of each anchor, to be kept for `drift`."""
        return {one.item.id: one.mean for one in self.anchors if one.mean is not None}

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it, without the texts."""
        means = {name: self.mean(name) for name in self.conditions if self.scores(name)}
        return {
            "rubric": self.rubric,
            "models": dict(self.models),
            "means": {
                name: {"mean": one.value, "interval": [one.low, one.high], "n": one.n}
                for name, one in means.items()
            },
            "spread": self.spread,
            "unreadable": dict(self.unreadable),
            "inconsistent": self.inconsistent,
            "expectations": self.expectations,
            "shortened": self.shortened,
            "anchors": self.anchor_scores(),
            "misplaced": {name: list(pair) for name, pair in self.misplaced.items()},
            "items": [
                {"condition": one.item.condition, "id": one.item.id, "scores": list(one.scores)}
                for one in self.items
            ],
        }

    def __str__(self) -> str:
        lines = ["Task correlation, 0 to 1 (mean, 95 % interval over texts):"]
        for name in self.conditions:
            has = bool(self.scores(name))
            lines.append(f"  {name}: {self.mean(name) if has else 'no readable answer'}")
        if self.spread is not None:
            lines.append(f"The judge's own spread: {self.spread:.3f} (sd over a text's repeats).")
        bad, answers = self.unreadable, sum(self.models.values())
        lines.append(
            f"{answers} answers ({_listed(self.models)}): {bad.total()} unreadable"
            f"{f' ({_listed(bad)})' if bad else ''}, {self.inconsistent} with a level that "
            f"contradicts their own findings, {self.expectations} scored by log-probabilities."
        )
        if self.shortened:
            lines.append(f"{self.shortened} texts were too long and were cut.")
        for name, (expected, given) in self.misplaced.items():
            shown = "nothing" if given is None else f"{given:.2f}"
            lines.append(f"Anchor '{name}' should get {expected:.2f} and got {shown}.")
        return "\n".join(lines)


def judge(
    items: Sequence[Item],
    card: Card,
    ask: Ask,
    *,
    rubric: Rubric,
    anchors: Sequence[Item] = (),
    repeats: int = REPEATS,
    max_words: int | None = MAX_WORDS,
    show_label: bool = False,
    seed: int = 0,
) -> JudgeReport:
    """Has texts graded.

    All requests are made at once, in an order drawn by lot over conditions, texts, anchors and
    repeats, so that a change of the judge over time falls on no condition more than on another.
    Prompts name neither condition nor clip; texts are stripped of Markdown and cut to a length, so
    that layout and length do not speak for them.

    Args:
        items: The texts.
        card: The task.
        ask: From requests to as many answers in the same order.
        rubric: What is asked.
        anchors: Texts of known level, see `load_anchors`.
        repeats: How often each is graded.
        max_words: Words of a text that are shown; None shows all.
        show_label: Whether the judge is told the clip's class. The paper does not say.
        seed: Of the order, and of the requests.

    Raises:
        ValueError: If a text stands twice, a label is needed and missing, a number is out of
            range, or `ask` returns another number of answers.
    """
    if repeats < 1 or (max_words is not None and max_words < 1):
        raise ValueError(
            f"repeats ({repeats}) and max_words ({max_words}) must be 1 or more; max_words may be "
            "null."
        )
    everything = [*items, *anchors]
    twice = [key for key, count in Counter(one.key for one in everything).items() if count > 1]
    if twice:
        raise ValueError(
            f"'{twice[0][1]}' of '{twice[0][0]}' is to be graded twice. Give each text of a "
            "condition an id of its own; how often one is graded is `repeats`."
        )
    if show_label and (lacking := [one.id for one in items if one.label is None]):
        raise ValueError(
            f"{len(lacking)} texts have no label to show to the judge (first: {lacking[0]}). Leave "
            "them out, or set show_label to false."
        )
    shortened, requests, places = 0, [], []
    for place, one in enumerate(everything):
        text, cut = plain_text(one.rationale, max_words)
        shortened += cut
        # An anchor has no label: its text is of no clip.
        prompt = rubric.ask(text, card, one.label if show_label else None)
        for repeat in range(repeats):
            key = hashlib.sha256(json.dumps([seed, prompt, repeat, place]).encode()).hexdigest()
            requests.append(Request(key[:16], prompt, rubric.schema, seed + repeat))
            places.append(place)
    order = sorted(range(len(requests)), key=lambda number: requests[number].key)
    answers = ask([requests[number] for number in order])
    if len(answers) != len(requests):
        raise ValueError(
            f"The judge was asked {len(requests)} questions and gave {len(answers)} answers; each "
            "needs one, if only an empty one."
        )
    scores: list[list[float]] = [[] for _ in everything]
    unreadable: list[list[str]] = [[] for _ in everything]
    models: Counter[str] = Counter()
    expectations = inconsistent = 0
    for number, answer in sorted(zip(order, answers, strict=True), key=lambda pair: pair[0]):
        models[answer.model or "unnamed"] += 1
        try:
            verdict = parse_verdict(answer.text, rubric)
        except UnreadableVerdict as error:
            unreadable[places[number]].append(str(error))
            continue
        inconsistent += rubric.level_of(verdict.findings) != verdict.level
        expected = expected_score(answer.tokens, rubric)
        expectations += expected is not None
        score = rubric.levels[verdict.level].score if expected is None else expected
        scores[places[number]].append(score)
    graded = tuple(
        ItemScore(one, tuple(given), tuple(bad))
        for one, given, bad in zip(everything, scores, unreadable, strict=True)
    )
    return JudgeReport(
        items=graded[: len(items)],
        anchors=graded[len(items) :],
        models=dict(models),
        expectations=expectations,
        inconsistent=inconsistent,
        shortened=shortened,
        rubric=f"{rubric.name} {rubric.digest}",
    )


def load_anchors(path: Path, rubric: Rubric) -> list[Item]:
    """Reads anchor texts: a list with `id`, `level` and `text` of each.

    Raises:
        ValueError: If the file cannot be read, is no such list, or a level has no anchor.
    """
    content = read_yaml(path, "Anchor file")
    keys = {"id": str, "level": int, "text": str}
    if not isinstance(content, list) or not all(
        isinstance(one, dict) and {name: type(value) for name, value in one.items()} == keys
        for one in content
    ):
        wanted = ", ".join(f"{name} ({kind.__name__})" for name, kind in keys.items())
        raise ValueError(f"Anchor file {path} must be a list of entries with {wanted}.")
    levels = {one["level"] for one in content}
    numbers = {one.level for one in rubric.levels}
    if levels != numbers:
        raise ValueError(
            f"Anchor file {path} has texts of the levels {sorted(levels)}; it must have some of "
            f"each of {sorted(numbers)}."
        )
    return [
        Item("anchor", one["id"], one["text"], expected=rubric.levels[one["level"]].score)
        for one in content
    ]


def plain_text(text: str, max_words: int | None = None) -> tuple[str, bool]:
    """A text without Markdown, cut behind a number of words.

    Returns:
        The text, and whether it was cut.
    """
    plain = re.sub(r"(?m)^[ \t]*(?:#{1,6}|>|[-*+])[ \t]+", "", text)
    plain = re.sub(r"\*\*|__|`+|(?<!\w)[*_](?=\w)|(?<=\w)[*_](?!\w)", "", plain).strip()
    if max_words is not None:
        for number, match in enumerate(WORD.finditer(plain), 1):
            if number > max_words:
                return plain[: match.start()].rstrip(), True
    return plain, False


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
