"""Prefill, log-probabilities of given answers, and decoding."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rbft.backbone.attention import FLASH, TEXT, forward_inputs
from rbft.backbone.embeddings import VIDEO_INDICES
from rbft.batch import IGNORED, Sequences
from rbft.runtime.transfer import to_device
from rbft.training.loss import head_log_probabilities

# What a layer of transformers' KV cache holds for linear attention: the last inputs of its
# convolution, and a summary of all that was read.
STATES = ("conv_states", "recurrent_states")


class NotFiniteError(ValueError):
    """Scores that are NaN or infinite, from which no class and no text can be taken.

    Args:
        clips: Indices in the batch of the clips with such scores.
    """

    def __init__(self, clips: Sequence[int]) -> None:
        super().__init__(f"Scores of the clips {list(clips)} of the batch are not finite.")
        self.clips = list(clips)


@dataclass(frozen=True)
class PrefilledPrompt:
    """The KV cache of prompts. It can be continued once; make a `copy` to continue it again.

    Attributes:
        hidden: The last hidden state, from which the head computes the logits of the next token.
        ids: Token ids of the KV cache.
        cache: KV cache with one row per clip, padded as in `mask`.
        mask: 1 for the tokens of the KV cache, 0 for padding.
        position: Rotary positions of the last tokens.
        lengths: Tokens of each clip in the KV cache, in CPU memory.
    """

    hidden: Float[Tensor, "clips width"]
    ids: Int[Tensor, "clips tokens"]
    cache: Any
    mask: Int[Tensor, "clips tokens"]
    position: Int[Tensor, "3 clips 1"]
    lengths: tuple[int, ...]

    def copy(self) -> "PrefilledPrompt":
        """The same prompts, sharing the tensors of the KV cache."""
        # Layers write new keys and values to new tensors, so copies do not affect each other. The
        # states of linear attention are written in place.
        cache = copy(self.cache)
        cache.layers = [copy(layer) for layer in self.cache.layers]
        for layer in filter(_has_states, cache.layers):
            _change_states(layer, torch.clone)
        return replace(self, cache=cache)

    def select(self, clips: Sequence[int]) -> "PrefilledPrompt":
        """The prompts of some of the clips; this one stays as it is.

        Args:
            clips: Their indices.
        """
        if list(clips) == list(range(len(self.hidden))):
            return self.copy()
        made, rows = self.copy(), to_device(list(clips), self.hidden.device)
        _select_rows(made.cache, rows)
        return replace(
            made,
            hidden=self.hidden[rows],
            ids=self.ids[rows],
            mask=self.mask[rows],
            position=self.position[:, rows],
            lengths=tuple(self.lengths[clip] for clip in clips),
        )


def prefill(
    backbone: Any,
    prompts: Sequence[Sequences],
    video: dict[str, Any],
    shared: Sequence[int] = (),
) -> Iterator[PrefilledPrompt]:
    """Prefills prompts about the same clips; their common prefix with the video runs once.

    Yields the prompts one by one, so that only one KV cache besides the prefix is in memory.

    Args:
        backbone: The model.
        prompts: Prompts, packed or padded on the left, with the clips in the same order.
        video: Video arguments of the backbone's forward: patches and grids, or tower outputs.
        shared: For several prompts, the length in tokens of the common prefix of each clip's
            prompts, see `Batch.shared`.
    """
    first = prompts[0]
    if len(prompts) == 1:
        yield _prefill_first(backbone, first, video)
        return
    assert len(shared) == len(first.lengths)
    begin = _prefill_first(
        backbone, _slice(first, [0] * len(shared), shared, packed=first.packed), video
    )
    for prompt in prompts:
        yield _prefill_after(backbone, _slice(prompt, shared, prompt.lengths, packed=False), begin)


@torch.no_grad()
def _prefill_first(backbone: Any, text: Sequences, video: dict[str, Any]) -> PrefilledPrompt:
    """Prefills text that begins with the video.

    A packed row needs no mask, see `rbft.backbone.attention`; its KV cache is then rearranged to
    one row per clip. Attention that cannot separate the clips of a packed row gets padded rows,
    with a mask of their length squared.
    """
    attention = backbone.config.text_config._attn_implementation
    clips = len(text.lengths)
    assert clips == 1 or not text.packed or attention in (TEXT, FLASH)
    given = {**forward_inputs(text, attention), **video, VIDEO_INDICES: text.video_indices}
    # Without the head: decoding uses the model's own, scoring computes it in 32 bits.
    out = backbone.model(**given, use_cache=True)
    hidden, cache = out.last_hidden_state, out.past_key_values
    if clips == 1 or not text.packed:
        last = text.position_ids[:, :, -1:]
        return PrefilledPrompt(
            hidden[:, -1], text.input_ids, cache, text.attention_mask, last, text.lengths
        )
    device = hidden.device
    ends = [*accumulate(text.lengths)]
    index, mask = _pad_left(_first_tokens(text), text.lengths)
    index, mask = to_device(index, device), to_device(mask, device)
    for layer in cache.layers:  # one by one: packed keys and values are freed layer by layer
        layer.keys, layer.values = (
            held[0].index_select(1, index.flatten()).unflatten(1, index.shape).transpose(0, 1)
            for held in (layer.keys, layer.values)
        )
    lasts = to_device([end - 1 for end in ends], device)
    return PrefilledPrompt(
        hidden[0].index_select(0, lasts),
        text.input_ids[0][index],
        cache,
        mask,
        text.position_ids[:, 0].index_select(1, lasts)[:, :, None],
        text.lengths,
    )


@torch.no_grad()
def _prefill_after(backbone: Any, text: Sequences, before: PrefilledPrompt) -> PrefilledPrompt:
    """Prefills text, padded on the left, after a prefilled prompt.

    Linear attention would take padding between prompt and text into its state. With such layers,
    texts of one length are read at a time.
    """
    if len(set(text.lengths)) > 1 and any(map(_has_states, before.cache.layers)):
        of_length: dict[int, list[int]] = {}
        for clip, length in enumerate(text.lengths):
            of_length.setdefault(length, []).append(clip)
        reads = [
            _prefill_after(backbone, _last_tokens(text, clips, length), before.select(clips))
            if length
            else before.select(clips)
            for length, clips in of_length.items()
        ]
        return _join(reads, [clip for clips in of_length.values() for clip in clips])
    mask = torch.cat([before.mask, text.attention_mask], dim=1)
    lengths = tuple(map(sum, zip(before.lengths, text.lengths, strict=True)))
    out = backbone.model(
        input_ids=text.input_ids,
        position_ids=text.position_ids,
        attention_mask=_mask_if_padded(mask, lengths),
        past_key_values=before.copy().cache,
        use_cache=True,
    )
    return PrefilledPrompt(
        out.last_hidden_state[:, -1],
        torch.cat([before.ids, text.input_ids], dim=1),
        out.past_key_values,
        mask,
        text.position_ids[:, :, -1:],
        lengths,
    )


def _last_tokens(text: Sequences, clips: Sequence[int], length: int) -> Sequences:
    """Texts of some clips, all of that length, without the padding before them."""
    rows = to_device(list(clips), text.input_ids.device)
    return Sequences(
        text.input_ids[rows, -length:],
        text.attention_mask[rows, -length:],
        text.position_ids[:, rows, -length:],
        text.labels[rows, -length:],
        (length,) * len(clips),
        padded_left=True,
    )


def _join(reads: Sequence[PrefilledPrompt], clips: Sequence[int]) -> PrefilledPrompt:
    """Prompts that were read apart, in one KV cache with a row for each.

    Args:
        reads: The prompts; they are used up.
        clips: The clip of each of their rows, which will be its row.
    """
    width = max(read.mask.shape[1] for read in reads)

    def padded(tensors: Sequence[Tensor], *after: int) -> Tensor:
        """The rows of all, padded on the left; `after` pads the axes behind that of the tokens."""
        short = [width - read.mask.shape[1] for read in reads]
        each = zip(tensors, short, strict=True)
        return torch.cat([nn.functional.pad(own, (*after, less, 0)) for own, less in each])

    cache = reads[0].cache
    for layer, *others in zip(*(read.cache.layers for read in reads), strict=True):
        if _has_states(layer):
            for name in STATES:
                parts = [getattr(own, name) for own in (layer, *others)]
                joined = {at: torch.cat([part[at] for part in parts]) for at in parts[0]}
                setattr(layer, name, joined)
        else:
            layer.keys = padded([own.keys for own in (layer, *others)], 0, 0)
            layer.values = padded([own.values for own in (layer, *others)], 0, 0)
    together = PrefilledPrompt(
        torch.cat([read.hidden for read in reads]),
        padded([read.ids for read in reads]),
        cache,
        padded([read.mask for read in reads]),
        torch.cat([read.position for read in reads], dim=1),
        tuple(length for read in reads for length in read.lengths),
    )
    return together.select(sorted(range(len(clips)), key=clips.__getitem__))


def _has_states(layer: Any) -> bool:
    """Whether a layer of a KV cache has no keys and values, but linear attention's states."""
    return hasattr(layer, STATES[0])


