"""The rationale of each clip of a split, as a stage learns it: own or human, selected, by rules."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from rbft.card import Card
from rbft.clip import Clip
from rbft.data.rationales import RationaleStore, mix
from rbft.rationales.controls import Control, apply_control
from rbft.rationales.quality import QualityReport, QualityRules, apply_rules
from rbft.rationales.sample import CUT, Sample


@dataclass(frozen=True)
class LearntRationales:
    """The rationales of a split that a stage learns.

    Attributes:
        samples: By clip id. Clips that the selection drops, whose rationale breaks the rules, or
            that could not be decoded when rationales were written have none.
        report: What the rules found; None where none are set.
        dropped: Ids of the clips that the selection drops.
        undecodable: Ids of the clips that could not be decoded when rationales were written.
    """

    samples: Mapping[str, Sample]
    report: QualityReport | None = None
    dropped: Set[str] = frozenset()
    undecodable: Set[str] = frozenset()

    @property
    def texts(self) -> dict[str, str]:
        """Rationale by clip id."""
        return {name: one.text for name, one in self.samples.items()}

    @property
    def cut(self) -> set[str]:
        """Ids of the clips whose rationale was cut off when it was written."""
        return {name for name, one in self.samples.items() if one.finish == CUT}

    @property
    def label_conditioned(self) -> list[str]:
        """Ids of the clips whose rationale's writer was told the class."""
        return [name for name, one in self.samples.items() if one.label_conditioned]

    def counts(self) -> dict[str, int | float]:
        """How many rationales are learnt, how many of them were cut off, and their share.

        And how many of them are label-conditioned, where any is.
        """
        learnt, cut, told = len(self.samples), len(self.cut), len(self.label_conditioned)
        found = {"learnt": learnt, "cut": cut, "share_cut": round(cut / max(learnt, 1), 4)}
        return {**found, "label_conditioned": told} if told else found

    def why_without(self, clips: Iterable[Clip]) -> dict[str, str]:
        """Why clips that can be decoded have no rationale, by id, as the end of a sentence.

        Args:
            clips: The clips of the split.
        """
        selection = "has no rationale that leads to its class (data.rationale_selection verified)."
        rules = "has a rationale that breaks data.rationale_rules."
        return {
            clip.id: selection if clip.id in self.dropped else rules
            for clip in clips
            if clip.id not in self.samples and clip.id not in self.undecodable
        }


def learnt_rationales(
    clips: Sequence[Clip],
    store: RationaleStore | None,
    card: Card,
    *,
    ratio: float,
    seed: int,
    rules: QualityRules | None = None,
    control: Control | None = None,
) -> LearntRationales:
    """The rationales of a split that a stage learns.

    Args:
        clips: The clips of the split.
        store: The rationale file; None where all rationales are human.
        card: The classes.
        ratio: Share of the clips that take the self-generated rationale, see `mix`.
        seed: Seed of which clips these are.
        rules: Rules that a rationale must keep.
        control: What is made of those that are left, see `rbft.rationales.controls`.

    Raises:
        ValueError: If a clip lacks the rationale that it should take, or selection or rules leave
            a class none.
    """
    lost = store.undecodable() if store is not None else set()
    dropped = store.dropped() if store is not None else set()
    texts = store.texts() if store is not None else {}
    decodable = [clip for clip in clips if clip.id not in lost]
    # Which clips take their own does not depend on which are dropped.
    own: dict[str, Sample | None] = dict.fromkeys(dropped)
    for clip in decodable:
        if store is not None and clip.id in texts:
            one = Sample.of(store.records[clip.id], clip.label)
            own[clip.id] = replace(one, text=texts[clip.id])
    human = {
        clip.id: Sample(clip.id, clip.reference, clip.label)
        for clip in decodable
        if clip.reference is not None
    }
    mixed = mix(own, human, ratio, [clip.id for clip in decodable], seed)
    samples = {name: one for name, one in mixed.items() if one is not None}
    if len(samples) < len(mixed):
        _check_dropped(decodable, samples, card)
    report = None
    if rules is not None:
        report = apply_rules([*samples.values()], rules, card)
        samples = {one.clip: one for one in report.kept}
    if control is not None and samples:
        samples = apply_control(samples, control, [clip.id for clip in clips], seed)
    return LearntRationales(samples, report, dropped, lost)


def _check_dropped(clips: Sequence[Clip], samples: Mapping[str, Sample], card: Card) -> None:
    """Refuses a selection that leaves a class no rationale."""
    for label in sorted({clip.label for clip in clips if clip.label is not None}):
        ids = [clip.id for clip in clips if clip.label == label]
        if not any(name in samples for name in ids):
            raise ValueError(
                f"Of none of the {len(ids)} training clips of class '{card.classes[label]}' a "
                "rationale leads to that class (data.rationale_selection verified). Have more "
                "drawn (model.rationale_sampling.samples), set data.rationale_fallback to first "
                "or hint, or data.rationale_selection to first."
            )
