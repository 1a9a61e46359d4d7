"""How long the rest of a run takes, by how long its clips have taken so far."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# A clip is trained on, written about, scored by its class words alone, or behind a rationale that
# is written first.
Work = Literal["train", "write", "score", "answer"]
FORWARD = 1 / 3  # of the arithmetic of a training step is its forward pass, which scoring is


@dataclass
class Pace:
    """What was measured in this process, and what comes after the step at hand.

    Attributes:
        seconds: Of a clip, by kind of work.
        ahead: Clips that are still to come after the step at hand, by kind of work.
    """

    seconds: dict[Work, float] = field(default_factory=dict)
    ahead: Mapping[Work, int] = field(default_factory=dict)

    def rest(self) -> float | None:
        """Seconds that come after the step at hand; None where a kind of work is not known yet."""
        total = 0.0
        for work, clips in self.ahead.items():
            if not clips:
                continue
            each = self._each(work)
            if each is None:
                return None
            total += clips * each
        return total

    def _each(self, work: Work) -> float | None:
        known = self.seconds
        if work in known:
            return known[work]
        if work == "score" and "train" in known:
            return known["train"] * FORWARD
        if work == "train" and "score" in known:
            return known["score"] / FORWARD
        # What is written before an answer is as long as what was written to learn from.
        return known.get("write") if work == "answer" else None
