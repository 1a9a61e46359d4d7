"""Which rationale each clip takes, where the model must name the right class behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rbft.data.base import VideoDataModule
from rbft.data.content import about_clips
from rbft.data.elicited import ElicitedClasses
from rbft.data.rationales import NOT_DETERMINING, Chosen, RationaleStore, by_number
from rbft.rationales.sample import Sample, samples_of
from rbft.rationales.selection import Elicited, Selection, add_hinted, select
from rbft.rationales.selection_report import SelectionReport, Way
from rbft.runs.folder import TOLD
from rbft.runs.record import digest
from rbft.stages import ELICITED, RATIONALE_STAGE, Stage

Lines = Mapping[str, Sequence[dict[str, Any]]]  # of each clip, by number of the sample
QUESTION = ELICITED


@dataclass(frozen=True)
class Verified:
    """Rejection sampling: a training clip takes a rationale that leads to its class.

    A clip takes the first of its samples behind which the model names its label. Clips without
    such a sample are treated by `fallback`. Clips that are not trained on take their first sample:
    their labels are never looked at.

    Attributes:
        elicited: The class behind each rationale.
        labels: Class of each training clip, by id.
        fallback: What clips take whose samples are all wrong: `drop` nothing, `first` the first
            sample, `hint` the first right one of a second try, whose writer was told the class.
        hinted: The rationales of the second try; None unless `fallback` is hint.
    """

    elicited: ElicitedClasses
    labels: Mapping[str, int | None]
    fallback: Literal["drop", "first", "hint"] = "drop"
    hinted: RationaleStore | None = None

    def __call__(self, written: Lines) -> Chosen:
        """The line that each clip takes; none while classes behind some of its are not known."""
        own = self._select(written)
        lines = {name: by_number(written[name])[one.number] for name, one in own.chosen.items()}
        ways: dict[str, Way] = {
            name: "hinted" if line.get(TOLD) else "right" for name, line in lines.items()
        }
        if self.hinted is not None:
            told, wrong = self._second_try(self.hinted, own)
            lines |= told
            ways |= {**dict.fromkeys(told, "hinted"), **dict.fromkeys(wrong, "dropped")}
        elif self.fallback == "first":
            lines |= {name: written[name][0] for name in own.lacking}
            ways |= dict.fromkeys(own.lacking, "first")
        else:
            ways |= dict.fromkeys(own.lacking, "dropped")
        lines |= {name: own[0] for name, own in written.items() if name not in self.labels}
        return Chosen({name: lines[name] for name in written if name in lines}, ways)

    def lacking(self, written: Lines) -> list[str]:
        """Clips whose own samples are all known to lead to a wrong class."""
        return list(self._select(written).lacking)

    def to_verify(self, written: Lines) -> list[dict[str, Any]]:
        """The lines that the model is asked about: those of training clips."""
        return [line for name, lines in written.items() if name in self.labels for line in lines]

    def report(
        self, written: Lines, ways: Mapping[str, Way], classes: Sequence[str]
    ) -> SelectionReport:
        """How many clips take what, and how often the model was right.

        Args:
            written: The clips' own lines.
            ways: See `rbft.data.rationales.Chosen`.
            classes: Names of the classes.
        """
        lines = [one for one in self.to_verify(written) if self.elicited.knows(one)]
        right = sum(self.elicited.index(one) == self.labels[one["id"]] for one in lines)
        names = {name: classes[label or 0] for name, label in self.labels.items() if name in ways}
        return SelectionReport(self.fallback, ways, names, tuple(classes), len(lines), right)

    def _select(self, written: Lines) -> Selection:
        known = self._known({name: one for name, one in written.items() if name in self.labels})
        samples = samples_of([line for lines in known.values() for line in lines], self.labels)
        allowed = self.hinted is not None
        return select(samples, "verified", self._classes(known), allow_label_conditioned=allowed)

    def _second_try(
        self, hinted: RationaleStore, own: Selection
    ) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """The lines that clips take of the second try, and the clips that it was in vain for.

        Clips whose second try is not written, or about which the model was not asked, are neither.
        """
        left, lost = set(own.lacking), hinted.undecodable()
        tried = self._known({name: one for name, one in hinted.by_clip().items() if name in left})
        samples = [Sample.of(line, self.labels[name]) for name in tried for line in tried[name]]
        found = add_hinted(own, samples, self._classes(tried)).chosen
        # Marked here too, where the mark in the file is lost.
        told = {
            name: {**by_number(lines)[found[name].number], TOLD: True}
            for name, lines in tried.items()
            if name in found
        }
        ended = {*tried, *lost}
        return told, [name for name in own.lacking if name in ended and name not in told]

    def _known(self, written: Lines) -> Lines:
        """The clips about all of whose samples the model was asked."""
        return {
            name: lines for name, lines in written.items() if all(map(self.elicited.knows, lines))
        }

    def _classes(self, known: Lines) -> Elicited:
        return {
            (name, number): self.elicited.index(line)
            for name, lines in known.items()
            for number, line in by_number(lines).items()
        }


def verified_beside(
    path: Path,
    made_from: Mapping[str, Any],
    data: VideoDataModule,
    samples: int,
    question: Stage = RATIONALE_STAGE,
) -> Verified:
    """The selection by elicited class, whose files stand beside the rationale file.

    They are `<stem>-classes-<digest>.jsonl` and, for the second try,
    `<stem>-hinted-<digest>.jsonl`; the digests are of what determines them, so other words, hints
    or frames are other files.

    Args:
        path: The rationale file.
        made_from: What determines the rationales.
        data: The benchmark, with the prompt that asks for the rationales.
        samples: Rationales a clip.
        question: The stage whose question asked for the rationales.
    """
    card, train = data.card, data.clips("train")
    apart = ("prompt", "generation")  # what decides the rationale, but not the class behind it
    asked = {name: value for name, value in made_from.items() if name not in apart}
    asked |= {"question": card.shown(QUESTION.prompts)}
    elicited = ElicitedClasses(
        _beside(path, "classes", asked), asked, about_clips(data, train, QUESTION), card.classes
    )
    hinted = None
    if data.rationale_fallback == "hint":
        hint = data.rationale_hint
        told = {**made_from, "hint": hint, "words": dict(card.words)}
        # Its lines are about another prompt than the clip's own, so neither passes for the other.
        asked_again = about_clips(data, train, replace(question, hint=hint))
        hinted = RationaleStore(
            _beside(path, "hinted", told),
            told,
            {name: {**one, TOLD: True} for name, one in asked_again.items()},
            samples=samples,
        )
    labels = {clip.id: clip.label for clip in train}
    return Verified(elicited, labels, data.rationale_fallback, hinted)


def _beside(path: Path, what: str, made_from: Mapping[str, Any]) -> Path:
    known = digest({name: one for name, one in made_from.items() if name != NOT_DETERMINING})
    return path.with_name(f"{path.stem}-{what}-{known[:8]}.jsonl")
