"""How much arithmetic a training step needs, counted from the model's own layers.

A product of an `a x b` with a `b x c` matrix is 2abc floating-point operations. Per clip, with
`R` rows going through a layer of `W` weights:

    forward              2 R W for every linear layer
    backward             2 R W for the gradient of its input, where something below it trains,
                         and 2 R W for the gradient of its weights, where they train
    attention, forward   4 x (pairs that see each other) x width: scores, and weighted values
    attention, backward  twice that, where something below it trains

`R` is the clip's patches in the vision tower, its video tokens in the merger, all its tokens in the
decoder and its answer tokens in the head. The decoder's pairs are those of a causal mask,
`T (T + 1) / 2`. What is computed a second time (gradient checkpointing, the scores in a fused
backward pass) is left out, and so is everything that is no product of matrices: this is what the
model needs, not what a program spends.

Model FLOPs utilisation (MFU) is this count, per second, over the device's peak in the precision
of the products.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from rbft.backbone.family import PARTS, Family


@dataclass(frozen=True)
class ClipTokens:
    """How long a clip is to each part of the model.

    Attributes:
        grid: Frame pairs, patch rows and patch columns.
        video: Video tokens of the language model.
        prompt: All other tokens before the answer.
        answer: Tokens of the answer, the end of the turn included.
    """

    grid: tuple[int, int, int]
    video: int
    prompt: int
    answer: int

    @property
    def patches(self) -> int:
        """Patches that the vision tower sees."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def total(self) -> int:
        """Tokens of the whole sequence."""
        return self.video + self.prompt + self.answer


@dataclass(frozen=True)
class Flops:
    """Floating-point operations.

    Attributes:
        linear: In layers with weights.
        attention: In scores and weighted values.
    """

    linear: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        """Both together."""
        return self.linear + self.attention

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.linear + other.linear, self.attention + other.attention)

    def __mul__(self, times: int) -> "Flops":
        return Flops(self.linear * times, self.attention * times)


class StepCounter:
    """Counts forward and backward of clips through one model.

    With LoRA the first decoder block's input is counted as needing a gradient, which is less than
    a percent of a 7 B model.

    Args:
        model: The backbone, on any device (meta does), with `requires_grad` set as it trains.
        family: Its family.
        config: Its configuration.
    """

    def __init__(self, model: nn.Module, family: Family, config: Any) -> None:
        self.family, self.config = family, config
        trains: dict[str, bool] = dict.fromkeys(PARTS, False)
        for name, parameter in model.named_parameters():
            trains[family.part(name)] |= parameter.requires_grad
        vision = trains["vision"]
        merger = vision or trains["merger"]
        # Whether the gradient of a layer's input is needed, by part.
        self._through = {
            "vision": vision,
            "merger": merger,
            "language": merger or trains["language"],
        }
        # Products of one row, by what its rows are.
        self._products: dict[str, int] = dict.fromkeys((*PARTS, "head"), 0)
        for name, module in model.named_modules():
            if not isinstance(module, nn.Linear | nn.Conv3d):
                continue
            part = family.part(f"{name}.weight")
            # The patches are data: the convolution that takes them gives no gradient to them.
            inputs = self._through[part] and isinstance(module, nn.Linear)
            products = module.weight.numel() * (1 + inputs + module.weight.requires_grad)
            self._products["head" if name.endswith("lm_head") else part] += products

    def step(self, clip: ClipTokens) -> Flops:
        """Forward and backward of one clip."""
        rows = {"vision": clip.patches, "merger": clip.video, "language": clip.total}
        rows["head"] = clip.answer
        text = self.config.text_config
        causal = text.num_hidden_layers * clip.total * (clip.total + 1) // 2
        return Flops(
            linear=sum(2 * rows[name] * products for name, products in self._products.items()),
            attention=4 * causal * text.hidden_size * (3 if self._through["language"] else 1)
            + 4
            * self.family.vision_pairs(clip.grid, self.config)
            * tower_width(self.config)
            * (3 if self._through["vision"] else 1),
        )


def tower_width(config: Any) -> int:
    """Width of the vision tower's hidden state."""
    # Qwen2-VL calls it embed_dim, and the language model's width hidden_size.
    return getattr(config.vision_config, "embed_dim", config.vision_config.hidden_size)
