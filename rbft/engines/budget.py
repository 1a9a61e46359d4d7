"""What may be spent on servers, counted before it is spent."""

import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rbft.engines.request import Answer
from rbft.engines.shared_file import SharedLines

PRICE_KEYS = ("input", "output")
OPTIONAL = ("cached_input", "image_tokens")


@dataclass(frozen=True)
class Price:
    """What a model costs, per million tokens.

    Attributes:
        input: Of the prompt.
        output: Of the answer, hidden thoughts included.
        cached_input: Of prompt tokens that the server had read before; None is `input`.
        image_tokens: Tokens of one picture at most, at the size and detail that are sent.
    """

    input: float
    output: float
    cached_input: float | None = None
    image_tokens: int | None = None


@dataclass(frozen=True)
class Prices:
    """A table of prices.

    Attributes:
        file: Where it stands.
        currency: What money is counted in.
        date: The day from which the prices are, as the file says it.
        source: Where they were read.
        models: The price of each model, by the name that is asked for.
    """

    file: Path
    currency: str
    date: str
    source: str
    models: dict[str, Price]

    @classmethod
    def load(cls, file: Path) -> "Prices":
        """Reads a YAML file: currency, date, source, and models by name.

        Raises:
            ValueError: If the file is missing or says something else.
        """
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"Price table {file} does not exist.") from None
        except yaml.YAMLError as error:
            raise ValueError(f"Price table {file} is no YAML: {error}") from None
        keys = ("currency", "date", "source", "models")
        if not isinstance(content, dict) or sorted(content) != sorted(keys):
            raise ValueError(
                f"Price table {file} must have the keys {', '.join(keys)} and no others."
            )
        if not isinstance(content["models"], dict):
            raise ValueError(f"Price table {file}: models must give a price for each name.")
        models = {
            str(name): _price(entry, f"Price table {file}, model {name}")
            for name, entry in content["models"].items()
        }
        currency, date, source = (str(content[key]) for key in keys[:3])
        return cls(file, currency, date, source, models)

    def of(self, model: str) -> Price:
        """The price of a model.

        Raises:
            ValueError: If the table does not have it.
        """
        if model not in self.models:
            raise ValueError(
                f"Price table {self.file} has no model {model}; it has "
                f"{', '.join(self.models) or 'none'}. Add it with its input and output prices per "
                "million tokens."
            )
        return self.models[model]


@dataclass(frozen=True)
class Spent:
    """Requests, tokens and money.

    Attributes:
        requests: Requests that were sent, each attempt counted.
        tokens: Tokens of prompts and answers.
        money: In the currency of the price table; 0 without one.
    """

    requests: int = 0
    tokens: int = 0
    money: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            self.requests + other.requests, self.tokens + other.tokens, self.money + other.money
        )

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(
            self.requests - other.requests, self.tokens - other.tokens, self.money - other.money
        )


@dataclass(frozen=True)
class Limits:
    """What may be spent; None sets no limit.

    Attributes:
        requests: Requests that may be sent, each attempt counted.
        tokens: Tokens of prompts and answers.
        money: In the currency of the price table.
    """

    requests: int | None = None
    tokens: int | None = None
    money: float | None = None

    def passed_by(self, spent: Spent) -> str:
        """The name of the first limit that this passes, empty if none."""
        for name in ("requests", "tokens", "money"):
            limit = getattr(self, name)
            if limit is not None and getattr(spent, name) > limit * (1 + 1e-12):
                return name
        return ""