def _change_states(layer: Any, change: Callable[[Tensor], Tensor]) -> None:
    """Replaces the states of a layer; their first axis is that of the rows."""
    for name in STATES:
        setattr(layer, name, {at: change(state) for at, state in getattr(layer, name).items()})


def _select_rows(cache: Any, rows: Int[Tensor, " rows"]) -> None:
    """Keeps some rows of a KV cache, in place."""
    for layer in cache.layers:
        if _has_states(layer):
            _change_states(layer, lambda state: state.index_select(0, rows))
        else:
            layer.batch_select_indices(rows)


def _mask_if_padded(
    mask: Int[Tensor, "rows tokens"], lengths: Sequence[int]
) -> Int[Tensor, "rows tokens"] | None:
    """The mask, or None without padding; looking at the mask would wait for the device."""
    return None if min(lengths) == mask.shape[1] else mask


def extend(
    backbone: Any, prompt: PrefilledPrompt, written: Sequence[Sequence[int]]
) -> PrefilledPrompt:
    """Prefills text after prefilled prompts; the video does not run again.

    Args:
        backbone: The model.
        prompt: The prefilled prompts.
        written: Token ids to append to each prompt; may be empty.
    """
    lengths = tuple(map(len, written))
    width = max(lengths)
    if width == 0:
        return prompt
    ids, mask = (
        to_device(rows, prompt.mask.device)
        for rows in (
            [[0] * (width - len(own)) + list(own) for own in written],
            [[0] * (width - len(own)) + [1] * len(own) for own in written],
        )
    )
    positions = prompt.position + mask.cumsum(1)
    labels = torch.full_like(ids, IGNORED)
    text = Sequences(ids, mask, positions, labels, lengths, padded_left=True)
    read = _prefill_after(backbone, text, prompt)
    # Without text, the last hidden state is that of the prompt.
    hidden = read.hidden.where(mask[:, -1:] == 1, prompt.hidden)
    return replace(read, hidden=hidden)


