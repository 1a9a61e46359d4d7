"""Answers of the backbone: how likely given ones are, and which one it writes itself."""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rbft.backbone.attention import FLASH, TEXT, forward_inputs
from rbft.backbone.embeddings import PLACES
from rbft.batch import IGNORED, Sequences
from rbft.runtime.transfer import send
from rbft.training.loss import head_log_probabilities


class NotFiniteError(ValueError):
    """Scores that are no finite numbers: neither a class nor a text follows from them.

    Args:
        clips: The clips that have such scores, by their place in the batch.
    """

    def __init__(self, clips: Sequence[int]) -> None:
        super().__init__(f"Scores of the clips {list(clips)} of the batch are not finite.")
        self.clips = list(clips)


@dataclass(frozen=True)
class PrefilledPrompt:
    """Prompts that the backbone has read and can go on from, once; a `copy` goes on once more.

    Attributes:
        hidden: The last hidden state, of which the head makes scores of the token that comes next.
        ids: The tokens of the cache.
        cache: Keys and values of the prompts, a clip in a row, padded where `mask` says.
        mask: 1 for the tokens of the cache, 0 for padding.
        position: Rotary positions of the prompts' last tokens.
        lengths: Tokens of each clip in the cache, in the processor's memory.
    """

    hidden: Float[Tensor, "clips width"]
    ids: Int[Tensor, "clips tokens"]
    cache: Any
    mask: Int[Tensor, "clips tokens"]
    position: Int[Tensor, "3 clips 1"]
    lengths: tuple[int, ...]

    def copy(self) -> "PrefilledPrompt":
        """The same prompts, which share keys and values."""
        # Layers put new keys and values into new tensors, so several may go on from one.
        cache = copy(self.cache)
        cache.layers = [copy(layer) for layer in self.cache.layers]
        return replace(self, cache=cache)


def prefill(
    backbone: Any,
    prompts: Sequence[Sequences],
    video: dict[str, Any],
    shared: Sequence[int] = (),
) -> Iterator[PrefilledPrompt]:
    """Reads several prompts about the same clips; what they begin with, the video, once.

    One by one as they are taken, so that not all keys and values must fit into memory at a time.

    Args:
        backbone: The model.
        prompts: Prompts, packed or padded on the left, the clips of each in the same order.
        video: What shows the clips to the backbone: patches and grids, or tower outputs.
        shared: With how many tokens the prompts of each clip begin alike, see `Batch.shared`; for
            several prompts.
    """
    first = prompts[0]
    if len(prompts) == 1:
        yield _begin(backbone, first, video)
        return
    assert len(shared) == len(first.lengths)
    begin = _begin(backbone, _part(first, [0] * len(shared), shared, packed=first.packed), video)
    for prompt in prompts:
        yield _go_on(backbone, _part(prompt, shared, prompt.lengths, packed=False), begin)


@torch.no_grad()
def _begin(backbone: Any, text: Sequences, video: dict[str, Any]) -> PrefilledPrompt:
    """Reads text that begins with the video.

    A packed row needs no mask, see `rbft.backbone.attention`; its keys and values are then laid out
    with a clip in a row. Padded ones, for attention that cannot tell the clips of a row apart, take
    a mask of their length squared.
    """
    attention = backbone.config.text_config._attn_implementation
    clips = len(text.lengths)
    assert clips == 1 or not text.packed or attention in (TEXT, FLASH)
    given = {**forward_inputs(text, attention), **video, PLACES: text.places}
    # Not the head yet: who writes takes the model's own, who scores has it run in 32 bits.
    out = backbone.model(**given, use_cache=True)
    hidden, cache = out.last_hidden_state, out.past_key_values
    if clips == 1 or not text.packed:
        last = text.position_ids[:, :, -1:]
        return PrefilledPrompt(
            hidden[:, -1], text.input_ids, cache, text.attention_mask, last, text.lengths
        )
    device = hidden.device
    ends = [*accumulate(text.lengths)]
    index, mask = _left(_firsts(text), text.lengths)
    index, mask = send(index, device), send(mask, device)
    for layer in cache.layers:  # one by one: the packed ones are given up as the others are made
        layer.keys, layer.values = (
            held[0].index_select(1, index.flatten()).unflatten(1, index.shape).transpose(0, 1)
            for held in (layer.keys, layer.values)
        )
    lasts = send([end - 1 for end in ends], device)
    return PrefilledPrompt(
        hidden[0].index_select(0, lasts),
        text.input_ids[0][index],
        cache,
        mask,
        text.position_ids[:, 0].index_select(1, lasts)[:, :, None],
        text.lengths,
    )


