import json
import math
from typing import Any

import pytest

from rbft.card import Card
from rbft.engines.request import Answer, Token
from rbft.inference.server_answer import AnsweredClass, answered_class, label_form

PROMPTS = {"label": "Which?", "rationale": "Why?"}
CARD = Card("yard", "guard", {"quiet": "normal", "alarm": "abnormal"}, PROMPTS)


def answer(text: str, *top: tuple[str, float], **more: Any) -> Answer:
    """An answer whose first place has tokens of these probabilities, if there are any."""
    tokens = tuple((token, math.log(share)) for token, share in top)
    made = (Token(tokens[0][0], tokens[0][1], tokens),) if tokens else None
    return Answer("a", **({"status": "answered", "text": text, "tokens": made} | more))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Abnormal.", "alarm"),
        (" normal\n", "quiet"),
        ("not abnormal", None),
        ("The video is abnormal.", None),
        ("", None),
    ],
)
def test_the_text_decides_where_there_are_no_log_probabilities(
    text: str, expected: str | None
) -> None:
    assert answered_class(answer(text), CARD) == AnsweredClass(expected)


def test_tokens_that_begin_a_word_are_added_up() -> None:
    """The likeliest single token is another class's than the likeliest class."""
    top = [("ab", 0.4), ("Normal", 0.3), (" normal", 0.2), ("The", 0.1)]
    found = answered_class(answer("abnormal", *top), CARD)
    assert found.prediction == "quiet"
    assert found.probabilities == pytest.approx({"quiet": 5 / 9, "alarm": 4 / 9})
    assert not found.tied


def test_an_answer_that_goes_on_after_the_word_has_probabilities() -> None:
    top = [("Ab", 0.8), ("normal", 0.1)]
    found = answered_class(answer("Abnormal, since a door is open.", *top), CARD)
    assert (found.prediction, found.tied) == ("alarm", False)
    assert found.probabilities == pytest.approx({"quiet": 1 / 9, "alarm": 8 / 9})


def test_of_classes_that_are_as_likely_the_first_is_taken() -> None:
    found = answered_class(answer("abnormal", ("ab", 0.25), ("norm", 0.25)), CARD)
    assert found == AnsweredClass("quiet", {"quiet": 0.5, "alarm": 0.5}, tied=True)


@pytest.mark.parametrize(
    ("text", "top"),
    [
        # A refusal: what speaks for a class is what is left over.
        ("I cannot say.", [("I", 0.9), ("normal", 0.05), ("ab", 0.01)]),
        ("No idea.", [("No", 0.9), ("ab", 0.01)]),
        ("abnormality", [("ab", 0.9), ("normal", 0.01)]),
    ],
)
def test_what_does_not_begin_with_a_class_word_is_no_class(text: str, top: Any) -> None:
    assert answered_class(answer(text, *top), CARD) == AnsweredClass(None)


def test_without_a_token_of_every_class_the_text_decides() -> None:
    assert answered_class(answer("abnormal", ("ab", 0.99)), CARD) == AnsweredClass("alarm")


def test_words_that_share_a_first_token_are_told_apart_by_the_text() -> None:
    card = Card("posts", "guard", {"a": "hateful", "b": "harmless"}, PROMPTS)
    shared = [("ha", 0.9), ("hate", 0.05), ("harm", 0.01)]
    assert answered_class(answer("harmless", *shared), card) == AnsweredClass("b")
    apart = answered_class(answer("harmless", *shared[1:]), card)
    assert apart.prediction == "a"


@pytest.mark.parametrize("status", ["refused", "empty", "other_model", "other_frames", "failed"])
def test_what_is_not_answered_has_no_class(status: Any) -> None:
    given = answer("abnormal", ("ab", 0.9), ("normal", 0.1), status=status)
    assert answered_class(given, CARD) == AnsweredClass(None)


def test_a_form_can_be_nothing_but_a_class_word() -> None:
    form = label_form(CARD.words)
    assert form["type"] == "json_schema"
    assert form["json_schema"]["strict"] is True
    schema = form["json_schema"]["schema"]
    assert schema["properties"] == {"label": {"type": "string", "enum": ["normal", "abnormal"]}}
    assert (schema["type"], schema["required"]) == ("object", ["label"])
    assert schema["additionalProperties"] is False
    assert json.loads(json.dumps(form)) == form


def test_a_structured_answer_has_the_class_of_its_word() -> None:
    given = answer('{ "label":\n"abnormal"}')
    assert answered_class(given, CARD, structured=True) == AnsweredClass("alarm")


@pytest.mark.parametrize("text", ["abnormal", '"abnormal"', '{"label": "alarm"}', "{}", "[1]", ""])
def test_a_structured_answer_of_another_form_is_no_class(text: str) -> None:
    asks = "The answer has no class word under 'label', which endpoint.labels structured asks for: "
    given = answer(text, finish="stop")
    problem = f"{asks}the server may not keep to response_format."
    found = answered_class(given, CARD, structured=True)
    assert found == AnsweredClass(None, problem=problem)
    cut = answered_class(answer(text, finish="length"), CARD, structured=True)
    assert cut == AnsweredClass(None, problem=f"{asks}model.max_new_tokens cut it off.")


def test_a_refusal_has_no_structured_class() -> None:
    given = answer('{"label": "normal"}', status="refused")
    assert answered_class(given, CARD, structured=True) == AnsweredClass(None)
