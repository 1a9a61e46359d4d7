"""Rules that rationales must keep, counted for each rule and each class.

The paper trains on every rationale as it was written, so every rule is off unless it is set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from rbft.card import Card
from rbft.rationales.filters import (
    Filter,
    FilterName,
    Language,
    Length,
    NearDuplicate,
    NoClassWords,
    Refusal,
    Repetition,
    Truncated,
    card_scripts,
    refusal_patterns,
)
from rbft.rationales.sample import Sample
from rbft.rationales.selection_report import told_note
from rbft.rationales.words import ClassWords
from rbft.runtime.ranges import check_ranges

PREFIX = "data.rationale_rules."
NAMED = 3  # clips that a line of the report names


@dataclass(frozen=True)
class QualityRules:
    """Rules that rationales must keep to be trained on.

    Paper: it trains on every rationale as written, so all rules are off.

    Args:
        min_words: Fewest words of a rationale; null sets no bound. In Chinese and Japanese each
            character counts as a word.
        max_words: Most words of a rationale; null sets no bound.
        min_tokens: Fewest tokens, as its writer counts them; null sets no bound.
        max_tokens: Most tokens; null sets no bound.
        max_repetition: Largest share of a rationale's n-grams that stood in it before (0 to 1);
            null allows all.
        repetition_ngram: Words of an n-gram for `max_repetition`.
        truncated: Whether those that the limit of tokens cut off break a rule.
        refusals: Whether refusals and texts that say there is no video break a rule.
        class_words: Whether texts that hold a class word or class name of the card break a rule.
        min_script_share: Smallest share of letters in the scripts (Latin, Chinese, Cyrillic, ...)
            that the card's prompts are written in; null allows all.
        max_similarity: Share of common shingles (Jaccard similarity) from which on a rationale is
            a near-duplicate of another clip's; the first one stays. null allows all.
        similarity_ngram: Words of a shingle for `max_similarity`.
        only_flag: Rules whose breach is counted and shown, but drops nothing: of length,
            repetition, truncated, refusal, class_words, language, near_duplicate.
    """

    min_words: int | None = None
    max_words: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    max_repetition: float | None = None
    repetition_ngram: int = 4
    truncated: bool = False
    refusals: bool = False
    class_words: bool = False
    min_script_share: float | None = None
    max_similarity: float | None = None
    similarity_ngram: int = 3
    only_flag: tuple[FilterName, ...] = ("class_words",)

    def __post_init__(self) -> None:
        check_ranges(PREFIX, vars(self))
        for unit in ("words", "tokens"):
            least, most = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if least is not None and most is not None and least > most:
                raise ValueError(
                    f"{PREFIX}min_{unit} ({least}) is above {PREFIX}max_{unit} ({most}): no "
                    "rationale can keep both. Swap them, or set one to null."
                )
        unknown = [name for name in self.only_flag if name not in get_args(FilterName)]
        if unknown:
            raise ValueError(
                f"{PREFIX}only_flag names {unknown[0]!r}; the rules are "
                f"{', '.join(get_args(FilterName))}."
            )

    def filters(self, card: Card) -> tuple[Filter, ...]:
        """The filters of the rules that are set; near-duplicates last.

        Args:
            card: Whose class words and prompts count.
        """
        found: list[Filter] = []
        bounds = (self.min_words, self.max_words, self.min_tokens, self.max_tokens)
        if bounds != (None,) * 4:
            found.append(Length(*bounds))
        if self.max_repetition is not None:
            found.append(Repetition(self.max_repetition, self.repetition_ngram))
        if self.truncated:
            found.append(Truncated())
        if self.refusals:
            found.append(Refusal(refusal_patterns()))
        if self.class_words:
            found.append(NoClassWords(ClassWords.of(card)))
        if self.min_script_share is not None:
            found.append(Language(card_scripts(card), self.min_script_share))
        if self.max_similarity is not None:
            found.append(NearDuplicate(self.max_similarity, self.similarity_ngram))
        return tuple(found)


@dataclass(frozen=True)
class Flag:
    """A rationale that breaks a rule.

    Attributes:
        clip: The clip's id.
        number: Which of its samples.
        filter: The rule's name.
        reason: How it breaks it.
        dropped: Whether that drops the rationale, or is only shown.
    """

    clip: str
    number: int
    filter: FilterName
    reason: str
    dropped: bool


@dataclass(frozen=True)
class QualityReport:
    """What the rules found.

    Attributes:
        kept: The samples that remain, in the given order.
        flags: Every breach of a rule, by filter and then in the samples' order.
        settings: What each filter that is on is set to, by its name.
        samples: Number of samples that came in.
        clips: Clips with a rationale before and after, by class name; "no label" for the rest.
    """

    kept: tuple[Sample, ...]
    flags: tuple[Flag, ...]
    settings: Mapping[str, str]
    samples: int
    clips: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def by_sample(self) -> dict[tuple[str, int], tuple[Flag, ...]]:
        """Flags of each sample that has any, by clip and sample number."""
        found: dict[tuple[str, int], tuple[Flag, ...]] = {}
        for flag in self.flags:
            key = (flag.clip, flag.number)
            found[key] = (*found.get(key, ()), flag)
        return found

    @property
    def dropped(self) -> dict[str, list[str]]:
        """Ids of the clips of the samples that each filter dropped, one for each sample."""
        return {
            name: [flag.clip for flag in self.flags if flag.filter == name and flag.dropped]
            for name in self.settings
        }

    @property
    def alone(self) -> dict[str, int]:
        """Number of samples that no other filter than this one dropped."""
        droppers = [
            [one.filter for one in flags if one.dropped] for flags in self.by_sample.values()
        ]
        only = [names[0] for names in droppers if len(names) == 1]
        return {name: only.count(name) for name in self.settings}

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it, without the texts."""
        return {
            "samples": self.samples,
            "kept": len(self.kept),
            "label_conditioned": [one.clip for one in self.kept if one.label_conditioned],
            "filters": dict(self.settings),
            "dropped": self.dropped,
            "dropped_by_it_alone": self.alone,
            "flags": [asdict(flag) for flag in self.flags],
            "clips": {name: list(counts) for name, counts in self.clips.items()},
        }

    def __str__(self) -> str:
        if not self.settings:
            told = sum(one.label_conditioned for one in self.kept)
            note = f" {told_note(told)}" if told else ""
            return f"No rules are set for rationales: all {self.samples} are kept.{note}"
        flagged = {name: sum(flag.filter == name for flag in self.flags) for name in self.settings}
        lines = [f"{len(self.kept)} of {self.samples} rationales keep the rules."]
        rows = [("rule", "set to", "break it", "dropped", "by it alone", "clips")]
        for name, setting in self.settings.items():
            ids = list(dict.fromkeys(flag.clip for flag in self.flags if flag.filter == name))
            more = f", ... ({len(ids)})" if len(ids) > NAMED else ""
            rows.append(
                (
                    name,
                    setting,
                    str(flagged[name]),
                    str(len(self.dropped[name])),
                    str(self.alone[name]),
                    ", ".join(ids[:NAMED]) + more,
                )
            )
        lines += _table(rows)
        rows = [("class", "clips before", "after")]
        rows += [(name, str(before), str(after)) for name, (before, after) in self.clips.items()]
        told = sum(one.label_conditioned for one in self.kept)
        return "\n".join([*lines, *_table(rows), *([told_note(told)] if told else [])])


