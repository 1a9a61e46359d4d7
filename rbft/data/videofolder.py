"""Your own clips: folders, tables and conversation files as other tools write them."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbft.data.base import Clip, VideoDataModule
from rbft.data.conversations import is_conversation, read_conversation, read_reference
from rbft.data.labels import match_label
from rbft.data.lookup import VideoLookup, check_inside, inside, list_videos, without_suffix
from rbft.data.splits import (
    SPLIT_NAMES,
    check_classes,
    check_known,
    read_splits,
    split_by_hash,
    split_name,
)
from rbft.data.tables import Row, check_unique, read_table, shown
from rbft.ranges import check_ranges

# Role of a column to the names that are understood without `columns`.
COLUMN_NAMES = {
    "id": ("id", "video_id", "Title"),
    "path": ("path", "file_name", "video", "video_path"),
    "label": ("label", "class", "ground_truth"),
    "split": ("split",),
    "start": ("start",),
    "end": ("end",),
    "text": ("text",),
    "reference": ("reference",),
    "url": ("url",),
}
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass(frozen=True)
class Entry:
    """One clip as an annotation describes it, before look-up and split."""

    where: str
    id: str | None
    path: str | None  # below the root
    label: int
    split: str | None
    start: float | None = None
    end: float | None = None
    text: str = ""
    reference: str | None = None
    url: str | None = None


class VideoFolder(VideoDataModule):
    r"""Your own clips, without a line of Python: a folder, a table or a conversation file.

    What is there is found out in this order, and said on the screen:
    a `table`; file names, with `label_regex`; Hugging Face VideoFolder metadata (`metadata.csv`,
    `.jsonl` or `.parquet` with a column `file_name`, in the root or in root/train, root/test); a
    folder per class, with or without a level of train, val and test folders above it. Labels
    are the names of the card's classes or, failing that, their words.

    Args:
        root: Folder of the videos; paths in annotations count from here.
        table: CSV, TSV, JSON Lines, JSON or parquet table with one clip a row, or conversations as
            LLaVA, Qwen's trainer, LLaMA-Factory (sharegpt) and ms-swift keep them, whose label is
            the last assistant turn.
        columns: The table's names for id, path, label, split, start, end (seconds), text (for
            {text} of the prompts), reference (a human rationale) and url, as far as
            they are other than these: `{id: youtube_id, label: category}`. A clip needs a path,
            or an id under which its video is found (`<id>.mp4`, `<id>/video.mp4`, one video in
            `<id>/`).
        label_regex: Regular expression that finds the label in the file name, as the group
            `label`: `_label_(?P<label>[A-Z]\d?)`.
        split_file: Who trains and who tests: a table with the columns id and split, or a folder
            with train.txt, test.txt and, if you like, val.txt, one id a line. Clips that it does
            not name are left out. It overrides any other split.
        test_fraction: Share of the clips to test on where nothing says who tests; chosen by hash
            of the id, class by class.
        split_seed: Seed of the split by hash.
        card: Your card file with classes, class words and prompts (required;
            `python -m rbft init` writes one to start from).
        **kwargs: Settings shared by all benchmarks, see VideoDataModule.
    """

    def __init__(
        self,
        root: Path,
        table: Path | None = None,
        columns: dict[str, str] | None = None,
        label_regex: str | None = None,
        split_file: Path | None = None,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        card: Path | None = None,
        **kwargs: Any,
    ) -> None:
        if card is None:
            raise ValueError(
                "VideoFolder needs data.card, a card file with your classes and prompts. "
                "Run: python -m rbft init"
            )
        check_ranges("data.", locals())
        super().__init__(card=card, **kwargs)
        unknown = sorted(set(columns or {}) - set(COLUMN_NAMES))
        if unknown:
            raise ValueError(
                f"data.columns has the key '{unknown[0]}'; allowed are {', '.join(COLUMN_NAMES)}."
            )
        if table is not None and label_regex is not None:
            raise ValueError("data.table and data.label_regex both say where labels are; set one.")
        self.root, self.table, self.columns = root, table, columns or {}
        self.label_pattern = None if label_regex is None else _compiled(label_regex)
        self.split_file, self.test_fraction = split_file, test_fraction
        self.split_seed = split_seed

    def read(self) -> list[Clip]:
        """All clips, in the order of the annotation or of the sorted paths.

        Raises:
            ValueError: If nothing is found, a label is no class, an id stands twice, a path leads
                out of the root, or a class has no training clip.
        """
        found, entries = self._entries()
        lookup = VideoLookup(self.root)
        ids, paths = [], []
        for entry in entries:
            try:
                path = self._path(entry, lookup)
            except ValueError as error:
                raise ValueError(f"{entry.where}: {error}") from error
            paths.append(path)
            ids.append(entry.id or without_suffix(path.relative_to(self.root).as_posix()))
        places = [(clip_id, entry.where) for clip_id, entry in zip(ids, entries, strict=True)]
        check_unique(places, "id")
        clips = [
            Clip(
                id=clip_id,
                path=path,
                label=entry.label,
                split=split,
                reference=entry.reference,
                text=entry.text,
                start=entry.start,
                end=entry.end,
                url=entry.url,
            )
            for clip_id, path, entry, split in zip(
                ids, paths, entries, self._splits(ids, entries), strict=True
            )
        ]
        check_classes(clips, self.card.classes, found)
        counts = Counter(clip.split for clip in clips)
        split = ", ".join(f"{count} {name}" for name, count in counts.items())
        self.notes.append(f"VideoFolder: {found}: {len(clips)} clips ({split}).")
        return clips

    def _path(self, entry: Entry, lookup: VideoLookup) -> Path:
        if entry.path is None:
            return lookup.find(entry.id or "")
        path = inside(self.root, entry.path)
        check_inside(self.root, path)
        return path

    def _splits(self, ids: list[str], entries: list[Entry]) -> list[str]:
        if self.split_file is not None:
            # Lists of other projects name files; ours name ids, which have no suffix.
            known = set(ids)
            lines = [
                (clip_id if clip_id in known else without_suffix(clip_id), split)
                for clip_id, split in read_splits(self.split_file).items()
            ]
            check_unique([(clip_id, str(self.split_file)) for clip_id, _ in lines], "id")
            listed = dict(lines)
            check_known(listed, ids, self.split_file)
            return [listed.get(clip_id, "excluded") for clip_id in ids]
        given = [entry.split for entry in entries if entry.split is not None]
        if given:
            for entry in entries:
                if entry.split is None:
                    raise ValueError(
                        f"{entry.where}: split is empty; {len(given)} other clips have one."
                    )
            return given
        splits = split_by_hash(
            ids,
            [entry.label for entry in entries],
            {"train": 1 - self.test_fraction, "test": self.test_fraction},
            self.split_seed,
        )
        if self.test_fraction and "test" not in splits.values():
            raise ValueError(
                f"data.test_fraction ({self.test_fraction}) of {len(ids)} clips is no whole clip "
                "of any class. Raise it, add clips, or say who tests in data.split_file."
            )
        return [splits[clip_id] for clip_id in ids]

    def _entries(self) -> tuple[str, list[Entry]]:
        """What was found, in words, and its clips."""
        if self.table is not None:
            rows = read_table(self.table, list(self.columns.values()))
            if is_conversation(rows[0]):
                return f"conversations {self.table}", [self._conversation(row) for row in rows]
            return f"table {self.table}", list(self._table(rows, self.root, None))
        if self.label_pattern is None:
            metadata = self._metadata()
            if metadata:
                entries: list[Entry] = []
                for file, split in metadata.items():
                    rows = read_table(file, ["file_name", *self.columns.values()])
                    entries += self._table(rows, file.parent, split)
                return f"metadata {', '.join(map(str, metadata))}", entries
        videos, others = list_videos(self.root)
        if not videos:
            raise ValueError(
                f"{self.root} holds no video ({len(others)} other files). Expected are a folder "
                "per class (root/<class>/x.mp4, root/train/<class>/x.mp4), metadata.csv with a "
                "column file_name, or data.table."
            )
        if others:
            self.notes.append(
                f"VideoFolder: {self.root}: left {len(others)} files alone that are no videos "
                f"(first: {others[0]})."
            )
        if self.label_pattern is not None:
            return f"labels in file names of {self.root}", list(self._named(videos))
        return self._folders(videos)

    def _metadata(self) -> dict[Path, str | None]:
        """Metadata file to split: one in the root, or one in each split's folder."""
        folders: list[tuple[Path, str | None]] = [(self.root, None)]
        if self.root.is_dir():
            folders += [
                (folder, SPLIT_NAMES[folder.name.casefold()])
                for folder in sorted(self.root.iterdir())
                if folder.name.casefold() in SPLIT_NAMES and folder.is_dir()
            ]
        found: dict[Path, str | None] = {}
        for folder, split in folders:
            files = [folder / name for name in METADATA if (folder / name).exists()]
            if len(files) > 1 or (files and None in found.values()):
                both = [*found, *files][:2]
                raise ValueError(
                    f"{both[0]} and {both[1]} could both be the metadata of {self.root}. Keep "
                    "one, or set data.table."
                )
            found.update(dict.fromkeys(files, split))
        return found

    def _table(self, rows: list[Row], folder: Path, split: str | None) -> Iterator[Entry]:
        """Clips of a table whose paths count from `folder`."""
        names = {
            role: self.columns.get(role) or next((n for n in known if n in rows[0].values), None)
            for role, known in COLUMN_NAMES.items()
        }
        for role, missing in (
            ("label", not names["label"]),
            ("path", not names["path"] and not names["id"]),
        ):
            if missing:
                raise ValueError(
                    f"{rows[0].where}: no column is known as the {role}; the columns there are "
                    f"{', '.join(map(shown, rows[0].values))}. Name it: data.columns.{role}."
                )
        for row in rows:
            path = row.text(names["path"]) if names["path"] else None
            if path is not None and folder != self.root and not Path(path).is_absolute():
                path = str(folder.relative_to(self.root) / path)
            start, end = row.seconds(names["start"]), row.seconds(names["end"])
            if (start or 0) < 0 or (end is not None and end <= (start or 0)):
                raise ValueError(
                    f"{row.where}: start {start} and end {end} must be seconds with "
                    "0 <= start < end."
                )
            own_split = row.text(names["split"], default="")
            yield Entry(
                where=row.where,
                id=row.text(names["id"]) if names["id"] else None,
                path=path,
                label=match_label(row.values.get(names["label"] or ""), self.card, row.where),
                split=split_name(own_split, row.where) if own_split else split,
                start=start,
                end=end,
                text=row.text(names["text"], default=""),
                reference=row.text(names["reference"], default="") or None,
                url=row.text(names["url"], default="") or None,
            )

    def _conversation(self, row: Row) -> Entry:
        if not is_conversation(row):
            raise ValueError(
                f"{row.where}: no key 'conversations' or 'messages', which the first record has."
            )
        path, label = read_conversation(row, self.card)
        split = row.text("split", default="")
        return Entry(
            where=row.where,
            id=row.text("id", default="") or None,
            path=path,
            label=label,
            split=split_name(split, row.where) if split else None,
            reference=read_reference(row),
        )

    def _named(self, videos: list[Path]) -> Iterator[Entry]:
        """Clips whose label stands in the file name, with or without folders for the splits."""
        assert self.label_pattern is not None
        parts = [path.relative_to(self.root).parts for path in videos]
        has_splits = all(len(p) > 1 and p[0].casefold() in SPLIT_NAMES for p in parts)
        for path, below in zip(videos, parts, strict=True):
            match = self.label_pattern.search(path.name)
            if match is None:
                raise ValueError(
                    f"{path}: data.label_regex ({self.label_pattern.pattern}) finds nothing in the "
                    "file name."
                )
            yield Entry(
                where=str(path),
                id=None,
                path=str(Path(*below)),
                label=match_label(match["label"], self.card, str(path)),
                split=SPLIT_NAMES[below[0].casefold()] if has_splits else None,
            )

    def _folders(self, videos: list[Path]) -> tuple[str, list[Entry]]:
        """Clips in a folder per class, with or without folders for the splits above."""
        parts = [path.relative_to(self.root).parts for path in videos]
        tops = {below[0] for below in parts}
        named_as_class = tops <= {*self.card.classes, *self.card.words.values()}
        has_splits = not named_as_class and all(top.casefold() in SPLIT_NAMES for top in tops)
        depth = 2 if has_splits else 1
        entries = []
        for path, below in zip(videos, parts, strict=True):
            if len(below) <= depth:
                raise ValueError(
                    f"{path} lies in no class folder; expected is "
                    f"{self.root}/{'<split>/' if has_splits else ''}<class>/{path.name}. Or say "
                    "where labels are: data.table or data.label_regex."
                )
            entries.append(
                Entry(
                    where=str(path),
                    id=None,
                    path=str(Path(*below)),
                    label=match_label(below[depth - 1], self.card, str(path)),
                    split=SPLIT_NAMES[below[0].casefold()] if has_splits else None,
                )
            )
        levels = "a folder per split and class" if has_splits else "a folder per class"
        return f"{levels} in {self.root}", entries


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"data.label_regex {shown(pattern)} cannot be parsed: {error}.") from error
    if "label" not in compiled.groupindex:
        raise ValueError(
            f"data.label_regex {shown(pattern)} has no group 'label'; write (?P<label>...) around "
            "what is the label."
        )
    return compiled
