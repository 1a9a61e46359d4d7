import pytest

from rbft.engines.faults import Backoff, of_status, retry_after, scrub


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "3"}, 3.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}, 37.0),
        ({"Retry-After": "Sun, 06 Nov 1994 08:48:37 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "9", "Retry-After-Ms": "250"}, 0.25),
        ({"Retry-After": "9", "Retry-After-Ms": "x"}, 9.0),
        ({"Retry-After-Ms": "nan", "Retry-After": "2"}, 2.0),
    ],
)
def test_when_a_server_wants_to_be_asked_again(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after(headers, now=784111740.0) == seconds


def test_waits_are_drawn_up_to_a_bound_that_doubles() -> None:
    backoff = Backoff(first=0.5, longest=3.0)
    assert [backoff.bound(n) for n in (1, 2, 3, 4, 5, 9999)] == [0.5, 1.0, 2.0, 3.0, 3.0, 3.0]
    drawn = [backoff.delay(3) for _ in range(300)]
    assert 0 <= min(drawn) < 0.2
    assert 1.8 < max(drawn) <= 2.0


@pytest.mark.parametrize(
    ("status", "again", "hopeless"),
    [
        (400, False, False),
        (401, False, True),
        (402, False, True),
        (403, False, True),
        (404, False, True),
        (408, True, False),
        (409, True, False),
        (413, False, False),
        (422, False, False),
        (425, True, False),
        (429, True, False),
        (500, True, False),
        (529, True, False),
    ],
)
def test_what_a_status_means(status: int, again: bool, hopeless: bool) -> None:
    fault = of_status(status, {"Retry-After": "3"}, {"error": {"message": "no"}})
    assert (fault.again, bool(fault.hopeless)) == (again, hopeless)
    assert fault.after == (3.0 if again else None)
    assert fault.text == f"HTTP {status}: no"
    assert fault.free


@pytest.mark.parametrize("body", [{"error": {"code": "insufficient_quota", "message": "no"}}])
def test_an_account_without_money_is_not_asked_again(body: dict[str, dict[str, str]]) -> None:
    for one in (body, body["error"]):
        fault = of_status(429, {}, one)
        assert (fault.again, fault.hopeless) == (False, "The account has no money left")


def test_how_vllm_is_to_be_started_is_said() -> None:
    fault = of_status(400, {}, {"message": "mm_processor_kwargs is not allowed"})
    assert fault.text.endswith("is not allowed (Start vLLM with --trust-request-mm-kwargs.)")
    said = "mm_processor_kwargs are disabled. Start the server with --trust-request-mm-kwargs."
    assert of_status(400, {}, {"message": said}).text == f"HTTP 400: {said}"


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize(
    "said",
    [
        "Invalid parameter: 'response_format' of type 'json_schema' is not supported.",
        "JSON mode is not enabled for this model",
        "Grammar error: Unimplemented keys",
    ],
)
def test_a_server_without_structured_answers_is_asked_no_more(status: int, said: str) -> None:
    fault = of_status(status, {}, {"message": said}, structured=True)
    assert (fault.again, fault.text) == (False, f"HTTP {status}: {said}")
    assert fault.hopeless == (
        "The server takes no structured answer of this form (response_format): ask another model, "
        "or for free labels (endpoint.labels free)"
    )
    assert not of_status(status, {}, {"message": said}).hopeless, "no form was asked"
    assert not of_status(status, {}, {"message": "Too many images"}, structured=True).hopeless


def test_a_secret_is_taken_out_of_every_text() -> None:
    secret = "sk-0123456789"
    value = {"a": [f"x{secret}y", 1, {secret: None}], "b": "fine"}
    assert scrub(value, secret) == {"a": ["x[key]y", 1, {"[key]": None}], "b": "fine"}
    assert scrub(({"text": secret},), secret) == [{"text": "[key]"}]
    assert scrub("none of it", "none") == "none of it", "a word for servers without keys"
