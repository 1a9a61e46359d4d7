"""How much memory scoring and writing take on one GPU, estimated from the architecture.

No gradient is taken, so nothing is kept but the keys and values of the prompts; the rest is there
for one block at a time. With the letters of `rbft.estimate.memory`, and `t` the bytes of a number
in the outputs of the tower's norms, the bytes for each token or patch are:

    cache     2 r K a block       keys and values, in the precision of the hidden state (or `c`, if
                                  that is higher)
    decoder   3 r H + 3 c I       the embeddings, the hidden state and its norm; gate, up, product
    tower     (4 c + t) D         the hidden state, its norm; queries, keys and values;
              24 D                queries and keys in 32 bits, rotated (16 D if they are already);
                                  or in their place, if it is more, 3 c (D + I)
              8 D / heads         cosines and sines
    pixels    4 x 1176            there until the batch is done; while the tower runs, once more in
                                  the precision of its weights, if that is another

Three moments can be the peak. The tower runs, with the words' embeddings beside it. The prompts'
last block is read, with the cache of all blocks. Or answers go on: to be scored, with the cache
once for each class, one block's a second time while it grows, and a part of the head in 32 bits; to
be written, with the cache of prompts and texts, and the scores of all words.
Rows that are padded instead of packed are as long as the longest, and take a mask and, without a
fused kernel, scores of their length squared. The same is left out as in `rbft.estimate.memory`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rbft.backbone.attention import MASKED
from rbft.backbone.family import Family
from rbft.estimate.flops import ClipTokens, tower_width
from rbft.estimate.memory import Setup, tower_mlp, weight_bytes
from rbft.training.loss import ROWS

PATCH = 1176  # numbers of a patch: 3 colours x 2 frames x 14 x 14


@dataclass(frozen=True)
class Asked:
    """What is asked of a batch of clips.

    Attributes:
        classes: Answers that are scored for each clip; 0 where none is.
        answer: Tokens of the longest of them.
        written: Tokens of the longest text that is written, which the answers follow; 0 where none
            is.
        held: How many caches of the prompts are held besides the one that goes on: 1 where the
            prompts go on once more afterwards, or where several begin alike.
        packed: Whether prompts are read in one row.
        eager: Whether attention keeps its scores.
    """

    classes: int = 0
    answer: int = 1
    written: int = 0
    held: int = 0
    packed: bool = True
    eager: bool = False


@dataclass(frozen=True)
class ScoringMemory:
    """Bytes on one device, by what they are for.

    Attributes:
        weights: Parameters, and what else is there all the time.
        pixels: The batch's pixels.
        tower: The vision tower's block, and the words' embeddings.
        reading: The decoder's block as the prompts are read.
        cache: Keys and values of the prompts.
        scoring: Keys and values, and all else, as class words are scored; 0 where none is.
        writing: The same as a text is written.
    """

    weights: int
    pixels: int
    tower: int
    reading: int
    cache: int
    scoring: int
    writing: int

    @property
    def moments(self) -> dict[str, int]:
        """Bytes at the moments that can be the peak."""
        always = self.weights + self.pixels
        return {
            "vision tower": always + self.tower,
            "reading the prompts": always + self.reading + self.cache,
            "scoring the classes": always + self.scoring,
            "writing": always + self.writing,
        }

    @property
    def peak(self) -> int:
        """The largest of the moments."""
        return max(self.moments.values())


def scoring_memory(
    model: Any,
    family: Family,
    config: Any,
    clips: Sequence[ClipTokens],
    setup: Setup,
    asked: Asked,
    beside: int = 0,
) -> ScoringMemory:
    """Memory of scoring or writing for one batch of clips.

    Args:
        model: The backbone with the dtypes that it is scored with, on any device (meta does).
        family: Its family.
        config: Its configuration.
        clips: The clips of the batch; their answers do not count.
        setup: Precision and sharding; sharded weights are gathered.
        asked: What is asked.
        beside: What is there all the time besides: the optimiser's state, while training.
    """
    text, c = config.text_config, setup.products
    r = model.get_input_embeddings().weight.element_size() if setup.shards == 1 else c
    hidden, inner, layers = text.hidden_size, text.intermediate_size, text.num_hidden_layers
    head = hidden // text.num_attention_heads
    keys = head * text.num_key_value_heads
    wide = max(c, r)  # of two precisions the cache takes the higher, and attention has a copy
    cached, block = 2 * wide * keys * layers, (wide + (2 * c if wide > c else 0)) * keys
    prompts = [clip.video + clip.prompt for clip in clips]
    rows, width = len(clips), max(prompts)
    read = sum(prompts) if asked.packed else rows * width
    patches = sum(clip.patches for clip in clips)

    weights = weight_bytes(model, family, setup)
    if setup.shards > 1:  # the shares, and all of them gathered
        weights = weights // setup.shards + sum(p.numel() for p in model.parameters()) * c
    tower = tower_width(config)
    own = model.model.visual.dtype.itemsize if setup.shards == 1 else c
    rotating = (4 * c + max(c, own) + (24 if c < 4 else 16)) * tower
    vision = max(rotating, 3 * c * (tower + tower_mlp(model).in_features))
    vision += 8 * tower // config.vision_config.num_heads
    vision += own * PATCH if own < 4 else 0
    product = read * 3 * c * inner
    if not asked.packed and rows > 1:
        pairs = rows * width**2
        heads = text.num_attention_heads if asked.eager else 0
        # Keys and values for each head; the scores and their softmax in 32 bits, or the mask's own.
        attending = 4 * read * c * hidden + pairs * (heads * (c + 4) or c)
        product = max(product, attending) + pairs * (r if asked.eager else 1)
    reading = read * (3 * r * hidden + 2 * head * r) + product

    def growing(number: int, tokens: int) -> int:
        """The cache of so many rows with new tokens, and one block's a second time."""
        return number * (width + tokens) * (cached + block)

    held = asked.held * rows * width * cached
    scoring = writing = 0
    if asked.classes:
        # Behind its own text, if it writes one.
        number, fed = rows * asked.classes, asked.answer - 1
        scoring = held + growing(number, asked.written + fed)
        groups = text.num_attention_heads // text.num_key_value_heads
        if min(prompts) < width or fed > 1:
            mask = fed * (width + asked.written + fed)
            at_once = max(mask * groups, min(MASKED, number * mask * groups))
            scoring += 2 * number * mask + at_once * (1 + c)
        part = min(ROWS, text.vocab_size)
        scoring += part * hidden * 4 + number * max(1, fed) * (hidden * 4 + part * 8)
    if asked.written:
        writing = held + growing(rows, asked.written) + rows * text.vocab_size * (c + 16)
    return ScoringMemory(
        weights=weights + beside,
        pixels=patches * PATCH * 4,
        tower=patches * vision + read * r * hidden,
        reading=reading,
        cache=read * cached,
        scoring=scoring,
        writing=writing,
    )
