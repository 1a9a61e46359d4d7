"""What `verified` selected: how many clips take which rationale, in each class."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rbft.runtime.console import table

# What a clip takes: a sample that leads to its class, one whose writer was told the class, its
# first sample although it leads to another class, or nothing.
Way = Literal["right", "hinted", "first", "dropped"]
TITLES: dict[Way, str] = {
    "right": "right class",
    "hinted": "label-conditioned",
    "first": "first, wrong class",
    "dropped": "dropped",
}
NAMED = 3  # clips that a line of the report names


@dataclass(frozen=True)
class SelectionReport:
    """Counts of the selection of the training clips' rationales by their elicited class.

    Attributes:
        fallback: What was to be done with clips of which no sample is right.
        ways: What each clip takes, by id.
        classes: The name of each clip's class, by id.
        names: Names of all classes, in the card's order.
        asked: Rationales whose class was elicited; those of a second try do not count.
        right: How many of them lead to the right class.
    """

    fallback: str
    ways: Mapping[str, Way]
    classes: Mapping[str, str]
    names: tuple[str, ...]
    asked: int
    right: int

    def clips(self, way: Way) -> list[str]:
        """Ids of the clips that take such a rationale."""
        return [name for name, own in self.ways.items() if own == way]

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of clips by class and by what they take."""
        found = {name: dict.fromkeys(get_args(Way), 0) for name in self.names}
        for clip, way in self.ways.items():
            found[self.classes[clip]][way] += 1
        return found

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {
            "selection": "verified",
            "fallback": self.fallback,
            "samples": self.asked,
            "right": self.right,
            "classes": self.counts(),
            "label_conditioned": self.clips("hinted"),
            "first": self.clips("first"),
            "dropped": self.clips("dropped"),
        }

    def __str__(self) -> str:
        share = f" ({self.right / self.asked:.1%})" if self.asked else ""
        lines = [
            f"{self.right} of {self.asked} rationales lead to the right class{share}. What the "
            f"{len(self.ways)} training clips take:"
        ]
        ways: list[Way] = [way for way in TITLES if way == "right" or self.clips(way)]
        rows = [[name, *(str(own[way]) for way in ways)] for name, own in self.counts().items()]
        lines.append(table(rows, ["class", *(TITLES[way] for way in ways)]))
        for way in ways[1:]:
            ids = self.clips(way)
            more = f", ... ({len(ids)})" if len(ids) > NAMED else ""
            lines.append(f"{TITLES[way]}: {', '.join(ids[:NAMED])}{more}")
        if told := self.clips("hinted"):
            lines.append(told_note(len(told)))
        return "\n".join(lines)


def told_note(count: int) -> str:
    """The sentence that stands wherever label-conditioned rationales are used.

    Args:
        count: How many of the rationales are.
    """
    what, whose = ("rationale is", "its") if count == 1 else ("rationales are", "their")
    return (
        f"{count} {what} label-conditioned: {whose} writer was told the class, which the paper's "
        "never is. Results do not compare with the paper's."
    )
