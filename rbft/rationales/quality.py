"""Rules that rationales must keep, counted for each rule and each class.

The paper trains on every rationale as it was written, so every rule is off unless it is set. A
filter is a small object: it takes all samples, and gives a reason for each that breaks its rule.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from math import ceil
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

import yaml

from rbft.card import Card
from rbft.rationales.sample import CUT, Sample
from rbft.rationales.words import ClassWords, scripts, words
from rbft.runtime.ranges import check_ranges

FilterName = Literal[
    "length",
    "repetition",
    "truncated",
    "refusal",
    "class_words",
    "language",
    "near_duplicate",
]
PREFIX = "data.rationale_rules."
FILTERED = "content_filter"  # finish reason of endpoints that withheld a text
SENTENCES = 3  # first sentences in which a refusal is looked for
SCRIPT_SHARE = 0.05  # of the prompts' letters; a script with fewer is that of a name or a term
KANA = {"HIRAGANA", "KATAKANA"}
NAMED = 3  # clips that a line of the report names


@runtime_checkable
class Filter(Protocol):
    """One rule.

    Attributes:
        name: What reports call it.
    """

    name: ClassVar[FilterName]

    def __call__(self, samples: Sequence[Sample]) -> dict[int, str]:
        """Why samples break the rule, by their place in the sequence; others are left out."""
        ...

    def __str__(self) -> str:
        """What the rule is set to."""
        ...


@dataclass(frozen=True)
class Length:
    """Bounds on the length.

    Attributes:
        min_words: Fewest words, None sets no bound.
        max_words: Most words.
        min_tokens: Fewest tokens of the writer; samples whose tokens nobody counted pass.
        max_tokens: Most tokens.
    """

    min_words: int | None = None
    max_words: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    name: ClassVar[FilterName] = "length"

    def __call__(self, samples: Sequence[Sample]) -> dict[int, str]:
        """Why samples break the rule, by place."""
        return _each(samples, self._reason)

    def _reason(self, sample: Sample) -> str | None:
        for count, least, most, unit in (
            (len(words(sample.text)), self.min_words, self.max_words, "words"),
            (sample.tokens, self.min_tokens, self.max_tokens, "tokens"),
        ):
            if count is not None and least is not None and count < least:
                return f"{count} {unit}, fewer than {least}"
            if count is not None and most is not None and count > most:
                return f"{count} {unit}, more than {most}"
        return None

    def __str__(self) -> str:
        bounds = {
            "words": (self.min_words, self.max_words),
            "tokens": (self.min_tokens, self.max_tokens),
        }
        return ", ".join(
            f"{'any' if least is None else least} to {'any' if most is None else most} {unit}"
            for unit, (least, most) in bounds.items()
            if (least, most) != (None, None)
        )


@dataclass(frozen=True)
class Repetition:
    """A limit on the share of n-grams that the text has said before.

    Attributes:
        most: Largest share of repeated n-grams, 0 to 1.
        size: Words of an n-gram.
    """

    most: float
    size: int
    name: ClassVar[FilterName] = "repetition"

    def __call__(self, samples: Sequence[Sample]) -> dict[int, str]:
        """Why samples break the rule, by place."""
        return _each(samples, self._reason)

    def _reason(self, sample: Sample) -> str | None:
        share = repeated_share(sample.text, self.size)
        return f"{share:.0%} of its {self.size}-grams are repeated" if share > self.most else None

    def __str__(self) -> str:
        return f"at most {self.most:.0%} of {self.size}-grams repeated"


@dataclass(frozen=True)
class Truncated:
    """No text that the limit of tokens cut off."""

    name: ClassVar[FilterName] = "truncated"

    def __call__(self, samples: Sequence[Sample]) -> dict[int, str]:
        """Why samples break the rule, by place."""
        return _each(
            samples, lambda one: "cut off at the limit of tokens" if one.finish == CUT else None
        )

    def __str__(self) -> str:
        return "ended by itself"


@dataclass(frozen=True)
class Refusal:
    """No text that refuses, or says that there is no video.

    Attributes:
        patterns: Regular expressions for how a sentence of a refusal begins.
    """

    patterns: tuple[str, ...]
    name: ClassVar[FilterName] = "refusal"

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(f"(?:{one})" for one in self.patterns), re.IGNORECASE)

    def __call__(self, samples: Sequence[Sample]) -> dict[int, str]:
        """Why samples break the rule, by place."""
        return _each(samples, self._reason)

    def _reason(self, sample: Sample) -> str | None:
        if sample.finish == FILTERED:
            return "withheld by the endpoint's content filter"
        for sentence in _first_sentences(sample.text):
            if match := self._pattern.match(sentence):
                return f"a sentence begins with {match.group().strip()!r}"
        return None

    def __str__(self) -> str:
        return f"none of {len(self.patterns)} patterns"


@dataclass(frozen=True)
class NoClassWords:
    """No text that names a class.

    Attributes:
        class_words: The class words and class names of the card.
    """

    class_words: ClassWords
    name: ClassVar[FilterName] = "class_words"

    def __call__(self, samples: Sequence[Sample]) -> dict[int, str]:
        """Why samples break the rule, by place."""
        return _each(samples, self._reason)

    def _reason(self, sample: Sample) -> str | None:
        found = {sample.text[start:stop] for start, stop, _ in self.class_words.find(sample.text)}
        return f"says {', '.join(sorted(found))}" if found else None

    def __str__(self) -> str:
        return f"none of {', '.join(self.class_words.terms)}"


@dataclass(frozen=True)
class Language:
    """A text in the scripts of the card's prompts; languages of one script are not told apart.

    Attributes:
        allowed: Unicode scripts.
        least: Smallest share of the text's letters that must be in them.
    """

    allowed: tuple[str, ...]
    least: float
    name: ClassVar[FilterName] = "language"

    def __call__(self, samples: Sequence[Sample]) -> dict[int, str]:
        """Why samples break the rule, by place."""
        return _each(samples, self._reason)

    def _reason(self, sample: Sample) -> str | None:
        found = scripts(sample.text)
        letters = sum(found.values())
        if not letters:
            return "has no letters"
        share = sum(count for name, count in found.items() if name in self.allowed) / letters
        if share >= self.least:
            return None
        strange = [name for name in found if name not in self.allowed]
        return f"{1 - share:.0%} of its letters are {' and '.join(strange)}"

    def __str__(self) -> str:
        return f"at least {self.least:.0%} of letters {' or '.join(self.allowed)}"


@dataclass(frozen=True)
class NearDuplicate:
    """No text that is nearly that of another clip: it tells neither of the two.

    The first of them stays. Samples of one clip may be as like as they please.

    Attributes:
        similarity: Jaccard similarity of the sets of shingles from which on two texts count as the
            same.
        size: Words of a shingle.
    """

    similarity: float
    size: int
    name: ClassVar[FilterName] = "near_duplicate"

    def __call__(self, samples: Sequence[Sample]) -> dict[int, str]:
        """Why samples break the rule, by place."""
        found = near_duplicates(samples, self.similarity, self.size)
        return {
            place: f"{value:.0%} like the rationale of {samples[other].clip}"
            for place, (other, value) in found.items()
        }

    def __str__(self) -> str:
        return f"below {self.similarity:.0%} of {self.size}-grams of another clip's"


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
    def dropped(self) -> dict[str, list[str]]:
        """Ids of the clips of the samples that each filter dropped, one for each sample."""
        return {
            name: [flag.clip for flag in self.flags if flag.filter == name and flag.dropped]
            for name in self.settings
        }

    @property
    def alone(self) -> dict[str, int]:
        """Number of samples that no other filter than this one dropped."""
        droppers: dict[tuple[str, int], list[str]] = {}
        for flag in self.flags:
            if flag.dropped:
                droppers.setdefault((flag.clip, flag.number), []).append(flag.filter)
        only = [names[0] for names in droppers.values() if len(names) == 1]
        return {name: only.count(name) for name in self.settings}

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it, without the texts."""
        return {
            "samples": self.samples,
            "kept": len(self.kept),
            "filters": dict(self.settings),
            "dropped": self.dropped,
            "dropped_by_it_alone": self.alone,
            "flags": [asdict(flag) for flag in self.flags],
            "clips": {name: list(counts) for name, counts in self.clips.items()},
        }

    def __str__(self) -> str:
        if not self.settings:
            return f"No rules are set for rationales: all {self.samples} are kept."
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
        return "\n".join(lines + _table(rows))


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


