"""Counts the tokens of each clip, exactly, from the scan; no video is decoded."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from rbft.clip import Clip
from rbft.collator import Collator
from rbft.data.base import VideoDataModule
from rbft.estimate.flops import ClipTokens
from rbft.video.times import PairTimes

NO_TIMES = PairTimes((), (), None)


def count_tokens(
    data: VideoDataModule,
    collator: Collator,
    clips: Sequence[Clip],
    rationales: Mapping[str, str],
    longest_rationale: int,
) -> dict[str, ClipTokens]:
    """Counts the tokens of clips, with the answers of the stage `collator.target_stage`.

    Args:
        data: The benchmark.
        collator: Makes the prompts and answers.
        clips: The clips.
        rationales: Rationales by clip id, as far as they are known.
        longest_rationale: Tokens that are counted for an unknown rationale, if one is needed.

    Returns:
        Tokens by clip id. Clips whose frames are too elongated to be processed are missing;
        training replaces them, and evaluation counts them as unanswered.

    Raises:
        ValueError: If all clips are missing: then a setting is out of range.
    """
    stage, vision = collator.target_stage, collator.config.vision_config
    assert stage is not None

    @lru_cache
    def prompt_tokens(prompt: str, times: PairTimes | None) -> int:
        return len(collator.prompt_ids(prompt, times or NO_TIMES, 0))

    counts, failure = {}, None
    for clip in clips:
        try:
            grid = data.files.grid(clip)
            # Otherwise a clip's times change nothing, and most prompts are alike.
            times = data.files.pair_times(clip) if collator.family.says_times else None
        except ValueError as error:
            failure = error
            continue
        video = grid[0] * grid[1] * grid[2] // vision.spatial_merge_size**2
        each = []
        for turn in stage.turns or (stage,):  # of several the longest, which decides the memory
            known = rationales.get(clip.id)
            answer = replace(collator, target_stage=turn).answer_tokens(clip, known or "")
            if turn.needs_rationales and not known:
                answer += longest_rationale
            asked = range(turn.questions(collator.card))  # the longest of several
            prompt = max(prompt_tokens(turn.prompt(collator.card, clip, n), times) for n in asked)
            each.append(ClipTokens(grid, video, prompt, answer))
        counts[clip.id] = max(each, key=lambda one: one.total)
    if failure is not None and not counts:
        raise failure
    return counts


def check_context(
    clips: Sequence[Clip], counts: Mapping[str, ClipTokens], context: int, backbone: str
) -> None:
    """Refuses clips that are longer than the backbone's context.

    Args:
        clips: The clips.
        counts: Their tokens, by id.
        context: The backbone's `max_position_embeddings`.
        backbone: Its name, for the message.

    Raises:
        ValueError: Naming the longest clip.
    """
    longer = [clip for clip in clips if clip.id in counts and counts[clip.id].total > context]
    if not longer:
        return
    clip = max(longer, key=lambda clip: counts[clip.id].total)
    most = counts[clip.id]
    room = (context - most.prompt - most.answer) * most.grid[0] // most.video
    cure = f" (at most {2 * room} frames of this size fit)" if room > 0 else ""
    raise ValueError(
        f"Clip {clip.id} ({clip.path}) takes {most.total:,} tokens ({most.video:,} of video, "
        f"{most.prompt:,} of prompt, {most.answer:,} of answer), but {backbone} takes at most "
        f"{context:,} (max_position_embeddings). {len(longer)} of {len(counts)} clips are too "
        f"long. Lower data.max_frames{cure}, data.fps or data.max_pixels."
    )
