import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rbft.engines.batchfile import BatchResult, read_batch, request_files, write_batch
from rbft.engines.chat import Chat
from rbft.engines.content import AsImages, AsVideo, Content
from rbft.engines.endpoint import EndpointEngine
from rbft.engines.replay import ReplayStore
from rbft.engines.request import Request, Sampling
from rbft.video.sampling import Video, VideoError
from tests.endpoint_server import completion, serving

CHAT = Chat("tiny-vl", AsVideo())


def clip(number: int) -> Video:
    pixels = torch.full((2, 3, 28, 28), number, dtype=torch.uint8)
    return Video(pixels, [0, 1], 2, 1.0)


def requests(count: int = 6) -> list[Request]:
    return [
        Request(f"c{n}", f"prompt {n}", lambda n=n: clip(n), sampling=Sampling(max_tokens=30))
        for n in range(count)
    ]


def result(id: str, **changes: Any) -> dict[str, Any]:
    """A line of a result file, as OpenAI and vLLM write it."""
    body = completion(f"prompt {id[1:]}")
    response = {"status_code": 200, "request_id": "r", "body": body}
    return {"id": f"batch_req_{id}", "custom_id": id, "response": response, "error": None} | changes


def failed(id: str) -> dict[str, Any]:
    response = {"status_code": 400, "request_id": "r", "body": {"error": {"message": "too long"}}}
    return result(id, response=response)


def write(file: Path, lines: list[Any], end: str = "\n") -> Path:
    file.write_text("\n".join(map(json.dumps, lines)) + end)
    return file


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    path = tmp_path / "batch/b.jsonl"
    write_batch(requests(), path, CHAT)
    return path


def test_a_request_file_says_what_an_endpoint_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    written = write_batch(requests(2), path, CHAT)
    assert written.files == (tmp_path / "b-00001.jsonl",)
    lines = [json.loads(line) for line in written.files[0].read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == ["c0", "c1"]
    assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}
    with serving() as server:
        made = EndpointEngine(CHAT, [server.url], ReplayStore(tmp_path / "a.jsonl"), concurrency=1)
        list(made.answer(requests(2)))
    assert [line["body"] for line in lines] == server.bodies


