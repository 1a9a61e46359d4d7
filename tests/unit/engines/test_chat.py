import json
from typing import Any

import pytest

from rbft.engines.chat import Chat, Malformed, digest, error_text, refused_by_filter
from rbft.engines.content import AsImages, AsVideo, Content
from rbft.engines.request import Answer, Request, Sampling, Token
from tests.endpoint_server import completion

CHAT = Chat("gpt-4o", AsImages())
ASKED = Request("a", "prompt 0")


def read(body: Any, content: Content | None = None, chat: Chat = CHAT) -> Answer:
    return chat.read(ASKED, content or Content(), body)


@pytest.mark.parametrize(
    ("named", "same"),
    [
        ("gpt-4o", True),
        ("gpt-4o-2024-08-06", True),
        ("models/gpt-4o", True),
        ("gpt-4o-mini", False),
        ("gpt-4o-mini-2024-07-18", False),
        ("gpt-4o-2024-08-06-b", False),
        ("gpt-4", False),
        ("gptx4o", False),
        ("", False),
        ("gpt-4o@main", True),
    ],
)
def test_who_has_answered(named: str, same: bool) -> None:
    chat = Chat("gpt-4o", AsImages(), same_model=["gpt-4o@main"])
    assert chat.answers_for(named) is same
    answer = read(completion("prompt 0", named), chat=chat)
    assert answer.status == ("answered" if same else "other_model")
    assert answer.model == named
    if not same:
        assert answer.error == (
            f"'gpt-4o' was asked and {named!r} answered. If that is the same model, add the name "
            "to same_model; else the server has put another in its place."
        )


def test_a_snapshot_is_not_another_snapshot() -> None:
    chat = Chat("gpt-4o-2024-08-06", AsImages())
    assert not chat.answers_for("gpt-4o-2024-11-20")
    assert not chat.answers_for("gpt-4o")


def test_log_probabilities_and_counts() -> None:
    body = completion("prompt 0", "gpt-4o", "yes")
    top = [{"token": "yes", "logprob": -0.1, "bytes": None}, {"token": "no", "logprob": -2.5}]
    place = {"token": "yes", "logprob": -0.1, "top_logprobs": top}
    body["choices"][0]["logprobs"] = {"content": [place]}
    body["usage"] = {
        "prompt_tokens": 100,
        "completion_tokens": 5,
        "total_tokens": 140,
        "prompt_tokens_details": {"cached_tokens": 64},
    }
    answer = read(body)
    assert answer.tokens == (Token("yes", -0.1, (("yes", -0.1), ("no", -2.5))),)
    assert (answer.prompt_tokens, answer.cached_tokens) == (100, 64)
    assert answer.completion_tokens == 40, "with the thoughts that only the total counts"
    again = Answer.of_record(json.loads(json.dumps(answer.record())), id="a", key="k")
    assert again.tokens == answer.tokens
    assert (again.id, again.key, again.replayed) == ("a", "k", True)


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_an_answer_without_text(finish: str) -> None:
    body = completion("prompt 0", "gpt-4o", "")
    body["choices"][0]["finish_reason"] = finish
    assert read(body).status == ("empty" if finish == "stop" else "answered")


def test_refusals_and_filters() -> None:
    body = completion("prompt 0", "gpt-4o", "")
    body["choices"][0]["message"]["refusal"] = "No."
    assert (read(body).status, read(body).refusal) == ("refused", "No.")
    body = completion("prompt 0", "gpt-4o", "half a te")
    body["choices"][0]["finish_reason"] = "content_filter"
    assert (read(body).status, read(body).text) == ("refused", "half a te")
    body["model"] = "gpt-6"
    assert read(body).status == "other_model"


