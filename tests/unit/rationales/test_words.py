"""Words, class words and scripts of texts."""

import pytest

from rbft.card import Card
from rbft.rationales.words import ClassWords, bases, scripts, words

CARD = Card(
    name="yard",
    persona="guard",
    words={"fine": "normal", "odd_thing": "abnormal"},
    prompts={"label": "Is it {words}?", "rationale": "Describe it."},
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog's tail, isn't it?", ["a", "dog's", "tail", "isn't", "it"]),
        ("well-known **bold**_under_", ["well", "known", "bold", "under"]),
        ("一只狗 runs", ["一", "只", "狗", "runs"]),
        ("\uff21\uff22 Stra\u00dfe", ["ab", "strasse"]),
        ("...", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("word", "base"),
    [
        ("abnormalities", "abnormal"),
        ("abnormality", "abnormal"),
        ("normally", "normal"),
        ("unsafely", "unsafe"),
        ("dropped", "drop"),
        ("falls", "fall"),
        ("passes", "pass"),
        ("carried", "carry"),
        ("taking", "take"),
        ("happily", "happy"),
        ("hatefulness", "hateful"),
        ("possibly", "possible"),
        ("emptiness", "empty"),
    ],
)
def test_inflections(word, base):
    assert base in bases(word)


@pytest.mark.parametrize(("word", "other"), [("pass", "pas"), ("bring", "br"), ("bed", "b")])
def test_what_is_no_inflection(word, other):
    assert other not in bases(word)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Abnormal!", ["Abnormal"]),
        ("It is **normal**.", ["normal"]),
        ("paranormal", []),
        ("subnormal, abnormalish", []),
        ("acts abnormally; an abnormality", ["abnormally", "abnormality"]),
        ("the normal's edge", ["normal's"]),
        ("all is Fine", ["Fine"]),
        ("an odd thing, odd things, odd-thing", ["odd thing", "odd things", "odd-thing"]),
        ("odd", []),
        ("a thing that is odd", []),
    ],
)
def test_class_words_are_found_as_whole_words(text, found):
    spans = ClassWords.of(CARD).find(text)
    assert [text[start:stop] for start, stop, _ in spans] == found


def test_class_words_of_several_words_come_before_their_parts():
    both = ClassWords(("safe", "not safe"))
    assert [term for _, _, term in both.find("It is not safe, but safe.")] == ["not safe", "safe"]
    longer = ClassWords(("fight", "fight scene"))
    assert [term for _, _, term in longer.find("a fight scene")] == ["fight scene"]
    assert [term for _, _, term in ClassWords(("\u5f02\u5e38",)).find("\u662f\u5f02\u5e38\u7684")]


def test_masking_takes_out_all_and_nothing_else():
    text = "A man walks normally. ABNORMAL? No: an odd thing."
    assert words(ClassWords.of(CARD).mask(text)) == ["a", "man", "walks", "no", "an"]


def test_a_card_says_each_word_once():
    assert ClassWords.of(CARD).terms == ("normal", "abnormal", "fine", "odd_thing")


def test_scripts_are_counted_in_letters():
    text = "Dog 12! \u043c\u0438\u0440 \u4f60\u597d"
    assert scripts(text) == {"LATIN": 3, "CYRILLIC": 3, "CJK": 2}
    assert scripts("\uff21\u30fc") == {"LATIN": 1, "KATAKANA": 1}
    assert scripts("1, 2") == {}
