"""Answers of the backbone: how likely given ones are, and which one it writes itself."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rbft.collator import Sequences


@torch.no_grad()
def score_answers(
    backbone: Any,
    prompt: Sequences,
    video: dict[str, Tensor],
    answers: Sequence[Sequence[int]],
) -> Float[Tensor, "clips answers"]:
    """Log-probability of each whole answer after each prompt, log P(answer | video, prompt).

    The prompt runs once; its keys and values are shared by the answers.

    Args:
        backbone: The model.
        prompt: Prompts padded on the left.
        video: The clips' patches and grids.
        answers: Token ids of each answer, the end of the turn included.

    Returns:
        Sums over the answer's tokens, in nats.
    """
    clips, count, device = len(prompt.input_ids), len(answers), prompt.input_ids.device
    out = backbone(**prompt.inputs, **video, use_cache=True, logits_to_keep=1)
    first = torch.tensor([answer[0] for answer in answers], device=device)
    scores = out.logits[:, -1].float().log_softmax(-1)[:, first]
    longest = max(map(len, answers)) - 1
    if longest == 0:
        return scores
    # Answers are fed without their last token, which nothing comes after.
    rows = [[*answer[:-1], *[0] * (longest + 1 - len(answer))] for answer in answers]
    real = [[1] * (len(answer) - 1) + [0] * (longest + 1 - len(answer)) for answer in answers]
    next_ids = [[*answer[1:], *[0] * (longest + 1 - len(answer))] for answer in answers]
    fed, mask, targets = (
        torch.tensor(value, device=device).repeat(clips, 1) for value in (rows, real, next_ids)
    )
    cache = out.past_key_values
    cache.batch_repeat_interleave(count)
    steps = torch.arange(1, longest + 1, device=device)
    last = prompt.position_ids[:, :, -1:].repeat_interleave(count, dim=1)
    seen = prompt.attention_mask.repeat_interleave(count, dim=0)
    logits = backbone(
        input_ids=fed,
        attention_mask=torch.cat([seen, mask], dim=1),
        position_ids=last + steps,
        past_key_values=cache,
        use_cache=True,
    ).logits
    rest = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return scores + (rest * mask).sum(-1).view(clips, count)


@torch.no_grad()
def write_answers(
    backbone: Any, prompt: Sequences, video: dict[str, Tensor], settings: dict[str, Any]
) -> list[list[int]]:
    """Token ids that the backbone writes after each prompt, without padding.

    Args:
        backbone: The model.
        prompt: Prompts padded on the left.
        video: The clips' patches and grids.
        settings: Arguments of transformers' `generate`; `eos_token_id` ends an answer and is
            kept at its end.
    """
    # Given positions are continued by one a step, so cached steps follow the same rule.
    written = backbone.generate(**prompt.inputs, **video, **settings)
    answers: list[list[int]] = []
    for row in written[:, prompt.input_ids.shape[1] :].tolist():
        end = row.index(settings["eos_token_id"]) + 1 if settings["eos_token_id"] in row else None
        answers.append(row[:end])
    return answers


def continue_prompts(prompt: Sequences, written: Sequence[Sequence[int]], pad: int) -> Sequences:
    """The prompts with text after them, padded on the left again.

    Args:
        prompt: Prompts padded on the left.
        written: Token ids to put after each.
        pad: The padding token's id.
    """
    longest = max(map(len, written), default=0)
    device = prompt.input_ids.device
    rows = []
    for index, ids in enumerate(written):
        # The new tokens push the row to the left into padding made for it.
        used = int(prompt.attention_mask[index].sum())
        row = prompt.input_ids[index, -used:]
        positions = prompt.position_ids[:, index, -used:]
        tail = positions[:, -1:] + torch.arange(1, len(ids) + 1, device=device)
        rows.append(
            (
                torch.cat([row, torch.tensor(ids, device=device, dtype=row.dtype)]),
                torch.cat([positions, tail], dim=1),
            )
        )
    width = prompt.input_ids.shape[1] + longest
    padding = [width - len(row) for row, _ in rows]
    ids = torch.stack(
        [
            torch.nn.functional.pad(row, (n, 0), value=pad)
            for n, (row, _) in zip(padding, rows, strict=True)
        ]
    )
    positions = torch.stack(
        [torch.nn.functional.pad(p, (n, 0)) for n, (_, p) in zip(padding, rows, strict=True)], dim=1
    )
    mask = torch.stack([(torch.arange(width, device=device) >= n).long() for n in padding])
    return Sequences(ids, mask, positions, torch.full_like(ids, -100))


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
