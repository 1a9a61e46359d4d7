"""What single filters find."""

import pytest

from rbft.card import Card
from rbft.rationales.filters import Refusal, card_scripts, refusal_patterns
from rbft.rationales.quality import QualityRules
from rbft.rationales.sample import Sample

CARD = Card(
    name="yard",
    persona="guard",
    words={"normal": "normal", "abnormal": "abnormal"},
    prompts={"label": "Is it {words}?", "rationale": "You are a {persona}. Describe the video."},
)

DOG = "A brown dog runs along the fence and digs a hole under it."


def sample(clip: str, text: str, tokens: int | None = None) -> Sample:
    return Sample(clip, text, tokens=tokens)


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


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_are_found(text):
    assert Refusal(refusal_patterns())([sample("a", text)]), text


@pytest.mark.parametrize("text", NO_REFUSALS)
def test_rationales_are_no_refusals(text):
    assert Refusal(refusal_patterns())([sample("a", text)]) == {}, text


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
