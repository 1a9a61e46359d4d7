"""Request files for batch APIs (OpenAI's, `vllm run-batch`), and what comes back of them.

A batch API takes a file with one request a line and gives back a file with one result a line, in
any order, and a second one with those that failed. What was asked is written beside the request
files, so that results are read without the videos.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rbft.engines.budget import Budget, Spent
from rbft.engines.chat import Chat, Malformed, digest, error_text, refused_by_filter
from rbft.engines.content import Content, Form, frames_digest
from rbft.engines.replay import ReplayStore
from rbft.engines.request import Answer, Request
from rbft.runtime.files import atomically, remove
from rbft.runtime.jsonl import json_line

URL = "/v1/chat/completions"
MAX_BYTES = 190_000_000  # OpenAI takes 200 MB a file
MAX_LINES = 50_000  # and as many requests
SHOWN = 5  # names in a message
ASKED_KEYS = {"id": str, "key": str, "file": str, "asked": dict, "shown": str, "clip_tokens": int}


@dataclass(frozen=True)
class Written:
    """What `write_batch` has written.

    Attributes:
        files: The request files, in order.
        asked: The file beside them that says what each request asks, for `read_batch`.
        requests: How many requests the files hold.
        known: Ids whose answer was in the store; they are in no file.
        failed: Ids whose clip cannot be sent, with the reason.
        most: What the requests in the files cost at most; nothing where no budget counts.
    """

    files: tuple[Path, ...]
    asked: Path
    requests: int
    known: tuple[str, ...]
    failed: Mapping[str, str]
    most: Spent = field(default_factory=Spent)


@dataclass(frozen=True)
class BatchResult:
    """What became of the requests of a batch: each id stands in exactly one of the first three.

    Attributes:
        answers: What was answered, refused or empty answers included, by id.
        failed: Ids that the server turned down, with the reason.
        missing: Ids without a line in the files that were read.
        torn: Result files whose last line was cut off: they were not complete.
    """

    answers: dict[str, Answer] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    torn: list[Path] = field(default_factory=list)

    def describe(self) -> str:
        """One line for a person."""
        kinds = [f"{len(self.answers)} answered"]
        for names, what in ((self.failed, "failed"), (self.missing, "missing")):
            if names:
                kinds.append(f"{len(names)} {what} ({_some(names)})")
        if self.torn:
            kinds.append(f"cut off: {', '.join(map(str, self.torn))}")
        return "; ".join(kinds)


def write_batch(
    requests: Iterable[Request],
    path: Path,
    chat: Chat,
    store: ReplayStore | None = None,
    budget: Budget | None = None,
    *,
    max_bytes: int = MAX_BYTES,
    max_lines: int = MAX_LINES,
) -> Written:
    """Writes request files; of what has been answered already, none.

    The files are `<stem>-00001.jsonl` and so on beside `path`, and `<stem>.asked.jsonl`. Older
    files of that name are replaced. A clip is decoded, written and forgotten, so memory is bounded.

    Args:
        requests: Requests with different ids.
        path: The name from which those of the files are made, such as batches/gpt4o.jsonl.
        chat: The model and how it is asked.
        store: Requests with an answer in it are left out.
        budget: What the files may cost, with what was spent; None counts nothing.
        max_bytes: Of a file.
        max_lines: Of a file.

    Raises:
        ValueError: If two requests have one id, one alone is larger than a file may be, or all
            together could pass a limit of the budget; no file is left then.
    """
    if max_bytes < 1 or max_lines < 1:
        raise ValueError(f"max_bytes ({max_bytes}) and max_lines ({max_lines}) must be 1 or more.")
    asked_file = path.with_suffix(".asked.jsonl")
    for old in request_files(path):
        remove(old)
    known: list[str] = []
    failed: dict[str, str] = {}
    most = Spent()
    parts = _Parts(path, max_bytes, max_lines)
    seen: set[str] = set()
    with atomically(asked_file) as part, part.open("wb") as beside:
        done = False
        try:
            for request in requests:
                if request.id in seen:
                    raise ValueError(f"Two requests of the batch have the id {request.id}.")
                seen.add(request.id)
                try:
                    frames, content = _clip(request, chat.form)
                except (ValueError, OSError) as error:
                    failed[request.id] = str(error)
                    continue
                asked = chat.asked(request, frames)
                if store is not None and digest(asked) in store:
                    known.append(request.id)
                    continue
                most += _most(request, content, chat, budget)
                body = chat.body(request, content)
                line = {"custom_id": request.id, "method": "POST", "url": URL, "body": body}
                file = parts.add(request.id, json_line(line).encode())
                record = {
                    "id": request.id,
                    "key": digest(asked),
                    "file": file.name,
                    "asked": asked,
                    "shown": content.shown,
                    "clip_tokens": content.tokens or 0,
                }
                beside.write(json_line(record).encode())
            _check_affordable(most, chat.model, budget)
            done = True
        finally:
            parts.close()
            for file in () if done else parts.files:
                remove(file)
    return Written(tuple(parts.files), asked_file, parts.total, tuple(known), failed, most)


def _most(request: Request, content: Content, chat: Chat, budget: Budget | None) -> Spent:
    if budget is None:
        return Spent()
    images = budget.image_tokens if content.tokens is None else 0
    prompt = chat.prompt_tokens(request, content, images)
    return budget.at_most(prompt, request.sampling.max_tokens)


def _check_affordable(most: Spent, model: str, budget: Budget | None) -> None:
    if budget is None or not (limit := budget.limits.passed_by(budget.spent + most)):
        return
    raise ValueError(
        f"No request file is written for {model}: its {most.requests} requests could pass "
        f"endpoint.max_{limit} (at most {most.tokens} tokens"
        + (f", {most.money:.4f} {budget.currency}" if budget.prices is not None else "")
        + f"; spent are {budget.describe()}). Raise the limit, or ask about fewer clips."
    )


def request_files(path: Path) -> list[Path]:
    """The request files that `write_batch` has written for this path."""
    return sorted(
        file
        for file in path.parent.glob("*.jsonl")
        if file.name.startswith(f"{path.stem}-") and file.stem[len(path.stem) + 1 :].isdigit()
    )


def read_batch(
    path: Path, results: Sequence[Path], chat: Chat, store: ReplayStore | None = None
) -> BatchResult:
    """Reads result files, in any order, and accounts for every id.

    An id that failed in one file and was answered in another, as after a second batch of those that
    failed, is answered.

    Args:
        path: As given to `write_batch`.
        results: Result files and error files; of some parts of the batch or of all.
        chat: As given to `write_batch`.
        store: Takes every answer.

    Raises:
        ValueError: If a file is missing or damaged, holds an id that was not asked, or has two
            different answers for one id; or if another model was asked, or otherwise.
    """
    asked = _read_asked(path)
    _check_chat(asked, path, chat)
    found = BatchResult()
    where: dict[str, str] = {}
    for file in results:
        for number, line in _lines(file, found.torn):
            place = f"{file}, line {number}"
            id, answer, problem = _result(line, place, asked, chat)
            if answer is None:
                found.failed.setdefault(id, problem)
                continue
            earlier = found.answers.get(id)
            if earlier is not None and earlier.record() != answer.record():
                raise ValueError(
                    f"{place} answers {id} a second time and otherwise than {where[id]}. Results "
                    "of two batches do not go together: read those of one."
                )
            found.answers[id], where[id] = answer, place
    for id in found.answers:
        found.failed.pop(id, None)
    found.missing.extend(id for id in asked if id not in found.answers and id not in found.failed)
    if store is not None:
        store.refresh()
        for id, answer in found.answers.items():
            known = store.get(answer.key, id)
            if known is None or (answer.ok and not known.ok):
                store.add(asked[id]["asked"], answer)
    return found


class _Parts:
    """Request files, each within the bounds."""

    def __init__(self, path: Path, max_bytes: int, max_lines: int) -> None:
        self.path, self.max_bytes, self.max_lines = path, max_bytes, max_lines
        self.files: list[Path] = []
        self.total = self._bytes = self._lines = 0
        self._stream: Any = None

    def add(self, id: str, line: bytes) -> Path:
        """Adds a line to the last file, or to a new one if it does not fit there."""
        if len(line) > self.max_bytes:
            raise ValueError(
                f"The request {id} alone has {len(line):,} bytes, and a file may have "
                f"{self.max_bytes:,}. Take fewer or smaller frames, or ask a server directly."
            )
        full = self._bytes + len(line) > self.max_bytes or self._lines >= self.max_lines
        if self._stream is None or full:
            self.close()
            name = f"{self.path.stem}-{len(self.files) + 1:05d}.jsonl"
            self.files.append(self.path.with_name(name))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.files[-1].open("wb")
            self._bytes = self._lines = 0
        self._stream.write(line)
        self._bytes, self._lines = self._bytes + len(line), self._lines + 1
        self.total += 1
        return self.files[-1]

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _clip(request: Request, form: Form) -> tuple[str | None, Content]:
    if request.video is None:
        return None, Content()
    video = request.video()
    return frames_digest(video), form.content(video)


def _read_asked(path: Path) -> dict[str, dict[str, Any]]:
    """What each request asks, by id."""
    file = path.with_suffix(".asked.jsonl")
    if not file.is_file():
        raise ValueError(
            f"{file} does not exist. It is written with the request files and says what each "
            "request asks; give the path that they were written with."
        )
    asked: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            record = json.loads(line)
            right = all(isinstance(record[name], kind) for name, kind in ASKED_KEYS.items())
            right = right and digest(record["asked"]) == record["key"]
        except (ValueError, KeyError, TypeError):
            right, record = False, {}
        if not right:
            raise ValueError(f"{file}, line {number} is damaged. Write the batch again.")
        asked[record["id"]] = record
    return asked


def _check_chat(asked: Mapping[str, Mapping[str, Any]], path: Path, chat: Chat) -> None:
    """Refuses to read answers of a batch that was written with other settings.

    Raises:
        ValueError: Naming the first that differs.
    """
    mine = chat.asked(Request("", ""), "")
    for record in asked.values():
        for name in ("model", "form", "fields", "about"):
            theirs = record["asked"][name]
            if theirs != mine[name] and not (name == "form" and theirs is None):
                raise ValueError(
                    f"The batch {path} was written with {name} {theirs!r}, and now it is "
                    f"{mine[name]!r}. Read it with the settings that it was written with."
                )


def _lines(file: Path, torn: list[Path]) -> Iterator[tuple[int, Any]]:
    """The JSON of each line; a last line that was cut off is noted and left out."""
    if not file.is_file():
        raise ValueError(f"Result file {file} does not exist.")
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except ValueError:
                if line.endswith(b"\n"):
                    raise ValueError(
                        f"{file}, line {number} is no JSON. Fetch the file again."
                    ) from None
                torn.append(file)


def _result(
    line: Any, place: str, asked: Mapping[str, Mapping[str, Any]], chat: Chat
) -> tuple[str, Answer | None, str]:
    """What a line of a result file says: id, and the answer or why there is none."""
    id = line.get("custom_id") if isinstance(line, dict) else None
    if not isinstance(id, str):
        raise ValueError(f"{place} has no custom_id: it is no result of a batch API.")
    if id not in asked:
        raise ValueError(
            f"{place} is about {id}, which this batch does not ask ({len(asked)} requests: "
            f"{_some(asked)}). It belongs to another batch."
        )
    about = asked[id]
    request = Request(id, "")
    content = Content(tokens=about["clip_tokens"], shown=about["shown"])
    response = line.get("response")
    if not isinstance(response, dict):
        return id, None, error_text(line.get("error") or "neither a response nor an error")
    body, status = response.get("body"), response.get("status_code")
    if status not in (None, 200) or not body:
        reason = f"HTTP {status}: {error_text(body or line.get('error'))}"
        if not refused_by_filter(body):
            return id, None, reason
        answer = Answer(
            id,
            "refused",
            finish="content_filter",
            refusal=reason,
            error="A filter of the server turned the request down.",
            shown=content.shown,
        )
    else:
        try:
            answer = chat.read(request, content, body)
        except Malformed as error:
            return id, None, f"Malformed response: it {error}"
    return id, replace(answer, key=about["key"], attempts=1), ""


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "")
