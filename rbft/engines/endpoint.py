"""Asks servers that have an API like OpenAI's: vLLM, SGLang, transformers serve, OpenAI, Gemini."""

import asyncio
import json
import logging
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rbft.engines import faults
from rbft.engines.budget import Budget, Spent
from rbft.engines.chat import Chat, Malformed, digest
from rbft.engines.content import Content, frames_digest
from rbft.engines.faults import Backoff, Fault
from rbft.engines.pace import Pace
from rbft.engines.replay import ReplayStore
from rbft.engines.request import Answer, Request
from rbft.video.sampling import Video

NO_KEY = "none"  # the client wants one, and servers without keys do not look at it
SHOWN = 5  # names in a message
OPENAI = "api.openai.com"

log = logging.getLogger(__name__)


@dataclass
class _Server:
    """A server among several.

    Attributes:
        url: Its base URL.
        client: The openai client.
        open: Requests that it is answering.
        not_before: Time of the event loop's clock before which it does not want to be asked.
        faults: Attempts in a row that it did not answer.
    """

    url: str
    client: Any
    open: int = 0
    not_before: float = 0.0
    faults: int = 0


class _Run:
    """What one call of `answer` holds: an event loop in a thread of its own and what lives there.

    Args:
        servers: The servers.
        concurrency: Requests that are open at a time.
    """

    def __init__(self, servers: list[_Server], concurrency: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.servers = servers
        self.slots = asyncio.Semaphore(concurrency)
        self.settled, self.ended = asyncio.Event(), asyncio.Event()
        self.done: queue.Queue[Answer | Exception] = queue.Queue()
        self.asking: dict[str, asyncio.Future[Answer]] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.repeated: Counter[str] = Counter()
        self.flagged: Counter[str] = Counter()
        self.stopped = ""  # why nothing is sent any more

    def submit(self, make: Callable[[], Coroutine[Any, Any, Answer]]) -> None:
        """Starts a coroutine; its answer or error will stand in `done`. From another thread."""
        self.loop.call_soon_threadsafe(self._start, make)

    def take(self) -> Answer:
        """The next answer. From another thread.

        Raises:
            Exception: What ended a coroutine.
        """
        taken = self.done.get()
        if isinstance(taken, Exception):
            raise taken
        return taken

    def end(self) -> None:
        """Cancels what is open. From another thread."""
        self.loop.call_soon_threadsafe(self.ended.set)

    def _start(self, make: Callable[[], Coroutine[Any, Any, Answer]]) -> None:
        async def finish() -> None:
            try:
                self.done.put(await make())
            except Exception as error:
                self.done.put(error)
            except asyncio.CancelledError:
                self.done.put(RuntimeError("A request was cancelled."))  # none is left waiting
                raise

        task = self.loop.create_task(finish())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


class EndpointEngine:
    """Answers requests through one or several servers that serve the same model.

    A request goes to the server with the fewest open requests. What may come right is sent again:
    after 408, 409, 425, 429 and 5xx, time-outs, broken connections, answers that are no JSON and
    answers without text. Every answer goes into the store before it is given, so that a run which
    was ended or killed at any moment goes on where it was; what has been answered is never sent
    again.

    The key stands in an environment variable and in no setting, log, error or file.

    Args:
        chat: The model and how it is asked.
        urls: The servers' base URLs, such as http://localhost:8000/v1.
        store: Where answers are kept and looked up first.
        budget: What may be spent; None sets no limit.
        key_variable: The environment variable with the key; None for servers that want none.
        concurrency: Requests that are open at a time, over all servers.
        attempts: How often a request is sent at most.
        timeout: Seconds for one attempt, from sending to the answer's end.
        backoff: How long to wait between attempts.
        pace: How many requests and tokens a minute are sent, over all servers; None as many as fit.
        offline: Answer from the store alone.
        again: Statuses of stored answers that are asked again: other_model after a server was put
            right, say. Answered requests are never sent again.

    Raises:
        ValueError: If the key's variable is not set, a URL is none, or a setting is out of range.
    """

    def __init__(
        self,
        chat: Chat,
        urls: Sequence[str],
        store: ReplayStore,
        budget: Budget | None = None,
        *,
        key_variable: str | None = None,
        concurrency: int = 16,
        attempts: int = 8,
        timeout: float = 600.0,
        backoff: Backoff | None = None,
        pace: Pace | None = None,
        offline: bool = False,
        again: Sequence[str] = (),
    ) -> None:
        allowed = ("refused", "empty", "other_model", "other_frames")
        if wrong := sorted(set(again) - set(allowed)):
            raise ValueError(f"again: {', '.join(wrong)} is none of {', '.join(allowed)}.")
        if not offline and (not urls or isinstance(urls, str)):
            raise ValueError(f"urls must be a list of one or more base URLs, not {urls!r}.")
        for name, value in (("concurrency", concurrency), ("attempts", attempts)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more.")
        if timeout <= 0:
            raise ValueError(f"timeout is {timeout:g} seconds; it must be more than 0.")
        self.chat, self.urls = chat, [faults.check_url(url) for url in urls]
        self.store, self.budget = store, budget or Budget(chat.model)
        self.key_variable, self.concurrency = key_variable, concurrency
        self.attempts, self.timeout, self.backoff = attempts, timeout, backoff or Backoff()
        self.pace = pace or Pace()
        self.offline, self.again = offline, frozenset(again)
        if not offline:
            self._key()  # now, not after an hour
            _openai()

    def answer(self, requests: Iterable[Request]) -> Generator[Answer, None, None]:
        """Answers each request once, in the order in which answers come.

        Requests are taken as slots become free, and frames are decoded when their turn has come, so
        memory is bounded by `concurrency`. Closing the iterator, or Ctrl-C, cancels what is open;
        what has been answered is in the store.

        Args:
            requests: Requests with different ids.

        Yields:
            An `Answer` for each request. One that could not be had has status "failed", or
            "not_sent" when the budget is used up, and its error says why.

        Raises:
            ValueError: If two requests have one id; a server turns the key, the URL or the model
                down; or, offline, answers are missing (after those that are there).
        """
        if self.offline:
            yield from self._replay(requests)
            return
        self.store.refresh()
        ready: queue.Queue[_Run | Exception] = queue.Queue()
        thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(ready)), daemon=True, name="endpoint"
        )
        thread.start()
        run = ready.get()
        if isinstance(run, Exception):
            raise run
        unanswered = 0
        try:
            for request in _unique(requests):
                while unanswered >= 2 * self.concurrency or not run.done.empty():
                    unanswered -= 1
                    yield run.take()
                run.submit(partial(self._answer, run, request))
                unanswered += 1
            while unanswered:
                unanswered -= 1
                yield run.take()
        finally:
            run.end()
            thread.join()

    def estimate(self, requests: Iterable[Request]) -> tuple[int, Spent]:
        """How many requests are not in the store, and what they cost at most if none is repeated.

        Decodes the clips of those that are not there.

        Raises:
            ValueError: If two requests have one id, or a video cannot be decoded.
        """
        count, total = 0, Spent()
        self.store.refresh()
        for request in _unique(requests):
            asked, video = self._asked(request)
            if self._known(digest(asked), request.id) is None:
                content = self._content(request, video)
                count, total = count + 1, total + self._most(request, content)[0]
        return count, total

    def _replay(self, requests: Iterable[Request]) -> Iterator[Answer]:
        missing, total = [], 0
        self.store.refresh()
        for request in _unique(requests):
            total += 1
            try:
                asked, _ = self._asked(request)
            except _Unusable as error:
                yield Answer(request.id, "failed", error=str(error))
                continue
            found = self.store.get(digest(asked), request.id)
            if found is None:
                missing.append(request.id)
            else:
                yield found
        if missing:
            shown = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
            raise ValueError(
                f"{len(missing)} of {total} answers of {self.chat.model} are not in "
                f"{self.store.path} ({shown}), and nothing is sent offline. An answer is known by "
                "model, prompt, frames and sampling; if one of them has changed, so has the "
                "answer. To ask for what is missing, leave offline false."
            )

    async def _serve(self, ready: "queue.Queue[_Run | Exception]") -> None:
        """Lives in a thread of its own while requests are answered."""
        try:
            servers = [_Server(url, self._client(url)) for url in self.urls]
            run = _Run(servers, self.concurrency)
        except Exception as error:
            ready.put(error)
            return
        ready.put(run)
        await run.ended.wait()
        tasks = list(run.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in servers:
            await server.client.close()
        if run.repeated:
            kinds = ", ".join(f"{count} x {what}" for what, count in run.repeated.most_common())
            log.info("%d attempts gave no answer: %s.", run.repeated.total(), kinds)
        for status, count in run.flagged.items():
            log.warning("%d answers have the status %s and are not used.", count, status)

    async def _answer(self, run: _Run, request: Request) -> Answer:
        """The answer to a request: from the store, from an equal request that is open, or asked."""
        async with run.slots:
            try:
                asked, video = await asyncio.to_thread(self._asked, request)
                key = digest(asked)
                if (found := self._known(key, request.id)) is not None:
                    return found
                if (same := run.asking.get(key)) is not None:
                    return replace(await asyncio.shield(same), id=request.id, replayed=True)
                future = run.asking[key] = run.loop.create_future()
                try:
                    content = await asyncio.to_thread(self._content, request, video)
                    del video
                    answer = await self._ask(run, request, asked, content)
                    answer = replace(answer, key=key)
                    future.set_result(answer)
                    return answer
                except Exception as error:
                    future.set_exception(error)
                    future.exception()  # so that asyncio does not complain if nobody waits for it
                    raise
                finally:
                    future.cancel()  # does nothing where there is an answer or an error
                    del run.asking[key]
            except _Unusable as error:
                return Answer(request.id, "failed", error=self._scrub(str(error)))

    async def _ask(
        self, run: _Run, request: Request, asked: dict[str, Any], content: Content
    ) -> Answer:
        """Sends a request until it is answered, turned down, or has been sent often enough."""
        body, (most, estimate) = self.chat.body(request, content), self._most(request, content)
        fault: Fault | None = None
        for attempt in range(1, self.attempts + 1):
            server = await self._pick(run)
            while not run.stopped and (pause := self.pace.claim(most.tokens)):
                await asyncio.sleep(min(pause, 1.0))  # others may give back what they do not take
                server = await self._pick(run)
            ticket = await self._reserve(run, most)
            if not ticket:
                return Answer(request.id, "not_sent", error=run.stopped, attempts=attempt - 1)
            server.open += 1
            try:
                answer, fault = await self._attempt(server, request, content, body)
                last = fault is None or not fault.again or attempt == self.attempts
                if answer is not None and last:
                    answer = replace(answer, attempts=attempt)
                    await asyncio.to_thread(self.store.add, asked, answer)
            except BaseException:
                self._settle(run, ticket, None)
                raise
            finally:
                server.open -= 1
            cost = None if answer is None else self.budget.cost(answer)
            if cost is None and fault is not None and fault.free:
                cost = Spent(1)
            self.pace.settle(most.tokens, most.tokens if cost is None else cost.tokens)
            counted = 0 if answer is None else answer.prompt_tokens or 0
            self._settle(run, ticket, cost, estimate, counted)
            if answer is not None and last:
                if answer.status in ("other_model", "other_frames"):
                    run.flagged[answer.status] += 1
                    if run.flagged[answer.status] == 1:  # it will be true of many
                        log.warning("%s: %s", request.id, answer.error)
                return answer
            assert fault is not None
            run.repeated[fault.text.split(": ")[0]] += 1
            if fault.hopeless:
                raise ValueError(
                    f"{server.url} turned the request {request.id} down. {fault.text}. "
                    f"{fault.hopeless}{self._hint(fault)}."
                )
            pause = self._cool_down(run, server, fault)
            if not fault.again:
                return Answer(request.id, "failed", error=fault.text, attempts=attempt)
            if pause > self.backoff.longest_retry_after:
                problem = f"{fault.text} (it asks to come back in {pause:.0f} s)"
                return Answer(request.id, "failed", error=problem, attempts=attempt)
            if attempt < self.attempts:
                await asyncio.sleep(self.backoff.delay(attempt))
        assert fault is not None
        problem = f"No answer after {self.attempts} attempts; the last: {fault.text}"
        return Answer(request.id, "failed", error=problem, attempts=self.attempts)

    async def _attempt(
        self, server: _Server, request: Request, content: Content, body: dict[str, Any]
    ) -> tuple[Answer | None, Fault | None]:
        """Sends a request once.

        Returns:
            What was answered, if anything was, and what is wrong with it.
        """
        begun = time.monotonic()
        try:
            answer = self.chat.read(request, content, await self._send(server, body))
        except Malformed as error:
            return None, Fault(self._scrub(f"Malformed response: it {error}"), again=True)
        except Fault as fault:
            fault.text = self._scrub(fault.text)
            if not fault.refused:
                return None, fault
            answer = Answer(
                request.id,
                "refused",
                finish="content_filter",
                refusal=fault.text,
                error="A filter of the server turned the request down.",
                shown=content.shown,
            )
            return answer, fault
        else:
            record = self._scrub(answer.record())
            answer = replace(
                Answer.of_record(record, id=request.id, key=""),
                seconds=time.monotonic() - begun,
                replayed=False,
            )
            server.faults = 0
            empty = answer.status == "empty"
            return answer, Fault("Empty answer", again=True) if empty else None

    async def _send(self, server: _Server, body: dict[str, Any]) -> Any:
        """The JSON with which a server answers.

        Raises:
            Fault: If there is none.
        """
        openai, httpx = _openai()
        try:
            async with asyncio.timeout(self.timeout):
                response = await server.client.post(
                    "/chat/completions", cast_to=httpx.Response, body=body
                )
        except (TimeoutError, openai.APITimeoutError):
            raise Fault(f"Time-out: no answer within {self.timeout:g} s", again=True) from None
        except openai.APIStatusError as error:
            headers, found = error.response.headers, error.body or error.response.text
            raise faults.of_status(
                error.status_code, headers, found, structured="response_format" in body
            ) from None
        except openai.APIConnectionError as error:
            refused = isinstance(error.__cause__, httpx.ConnectError)
            what = f"{type(error.__cause__).__name__} ({error.__cause__})"
            raise Fault(f"Broken connection: {what}", again=True, free=refused) from None
        try:
            return json.loads(response.content)
        except ValueError:
            shown = response.text[:100]
            raise Fault(f"Malformed response: no JSON ({shown!r})", again=True) from None

    async def _pick(self, run: _Run) -> _Server:
        """The server with the fewest open requests, when one may be asked."""
        while True:
            now = run.loop.time()
            server = min(run.servers, key=lambda one: (max(one.not_before - now, 0.0), one.open))
            if server.not_before <= now:
                return server
            # A little later each, so that not all that wait come at once.
            await asyncio.sleep(server.not_before - now + self.backoff.delay(1))

    def _cool_down(self, run: _Run, server: _Server, fault: Fault) -> float:
        """Leaves a server alone that asks for it, or that fails while there are others.

        Returns:
            Seconds that the server asked for.
        """
        server.faults += 1
        asked = fault.after or 0.0
        pause = min(asked, self.backoff.longest_retry_after)
        if len(run.servers) > 1 and fault.again:
            pause = max(pause, self.backoff.bound(server.faults))
        server.not_before = max(server.not_before, run.loop.time() + pause)
        return asked

    async def _reserve(self, run: _Run, most: Spent) -> str:
        """A ticket of the budget, empty when nothing is sent any more."""
        while not run.stopped:
            run.settled.clear()
            ticket, over = self.budget.reserve(most)
            if ticket:
                return ticket
            if self.budget.waiting:  # some of what is reserved may come back
                await run.settled.wait()
                continue
            run.stopped = (
                f"Not sent: with the most that this request can cost ({most.tokens} tokens) the "
                f"limit of {over} would be passed; spent are {self.budget.describe()}. Raise the "
                "limit and start again: what has been answered is kept."
            )
            log.warning("%s", run.stopped)
        return ""

    def _settle(
        self, run: _Run, ticket: str, cost: Spent | None, estimate: int = 0, counted: int = 0
    ) -> None:
        self.budget.settle(ticket, cost, estimate, counted)
        run.settled.set()

    def _asked(self, request: Request) -> tuple[dict[str, Any], Video | None]:
        """What determines a request's answer, and its clip if that had to be decoded."""
        if request.video is None or request.frames_digest is not None:
            return self.chat.asked(request, request.frames_digest), None
        video = _decode(request)
        return self.chat.asked(request, frames_digest(video)), video

    def _content(self, request: Request, video: Video | None) -> Content:
        """What is sent of a request's clip."""
        if request.video is None:
            return Content()
        if video is None:
            video = _decode(request)
            if (found := frames_digest(video)) != request.frames_digest:
                raise _Unusable(
                    f"The frames of {request.id} have the digest {found}, not "
                    f"{request.frames_digest}, which the request says: the video or its sampling "
                    "has changed."
                )
        try:
            return self.chat.form.content(video)
        except ValueError as error:
            raise _Unusable(str(error)) from None

    def _most(self, request: Request, content: Content) -> tuple[Spent, int]:
        """What one attempt costs at most, and the prompt's tokens at most."""
        images = self.budget.image_tokens if content.tokens is None else 0
        prompt = self.chat.prompt_tokens(request, content, images)
        return self.budget.at_most(prompt, request.sampling.max_tokens), prompt

    def _known(self, key: str, id: str) -> Answer | None:
        """What the store has for a request, unless it is to be asked again."""
        found = self.store.get(key, id)
        return None if found is None or found.status in self.again else found

    def _key(self) -> str:
        """The key, read where it is used so that nothing holds it.

        Raises:
            ValueError: If its variable is not set.
        """
        if self.key_variable is None:
            return NO_KEY
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise ValueError(
                f"The environment variable {self.key_variable} is not set; it must hold the key "
                f"for {', '.join(self.urls)}. For a server that wants no key leave key_variable "
                "out."
            )
        return key

    def _scrub(self, value: Any) -> Any:
        return faults.scrub(value, self._key())

    def _hint(self, fault: Fault) -> str:
        known = self.key_variable or "no key: key_variable is not set"
        return f" ({known})" if fault.text.startswith(("HTTP 401", "HTTP 403")) else ""

    def _client(self, url: str) -> Any:
        openai, _ = _openai()
        client = openai.AsyncOpenAI(
            api_key=self._key(), base_url=url, timeout=self.timeout, max_retries=0
        )
        # The client takes more than the key from the environment; only OpenAI may have that.
        client.admin_api_key = None
        if client.base_url.host != OPENAI:
            client.organization = client.project = None
        return client


class _Unusable(ValueError):  # noqa: N818
    """A request whose clip cannot be sent."""


def _decode(request: Request) -> Video:
    assert request.video is not None
    try:
        return request.video()
    except (ValueError, OSError) as error:
        raise _Unusable(f"The clip of {request.id} cannot be decoded: {error}") from error


def _unique(requests: Iterable[Request]) -> Iterator[Request]:
    """The requests.

    Raises:
        ValueError: When two have one id.
    """
    seen: set[str] = set()
    for request in requests:
        if request.id in seen:
            raise ValueError(
                f"Two requests have the id {request.id}. Answers are told apart by it: give each "
                "prompt and each sample of a clip an id of its own."
            )
        seen.add(request.id)
        yield request


def _openai() -> tuple[Any, Any]:
    """The client's package, and the one that it speaks HTTP with.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import httpx2
        import openai
    except ImportError:
        raise ValueError(
            "Asking a server needs the package openai, which is not installed. Run: "
            "pip install 'rbft[endpoints]'"
        ) from None
    return openai, httpx2
