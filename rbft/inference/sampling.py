"""Drawing the tokens of a text, so that it depends on what it is about and a seed alone."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rbft.runtime.ranges import check_ranges
from rbft.runtime.transfer import to_device

# Probabilities are rounded to multiples of 2**-48 and added as integers: on every device their sums
# are the same in whatever order they are added, which those of floating-point numbers are not.
UNIT = 2**48


@dataclass(frozen=True)
class RationaleSampling:
    """How Stage 0 draws rationales instead of always taking the likeliest token.

    Args:
        temperature: Divides the scores before the softmax.
        top_p: Share of the probability that tokens are drawn from, the likeliest first; 1 draws
            from all.
        top_k: How many tokens are drawn from, the likeliest first; 0 draws from all.
        samples: Rationales that are written about each clip, K. data.rationale_selection says
            which of them Stage I learns.
        seed: Seed of the draws. Other settings such as seed_everything do not affect them, so
            that runs which differ in these share the rationales.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges("model.rationale_sampling.", vars(self))

    @property
    def determining(self) -> dict[str, Any]:
        """What a text depends on: all but the number of samples, each of which is drawn alone."""
        return {name: value for name, value in asdict(self).items() if name != "samples"}


@dataclass(frozen=True)
class SelfConsistency:
    """Class probabilities averaged over several drawn rationales (Wang et al., 2023).

    For stages after which the model writes a rationale before it names the class (P+R+C).

    Args:
        samples: Rationales that are drawn about each clip, at most.
        temperature: Divides the scores before the softmax.
        top_p: Share of the probability that tokens are drawn from, the likeliest first; 1 draws
            from all.
        top_k: How many tokens are drawn from, the likeliest first; 0 draws from all.
        seed: Seed of the draws.
        early_stop: Draw no more about a clip as soon as those left cannot change its class.
    """

    samples: int = 5
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    early_stop: bool = True

    def __post_init__(self) -> None:
        check_ranges("model.self_consistency.", vars(self))


def weigh(
    scores: Float[Tensor, "rows vocab"], settings: RationaleSampling | SelfConsistency
) -> Int[Tensor, "rows vocab"]:
    """What each token is drawn in proportion to: its probability in units of 2**-48.

    The tokens left are those that transformers' warpers leave (TemperatureLogitsWarper,
    TopKLogitsWarper and TopPLogitsWarper, in the order of `generate`). Sums for `top_p` are exact
    here and rounded to float32 there, so a token at the very edge may be on its other side. Of
    tokens of the same score, those with smaller ids are dropped first.

    Args:
        scores: Scores before the softmax, in float32.
        settings: How tokens are drawn.
    """
    scores = scores / settings.temperature
    if settings.top_k:
        least = scores.topk(min(settings.top_k, scores.shape[-1])).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    weights = (scores.double().softmax(-1) * UNIT).round().long()
    if settings.top_p < 1:
        order = scores.sort(dim=-1, stable=True).indices
        sums = weights.gather(-1, order).cumsum(-1)
        dropped = sums <= (1 - settings.top_p) * sums[:, -1:]
        dropped[:, -1] = False  # the likeliest token stays in any case
        weights = weights.masked_fill(dropped.scatter(-1, order, dropped), 0)
    return weights


def text_key(about: Mapping[str, Any], seed: int, sample: int) -> bytes:
    """What all numbers drawn for a text come from.

    Args:
        about: Which video, segment and prompt the text is about, see `rbft.data.rationales.about`.
            The clip's id does not count, so clips that show the same are drawn the same.
        seed: Seed of the draws.
        sample: Number of the sample.
    """
    known = json.dumps([sorted(about.items()), seed, sample])
    return hashlib.sha256(known.encode(errors="surrogatepass")).digest()


def uniform(key: bytes, position: int) -> float:
    """A number from 0 to below 1 for a token of a text: a hash, so it needs no generator's state.

    Args:
        key: The text's, see `text_key`.
        position: Index of the token in the text.
    """
    drawn = hashlib.sha256(key + position.to_bytes(8, "big")).digest()
    return (int.from_bytes(drawn[:8], "big") >> 11) / 2**53


class Draw:
    """Chooses the next tokens of the texts of a batch by drawing them.

    Inverts the cumulative distribution, tokens in the order of their ids, at a number that
    `uniform` gives: the same token in every batch, process and run, as far as the scores are the
    same. Batches of other sizes may round scores otherwise in the last bits, as for greedy texts.

    Args:
        settings: How tokens are drawn.
        keys: The key of each text.
    """

    def __init__(
        self, settings: RationaleSampling | SelfConsistency, keys: Sequence[bytes]
    ) -> None:
        self.settings, self.keys = settings, list(keys)

    def __call__(
        self, scores: Float[Tensor, "rows vocab"], texts: Sequence[int], position: int
    ) -> Int[Tensor, " rows"]:
        """The next token of each of the texts.

        Args:
            scores: Scores before the softmax, in float32.
            texts: Which of the texts each row is.
            position: How many tokens each of them has.
        """
        drawn = [uniform(self.keys[text], position) for text in texts]
        shares = to_device(torch.tensor(drawn, dtype=torch.float64), scores.device)[:, None]
        sums = weigh(scores, self.settings).cumsum(-1)
        total = sums[:, -1:]
        # Below the total: a number below 1 is so by half a unit in the last place or more.
        wanted = (shares * total).long()
        found = torch.searchsorted(sums, wanted, right=True)[:, 0]
        return found.clamp(max=scores.shape[-1] - 1)  # scores that are not finite are refused later