def test_too_few_prompt_tokens_show_that_frames_were_lost() -> None:
    body = completion("prompt 0", "gpt-4o")
    assert read(body, Content(tokens=20)).status == "answered"
    answer = read(body, Content(tokens=21))
    assert answer.status == "other_frames"
    assert answer.error == (
        "The server counts 20 prompt tokens, but the frames alone have 21: it has left out or "
        "resized frames. Start vLLM with --trust-request-mm-kwargs, or send the frames as images."
    )


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "text",
        {},
        {"choices": []},
        {"choices": [{}]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": ["a"]}}]},
        {"choices": [{"message": {"content": "a"}}], "usage": [1]},
        {"choices": [{"message": {"content": "a"}, "logprobs": {"content": [{}]}}]},
    ],
)
def test_what_is_no_answer(body: Any) -> None:
    with pytest.raises(Malformed, match=r"^is no chat completion \(\w+: .*\): "):
        read(body)


def test_a_body_says_all_settings() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "label"}}
    sampling = Sampling(9, 0.7, 0.9, 3, 5, schema)
    chat = Chat("m", AsVideo(), limit="max_completion_tokens", fields={"reasoning_effort": "low"})
    assert chat.body(Request("a", "What?", system="Be brief.", sampling=sampling), Content()) == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What?"},
        ],
        "max_completion_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 3,
        "logprobs": True,
        "top_logprobs": 5,
        "response_format": schema,
        "reasoning_effort": "low",
    }
    bare = chat.body(Request("a", "What?", sampling=Sampling(9, None)), Content())
    assert bare.keys() == {"model", "messages", "max_completion_tokens", "reasoning_effort"}


def test_fields_that_have_a_setting_are_refused() -> None:
    with pytest.raises(ValueError, match="rbft sets itself") as error:
        Chat("m", AsVideo(), fields={"top_k": 1, "n": 2, "temperature": 1})
    assert str(error.value) == (
        "fields of the request (top_k, n, temperature) holds n, temperature, which rbft sets "
        "itself: the model, the messages, one answer a request, the frames and the sampling have "
        "settings of their own. Leave it out."
    )


def test_names_of_one_model_are_a_list() -> None:
    with pytest.raises(ValueError, match="same_model") as error:
        Chat("m", AsVideo(), same_model="m-large")
    assert str(error.value) == "same_model must be a list of names, not 'm-large'."


def test_no_prompt_has_more_tokens_than_is_reserved() -> None:
    content = Content(tokens=77)
    asked = Request("a", "zwölf", system="äh")
    assert CHAT.prompt_tokens(asked, content, 0) == 6 + 3 + 77 + 128
    parts: list[dict[str, Any]] = [{"type": "text", "text": "1.0 s:"}, {"type": "image_url"}] * 3
    pictures = Content(parts=parts, tokens=None)
    assert CHAT.prompt_tokens(asked, pictures, 85) == 6 + 3 + 3 * (85 + 6) + 128


def test_the_key_is_the_same_on_every_machine() -> None:
    asked = CHAT.asked(ASKED, "f" * 32)
    assert digest(asked) == digest(dict(reversed(asked.items())))
    assert digest(json.loads(json.dumps(asked))) == digest(asked)
    assert digest(CHAT.asked(ASKED, None)) != digest(asked)
    # What has been asked before stays known: another key here loses every store.
    assert digest(asked) == "a07ffc9f1bb158c1574732e2b286462b"


@pytest.mark.parametrize(
    ("body", "filtered"),
    [
        ({"error": {"message": "a", "code": "content_filter"}}, True),
        ({"message": "a", "code": "content_policy_violation"}, True),
        ({"error": {"innererror": {"code": "ResponsibleAIPolicyViolation"}}}, False),
        ({"error": {"innererror": {"code": "content_filter"}}}, True),
        ({"error": {"code": 400, "type": "invalid_request_error"}}, False),
        ({"error": "content_filter"}, False),
        (None, False),
    ],
)
def test_errors_of_filters(body: Any, filtered: bool) -> None:
    assert refused_by_filter(body) is filtered


def test_what_an_error_says_is_one_short_line() -> None:
    assert error_text({"error": {"message": "a\n  b"}}) == "a b"
    assert error_text({"message": "a"}) == "a"
    assert error_text("<html>\n502</html>") == "<html> 502</html>"
    assert error_text({"detail": "c"}) == '{"detail": "c"}'
    assert error_text("x" * 999) == "x" * 300 + " ..."
