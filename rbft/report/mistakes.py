"""The wrong answers that runs were surest of: clip by clip, with what every run said about it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rbft.report.conditions import Conditions
from rbft.report.gather import Gathered, GatheredRun
from rbft.report.results import Result

EACH, MOST = 5, 24  # clips of a run, and in all
LETTERS = 1500  # of a rationale


@dataclass(frozen=True)
class Said:
    """What a run said about a clip.

    Attributes:
        run: Its name.
        prediction: The class; None for an answer that is none.
        probability: Of that class; None where the answer was not scored.
        right: Whether it is the label.
        text: The rationale or the text that it wrote; empty where it wrote none.
    """

    run: str
    prediction: str | None
    probability: float | None
    right: bool
    text: str


@dataclass(frozen=True)
class Mistake:
    """A clip that a run was sure of and wrong about.

    Attributes:
        id: The clip's.
        label: Its class.
        letter: How its runs were scored, see `Conditions`.
        said: The answers of all runs that were scored alike, the surest wrong one first.
        video: What the run has noted of the clip: `video`, `start`, `end`; None where it has not.
        rationale: A rationale that was written about the clip for training; empty without one.
    """

    id: str
    label: str
    letter: str
    said: tuple[Said, ...]
    video: Mapping[str, Any] | None
    rationale: str = ""

    @property
    def confidence(self) -> float:
        """Of the surest wrong answer."""
        return self.said[0].probability or 0.0


def find_mistakes(
    gathered: Gathered,
    conditions: Conditions,
    clips: Mapping[tuple[str, str], Mapping[str, Any]],
) -> tuple[list[Mistake], int]:
    """The mistakes that runs were surest of, by their final results on the test split.

    Args:
        gathered: The runs.
        conditions: How they were scored.
        clips: What runs have noted of their clips, by run and id.

    Returns:
        At most 24 of them, the surest first, and how many wrong answers with probabilities there
        are in all.
    """
    finals = [one for run in gathered.runs if (one := _answers(run)) is not None]
    chosen: dict[tuple[str, str], None] = {}
    total = 0
    for one in finals:
        wrong = sorted(_wrong(one), key=lambda row: -_sure(row))
        total += len(wrong)
        chosen |= dict.fromkeys((conditions.of(one).letter, str(row["id"])) for row in wrong[:EACH])
    texts = {
        _about(one): str(one["rationale"])
        for lines in gathered.rationales.values()
        for one in lines
        if one.get("video") and one.get("rationale")
    }
    made = []
    for letter, name in chosen:
        alike = [one for one in finals if conditions.of(one).letter == letter]
        said = sorted(_said(alike, name), key=lambda one: (one.right, -(one.probability or 0.0)))
        label = next(row["label"] for one in alike for row in one.rows if row["id"] == name)
        video = next((clips[one.run, name] for one in alike if (one.run, name) in clips), None)
        text = "" if video is None else texts.get(_about(video), "")
        made.append(Mistake(name, label, letter, tuple(said), video, text))
    return sorted(made, key=lambda one: -one.confidence)[:MOST], total


def _about(one: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """What a clip or a rationale is about: an id is no proof."""
    return one.get("video"), one.get("start"), one.get("end")


def _answers(run: GatheredRun) -> Result | None:
    """Final results with answers."""
    final = run.final
    return final if final is not None and final.scored is not None else None


def _wrong(result: Result) -> Iterator[Mapping[str, Any]]:
    return (
        row
        for row in result.rows
        if row["prediction"] is not None
        and row["prediction"] != row["label"]
        and row.get("probabilities")
    )


def _sure(row: Mapping[str, Any]) -> float:
    return float(row["probabilities"][row["prediction"]])


def _said(results: Sequence[Result], name: str) -> Iterator[Said]:
    for one in results:
        for row in one.rows:
            if row["id"] != name:
                continue
            answer = row["prediction"]
            sure = _sure(row) if answer is not None and row.get("probabilities") else None
            text = str(row.get("rationale") or row.get("text") or "").strip()
            if len(text) > LETTERS:
                text = f"{text[:LETTERS]} ..."
            yield Said(one.run, answer, sure, answer == row["label"], text)
