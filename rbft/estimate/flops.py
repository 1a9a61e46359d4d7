"""Counts the floating-point operations of a training step from the layers of the model.

An `a x b` matrix times a `b x c` matrix takes 2abc floating-point operations. Per clip, with `R`
rows going through a layer of `W` weights:

    forward              2 R W for every linear layer
    backward             2 R W for the gradient of its input, if it has one,
                         and 2 R W for the gradient of its weights, if they are trainable
    attention, forward   4 x (pairs that see each other) x width: scores, and weighted values;
                         linear attention: 6 T x (numbers of a state), to read, correct and ask it
    attention, backward  twice that, if its input has a gradient

`R` is the clip's patches in the vision tower, its video tokens in the merger, all its tokens in the
decoder and its answer tokens in the head. The decoder's pairs are those of a causal mask,
`T (T + 1) / 2`. Recomputation (gradient checkpointing, the scores in a fused backward pass) is not
counted, and neither is anything but matrix products and attention: this is what the model needs,
not what a program executes.

Model FLOPs utilisation (MFU) is this count, per second, over the device's peak in the compute
dtype.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from rbft.backbone.family import PARTS, Family, linear_layers


@dataclass(frozen=True)
class ClipTokens:
    """The length of a clip for each part of the model.

    Attributes:
        grid: Frame pairs, patch rows and patch columns.
        video: Video tokens in the language model.
        prompt: All other tokens before the answer.
        answer: Tokens of the answer, end of turn included.
    """

    grid: tuple[int, int, int]
    video: int
    prompt: int
    answer: int

    @property
    def patches(self) -> int:
        """Patches in the vision tower."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def total(self) -> int:
        """Tokens of the whole sequence."""
        return self.video + self.prompt + self.answer


@dataclass(frozen=True)
class Flops:
    """Floating-point operations.

    Attributes:
        linear: Of linear layers.
        attention: Of attention scores and weighted values, and of linear attention's states.
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
    """Counts the operations of clips in one model, forward and backward.

    With LoRA the first decoder block's input is counted as needing a gradient, which is less than
    a percent of a 7 B model. The norms that DoRA takes of the weights are not counted: they cost
    the same for every micro-batch, however long.

    Args:
        model: The backbone, on any device (meta works), with `requires_grad` set as it trains.
        family: Its family.
        config: Its configuration.
    """

    def __init__(self, model: nn.Module, family: Family, config: Any) -> None:
        self.family, self.config = family, config
        trainable: dict[str, bool] = dict.fromkeys(PARTS, False)
        for name, parameter in model.named_parameters():
            trainable[family.part(name)] |= parameter.requires_grad
        vision = trainable["vision"]
        merger = vision or trainable["merger"]
        # Whether the input of a layer has a gradient, by part.
        self._input_gradient = {
            "vision": vision,
            "merger": merger,
            "language": merger or trainable["language"],
        }
        # Multiply-adds of one row in all layers that have the same rows.
        self._multiply_adds: dict[str, int] = dict.fromkeys((*PARTS, "head"), 0)
        for name, module in model.named_modules():
            if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv3d):
                continue
            part = family.part(f"{name}.weight")
            # Patches are data: the convolution over them computes no gradient of its input.
            inputs = self._input_gradient[part] and not isinstance(module, nn.Conv3d)
            multiply_adds = module.weight.numel() * (1 + inputs + module.weight.requires_grad)
            self._multiply_adds["head" if name.endswith("lm_head") else part] += multiply_adds
        self._multiply_adds["language"] += self._expert_multiply_adds(model)

    def _expert_multiply_adds(self, model: nn.Module) -> int:
        """Of one token in all layers of experts: of each, the few that process a token."""
        text, total = self.config.text_config, 0
        inputs = self._input_gradient["language"]
        for module in model.modules():
            experts = getattr(module, "num_experts", None)
            for weight in () if experts is None else module.parameters(recurse=False):
                # The router's weights are a matrix, of which every token takes all.
                share = text.num_experts_per_tok / experts if weight.ndim == 3 else 1
                total += round(weight.numel() * share) * (1 + inputs + weight.requires_grad)
        return total

    def step(self, clip: ClipTokens) -> Flops:
        """Operations of one clip, forward and backward."""
        rows = {"vision": clip.patches, "merger": clip.video, "language": clip.total}
        rows["head"] = clip.answer
        text = self.config.text_config
        causal = attention_layers(text) * clip.total * (clip.total + 1) // 2
        read = linear_layers(text) * clip.total * state_size(text)
        return Flops(
            linear=sum(2 * rows[name] * number for name, number in self._multiply_adds.items()),
            attention=(4 * causal * attention_width(text) + 6 * read)
            * (3 if self._input_gradient["language"] else 1)
            + 4
            * self.family.vision_pairs(clip.grid, self.config)
            * tower_width(self.config)
            * (3 if self._input_gradient["vision"] else 1),
        )


def attention_layers(text: Any) -> int:
    """Layers whose tokens attend to each other.

    Args:
        text: Configuration of the language model.
    """
    return text.num_hidden_layers - linear_layers(text)


def state_size(text: Any) -> int:
    """Numbers in the state of a layer of linear attention, a matrix for each head; 0 without any.

    Args:
        text: Configuration of the language model.
    """
    if not linear_layers(text):
        return 0
    return text.linear_num_value_heads * text.linear_key_head_dim * text.linear_value_head_dim


def head_width(text: Any) -> int:
    """Width of an attention head.

    Args:
        text: Configuration of the language model.
    """
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def attention_width(text: Any) -> int:
    """Width of all attention heads together, which need not be that of the hidden state.

    Args:
        text: See `head_width`.
    """
    return text.num_attention_heads * head_width(text)


def mlp_width(text: Any) -> int:
    """Width of the MLPs that process a token in one block, all experts that do it together.

    Args:
        text: See `head_width`.
    """
    if (experts := getattr(text, "num_experts_per_tok", None)) is None:
        return text.intermediate_size
    return experts * text.moe_intermediate_size


def tower_width(config: Any) -> int:
    """Width of the vision tower's hidden state."""
    # Qwen2-VL calls it embed_dim, and the language model's width hidden_size.
    return getattr(config.vision_config, "embed_dim", config.vision_config.hidden_size)