def apply_rules(samples: Sequence[Sample], rules: QualityRules, card: Card) -> QualityReport:
    """Drops the rationales that break the rules.

    Every filter sees all samples, so that its count does not depend on the others; but
    near-duplicates are looked for among those that the others leave, so that a text is not dropped
    for being like one that is dropped itself.

    Args:
        samples: All rationales; a clip may have several.
        rules: The rules.
        card: Whose classes, class words and prompts count.

    Raises:
        ValueError: If a class had rationales and is left with none.
    """
    flags: list[Flag] = []
    gone: set[int] = set()
    filters = rules.filters(card)
    for one in filters:
        late = isinstance(one, NearDuplicate)
        places = [place for place in range(len(samples)) if not (late and place in gone)]
        drops = one.name not in rules.only_flag
        for among, reason in sorted(one([samples[place] for place in places]).items()):
            sample = samples[places[among]]
            flags.append(Flag(sample.clip, sample.number, one.name, reason, drops))
            if drops:
                gone.add(places[among])
    kept = tuple(sample for place, sample in enumerate(samples) if place not in gone)
    names = [*card.classes, *(["no label"] if any(one.label is None for one in samples) else [])]
    before, after = _clips_by_class(samples, names), _clips_by_class(kept, names)
    for name in card.classes:
        if before[name] and not after[name]:
            clips = {one.clip for one in samples if one.label == card.classes.index(name)}
            counts = {
                one.name: sum(
                    flag.dropped and flag.filter == one.name and flag.clip in clips
                    for flag in flags
                )
                for one in filters
            }
            reasons = ", ".join(f"{rule} {count}" for rule, count in counts.items() if count)
            raise ValueError(
                f"No rationale of class '{name}' keeps {PREFIX.rstrip('.')}: its "
                f"{before[name]} clips lose all theirs ({reasons}). Loosen these rules, name them "
                f"in {PREFIX}only_flag, or have the rationales written anew."
            )
    return QualityReport(
        kept=kept,
        flags=tuple(flags),
        settings={one.name: str(one) for one in filters},
        samples=len(samples),
        clips={name: (before[name], after[name]) for name in names},
    )


def _clips_by_class(samples: Sequence[Sample], names: Sequence[str]) -> dict[str, int]:
    clips = {sample.clip: sample.label for sample in samples}
    counts = dict.fromkeys(names, 0)
    for label in clips.values():
        counts[names[-1] if label is None else names[label]] += 1
    return counts


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        (
            "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
