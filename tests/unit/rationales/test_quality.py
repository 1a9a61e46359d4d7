"""The rules that rationales must keep: what each finds, and what is counted."""

import json
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from rbft.card import Card
from rbft.rationales.filters import refusal_patterns
from rbft.rationales.quality import Flag, QualityRules, apply_rules
from rbft.rationales.sample import Sample

CARD = Card(
    name="yard",
    persona="guard",
    words={"normal": "normal", "abnormal": "abnormal"},
    prompts={"label": "Is it {words}?", "rationale": "You are a {persona}. Describe the video."},
)
DOG = "A brown dog runs along the fence and digs a hole under it."
CAT = "At night two people in dark coats lift a bicycle over the wall."


def sample(clip: str, text: str = DOG, label: int | None = 0, **more: object) -> Sample:
    return Sample(clip, text, label, **more)  # pyright: ignore[reportArgumentType]


def broken(rules: QualityRules, *samples: Sample) -> list[tuple[str, str, str]]:
    """Clip, rule and reason of each breach."""
    guard = [sample("guard0", "zero one two", 0), sample("guard1", "three four five", 1)]
    found = apply_rules([*samples, *guard], rules, CARD).flags
    return [(flag.clip, flag.filter, flag.reason) for flag in found if "guard" not in flag.clip]


def test_no_rule_is_set_by_default():
    texts = [sample("a", ""), sample("b", "normal " * 50, 1, finish="length"), sample("c", "Sorry")]
    assert QualityRules().filters(CARD) == ()
    report = apply_rules(texts, QualityRules(), CARD)
    assert (report.kept, report.flags) == (tuple(texts), ())
    assert str(report) == "No rules are set for rationales: all 3 are kept."


def test_repetition_beyond_the_limit_breaks_the_rule():
    rules = QualityRules(max_repetition=0.6, repetition_ngram=2)
    assert broken(rules, sample("a", "a b a b a b")) == []
    assert broken(rules, sample("a", "a b a b a b a")) == [
        ("a", "repetition", "67% of its 2-grams are repeated")
    ]


def test_truncation():
    cut, whole = sample("a", finish="length"), sample("b", finish="stop")
    assert broken(QualityRules(truncated=True), cut, whole) == [
        ("a", "truncated", "cut off at the limit of tokens")
    ]


def test_a_refusal_is_quoted_and_a_withheld_text_counts():
    assert broken(
        QualityRules(refusals=True),
        sample("a", "Hm.  I'm   sorry, no."),
        sample("b", DOG, finish="content_filter"),
    ) == [
        ("a", "refusal", 'a sentence begins with "I\'m sorry"'),
        ("b", "refusal", "withheld by the endpoint's content filter"),
    ]


def test_class_words_are_flagged_and_dropped_only_where_asked():
    texts = [sample("a", "Clearly Abnormal, abnormally so."), sample("b"), sample("c", CAT, 1)]
    flagged = apply_rules(texts, QualityRules(class_words=True), CARD)
    assert flagged.kept == tuple(texts)
    reason = "says Abnormal, abnormally"
    assert flagged.flags == (Flag("a", 0, "class_words", reason, dropped=False),)
    assert flagged.dropped == {"class_words": []}
    dropped = apply_rules(texts, QualityRules(class_words=True, only_flag=()), CARD)
    assert [one.clip for one in dropped.kept] == ["b", "c"]
    assert dropped.dropped == {"class_words": ["a"]}


def test_language_goes_by_the_scripts_of_the_prompts():
    rules = QualityRules(min_script_share=0.9)
    mixed = "A man walks \u4f60\u597d\u4f60\u597d"
    assert broken(
        rules, sample("a", DOG), sample("b", mixed), sample("c", "12 ..."), sample("d", "\u4f60")
    ) == [
        ("b", "language", "31% of its letters are CJK"),
        ("c", "language", "has no letters"),
        ("d", "language", "100% of its letters are CJK"),
    ]
    assert broken(QualityRules(min_script_share=9 / 13), sample("b", mixed)) == []


def test_near_duplicates_of_other_clips_are_found_and_the_first_stays():
    like = DOG.replace("brown", "BLACK")  # of 11 trigrams 2 differ
    texts = [
        sample("a", DOG),
        sample("a", DOG, number=1),
        sample("b", CAT, 1),
        sample("c", like),
        sample("d", DOG.upper()),
    ]
    report = apply_rules(texts, QualityRules(max_similarity=0.6), CARD)
    assert [(flag.clip, flag.number, flag.reason) for flag in report.flags] == [
        ("c", 0, "69% like the rationale of a"),
        ("d", 0, "100% like the rationale of a"),
    ]
    assert [one.clip for one in report.kept] == ["a", "a", "b"]
    exact = apply_rules(texts, QualityRules(max_similarity=1.0), CARD)
    assert exact.dropped == {"near_duplicate": ["d"]}


