"""MultiHateClip, read from its published files."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from rbft.annotations.lookup import VideoLookup, leaves_root
from rbft.annotations.tables import TableRow, check_unique, parse_json, read_table, read_text, shown
from rbft.clip import Clip
from rbft.data.base import VideoDataModule

# Rows of the published files, by the form of their ids.
PUBLISHED = {
    "English": {"train": 701, "val": 100, "test": 200},
    "Chinese": {"train": 699, "val": 101, "test": 200},
}
BILIBILI = re.compile(r"BV\w{10}")
FILES = {"train": "train.tsv", "val": "valid.tsv", "test": "test.tsv"}
VOTES = ("Normal", "Offensive", "Hateful")
COUNTER = "Counter Narrative"  # speech against hate; the published majority counts it as normal
EXAMPLES = {
    "Label": "['Normal', 'Offensive', 'Offensive']",
    "Target_Victim": "['Woman'] or []",
    "Component": "['Transcript', 'Metadata', 'Audio', 'Vision component'] or []",
    "Duration": "[(0, 46)] or []",
}
COMPONENTS = ("Transcript", "Metadata", "Audio", "Vision component")


class MultiHateClip(VideoDataModule):
    """MultiHateClip (Wang et al., 2024): is a short video hateful, offensive or normal?

    Official splits of 700, 100 and 200 videos; a good part of them can no longer be downloaded.
    Always answering "normal" is right for 66.5 % of the test clips. There are no human rationales.

    The column `Label` has the votes of the two to four annotators of each video, which
    `soft_labels: true` learns by their shares; "Counter Narrative" counts as normal, as in the
    published majority, and a vote that is none of the four is left out. In English, 177 of the
    1,000 videos are divided. The label that clips are scored by is `Majority_Voting` in any case.

    Args:
        annotations: Folder of one language, as published: `English_data` (the paper's) or
            `Chinese_data`, with `annotation/train.tsv`, `valid.tsv` and `test.tsv` in it.
        videos: Folder of the videos: `<id>.mp4`, `<id>/video.mp4`, or one video in `<id>/`.
        labels: ternary keeps normal, offensive and hateful apart; binary joins the last two to
            "harmful".
        text: What of `text.json` stands in the prompts besides the video: none as in the paper,
            title, transcript or both.
        drop_duplicates: One English video stands in train and in test. train drops it from
            train; error stops instead.
        card: Card file with classes, class words and prompts. null takes the benchmark's own for
            `labels`.
        **kwargs: Settings shared by all benchmarks, see VideoDataModule.
    """

    card_file = Path(__file__).with_name("multihateclip.yaml")
    binary_card_file = Path(__file__).with_name("multihateclip_binary.yaml")

    def __init__(
        self,
        annotations: Path = Path("data/multihateclip/English_data"),
        videos: Path = Path("data/multihateclip/videos"),
        labels: Literal["ternary", "binary"] = "ternary",
        text: Literal["none", "title", "transcript", "both"] = "none",
        drop_duplicates: Literal["train", "error"] = "train",
        card: Path | None = None,
        **kwargs: Any,
    ) -> None:
        own_card = self.binary_card_file if labels == "binary" else self.card_file
        super().__init__(card=card or own_card, **kwargs)
        self.annotations, self.videos = annotations, videos
        self.text, self.drop_duplicates = text, drop_duplicates
        self.class_of = (
            {"Normal": "normal", "Offensive": "offensive", "Hateful": "hateful"}
            if labels == "ternary"
            else {"Normal": "normal", "Offensive": "harmful", "Hateful": "harmful"}
        )
        classes = list(dict.fromkeys(self.class_of.values()))
        if sorted(self.card.classes) != sorted(classes):
            raise ValueError(
                f"Card '{self.card.name}' has the classes {', '.join(self.card.classes)}; "
                f"MultiHateClip with data.labels={labels} needs {', '.join(classes)} (the words "
                "are free)."
            )
        for prompt in ("label", "rationale"):
            if text != "none" and "{text}" not in self.card.prompts[prompt]:
                raise ValueError(
                    f"data.text is {text}, but prompts.{prompt} of card '{self.card.name}' does "
                    "not say where it goes. Put {text} there, or set data.text to none."
                )

    def read(self) -> list[Clip]:
        """All clips: train, val and test, each in the order of its file.

        Raises:
            ValueError: If a file lacks a column, or a row has an unknown label, a cell of the
                wrong type or an id that stands twice.
        """
        columns = ["Video_ID", "Majority_Voting", *EXAMPLES]
        tables = {
            split: read_table(self.annotations / "annotation" / name, columns, unique="Video_ID")
            for split, name in FILES.items()
        }
        self._note_short(tables)
        held_out = [row for split in ("val", "test") for row in tables[split]]
        check_unique([(row.text("Video_ID"), row.where) for row in held_out], "Video_ID")
        tables["train"] = self._without_leaks(tables["train"], held_out)
        texts = self._texts([row for rows in tables.values() for row in rows])
        lookup = VideoLookup(self.videos)
        clips, strange = [], []
        for split, rows in tables.items():
            for row in rows:
                clip_id = row.text("Video_ID")
                path = lookup.find(clip_id)
                clips.append(
                    Clip(
                        id=clip_id,
                        path=path,
                        label=self._label(row),
                        split=split,
                        text=texts.get(clip_id, ""),
                        url=_url(clip_id),
                        refused=leaves_root(self.videos, path),
                        votes=self._votes(row, strange),
                    )
                )
        if strange and self.soft_labels:
            self.notes.append(
                f"MultiHateClip: left out {len(strange)} votes that are none of "
                f"{', '.join(VOTES)} and {COUNTER} (first: {strange[0]})."
            )
        return clips

    def _votes(self, row: TableRow, strange: list[str]) -> tuple[float, ...] | None:
        """Annotators' votes for each class; adds votes that are for none to `strange`."""
        counts = dict.fromkeys(self.card.classes, 0.0)
        for vote in ast.literal_eval(row.text("Label")):
            name = self.class_of.get("Normal" if vote == COUNTER else vote)
            if name is None:
                strange.append(f"{shown(vote)}, {row.where}")
            else:
                counts[name] += 1
        return tuple(counts.values()) if any(counts.values()) else None

    def _note_short(self, tables: dict[str, list[TableRow]]) -> None:
        """Says which files have fewer rows than were published."""
        first = tables["train"][0].text("Video_ID")
        language = "Chinese" if BILIBILI.fullmatch(first) else "English"
        short = [
            f"{FILES[split]} has {len(rows)} of {PUBLISHED[language][split]}"
            for split, rows in tables.items()
            if len(rows) < PUBLISHED[language][split]
        ]
        if short:
            self.notes.append(
                f"MultiHateClip: fewer rows than published ({language}) in "
                f"{self.annotations / 'annotation'}: {', '.join(short)}. If that is not on "
                "purpose, files are cut; results on fewer clips are not comparable."
            )

    def _label(self, row: TableRow) -> int:
        vote = row.text("Majority_Voting")
        if vote not in VOTES:
            raise ValueError(
                f"{row.where}: Majority_Voting {shown(vote)} is unknown; allowed are "
                f"{', '.join(VOTES)}."
            )
        _check_literals(row)
        return self.card.classes.index(self.class_of[vote])

    def _without_leaks(self, train: list[TableRow], held_out: list[TableRow]) -> list[TableRow]:
        places = {row.text("Video_ID"): row.where for row in held_out}
        leaks = [row for row in train if row.text("Video_ID") in places]
        for row in leaks:
            clip_id = row.text("Video_ID")
            if self.drop_duplicates == "error":
                raise ValueError(
                    f"{row.where}: Video_ID {shown(clip_id)} stands in {places[clip_id]} too. Set "
                    "data.drop_duplicates to train to drop it from train."
                )
            self.notes.append(
                f"MultiHateClip: dropped {clip_id} from train ({row.where}); it stands in "
                f"{places[clip_id]} too."
            )
        return [row for row in train if row not in leaks]

    def _texts(self, rows: list[TableRow]) -> dict[str, str]:
        """The lines for `{text}`. The file's own `label` is a machine's guess: never read."""
        if self.text == "none":
            return {}
        path = self.annotations / "text.json"
        entries = parse_json(read_text(path), str(path))
        if not isinstance(entries, dict):
            raise ValueError(f"{path} must be a JSON object of video ids; got {shown(entries)}.")
        texts = {}
        for row in rows:
            clip_id = row.text("Video_ID")
            entry = entries.get(clip_id)
            if not isinstance(entry, dict):
                raise ValueError(
                    f"{path} has no entry for {shown(clip_id)} ({row.where}). Use the text.json of "
                    "the same language, or set data.text to none."
                )
            fields = ("title", "transcript") if self.text == "both" else (self.text,)
            lines = []
            for field in fields:
                value = TableRow(f"{path}, {shown(clip_id)}", entry).text(field, default="")
                # Chinese titles keep the search page's mark-up around the search word.
                value = re.sub(r"</?em[^>]*>", "", value)
                if value:
                    lines.append(f"{field.capitalize()} of the video: {value}")
            texts[clip_id] = "\n".join(lines)
        return texts


def _check_literals(row: TableRow) -> None:
    """Checks the four columns of Python literals: a torn row shows here, not as a wrong label."""
    _literals(row, "Label", lambda item: isinstance(item, str))
    _literals(row, "Target_Victim", lambda item: item is None or isinstance(item, str))
    _literals(row, "Component", lambda item: item in COMPONENTS)
    _literals(row, "Duration", _is_segment)


def _is_segment(item: Any) -> bool:
    return (
        isinstance(item, tuple)
        and [type(second) for second in item] == [int, int]
        and 0 <= item[0] <= item[1]
    )


def _literals(row: TableRow, column: str, is_valid: Callable[[Any], bool]) -> None:
    text = row.text(column)
    try:
        items = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        items = None
    if not isinstance(items, list) or not all(map(is_valid, items)):
        raise ValueError(
            f"{row.where}: {column} is {shown(text)}; it must be a Python list as published, such "
            f"as {EXAMPLES[column]}."
        )


def _url(clip_id: str) -> str:
    if BILIBILI.fullmatch(clip_id):
        return f"https://www.bilibili.com/video/{clip_id}"
    return f"https://www.youtube.com/watch?v={clip_id}"
