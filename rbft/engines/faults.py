"""What can go wrong with a request over HTTP, and what is done about it."""

import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from rbft.engines.chat import error_text, refused_by_filter

# Of the error statuses those after which the same request may be answered.
AGAIN = {408, 409, 425, 429}
# Those after which no other request would be answered either.
HOPELESS = {
    401: "Set the right key",
    402: "The account has no money left",
    403: "The key does not give access to the model",
    404: "Check the URL (it ends in /v1 for most servers) and the model's name",
}
SHORTEST_SECRET = 8  # characters; shorter keys are words for servers that ask for none
VLLM_FIELDS = ("media_io_kwargs", "mm_processor_kwargs")
VLLM_FLAG = "--trust-request-mm-kwargs"
# What servers say that take no structured answers, or not the one that is asked.
FORM_WORDS = ("response_format", "json_schema", "json mode", "structured", "guided", "grammar")
NO_FORM = (
    "The server takes no structured answer of this form (response_format): ask another model, or "
    "for free labels (endpoint.labels free)"
)


@dataclass(frozen=True)
class Backoff:
    """How long to wait before a request is sent again.

    The wait is drawn evenly from 0 to a bound that doubles with each attempt ("full jitter"), so
    that requests which failed together do not come back together. A server that says when to come
    back (`Retry-After`) is left alone until then.

    Args:
        first: The first bound in seconds.
        longest: No bound is longer, in seconds.
        longest_retry_after: A server that asks for more seconds than this is not waited for.
    """

    first: float = 1.0
    longest: float = 60.0
    longest_retry_after: float = 600.0

    def delay(self, failed: int) -> float:
        """Seconds to wait after so many failed attempts, from 1 on."""
        return random.SystemRandom().uniform(0, self.bound(failed))

    def bound(self, failed: int) -> float:
        """The longest wait after so many failed attempts, from 1 on, in seconds."""
        return min(self.longest, self.first * 2 ** min(failed - 1, 60))


class Fault(Exception):  # noqa: N818
    """An attempt without an answer.

    Args:
        text: What happened.
        again: Whether the same request may be answered later.
        after: Seconds for which the server asks not to be asked.
        free: Whether the server has certainly not counted any tokens.
        hopeless: What to do, if no other request would be answered either.
        refused: Whether a filter of the server turned the request down.
    """

    def __init__(
        self,
        text: str,
        *,
        again: bool,
        after: float | None = None,
        free: bool = False,
        hopeless: str = "",
        refused: bool = False,
    ) -> None:
        super().__init__(text)
        self.text, self.again, self.after = text, again, after
        self.free, self.hopeless, self.refused = free, hopeless, refused


def of_status(
    status: int, headers: Mapping[str, str], body: Any, *, structured: bool = False
) -> Fault:
    """The fault that a response with an error status stands for.

    Args:
        status: The HTTP status.
        headers: Names in any case.
        body: Its JSON, or its text where it is none.
        structured: Whether the request asked for a form of the answer.
    """
    said = error_text(body)
    inner = body.get("error", body) if isinstance(body, Mapping) else None
    code = inner.get("code") if isinstance(inner, Mapping) else None
    if VLLM_FLAG not in said and any(name in said for name in VLLM_FIELDS):
        said += f" (Start vLLM with {VLLM_FLAG}.)"
    if refused_by_filter(body):
        return Fault(f"HTTP {status}: {said}", again=False, free=True, refused=True)
    hopeless = HOPELESS.get(status, "")
    if structured and status in (400, 422) and any(word in said.lower() for word in FORM_WORDS):
        hopeless = NO_FORM
    if code == "insufficient_quota":
        hopeless = HOPELESS[402]
    again = not hopeless and (status in AGAIN or status >= 500)
    after = retry_after(headers) if again else None
    return Fault(f"HTTP {status}: {said}", again=again, after=after, free=True, hopeless=hopeless)


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that a server asks to wait: retry-after-ms, or Retry-After in seconds or as a date.

    Args:
        headers: Names in any case.
        now: Seconds since 1970; None takes the clock.

    Returns:
        Seconds from 0 on; None if it does not say, or says what is neither.
    """
    found = {name.lower(): value for name, value in headers.items()}
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        if re.fullmatch(r"\d+(\.\d+)?", value := found.get(name, "").strip()):
            return float(value) / unit
    try:
        then = parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError):
        return None
    return max(0.0, then - (time.time() if now is None else now))


def scrub(value: Any, secret: str) -> Any:
    """The same without the secret, in every text of nested lists and mappings."""
    if len(secret) < SHORTEST_SECRET:
        return value
    if isinstance(value, str):
        return value.replace(secret, "[key]")
    if isinstance(value, Mapping):
        return {scrub(k, secret): scrub(v, secret) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [scrub(one, secret) for one in value]
    return value


def check_url(url: str) -> str:
    """A server's base URL, without a slash at its end.

    Raises:
        ValueError: If it is none, or holds credentials, which would stand in logs and settings.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        parts, valid = urlsplit(""), False
    if valid and (parts.username or parts.password or parts.query or parts.fragment):
        shown = f"{parts.scheme}://{parts.hostname}"
        raise ValueError(
            f"The URL of {shown} holds a user, a password or a query. Keys come from environment "
            "variables alone: leave them out of the URL and name the variable in key_variable."
        )
    if not valid:
        raise ValueError(
            f"{url!r} is no URL of a server: it must be like http://localhost:8000/v1 or "
            "https://api.openai.com/v1."
        )
    return url.rstrip("/")