def repeated_share(text: str, size: int) -> float:
    """Share of the n-grams of words that stood in the text before, 0 to 1.

    Args:
        text: The text; with fewer words than an n-gram has its share is 0.
        size: Words of an n-gram.
    """
    grams = _ngrams(words(text), size)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def near_duplicates(
    samples: Sequence[Sample], similarity: float, size: int
) -> dict[int, tuple[int, float]]:
    """Samples that are nearly the same as an earlier one of another clip that is none itself.

    Exact: the Jaccard similarity of the sets of shingles (n-grams of words; a shorter text is one
    shingle). Two sets that are at least `similarity` alike share one of their rarest shingles, so
    only those stand in the index and are looked up: time and memory grow with the shingles plus
    the pairs of texts that share a rare one. Without duplicates that is linear; with n texts that
    are all alike, n lookups, since only the first stands in the index.

    Args:
        samples: All rationales.
        similarity: From which on two count as the same, above 0.
        size: Words of a shingle.

    Returns:
        For the place of each duplicate, the place of the earlier one that is most like it, and how
        like it is.
    """
    sets = [_shingles(sample.text, size) for sample in samples]
    count: dict[tuple[str, ...], int] = {}
    for shingles in sets:
        for shingle in shingles:
            count[shingle] = count.get(shingle, 0) + 1
    index: dict[tuple[str, ...], list[int]] = {}
    found: dict[int, tuple[int, float]] = {}
    for place, shingles in enumerate(sets):
        # |A & B| >= s |A | B| >= s |A|: of the rarest |A| - ceil(s |A|) + 1, one must be shared.
        # A hair less than s, lest rounding makes the number of shared ones too large.
        shared = max(1, ceil((similarity - 1e-9) * len(shingles)))
        rarest = sorted(shingles, key=lambda one: (count[one], one))
        rarest = rarest[: len(shingles) - shared + 1]
        others = {other for shingle in rarest for other in index.get(shingle, ())}
        like = [
            (jaccard(shingles, sets[other]), -other)
            for other in others
            if samples[other].clip != samples[place].clip
        ]
        value, other = max(like, default=(0.0, 0))
        if like and value >= similarity:
            found[place] = (-other, value)
            continue
        for shingle in rarest:
            index.setdefault(shingle, []).append(place)
    return found


