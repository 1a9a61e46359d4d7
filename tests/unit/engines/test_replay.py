import json
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import pytest

from rbft.engines.chat import Chat, digest
from rbft.engines.content import AsVideo
from rbft.engines.replay import ReplayStore, Taken
from rbft.engines.request import Answer, Request, Status
from rbft.engines.shared_file import SharedLines

CHAT = Chat("tiny-vl", AsVideo())


def asked(prompt: str) -> dict[str, Any]:
    return CHAT.asked(Request("a", prompt), None)


def put(store: ReplayStore, prompt: str, text: str = "", status: Status = "answered") -> str:
    store.add(asked(prompt), Answer(f"id of {prompt}", status, text or f"about {prompt}"))
    return digest(asked(prompt))


def test_an_answer_is_found_by_what_was_asked(tmp_path: Path) -> None:
    store = ReplayStore(tmp_path / "deep/a.jsonl")
    key = put(store, "one\u2028ü", "two\nlines")
    assert key in store
    assert len(store) == 1
    for opened in (store, ReplayStore(store.path)):
        found = opened.get(key, "other id")
        assert found == Answer("other id", "answered", "two\nlines", key=key, replayed=True)
        assert opened.get("f" * 32, "a") is None
    [line] = store.lines()
    assert line["asked"] == asked("one\u2028ü")
    assert line["key"] == key
    assert line["time"].endswith("+00:00")


def test_of_several_answers_the_right_model_s_first_counts(tmp_path: Path) -> None:
    store = ReplayStore(tmp_path / "a.jsonl")
    statuses: list[Status] = ["refused", "other_model", "answered", "refused", "answered"]
    seen, key = [], ""
    for number, status in enumerate(statuses):
        key = put(store, "one", str(number), status)
        found = store.get(key, "a")
        assert found is not None
        seen.append(found.text)
    assert seen == ["0", "1", "2", "2", "2"]
    again = ReplayStore(store.path).get(key, "a")
    assert again is not None
    assert again.text == "2"


def test_a_line_that_was_cut_off_is_taken_off(tmp_path: Path) -> None:
    store = ReplayStore(tmp_path / "a.jsonl")
    first = put(store, "one")
    with store.path.open("ab") as stream:
        stream.write(store.path.read_bytes()[:50])
    opened = ReplayStore(store.path)
    assert len(opened) == 1
    second = put(opened, "two")
    store.refresh()
    assert first in store
    assert second in store
    assert len(store.path.read_bytes().splitlines()) == 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda line: None, "it is no JSON object"),
        (lambda line: [line], "it is no JSON object"),
        (lambda line: {**line, "time": 3}, "time is missing or of another type"),
        (
            lambda line: {**line, "answer": {**line["answer"], "new": 1}},
            "the answer's new is missing or unknown",
        ),
        (
            lambda line: {**line, "answer": {**line["answer"], "status": "failed"}},
            "status 'failed' is none of answered, empty, other_frames, other_model, refused",
        ),
        (
            lambda line: {**line, "asked": {**line["asked"], "prompt": "another"}},
            "its key is not the digest of what was asked: it was changed by hand",
        ),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, change: Any, problem: str) -> None:
    store = ReplayStore(tmp_path / "a.jsonl")
    put(store, "one")
    put(store, "two")
    first, second = store.path.read_text().splitlines()
    changed = change(json.loads(second))
    text = "}{" if changed is None else json.dumps(changed)
    store.path.write_text(f"{first}\n{text}\n")
    with pytest.raises(ValueError, match="no answer of a replay store") as error:
        ReplayStore(store.path)
    assert str(error.value) == (
        f"{store.path}, line 2 is no answer of a replay store: {problem}. Remove the line (it will "
        "be asked again) or take the file from a backup."
    )


def test_lines_are_counted_from_the_file_s_start(tmp_path: Path) -> None:
    store = ReplayStore(tmp_path / "a.jsonl")
    put(store, "one")
    put(store, "two")
    with store.path.open("ab") as stream:
        stream.write(b"{}\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3 is no answer"):
        store.refresh()


def test_a_store_that_is_replaced_while_it_is_used_is_noticed(tmp_path: Path) -> None:
    store = ReplayStore(tmp_path / "a.jsonl")
    put(store, "one")
    store.path.write_text("")
    with pytest.raises(ValueError, match="was shortened") as error:
        store.refresh()
    assert str(error.value) == (
        f"{store.path} was shortened or replaced while it was in use. Start again."
    )


def write(path: Path, name: str, count: int) -> None:
    store = ReplayStore(path)
    for number in range(count):
        put(store, f"{name} {number}", "long " * 2000)


def test_several_processes_write_into_one_store(tmp_path: Path) -> None:
    path, context = tmp_path / "a.jsonl", multiprocessing.get_context("forkserver")
    started = [context.Process(target=write, args=(path, name, 40)) for name in "abc"]
    for process in started:
        process.start()
    mine = ReplayStore(path)
    write(path, "d", 40)
    for process in started:
        process.join(60)
        assert process.exitcode == 0
    assert len(mine) < 160
    mine.refresh()
    assert len(mine) == len(ReplayStore(path)) == 160
    assert len(path.read_bytes().splitlines()) == 160


def test_who_adds_waits_for_who_is_at_it(tmp_path: Path) -> None:
    store = ReplayStore(tmp_path / "a.jsonl")
    thread = threading.Thread(target=put, args=(store, "one"))
    with SharedLines(store.path).owned():  # as another process would
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert store.path.read_bytes() == b""
    thread.join(10)
    assert len(store) == 1


def test_an_export_holds_what_a_result_needs_and_is_taken_in_elsewhere(tmp_path: Path) -> None:
    store = ReplayStore(tmp_path / "a.jsonl")
    keys = [put(store, name) for name in ("one", "two", "three")]
    put(store, "two", "again", "refused")  # the answer that came first stays
    assert store.export(tmp_path / "b.jsonl", keys[:2]) == 2
    part = ReplayStore(tmp_path / "b.jsonl")
    assert [part.get(key, "x") for key in keys[:2]] == [store.get(key, "x") for key in keys[:2]]
    assert keys[2] not in part
    assert store.export(tmp_path / "all.jsonl") == 3
    store.export(tmp_path / "all2.jsonl", reversed(keys))
    assert (tmp_path / "all.jsonl").read_bytes() == (tmp_path / "all2.jsonl").read_bytes()

    other = ReplayStore(tmp_path / "c.jsonl")
    put(other, "one", "something else")
    put(other, "three", "", "refused")
    assert other.take(store.path) == Taken(2, 0, (keys[0],))
    texts = [found.text for key in keys if (found := other.get(key, "x"))]
    assert texts == ["something else", "about two", "about three"]
    assert other.take(store.path) == Taken(0, 2, (keys[0],))


def test_what_cannot_be_exported_or_taken(tmp_path: Path) -> None:
    store = ReplayStore(tmp_path / "a.jsonl")
    key = put(store, "one")
    with pytest.raises(ValueError, match="is the store itself") as error:
        store.export(tmp_path / "x/../a.jsonl")
    assert str(error.value).endswith("is the store itself. Name another file to export to.")
    with pytest.raises(ValueError, match="are not in") as error:
        store.export(tmp_path / "b.jsonl", [key, "f" * 32])
    assert str(error.value) == f"1 of 2 answers are not in {store.path} (first: {'f' * 32})."
    assert not (tmp_path / "b.jsonl").exists()
    with pytest.raises(ValueError, match="does not exist"):
        store.take(tmp_path / "c.jsonl")
