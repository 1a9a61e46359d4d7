"""Estimates the memory of scoring and of writing on one GPU from the architecture.

No gradient is computed, so nothing is saved but the KV cache of the prompts; the rest exists for
one block at a time. With the letters of `rbft.estimate.memory`, and `t` the size of a number in the
outputs of the tower's norms, the bytes per token or patch are:

    cache     2 r K per block     keys and values, in the dtype of the residual stream (or `c`, if
                                  that is larger); linear attention has a state for each row instead
    decoder   3 r H + 3 c I       the embeddings, the hidden state and its norm; gate, up, product
    tower     (4 c + t) D         the hidden state, its norm; queries, keys and values;
              24 D                queries and keys in 32 bits, rotated (16 D if they are already);
                                  or in their place, if it is more, 3 c (D + I)
              8 D / heads         cosines and sines
    pixels    4 x 1176            until the batch is done; while the tower runs, a second time in
                                  the dtype of its weights, if that is another

Three phases can be the peak. In the first the vision tower runs, and the embeddings of the words
are there. In the second the last block of the prefill runs, with the KV cache of all blocks. In the
third answers continue the prompts. To score classes, the KV cache is repeated for each class, one
block's cache exists twice while it grows, and a chunk of the head is converted to 32 bits. To write
a text, there are the KV cache of prompts and texts and the logits of the whole vocabulary.

Rows that are padded instead of packed are as long as the longest one. They take a mask and, without
a fused kernel, attention scores, both of their length squared. What `rbft.estimate.memory` does not
count is not counted here either.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rbft.backbone.attention import MASK_CHUNK
from rbft.backbone.family import Family, linear_layers
from rbft.estimate.flops import (
    ClipTokens,
    attention_layers,
    attention_width,
    head_width,
    mlp_width,
    state_size,
    tower_width,
)
from rbft.estimate.memory import CHUNK, MemorySettings, vision_down_proj, weight_bytes
from rbft.training.loss import HEAD_CHUNK


@dataclass(frozen=True)
class ScoringTask:
    """What the model does with a batch of clips.

    Attributes:
        classes: Class answers that are scored for each clip; 0 for none.
        answer_tokens: Tokens of the longest class answer.
        new_tokens: Tokens of the longest text that the model writes, before classes are scored; 0
            for none.
        extra_caches: Copies of the prompts' KV cache that are held besides the one in use: 1 where
            the prompts are continued a second time later, or where prompts share their beginning.
        packed: Whether the prompts are packed into one row.
        eager: Whether attention computes its scores as a tensor (eager).
    """

    classes: int = 0
    answer_tokens: int = 1
    new_tokens: int = 0
    extra_caches: int = 0
    packed: bool = True
    eager: bool = False


@dataclass(frozen=True)
class ScoringMemory:
    """Memory of scoring and writing on one device, in bytes.

    Attributes:
        weights: Parameters, and what else is allocated all the time.
        pixels: Pixels of the batch.
        vision_tower: One block of the vision tower, and the embeddings of the words.
        prefill: One block of the decoder during the prefill.
        kv_cache: Keys and values of the prompts.
        scoring: KV cache and all else while classes are scored; 0 where none is.
        writing: KV cache and all else while a text is written; 0 where none is.
    """

    weights: int
    pixels: int
    vision_tower: int
    prefill: int
    kv_cache: int
    scoring: int
    writing: int

    @property
    def phases(self) -> dict[str, int]:
        """Bytes in each phase that can be the peak."""
        persistent = self.weights + self.pixels
        return {
            "vision tower": persistent + self.vision_tower,
            "prefill": persistent + self.prefill + self.kv_cache,
            "scoring the classes": persistent + self.scoring,
            "writing": persistent + self.writing,
        }

    @property
    def peak(self) -> int:
        """Bytes of the largest phase."""
        return max(self.phases.values())


def scoring_memory(
    model: Any,
    family: Family,
    config: Any,
    clips: Sequence[ClipTokens],
    settings: MemorySettings,
    task: ScoringTask,
    other_bytes: int = 0,
) -> ScoringMemory:
    """Estimates the memory of scoring or writing for one batch of clips.

    Args:
        model: The backbone with the dtypes that it is scored with, on any device (meta works).
        family: Its family.
        config: Its configuration.
        clips: The clips of the batch; their answers do not count.
        settings: Precision and sharding; sharded weights are unsharded to score.
        task: What the model does with the clips.
        other_bytes: What else is allocated all the time: optimizer states, during training.
    """
    text, c = config.text_config, settings.compute_bytes
    r = model.get_input_embeddings().weight.element_size() if settings.shards == 1 else c
    hidden, inner, layers = text.hidden_size, mlp_width(text), attention_layers(text)
    head, queries = head_width(text), attention_width(text)
    values = 3 * config.vision_config.temporal_patch_size * config.vision_config.patch_size**2
    keys = head * text.num_key_value_heads
    wide = max(c, r)  # the cache has the larger of both dtypes, and attention makes a copy
    cached, block = 2 * wide * keys * layers, (wide + (2 * c if wide > c else 0)) * keys
    prompts = [clip.video + clip.prompt for clip in clips]
    rows, width = len(clips), max(prompts)
    tokens = sum(prompts) if task.packed else rows * width
    patches = sum(clip.patches for clip in clips)

    weights = weight_bytes(model, family, settings)
    if settings.shards > 1:  # the shards, and all weights unsharded
        weights = weights // settings.shards + sum(p.numel() for p in model.parameters()) * c
    tower = tower_width(config)
    own = model.model.visual.dtype.itemsize if settings.shards == 1 else c
    rotation = (4 * c + max(c, own) + (24 if c < 4 else 16)) * tower
    vision = max(rotation, 3 * c * (tower + vision_down_proj(model).in_features))
    vision += 8 * tower // config.vision_config.num_heads
    vision += own * values if own < 4 else 0

    def in_chunks(length: int) -> int:
        """What a layer of linear attention takes for a row, whose last chunk is filled up."""
        heads, key, value = (
            text.linear_num_value_heads,
            text.linear_key_head_dim,
            text.linear_value_head_dim,
        )
        # Queries and keys, values, and the pairs in a chunk, some times their weights; and what the
        # convolution gave, with the gate.
        kept = heads * (6 * key + 4 * value + 3 * CHUNK) * 4
        kept += c * (2 * text.linear_num_key_heads * key + 2 * heads * value)
        return -(-length // CHUNK) * CHUNK * kept

    widest = tokens * 3 * c * inner
    if linear_layers(text):
        widest = max(widest, rows * in_chunks(width))
    if not task.packed and rows > 1:
        pairs = rows * width**2
        heads = text.num_attention_heads if task.eager else 0
        # Keys and values for each head; the scores and their softmax in 32 bits, or the mask's own.
        attention = 4 * tokens * c * queries + pairs * (heads * (c + 4) or c)
        widest = max(widest, attention) + pairs * (r if task.eager else 1)
    prefill = tokens * (3 * r * hidden + 2 * head * r) + widest

    def growing_cache(number: int, new: int) -> int:
        """The KV cache of that many rows with new tokens, and one block's a second time."""
        return number * ((width + new) * (cached + block) + state)

    state = linear_layers(text) * state_size(text) * 4  # of one row, in 32 bits
    held = task.extra_caches * rows * (width * cached + state)
    scoring = writing = 0
    if task.classes:
        # After the model's own text, if it writes one.
        number, fed = rows * task.classes, task.answer_tokens - 1
        scoring = held + growing_cache(number, task.new_tokens + fed)
        if linear_layers(text) and fed > 1:
            scoring += number * in_chunks(fed)
        groups = text.num_attention_heads // text.num_key_value_heads
        if min(prompts) < width or fed > 1:
            mask = fed * (width + task.new_tokens + fed)
            at_once = max(mask * groups, min(MASK_CHUNK, number * mask * groups))
            scoring += 2 * number * mask + at_once * (1 + c)
        chunk = min(HEAD_CHUNK, text.vocab_size)
        scoring += chunk * hidden * 4 + number * max(1, fed) * (hidden * 4 + chunk * 8)
    if task.new_tokens:
        writing = held + growing_cache(rows, task.new_tokens) + rows * text.vocab_size * (c + 16)
    return ScoringMemory(
        weights=weights + other_bytes,
        pixels=patches * values * 4,
        vision_tower=patches * vision + tokens * r * hidden,
        prefill=prefill,
        kv_cache=tokens * cached + rows * state,
        scoring=scoring,
        writing=writing,
    )
