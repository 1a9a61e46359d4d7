"""What annotations say of a clip, before its video is looked up; several rows of one video."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rbft.annotations.tables import check_unique, shown

NAMED = 3  # videos that a message names


@dataclass(frozen=True)
class Entry:
    """One clip as an annotation describes it, before look-up and split.

    Attributes:
        where: Its place, for messages.
        id: Its id; None where its path is all that names it.
        path: Its file below the root; None where its id is all that names it.
        label: Index into the card's classes; None where a clip may have several.
        split: Its split, None where nothing says it.
        start: Seconds from the file's start at which it begins.
        end: Seconds at which it ends.
        text: Its own text, for prompts.
        reference: A human rationale.
        url: Where the file can be had.
        images: The images that are its frames, from the root on; None where its path is a file or a
            folder.
        times: When each image of it is shown, in seconds.
        fps: Images of it per second.
        labels: Indices of all its classes where it may have several, else None.
        votes: Annotators' votes for each class; None where there are none.
    """

    where: str
    id: str | None
    path: str | None
    label: int | None
    split: str | None
    start: float | None = None
    end: float | None = None
    text: str = ""
    reference: str | None = None
    url: str | None = None
    images: tuple[str, ...] | None = None
    times: tuple[float, ...] | None = None
    fps: float | None = None
    labels: tuple[int, ...] | None = None
    votes: tuple[float, ...] | None = None


def segment_id(video: str, entry: Entry) -> str:
    """The id of a segment: the video's, and the seconds (`x_12.5_20`); whole videos keep theirs."""
    if entry.start is None and entry.end is None:
        return video
    return f"{video}_{_seconds(entry.start or 0.0)}_{_seconds(entry.end)}"


def count_votes(
    videos: Sequence[str],
    entries: Sequence[Entry],
    classes: Sequence[str],
    *,
    ties: bool = False,
) -> tuple[list[str], list[Entry], str]:
    """One entry for each video, with the label that most of its rows have, and their votes.

    Text and reference are those of the first row with that label.

    Args:
        videos: Id of the video of each entry.
        entries: The rows, each a vote.
        classes: Names of the labels.
        ties: Whether votes may be tied; the first label of them on the card is taken then.

    Returns:
        Ids of the videos, an entry for each, and what is to be said of the votes.

    Raises:
        ValueError: If votes are tied and may not be, or the rows of a video differ in file, split
            or seconds.
    """
    rows: dict[str, list[Entry]] = {}
    for video, entry in zip(videos, entries, strict=True):
        rows.setdefault(video, []).append(entry)
    made, tied, divided = [], [], 0
    for video, votes in rows.items():
        first = votes[0]
        for vote in votes[1:]:
            for what in ("path", "split", "start", "end"):
                one, other = getattr(first, what), getattr(vote, what)
                if one != other:
                    raise ValueError(
                        f"{vote.where}: {what} of {shown(video)} is {shown(other)}, but "
                        f"{shown(one)} in {first.where}; votes on one video must agree in that."
                    )
        # In the card's order, so that the first of tied labels is the card's.
        labels = sorted(vote.label for vote in votes if vote.label is not None)
        counts = Counter(labels).most_common()
        if len(counts) > 1 and counts[0][1] == counts[1][1]:
            said = ", ".join(f"{count} {classes[label]}" for label, count in counts)
            tied.append(f"{shown(video)}: {said} ({first.where})")
        divided += len(counts) > 1
        chosen = next(vote for vote in votes if vote.label == counts[0][0])
        number = dict(counts)
        every = tuple(float(number.get(label, 0)) for label in range(len(classes)))
        made.append(replace(chosen, where=first.where, id=first.id, votes=every))
    if tied and not ties:
        raise ValueError(
            f"{len(tied)} of {len(rows)} videos have no majority among their votes: "
            f"{'; '.join(tied[:NAMED])}{'; ...' if len(tied) > NAMED else ''}. Decide them in the "
            "table, or take their rows out."
        )
    note = f"{len(entries)} votes on {len(rows)} videos, {divided} of which are not unanimous"
    if tied:
        note += (
            f"; {len(tied)} are tied (first: {tied[0]}), and scored by the first of the tied "
            "classes on the card"
        )
    return list(rows), made, note


def join_labels(ids: Sequence[str], entries: Sequence[Entry]) -> tuple[list[int], list[Entry], str]:
    """One entry for each clip, with the classes of all of its rows.

    Text and reference are those of the first row.

    Args:
        ids: Id of the clip of each entry.
        entries: The rows, each with some of a clip's classes.

    Returns:
        Places of the first row of each clip, an entry for each, and what is to be said of them.

    Raises:
        ValueError: If the rows of a clip differ in file or split.
    """
    rows: dict[str, list[int]] = {}
    for place, clip_id in enumerate(ids):
        rows.setdefault(clip_id, []).append(place)
    made = []
    for clip_id, places in rows.items():
        first, *others = (entries[place] for place in places)
        for other in others:
            if (other.path, other.split) != (first.path, first.split):
                raise ValueError(
                    f"{other.where}: {shown(clip_id)} has another file or split than in "
                    f"{first.where}; rows about one clip must agree in that."
                )
        found = {label for one in (first, *others) for label in one.labels or ()}
        made.append(replace(first, labels=tuple(sorted(found))))
    note = f"{len(entries)} rows with the classes of {len(rows)} clips"
    return [places[0] for places in rows.values()], made, note


def check_once(ids: Sequence[str], videos: Sequence[str], entries: Sequence[Entry]) -> None:
    """Refuses an id that stands twice.

    Raises:
        ValueError: If one does; says how several rows of one video can be meant.
    """
    try:
        check_unique([(name, entry.where) for name, entry in zip(ids, entries, strict=True)], "id")
    except ValueError as error:
        if len(set(videos)) == len(videos):
            raise
        raise ValueError(
            f"{error} Or say what several rows of one video are: data.repeats segments (clips of "
            "their own, by start and end), votes (of several annotators) or labels (of a clip with "
            "several classes)."
        ) from error


def _seconds(value: float | None) -> str:
    return "end" if value is None else f"{value:.10g}"