@pytest.mark.parametrize("lines", [1, 4, 6, 50])
def test_files_are_split_by_requests(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "b.jsonl"
    written = write_batch(requests(), path, CHAT, max_lines=lines)
    counts = [len(file.read_text().splitlines()) for file in written.files]
    assert counts == [lines] * (6 // lines) + ([6 % lines] if 6 % lines else [])
    assert request_files(path) == list(written.files)
    assert written.requests == 6


def test_files_are_split_by_bytes_and_older_ones_removed(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    asked = [replace(request, video=None) for request in requests()]  # of one length
    [whole] = write_batch(asked, path, CHAT).files
    content = whole.read_bytes()
    two = len(b"".join(content.splitlines(keepends=True)[:2]))
    bystander = tmp_path / "b-side.jsonl"
    bystander.touch()
    for size, count in ((len(content), 1), (len(content) - 1, 2), (two, 3), (two - 1, 6)):
        written = write_batch(asked, path, CHAT, max_bytes=size)
        assert len(written.files) == count, size
        assert all(file.stat().st_size <= size for file in written.files)
        assert b"".join(file.read_bytes() for file in written.files) == content
        assert request_files(path) == list(written.files)
    assert bystander.exists()
    before = path.with_suffix(".asked.jsonl").read_bytes()
    with pytest.raises(ValueError, match="alone has") as error:
        write_batch(asked, path, CHAT, max_bytes=100)
    alone = len(content.splitlines(keepends=True)[0])
    assert str(error.value) == (
        f"The request c0 alone has {alone:,} bytes, and a file may have 100. Take fewer or smaller "
        "frames, or ask a server directly."
    )
    assert request_files(path) == []
    assert path.with_suffix(".asked.jsonl").read_bytes() == before


def test_what_is_answered_or_cannot_be_sent_is_in_no_file(tmp_path: Path, batch: Path) -> None:
    store = ReplayStore(tmp_path / "a.jsonl")
    read_batch(batch, [write(tmp_path / "r.jsonl", [result("c1"), result("c3")])], CHAT, store)

    def broken() -> Video:
        raise VideoError("c5.mp4 is truncated.")

    asked = [*requests(5), replace(requests()[5], video=broken)]
    written = write_batch(asked, tmp_path / "rest.jsonl", CHAT, store)
    assert written.known == ("c1", "c3")
    assert written.failed == {"c5": "c5.mp4 is truncated."}
    lines = written.files[0].read_text().splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == ["c0", "c2", "c4"]


def test_bounds_and_ids_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be 1 or more") as error:
        write_batch(requests(), tmp_path / "b.jsonl", CHAT, max_lines=0)
    assert str(error.value) == "max_bytes (190000000) and max_lines (0) must be 1 or more."
    with pytest.raises(ValueError, match="Two requests") as error:
        write_batch([*requests(), *requests(1)], tmp_path / "b.jsonl", CHAT)
    assert str(error.value) == "Two requests of the batch have the id c0."


def test_every_id_is_accounted_for_in_any_order(tmp_path: Path, batch: Path) -> None:
    refused = result("c4")
    refused["response"]["body"]["choices"][0]["message"] = {"content": None, "refusal": "No."}
    other = result("c0")
    other["response"]["body"]["model"] = "cheaper-vl"
    error = {"code": "batch_expired", "message": "The batch has expired."}
    results = write(tmp_path / "r.jsonl", [refused, result("c2"), other])
    errors = write(
        tmp_path / "e.jsonl", [failed("c5"), result("c1", response=None, error=error)], end=""
    )
    store = ReplayStore(tmp_path / "a.jsonl")
    found = read_batch(batch, [errors, results], CHAT, store)
    assert {id: answer.status for id, answer in found.answers.items()} == {
        "c4": "refused",
        "c2": "answered",
        "c0": "other_model",
    }
    assert found.failed == {"c5": "HTTP 400: too long", "c1": "The batch has expired."}
    assert found.missing == ["c3"]
    assert found.torn == []
    assert found.describe() == "3 answered; 2 failed (c5, c1); 1 missing (c3)"
    assert len(store) == 3
    answer = found.answers["c2"]
    assert (answer.text, answer.prompt_tokens, answer.attempts) == ("about prompt 2", 20, 1)
    assert answer.shown == AsVideo().content(clip(2)).shown
    # An endpoint finds them, and so does who reads the results again.
    made = EndpointEngine(CHAT, [], store, offline=True)
    [again] = made.answer([requests()[2]])
    assert again == replace(answer, replayed=True)
    read_batch(batch, [results], CHAT, store)
    assert len(store.path.read_text().splitlines()) == 3


def test_half_a_file_is_named(tmp_path: Path, batch: Path) -> None:
    whole = write(tmp_path / "r.jsonl", [result(f"c{n}") for n in range(6)]).read_bytes()
    half = tmp_path / "half.jsonl"
    half.write_bytes(whole[: len(whole) // 2 + 20])
    found = read_batch(batch, [half], CHAT)
    assert list(found.answers) == ["c0", "c1", "c2"]
    assert found.missing == ["c3", "c4", "c5"]
    assert found.torn == [half]
    assert found.describe() == f"3 answered; 3 missing (c3, c4, c5); cut off: {half}"
    # Fetched again it is whole, beside the half.
    found = read_batch(batch, [half, tmp_path / "r.jsonl"], CHAT)
    assert len(found.answers) == 6
    assert found.missing == []


def test_what_failed_and_was_answered_later_is_answered(tmp_path: Path, batch: Path) -> None:
    first = write(tmp_path / "1.jsonl", [failed("c0"), failed("c1")])
    second = write(tmp_path / "2.jsonl", [result("c0")])
    for files in ([first, second], [second, first]):
        found = read_batch(batch, files, CHAT)
        assert found.answers.keys() == {"c0"}
        assert found.failed.keys() == {"c1"}


def with_text(id: str, text: str) -> dict[str, Any]:
    made = result(id)
    made["response"]["body"]["choices"][0]["message"]["content"] = text
    return made


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [result("c0"), result("c9")],
            "{file}, line 2 is about c9, which this batch does not ask (6 requests: c0, c1, c2, "
            "c3, c4, ...). It belongs to another batch.",
        ),
        (
            [result("c0"), result("c1"), with_text("c0", "another")],
            "{file}, line 3 answers c0 a second time and otherwise than {file}, line 1. Results of "
            "two batches do not go together: read those of one.",
        ),
        ([{"object": "x"}], "{file}, line 1 has no custom_id: it is no result of a batch API."),
        ([3], "{file}, line 1 has no custom_id: it is no result of a batch API."),
    ],
)
def test_what_does_not_belong_is_refused(
    tmp_path: Path, batch: Path, lines: list[Any], message: str
) -> None:
    file, store = write(tmp_path / "r.jsonl", lines), ReplayStore(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"r\.jsonl") as error:
        read_batch(batch, [file], CHAT, store)
    assert str(error.value) == message.format(file=file)
    assert len(store) == 0, "nothing of it is kept"


def test_damaged_and_missing_files_are_named(tmp_path: Path, batch: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text('{"custom_id"\n' + json.dumps(result("c0")) + "\n")
    with pytest.raises(ValueError, match="is no JSON") as error:
        read_batch(batch, [file], CHAT)
    assert str(error.value) == f"{file}, line 1 is no JSON. Fetch the file again."
    with pytest.raises(ValueError, match="does not exist") as error:
        read_batch(batch, [tmp_path / "no.jsonl"], CHAT)
    assert str(error.value) == f"Result file {tmp_path / 'no.jsonl'} does not exist."
    with pytest.raises(ValueError, match=r"asked\.jsonl") as error:
        read_batch(tmp_path / "other.jsonl", [file], CHAT)
    assert str(error.value) == (
        f"{tmp_path / 'other.asked.jsonl'} does not exist. It is written with the request files "
        "and says what each request asks; give the path that they were written with."
    )
    asked = batch.with_suffix(".asked.jsonl")
    changes: list[Callable[[str], str]] = [
        lambda text: text.replace("prompt 0", "prompt x", 1),
        lambda text: text.replace('"shown"', '"shwon"', 1),
        lambda text: "{" + text,
    ]
    whole = asked.read_text()
    for change in changes:
        asked.write_text(change(whole))
        with pytest.raises(ValueError, match="damaged") as error:
            read_batch(batch, [file], CHAT)
        assert str(error.value) == f"{asked}, line 1 is damaged. Write the batch again."


def test_answers_that_are_none(tmp_path: Path, batch: Path) -> None:
    lines = [result(f"c{n}") for n in range(4)]
    lines[0]["response"]["body"] = {"choices": []}
    lines[1]["response"]["body"] = ""
    lines[2]["response"] = None
    lines[3]["response"] |= {"status_code": 400, "body": {"error": {"code": "content_filter"}}}
    found = read_batch(batch, [write(tmp_path / "r.jsonl", lines)], CHAT)
    assert found.failed == {
        "c0": "Malformed response: it is no chat completion (IndexError: list index out of range): "
        '{"choices": []}',
        "c1": "HTTP 200: null",
        "c2": "neither a response nor an error",
    }
    assert found.answers["c3"].status == "refused"
    assert BatchResult().describe() == "0 answered"


def test_a_batch_without_clips(tmp_path: Path) -> None:
    asked = [Request("c0", "prompt 0")]
    path = tmp_path / "b.jsonl"
    [file] = write_batch(asked, path, CHAT).files
    assert json.loads(file.read_text())["body"] == CHAT.body(asked[0], Content())
    found = read_batch(path, [write(tmp_path / "r.jsonl", [result("c0")])], CHAT)
    assert found.answers["c0"].shown == "No clip: the prompt alone."


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (Chat("other-vl", AsVideo()), "model 'tiny-vl', and now it is 'other-vl'"),
        (
            replace(CHAT, form=AsImages()),
            "form {'form': 'video', 'side': 28}, and now it is {",
        ),
        (replace(CHAT, fields={"top_k": 1}), "fields {}, and now it is {'top_k': 1}"),
        (replace(CHAT, about={"weights": "a"}), "about {}, and now it is {'weights': 'a'}"),
    ],
)
def test_a_batch_is_read_as_it_was_written(
    tmp_path: Path, batch: Path, chat: Chat, message: str
) -> None:
    store = ReplayStore(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="was written with") as error:
        read_batch(batch, [write(tmp_path / "r.jsonl", [result("c1")])], chat, store)
    said = str(error.value)
    assert said.startswith(f"The batch {batch} was written with {message}")
    assert said.endswith(". Read it with the settings that it was written with.")
    assert len(store) == 0
