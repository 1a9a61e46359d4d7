"""Which of the K rationales of a clip is trained on."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rbft.rationales.duplicates import jaccard
from rbft.rationales.sample import Sample, by_clip
from rbft.rationales.words import words

# What the writer is told in a second try.
HINT = "Hint: the right answer is {word}. Explain what in it shows that."
SelectionRule = Literal["first", "consistent", "verified"]
Elicited = Mapping[tuple[str, int], int | None]

# "decompose its analysis across four semantic dimensions: (1) Subjects ... (2) Attributes ...
# (3) Actions ... and (4) Scenes" (section 3), and how a heading may call them.
DIMENSIONS: dict[str, tuple[str, ...]] = {
    "subjects": ("subject", "subjects", "entities", "\u4e3b\u4f53"),
    "attributes": ("attribute", "attributes", "\u5c5e\u6027"),
    "actions": ("action", "actions", "\u52a8\u4f5c", "\u884c\u4e3a"),
    "scenes": ("scene", "scenes", "setting", "\u573a\u666f"),
}


@dataclass(frozen=True)
class Selection:
    """One rationale of each clip that has one to give.

    Attributes:
        chosen: The sample of each clip, in the order in which the clips came.
        lacking: Clips of which no sample may be taken. Under `verified`: none led to the right
            class, so they are to be tried again with a hint.
    """

    chosen: Mapping[str, Sample]
    lacking: tuple[str, ...] = ()

    @property
    def label_conditioned(self) -> tuple[str, ...]:
        """Clips whose rationale was written by a model that was told the label."""
        return tuple(clip for clip, one in self.chosen.items() if one.label_conditioned)


def select(
    samples: Sequence[Sample],
    rule: SelectionRule,
    elicited: Elicited | None = None,
    *,
    allow_label_conditioned: bool = False,
) -> Selection:
    """One sample of each clip.

    Args:
        samples: All samples of all clips.
        rule: `first`: the lowest sample number (the paper has one sample a clip). `consistent`: the
            one most like the others, see `most_consistent`. `verified`: the first whose elicited
            class is the label (rejection sampling).
        elicited: For `verified`: the class that the model answered with behind each sample, by
            clip and sample number; None for an answer that is no class word.
        allow_label_conditioned: Whether samples whose writer was told the label may be taken.

    Raises:
        ValueError: If a sample is label-conditioned and that was not asked for; for `verified`, if
            a sample has no elicited class or its clip no label.
    """
    refuse_label_conditioned(samples, allowed=allow_label_conditioned)
    clips = by_clip(samples)
    if rule == "verified":
        return _verified(clips, elicited)
    choose: Callable[[Sequence[Sample]], Sample]
    choose = most_consistent if rule == "consistent" else lambda ones: ones[0]
    return Selection({clip: choose(ones) for clip, ones in clips.items()})


def add_hinted(selection: Selection, hinted: Sequence[Sample], elicited: Elicited) -> Selection:
    """Fills in clips whose own samples were all wrong, with ones written under a hint.

    The second try of STaR: the writer was told the label, and the class behind its rationale must
    still be right. Each one that is taken is marked as label-conditioned.

    Args:
        selection: What `verified` has chosen.
        hinted: Samples about the clips it lacks.
        elicited: As for `select`; the class must have been elicited without the hint.

    Raises:
        ValueError: If a sample is about a clip that has a rationale already, or as in `select`.
    """
    needless = [one.clip for one in hinted if one.clip not in selection.lacking]
    if needless:
        raise ValueError(
            f"Clip {needless[0]} was tried again with a hint, but is not among the "
            f"{len(selection.lacking)} clips that lack a rationale. Write hinted rationales for "
            "the clips of `lacking` only."
        )
    marked = [replace(one, label_conditioned=True) for one in hinted]
    second = _verified(by_clip(marked), elicited)
    lacking = tuple(clip for clip in selection.lacking if clip not in second.chosen)
    return Selection({**selection.chosen, **second.chosen}, lacking)


def refuse_label_conditioned(samples: Sequence[Sample], *, allowed: bool) -> None:
    """Stops where rationales whose writer was told the label would be used unasked.

    Raises:
        ValueError: If there are any and they are not allowed.
    """
    found = [one.clip for one in samples if one.label_conditioned]
    if found and not allowed:
        raise ValueError(
            f"{len(found)} of {len(samples)} rationales are label-conditioned: their writer was "
            f"told the class (first: {found[0]}). The paper's never is. Take their lines out, or "
            "ask for such rationales: data.rationale_selection verified with "
            "data.rationale_fallback hint."
        )


def check_fallback(selection: str, fallback: str | None, hint: str | None) -> None:
    """Refuses settings that would not be used, and a hint that does not name the class.

    Args:
        selection: data.rationale_selection.
        fallback: data.rationale_fallback.
        hint: data.rationale_hint.

    Raises:
        ValueError: Naming the setting.
    """
    if fallback is not None and selection != "verified":
        raise ValueError(
            f"data.rationale_fallback is {fallback}, but data.rationale_selection is {selection}, "
            "which leaves no clip without a rationale. Set data.rationale_selection to verified, "
            "or data.rationale_fallback to null."
        )
    if hint is None:
        return
    if fallback != "hint":
        raise ValueError(
            f"data.rationale_hint is given, but data.rationale_fallback is {fallback or 'null'}, "
            "which tells nobody. Set data.rationale_fallback to hint, or data.rationale_hint to "
            "null."
        )
    try:
        fine = hint.format(word="a") != hint.format(word="b")
    except (KeyError, IndexError, ValueError):
        fine = False
    if not fine:
        raise ValueError(
            f"data.rationale_hint ({hint!r}) must hold {{word}}, where the class word stands, and "
            "no other field. Write {{ and }} for plain braces."
        )


def most_consistent(samples: Sequence[Sample]) -> Sample:
    """The sample that is most like the others of its clip.

    Likeness of two texts is the Jaccard similarity of their sets of words. Where every sample has
    a section for each of the four dimensions (headings such as "Subjects:"), it is the mean over
    the dimensions of that of the sections, so that a long description of the scene does not
    outweigh what is done; else it is that of the whole texts. Ties go to the lowest number.

    Args:
        samples: All samples of one clip, at least one.
    """
    split = [sections(one.text) for one in samples]
    if all(len(one) == len(DIMENSIONS) for one in split):
        parts = [[set(words(one[name])) for name in DIMENSIONS] for one in split]
    else:
        parts = [[set(words(one.text))] for one in samples]

    def likeness(place: int) -> float:
        """Sum over the other samples."""
        others = [its for number, its in enumerate(parts) if number != place]
        pairs = [pair for its in others for pair in zip(parts[place], its, strict=True)]
        return sum((jaccard(mine, its) for mine, its in pairs), 0.0)

    # Rounded, since two samples are as like each other whichever is summed first.
    scores = [round(likeness(place), 9) for place in range(len(samples))]
    # The first of the largest: samples come in the order of their numbers.
    ordered = sorted(range(len(samples)), key=lambda place: samples[place].number)
    return samples[max(ordered, key=lambda place: scores[place])]


def sections(text: str) -> dict[str, str]:
    """The part of the text under each dimension that has a heading, without the heading.

    A heading stands at the start of a line, behind a number ("1. Subjects:") or behind the end of a
    sentence, may be marked up ("**Actions**:"), and ends with a colon or with its line. A dimension
    that has two has both parts. What stands behind another heading than those of the dimensions
    belongs to the one before it.
    """
    found: dict[str, str] = {}
    headings = list(_HEADING.finditer(text))
    for place, heading in enumerate(headings):
        stop = headings[place + 1].start() if place + 1 < len(headings) else len(text)
        name = _DIMENSION_OF[heading["name"].casefold()]
        part = text[heading.end() : stop].strip()
        found[name] = f"{found[name]}\n{part}" if name in found else part
    return found


def _verified(clips: Mapping[str, Sequence[Sample]], elicited: Elicited | None) -> Selection:
    chosen: dict[str, Sample] = {}
    lacking: list[str] = []
    for clip, ones in clips.items():
        for one in ones:
            if one.label is None:
                raise ValueError(
                    f"Clip {clip} has no label, so its rationales cannot be verified. Leave clips "
                    "without a label out, or select by `first` or `consistent`."
                )
            if elicited is None or (clip, one.number) not in elicited:
                raise ValueError(
                    f"Sample {one.number} of clip {clip} has no elicited class. To verify, ask for "
                    "the class behind each rationale first (P+R+C)."
                )
        right = [one for one in ones if elicited and elicited[clip, one.number] == one.label]
        if right:
            chosen[clip] = right[0]
        else:
            lacking.append(clip)
    return Selection(chosen, tuple(lacking))


_DIMENSION_OF = {name: key for key, names in DIMENSIONS.items() for name in names}
_NAMES = "|".join(sorted(_DIMENSION_OF, key=len, reverse=True))
_HEADING = re.compile(
    # At the start of a line, alone or with a colon; behind a number; or behind a sentence.
    r"(?:(?:^|\n)[ \t#>*_-]*(?:\(?\d[.)][ \t]*)?|(?<=\s)\(?\d[.)]\s*|(?<=[.;]\s))[*_]*"
    rf"(?P<name>{_NAMES})[*_]*(?:\s*[:\uff1a][*_]*|[ \t]*(?=\n|$))[ \t]*",
    re.IGNORECASE,
)
