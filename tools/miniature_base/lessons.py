"""What the base model is taught from: scenes as patches, and turns of talk.

A batch holds what the library's own processor and model would see for the same clips and turns
(tests compare them), laid out so that one core can learn from it in minutes.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray
from torch import Tensor

from rbft.backbone.positions import position_ids
from rbft.miniature import language
from rbft.miniature.camera import film
from rbft.miniature.scene import GENERAL, Scene
from tools.miniature_base.base_model import TOKENS, token_id

# Six seconds at one frame a second, out of 24 frames filmed.
TIMES = tuple(index / 23 for index in (0, 5, 9, 14, 18, 23))
GRID = (3, 6, 6)  # frame pairs, patch rows, patch columns
VIDEO_TOKENS = 27
IGNORED = -100

_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


def patches(frames: Float[Tensor, "clips frames 84 84 3"]) -> Float[Tensor, "pairs 36 1176"]:
    """Pixels (0-255) as Qwen's video processor lays them out, frame pair by frame pair."""
    pixels = (frames / 255 - _MEAN) / _STD
    pixels = pixels.view(-1, 2, 3, 2, 14, 3, 2, 14, 3)
    return pixels.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, 36, 1176)


def augment(
    frames: UInt8[ndarray, "clips frames 84 84 3"], generator: torch.Generator
) -> Float[Tensor, "clips frames 84 84 3"]:
    """Other light, paler and blurred colours (as codecs make them) and noise, for other cameras."""
    pixels = torch.from_numpy(frames).float()
    clips = len(pixels)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(clips, 1, 1, 1, 1, generator=generator)

    pixels = 110 + draw(0.7, 1.1) * (pixels - 110) + draw(-20.0, 20.0)
    grey = pixels.mean(dim=-1, keepdim=True)
    colour = pixels - grey
    blocks = colour.view(clips, -1, 42, 2, 42, 2, 3).mean(dim=(3, 5))
    blurred = blocks.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    colour = draw(0.6, 1.1) * colour.lerp(blurred, draw(0.0, 1.0))
    noise = torch.randn(*grey.shape, generator=generator)
    return (grey + colour + draw(0.0, 12.0) * noise).clamp_(0, 255)


@dataclass(frozen=True)
class Turns:
    """A batch of conversations; each turn sees its clip and itself, not the other turns."""

    input_ids: Int[Tensor, "clips tokens"]
    labels: Int[Tensor, "clips tokens"]
    positions: Int[Tensor, "3 clips tokens"]
    mask: Bool[Tensor, "clips 1 tokens tokens"]


_ID = {token: index for index, token in enumerate(TOKENS)}
_HEAD = torch.tensor(
    [
        *map(token_id, ("<|im_start|>", "user", "<|vision_start|>")),
        *[token_id("<|video_pad|>")] * VIDEO_TOKENS,
        token_id("<|vision_end|>"),
    ]
)
# One frame pair lasts 2 seconds, at 2 positions a second.
_HEAD_POSITIONS = position_ids(_HEAD, token_id("<|video_pad|>"), GRID, 2, [0.0, 4.0, 8.0])


def pack(conversations: list[list[tuple[str, str]]]) -> Turns:
    """Packs the turns (prompt, answer) of each clip behind its video.

    Every turn stands right after the video, as if it were the only one.
    """
    head = len(_HEAD)
    start = int(_HEAD_POSITIONS.max()) + 1
    rows = [[_encode(*turn) for turn in turns] for turns in conversations]
    width = head + max(sum(len(ids) for ids, _ in row) for row in rows)
    input_ids = torch.full((len(rows), width), token_id("<|endoftext|>"))
    labels = torch.full((len(rows), width), IGNORED)
    positions = torch.zeros(3, len(rows), width, dtype=torch.long)
    turn_of = torch.full((len(rows), width), -1)
    input_ids[:, :head] = _HEAD
    positions[:, :, :head] = _HEAD_POSITIONS[:, None]
    turn_of[:, :head] = 0
    for index, row in enumerate(rows):
        ends = np.cumsum([head] + [len(ids) for ids, _ in row])
        for number, ((ids, answer), (begin, end)) in enumerate(
            zip(row, pairwise(ends), strict=True)
        ):
            input_ids[index, begin:end] = torch.tensor(ids)
            labels[index, end - answer : end] = torch.tensor(ids[-answer:])
            positions[:, index, begin:end] = torch.arange(start, start + len(ids))
            turn_of[index, begin:end] = number + 1
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    same = turn_of[:, :, None] == turn_of[:, None, :]
    mask = causal & (same | (turn_of[:, None, :] == 0))
    return Turns(input_ids, labels, positions, mask[:, None])


def _encode(prompt: str, answer: str) -> tuple[list[int], int]:
    """Token ids of a turn after the video, and how many of them are the answer."""
    words = f"{prompt} <|im_end|> <|im_start|> assistant {answer} <|im_end|>".split()
    return [_ID[word] for word in words], len(answer.split()) + 1


def draw_turns(
    scene: Scene, shares: dict[str, float], rng: np.random.Generator, *, assessing: bool = True
) -> list[tuple[str, str]]:
    """A question about the scene, and each kind of prompt with its share as the probability.

    Args:
        scene: The scene.
        shares: Probability of each kind of prompt; kinds that are missing are not asked.
        rng: Draws.
        assessing: Whether rationales end with the risk that a person would see.
    """
    questions = language.questions(scene, rng)
    turns = [questions[rng.integers(len(questions))]]
    persona = language.PERSONAS[rng.integers(len(language.PERSONAS))]
    kinds = {
        "rationale": (
            language.RATIONALE_PROMPT.format(persona=persona),
            language.rationale(scene) if assessing else language.caption(scene),
        ),
        "sides": (language.SIDES_PROMPT.format(persona=persona), language.both_sides(scene)),
        "atmosphere": (language.ATMOSPHERE_PROMPT, language.atmosphere(scene)),
        "short": (language.SHORT_PROMPT, language.event(scene)),
        "label": (language.LABEL_PROMPT, language.generic_label(scene)),
    }
    asked = {kind: turn for kind, turn in kinds.items() if kind in shares}
    turns += [turn for kind, turn in asked.items() if rng.random() < shares[kind]]
    return turns


def filmed(
    scenes: list[Scene], times: list[tuple[float, ...]]
) -> UInt8[ndarray, "clips frames 84 84 3"]:
    """The scenes filmed by the general domain's camera, each at its own times."""
    return np.stack(
        [film(scene, GENERAL, moments) for scene, moments in zip(scenes, times, strict=True)]
    )
