"""Conversation records, as other trainers keep their data: which video, and which label.

LLaVA and Qwen (`conversations` of `from`/`value`, `video`), LLaMA-Factory's sharegpt and ms-swift
(`messages` of `role`/`content`, or `conversations`; `videos`; ms-swift's older `query` and
`response`), OpenAI's lists of parts as content. The prompt in a record is not used: rbft's prompts
stand on the card.
"""

from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from rbft.annotations.labels import match_label
from rbft.annotations.tables import TableRow, shown
from rbft.card import Card

VIDEO = "<video>"
IMAGE = "<image>"  # LLaVA-Video's tag for a video
RATIONALE = "rationale"
ASSISTANT = ("gpt", "assistant")


def is_conversation(row: TableRow) -> bool:
    """Whether the row is a conversation record, by its keys."""
    keys = row.values.keys()
    return "conversations" in keys or "messages" in keys or {"query", "response"} <= keys


def read_conversation(row: TableRow, card: Card) -> tuple[str, int]:
    """The video's path and the label of one conversation record.

    The label is the last assistant turn. A field `label` or `ground_truth` beside it must agree;
    without an assistant turn, or where that is a rationale (see `read_reference`), it is the label.

    Args:
        row: The record.
        card: The card with the classes.

    Returns:
        Path as it stands in the record, and index into `card.classes`.

    Raises:
        ValueError: If the record does not hold exactly one video and one `<video>` tag, its turns
            are malformed, or its label is no class or contradicts itself.
    """
    turns, in_turns = _turns(row)
    path = _video(row, in_turns)
    tags = sum(text.count(VIDEO) for _, text in turns)
    if not tags and not {"image", "images"} & row.values.keys():
        tags = sum(text.count(IMAGE) for _, text in turns)
    # ms-swift puts the tag of a query in itself where there is none.
    if tags != 1 and (tags or "query" not in row.values):
        raise ValueError(
            f"{row.where}: {tags} <video> tags for 1 video; write one in the first turn."
        )
    labels = [
        (key, match_label(row.values[key], card, f"{row.where}, {key}"))
        for key in ("label", "ground_truth")
        if row.values.get(key) is not None
    ]
    answers = [text for role, text in turns if role in ASSISTANT]
    if answers and read_reference(row) is None:
        answer = match_label(answers[-1], card, f"{row.where}, last assistant turn")
        labels.append(("last assistant turn", answer))
    if not labels:
        raise ValueError(f"{row.where}: no assistant turn and no field 'label' that say the class.")
    if len({label for _, label in labels}) > 1:
        said = ", ".join(f"{key} says {card.classes[label]}" for key, label in labels)
        raise ValueError(f"{row.where}: the labels contradict each other: {said}.")
    return path, labels[0][1]


def read_reference(row: TableRow) -> str | None:
    """The rationale in a record whose field `answers` says "rationale", as rbft's export writes."""
    if row.values.get("answers") != RATIONALE:
        return None
    return next((text for role, text in reversed(_turns(row)[0]) if role in ASSISTANT), None)


def write_conversation(
    clip_id: str,
    path: str,
    prompt: str,
    answer: str,
    *,
    turns: Literal["conversations", "messages"],
    split: str,
    label: str | None = None,
) -> dict[str, Any]:
    """One conversation record, such as `read_conversation` reads.

    Args:
        clip_id: The clip's id.
        path: Path of its video.
        prompt: What is asked about it.
        answer: What should be answered.
        turns: `conversations` is the form of LLaVA and Qwen's trainer, `messages` that of
            LLaMA-Factory and ms-swift.
        split: The clip's split.
        label: The clip's class, where the answer is a rationale.

    Raises:
        ValueError: If prompt or answer holds the tag that stands for a video.
    """
    for text in (prompt, answer):
        if VIDEO in text:
            raise ValueError(
                f"Clip {clip_id}: its text {shown(text)} holds {VIDEO}, which stands for a video "
                "in the formats of other trainers. Take it out of the card or the annotations."
            )
    record: dict[str, Any] = {"id": clip_id, "split": split}
    if label is not None:
        record |= {"answers": RATIONALE, "ground_truth": label}
    # LLaVA's readers take the line break away with the tag; the others would keep it as a token.
    pair = (f"{VIDEO}\n{prompt}" if turns == "conversations" else f"{VIDEO}{prompt}", answer)
    if turns == "conversations":
        said = [
            {"from": who, "value": text} for who, text in zip(("human", "gpt"), pair, strict=True)
        ]
        return {**record, "video": path, turns: said}
    said = [
        {"role": who, "content": text}
        for who, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return {**record, turns: said, "videos": [path]}


def _turns(row: TableRow) -> tuple[list[tuple[str, str]], list[Any]]:
    """Role and text of each turn, and the videos that stand in them as parts of their own."""
    key = next((key for key in ("conversations", "messages") if key in row.values), None)
    turns = row.values[key] if key else _queries(row)
    pairs: list[tuple[str, str]] = []
    videos: list[Any] = []
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, dict):
            role = turn.get("from", turn.get("role"))
            text = turn.get("value", turn.get("content"))
            if isinstance(text, list):
                text = _joined(text, videos, row.where)
            if isinstance(role, str) and isinstance(text, str):
                pairs.append((role, text))
    if not isinstance(turns, list) or not turns or len(pairs) < len(turns):
        raise ValueError(
            f"{row.where}: {key or 'query'} is {shown(turns)}; it must be a list of turns, each "
            "with from and value, or role and content, as text or as a list of parts."
        )
    return pairs, videos


def _queries(row: TableRow) -> Any:
    """The turns of ms-swift's `query`, `response` and `history` of such pairs."""
    pairs = row.values.get("history") or []
    if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        raise ValueError(
            f"{row.where}: history is {shown(pairs)}; it must be a list of pairs, each a query and "
            "its response."
        )
    pairs = [*pairs, [row.values["query"], row.values["response"]]]
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _joined(parts: list[Any], videos: list[Any], where: str) -> str:
    """The text of a turn that is a list of parts, with a tag for each video."""
    text = ""
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text += part["text"]
        elif kind in ("video", "video_url"):
            text += VIDEO
            named = part.get(kind)
            named = named.get("url") if isinstance(named, dict) else named
            videos += [] if named is None else [named]
        else:
            raise ValueError(
                f"{where}: a turn has the part {shown(part)}; allowed are parts of the type text, "
                "video and video_url. Frames as pictures are not supported."
            )
    return text


def _video(row: TableRow, in_turns: list[Any]) -> str:
    videos: Any = row.values.get("video", row.values.get("videos")) or in_turns or None
    if isinstance(videos, str):
        videos = [videos]
    if not isinstance(videos, list) or len(videos) != 1 or not isinstance(videos[0], str):
        raise ValueError(
            f"{row.where}: video is {shown(videos)}; a record must name exactly one video file."
        )
    if videos[0].startswith("file://"):
        return unquote(urlsplit(videos[0]).path)
    if videos[0].startswith(("http://", "https://", "data:")):
        raise ValueError(
            f"{row.where}: video is {shown(videos[0])}, no file. Put the videos below data.root "
            "and name the files."
        )
    return videos[0]
