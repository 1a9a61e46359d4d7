"""The settings of an endpoint, as an experiment file has them under `endpoint`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rbft.engines.budget import Budget, Limits, Prices
from rbft.engines.chat import Chat
from rbft.engines.content import AsImages, AsVideo
from rbft.engines.endpoint import EndpointEngine
from rbft.engines.pace import Pace
from rbft.engines.replay import ReplayStore
from rbft.engines.request import Request, Sampling
from rbft.runtime.ranges import check_ranges

OPENAI_URL = "https://api.openai.com/v1"


@dataclass(frozen=True)
class EndpointSettings:
    """A server that answers in the backbone's place, through OpenAI's chat API.

    Args:
        model: The model's name on the server.
        urls: Base URLs of the servers; several serve the same model and share the requests.
        key_variable: Environment variable that holds the key; null for servers that want none.
        frames: How clips are sent: images for any server, video for vLLM, which then shows the
            model exactly rbft's frames.
        side: With video, the pixels that both sides of a frame must be a multiple of.
        detail: With images, how closely OpenAI's models look.
        times: With images, put the second of each frame before it.
        same_model: Other names under which the server may say that it is this model.
        limit: The field that bounds the answer's length.
        fields: Further fields of each request, such as reasoning_effort.
        temperature: 0 takes the likeliest token each time; null leaves it to the server, which
            models that think before they answer may ask for.
        top_logprobs: For how many tokens log-probabilities are asked (20 at most); the class then
            follows from them where they decide without doubt. 0 takes the class from the text.
        labels: How a class is answered: free asks for the word alone, as of the backbone;
            structured asks for JSON that can hold nothing but a class word, by a JSON schema, which
            not all servers know.
        weights: Digest of the weights that a server of your own serves under this name.
        concurrency: Requests that are open at a time, over all servers.
        attempts: How often a request is sent at most.
        timeout: Seconds for one attempt.
        requests_per_minute: Requests that are sent in a minute at most, over all servers and evenly
            spread; null sends as many as concurrency allows.
        tokens_per_minute: The same for the tokens of prompts and answers.
        max_requests: Requests that may be sent; null sets no limit.
        max_tokens: Tokens of prompts and answers that may be spent; null sets no limit.
        max_money: Money that may be spent, in the currency of the price table; null sets no limit.
        prices: Price table, a YAML file; needed for max_money.
        offline: Answer from the replay store alone and send nothing.
        store: Replay store; null takes `<logs>/endpoints/<model>.jsonl`.
    """

    model: str
    urls: Sequence[str] = (OPENAI_URL,)
    key_variable: str | None = "OPENAI_API_KEY"
    frames: Literal["images", "video"] = "images"
    side: int = 28
    detail: Literal["low", "high", "auto"] = "high"
    times: bool = False
    same_model: Sequence[str] = ()
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    fields: Mapping[str, Any] = field(default_factory=dict)
    temperature: float | None = 0.0
    top_logprobs: int = 0
    labels: Literal["free", "structured"] = "free"
    weights: str | None = None
    concurrency: int = 16
    attempts: int = 8
    timeout: float = 600.0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_requests: int | None = None
    max_tokens: int | None = None
    max_money: float | None = None
    prices: Path | None = None
    offline: bool = False
    store: Path | None = None

    def __post_init__(self) -> None:
        check_ranges("endpoint.", vars(self))
        if self.labels == "structured" and self.top_logprobs:
            raise ValueError(
                "endpoint.labels structured takes the class from the form of the answer, and "
                f"endpoint.top_logprobs ({self.top_logprobs}) from the probabilities of a free "
                "one. Set endpoint.top_logprobs to 0, or endpoint.labels to free."
            )

    @property
    def short_name(self) -> str:
        """The model's name, as file names hold it."""
        return "".join(char if char.isalnum() or char in "-._" else "-" for char in self.model)

    def sampling(self, max_tokens: int, *, labels: bool) -> Sampling:
        """How answers are decoded.

        Args:
            max_tokens: Tokens of an answer at most.
            labels: Whether the answer is a class, whose log-probabilities count.
        """
        return Sampling(
            max_tokens, self.temperature, top_logprobs=self.top_logprobs if labels else 0
        )

    def facts(self, sampling: Sampling) -> dict[str, Any]:
        """What determines an answer beside prompt and frames, as JSON holds it.

        Args:
            sampling: How answers are decoded.
        """
        asked = self.chat().asked(Request("", "", sampling=sampling), "")
        return {name: asked[name] for name in ("model", "form", "fields", "about", "sampling")}

    def chat(self) -> Chat:
        """The model that is asked, and how."""
        form = AsVideo(self.side) if self.frames == "video" else AsImages(self.detail, self.times)
        about = {} if self.weights is None else {"weights": self.weights}
        return Chat(self.model, form, self.same_model, self.limit, self.fields, about)

    def replay(self, logs: Path) -> ReplayStore:
        """The store that keeps every answer.

        Args:
            logs: Folder of all runs.
        """
        return ReplayStore(self.store or logs / "endpoints" / f"{self.short_name}.jsonl")

    def budget(self, logs: Path) -> Budget:
        """What may be spent, and what was spent so far.

        Args:
            logs: Folder of all runs, where the ledger is kept.
        """
        limits = Limits(self.max_requests, self.max_tokens, self.max_money)
        prices = None if self.prices is None else Prices.load(self.prices)
        ledger = self.replay(logs).path.with_suffix(".ledger.jsonl")
        return Budget(self.model, limits, ledger, prices)

    def engine(self, logs: Path) -> EndpointEngine:
        """The engine that asks the servers.

        Args:
            logs: Folder of all runs, where answers and the ledger of the budget are kept.
        """
        return EndpointEngine(
            self.chat(),
            self.urls,
            self.replay(logs),
            self.budget(logs),
            key_variable=self.key_variable,
            concurrency=self.concurrency,
            attempts=self.attempts,
            timeout=self.timeout,
            pace=Pace(self.requests_per_minute, self.tokens_per_minute),
            offline=self.offline,
        )
