import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rbft.engines.budget import Budget, Limits, Price, Prices
from rbft.engines.chat import Chat
from rbft.engines.content import AsImages, AsVideo, frames_digest
from rbft.engines.endpoint import EndpointEngine
from rbft.engines.faults import Backoff
from rbft.engines.pace import Pace
from rbft.engines.replay import ReplayStore
from rbft.engines.request import Answer, Request, Sampling
from rbft.video.sampling import Video, VideoError
from tests.endpoint_server import serving

CHAT = Chat("tiny-vl", AsVideo())
FAST = Backoff(first=0.001, longest=0.01)
SECRET = "sk-test-0123456789abcdef"


def engine(tmp_path: Path, *urls: str, **settings: Any) -> EndpointEngine:
    settings = {"backoff": FAST, "timeout": 20.0, "chat": CHAT} | settings
    chat = settings.pop("chat")
    return EndpointEngine(chat, urls, ReplayStore(tmp_path / "answers.jsonl"), **settings)


def requests(count: int, **settings: Any) -> list[Request]:
    sampling = Sampling(max_tokens=30)
    return [Request(f"c{n}", f"prompt {n}", sampling=sampling, **settings) for n in range(count)]


def by_id(answers: Iterable[Answer]) -> dict[str, Answer]:
    found = list(answers)
    assert len({answer.id for answer in found}) == len(found)
    return {answer.id: answer for answer in found}


def clip(seed: int = 0, frames: int = 4, size: tuple[int, int] = (28, 56)) -> Video:
    made = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (frames, 3, *size), generator=made, dtype=torch.uint8)
    return Video(pixels, [30 * n for n in range(frames)], 30 * frames, 29.97)


def test_answers_carry_what_the_server_said(tmp_path: Path) -> None:
    with serving() as server:
        found = by_id(engine(tmp_path, server.url).answer(requests(3)))
    assert found.keys() == {"c0", "c1", "c2"}
    answer = found["c1"]
    assert (answer.status, answer.text, answer.finish) == ("answered", "about prompt 1", "stop")
    assert (answer.prompt_tokens, answer.completion_tokens) == (20, 5)
    assert (answer.model, answer.fingerprint, answer.attempts) == ("tiny-vl", "fp_1", 1)
    assert (answer.error, answer.replayed, answer.shown) == (
        "",
        False,
        "No clip: the prompt alone.",
    )
    assert 0 < answer.seconds < 5
    assert server.bodies[0] == {
        "model": "tiny-vl",
        "messages": [{"role": "user", "content": server.bodies[0]["messages"][0]["content"]}],
        "max_tokens": 30,
        "temperature": 0.0,
    }


def test_a_clip_is_sent_as_the_form_makes_it(tmp_path: Path) -> None:
    with serving() as server:
        asked = Request("a", "What is done?", lambda: clip(), system="Watch.")
        [answer] = engine(tmp_path, server.url).answer([asked])
    content = AsVideo().content(clip())
    [body] = server.bodies
    assert body["messages"] == [
        {"role": "system", "content": "Watch."},
        {"role": "user", "content": [*content.parts, {"type": "text", "text": "What is done?"}]},
    ]
    assert {name: body[name] for name in content.fields} == content.fields
    assert answer.ok
    assert answer.shown == content.shown


def test_all_that_was_answered_is_taken_from_the_store(tmp_path: Path) -> None:
    decoded: list[int] = []

    def video() -> Video:
        decoded.append(1)
        return clip()

    asked = [Request("a", "one", video), Request("b", "two", video)]
    with serving() as server:
        first = by_id(engine(tmp_path, server.url).answer(asked))
        again = by_id(engine(tmp_path, server.url).answer(asked))
        known = [replace(one, frames_digest=frames_digest(clip())) for one in asked]
        count = len(decoded)
        third = by_id(engine(tmp_path, server.url).answer(known))
    assert server.sent == {"one": 1, "two": 1}
    assert again == third == {name: replace(one, replayed=True) for name, one in first.items()}
    assert len(decoded) == count, "a known digest needs no decoding"


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "other"},
        {"video": lambda: clip(1)},
        {"system": "Watch."},
        {"sampling": Sampling(seed=1)},
        {"sampling": Sampling(temperature=0.5)},
        {"sampling": Sampling(max_tokens=7)},
        {"sampling": Sampling(top_logprobs=2)},
        {"sampling": Sampling(top_p=0.5)},
        {"sampling": Sampling(response_format={"type": "json_object"})},
        {"sample": 1},
        Chat("tiny-vl-2", AsVideo(), same_model=["tiny-vl"]),
        Chat("tiny-vl", AsImages()),
        Chat("tiny-vl", AsVideo(), fields={"top_k": 3}),
        Chat("tiny-vl", AsVideo(), about={"weights": "ab"}),
    ],
)
def test_another_request_is_asked_anew(tmp_path: Path, change: Any) -> None:
    asked = Request("a", "one", lambda: clip())
    with serving() as server:
        list(engine(tmp_path, server.url).answer([asked]))
        if isinstance(change, Chat):
            list(engine(tmp_path, server.url, chat=change).answer([asked]))
        else:
            list(engine(tmp_path, server.url).answer([replace(asked, **change)]))
    assert server.sent.total() == 2


