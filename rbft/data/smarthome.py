"""SmartHome-Bench: the paper's "SmartHome-LLM Benchmark", read from its published files."""

import json
from pathlib import Path
from typing import Any, Literal

from rbft.annotations.lookup import VideoLookup, leaves_root
from rbft.annotations.tables import TableRow, read_table, shown
from rbft.clip import Clip
from rbft.data.base import VideoDataModule
from rbft.data.splits import check_known, read_splits, split_by_hash
from rbft.runtime.ranges import check_ranges

TAGS = ("Normal", "Abnormal", "Vague Abnormal")
DESCRIPTION, REASONING = "Video Description", "Reasoning behind Normality/Anomalies"
PRIVATE = "privacy url"
PUBLISHED = 1203  # rows of the annotation file
CATEGORIES = (
    "Security",
    "Wildlife",
    "Pet Monitoring",
    "Kid Monitoring",
    "Baby Monitoring",
    "Senior Care",
    "Other Category",
)


class SmartHome(VideoDataModule):
    """SmartHome-Bench (Zhao et al., 2025): is a clip of a home camera normal or abnormal?

    The paper's numbers are on 778 training and 196 test clips, an id list of its own
    (`split_file`); always answering "abnormal" is right for 65.31 % of those test clips, as its
    figures suggest, and for 62.93 % of those of the split by hash. The published description and
    reasoning of each clip are its human rationale.

    The published files hold no votes: that annotators disagreed about a clip is all they say of it
    ("Vague Abnormal", 91 of 1,203), not how many took it for what. So with `soft_labels: true` each
    such clip has one share of "abnormal", `vague_share`; the others are sure.

    Args:
        annotations: `Video_Annotation.csv` of the benchmark (or `Annotation_vad_1203.csv`, the same
            with another header).
        videos: Folder of the videos, named after the clips (`smartbench_0001.mp4`).
        urls: `Video_url.csv` of the benchmark; it says which clips are private, that is, were never
            released. null takes the file of that name beside `annotations`.
        split_file: Who trains and who tests: a CSV with the columns Title and split (train, val,
            test), or a folder with train.txt and test.txt. Clips that it does not name are
            left out. null splits the public clips 80 to 20 by hash of the id, tag by tag.
        vague: What becomes of clips whose annotators disagreed ("Vague Abnormal"): abnormal
            counts them as such, exclude leaves them out, class makes them a third class.
        vague_share: With `soft_labels: true` and `vague: abnormal`, the share of "abnormal" in the
            soft label of clips whose annotators disagreed; "normal" has the rest. No file says how
            they voted: 0.5 supposes that they were divided evenly.
        trim: `Trim_video_label.csv` of the benchmark, to leave out the seconds of vendors'
            advertisement that it lists at the start or end of some clips. null uses the whole
            clips, as the paper seems to.
        split_seed: Seed of the split by hash.
        card: Card file with classes, class words and prompts. null takes the benchmark's own, which
            for `vague: class` has the third class.
        **kwargs: Settings shared by all benchmarks, see VideoDataModule.
    """

    card_file = Path(__file__).with_name("smarthome.yaml")
    vague_card_file = Path(__file__).with_name("smarthome_vague.yaml")

    def __init__(
        self,
        annotations: Path = Path("data/smarthome/Video_Annotation.csv"),
        videos: Path = Path("data/smarthome/videos"),
        urls: Path | None = None,
        split_file: Path | None = None,
        vague: Literal["abnormal", "exclude", "class"] = "abnormal",
        vague_share: float = 0.5,
        trim: Path | None = None,
        split_seed: int = 0,
        card: Path | None = None,
        **kwargs: Any,
    ) -> None:
        check_ranges("data.", locals())
        own_card = self.vague_card_file if vague == "class" else self.card_file
        super().__init__(card=card or own_card, **kwargs)
        self.annotations, self.videos, self.urls = annotations, videos, urls
        self.split_file, self.split_seed = split_file, split_seed
        self.vague, self.trim, self.vague_share = vague, trim, vague_share
        if self.soft_labels and vague != "abnormal":
            raise ValueError(
                f"data.soft_labels is true and data.vague is {vague}, with which no clip has a "
                'soft label: only "Vague Abnormal" clips that count as abnormal have one. Set '
                "data.vague to abnormal, or leave data.soft_labels out."
            )
        classes = ("normal", "abnormal", "vague")[: 3 if vague == "class" else 2]
        if sorted(self.card.classes) != sorted(classes):
            raise ValueError(
                f"Card '{self.card.name}' has the classes {', '.join(self.card.classes)}; "
                f"SmartHome with data.vague={vague} needs {', '.join(classes)} (words are free)."
            )

    def read(self) -> list[Clip]:
        """All 1,203 clips in the order of the annotation file.

        Raises:
            ValueError: If a file lacks a column, or a row has an unknown tag or category, an
                empty cell or an id that stands twice.
        """
        rows = read_table(
            self.annotations, ["Title", "Category", DESCRIPTION, REASONING], unique="Title"
        )
        ids = [row.text("Title") for row in rows]
        if len(rows) < PUBLISHED:
            self.notes.append(
                f"SmartHome: {self.annotations} has {len(rows)} of the {PUBLISHED:,} published "
                "rows. If that is not on purpose, the file is cut; results on fewer clips are not "
                "comparable."
            )
        tags = [_tag(row) for row in rows]
        urls = self._urls(ids)
        splits = self._splits(ids, tags, urls)
        trims = self._trims(ids)
        lookup = VideoLookup(self.videos)
        clips, repairs = [], 0
        for row, clip_id, tag in zip(rows, ids, tags, strict=True):
            _check_categories(row)
            start, end = trims.get(clip_id, (None, None))
            texts = [row.text(DESCRIPTION), row.text(REASONING)]
            repaired = [_repaired(text) for text in texts]
            repairs += sum(text != old for text, old in zip(repaired, texts, strict=True))
            path = lookup.find(clip_id)
            clips.append(
                Clip(
                    id=clip_id,
                    path=path,
                    label=self._label(tag),
                    split=splits[clip_id],
                    reference=" ".join(repaired),
                    start=start,
                    end=end,
                    url=urls.get(clip_id),
                    refused=leaves_root(self.videos, path),
                    votes=self._votes(tag),
                )
            )
        if repairs:
            self.notes.append(
                f"SmartHome: repaired {repairs} texts that were read as Mac Roman once."
            )
        return clips

    def _label(self, tag: str) -> int | None:
        if tag == "Vague Abnormal":
            if self.vague == "exclude":
                return None
            name = "vague" if self.vague == "class" else "abnormal"
        else:
            name = tag.lower()
        return self.card.classes.index(name)

    def _votes(self, tag: str) -> tuple[float, ...] | None:
        """The soft label of a clip whose annotators disagreed, where it is asked for."""
        if tag != "Vague Abnormal" or not self.soft_labels:
            return None
        shares = {"abnormal": self.vague_share, "normal": 1 - self.vague_share}
        return tuple(shares[name] for name in self.card.classes)

    def _urls(self, ids: list[str]) -> dict[str, str | None]:
        """URL of each clip, None for private ones."""
        path = self.urls or self.annotations.with_name("Video_url.csv")
        if self.urls is None and not path.exists():
            if self.split_file is not None:
                return {}
            raise ValueError(
                f"File {path} does not exist; without it rbft cannot know which clips were never "
                "released. Put the benchmark's Video_url.csv there, set data.urls to it, or set "
                "data.split_file to a list of the clips to use."
            )
        rows = read_table(path, ["Title", "URL"], unique="Title")
        urls = {row.text("Title"): row.text("URL") for row in rows}
        without = [clip_id for clip_id in ids if clip_id not in urls]
        if without:
            raise ValueError(
                f"{path} has no row for {len(without)} of {len(ids)} clips (first: "
                f"{shown(without[0])}). Use the file that belongs to {self.annotations}."
            )
        return {clip_id: None if url == PRIVATE else url for clip_id, url in urls.items()}

    def _splits(
        self, ids: list[str], tags: list[str], urls: dict[str, str | None]
    ) -> dict[str, str]:
        private = {clip_id for clip_id, url in urls.items() if url is None}
        if self.split_file is not None:
            listed = read_splits(self.split_file)
            check_known(listed, ids, self.split_file)
        else:
            public = [
                (clip_id, tag)
                for clip_id, tag in zip(ids, tags, strict=True)
                if clip_id not in private
            ]
            # By the tag, not the class: `vague` never moves a clip from one split to the other.
            listed = split_by_hash(
                [clip_id for clip_id, _ in public],
                [tag for _, tag in public],
                {"train": 0.8, "test": 0.2},
                self.split_seed,
            )
        splits = {}
        for clip_id, tag in zip(ids, tags, strict=True):
            rest = "private" if clip_id in private else "excluded"
            split = listed.get(clip_id, rest)
            vague = tag == "Vague Abnormal" and self.vague == "exclude" and split != "private"
            splits[clip_id] = "excluded" if vague else split
        return splits

    def _trims(self, ids: list[str]) -> dict[str, tuple[float | None, float | None]]:
        """Start and end of the clips in the trim table, see `Clip`."""
        if self.trim is None:
            return {}
        known = set(ids)
        trims = {}
        for row in read_table(self.trim, ["Title", "Time"], unique="Title"):
            clip_id, seconds = row.text("Title"), row.seconds("Time")
            if clip_id not in known:
                raise ValueError(
                    f"{row.where}: Title {shown(clip_id)} is not in {self.annotations}."
                )
            if seconds is None:
                raise ValueError(f"{row.where}: Time is empty; 0 keeps the whole clip.")
            # The table's positive seconds are cut off the end, its negative ones off the start.
            trims[clip_id] = (-seconds if seconds < 0 else None, -seconds if seconds > 0 else None)
        return trims