def test_near_duplicates_of_what_is_dropped_stay():
    cut = sample("a", DOG, finish="length")
    rules = QualityRules(truncated=True, max_similarity=0.9)
    report = apply_rules([cut, sample("b", DOG), sample("c", CAT, 1)], rules, CARD)
    assert [one.clip for one in report.kept] == ["b", "c"]
    assert report.dropped == {"truncated": ["a"], "near_duplicate": []}


def test_the_report_counts_and_lists():
    texts = [
        sample("a", "Sorry, no.", finish="length"),
        sample("b", DOG),
        sample("b", "short", number=1),
        sample("c", CAT, 1),
        sample("d", "short", 1),
        sample("e", "It is normal that a dog runs along the fence.", None),
    ]
    rules = QualityRules(min_words=5, truncated=True, refusals=True, class_words=True)
    report = apply_rules(texts, rules, CARD)
    assert str(report) == (
        "3 of 6 rationales keep the rules.\n"
        "  rule         set to                    break it  dropped  by it alone  clips\n"
        "  length       5 to any words            3         3        2            a, b, d\n"
        "  truncated    ended by itself           1         1        0            a\n"
        f"  refusal      none of {len(refusal_patterns())} patterns       "
        "1         1        0            a\n"
        "  class_words  none of normal, abnormal  1         0        0            e\n"
        "  class     clips before  after\n"
        "  normal    2             1\n"
        "  abnormal  2             1\n"
        "  no label  1             1"
    )
    content = report.as_dict()
    assert json.loads(json.dumps(content)) == content
    assert content["dropped"]["length"] == ["a", "b", "d"]
    assert {key: [one.filter for one in flags] for key, flags in report.by_sample.items()} == {
        ("a", 0): ["length", "truncated", "refusal"],
        ("b", 1): ["length"],
        ("d", 0): ["length"],
        ("e", 0): ["class_words"],
    }
    assert content["dropped_by_it_alone"]["length"] == 2
    assert (content["samples"], content["kept"]) == (6, 3)
    assert content["label_conditioned"] == []
    assert content["clips"] == {"normal": [2, 1], "abnormal": [2, 1], "no label": [1, 1]}


@pytest.mark.parametrize("rules", [QualityRules(), QualityRules(min_words=1)])
def test_label_conditioned_rationales_are_counted(rules):
    told = sample("b", CAT, 1, label_conditioned=True)
    report = apply_rules([sample("a", DOG), told], rules, CARD)
    assert report.as_dict()["label_conditioned"] == ["b"]
    assert str(report).endswith(
        "1 rationale is label-conditioned: its writer was told the class, which the paper's never "
        "is. Results do not compare with the paper's."
    )


def test_a_class_left_without_rationales_is_named():
    texts = [sample("a", "short"), sample("a", DOG, number=1, finish="length"), sample("b", "no")]
    rules = QualityRules(min_words=3, truncated=True)
    with pytest.raises(ValueError, match="No rationale of class") as error:
        apply_rules([*texts, sample("c", CAT, 1)], rules, CARD)
    assert str(error.value) == (
        "No rationale of class 'normal' keeps data.rationale_rules: its 2 clips lose all theirs "
        "(length 2, truncated 1). Loosen these rules, name them in "
        "data.rationale_rules.only_flag, or have the rationales written anew."
    )
    # A class that had none before is not the rules' fault.
    assert apply_rules([sample("c", CAT, 1)], rules, CARD).clips == {
        "normal": (0, 0),
        "abnormal": (1, 1),
    }


def test_bounds_that_exclude_each_other_and_unknown_rules():
    with pytest.raises(ValueError, match="is above") as error:
        QualityRules(min_words=9, max_words=8)
    assert str(error.value) == (
        "data.rationale_rules.min_words (9) is above data.rationale_rules.max_words (8): no "
        "rationale can keep both. Swap them, or set one to null."
    )
    wrong: tuple = ("lenght",)
    with pytest.raises(ValueError, match="lenght") as error:
        QualityRules.__post_init__(object_with(only_flag=wrong))
    assert str(error.value) == (
        "data.rationale_rules.only_flag names 'lenght'; the rules are length, repetition, "
        "truncated, refusal, class_words, language, near_duplicate."
    )


def object_with(**values):
    """Rules that no type check has seen."""
    rules = QualityRules()
    for name, value in values.items():
        object.__setattr__(rules, name, value)
    return rules


def test_rules_are_read_from_a_command_line():
    parser = ArgumentParser()
    parser.add_argument("--rules", type=QualityRules, default=QualityRules())
    given = ["--rules.min_words=20", "--rules.truncated=true", "--rules.only_flag=[length]"]
    made: Any = parser.instantiate(parser.parse_args(given))
    assert made.rules == QualityRules(min_words=20, truncated=True, only_flag=("length",))