def _first_tokens(prompt: Sequences) -> list[int]:
    """Index of the first token of each clip among the tokens of all rows."""
    if prompt.packed:
        return [0, *accumulate(prompt.lengths)][:-1]
    width = prompt.input_ids.shape[1]
    return [row * width + width - own for row, own in enumerate(prompt.lengths)]


def _pad_left(
    firsts: Sequence[int], lengths: Sequence[int]
) -> tuple[Int[Tensor, "clips tokens"], Int[Tensor, "clips tokens"]]:
    """Index and mask that turn the tokens of all rows into one left-padded row per clip.

    Padding is the clip's first token, which the mask hides.
    """
    start, own = torch.tensor(firsts)[:, None], torch.tensor(lengths)[:, None]
    steps = torch.arange(max(lengths)) - (max(lengths) - own)
    return start + steps.clamp(min=0), (steps >= 0).long()


def _slice(
    prompt: Sequences, starts: Sequence[int], ends: Sequence[int], *, packed: bool
) -> Sequences:
    """The tokens `starts` to `ends` of each prompt, packed or padded on the left."""
    device, firsts = prompt.input_ids.device, _first_tokens(prompt)
    lengths = [end - start for start, end in zip(starts, ends, strict=True)]
    begin = [first + start for first, start in zip(firsts, starts, strict=True)]
    if packed:
        parts = zip(begin, lengths, strict=True)
        index = torch.cat([torch.arange(at, at + own) for at, own in parts])[None]
        mask, now = torch.ones_like(index), [0, *accumulate(lengths)][:-1]
    else:
        index, mask = _pad_left(begin, lengths)
        width = index.shape[1]
        now = [row * width + width - own for row, own in enumerate(lengths)]
    index, mask = to_device(index, device), to_device(mask, device)
    places = None  # only a slice from the beginning has video tokens
    if prompt.video_indices is not None and not any(starts):
        moved = to_device([new - old for new, old in zip(now, firsts, strict=True)], device)
        clips = torch.searchsorted(to_device(firsts, device), prompt.video_indices, right=True) - 1
        places = prompt.video_indices + moved[clips]
    return Sequences(
        input_ids=prompt.input_ids.flatten()[index],
        attention_mask=mask,
        position_ids=prompt.position_ids.flatten(1)[:, index],
        labels=prompt.labels.flatten()[index],
        lengths=tuple(lengths),
        video_indices=places,
        padded_left=not packed,
    )