def test_the_id_and_other_times_of_the_same_frames_decide(tmp_path: Path) -> None:
    video = clip()
    other = replace(video, indices=[31 * n for n in range(4)])
    asked = [
        Request("a", "one", lambda: video),
        Request("b", "one", lambda: video),
        Request("c", "one", lambda: other),
    ]
    with serving(pause=0.05) as server:
        found = by_id(engine(tmp_path, server.url).answer(asked))
    assert server.sent["one"] == 2, "equal requests are sent once, also at the same time"
    assert Counter(answer.key for answer in found.values())[found["a"].key] == 2
    assert sorted(answer.replayed for answer in found.values()) == [False, False, True]


FAULTS = ["429", "429 after", "408", "409", "500", "502", "503", "529", "cut", "no JSON"]


@pytest.mark.parametrize("fault", [*FAULTS, "other JSON", "slow", "drip", "empty"])
def test_what_may_come_right_is_sent_again(tmp_path: Path, fault: str) -> None:
    plan = {"prompt 0": [fault, fault]}
    with serving(lambda prompt: plan.get(prompt, []), retry_after="0.01", slow=2.5) as server:
        found = by_id(engine(tmp_path, server.url, timeout=1.0).answer(requests(2)))
    assert {name: one.status for name, one in found.items()} == {"c0": "answered", "c1": "answered"}
    assert found["c0"].attempts == server.sent["prompt 0"] == 3
    assert found["c1"].attempts == server.sent["prompt 1"] == 1


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("500", "No answer after 3 attempts; the last: HTTP 500: Something is wrong"),
        ("429", "No answer after 3 attempts; the last: HTTP 429: Something is wrong"),
        ("cut", "No answer after 3 attempts; the last: Broken connection: "),
        ("slow", "No answer after 3 attempts; the last: Time-out: no answer within 0.6 s"),
        ("drip", "No answer after 3 attempts; the last: Time-out: no answer within 0.6 s"),
        ("no JSON", "No answer after 3 attempts; the last: Malformed response: no JSON ("),
        ("other JSON", "No answer after 3 attempts; the last: Malformed response: it is no chat"),
        ("400", "HTTP 400: Something is wrong"),
        ("413", "HTTP 413: Something is wrong"),
        ("422", "HTTP 422: Something is wrong"),
    ],
)
def test_what_is_not_answered_is_named(tmp_path: Path, fault: str, error: str) -> None:
    plan = {"prompt 1": [fault] * 9}
    with serving(lambda prompt: plan.get(prompt, [])) as server:
        made = engine(tmp_path, server.url, attempts=3, timeout=0.6)
        found = by_id(made.answer(requests(3)))
    assert {name for name, one in found.items() if one.ok} == {"c0", "c2"}
    failed = found["c1"]
    assert failed.status == "failed"
    assert failed.error.startswith(error), failed.error
    tries = 3 if "attempts" in error else 1
    assert failed.attempts == server.sent["prompt 1"] == tries
    assert len(made.store) == 2, "a failure is no answer: the next start tries again"


