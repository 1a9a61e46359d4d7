import re
import string
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rbft.card import Card
from tests.examples import CARD

WORDS = ("normal", "abnormal", "hate speech")
THREE = Card("three", "Guard", {"a": WORDS[0], "b": WORDS[1], "c": WORDS[2]}, CARD.prompts)
MARKS = st.text(" .,!?:;\"'`*<>[]()\n\t", max_size=5)


def test_what_is_on_a_card():
    assert CARD.classes == ("quiet", "alarm")
    assert CARD.prompt("label", "A cat.") == "Is it normal or abnormal? A cat."
    assert CARD.prompt("rationale") == "You are a Guard. Describe it."
    assert replace(CARD, prompts={**CARD.prompts, "x": " {words}\n"}).prompt("x") == (
        "normal or abnormal"
    )
    assert THREE.prompt("label") == "Is it normal, abnormal or hate speech?"


def test_braces_in_prompts_and_in_the_clip_s_own_text():
    card = replace(CARD, prompts={**CARD.prompts, "label": "{{json}} {text}"})
    assert card.prompt("label", "{words} {x}") == "{json} {words} {x}"


@given(st.sampled_from(range(3)), MARKS, MARKS, st.booleans())
def test_a_word_is_parsed_up_to_case_and_marks_around_it(index, before, after, upper):
    word = WORDS[index].upper() if upper else WORDS[index]
    assert THREE.parse(before + word + after) == index


@given(st.text())
def test_no_other_text_is_a_class(text):
    bare = " ".join(text.split()).strip(string.punctuation + " ").casefold()
    assume(bare not in WORDS)
    assert THREE.parse(text) is None


@given(
    st.sampled_from(WORDS),
    st.text(string.ascii_lowercase, min_size=1, max_size=6),
    st.sampled_from(["{0} {1}", "{1} {0}", "{1}{0}", "{0}{1}", "{0}-{1}", "{1}, {0}", "{0}/{0}"]),
)
def test_a_class_is_never_guessed_from_a_word_inside(word, other, shape):
    answer = shape.format(word, other)
    assume(answer not in WORDS)
    assert THREE.parse(answer) is None


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("<abnormal>", 1),
        ("**Abnormal**.", 1),
        ("hate\n speech", 2),
        ("not abnormal", None),
        ("normal or abnormal", None),
        ("ab normal", None),
        ("abnormal abnormal", None),
        ("It is normal.", None),
        ("norm", None),
        ("", None),
        (".", None),
    ],
)
def test_literal_answers(answer, index):
    assert THREE.parse(answer) == index


def test_a_card_comes_back_as_it_was_saved(tmp_path):
    card = Card(
        "größe",
        "Wache: 'Tor'",
        {"yes": "yes", "no: 1": "ない"},
        {"label": "Is it {words}?\n\n  Or #not?", "rationale": "x" * 300, "less": "{persona}"},
    )
    card.save(tmp_path / "card.yaml")
    loaded = Card.load(tmp_path / "card.yaml")
    assert loaded == card
    assert list(loaded.words) == list(card.words)
    assert loaded.digest == card.digest
    assert "größe" in (tmp_path / "card.yaml").read_text(encoding="utf-8")


def test_the_digest_covers_everything():
    others = [
        replace(CARD, name="other"),
        replace(CARD, persona="Other"),
        replace(CARD, words={"alarm": "abnormal", "quiet": "normal"}),  # the order of classes
        replace(CARD, prompts={**CARD.prompts, "label": "Other?"}),
    ]
    assert len({card.digest for card in (CARD, *others)}) == 5
    assert re.fullmatch("[0-9a-f]{12}", CARD.digest)


def test_what_a_card_does_not_say_is_not_in_its_digest():
    assert CARD.digest == "ee951e5c876e"  # of before there were keys that it may lack
    assert list(CARD.content) == ["name", "persona", "words", "prompts"]
    assert "values" not in CARD.text()
    values = {"quiet": 1, "alarm": 2}
    scale = replace(CARD, values=values)
    assert scale.digest != CARD.digest
    assert scale.digest == replace(CARD, values={"alarm": 2.0, "quiet": 1.0}).digest
    assert scale.shown(["label"]) == CARD.shown(["label"])


