"""Answers of the backbone: how likely given ones are, and which one it writes itself."""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rbft.backbone.embeddings import PLACES
from rbft.collator import IGNORED, Sequences
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
class Read:
    """Prompts that the backbone has read and can go on from, once; a `copy` goes on once more.

    Attributes:
        hidden: The last hidden state, of which the head makes scores of the token that comes next.
        ids: The tokens of the cache.
        cache: Keys and values of the prompts.
        mask: 1 for the tokens of the cache, 0 for padding.
        position: Rotary positions of the prompts' last tokens.
    """

    hidden: Float[Tensor, "clips width"]
    ids: Int[Tensor, "clips tokens"]
    cache: Any
    mask: Int[Tensor, "clips tokens"]
    position: Int[Tensor, "3 clips 1"]

    def copy(self) -> "Read":
        """The same prompts, which share keys and values."""
        # Layers put new keys and values into new tensors, so several may go on from one.
        cache = copy(self.cache)
        cache.layers = [copy(layer) for layer in self.cache.layers]
        return replace(self, cache=cache)


def read_prompts(
    backbone: Any, prompts: Sequence[Sequences], video: dict[str, Any]
) -> Iterator[Read]:
    """Reads several prompts about the same clips; what they begin with, the video, once.

    One by one as they are taken, so that not all keys and values must fit into memory at a time.

    Args:
        backbone: The model.
        prompts: Prompts padded on the left, the clips of each in the same order.
        video: What shows the clips to the backbone: patches and grids, or tower outputs.
    """
    if len(prompts) == 1:
        yield _go_on(backbone, prompts[0], None, video)
        return
    rows = [prompt.input_ids.tolist() for prompt in prompts]
    used = [prompt.attention_mask.sum(1).tolist() for prompt in prompts]
    shared = []
    for clip in range(len(rows[0])):
        own = [ids[clip][-size[clip] :] for ids, size in zip(rows, used, strict=True)]
        most = min(map(len, own)) - 1  # something must be left to ask
        same = (len({ids[place] for ids in own}) == 1 for place in range(most))
        shared.append(next((place for place, equal in enumerate(same) if not equal), most))
    begin = _go_on(backbone, _part(prompts[0], [0] * len(shared), shared), None, video)
    for prompt, size in zip(prompts, used, strict=True):
        yield _go_on(backbone, _part(prompt, shared, size), begin, {})


@torch.no_grad()
def _go_on(backbone: Any, text: Sequences, before: Read | None, video: dict[str, Any]) -> Read:
    given: dict[str, Any] = {**text.inputs, **video}
    if video:
        given[PLACES] = text.places
    ids = text.input_ids
    if before is not None:
        ids = torch.cat([before.ids, ids], dim=1)
        mask = torch.cat([before.mask, text.attention_mask], dim=1)
        given |= {"past_key_values": before.copy().cache, "attention_mask": mask}
    # Not the head yet: who writes takes the model's own, who scores has it run in 32 bits.
    out = backbone.model(**given, use_cache=True)
    return Read(
        out.last_hidden_state[:, -1],
        ids,
        out.past_key_values,
        given["attention_mask"],
        text.position_ids[:, :, -1:],
    )


def read_on(backbone: Any, prompt: Read, written: Sequence[Sequence[int]]) -> Read:
    """Reads text after prompts, which itself goes on from them: the video is not read again.

    Args:
        backbone: The model.
        prompt: What it has read.
        written: Token ids after each prompt; there may be none.
    """
    width = max(map(len, written))
    if width == 0:
        return prompt
    device = prompt.mask.device
    ids, mask = (
        torch.tensor(rows, device=device)
        for rows in (
            [[0] * (width - len(own)) + list(own) for own in written],
            [[0] * (width - len(own)) + [1] * len(own) for own in written],
        )
    )
    text = Sequences(ids, mask, prompt.position + mask.cumsum(1), torch.full_like(ids, IGNORED))
    read = _go_on(backbone, text, prompt, {})
    # After no text, the prompt itself says what comes next.
    hidden = read.hidden.where(mask[:, -1:] == 1, prompt.hidden)
    return replace(read, hidden=hidden)