@pytest.mark.parametrize(
    ("fault", "status", "error"),
    [
        ("refusal", "refused", "The model or a filter before it declined."),
        ("filter", "refused", "A filter of the server turned the request down."),
        ("empty", "empty", "The answer has no text."),
        ("wrong model", "other_model", "'tiny-vl' was asked and 'cheaper-vl' answered. If that"),
    ],
)
def test_answers_that_are_none_are_kept_and_marked(
    tmp_path: Path, fault: str, status: Any, error: str
) -> None:
    with serving(lambda prompt: [fault] * 9) as server:
        made = engine(tmp_path, server.url, attempts=2)
        [first] = made.answer(requests(1))
        sent = server.sent.total()
        [again] = engine(tmp_path, server.url, attempts=2).answer(requests(1))
        assert server.sent.total() == sent == (2 if fault == "empty" else 1)
        server.plan = lambda prompt: []
        [right] = engine(tmp_path, server.url, again=[status]).answer(requests(1))
        [kept] = engine(tmp_path, server.url, again=[status]).answer(requests(1))
    assert (first.status, first.ok, again) == (status, False, replace(first, replayed=True))
    assert first.error.startswith(error)
    assert right.ok
    assert kept == replace(right, replayed=True)
    if fault == "refusal":
        assert first.refusal == "I cannot help with that."
    if fault == "filter":
        assert first.refusal == "HTTP 400: The prompt was filtered"


def test_another_model_is_said_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(lambda prompt: ["wrong model"]) as server:
        list(engine(tmp_path, server.url, concurrency=1).answer(requests(3)))
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said[0].startswith("c0: 'tiny-vl' was asked and 'cheaper-vl' answered.")
    assert said[1:] == ["3 answers have the status other_model and are not used."]


def test_a_server_that_is_not_there_costs_no_tokens(tmp_path: Path) -> None:
    with serving() as server:
        url = server.url
    budget = Budget("tiny-vl")
    [answer] = engine(tmp_path, url, budget=budget, attempts=3).answer(requests(1))
    assert answer.status == "failed"
    assert answer.error.startswith("No answer after 3 attempts; the last: Broken connection: Conn")
    assert (budget.spent.requests, budget.spent.tokens) == (3, 0)


@pytest.mark.parametrize("after", ["0.4", "date"])
def test_a_server_is_left_alone_for_as_long_as_it_asks(tmp_path: Path, after: str) -> None:
    fault = "429 date" if after == "date" else "429 after"
    with serving(lambda prompt: [fault], retry_after=after) as server:
        [answer] = engine(tmp_path, server.url).answer(requests(1))
    assert answer.attempts == 2
    apart = server.times[1] - server.times[0]
    # A date has whole seconds: 2 s from now is 1 s to 2 s.
    low, high = (0.9, 10) if after == "date" else (0.4, 5)
    assert low <= apart < high


def test_a_server_that_asks_for_hours_is_not_waited_for(tmp_path: Path) -> None:
    with serving(lambda prompt: ["429 after"], retry_after="7200") as server:
        begun = time.monotonic()
        [answer] = engine(tmp_path, server.url).answer(requests(1))
    assert answer.status == "failed"
    assert answer.error == "HTTP 429: Slow down (it asks to come back in 7200 s)"
    assert time.monotonic() - begun < 5


def test_the_least_busy_server_is_asked_and_a_dead_one_left_alone(tmp_path: Path) -> None:
    with serving(pause=0.02) as one, serving(pause=0.02) as two:
        made = engine(tmp_path, one.url, two.url, concurrency=4)
        assert all(answer.ok for answer in made.answer(requests(40)))
    assert abs(one.sent.total() - two.sent.total()) <= 8
    assert max(one.most_open, two.most_open) <= 3
    with serving() as alive, serving() as dead:
        url = dead.url
    with serving(pause=0.01) as alive:
        made = engine(tmp_path / "2", url, alive.url, backoff=Backoff(0.05, 0.5))
        found = list(made.answer(requests(40)))
    assert all(answer.ok for answer in found)
    assert sum(answer.attempts - 1 for answer in found) < 40, "the dead one is hardly asked"