def test_the_value_of_each_class(tmp_path):
    card = replace(THREE, values={"c": 9, "a": -1.5, "b": 0})
    assert card.levels == (-1.5, 0.0, 9.0)
    assert THREE.levels == ()
    card.save(tmp_path / "card.yaml")
    assert Card.load(tmp_path / "card.yaml") == card
    (tmp_path / "other.yaml").write_text("extends: card.yaml\nvalues: {a: 1, b: 2, c: 3}\n")
    assert Card.load(tmp_path / "other.yaml").levels == (1, 2, 3)


def test_another_rationale_prompt():
    assert CARD.using("less").prompt("rationale") == "Describe the walls."
    assert CARD.using("rationale") == CARD
    assert CARD.using("less").prompts["label"] == CARD.prompts["label"]
    with pytest.raises(ValueError, match=r"data\.rationale_prompt") as error:
        CARD.using("least")
    assert str(error.value) == (
        "Card 'yard' has no prompt 'least' (data.rationale_prompt); it has label, rationale, less."
    )


def test_a_prompt_that_is_not_there():
    with pytest.raises(
        ValueError,
        match=r"^Card 'yard' has no prompt 'least'; it has label, rationale, less\.$",
    ):
        CARD.prompt("least")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"words": {"a": "x"}},
            "Card 'yard': words has 1 classes (a); classification needs at least 2. Add one line "
            "per class: `name: word`.",
        ),
        (
            {"words": {}},
            "Card 'yard': words has 0 classes (none); classification needs at least 2. Add one "
            "line per class: `name: word`.",
        ),
        (
            {"words": {"a": "Yes.", "b": "yes"}},
            "Card 'yard': the class word 'Yes.' is empty or used twice. Give each class a word of "
            "its own, different by more than case and punctuation.",
        ),
        (
            {"words": {"a": "yes", "b": " ?"}},
            "Card 'yard': the class word ' ?' is empty or used twice. Give each class a word of "
            "its own, different by more than case and punctuation.",
        ),
        (
            {"prompts": {"label": "x"}},
            "Card 'yard': prompts.rationale is missing. A card needs the prompts label (the "
            "classification query) and rationale (P_rationale).",
        ),
        (
            {"prompts": {"label": " ", "rationale": "x"}},
            "Card 'yard': prompts.label is missing. A card needs the prompts label (the "
            "classification query) and rationale (P_rationale).",
        ),
        (
            {"prompts": {"label": "Is it {label}?", "rationale": "x"}},
            "Card 'yard': prompts.label uses {label}; allowed are {persona}, {words} and {text}. "
            "Write {{ and }} for plain braces.",
        ),
        (
            {"values": {"quiet": 1}},
            "Card 'yard': values lacks alarm; the classes are quiet, alarm. Give each class its "
            "number, or leave values out.",
        ),
        (
            {"values": {"quiet": 1, "alarm": 2, "loud": 3}},
            "Card 'yard': values has loud; the classes are quiet, alarm. Give each class its "
            "number, or leave values out.",
        ),
        (
            {"values": {"quiet": 1, "alarm": 1.0}},
            "Card 'yard': values.quiet is 1, which is not finite or stands twice. Give each class "
            "a number of its own.",
        ),
        (
            {"values": {"quiet": 1, "alarm": float("nan")}},
            "Card 'yard': values.alarm is nan, which is not finite or stands twice. Give each "
            "class a number of its own.",
        ),
    ],
)
def test_cards_that_do_not_work(change, message):
    with pytest.raises(ValueError, match="Card 'yard'") as error:
        replace(CARD, **change)
    assert str(error.value) == message


def load(folder: Path, text: str) -> str:
    """The message that loading the text ends with, without the file's folder."""
    file = folder / "card.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="Card file") as error:
        Card.load(file)
    return str(error.value).replace(str(file), "card.yaml")


KEYS = (
    "Card file card.yaml must have the keys name, persona, words, prompts, and may have several, "
    "values; "
    "got "
)
REST = "name: a\npersona: b\nprompts: {label: x, rationale: y}\n"