def score_candidates(
    backbone: Any, prompt: PrefilledPrompt, answers: Sequence[Sequence[int]]
) -> Float[Tensor, "clips answers"]:
    """Scores the same answers after each prompt, see `score_own_candidates`."""
    return score_own_candidates(backbone, prompt, [answers] * len(prompt.hidden))


@torch.no_grad()
def score_own_candidates(
    backbone: Any, prompt: PrefilledPrompt, answers: Sequence[Sequence[Sequence[int]]]
) -> Float[Tensor, "clips answers"]:
    """Log-probability of whole answers after each prompt, log P(answer | video, prompt).

    The answers share the KV cache of the prompt. Scores are computed from the last hidden state in
    float32 in every precision: in half precision the scores of different clips, and of the classes
    of a clip, would often be equal.

    Args:
        backbone: The model.
        prompt: The prefilled prompts.
        answers: The same number of answers for each prompt: token ids with the end of turn.

    Returns:
        Sums over the answer's tokens, in nats.
    """
    clips, count, device = len(answers), len(answers[0]), prompt.hidden.device
    rows = [answer for own in answers for answer in own]
    first = to_device([row[0] for row in rows], device).view(clips, count)
    scores = head_log_probabilities(backbone.lm_head, prompt.hidden, first)
    longest = max(map(len, rows)) - 1
    if longest == 0:
        return scores
    # The last token of an answer is not an input.
    padding = [[0] * (longest + 1 - len(row)) for row in rows]
    fed, mask, targets = (
        to_device([row + pad for row, pad in zip(part, padding, strict=True)], device)
        for part in (
            [list(row[:-1]) for row in rows],
            [[1] * (len(row) - 1) for row in rows],
            [list(row[1:]) for row in rows],
        )
    )
    cache = prompt.cache
    if count > 1:
        for layer in cache.layers:
            if _has_states(layer):
                _change_states(layer, lambda state: state.repeat_interleave(count, dim=0))
            else:
                layer.batch_repeat_interleave(count)
    steps = torch.arange(1, longest + 1, device=device)
    last = prompt.position.repeat_interleave(count, dim=1)
    # No answer token attends to the padding after an answer.
    seen = _mask_if_padded(prompt.mask, prompt.lengths)
    if seen is not None:
        seen = torch.cat([seen.repeat_interleave(count, dim=0), mask], dim=1)
    hidden = backbone.model(
        input_ids=fed,
        attention_mask=seen,
        position_ids=last + steps,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    rest = head_log_probabilities(
        backbone.lm_head, hidden.flatten(0, 1), targets.flatten()[:, None]
    ).view_as(targets)
    return scores + (rest * mask).sum(-1).view(clips, count)


# Chooses the next token of each row: from the scores in float32, which of the texts each row is,
# and how many tokens each text has.
Choose = Callable[[Tensor, Sequence[int], int], Tensor]


def likeliest(scores: Tensor, texts: Sequence[int], position: int) -> Tensor:
    """The token of the highest score."""
    return scores.argmax(-1)


def greedy_decode(
    backbone: Any, prompt: PrefilledPrompt, settings: Mapping[str, Any]
) -> list[list[int]]:
    """Greedily decodes a text after each prompt, see `decode`.

    Equals transformers' greedy `generate` for each clip alone.
    """
    return decode(backbone, prompt, settings, likeliest)


@torch.no_grad()
def decode(
    backbone: Any, prompt: PrefilledPrompt, settings: Mapping[str, Any], choose: Choose
) -> list[list[int]]:
    """Decodes a text after each prompt.

    A finished text leaves the batch, so that the others do not wait for the longest.

    Args:
        backbone: The model.
        prompt: The prefilled prompts.
        settings: See `rbft.backbone.loading.generation_settings`: `max_new_tokens`, `eos_token_id`
            (a list; each ends a text and is kept at its end) and `repetition_penalty` (positive
            logits of tokens that prompt or text contain are divided by it, negative ones
            multiplied).
        choose: Chooses the next tokens: `likeliest`, or a `rbft.inference.sampling.Draw`.

    Returns:
        Token ids of each text.

    Raises:
        NotFiniteError: If the logits of a next token are not finite.
    """
    ends, most = set(settings["eos_token_id"]), settings["max_new_tokens"]
    penalty = settings["repetition_penalty"]
    answers: list[list[int]] = [[] for _ in prompt.hidden]
    writing = list(range(len(answers)))
    # Each step advances the given position by one, which is the rule of `rbft.backbone.positions`.
    cache, mask, position = prompt.cache, prompt.mask, prompt.position
    lengths = list(prompt.lengths)
    hidden, seen = prompt.hidden, _contained_tokens(prompt, backbone.lm_head)
    while True:
        # The model's own head in its own dtype, then 32 bits, as in `generate`.
        logits = backbone.lm_head(hidden[:, None])[:, 0].float()
        if penalty != 1:
            repeated = torch.where(logits < 0, logits * penalty, logits / penalty)
            logits = logits.where(~seen, repeated)
        # All texts that are still written have the same number of tokens.
        token = choose(logits, writing, len(answers[writing[0]]))
        # Read in one transfer: the host waits for the device once per token.
        finite = logits.isfinite().all(-1)
        chosen, sound = torch.stack([token, finite.to(token.dtype)]).tolist()
        if broken := [clip for clip, fine in zip(writing, sound, strict=True) if not fine]:
            raise NotFiniteError(broken)
        for clip, one in zip(writing, chosen, strict=True):
            answers[clip].append(one)
        going = [
            row
            for row, clip in enumerate(writing)
            if answers[clip][-1] not in ends and len(answers[clip]) < most
        ]
        if not going:
            return answers
        if len(going) < len(writing):
            rows = to_device(going, token.device)
            _select_rows(cache, rows)
            token, mask, position = token[rows], mask[rows], position[:, rows]
            seen, writing = seen[rows], [writing[row] for row in going]
            lengths = [lengths[row] for row in going]
        seen = seen.scatter(1, token[:, None], True)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        lengths = [own + 1 for own in lengths]
        position = position + 1
        # A sharded model is unsharded here (`rbft.training.fsdp2.unshard`), so processes may write
        # texts of different lengths.
        hidden = backbone.model(
            input_ids=token[:, None],
            attention_mask=_mask_if_padded(mask, lengths),
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]


def ended(written: Sequence[int], settings: Mapping[str, Any]) -> bool:
    """Whether the model ended an answer itself; otherwise the limit of tokens did.

    Args:
        written: Token ids of the answer.
        settings: See `decode`.
    """
    return bool(written) and written[-1] in settings["eos_token_id"]


def decode_texts(
    written: Sequence[Sequence[int]], tokenizer: Any, settings: Mapping[str, Any]
) -> list[str]:
    """What the model wrote, without what ended it.

    Args:
        written: Token ids of the answers.
        tokenizer: The backbone's.
        settings: See `decode`.
    """
    whole = [ids[:-1] if ended(ids, settings) else ids for ids in written]
    return tokenizer.batch_decode(whole, skip_special_tokens=True)


def _contained_tokens(prompt: PrefilledPrompt, head: Any) -> Bool[Tensor, "clips vocab"]:
    """Which tokens each prompt contains, without padding, which depends on the batch."""
    size = head.out_features
    ids = prompt.ids.masked_fill(prompt.mask == 0, size).clamp(max=size)
    seen = torch.zeros(len(ids), size + 1, dtype=torch.bool, device=ids.device)
    return seen.scatter(1, ids, True)[:, :size]


def find_class(
    written: Sequence[int], words: Sequence[Sequence[int]], *, at_end: bool
) -> tuple[int | None, list[int]]:
    """Finds the class word at the beginning or end of a generated text.

    Args:
        written: Token ids of the text.
        words: Token ids of each class word with the end of turn.
        at_end: Look at the end of the text (P+R+C) instead of its beginning.

    Returns:
        Class index, or None if no class word is there, and the other tokens (without the end of
        turn if no word was found).
    """
    ids = list(written)
    # The longest match wins: one class word may end with another ("abnormal", "normal").
    for index, word in sorted(enumerate(words), key=lambda item: -len(item[1])):
        size = len(word)
        if at_end and ids[-size:] == list(word):
            return index, ids[:-size]
        if not at_end and ids[:size] == list(word):
            return index, ids[size:]
    return None, [token for token in ids if token != words[0][-1]] if at_end else ids