def test_only_so_many_are_open_at_a_time_and_memory_is_bounded(tmp_path: Path) -> None:
    taken: list[int] = []
    alive = {"now": 0, "most": 0}
    lock = threading.Lock()

    class Counted:
        def __del__(self) -> None:
            with lock:
                alive["now"] -= 1

    def video() -> Video:
        made = clip()
        with lock:
            alive["now"] += 1
            alive["most"] = max(alive["most"], alive["now"])
        object.__setattr__(made, "counted", Counted())
        return made

    def stream() -> Any:
        for n in range(60):
            taken.append(n)
            yield Request(f"c{n}", f"prompt {n}", video)

    with serving(pause=0.01) as server:
        answers = engine(tmp_path, server.url, concurrency=3).answer(stream())
        next(answers)
        time.sleep(0.3)
        assert len(taken) <= 8, "a slow consumer holds the producer back"
        assert len(list(answers)) == 59
    assert server.most_open == 3
    assert alive["most"] <= 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("401", "HTTP 401: Something is wrong. Set the right key (RBFT_TEST_KEY)."),
        ("402", "HTTP 402: Something is wrong. The account has no money left."),
        ("no quota", "HTTP 429: You exceeded your current quota. The account has no money left."),
        (
            "404",
            "HTTP 404: Something is wrong. Check the URL (it ends in /v1 for most servers) and ",
        ),
    ],
)
def test_what_no_request_can_pass_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, message: str
) -> None:
    monkeypatch.setenv("RBFT_TEST_KEY", SECRET)
    with serving(lambda prompt: [fault] * 9) as server:
        made = engine(tmp_path, server.url, key_variable="RBFT_TEST_KEY", concurrency=2)
        with pytest.raises(ValueError, match="turned the request") as error:
            list(made.answer(requests(50)))
        assert f"{server.url} turned the request c" in str(error.value)
        assert message in str(error.value)
        assert server.sent.total() < 10


def test_a_clip_that_cannot_be_sent_is_named_and_the_others_are_answered(tmp_path: Path) -> None:
    def broken() -> Video:
        raise VideoError("b.mp4 is truncated.")

    asked = [
        Request("a", "one", lambda: clip()),
        Request("b", "two", broken),
        Request("c", "three", lambda: clip(size=(28, 30))),
        Request("d", "four", lambda: clip(), frames_digest="0" * 32),
    ]
    with serving() as server:
        found = by_id(engine(tmp_path, server.url).answer(asked))
    assert server.sent == {"one": 1}
    assert [found[name].status for name in "abcd"] == ["answered", "failed", "failed", "failed"]
    assert found["b"].error == "The clip of b cannot be decoded: b.mp4 is truncated."
    assert found["c"].error.startswith("Frames of 30x28 pixels would be resized by the server")
    assert found["d"].error == (
        f"The frames of d have the digest {frames_digest(clip())}, not {'0' * 32}, which the "
        "request says: the video or its sampling has changed."
    )


def test_of_equal_requests_that_cannot_be_sent_none_is_left_waiting(tmp_path: Path) -> None:
    def video() -> Video:
        time.sleep(0.1)  # so that all have begun
        return clip(size=(28, 30))

    asked = [Request(f"c{n}", "one", video) for n in range(6)]
    with serving() as server:
        found = by_id(engine(tmp_path, server.url, concurrency=6).answer(asked))
    assert {answer.status for answer in found.values()} == {"failed"}
    assert {answer.error[:22] for answer in found.values()} == {"Frames of 30x28 pixels"}
    assert not server.sent


def test_offline_gives_what_is_there_and_names_what_is_not(tmp_path: Path) -> None:
    with serving() as server:
        list(engine(tmp_path, server.url).answer(requests(3)))
    made = engine(tmp_path, offline=True)
    assert by_id(made.answer(requests(3))).keys() == {"c0", "c1", "c2"}
    answers, found = made.answer(requests(10)), []
    with pytest.raises(ValueError, match="are not in") as error:
        found.extend(answers)
    assert [answer.id for answer in found] == ["c0", "c1", "c2"]
    assert str(error.value) == (
        f"7 of 10 answers of tiny-vl are not in {tmp_path / 'answers.jsonl'} (c3, c4, c5, c6, c7, "
        "...), and nothing is sent offline. An answer is known by model, prompt, frames and "
        "sampling; if one of them has changed, so has the answer. To ask for what is missing, "
        "leave offline false."
    )


def test_two_requests_of_one_id_are_refused(tmp_path: Path) -> None:
    twice = [*requests(2), *requests(1)]
    message = (
        "Two requests have the id c0. Answers are told apart by it: give each prompt and each "
        "sample of a clip an id of its own."
    )
    with serving() as server:
        for offline in (False, True):
            with pytest.raises(ValueError, match="Two requests") as error:
                list(engine(tmp_path, server.url, offline=offline).answer(twice))
            assert str(error.value) == message


