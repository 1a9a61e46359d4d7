"""How many requests and tokens a minute a server is sent."""

import time
from collections.abc import Callable

MINUTE = 60.0  # seconds


class Pace:
    """Spreads requests evenly, so that none of a server's limits a minute is passed.

    After a request the next waits for its share of a minute: 60 s over the requests a minute, or as
    long as its tokens take at the tokens a minute, whichever is longer. Nothing is saved up: a
    pause gives no right to a burst. Counted in this process alone, and by one thread.

    Args:
        requests: Requests a minute, each attempt counted; None sets no limit.
        tokens: Tokens of prompts and answers a minute; None sets no limit.
        clock: Gives seconds.

    Raises:
        ValueError: If a limit is less than 1.
    """

    def __init__(
        self,
        requests: int | None = None,
        tokens: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, value in (("requests", requests), ("tokens", tokens)):
            if value is not None and value < 1:
                raise ValueError(f"{name} a minute are {value}; they must be 1 or more.")
        self.requests, self.tokens, self.clock = requests, tokens, clock
        self._next_request = self._next_token = clock()

    def claim(self, tokens: int) -> float:
        """Takes the right to send a request now, if there is one.

        Args:
            tokens: The most that it can take.

        Returns:
            0 if it may be sent; else the seconds to wait before asking again.
        """
        now = self.clock()
        wait = max(self._next_request, self._next_token) - now
        if wait > 0:
            return wait
        if self.requests is not None:
            self._next_request = now + MINUTE / self.requests
        if self.tokens is not None:
            self._next_token = now + MINUTE * tokens / self.tokens
        return 0.0

    def settle(self, most: int, counted: int) -> None:
        """Gives back the time of tokens that a request did not take.

        Args:
            most: As given to `claim`.
            counted: As the server counted them.
        """
        if self.tokens is not None:
            self._next_token -= MINUTE * (most - counted) / self.tokens
