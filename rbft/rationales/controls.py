"""Controls: what is left of a gain when the rationales that are learnt are made worthless."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from rbft.rationales.sample import Sample

Control = Literal["shuffled", "half", "blank"]
BLANK = "."  # a word of a blank rationale


def apply_control(
    samples: Mapping[str, Sample], control: Control, ids: Sequence[str], seed: int
) -> dict[str, Sample]:
    """The rationales of a split as a control has them learnt.

    Args:
        samples: By clip id.
        control: `shuffled` gives every clip the text of another one, whatever its class; `half`
            cuts each text after half of its words; `blank` puts a full stop in the place of every
            word.
        ids: Ids of the clips in a fixed order.
        seed: Seed of what is shuffled.

    Raises:
        ValueError: If there is nothing to shuffle with.
    """
    if control == "half":
        return {name: replace(one, text=_half(one.text)) for name, one in samples.items()}
    if control == "blank":
        return {
            name: replace(one, text=" ".join([BLANK] * len(one.text.split())))
            for name, one in samples.items()
        }
    names = [name for name in ids if name in samples]
    if len(names) < 2:
        raise ValueError(
            f"data.rationale_control is shuffled, but {len(names)} clip has a rationale: there is "
            "no other to take. Leave it out."
        )
    givers = _derange(names, seed)
    return {
        name: replace(samples[giver], clip=name, label=samples[name].label)
        for name, giver in zip(names, givers, strict=True)
    }


def _half(text: str) -> str:
    words = text.split()
    return " ".join(words[: (len(words) + 1) // 2])


def _derange(names: Sequence[str], seed: int) -> list[str]:
    """The names in an order in which none stands in its own place.

    A random cycle through all of them: each takes from the next one.
    """
    order: list[int] = np.random.default_rng(seed).permutation(len(names)).tolist()
    taken = dict(zip(order, order[1:] + order[:1], strict=True))
    return [names[taken[place]] for place in range(len(names))]