@pytest.mark.parametrize(
    ("settings", "urls", "message"),
    [
        ({"attempts": 0}, ["http://h/v1"], "attempts is 0; it must be 1 or more."),
        ({"concurrency": 0}, ["http://h/v1"], "concurrency is 0; it must be 1 or more."),
        ({"timeout": 0.0}, ["http://h/v1"], "timeout is 0 seconds; it must be more than 0."),
        ({}, [], "urls must be a list of one or more base URLs, not ()."),
        (
            {"again": ["failed"]},
            ["http://h/v1"],
            "again: failed is none of refused, empty, other_model, other_frames.",
        ),
        (
            {"key_variable": "RBFT_NO_SUCH_KEY"},
            ["http://h/v1"],
            "The environment variable RBFT_NO_SUCH_KEY is not set; it must hold the key for "
            "http://h/v1. For a server that wants no key leave key_variable out.",
        ),
        (
            {},
            ["localhost:8000"],
            "'localhost:8000' is no URL of a server: it must be like http://localhost:8000/v1 or "
            "https://api.openai.com/v1.",
        ),
        (
            {},
            [f"https://me:{SECRET}@h/v1"],
            "The URL of https://h holds a user, a password or a query. Keys come from environment "
            "variables alone: leave them out of the URL and name the variable in key_variable.",
        ),
    ],
)
def test_settings_that_cannot_be(
    tmp_path: Path, settings: Any, urls: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=r"\w") as error:
        engine(tmp_path, *urls, **settings)
    assert str(error.value) == message


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(ValueError, match="openai") as error:
        engine(tmp_path, "http://h/v1")
    assert str(error.value) == (
        "Asking a server needs the package openai, which is not installed. Run: "
        "pip install 'rbft[endpoints]'"
    )
    engine(tmp_path, offline=True)


PRICES = Prices(Path("p.yaml"), "USD", "2026-11-21", "made up", {"tiny-vl": Price(1.0, 2.0)})


@pytest.mark.parametrize(
    ("limits", "answered", "name"),
    [
        (Limits(requests=7), 7, "requests"),
        # A request reserves 8 bytes of prompt, 128 of the template, 30 of the answer; it takes 25.
        (Limits(tokens=25 * 6 + 166), 7, "tokens"),
        (Limits(tokens=165), 0, "tokens"),
        (Limits(money=(30 * 4 + 200) / 1e6), 5, "money"),
    ],
)
def test_a_budget_stops_before_it_is_passed(
    tmp_path: Path, limits: Limits, answered: int, name: str
) -> None:
    budget = Budget("tiny-vl", limits, tmp_path / "spent.jsonl", PRICES)
    with serving() as server:
        made = engine(tmp_path, server.url, budget=budget, concurrency=3)
        found = by_id(made.answer(requests(10)))
        assert sum(answer.ok for answer in found.values()) == answered
        assert server.sent.total() == answered
        for answer in found.values():
            if not answer.ok:
                assert answer.status == "not_sent"
                assert f"the limit of {name} would be passed; spent are {answered}" in answer.error
        again = Budget("tiny-vl", limits, tmp_path / "spent.jsonl", PRICES)
        list(engine(tmp_path, server.url, budget=again).answer(requests(10)))
    assert server.sent.total() == answered, "a new start has the same budget"
    assert again.spent == budget.spent
    assert not budget.reserved.requests


def test_each_attempt_counts_with_what_it_may_have_cost(tmp_path: Path) -> None:
    cases = {"500": 0, "429": 0, "cut": 166, "no JSON": 166, "slow": 166, "empty": 25}
    for fault, tokens in cases.items():
        with serving(lambda prompt, fault=fault: [fault], slow=2.5) as server:
            budget = Budget("tiny-vl")
            made = engine(tmp_path / fault, server.url, budget=budget, timeout=1.0)
            [answer] = made.answer(requests(1))
        assert answer.attempts == budget.spent.requests == 2
        assert budget.spent.tokens == tokens + 25, fault
    with serving(lambda prompt: ["no usage"]) as server:
        budget = Budget("tiny-vl")
        list(engine(tmp_path / "n", server.url, budget=budget).answer(requests(1)))
    assert budget.spent.tokens == 166


def test_requests_are_sent_at_a_pace_and_again_too(tmp_path: Path) -> None:
    with serving(lambda prompt: ["500"] if prompt == "prompt 2" else []) as server:
        made = engine(tmp_path, server.url, pace=Pace(requests=600), concurrency=6)
        found = by_id(made.answer(requests(5)))
    assert all(answer.ok for answer in found.values())
    gaps = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert len(gaps) == 5
    assert min(gaps) > 0.06  # of 0.1, less what a request may be late


