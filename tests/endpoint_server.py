"""A server on this machine that answers like OpenAI's API, and goes wrong when it is told to.

Tests start it in a thread, see `serving`.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# A fault, or several words for the attempts at one prompt: gone through, then "fine".
Plan = Callable[[str], list[str]]
# The text of an answer, by its prompt and the number of the attempt at it; None names the prompt.
Text = Callable[[str, int], str | None]


def completion(
    prompt: str, model: str = "tiny-vl", text: str | None = None, prompt_tokens: int = 20
) -> dict[str, Any]:
    """A chat completion: the answer names its prompt."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": model,
        "system_fingerprint": "fp_1",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": f"about {prompt}" if text is None else text,
                    "refusal": None,
                },
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": 5,
            "total_tokens": prompt_tokens + 5,
        },
    }


@dataclass
class Served:
    """What a server has seen.

    Attributes:
        url: Its base URL.
        plan: The faults of a prompt's attempts, in order.
        sent: Attempts at each prompt.
        answered: Prompts that were given a whole answer, and how often.
        bodies: The requests' bodies.
        headers: The requests' headers.
        times: When each request came, by the monotonic clock.
        most_open: The most requests that were open at a time.
        prompt_tokens: What each whole answer counts.
        text: What answers say.
        top: The likeliest tokens of an answer's first place, for requests that ask for them.
        slow: Seconds of a slow answer.
        pause: Seconds that every answer takes.
        retry_after: What 429 asks for.
        lock: Of what stands here.
        open: Requests that are open.
    """

    url: str = ""
    plan: Plan = lambda prompt: []
    sent: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    most_open: int = 0
    prompt_tokens: int = 20
    text: Text = lambda prompt, number: None
    top: Sequence[tuple[str, float]] = ()
    slow: float = 1.0
    pause: float = 0.0
    retry_after: str = "0.3"
    lock: threading.Lock = field(default_factory=threading.Lock)
    open: int = 0


def prompt_of(body: dict[str, Any]) -> str:
    """The prompt of a request."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Served

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        served = self.served
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = prompt_of(body)
        with served.lock:
            served.times.append(time.monotonic())
            served.bodies.append(body)
            served.headers.append({name.lower(): value for name, value in self.headers.items()})
            number = served.sent[prompt]
            served.sent[prompt] += 1
            served.open += 1
            served.most_open = max(served.most_open, served.open)
        try:
            plan = served.plan(prompt)
            fault = plan[number] if number < len(plan) else "fine"
            time.sleep(served.pause)
            self.respond(fault, prompt, body, number)
        finally:
            with served.lock:
                served.open -= 1

    def respond(self, fault: str, prompt: str, body: dict[str, Any], number: int) -> None:
        text = self.served.text(prompt, number)
        made = completion(prompt, body["model"], text, self.served.prompt_tokens)
        if body.get("logprobs") and self.served.top:
            top = [{"token": token, "logprob": value} for token, value in self.served.top]
            made["choices"][0]["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        message = made["choices"][0]["message"]
        if fault == "fine":
            self.whole(prompt, made)
        elif fault == "429 after":
            self.error(429, "Slow down", {"Retry-After": self.served.retry_after})
        elif fault == "429 date":
            self.error(429, "Slow down", {"Retry-After": formatdate(time.time() + 2, usegmt=True)})
        elif fault.isdigit():
            self.error(int(fault), "Something is wrong")
        elif fault == "key":
            key = self.headers["Authorization"].removeprefix("Bearer ")
            self.error(400, f"I was given {key}.")
        elif fault == "no quota":
            self.error(429, "You exceeded your current quota", code="insufficient_quota")
        elif fault == "no form":
            self.error(400, "'response_format' of type 'json_schema' is not supported")
        elif fault == "filter":
            self.error(400, "The prompt was filtered", code="content_filter")
        elif fault == "slow":
            time.sleep(self.served.slow)
            with suppress(OSError):
                self.whole(prompt, made)
        elif fault == "drip":  # never long without a byte, and never done
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            with suppress(OSError):
                for _ in range(40):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.1)
            self.close_connection = True
        elif fault == "cut":
            self.send_response(200)
            content = json.dumps(made).encode()
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.close_connection = True
        elif fault == "no JSON":
            self.send(200, b'{"choices": [{"message": {"content": "ab')
        elif fault == "other JSON":
            self.send(200, b'{"object": "chat.completion", "choices": []}')
        elif fault == "empty":
            message["content"] = ""
            self.whole(prompt, made)
        elif fault == "refusal":
            message |= {"content": None, "refusal": "I cannot help with that."}
            self.whole(prompt, made)
        elif fault == "wrong model":
            self.whole(prompt, {**made, "model": "cheaper-vl"})
        elif fault == "no usage":
            self.whole(prompt, {**made, "usage": None})
        else:
            raise AssertionError(fault)

    def whole(self, prompt: str, made: dict[str, Any]) -> None:
        with self.served.lock:
            self.served.answered[prompt] += 1
        self.send(200, json.dumps(made).encode())

    def error(
        self, status: int, text: str, headers: dict[str, str] | None = None, code: str = "some_code"
    ) -> None:
        body = {"error": {"message": text, "type": "some_type", "code": code}}
        self.send(status, json.dumps(body).encode(), headers)

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is nothing to print."""


@contextmanager
def serving(plan: Plan = lambda prompt: [], **settings: Any) -> Iterator[Served]:
    """A server in a thread, for as long as the block lasts."""
    served = Served(plan=plan, **settings)
    handler = type("Handler", (_Handler,), {"served": served})
    server = _Server(("127.0.0.1", 0), handler)
    served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
