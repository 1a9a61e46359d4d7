"""Which results may stand side by side: those scored on the same clips in the same way."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rbft.report.results import Result
from rbft.runtime.differences import flat

# Results are of different weights and stages, and masked or not, on purpose.
NOT_CONDITIONS = ("weights", "stage", "masking")
WORDS = {
    "card": "words (card)",
    "clips": "videos, order or annotations of the clips",
    "answer": "way to answer",
    "quantize": "quantisation",
}


@dataclass(frozen=True)
class Condition:
    """A way to score, with a letter that tables mark it with.

    Attributes:
        letter: "A" is the way of most results.
        text: What it is.
        first: A result that was made so.
        base: Letter of the way that it is nearest to; empty where no other has its classes.
        against: In what it differs from that one.
    """

    letter: str
    text: str
    first: Result
    base: str = ""
    against: str = ""


class Conditions:
    """The ways in which results were scored.

    Args:
        results: All results of the report.
    """

    def __init__(self, results: Sequence[Result]) -> None:
        keys = [_key(one) for one in results]
        counted = Counter(keys)
        # By number of results; of as many, in the order of the runs.
        ordered = sorted(counted, key=lambda key: (-counted[key], keys.index(key)))
        self._known: dict[str, Condition] = {}
        for place, key in enumerate(ordered):
            first = results[keys.index(key)]
            base = self._nearest(first)
            made = Condition(_letter(place), _whole(first), first)
            if base is not None:
                made = replace(made, base=base.letter, against=_against(first, base))
            self._known[key] = made

    def _nearest(self, result: Result) -> Condition | None:
        """Of the ways named so far the one with the same classes that differs in the least."""
        same = [one for one in self._known.values() if one.first.classes == result.classes]
        made = scored_as(result)
        return min(same, key=lambda one: len(_differing(made, scored_as(one.first))), default=None)

    def of(self, result: Result) -> Condition:
        """How a result was scored."""
        return self._known[_key(result)]

    def alike(self, one: Result, other: Result) -> bool:
        """Whether two results may be compared."""
        return _key(one) == _key(other)

    def used(self, results: Sequence[Result]) -> list[Condition]:
        """The ways of some results, each once, by letter."""
        found = {self.of(one).letter: self.of(one) for one in results}
        return [found[letter] for letter in sorted(found, key=lambda name: (len(name), name))]

    def legend(self, results: Sequence[Result]) -> list[str]:
        """A line for each way of some results, with why it cannot be compared with another of them.

        Args:
            results: Those of a table.
        """
        used = self.used(results)
        letters = {one.letter for one in used}
        return [
            f"{one.letter}: {one.text}"
            + (f"; not comparable with {one.base}: {one.against}" * (one.base in letters))
            for one in used
        ]


def scored_as(result: Result) -> dict[str, Any]:
    """What must be equal for two results to be compared, by dotted name.

    Which clips, by ids and labels where the answers are there and else by the ids alone; and what
    the results note besides, such as frames, words, videos, way to answer and precision.
    """
    made = result.content.get("made")
    noted = flat(made) if isinstance(made, dict) else {}
    found = {
        name: value
        for name, value in noted.items()
        if name.partition(".")[0] not in NOT_CONDITIONS and name != "endpoint.model"
    }
    if any(name.startswith("endpoint.") for name in noted):
        found["answer"] = "a server's"
    known = result.content.get("ids") if result.scored is None else result.scored.digest
    counts = json.dumps(result.content["classes"])
    return {"split": result.split, "ids and labels": known, "class counts": counts, **found}


def _key(result: Result) -> str:
    return json.dumps(scored_as(result), sort_keys=True, default=str)


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [name for name in dict.fromkeys([*other, *one]) if one.get(name) != other.get(name)]


def _whole(result: Result) -> str:
    made = scored_as(result)
    answer = {"score": "class words compared by probability", "generate": "answer written"}
    said = str(made.get("answer", "how it was answered is not noted"))
    parts = [f"{result.n} {result.split} clips (digest {made['ids and labels']})"]
    parts += [answer.get(said, said)]
    parts += [str(made["precision"])] if "precision" in made else []
    return ", ".join(parts)


def _against(result: Result, base: Condition) -> str:
    """In what a way to score differs from another, by name."""
    made, other = scored_as(result), scored_as(base.first)
    parts = []
    differing = _differing(made, other)
    if "split" in differing:
        parts.append(f"the {result.split} split instead of {base.first.split}")
    if "ids and labels" in differing:
        parts.append(_clips(result, base.first))
    skipped = {"split", "ids and labels", "class counts"}
    if "ids and labels" in differing:
        skipped.add("clips")  # other clips have other videos
    for name in differing:
        if name not in skipped:
            shown = WORDS.get(name, name)
            values = (str(made.get(name, "not noted")), str(other.get(name, "not noted")))
            parts.append(f"{shown} {values[0]} instead of {values[1]}")
    return "; ".join(parts)


def _clips(result: Result, other: Result) -> str:
    """In what clips differ."""
    if result.scored is None or other.scored is None:
        if result.content.get("ids") == other.content.get("ids"):
            return "the same ids, but the labels cannot be compared without the predictions"
        return f"other clips ({result.n} instead of {other.n})"
    common = len({*result.scored.ids} & {*other.scored.ids})
    if common == result.n == other.n:
        return f"the same {common} clips with other labels"
    return f"other clips ({result.n} instead of {other.n}, {common} in common)"


def _letter(place: int) -> str:
    """A to Z, then AA, AB, ..."""
    return (_letter(place // 26 - 1) if place >= 26 else "") + chr(ord("A") + place % 26)
