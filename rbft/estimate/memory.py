"""Estimates the memory of a training step on one GPU from the architecture.

Weights, gradients and optimizer states are counted exactly. Saved activations are those that
autograd saves for the backward pass, in bytes per token (or patch) and block. `c` is the size of
a number in the compute dtype, `r` its size in the residual stream between decoder blocks (both 2 in
bf16-true, both 4 in 32-true, 2 and 4 in bf16-mixed where the embedding trains). The output of a
norm goes to `n` and `m` linear layers (q, k, v; gate, up). It is saved once, or once for each of
them (`n` = 3, `m` = 2) where autocast or an adapter casts it:

    decoder   2 (4 + r) H     both norms: input in 32 bits, and normalised
              (n + m) c H     inputs of q, k, v and of gate, up
              2 c (Q + K)     queries, keys, values, and the attention's output
              4 c I           gate, its activation, up, their product
              (4 + c) (Q + K) where queries and keys are normalised (Qwen3-VL)
              w (2 k H + 4 I) instead of 4 c I, where k experts process a token: their inputs and
                              outputs too; autocast leaves them in the weights' dtype, of size w
    Qwen3.5   16 H            both norms, in 32 bits in every precision
              8 (Q + K)       and those of queries and keys
              3 c Q           a gate of the attention's output, and their product
    linear    2 c (2 S + V)   input and output of the convolution
    attention (24 + 3 c) V + (24 + 6 c) R + 1280 A + R V / 16 A
                              in place of all with Q or K: values, keys, what stands between the 64
                              tokens of a chunk, and the chunk's state, mostly in 32 bits (`n` = 4)
    tower     2 (4 + c) D     both norms (LayerNorm: 2 c D)
              8 c D           qkv and its input, rotated queries and keys, output, its copy
              m c D + 4 c I   inputs of gate and up, and the four above (Qwen2-VL: c D + 3 c I,
                              Qwen3-VL: c D + 2 c I)

With DoRA a linear layer also saves 2 c for each of its outputs: those of the layer and those of
the adapter. In every forward pass it computes the norms of its weights, and for them the product
of the adapter's matrices with an identity: (4 + c) in^2 + 12 in out bytes for a moment, which
count as part of a block's backward pass (in and out are the layer's widths).

`H`, `Q`, `K`, `I` are the widths of hidden state, queries, keys and MLP in the decoder, `D` and `I`
those in the vision tower. Of linear attention, `A` is its number of heads, `R` and `V` the widths
of the keys and values of all of them, and `S` that of the keys before heads share them. It is
transformers' own that is counted; the kernels of flash-linear-attention keep less. Fused attention
saves no scores. With gradient checkpointing a block saves only its input, `r H` or `c D`, and the
activations above exist for one block at a time. Where only a share of the blocks is checkpointed,
the last block is not: it runs backward first, and its activations leave room for those of a
recomputed block. The backward pass of a block holds at most three gradients of width `I` and two of
the hidden state.

Weights in another dtype than the compute dtype are cast each time they are used, because Lightning
turns autocast's cache off. Autograd saves the copies of the merger, the head and the blocks that
save their activations. The head takes `c V` per answer token, for the logits and later for their
gradient, and 12 bytes for each logit of the chunk that the loss works on.

The peak is the largest of three phases: the end of the forward pass, the backward pass of the head
and that of a block. The optimizer step is one kernel and takes nothing more. Not counted: the CUDA
context and libraries (about 1 GB), fragmentation (leave a tenth free), and buffers for
communication. Liger and torch.compile save less than the above; how much less is not counted.

torch's own MemTracker could follow the step on fake tensors instead. Measured with torch 2.15.0 and
transformers 5.23.0 on 2 cores, no GPU, at the size of Qwen2-VL-7B and Qwen2.5-VL-7B in bf16-mixed
on one device (clips of 60, 30, 40 and 60, of 60 and 60, or of 220 frames):

    case                              formulas     tracker
    all weights, all recomputed       137.6 GiB    136.1 GiB    clips of 60 and 60 frames
    all weights, all recomputed       147.5 GiB    145.4 GiB    Qwen2-VL, 220 frames
    all weights, none recomputed      305.3 GiB    296.0 GiB    clips of 60 and 60 frames
    all weights, none recomputed      383.7 GiB    368.6 GiB    Qwen2-VL, four clips
    LoRA, all recomputed               28.8 GiB     27.9 GiB    four clips
    LoRA, none recomputed             127.4 GiB    120.5 GiB    four clips

The formulas take 0.01 to 0.03 s, the tracker 125 to 133 s, or 6 to 47 s if it keeps no peak for
each module; the dry run needs up to 21 such estimates to find the share of recomputed blocks. The
process takes 0.88 GB instead of 0.84. The tracker fails on frozen parameters (for LoRA its hooks
were changed) and needs a replacement for the attention kernels of a GPU. A count of all tensors is
within 0.6 % of the tracker. So the formulas stay; they overestimate by 1 to 6 %.

"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from rbft.backbone.blocks import recomputed, stacks
from rbft.backbone.family import Family, linear_layers
from rbft.backbone.kernels import CASTS
from rbft.estimate.flops import (
    ClipTokens,
    attention_width,
    head_width,
    mlp_width,
    state_size,
    tower_width,
)
from rbft.training.loss import LOGITS_CHUNK

OPTIMIZER_STATES = 2  # AdamW's two moments
# bitsandbytes' nf4 with quantised constants: half a byte, and 8 bits + 32/256 bits for 64 weights.
FOUR_BIT_BYTES = 0.5 + (1 + 4 / 256) / 64
CHUNK = 64  # tokens that linear attention computes at a time
REDUCE_BYTES = 4  # of a gradient while FSDP reduces it over processes


@dataclass(frozen=True)
class MemorySettings:
    """The settings that decide how much memory a model takes on one device.

    Attributes:
        compute_bytes: Size of a number in the compute dtype, see `compute_bytes_of`.
        checkpointing: Share of the blocks with gradient checkpointing; True is all, False none.
        shards: Devices that weights, gradients and optimizer states are sharded over; 1 where each
            device has all of them.
        ddp: Whether several devices have all of them and average their gradients.
        four_bit: Whether the frozen weights of the decoder blocks are stored in 4 bits.
    """

    compute_bytes: int
    checkpointing: bool | float
    shards: int = 1
    ddp: bool = False
    four_bit: bool = False


@dataclass(frozen=True)
class StepMemory:
    """Memory of a training step on one device, in bytes.

    Attributes:
        weights: Parameters.
        gradients: Of the trainable parameters; twice under DDP, which has buckets of its own.
        optimizer_states: AdamW's two moments.
        saved_decoder: Activations saved for the backward pass by decoder, head and merger.
        saved_vision: Activations saved for the backward pass by the vision tower.
        logits: Logits at the answer tokens, and what the loss takes.
        head_gradient: The head's gradient, before it is added to that of earlier micro-batches.
        block_backward: Recomputed activations of one block (checkpointing), its backward pass, and
            `autocast_copies`.
        autocast_copies: Copies of weights in the compute dtype that autograd saves.
        unsharded: Weights and gradients that FSDP holds in full for a short time.
    """

    weights: int
    gradients: int
    optimizer_states: int
    saved_decoder: int
    saved_vision: int
    logits: int
    head_gradient: int
    block_backward: int
    autocast_copies: int
    unsharded: int

    @property
    def persistent(self) -> int:
        """Bytes that are allocated during the whole step."""
        return self.weights + self.gradients + self.optimizer_states

    @property
    def phases(self) -> dict[str, int]:
        """Bytes in each phase of the step that can be the peak."""
        saved = self.persistent + self.saved_decoder + self.saved_vision + self.unsharded
        copies = self.autocast_copies
        return {
            "end of the forward pass": saved + self.logits + copies,
            "backward pass of the head": saved + self.logits + self.head_gradient + copies,
            "backward pass of a block": saved + self.block_backward,
        }

    @property
    def peak(self) -> int:
        """Bytes of the largest phase."""
        return max(self.phases.values())


def compute_bytes_of(precision: str) -> int:
    """Size of a number in the compute dtype of a Trainer's precision.

    Args:
        precision: Such as bf16-mixed, 16-true or 32-true.
    """
    return 2 if precision.startswith(("bf16", "16")) else 4


def step_memory(
    model: Any,
    family: Family,
    config: Any,
    clips: Sequence[ClipTokens],
    settings: MemorySettings,
) -> StepMemory:
    """Estimates the memory of a training step with one micro-batch.

    Args:
        model: The backbone with the dtypes and `requires_grad` that it trains with, on any device
            (meta works).
        family: Its family.
        config: Its configuration.
        clips: The clips of the micro-batch.
        settings: Precision, checkpointing and sharding.
    """
    c, text = settings.compute_bytes, config.text_config
    trainable = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trainable) // settings.shards
    named = model.named_parameters()
    vision = any(p.requires_grad for name, p in named if family.part(name) == "vision")
    tokens, patches = (sum(getattr(clip, name) for clip in clips) for name in ("total", "patches"))
    answers, merged = (sum(getattr(clip, name) for clip in clips) for name in ("answer", "video"))
    r = _residual_bytes(model, settings)
    blocks = [
        linear_attention_bytes_per_token(model, config, settings)
        if hasattr(block, "linear_attn")
        else decoder_bytes_per_token(model, config, settings)
        for block in stacks(model)[0]
    ]
    tower = tower_bytes_per_patch(model, config, settings)
    state, tower_state = r * text.hidden_size, c * tower_width(config)
    # The hidden state that enters the decoder, its last norm, and the three layers of each merger.
    outside = tokens * (2 * r + 4) * text.hidden_size
    merger = config.vision_config.spatial_merge_size**2 * tower_state * 3
    outside += merged * merger * family.feature_states(config)
    gradient = 3 * c * mlp_width(text) + 2 * state
    all_recomputed = settings.checkpointing == 1
    block = tokens * (gradient + (max(blocks) if all_recomputed else 0))
    if vision:
        gradient = 3 * c * vision_down_proj(model).in_features + 2 * tower_state
        block = max(block, patches * (gradient + (tower if all_recomputed else 0)))
    block += max([0, *(_norm_bytes(layer, c) for layer in decomposed_layers(model))])
    if settings.four_bit:  # the weights of one layer, dequantised to be multiplied
        block += text.hidden_size * text.intermediate_size * c
    logits = answers * text.vocab_size
    copies, block_copies = autocast_copy_bytes(model, settings, vision=vision)
    weight = model.get_output_embeddings().weight
    head = weight.numel() * weight.element_size() if weight.requires_grad else 0
    towers = [tower] * len(stacks(model)[1])
    saved_decoder, saved_vision = (
        sum(
            inputs if again else own
            for own, again in zip(
                activations, recomputed(len(activations), settings.checkpointing), strict=True
            )
        )
        for inputs, activations in ((state, blocks), (tower_state, towers))
    )
    return StepMemory(
        weights=weight_bytes(model, family, settings) // settings.shards,
        gradients=gradients * (2 if settings.ddp else 1),
        optimizer_states=gradients * OPTIMIZER_STATES,
        saved_decoder=outside + tokens * saved_decoder,
        saved_vision=vision * patches * saved_vision,
        logits=logits * c + min(logits, LOGITS_CHUNK) * 12,
        head_gradient=head if settings.shards == 1 else 0,  # sharded, it is part of `unsharded`
        block_backward=block + copies + block_copies,
        autocast_copies=copies,
        unsharded=_unsharded_bytes(model, family, c) if settings.shards > 1 else 0,
    )


def decoder_bytes_per_token(model: Any, config: Any, settings: MemorySettings) -> int:
    """Activations that a decoder block saves for one token; the formula is above."""
    text, c, r = config.text_config, settings.compute_bytes, _residual_bytes(model, settings)
    hidden, queries = text.hidden_size, attention_width(text)
    keys = head_width(text) * text.num_key_value_heads
    attention = next(
        block.self_attn for block in stacks(model)[0] if not hasattr(block, "linear_attn")
    )
    normalised, gated = hasattr(attention, "q_norm"), linear_layers(text) > 0
    copies = 5 if r != c or _adapters_cast_inputs(model, c) else 2
    decomposed = sum(layer.out_features for layer in decomposed_layers(model))
    return (
        2 * (4 + (4 if gated else r)) * hidden
        + copies * c * hidden
        + 2 * c * (queries + keys)
        + _mlp_bytes_per_token(model, text, c)
        + normalised * (4 + (4 if gated else c)) * (queries + keys)
        + gated * 3 * c * queries
        + 2 * c * decomposed // text.num_hidden_layers
    )


def linear_attention_bytes_per_token(model: Any, config: Any, settings: MemorySettings) -> int:
    """The same of a block of linear attention."""
    text, c, r = config.text_config, settings.compute_bytes, _residual_bytes(model, settings)
    heads = text.linear_num_value_heads
    keys, values = heads * text.linear_key_head_dim, heads * text.linear_value_head_dim
    convolved = 2 * text.linear_num_key_heads * text.linear_key_head_dim + values
    decomposed = sum(layer.out_features for layer in decomposed_layers(model))
    copies = 6 if r != c or _adapters_cast_inputs(model, c) else 2
    return (
        2 * (4 + 4) * text.hidden_size
        + copies * c * text.hidden_size
        + 4 * c * mlp_width(text)
        + 2 * c * convolved
        + (24 + 3 * c) * values
        + (24 + 6 * c) * keys
        + 5 * 4 * CHUNK * heads
        + 4 * state_size(text) // CHUNK
        + 2 * c * decomposed // text.num_hidden_layers
    )


def _mlp_bytes_per_token(model: Any, text: Any, compute_bytes: int) -> int:
    """What the MLP of a decoder block saves for one token, but for its input."""
    mlp = model.model.language_model.layers[0].mlp
    if not hasattr(mlp, "experts"):
        return 4 * compute_bytes * mlp_width(text)
    # Autocast does not reach the product of all experts: it is computed in the weights' dtype.
    size = max(compute_bytes, mlp.experts.down_proj.element_size())
    each = text.num_experts_per_tok * text.hidden_size
    return size * (2 * each + 4 * mlp_width(text))


def tower_bytes_per_patch(model: Any, config: Any, settings: MemorySettings) -> int:
    """Activations that a block of the vision tower saves for one patch; the formula is above."""
    width, c, down_proj = tower_width(config), settings.compute_bytes, vision_down_proj(model)
    if _has_gated_mlp(model):
        copies = 2 if down_proj.weight.element_size() != c and settings.shards == 1 else 1
        norms = 2 * (4 + c) * width
        mlp = copies * c * width + 4 * c * down_proj.in_features
    else:
        # Qwen2-VL's activation is three operations, Qwen3-VL's one.
        kept = 2 if hasattr(model.model.visual.blocks[0].mlp, "linear_fc2") else 3
        norms, mlp = 2 * c * width, c * width + kept * c * down_proj.in_features
    return norms + 8 * c * width + mlp


def weight_bytes(model: Any, family: Family, settings: MemorySettings) -> int:
    """Bytes of all weights, with those that are stored in 4 bits."""
    frozen = {
        id(layer.weight)
        for block in family.blocks(model)
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear) and not layer.weight.requires_grad
    }
    tower = {id(p) for name, p in model.named_parameters() if family.part(name) != "language"}
    quantized = frozen - tower if settings.four_bit else set()
    return sum(
        round(p.numel() * FOUR_BIT_BYTES) if id(p) in quantized else p.numel() * p.element_size()
        for p in model.parameters()
    )


def autocast_copy_bytes(model: Any, settings: MemorySettings, *, vision: bool) -> tuple[int, int]:
    """Copies of weights in the compute dtype. FSDP has none: it gathers in that dtype.

    Args:
        model: The backbone.
        settings: Precision, checkpointing and sharding.
        vision: Whether the vision tower is trainable.

    Returns:
        Bytes of the copies that are saved for the backward pass, and of the copies that the largest
        block makes when it is recomputed.
    """
    if settings.shards > 1:
        return 0, 0

    def copied(module: nn.Module) -> int:
        return sum(
            layer.weight.numel() * settings.compute_bytes
            for layer in module.modules()
            if isinstance(layer, nn.Linear)
            and layer.weight.element_size() != settings.compute_bytes
        )

    saved, made_again = copied(model), [0]
    for stack, trainable in zip(stacks(model), (True, vision), strict=True):
        checkpointed = recomputed(len(stack), settings.checkpointing)
        for block, twice in zip(stack, checkpointed, strict=True):
            if twice or not trainable:
                saved -= copied(block)
            if twice and trainable:
                made_again.append(copied(block))
    return saved, max(made_again)


def _unsharded_bytes(model: Any, family: Family, compute_bytes: int) -> int:
    """What is outside of blocks, two blocks, and the gradients that are being reduced."""
    sizes = [
        (sum(p.numel() for p in block.parameters()), _trainable(block))
        for block in family.blocks(model)
    ]
    block, trainable = (max(column) for column in zip(*sizes, strict=True))
    rest = sum(p.numel() for p in model.parameters()) - sum(size for size, _ in sizes)
    rest_trainable = _trainable(model) - sum(size for _, size in sizes)
    weights = (rest + 2 * block) * compute_bytes
    return weights + (rest_trainable + trainable) * (compute_bytes + REDUCE_BYTES)


def _trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _residual_bytes(model: Any, settings: MemorySettings) -> int:
    """Size of a number in the residual stream: that of the embedding, or of what FSDP gathers."""
    own = model.get_input_embeddings().weight.element_size()
    return settings.compute_bytes if settings.shards > 1 else own


def _adapters_cast_inputs(model: Any, compute_bytes: int) -> bool:
    """Whether each adapter casts its input to its own dtype, and autocast casts it back."""
    return any(
        getattr(layer, CASTS, True) and adapter.weight.element_size() != compute_bytes
        for layer in model.modules()
        for adapter in getattr(layer, "lora_A", {}).values()
    )


def decomposed_layers(model: Any) -> list[Any]:
    """The linear layers with DoRA adapters."""
    return [layer for layer in model.modules() if len(getattr(layer, "lora_magnitude_vector", ()))]


def _norm_bytes(layer: Any, compute_bytes: int) -> int:
    """What a layer with DoRA takes while it computes the norms of its weights."""
    inputs, outputs = layer.in_features, layer.out_features
    return (4 + compute_bytes) * inputs**2 + 12 * inputs * outputs


def vision_down_proj(model: Any) -> nn.Linear:
    """The last linear layer of a vision block's MLP."""
    *_, last = (
        layer
        for layer in model.model.visual.blocks[0].mlp.modules()
        if isinstance(layer, nn.Linear)
    )
    return last


def _has_gated_mlp(model: Any) -> bool:
    return hasattr(model.model.visual.blocks[0].mlp, "gate_proj")