def _tag(row: TableRow) -> str:
    # The repository holds the same table twice, once with each header.
    column = "Anomaly Tag" if "Anomaly Tag" in row.values else "Label"
    if column not in row.values:
        raise ValueError(
            f"{row.where}: column 'Anomaly Tag' (or 'Label') is missing; the columns there are "
            f"{', '.join(map(shown, row.values))}."
        )
    tag = row.text(column)
    if tag not in TAGS:
        raise ValueError(
            f"{row.where}: {column} {shown(tag)} is unknown; allowed are {', '.join(TAGS)}."
        )
    return tag


def _check_categories(row: TableRow) -> None:
    """Checks the category in both published spellings: `A, B` and `{"choices": ["A", "B"]}`."""
    text = row.text("Category")
    names: Any = [part.strip() for part in text.split(",")]
    if text.startswith("{"):
        try:
            names = json.loads(text)["choices"]
        except (ValueError, KeyError, RecursionError):
            names = None
    if not isinstance(names, list) or not names or any(name not in CATEGORIES for name in names):
        raise ValueError(
            f"{row.where}: Category {shown(text)} is unknown; allowed are one or several of "
            f"{', '.join(CATEGORIES)}, joined by ', '."
        )


def _repaired(text: str) -> str:
    """The text; where UTF-8 was once read as Mac Roman (a dozen rows), with that undone."""
    if "\N{SINGLE LOW-9 QUOTATION MARK}Ä" not in text and "√" not in text:
        return text
    try:
        return text.encode("mac_roman").decode("utf-8")
    except UnicodeError:
        return text  # a genuine root sign or quotation mark
