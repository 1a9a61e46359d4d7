"""How much memory a training step takes on one GPU, estimated from the architecture.

Weights, gradients and optimiser state are counted exactly. What is kept for the backward pass is
what autograd keeps, per token (or patch) and block, in bytes; `c` is the width of the precision
of the products, `r` that of the hidden state between decoder blocks (both 2 in bf16-true, both 4
in 32-true, 2 and 4 in bf16-mixed where the embedding trains). A norm's output goes to `n` and `m`
linear layers (q, k, v; gate, up); it is kept once, or where autocast or an adapter casts it for
each of them, `n` = 3 and `m` = 2 times:

    decoder   2 (4 + r) H     both norms: input in 32 bits, and normalised
              (n + m) c H     inputs of q, k, v and of gate, up
              2 c (H + K)     queries, keys, values, and the attention's output
              4 c I           gate, its activation, up, their product
    tower     2 (4 + c) D     both norms (LayerNorm: 2 c D)
              8 c D           qkv and its input, rotated queries and keys, output, its copy
              m c D + 4 c I   inputs of gate and up, and the four above (Qwen2-VL: c D + 3 c I)

with `H`, `K`, `I` the widths of hidden state, keys and gate in the decoder and `D`, `I` in the
tower; fused attention keeps no scores. With gradient checkpointing a block keeps only its input,
`r H` or `c D`, and the above is there for one block at a time; with a share of it, in that share of
the blocks, and the room for one comes from a block that was kept, whose backward pass is first. A
block's backward pass holds, at its widest, three gradients of width `I` and two of the hidden
state. Weights in another precision than that of the products are copied each time they are used,
since Lightning has autocast keep no copies; autograd keeps those of merger, head and the blocks
that keep their activations. The head takes `c V` a token, the logits and later their gradient, and
12 bytes for each of those that the loss takes at a time.

The peak is the largest of three moments: the end of the forward pass, and the backward passes of
the head and of a block; the optimiser's step, one kernel, takes nothing besides. Left out: the CUDA
context and libraries (about 1 GB), fragmentation (keep a tenth free), and the communication's own
buffers. Liger and torch.compile keep less than the above; what, is not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from rbft.backbone.blocks import recomputed, stacks
from rbft.backbone.family import Family
from rbft.backbone.kernels import CASTS
from rbft.estimate.flops import ClipTokens, tower_width
from rbft.training.loss import PART

OPTIMISER_STATES = 2  # AdamW's two moments
# bitsandbytes' nf4 with quantised constants: half a byte, and 8 bits + 32/256 bits for 64 weights.
FOUR_BIT = 0.5 + (1 + 4 / 256) / 64
SUM = 4  # bytes of a gradient while processes add it up


@dataclass(frozen=True)
class Setup:
    """What decides, besides the model, how much a device holds.

    Attributes:
        products: Bytes of a number in the inputs and outputs of linear layers and attention.
        checkpointing: Share of the blocks that keep their inputs only; True is all, False none.
        shards: Devices that share weights, gradients and optimiser state; 1 where each has all.
        replicas: Whether several devices hold all of it and average gradients (DDP).
        four_bit: Whether the frozen weights of the decoder's blocks are held in 4 bits.
    """

    products: int
    checkpointing: bool | float
    shards: int = 1
    replicas: bool = False
    four_bit: bool = False

    @classmethod
    def product_bytes(cls, precision: str) -> int:
        """`products` by the Trainer's precision."""
        return 2 if precision.startswith(("bf16", "16")) else 4


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by what they are for.

    Attributes:
        weights: Parameters.
        gradients: Of what trains; twice under DDP, which has buckets of its own.
        optimiser: AdamW's two moments.
        kept: Kept for the backward pass by decoder, head and merger.
        kept_vision: Kept for the backward pass by the vision tower.
        logits: The head's scores at the answer tokens, and the loss.
        head: The head's gradient, before it is added to that of the micro-batches before.
        block: One block's forward computed again (checkpointing), its backward pass, and `copies`.
        copies: Of weights, that autocast makes in the precision of the products and autograd keeps.
        gathered: Weights and gradients that FSDP holds whole for a moment.
    """

    weights: int
    gradients: int
    optimiser: int
    kept: int
    kept_vision: int
    logits: int
    head: int
    block: int
    copies: int
    gathered: int

    @property
    def always(self) -> int:
        """What is there all the time."""
        return self.weights + self.gradients + self.optimiser

    @property
    def moments(self) -> dict[str, int]:
        """Bytes at the moments that can be the peak."""
        passing = self.always + self.kept + self.kept_vision + self.gathered
        return {
            "end of the forward pass": passing + self.logits + self.copies,
            "backward pass of the head": passing + self.logits + self.head + self.copies,
            "backward pass of a block": passing + self.block,
        }

    @property
    def peak(self) -> int:
        """The largest of the moments."""
        return max(self.moments.values())


def step_memory(
    model: Any, family: Family, config: Any, clips: Sequence[ClipTokens], setup: Setup
) -> Memory:
    """Memory of training one micro-batch of clips.

    Args:
        model: The backbone with the dtypes and `requires_grad` that it trains with, on any device
            (meta does).
        family: Its family.
        config: Its configuration.
        clips: The clips of the micro-batch.
        setup: Precision, checkpointing and sharding.
    """
    products, text = setup.products, config.text_config
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained) // setup.shards
    named = model.named_parameters()
    vision = any(p.requires_grad for name, p in named if family.part(name) == "vision")
    tokens, patches = (sum(getattr(clip, name) for clip in clips) for name in ("total", "patches"))
    answers, merged = (sum(getattr(clip, name) for clip in clips) for name in ("answer", "video"))
    sums = _sums(model, setup)
    decoder, tower = decoder_bytes(model, config, setup), tower_bytes(model, config, setup)
    state, tower_state = sums * text.hidden_size, products * tower_width(config)
    # The hidden state that enters the decoder, its last norm, and the merger's three layers.
    ends = tokens * (2 * sums + 4) * text.hidden_size
    ends += merged * config.vision_config.spatial_merge_size**2 * tower_state * 3
    gate = 3 * products * text.intermediate_size + 2 * state
    whole = setup.checkpointing == 1
    block = tokens * (gate + (decoder if whole else 0))
    if vision:
        gate = 3 * products * tower_mlp(model).in_features + 2 * tower_state
        block = max(block, patches * (gate + (tower if whole else 0)))
    if setup.four_bit:  # one layer's weights, as they are multiplied
        block += text.hidden_size * text.intermediate_size * products
    scores = answers * text.vocab_size
    copies, block_copies = autocast_copies(model, setup, vision=vision)
    weight = model.get_output_embeddings().weight
    head = weight.numel() * weight.element_size() if weight.requires_grad else 0
    again = [sum(recomputed(len(stack), setup.checkpointing)) for stack in stacks(model)]
    kept, kept_vision = (
        number * inputs + (len(stack) - number) * activations
        for stack, number, inputs, activations in zip(
            stacks(model), again, (state, tower_state), (decoder, tower), strict=True
        )
    )
    return Memory(
        weights=weight_bytes(model, family, setup) // setup.shards,
        gradients=gradients * (2 if setup.replicas else 1),
        optimiser=gradients * OPTIMISER_STATES,
        kept=ends + tokens * kept,
        kept_vision=vision * patches * kept_vision,
        logits=scores * products + min(scores, PART) * 12,
        head=head if setup.shards == 1 else 0,  # there, part of `gathered`
        block=block + copies + block_copies,
        copies=copies,
        gathered=_gathered(model, family, products) if setup.shards > 1 else 0,
    )


def decoder_bytes(model: Any, config: Any, setup: Setup) -> int:
    """What a decoder block keeps of one token, see above."""
    text, c, r = config.text_config, setup.products, _sums(model, setup)
    hidden = text.hidden_size
    keys = hidden // text.num_attention_heads * text.num_key_value_heads
    copies = 5 if r != c or _adapters_cast(model, c) else 2
    return (
        2 * (4 + r) * hidden
        + copies * c * hidden
        + 2 * c * (hidden + keys)
        + 4 * c * text.intermediate_size
    )


def tower_bytes(model: Any, config: Any, setup: Setup) -> int:
    """What a block of the vision tower keeps of one patch, see above."""
    width, c, last = tower_width(config), setup.products, tower_mlp(model)
    if _is_gated(model):
        copies = 2 if last.weight.element_size() != c and setup.shards == 1 else 1
        norms, mlp = 2 * (4 + c) * width, copies * c * width + 4 * c * last.in_features
    else:
        norms, mlp = 2 * c * width, c * width + 3 * c * last.in_features
    return norms + 8 * c * width + mlp


def weight_bytes(model: Any, family: Family, setup: Setup) -> int:
    """All weights, in 4 bits where they are held so."""
    frozen = {
        id(layer.weight)
        for block in family.blocks(model)
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear) and not layer.weight.requires_grad
    }
    tower = {id(p) for name, p in model.named_parameters() if family.part(name) != "language"}
    packed = frozen - tower if setup.four_bit else set()
    return sum(
        round(p.numel() * FOUR_BIT) if id(p) in packed else p.numel() * p.element_size()
        for p in model.parameters()
    )


def autocast_copies(model: Any, setup: Setup, *, vision: bool) -> tuple[int, int]:
    """Copies of weights in the precision of the products.

    FSDP gathers in that precision to begin with.

    Args:
        model: The backbone.
        setup: Precision, checkpointing and sharding.
        vision: Whether the vision tower trains.

    Returns:
        Bytes of those that are kept for the backward pass, and of those of the largest block that
        are made again when it is recomputed.
    """
    if setup.shards > 1:
        return 0, 0

    def copied(module: nn.Module) -> int:
        return sum(
            layer.weight.numel() * setup.products
            for layer in module.modules()
            if isinstance(layer, nn.Linear) and layer.weight.element_size() != setup.products
        )

    kept, again = copied(model), [0]
    for stack, trains in zip(stacks(model), (True, vision), strict=True):
        for block, twice in zip(stack, recomputed(len(stack), setup.checkpointing), strict=True):
            if twice or not trains:
                kept -= copied(block)
            if twice and trains:
                again.append(copied(block))
    return kept, max(again)


def _gathered(model: Any, family: Family, products: int) -> int:
    """What stands outside of blocks all the time, two blocks, and gradients to be added up."""
    sizes = [
        (sum(p.numel() for p in block.parameters()), _trained(block))
        for block in family.blocks(model)
    ]
    whole, trained = (max(column) for column in zip(*sizes, strict=True))
    rest = sum(p.numel() for p in model.parameters()) - sum(size for size, _ in sizes)
    rest_trained = _trained(model) - sum(size for _, size in sizes)
    return (rest + 2 * whole) * products + (rest_trained + trained) * (products + SUM)


def _trained(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _sums(model: Any, setup: Setup) -> int:
    """Bytes of a number in the hidden state: those of the embedding, gathered under FSDP."""
    own = model.get_input_embeddings().weight.element_size()
    return setup.products if setup.shards > 1 else own


def _adapters_cast(model: Any, products: int) -> bool:
    """Whether each adapter casts its input to its own precision, and autocast back."""
    return any(
        getattr(layer, CASTS, True) and adapter.weight.element_size() != products
        for layer in model.modules()
        for adapter in getattr(layer, "lora_A", {}).values()
    )


def tower_mlp(model: Any) -> nn.Linear:
    """The last layer of a vision block's MLP; both families call the tower and its blocks so."""
    mlp = model.model.visual.blocks[0].mlp
    return mlp.down_proj if _is_gated(model) else mlp.fc2


def _is_gated(model: Any) -> bool:
    return hasattr(model.model.visual.blocks[0].mlp, "gate_proj")