def test_files_that_are_no_cards(tmp_path):
    assert load(tmp_path, "name: a\npersona: b\nwords: {}\n") == KEYS + "name, persona, words."
    assert load(tmp_path, "- a\n") == KEYS + "list."
    assert load(tmp_path, "") == KEYS + "NoneType."
    assert load(tmp_path, REST + "words: {}\nclasses: []\n") == (
        KEYS + "name, persona, prompts, words, classes."
    )
    assert load(tmp_path, "name: [").startswith("Card file card.yaml is no valid YAML: while")
    assert load(tmp_path, REST + "words: {a: x, b: z}\nvalues: {a: 1, b: yes}\n") == (
        "Card file card.yaml: values must map class names to numbers; got {'a': 1, 'b': True}. Put "
        'names that YAML reads as numbers in quotes ("1").'
    )
    assert load(tmp_path, REST + "words: {a: x, b: z}\nvalues: {1: 1, 2: 2}\n").startswith(
        "Card file card.yaml: values must map class names to numbers; got {1: 1, 2: 2}."
    )
    assert load(tmp_path, REST + "words: [a, b]\n") == (
        "Card file card.yaml: words must map names to texts; got ['a', 'b']. "
        'Put words that YAML reads as true or false in quotes ("yes").'
    )
    assert load(tmp_path, REST + "words: {a: yes, b: no}\n").startswith(
        "Card file card.yaml: words must map names to texts; got {'a': True, 'b': False}."
    )


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="cannot be read") as error:
        Card.load(tmp_path / "gone.yaml")
    assert str(error.value) == (
        f"Card file {tmp_path / 'gone.yaml'} cannot be read: No such file or directory."
    )


WHOLE = (
    "name: a\npersona: p\nwords: {x: one, y: two}\nprompts: {label: L, rationale: R, least: M}\n"
)


def test_a_card_says_only_what_differs_from_another(tmp_path):
    (tmp_path / "whole.yaml").write_text(WHOLE, encoding="utf-8")
    file = tmp_path / "other.yaml"
    file.write_text(
        "extends: whole.yaml\nname: b\nwords: {z: three, x: one}\nprompts: {label: 'Which?'}\n",
        encoding="utf-8",
    )
    prompts = {"label": "Which?", "rationale": "R", "least": "M"}
    assert Card.load(file) == Card("b", "p", {"z": "three", "x": "one"}, prompts)
    (tmp_path / "deep").mkdir()
    deep = tmp_path / "deep/card.yaml"
    deep.write_text("extends: ../whole.yaml\n", encoding="utf-8")
    assert Card.load(deep) == Card.load(tmp_path / "whole.yaml")
    file.write_text("extends: whole.yaml\n", encoding="utf-8")
    assert Card.load(file) == Card.load(tmp_path / "whole.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "extends: gone.yaml\nname: b\n",
            "Card file FOLDER/gone.yaml cannot be read: No such file or directory.",
        ),
        (
            "extends: card.yaml\nname: b\n",
            "Card file card.yaml extends card.yaml, which must be a whole card: it must not have "
            "the key extends itself. Name the card that it extends.",
        ),
        (
            "extends: whole.yaml\nprompt: x\n",
            "Card file card.yaml must have the keys name, persona, words, prompts, and may have "
            "several, values; got name, persona, words, prompts, prompt.",
        ),
        (
            "extends: whole.yaml\nprompts: x\n",
            "Card file card.yaml: prompts must map names to texts; got 'x'. Put words that YAML "
            'reads as true or false in quotes ("yes").',
        ),
    ],
)
def test_cards_that_extend_what_they_cannot(tmp_path, text, message):
    (tmp_path / "whole.yaml").write_text(WHOLE, encoding="utf-8")
    assert load(tmp_path, text) == message.replace("FOLDER", str(tmp_path))


SEVERAL = replace(
    CARD, prompts={**CARD.prompts, "label": "Is it {word}?"}, several={"yes": "yes", "no": "no"}
)