def _part(prompt: Sequences, starts: list[int], ends: list[int]) -> Sequences:
    """From one place of each prompt to another, padded on the left."""
    widths = [end - start for start, end in zip(starts, ends, strict=True)]
    width = max(widths)
    lengths = prompt.attention_mask.sum(1).tolist()
    padding = prompt.input_ids.shape[1]
    # Columns of the prompt; those before a part show its first token, which the mask hides.
    columns = torch.tensor(
        [
            [padding - length + max(start, end - width + place) for place in range(width)]
            for length, start, end in zip(lengths, starts, ends, strict=True)
        ],
        device=prompt.input_ids.device,
    )
    mask = torch.tensor([[0] * (width - own) + [1] * own for own in widths], device=columns.device)
    places = None  # parts behind the beginning show no video
    if prompt.places is not None and not any(starts):
        moved = [
            width - end - (padding - length) for end, length in zip(ends, lengths, strict=True)
        ]
        rows = prompt.places // padding
        shift = rows * (width - padding) + torch.tensor(moved, device=columns.device)[rows]
        places = prompt.places + shift
    return Sequences(
        input_ids=prompt.input_ids.gather(1, columns),
        attention_mask=mask,
        position_ids=prompt.position_ids.gather(2, columns.expand(3, -1, -1)),
        labels=prompt.labels.gather(1, columns),
        places=places,
    )


def score_after(
    backbone: Any, prompt: Read, answers: Sequence[Sequence[int]]
) -> Float[Tensor, "clips answers"]:
    """Scores the same answers after each prompt, see `score_own`."""
    return score_own(backbone, prompt, [answers] * len(prompt.hidden))


@torch.no_grad()
def score_own(
    backbone: Any, prompt: Read, answers: Sequence[Sequence[Sequence[int]]]
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
    first = torch.tensor([row[0] for row in rows], device=device).view(clips, count)
    scores = head_log_probabilities(backbone.lm_head, prompt.hidden, first)
    longest = max(map(len, rows)) - 1
    if longest == 0:
        return scores
    # Answers are fed without their last token, which nothing comes after.
    padding = [[0] * (longest + 1 - len(row)) for row in rows]
    fed, mask, targets = (
        torch.tensor([row + pad for row, pad in zip(part, padding, strict=True)], device=device)
        for part in (
            [list(row[:-1]) for row in rows],
            [[1] * (len(row) - 1) for row in rows],
            [list(row[1:]) for row in rows],
        )
    )
    cache = prompt.cache
    cache.batch_repeat_interleave(count)
    steps = torch.arange(1, longest + 1, device=device)
    last = prompt.position.repeat_interleave(count, dim=1)
    seen = prompt.mask.repeat_interleave(count, dim=0)
    hidden = backbone.model(
        input_ids=fed,
        attention_mask=torch.cat([seen, mask], dim=1),
        position_ids=last + steps,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    rest = head_log_probabilities(
        backbone.lm_head, hidden.flatten(0, 1), targets.flatten()[:, None]
    ).view_as(targets)
    return scores + (rest * mask).sum(-1).view(clips, count)


@torch.no_grad()
def write_after(backbone: Any, prompt: Read, settings: Mapping[str, Any]) -> list[list[int]]:
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
            rows = torch.tensor(going, device=token.device)
            cache.batch_select_indices(rows)
            token, mask, position = token[rows], mask[rows], position[:, rows]
            seen, writing = seen[rows], [writing[row] for row in going]
        seen = seen.scatter(1, token[:, None], True)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        position = position + 1
        # A sharded model has all its weights at hand here (`rbft.training.fsdp2.gather`): that the
        # processes write texts of different lengths stops none of them.
        hidden = backbone.model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]


def _tokens_seen(prompt: Read, head: Any) -> Bool[Tensor, "clips vocab"]:
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