def test_tokens_that_the_server_counts_set_the_pace(tmp_path: Path) -> None:
    """A request can take some 170 tokens, which is a second, and takes 25, which is a seventh."""
    with serving() as server:
        made = engine(tmp_path, server.url, pace=Pace(tokens=10_000), concurrency=1)
        begun = time.monotonic()
        by_id(made.answer(requests(4)))
    assert 0.4 < time.monotonic() - begun < 2.5


def test_what_is_not_known_to_be_bounded_is_refused(tmp_path: Path) -> None:
    chat = Chat("tiny-vl", AsImages())
    budget = Budget("tiny-vl", Limits(tokens=10**6))
    with serving() as server:
        made = engine(tmp_path, server.url, chat=chat, budget=budget)
        with pytest.raises(ValueError, match="image_tokens") as error:
            list(made.answer([Request("a", "one", lambda: clip())]))
    assert str(error.value) == (
        "A limit of tokens or money needs to know how many tokens a picture has at most for "
        "tiny-vl: give image_tokens in the price table."
    )
    assert not server.sent


def test_the_estimate_counts_what_is_not_in_the_store(tmp_path: Path) -> None:
    asked = [*requests(3), Request("v", "prompt v", lambda: clip(), sampling=Sampling(30))]
    with serving() as server:
        made = engine(tmp_path, server.url, budget=Budget("tiny-vl", prices=PRICES))
        count, most = made.estimate(asked)
        assert (count, most.requests, most.tokens) == (4, 4, 4 * 166 + 4)
        assert most.money == pytest.approx((4 * 136 + 4 + 4 * 30 * 2) / 1e6)
        list(made.answer(asked[:2]))
        assert made.estimate(asked)[0] == 2
    assert server.sent.total() == 2


def test_stopping_early_cancels_what_is_open_and_keeps_what_was_answered(tmp_path: Path) -> None:
    budget = Budget("tiny-vl")
    with serving(lambda prompt: ["slow"] if prompt != "prompt 0" else [], slow=10.0) as server:
        made = engine(tmp_path, server.url, budget=budget, concurrency=4)
        answers = made.answer(requests(20))
        assert next(answers).id == "c0"
        time.sleep(0.2)
        begun = time.monotonic()
        answers.close()
        assert time.monotonic() - begun < 5
        assert not any(thread.name == "endpoint" for thread in threading.enumerate())
    assert len(made.store) == 1
    sent = server.sent.total()
    assert budget.spent.requests == sent
    assert budget.spent.tokens == 25 + (sent - 1) * 166, "nobody knows what the server counted"
    assert not budget.reserved.requests


def test_works_within_an_event_loop(tmp_path: Path) -> None:
    async def main() -> list[Answer]:
        return list(engine(tmp_path, server.url).answer(requests(3)))

    with serving() as server:
        assert len(asyncio.run(main())) == 3


def test_the_key_stands_nowhere_but_in_the_request(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RBFT_TEST_KEY", f" {SECRET}\n")
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, f"other-{name}")
    caplog.set_level(logging.DEBUG)
    plan = {"prompt 1": ["500", "cut", "429"], "prompt 2": ["key"], "prompt 3": ["wrong model"]}
    with serving(lambda prompt: plan.get(prompt, [])) as server:
        budget = Budget("tiny-vl", Limits(requests=50), tmp_path / "spent.jsonl")
        made = engine(tmp_path, server.url, key_variable="RBFT_TEST_KEY", budget=budget)
        asked = [*requests(5), Request("echo", f"say {SECRET}")]
        found = by_id(made.answer(asked[:5]))
        said = by_id(engine(tmp_path, server.url, key_variable="RBFT_TEST_KEY").answer([asked[5]]))
        server.plan = lambda prompt: ["401"]
        with pytest.raises(ValueError, match="401") as error:
            list(made.answer([Request("last", "last")]))
        made.store.export(tmp_path / "out.jsonl", [a.key for a in found.values() if a.text])
    assert found["c2"].error == "HTTP 400: I was given [key]."
    assert said["echo"].text == "about say [key]"
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {SECRET}"}
    assert not any("other-" in value for each in server.headers for value in each.values())
    texts = [repr(made), repr(vars(made)), repr(found), str(error.value), repr(error.value)]
    texts += [caplog.text, *capfd.readouterr()]
    cause = error.value.__cause__ or error.value.__context__
    assert cause is None
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) >= 3
    for file in written:
        if file.name == "answers.jsonl":  # the user's own prompt stands there as it was asked
            texts += [line for line in file.read_text().splitlines() if "say " not in line]
        else:
            texts.append(file.read_text())
    assert not any(SECRET in text for text in texts)