def test_what_a_card_may_have_is_not_on_others(tmp_path):
    """A key that is not used changes no digest and no file."""
    assert CARD.digest == "ee951e5c876e"
    assert "several" not in CARD.text()
    assert CARD.content.keys() == {"name", "persona", "words", "prompts"}
    assert CARD.shown(["label"]).keys() == {"words", "prompts"}
    (tmp_path / "card.yaml").write_text(f"{CARD.text()}several: null\n", encoding="utf-8")
    assert Card.load(tmp_path / "card.yaml") == CARD


def test_a_card_of_clips_with_several_classes(tmp_path):
    SEVERAL.save(tmp_path / "card.yaml")
    loaded = Card.load(tmp_path / "card.yaml")
    assert loaded == SEVERAL
    assert loaded.digest not in (CARD.digest, replace(SEVERAL, several={"yes": "y", "no": "n"}))
    assert (SEVERAL.answers, CARD.answers) == (("yes", "no"), ("normal", "abnormal"))
    assert SEVERAL.prompt("label", word="a cat") == "Is it a cat?"
    assert SEVERAL.shown(["label"]) == {
        "words": CARD.words,
        "prompts": {"label": "Is it {word}?"},
        "several": {"yes": "yes", "no": "no"},
    }


@pytest.mark.parametrize(
    "keys", ["yes: 'yes', no: 'no'", "no: 'no', yes: 'yes'", "'yes': 'yes', 'no': 'no'"]
)
def test_yaml_reads_yes_and_no_as_true_and_false(tmp_path, keys):
    text = SEVERAL.text().partition("several:")[0]
    (tmp_path / "card.yaml").write_text(f"{text}several: {{{keys}}}\n", encoding="utf-8")
    assert Card.load(tmp_path / "card.yaml").answers == ("yes", "no")
    assert load(tmp_path, f"{text}several: {{yes: yes, no: no}}\n") == (
        "Card file card.yaml: several must map names to texts; got {'yes': True, 'no': False}. "
        'Put words that YAML reads as true or false in quotes ("yes").'
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"several": {"yes": "yes"}},
            "Card 'yard': several is {'yes': 'yes'}; it must hold the two words that the model "
            'answers with, first the one for a class that the clip has: {yes: "yes", no: "no"}. '
            "They must differ by more than case and punctuation.",
        ),
        (
            {"several": {"yes": "Yes.", "no": "yes"}},
            "Card 'yard': several is {'yes': 'Yes.', 'no': 'yes'}; it must hold the two words that "
            'the model answers with, first the one for a class that the clip has: {yes: "yes", '
            'no: "no"}. They must differ by more than case and punctuation.',
        ),
        (
            {"prompts": CARD.prompts},
            "Card 'yard': with the key several, prompts.label is put once for each class, but it "
            'does not use {word}, the class word that it asks about. Such as: "Does the clip show '
            '{word}? Answer yes or no."',
        ),
        (
            {"values": {"quiet": 1, "alarm": 2}},
            "Card 'yard' has the keys several and values: a clip with several classes has no place "
            "on their scale. Leave one of the two out.",
        ),
        (
            {"prompts": {**SEVERAL.prompts, "rationale": "Describe {word}."}},
            "Card 'yard': prompts.rationale uses {word}; allowed are {persona}, {words} and "
            "{text}. Write {{ and }} for plain braces.",
        ),
        (
            {"prompts": {**SEVERAL.prompts, "label": "{word} {x}"}},
            "Card 'yard': prompts.label uses {x}; allowed are {persona}, {words}, {text} and "
            "{word}. Write {{ and }} for plain braces.",
        ),
    ],
)
def test_cards_of_several_classes_that_do_not_work(change, message):
    with pytest.raises(ValueError, match="Card 'yard'") as error:
        replace(SEVERAL, **change)
    assert str(error.value) == message


def test_what_needs_clips_of_one_class():
    CARD.refuse_several("compare")
    with pytest.raises(ValueError, match="key several") as error:
        SEVERAL.refuse_several("compare", "Leave it out.")
    assert str(error.value) == (
        "compare needs clips of one class, but card 'yard' has the key several: its clips may have "
        "several classes, or none. Leave it out."
    )