class Budget:
    """Stops before a limit is passed, over attempts, restarts, kills and processes.

    Before a request is sent, the most that it can cost is reserved; when the answer is there, what
    it did cost takes the place of that. An attempt after which nobody knows what the server counted
    (a time-out, a broken connection, a killed process) counts with the most that it can cost.
    Not for several threads at once.

    Args:
        model: The model that is asked.
        limits: What may be spent.
        ledger: JSON Lines with every attempt, from which a run that is started again knows what was
            spent, and by which several processes share one budget. None counts this process alone.
        prices: The price table, needed for a limit of money.

    Raises:
        ValueError: If money is limited without a price of the model, a limit is negative, or the
            ledger is damaged.
    """

    def __init__(
        self,
        model: str,
        limits: Limits | None = None,
        ledger: Path | None = None,
        prices: Prices | None = None,
    ) -> None:
        self.limits = limits or Limits()
        for name in ("requests", "tokens", "money"):
            value = getattr(self.limits, name)
            if value is not None and value < 0:
                raise ValueError(f"The limit of {name} is {value}; it must be 0 or more.")
        if self.limits.money is not None and prices is None:
            raise ValueError(
                f"A limit of money ({self.limits.money:g}) needs a price table: a YAML file with "
                f"the prices of {model} per million tokens (docs/rationales.md has an example)."
            )
        self.model, self.prices = model, prices
        self.price = None if prices is None else prices.of(model)
        self.currency = "" if prices is None else prices.currency
        self._file = None if ledger is None else SharedLines(ledger)
        self._open: dict[str, Spent] = {}  # sent, and not known what it cost; of any process
        self._mine: set[str] = set()
        self._settled = Spent()
        self._factor = 1.0  # by how much a prompt was longer than the most that was expected
        self._read()

    def describe_most(self, most: Spent, *, pictures: bool) -> str:
        """What requests cost at most, in words.

        Args:
            most: Tokens and money.
            pictures: Whether clips are sent as pictures, whose tokens the price table tells.
        """
        said = f"{most.tokens} tokens"
        if pictures and not self.image_tokens:
            said += " and those of the pictures (image_tokens in endpoint.prices tells them)"
        if self.prices is not None:
            said += f", {most.money:.4f} {self.currency} (prices of {self.prices.date})"
        return said

    @property
    def spent(self) -> Spent:
        """What was spent, with the most that open requests can cost."""
        return sum(self._open.values(), self._settled)

    @property
    def reserved(self) -> Spent:
        """The part of `spent` that is reserved: open requests, and those of killed processes."""
        return sum(self._open.values(), Spent())

    @property
    def waiting(self) -> bool:
        """Whether requests of this process are open, so that less may come to be reserved."""
        return bool(self._mine)

    @property
    def counts_images(self) -> bool:
        """Whether it must be known what a picture costs at most."""
        return self.limits.tokens is not None or self.limits.money is not None

    @property
    def image_tokens(self) -> int:
        """Tokens of a picture at most; 0 where nothing depends on it.

        Raises:
            ValueError: If a limit depends on it and it is not known.
        """
        known = None if self.price is None else self.price.image_tokens
        if known is None and self.counts_images:
            raise ValueError(
                f"A limit of tokens or money needs to know how many tokens a picture has at most "
                f"for {self.model}: give image_tokens in the price table."
            )
        return known or 0

    def at_most(self, prompt: int, answer: int) -> Spent:
        """The most that one attempt costs.

        Args:
            prompt: Tokens of the prompt at most.
            answer: Tokens of the answer at most.
        """
        prompt = int(prompt * self._factor) + (self._factor > 1)
        return Spent(1, prompt + answer, self._money(prompt, 0, answer))

    def cost(self, answer: Answer) -> Spent | None:
        """What an answer did cost; None if the server does not say."""
        if answer.prompt_tokens is None or answer.completion_tokens is None:
            return None
        prompt, made, cached = answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens
        return Spent(1, prompt + made, self._money(prompt, cached or 0, made))

    def reserve(self, most: Spent) -> tuple[str, str]:
        """Reserves the most that an attempt can cost.

        Returns:
            A name for `settle`, and nothing; or nothing, and the limit that it would pass.
        """
        ticket = uuid.uuid4().hex[:16]
        if self._file is None:
            if over := self.limits.passed_by(self.spent + most):
                return "", over
            self._open[ticket] = most
        else:
            with self._file.owned():
                self._read()
                if over := self.limits.passed_by(self.spent + most):
                    return "", over
                self._file.add([{"sent": ticket, "tokens": most.tokens, "money": most.money}])
                self._read()
        self._mine.add(ticket)
        return ticket, ""

    def settle(self, ticket: str, cost: Spent | None, estimate: int = 0, counted: int = 0) -> None:
        """Puts what an attempt did cost in the place of what was reserved.

        Args:
            ticket: Of `reserve`.
            cost: What it cost; None if nobody knows, so that the reserve stays spent.
            estimate: The prompt's tokens at most, as was expected.
            counted: The prompt's tokens, as the server counted them; what was too little is made
                up for in later reserves.
        """
        self._mine.discard(ticket)
        cost = cost or self._open[ticket]
        if self._file is None:
            del self._open[ticket]
            self._settled += cost
        else:
            with self._file.owned():
                record = {"back": ticket, "tokens": cost.tokens, "money": cost.money}
                # Lost, the most that it could cost stays counted.
                self._file.add([record], flush=False)
                self._read()
        if estimate and counted > estimate:
            self._factor = max(self._factor, counted / estimate)

    def describe(self) -> str:
        """What was spent of what may be, in words."""
        spent, limits = self.spent, self.limits
        parts = [
            f"{spent.requests} of {limits.requests} requests"
            if limits.requests is not None
            else f"{spent.requests} requests",
            f"{spent.tokens} of {limits.tokens} tokens"
            if limits.tokens is not None
            else f"{spent.tokens} tokens",
        ]
        if self.prices is not None:
            of = "" if limits.money is None else f" of {limits.money:g}"
            parts.append(f"{spent.money:.4f}{of} {self.currency} (prices of {self.prices.date})")
        return ", ".join(parts)

    def _money(self, prompt: int, cached: int, answer: int) -> float:
        if self.price is None:
            return 0.0
        price = self.price
        less = price.input if price.cached_input is None else price.cached_input
        cached = min(cached, prompt)
        return ((prompt - cached) * price.input + cached * less + answer * price.output) / 1e6

    def _read(self) -> None:
        if self._file is None:
            return
        for number, _, line in self._file.news():
            try:
                record = json.loads(line)
                cost = Spent(1, int(record["tokens"]), float(record["money"]))
                if "sent" in record:
                    self._open[record["sent"]] = cost
                else:
                    del self._open[record["back"]]
                    self._settled += cost
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{self._file.path}, line {number} is damaged. What was spent is not known: "
                    "take the file from a backup, or remove it and set limits for what is left."
                ) from None


def _price(entry: Any, what: str) -> Price:
    if not isinstance(entry, dict) or not set(PRICE_KEYS) <= entry.keys() <= {
        *PRICE_KEYS,
        *OPTIONAL,
    }:
        raise ValueError(
            f"{what} must give {' and '.join(PRICE_KEYS)}, per million tokens, and may give "
            f"{' and '.join(OPTIONAL)}; it gives {entry!r}."
        )
    for name, value in entry.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ValueError(f"{what}: {name} is {value!r}; it must be a number from 0 on.")
    images = entry.pop("image_tokens", None)
    if images is not None and not isinstance(images, int):
        raise ValueError(f"{what}: image_tokens is {images!r}; it must be a whole number.")
    return Price(**{name: float(value) for name, value in entry.items()}, image_tokens=images)
