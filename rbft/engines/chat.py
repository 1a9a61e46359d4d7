"""A chat request as OpenAI's API has it, and what its answer says."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rbft.engines.content import LENGTH, Content, Form
from rbft.engines.request import Answer, Request, Status, Token

VERSION = 1  # of what a key is made of
# What templates add around the messages, generously.
TEMPLATE_TOKENS = 128
# Codes with which servers turn a request down for what it shows or asks.
FILTERS = ("content_filter", "content_policy", "responsible_ai", "safety")

# Of a request's fields those that follow from other settings.
RESERVED = frozenset(
    {"model", "messages", "stream", "n", "media_io_kwargs", "mm_processor_kwargs", "max_tokens"}
    | {"max_completion_tokens", "temperature", "top_p", "seed", "response_format"}
    | {"logprobs", "top_logprobs"}
)


class Malformed(ValueError):  # noqa: N818
    """What a server sent is no answer of a chat API."""


@dataclass(frozen=True)
class Chat:
    """The model that is asked, and how.

    Args:
        model: Its name on the server. A name with a date (gpt-4o-2024-08-06) stays the same model.
        form: How frames are sent.
        same_model: Other names under which the server may say that it is this model. A dated
            snapshot of it (the name, then -YYYY-MM-DD) and the prefix models/ are fine already.
        limit: The field that bounds the answer's length; newer models of OpenAI take
            max_completion_tokens alone.
        fields: Further fields of each request, such as reasoning_effort.
        about: What else determines the answers and no request tells, such as the digest of the
            weights that a server of your own serves under this name. Part of each answer's key.
    """

    model: str
    form: Form
    same_model: Sequence[str] = ()
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    fields: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.same_model, str):
            raise ValueError(f"same_model must be a list of names, not {self.same_model!r}.")
        if taken := sorted(RESERVED & self.fields.keys()):
            raise ValueError(
                f"fields of the request ({', '.join(self.fields)}) holds {', '.join(taken)}, which "
                "rbft sets itself: the model, the messages, one answer a request, the frames and "
                "the sampling have settings of their own. Leave it out."
            )

    def asked(self, request: Request, frames: str | None) -> dict[str, Any]:
        """What determines the answer to a request, as JSON holds it.

        Args:
            request: The request.
            frames: `rbft.engines.content.frames_digest` of its video; None where it has none.
        """
        return {
            "version": VERSION,
            "model": self.model,
            "form": None if frames is None else self.form.facts(),
            "fields": dict(self.fields),
            "about": dict(self.about),
            "system": request.system,
            "prompt": request.prompt,
            "frames": frames,
            "sampling": self._sampling(request),
            "sample": request.sample,
        }

    def body(self, request: Request, content: Content) -> dict[str, Any]:
        """The request's JSON body; the clip comes before the prompt, as in training."""
        parts = [*content.parts, {"type": "text", "text": request.prompt}]
        user = parts if content.parts else request.prompt
        messages: list[dict[str, Any]] = [{"role": "user", "content": user}]
        if request.system is not None:
            messages.insert(0, {"role": "system", "content": request.system})
        return {
            "model": self.model,
            "messages": messages,
            **self._sampling(request),
            **content.fields,
            **self.fields,
        }

    def prompt_tokens(self, request: Request, content: Content, image_tokens: int) -> int:
        """Tokens of a prompt at most.

        A token of text has one byte at least, so there are no more tokens than bytes.

        Args:
            request: The request.
            content: Its clip.
            image_tokens: Tokens of a picture at most, where the form does not know.
        """
        text = len(f"{request.system or ''}{request.prompt}".encode(errors="replace"))
        schema = request.sampling.response_format
        fields = 0 if schema is None else len(json.dumps(dict(schema)))
        clip = content.tokens
        if clip is None:
            texts = [p["text"] for p in content.parts if p["type"] == "text"]
            clip = image_tokens * (len(content.parts) - len(texts)) + sum(map(len, texts))
        return text + fields + clip + TEMPLATE_TOKENS

    def answers_for(self, named: str) -> bool:
        """Whether a model of this name is the one that was asked."""
        theirs, ours = named.removeprefix("models/"), self.model.removeprefix("models/")
        dated = re.fullmatch(re.escape(ours) + r"-\d{4}-\d{2}-\d{2}", theirs)
        return theirs == ours or named in self.same_model or dated is not None

    def read(self, request: Request, content: Content, body: Any) -> Answer:
        """What a response says.

        Args:
            request: What was asked.
            content: Its clip; `Content()` where it is not at hand.
            body: The response's JSON.

        Raises:
            Malformed: If it is no answer of a chat API.
        """
        try:
            choice, usage = body["choices"][0], body.get("usage") or {}
            message = choice["message"]
            text, refusal = message.get("content") or "", message.get("refusal") or ""
            finish, model = choice.get("finish_reason") or "", body.get("model") or ""
            prompt = usage.get("prompt_tokens")
            completion, total = usage.get("completion_tokens"), usage.get("total_tokens")
            if prompt is not None and total is not None:  # thoughts may be in the total alone
                completion = max(completion or 0, total - prompt)
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
            tokens = _tokens(choice.get("logprobs"))
            fingerprint = body.get("system_fingerprint") or ""
            if not all(isinstance(one, str) for one in (text, refusal, finish, model, fingerprint)):
                raise TypeError("a text is none")
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise Malformed(f"is no chat completion ({problem}): {_short(body)}") from None
        status: Status = "answered"
        problem = ""
        if not self.answers_for(model):
            status = "other_model"
            problem = (
                f"{self.model!r} was asked and {model!r} answered. If that is the same model, add "
                "the name to same_model; else the server has put another in its place."
            )
        elif content.tokens and prompt is not None and prompt < content.tokens:
            status = "other_frames"
            problem = (
                f"The server counts {prompt} prompt tokens, but the frames alone have "
                f"{content.tokens}: it has left out or resized frames. Start vLLM with "
                "--trust-request-mm-kwargs, or send the frames as images."
            )
        elif refusal or finish == "content_filter":
            status, problem = "refused", "The model or a filter before it declined."
        elif not text and finish != "length":
            status, problem = "empty", "The answer has no text."
        return Answer(
            id=request.id,
            status=status,
            text=text,
            finish=finish,
            refusal=refusal,
            error=problem,
            model=model,
            prompt_tokens=prompt,
            completion_tokens=completion,
            cached_tokens=cached,
            tokens=tokens,
            fingerprint=fingerprint,
            shown=content.shown,
        )

    def _sampling(self, request: Request) -> dict[str, Any]:
        given = request.sampling
        made: dict[str, Any] = {self.limit: given.max_tokens}
        for name in ("temperature", "top_p", "seed", "response_format"):
            if (value := getattr(given, name)) is not None:
                made[name] = dict(value) if isinstance(value, Mapping) else value
        if given.top_logprobs:
            made |= {"logprobs": True, "top_logprobs": given.top_logprobs}
        return made


def digest(asked: Mapping[str, Any]) -> str:
    """The key of a request in the replay store: digest of what `Chat.asked` gives.

    Returns:
        32 hexadecimal characters.
    """
    text = json.dumps(asked, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def refused_by_filter(body: Any) -> bool:
    """Whether the body of an error says that a filter turned the request down."""
    error = body.get("error", body) if isinstance(body, Mapping) else None
    if not isinstance(error, Mapping):
        return False
    inner = error.get("innererror")
    codes = [error.get("code"), error.get("type")]
    codes += [inner.get("code")] if isinstance(inner, Mapping) else []
    return any(part in str(code).lower() for code in codes if code for part in FILTERS)


def error_text(body: Any) -> str:
    """What the body of an error says, on one line."""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    message = error.get("message") if isinstance(error, Mapping) else None
    return _short(message or error)


def _tokens(logprobs: Any) -> tuple[Token, ...] | None:
    if not logprobs or logprobs.get("content") is None:
        return None
    return tuple(
        Token(
            place["token"],
            float(place["logprob"]),
            tuple((one["token"], float(one["logprob"])) for one in place.get("top_logprobs") or ()),
        )
        for place in logprobs["content"]
    )


def _short(value: Any, length: int = 300) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[:length]} ..."