def jaccard(one: frozenset[Any] | set[Any], other: frozenset[Any] | set[Any]) -> float:
    """Share of the elements of two sets that both have; 1 where both are empty."""
    either = len(one | other)
    return len(one & other) / either if either else 1.0


@lru_cache(maxsize=1)
def refusal_patterns() -> tuple[str, ...]:
    """The patterns of `refusals.yaml`."""
    content = yaml.safe_load(Path(__file__).with_name("refusals.yaml").read_text(encoding="utf-8"))
    return tuple(content["patterns"])


def card_scripts(card: Card) -> tuple[str, ...]:
    """Unicode scripts that the card's prompts are written in.

    Raises:
        ValueError: If the prompts have no letters.
    """
    found = scripts("\n".join(card.prompt(name) for name in card.prompts))
    letters = sum(found.values())
    if not letters:
        raise ValueError(
            f"Card '{card.name}' has prompts without letters, so {PREFIX}min_script_share has no "
            "script to go by. Set it to null."
        )
    names = [name for name, count in found.items() if count >= SCRIPT_SHARE * letters]
    if KANA & set(names):  # Japanese is written in three scripts at once
        names = list(dict.fromkeys([*names, *sorted(KANA), "CJK"]))
    return tuple(names)


def _each(samples: Sequence[Sample], why: Callable[[Sample], str | None]) -> dict[int, str]:
    reasons = {place: why(sample) for place, sample in enumerate(samples)}
    return {place: reason for place, reason in reasons.items() if reason is not None}


def _ngrams(parts: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(parts[start : start + size]) for start in range(len(parts) - size + 1)]


def _shingles(text: str, size: int) -> frozenset[tuple[str, ...]]:
    parts = words(text)
    return frozenset(_ngrams(parts, size) or [tuple(parts)])


def _first_sentences(text: str) -> list[str]:
    """The first sentences, without marks before them, with straight apostrophes."""
    plain = text.replace("\u2019", "'").replace("\u2018", "'")
    split = re.split(r"(?<=[.!?;])\s+|(?<=[\u3002\uff01\uff1f\uff0c])|\n+", plain.strip())
    found = [re.sub(r"\s+", " ", one).lstrip(" *_#>-.!,\t") for one in split]
    return [one for one in found if one][:SENTENCES]


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
