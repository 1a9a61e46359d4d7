"""A request about a clip, the answer to it, and what an engine is."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from rbft.video.sampling import Video

# What became of a request. Only "answered" is ever a rationale or a number:
#   answered      a text by the model that was asked
#   refused       the model or a filter before it declined
#   empty         an answer without text, after every attempt
#   other_model   another model than the one asked for answered
#   other_frames  the server counted fewer prompt tokens than the frames alone have
#   failed        no answer after every attempt, or the request was turned down
#   not_sent      the budget did not allow it
Status = Literal[
    "answered", "refused", "empty", "other_model", "other_frames", "failed", "not_sent"
]
# What a server has answered, and so what a store holds.
STORED = frozenset({"answered", "refused", "empty", "other_model", "other_frames"})


@dataclass(frozen=True)
class Sampling:
    """How a text is decoded.

    Attributes:
        max_tokens: Tokens of the answer at most.
        temperature: 0 takes the likeliest token each time; None leaves it to the server.
        top_p: Share of the probability that tokens are drawn from; None leaves it to the server.
        seed: For draws; None sends none. Few servers promise the same text for the same seed.
        top_logprobs: For how many tokens at each place of the answer log-probabilities are asked;
            0 asks for none.
        response_format: A form that the answer must have, as OpenAI's API takes it (a JSON
            schema); None for free text.
    """

    max_tokens: int = 512
    temperature: float | None = 0.0
    top_p: float | None = None
    seed: int | None = None
    top_logprobs: int = 0
    response_format: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Request:
    """A prompt about a clip.

    Attributes:
        id: Unique among the requests of a run.
        prompt: The text that follows the clip.
        video: Gives the frames, when they are needed: thousands of requests hold none. It is called
            from another thread, several at a time. None asks about the prompt alone.
        frames_digest: `rbft.engines.content.frames_digest` of the video, where it is known. A
            request whose answer is in the store is then answered without decoding.
        system: The system message; None sends none.
        sampling: How the answer is decoded.
        sample: Number of the sample, where a prompt is asked several times.
    """

    id: str
    prompt: str
    video: Callable[[], Video] | None = None
    frames_digest: str | None = None
    system: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    sample: int = 0


@dataclass(frozen=True)
class Token:
    """A token of an answer.

    Attributes:
        text: The token.
        logprob: Its log-probability.
        top: The likeliest tokens of its place and their log-probabilities.
    """

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Answer:
    """What became of a request.

    Attributes:
        id: The request's.
        status: See `Status`; what is not "answered" must not be used as if it were.
        text: What was answered; also where another model answered.
        finish: Why the text ends, in the server's words: "stop", "length", "content_filter".
        refusal: The words of a refusal.
        error: Why there is no answer, or what is wrong with it; empty where all is well.
        model: The model that answered, as the server names it.
        prompt_tokens: Tokens of system message, clip and prompt by the server's count.
        completion_tokens: Tokens of the answer by the server's count, hidden thoughts included.
        cached_tokens: Those of the prompt that the server had read before.
        tokens: The answer's tokens and log-probabilities, where they were asked for and given.
        fingerprint: The server's `system_fingerprint`, which changes with its software.
        seconds: From sending to the answer's end, the last attempt alone.
        attempts: How often the request was sent.
        shown: In words, what the model saw of the clip.
        key: Digest of what determines the request: its name in the replay store.
        replayed: Whether the answer comes from the store.
    """

    id: str
    status: Status
    text: str = ""
    finish: str = ""
    refusal: str = ""
    error: str = ""
    model: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    tokens: tuple[Token, ...] | None = None
    fingerprint: str = ""
    seconds: float = 0.0
    attempts: int = 0
    shown: str = ""
    key: str = ""
    replayed: bool = False

    @property
    def ok(self) -> bool:
        """Whether the model that was asked has answered."""
        return self.status == "answered"

    def record(self) -> dict[str, Any]:
        """As JSON holds it, without what the request says: id, key, whether it was replayed."""
        made = dataclasses.asdict(self)
        for name in ("id", "key", "replayed"):
            del made[name]
        return made

    @classmethod
    def of_record(cls, record: Mapping[str, Any], id: str, key: str) -> "Answer":
        """The answer that `record` has written, as that to a request with this id."""
        tokens = record["tokens"]
        if tokens is not None:
            tokens = tuple(
                Token(one["text"], one["logprob"], tuple((text, p) for text, p in one["top"]))
                for one in tokens
            )
        return cls(**{**record, "tokens": tokens}, id=id, key=key, replayed=True)


@runtime_checkable
class Engine(Protocol):
    """Answers requests."""

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Gives one answer for each request, in any order; requests are taken as they are needed.

        Raises:
            ValueError: If two requests have one id, or none can be answered.
        """
        ...
