"""The rules that rationales must keep: what each finds, and what is counted."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from rbft.card import Card
from rbft.rationales.duplicates import jaccard, near_duplicates, repeated_share
from rbft.rationales.filters import Refusal, card_scripts, refusal_patterns
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


@pytest.mark.parametrize(
    ("rules", "text", "tokens", "reason"),
    [
        ({"min_words": 4}, "one two three", 9, "3 words, fewer than 4"),
        ({"min_words": 3}, "one two three", 9, None),
        ({"max_words": 2}, "one two three", 9, "3 words, more than 2"),
        ({"max_words": 3}, "one two three", 9, None),
        ({"min_tokens": 10}, "one", 9, "9 tokens, fewer than 10"),
        ({"min_tokens": 9, "max_tokens": 9}, "one", 9, None),
        ({"max_tokens": 8}, "one", 9, "9 tokens, more than 8"),
        ({"min_tokens": 10}, "one", None, None),
        ({"min_words": 1}, "...", 9, "0 words, fewer than 1"),
        ({"min_words": 5}, "一只狗在跑", 9, None),
    ],
)
def test_length(rules, text, tokens, reason):
    settings = QualityRules(**rules)
    found = settings.filters(CARD)[0]([sample("a", text, tokens=tokens)])
    assert found == ({} if reason is None else {0: reason})


@pytest.mark.parametrize(
    ("text", "size", "share"),
    [
        ("a b c d", 2, 0.0),
        ("a b a b a b", 2, 3 / 5),
        ("Go. go GO go", 1, 3 / 4),
        ("a b", 3, 0.0),
        ("", 1, 0.0),
        ("it goes on and on and on and on", 3, 3 / 7),
    ],
)
def test_repetition(text, size, share):
    assert repeated_share(text, size) == pytest.approx(share)


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


REFUSALS = [
    "I'm sorry, but I can't assist with that.",
    "I\u2019m sorry, but I cannot help with identifying people.",
    "Sorry, I am unable to view the video.",
    "**I apologize**, but there is nothing I can say.",
    "I cannot provide a description of this content.",
    "I can't help with that request.",
    "Unfortunately, I'm unable to watch videos directly.",
    "However, I cannot view the footage you mention.",
    "As an AI language model, I do not have eyes.",
    "As a large language model I read text only.",
    "I don't see any video in your message. Please upload the video.",
    "I do not have access to the video.",
    "There is no video attached.",
    "No frames were provided.",
    "Please provide the video.",
    "The task is clear.\nI cannot analyze the video.",
    "I must decline to describe this.",
    "\u62b1\u6b49\uff0c\u6211\u65e0\u6cd5\u89c2\u770b\u89c6\u9891\u3002",
]
NO_REFUSALS = [
    DOG,
    "I cannot see the face of the man, who wears a hood.",
    "I can't tell whether the door is locked. The man waits.",
    "The man seems sorry for what he did.",
    'A man shouts "I cannot help you" and walks off.',
    "The camera cannot view the video wall behind the door.",
    "I cannot help but notice the broken window.",
    "There is no video game in the room, only a chair.",
    "No people are shown. Please note the open gate.",
    "One. Two. Three. I'm sorry, he says in the end.",
    "As an aid, the man brings a ladder.",
    "\u4e00\u53ea\u72d7\u5728\u8dd1\u3002",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_are_found(text):
    assert Refusal(refusal_patterns())([sample("a", text)]), text


@pytest.mark.parametrize("text", NO_REFUSALS)
def test_rationales_are_no_refusals(text):
    assert Refusal(refusal_patterns())([sample("a", text)]) == {}, text


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


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Describe what happens in the video \u4f60.", ("LATIN",)),
        ("\u63cf\u8ff0\u89c6\u9891\u4e2d\u7684\u4eba AI", ("CJK", "LATIN")),
        (
            "\u3053\u306e\u52d5\u753b\u3092\u8aac\u660e\u3057\u3066",
            ("HIRAGANA", "CJK", "KATAKANA"),
        ),
    ],
)
def test_scripts_of_a_card(prompt, expected):
    words = {"a": "\u6b63\u5e38", "b": "\u5f02\u5e38"} if "LATIN" not in expected else {}
    prompts = {"label": prompt * 20, "rationale": prompt * 20}
    card = Card("x", "", words or {"a": "fine", "b": "odd"}, prompts)
    assert card_scripts(card) == expected


def test_a_card_without_letters_has_no_script():
    card = Card("x", "", {"a": "1", "b": "2"}, {"label": "?", "rationale": "?"})
    with pytest.raises(ValueError, match="without letters") as error:
        QualityRules(min_script_share=0.5).filters(card)
    assert str(error.value) == (
        "Card 'x' has prompts without letters, so data.rationale_rules.min_script_share has no "
        "script to go by. Set it to null."
    )


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


def by_all_pairs(samples, similarity, size):
    """The same with every pair compared."""

    def shingles(text):
        parts = text.split()
        found = {tuple(parts[at : at + size]) for at in range(len(parts) - size + 1)}
        return found or {tuple(parts)}

    sets, found = [shingles(one.text) for one in samples], {}
    for place, mine in enumerate(sets):
        best = (0.0, 0)
        for other in range(place):
            if other not in found and samples[other].clip != samples[place].clip:
                value = len(mine & sets[other]) / len(mine | sets[other])
                best = max(best, (value, -other))
        if best[0] >= similarity:
            found[place] = (-best[1], best[0])
    return found


@given(
    st.lists(st.lists(st.sampled_from("abcde"), max_size=12), max_size=12),
    st.sampled_from([0.1, 0.3, 1 / 3, 0.5, 0.6, 2 / 3, 0.8, 1.0]),
    st.integers(1, 3),
)
def test_near_duplicates_against_all_pairs(texts, similarity, size):
    samples = [
        sample(f"clip{at // 2}", " ".join(text), number=at % 2) for at, text in enumerate(texts)
    ]
    assert near_duplicates(samples, similarity, size) == by_all_pairs(samples, similarity, size)


def test_a_thousand_texts_are_compared_in_little_time(monkeypatch):
    """What is alike is found among few pairs, not all half million."""
    draw = random.Random(0)
    vocabulary = [f"w{number}" for number in range(2000)]
    samples = [
        sample(f"c{at}", " ".join(draw.choices(vocabulary, k=120)) + " and so on it goes")
        for at in range(1000)
    ]
    pairs = []
    monkeypatch.setattr(
        "rbft.rationales.duplicates.jaccard",
        lambda one, other: pairs.append(0) or jaccard(one, other),
    )
    twin = sample("twin", samples[500].text)
    assert near_duplicates([*samples, twin], 0.7, 3) == {1000: (500, 1.0)}
    assert len(pairs) < 1000


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
    assert content["dropped_by_it_alone"]["length"] == 2
    assert (content["samples"], content["kept"]) == (6, 3)
    assert content["clips"] == {"normal": [2, 1], "abnormal": [2, 1], "no label": [1, 1]}


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