@torch.no_grad()
def _go_on(backbone: Any, text: Sequences, before: PrefilledPrompt) -> PrefilledPrompt:
    """Reads text, padded on the left, behind what was read before."""
    mask = torch.cat([before.mask, text.attention_mask], dim=1)
    lengths = tuple(map(sum, zip(before.lengths, text.lengths, strict=True)))
    out = backbone.model(
        input_ids=text.input_ids,
        position_ids=text.position_ids,
        attention_mask=_needed(mask, lengths),
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


def _needed(
    mask: Int[Tensor, "rows tokens"], lengths: Sequence[int]
) -> Int[Tensor, "rows tokens"] | None:
    """The mask, None where nothing is padded: to look on the device would be to wait for it."""
    return None if min(lengths) == mask.shape[1] else mask


def extend(
    backbone: Any, prompt: PrefilledPrompt, written: Sequence[Sequence[int]]
) -> PrefilledPrompt:
    """Reads text after prompts, which itself goes on from them: the video is not read again.

    Args:
        backbone: The model.
        prompt: What it has read.
        written: Token ids after each prompt; there may be none.
    """
    lengths = tuple(map(len, written))
    width = max(lengths)
    if width == 0:
        return prompt
    ids, mask = (
        send(rows, prompt.mask.device)
        for rows in (
            [[0] * (width - len(own)) + list(own) for own in written],
            [[0] * (width - len(own)) + [1] * len(own) for own in written],
        )
    )
    positions = prompt.position + mask.cumsum(1)
    labels = torch.full_like(ids, IGNORED)
    text = Sequences(ids, mask, positions, labels, lengths, padded_left=True)
    read = _go_on(backbone, text, prompt)
    # After no text, the prompt itself says what comes next.
    hidden = read.hidden.where(mask[:, -1:] == 1, prompt.hidden)
    return replace(read, hidden=hidden)


def _firsts(prompt: Sequences) -> list[int]:
    """Where each clip begins among all rows' tokens."""
    if prompt.packed:
        return [0, *accumulate(prompt.lengths)][:-1]
    width = prompt.input_ids.shape[1]
    return [row * width + width - own for row, own in enumerate(prompt.lengths)]


def _left(
    firsts: Sequence[int], lengths: Sequence[int]
) -> tuple[Int[Tensor, "clips tokens"], Int[Tensor, "clips tokens"]]:
    """Places among all rows' tokens, a clip in a row, padded on the left; and the mask.

    Padding shows the clip's first token, which the mask hides.
    """
    start, own = torch.tensor(firsts)[:, None], torch.tensor(lengths)[:, None]
    steps = torch.arange(max(lengths)) - (max(lengths) - own)
    return start + steps.clamp(min=0), (steps >= 0).long()


def _part(
    prompt: Sequences, starts: Sequence[int], ends: Sequence[int], *, packed: bool
) -> Sequences:
    """From one place of each prompt to another, packed or padded on the left."""
    device, firsts = prompt.input_ids.device, _firsts(prompt)
    lengths = [end - start for start, end in zip(starts, ends, strict=True)]
    begin = [first + start for first, start in zip(firsts, starts, strict=True)]
    if packed:
        parts = zip(begin, lengths, strict=True)
        index = torch.cat([torch.arange(at, at + own) for at, own in parts])[None]
        mask, now = torch.ones_like(index), [0, *accumulate(lengths)][:-1]
    else:
        index, mask = _left(begin, lengths)
        width = index.shape[1]
        now = [row * width + width - own for row, own in enumerate(lengths)]
    index, mask = send(index, device), send(mask, device)
    places = None  # parts behind the beginning show no video
    if prompt.places is not None and not any(starts):
        moved = send([new - old for new, old in zip(now, firsts, strict=True)], device)
        clips = torch.searchsorted(send(firsts, device), prompt.places, right=True) - 1
        places = prompt.places + moved[clips]
    return Sequences(
        input_ids=prompt.input_ids.flatten()[index],
        attention_mask=mask,
        position_ids=prompt.position_ids.flatten(1)[:, index],
        labels=prompt.labels.flatten()[index],
        lengths=tuple(lengths),
        places=places,
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

    The prompt was read once; its keys and values are shared by the answers. Whatever the model is
    computed in, scores are made of its last hidden state in float32: in half precision different
    clips would come out alike, and so would the classes of a clip.

    Args:
        backbone: The model.
        prompt: What it has read.
        answers: For each prompt as many answers: token ids, the end of the turn included.

    Returns:
        Sums over the answer's tokens, in nats.
    """
    clips, count, device = len(answers), len(answers[0]), prompt.hidden.device
    rows = [answer for own in answers for answer in own]
    first = send([row[0] for row in rows], device).view(clips, count)
    scores = head_log_probabilities(backbone.lm_head, prompt.hidden, first)
    longest = max(map(len, rows)) - 1
    if longest == 0:
        return scores
    # Answers are fed without their last token, which nothing comes after.
    padding = [[0] * (longest + 1 - len(row)) for row in rows]
    fed, mask, targets = (
        send([row + pad for row, pad in zip(part, padding, strict=True)], device)
        for part in (
            [list(row[:-1]) for row in rows],
            [[1] * (len(row) - 1) for row in rows],
            [list(row[1:]) for row in rows],
        )
    )
    cache = prompt.cache
    if count > 1:
        cache.batch_repeat_interleave(count)
    steps = torch.arange(1, longest + 1, device=device)
    last = prompt.position.repeat_interleave(count, dim=1)
    # Padding behind an answer is seen by nothing that counts.
    seen = _needed(prompt.mask, prompt.lengths)
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


@torch.no_grad()
def greedy_decode(
    backbone: Any, prompt: PrefilledPrompt, settings: Mapping[str, Any]
) -> list[list[int]]:
    """Token ids that the backbone writes after each prompt, the likeliest one by one.

    Equals transformers' greedy `generate` of each clip alone, but a finished answer leaves the
    batch, so that not all pay for the longest.

    Args:
        backbone: The model.
        prompt: What it has read.
        settings: See `rbft.backbone.loading.generation_settings`: `max_new_tokens`, `eos_token_id`
            (the ids each of which ends an answer, and is kept at its end) and `repetition_penalty`,
            which the scores of tokens that the prompt or the answer holds are divided by where
            they are positive, and multiplied with where they are negative.

    Raises:
        NotFiniteError: If the scores of a next token are not finite.
    """
    ends, most = set(settings["eos_token_id"]), settings["max_new_tokens"]
    penalty = settings["repetition_penalty"]
    answers: list[list[int]] = [[] for _ in prompt.hidden]
    writing = list(range(len(answers)))
    # A given position is continued by one a step, so cached steps follow the same rule.
    cache, mask, position = prompt.cache, prompt.mask, prompt.position
    lengths = list(prompt.lengths)
    hidden, seen = prompt.hidden, _tokens_seen(prompt, backbone.lm_head)
    while True:
        # The model's own head in its own precision, and from there on 32 bits, as in `generate`.
        logits = backbone.lm_head(hidden[:, None])[:, 0].float()
        if penalty != 1:
            repeated = torch.where(logits < 0, logits * penalty, logits / penalty)
            logits = logits.where(~seen, repeated)
        token = logits.argmax(-1)
        # Read together: the host waits for the device once a token.
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
            rows = send(going, token.device)
            cache.batch_select_indices(rows)
            token, mask, position = token[rows], mask[rows], position[:, rows]
            seen, writing = seen[rows], [writing[row] for row in going]
            lengths = [lengths[row] for row in going]
        seen = seen.scatter(1, token[:, None], True)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        lengths = [own + 1 for own in lengths]
        position = position + 1
        # A sharded model has all its weights at hand here (`rbft.training.fsdp2.unshard`): that the
        # processes write texts of different lengths stops none of them.
        hidden = backbone.model(
            input_ids=token[:, None],
            attention_mask=_needed(mask, lengths),
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]


def ended(written: Sequence[int], settings: Mapping[str, Any]) -> bool:
    """Whether the model ended an answer itself; otherwise the limit of tokens did.

    Args:
        written: Token ids of the answer.
        settings: See `greedy_decode`.
    """
    return bool(written) and written[-1] in settings["eos_token_id"]


def decode_texts(
    written: Sequence[Sequence[int]], tokenizer: Any, settings: Mapping[str, Any]
) -> list[str]:
    """What the model wrote, without what ended it.

    Args:
        written: Token ids of the answers.
        tokenizer: The backbone's.
        settings: See `greedy_decode`.
    """
    whole = [ids[:-1] if ended(ids, settings) else ids for ids in written]
    return tokenizer.batch_decode(whole, skip_special_tokens=True)


def _tokens_seen(prompt: PrefilledPrompt, head: Any) -> Bool[Tensor, "clips vocab"]:
    """Which tokens each prompt holds; padding, which differs from batch to batch, is none."""
    size = head.out_features
    ids = prompt.ids.masked_fill(prompt.mask == 0, size).clamp(max=size)
    seen = torch.zeros(len(ids), size + 1, dtype=torch.bool, device=ids.device)
    return seen.scatter(1, ids, True)[:, :size]


def find_class(
    written: Sequence[int], words: Sequence[Sequence[int]], *, at_end: bool
) -> tuple[int | None, list[int]]:
    """The class word that a written answer ends or begins with, and the rest.

    Args:
        written: Token ids that the model wrote.
        words: Token ids of each class word with what ends it.
        at_end: Look at the answer's end (P+R+C) instead of its beginning.

    Returns:
        Class index, None where there is no class word in its place, and the other tokens (without
        the end of the turn where no word was found).
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
