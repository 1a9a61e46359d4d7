"""Your own clips: folders, tables and conversation files as other tools write them."""

import glob
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from rbft.annotations.columns import LABEL, TABLE, VOTES, Columns, fill
from rbft.annotations.conversations import is_conversation, read_conversation, read_reference
from rbft.annotations.entries import Entry, check_once, count_votes, join_labels, segment_id
from rbft.annotations.images import (
    frames_per_second,
    images_of_row,
    listed_images,
    listed_times,
    with_images,
)
from rbft.annotations.labels import match_label, match_labels, name_class, read_class_list
from rbft.annotations.lookup import (
    FolderContent,
    VideoLookup,
    count_endings,
    inside,
    leaves_root,
    list_videos,
    without_suffix,
)
from rbft.annotations.tables import TableRow, check_unique, read_table, shown
from rbft.annotations.votes import VoteColumns, leading
from rbft.clip import Clip, Images
from rbft.data.base import VideoDataModule
from rbft.data.class_folders import METADATA, SPLIT_FOLDERS, has_split_folders
from rbft.data.splits import (
    check_classes,
    check_known,
    read_splits,
    split_by_hash,
    split_name,
    strata,
)
from rbft.runtime.ranges import check_ranges

FILE_NAME = "file_name"  # Hugging Face's column, or the end of its name
WILDCARDS = "*?["
TABLE_INSTEAD = "Name the classes of each clip in a table (data.table)."


class VideoFolder(VideoDataModule):
    r"""Your own clips, without a line of Python: a folder, a table or a conversation file.

    What is there is found out in this order, and said on the screen:
    a `table` or `tables`; file names, with `label_regex`; Hugging Face VideoFolder metadata
    (`metadata.csv`, `.jsonl` or `.parquet` with a column `file_name` or `*_file_name`, in the root
    or in root/train, root/test); a folder per class, with or without a level of train, val and test
    folders above it. Labels are the names of the card's classes or, failing that, their words.
    Where no column says the split, folders on the way to a file that are called train, val or test
    do. docs/annotations.md shows the settings for the forms in which data sets are published.

    Args:
        root: Folder of the videos; paths in annotations count from here. Folders in it may be
            links, also to other places.
        table: CSV, TSV, JSON Lines, JSON or parquet table with one clip a row, ActivityNet's JSON,
            or conversations as LLaVA, Qwen's trainer, LLaMA-Factory (sharegpt), ms-swift and OpenAI
            keep them, whose label is the last assistant turn. `lists/*.txt` means all such files.
        tables: Tables of a split each instead: `{train: train.csv, validation: val.csv}`.
        columns: The table's names for id, path, label, split, start, end (seconds), text (for
            {text} of the prompts), reference (a human rationale) and url, as far as
            they are other than these: `{id: youtube_id, label: category}`. A number is the place
            of a column in a table without header: `{path: 1, label: 2}`. Braces make a text of
            several: `{path: "{youtube_id}_{time_start:06d}_{time_end:06d}.mp4"}`, with `{label}`
            for the label and `{table}` for the table's file name. A path may be a folder of images
            or a list of them; times (the second of each) or fps (images per second) then say when
            they are shown. A clip needs a path, or an
            id under which its video is found (`<id>.mp4`, `<id>/video.mp4`, one video in `<id>/`).
            `votes` names annotators' votes: a column of counts for each class,
            `{votes: {calm: n_calm, alarm: n_alarm}}` or `{votes: "n_{label}"}` for short; a list of
            the annotators' columns; or one column whose cells hold counts or labels as JSON. Where
            there is no label, most votes make it.
        class_list: Which class a label means that is a number: lines such as `1 Archery`, a name
            a line (counted from 0), or JSON.
        split_names: What the annotations call the splits: `{0: excluded, 1: train, 2: test}`. Known
            without it are train, training, val, valid, validation, validate, dev, test, testing.
        repeats: What several rows of one video are: error refuses them; segments makes each a clip
            of its own, by start and end; votes takes the label that most of them have, and a tie is
            an error unless soft_labels is true; labels gives each clip the classes of all its rows,
            where the card lets it have several.
        label_regex: Regular expression that finds the label, as the group `label`, in the file
            name: `_label_(?P<label>[A-Z]\d?)`. With a table: in the column `columns.label`
            or, without that, in the path.
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
        tables: dict[str, Path] | None = None,
        columns: dict[str, int | str | list[int | str] | dict[str, int | str]] | None = None,
        class_list: Path | None = None,
        split_names: dict[int | str, str] | None = None,
        repeats: Literal["error", "segments", "votes", "labels"] = "error",
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
        if table is not None and tables is not None:
            raise ValueError("data.table and data.tables both name tables; set one.")
        single = {name: value for name, value in (columns or {}).items() if name != VOTES}
        self.root, self.columns = root, Columns(_single_columns(single))
        votes = (columns or {}).get(VOTES)
        self.votes = None if votes is None else VoteColumns(votes, self.card)
        if self.votes is not None:
            self.card.refuse_several("data.columns.votes")
        if self.votes is not None and repeats == "votes":
            raise ValueError(
                "data.columns.votes names votes that are counted, and data.repeats is votes, which "
                "counts rows. Leave one of the two out."
            )
        self.tables: list[tuple[Path, str | None]] = [] if table is None else [(table, None)]
        for name, file in (tables or {}).items():
            self.tables.append((file, split_name(str(name), "data.tables")))
        self.class_list, self.repeats = class_list, repeats
        self.split_names = {
            str(given): split_name(split, f"data.split_names.{given}")
            for given, split in (split_names or {}).items()
        }
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
        lookup = VideoLookup(self.root, self.images)
        paths: list[Path] = []
        images: list[Images | None] = []
        for entry in entries:
            try:
                path = self._path(entry, lookup)
                fps = self.image_fps if entry.fps is None else entry.fps
                images.append(images_of_row(self.root, path, entry.images, entry.times, fps))
                paths.append(path)
            except ValueError as error:
                raise ValueError(f"{entry.where}: {error}") from error
        self._check_root(entries, paths)
        videos = self._video_ids(entries, paths)
        if self.repeats == "votes":
            self.card.refuse_several("data.repeats votes")
            path_of = dict(zip(videos, zip(paths, images, strict=True), strict=True))
            rows = [replace(e, path=str(p)) for e, p in zip(entries, paths, strict=True)]
            classes = self.card.classes
            videos, entries, said = count_votes(videos, rows, classes, ties=self.soft_labels)
            paths, images = (list(one) for one in zip(*map(path_of.get, videos), strict=True))
            self.notes.append(f"VideoFolder: {said}.")
        ids = videos
        if self.repeats in ("segments", "labels"):
            ids = [segment_id(video, e) for video, e in zip(videos, entries, strict=True)]
        if self.repeats == "labels":
            if self.card.several is None:
                raise ValueError(
                    "data.repeats labels gives a clip the classes of all its rows, but with card "
                    f"'{self.card.name}' a clip has one. Add the key several to the card "
                    "(docs/own_clips.md), or set data.repeats to segments or votes."
                )
            firsts, entries, said = join_labels(ids, entries)
            ids, videos = [ids[n] for n in firsts], [videos[n] for n in firsts]
            paths, images = [paths[n] for n in firsts], [images[n] for n in firsts]
            self.notes.append(f"VideoFolder: {said}.")
        elif self.repeats == "segments":
            self.notes.append(f"VideoFolder: {len(ids)} segments of {len(set(videos))} videos.")
        check_once(ids, videos, entries)
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
                refused=self._refused(path, own),
                images=own,
                labels=entry.labels,
                votes=entry.votes,
            )
            for clip_id, path, own, entry, split in zip(
                ids, paths, images, entries, self._splits(ids, videos, paths, entries), strict=True
            )
        ]
        check_classes(clips, self.card.classes, found)
        counts = Counter(clip.split for clip in clips)
        split = ", ".join(f"{count} {name}" for name, count in counts.items())
        none = sum(clip.labels == () for clip in clips)
        without = f", {none} with none of the classes" if none else ""
        self.notes.append(f"VideoFolder: {found}: {len(clips)} clips ({split}){without}.")
        return clips

    @cached_property
    def _content(self) -> FolderContent:
        """The files below the root, listed once."""
        return with_images(list_videos(self.root), self.images)

    def _refused(self, path: Path, images: Images | None) -> str:
        """Why one of a clip's files must not be opened; empty where they may."""
        files = (path,) if images is None else images.files
        found = ((file, leaves_root(self.root, file)) for file in files)
        why = next(((file, reason) for file, reason in found if reason), None)
        if why is None:
            return ""
        return why[1] if why[0] == path else f"{why[0]} {why[1]}"

    def note_unused_files(self, paths: Iterable[Path]) -> None:
        """Notes which videos below the root the annotation passes over."""
        if not self.root.is_dir():
            return  # every clip is missing then, which the scan says
        try:
            unnamed = sorted({*self._content.videos} - {*paths})
        except ValueError as error:  # a folder that nobody asked for may be closed to us
            self.notes.append(f"VideoFolder: videos without annotation are not counted: {error}")
            return
        if unnamed:
            self.notes.append(
                f"VideoFolder: {self.root}: left alone {len(unnamed)} videos that no labelled row "
                f"names: {count_endings(unnamed)} (first: {unnamed[0]})."
            )

    def _path(self, entry: Entry, lookup: VideoLookup) -> Path:
        if entry.path is None:
            return lookup.find(entry.id or "")
        return inside(self.root, entry.path)

    def _check_root(self, entries: list[Entry], paths: list[Path]) -> None:
        """Refuses a root that the paths of the annotation hold already.

        Raises:
            ValueError: If none of them is there, but the first is from where others count.
        """
        named = [(e, p) for e, p in zip(entries, paths, strict=True) if e.path is not None]
        if not named or any(path.exists() for _, path in named):
            return
        entry, path = named[0]
        for base in (Path(), self.root.parent):
            if (found := base / str(entry.path)).is_file():
                raise ValueError(
                    f"{entry.where}: path {shown(str(entry.path))} counts from data.root "
                    f"({self.root}), and there is no {path}; but there is {found}. Set data.root "
                    f"to {base}, or leave the folder out of the paths."
                )

    def _video_ids(self, entries: list[Entry], paths: list[Path]) -> list[str]:
        """Id of each entry's video: its own, or its path, without ending where that is unique."""
        below = [path.relative_to(self.root).as_posix() for path in paths]
        files = {name for entry, name in zip(entries, below, strict=True) if entry.id is None}
        stems = Counter(without_suffix(name) for name in files)
        return [
            entry.id or (without_suffix(name) if stems[without_suffix(name)] == 1 else name)
            for entry, name in zip(entries, below, strict=True)
        ]

    def _splits(
        self, ids: list[str], videos: list[str], paths: list[Path], entries: list[Entry]
    ) -> list[str]:
        if self.split_file is not None:
            # Lists of other projects name files; ours name ids, which have no suffix.
            known = {*ids, *videos}
            lines = [
                (clip_id if clip_id in known else without_suffix(clip_id), split)
                for clip_id, split in read_splits(self.split_file).items()
            ]
            check_unique([(clip_id, str(self.split_file)) for clip_id, _ in lines], "id")
            listed = dict(lines)
            check_known(listed, [*ids, *videos], self.split_file)
            return [
                listed.get(clip_id, listed.get(video, "excluded"))
                for clip_id, video in zip(ids, videos, strict=True)
            ]
        given = [entry.split for entry in entries]
        why = "split is empty"
        if not any(given):
            given = [self._folder_split(path) for path in paths]
            why = "none of its folders is called like a split"
        if any(given):
            counts = Counter(given)
            for entry, split in zip(entries, given, strict=True):
                if split is None:
                    raise ValueError(
                        f"{entry.where}: {why}; {len(given) - counts[None]} other clips have one. "
                        "Say the split of every clip, or all of them in data.split_file."
                    )
            return [split for split in given if split is not None]
        # By the video, so that no two of its segments are in two splits.
        labelled: dict[str, Entry] = {}
        for video, entry in zip(videos, entries, strict=True):
            labelled.setdefault(video, entry)
        order, firsts = list(labelled), labelled.values()
        splits = split_by_hash(
            order,
            strata([entry.label for entry in firsts], [entry.labels for entry in firsts]),
            {"train": 1 - self.test_fraction, "test": self.test_fraction},
            self.split_seed,
        )
        if self.test_fraction and "test" not in splits.values():
            raise ValueError(
                f"data.test_fraction ({self.test_fraction}) of {len(order)} clips is no whole clip "
                "of any class. Raise it, add clips, or say who tests in data.split_file."
            )
        return [splits[video] for video in videos]

    def _folder_split(self, path: Path) -> str | None:
        """The split that a folder on the way to a file is called after, the first that is one."""
        classes = {*self.card.classes, *self.card.words.values()}
        for name in path.relative_to(self.root).parts[:-1]:
            if name not in classes and name.casefold() in SPLIT_FOLDERS:
                return SPLIT_FOLDERS[name.casefold()]
        return None

    def _split_named(self, value: str, where: str) -> str:
        return self.split_names.get(value) or split_name(value, where)

    def _entries(self) -> tuple[str, list[Entry]]:
        """What was found, in words, and its clips."""
        if self.tables:
            return self._all_tables()
        if self.label_pattern is None:
            metadata = self._metadata()
            if metadata:
                entries: list[Entry] = []
                for file, split in metadata.items():
                    rows = read_table(file, self.columns.needed)
                    entries += self._table(rows, file, split, metadata=True)
                return f"metadata {', '.join(map(str, metadata))}", entries
        content = self._content
        others = content.unused_videos()
        if not content.videos:
            raise ValueError(
                f"{self.root} holds no video ({others or 'it is empty'}). Expected are a folder "
                "per class (root/<class>/x.mp4, root/train/<class>/x.mp4), metadata.csv with a "
                "column file_name, or data.table."
            )
        if others:
            self.notes.append(f"VideoFolder: {self.root}: left alone {others}.")
        videos = content.videos
        if self.label_pattern is not None:
            return f"labels in file names of {self.root}", list(self._named(videos))
        return self._folders(videos)

    def _all_tables(self) -> tuple[str, list[Entry]]:
        """Clips of `table` or `tables`, or the conversations in them."""
        entries: list[Entry] = []
        kinds = []
        header = not self.columns.has_places and not (self.votes and self.votes.has_places)
        for given, split in self.tables:
            for file in _files(given):
                rows = read_table(file, self.columns.needed, header=header)
                talks = is_conversation(rows[0])
                kinds.append(f"{'conversations' if talks else 'table'} {file}")
                if talks:
                    entries += [self._conversation(row, split) for row in rows]
                else:
                    entries += self._table(rows, file, split)
        found = kinds[0] if len(kinds) == 1 else f"{kinds[0]} and {len(kinds) - 1} others"
        if not entries:
            raise ValueError(f"{found}: no row has a label.")
        return found, entries

    def _metadata(self) -> dict[Path, str | None]:
        """Metadata file to split: one in the root, or one in each split's folder."""
        folders: list[tuple[Path, str | None]] = [(self.root, None)]
        if self.root.is_dir():
            folders += [
                (folder, SPLIT_FOLDERS[folder.name.casefold()])
                for folder in sorted(self.root.iterdir())
                if folder.name.casefold() in SPLIT_FOLDERS and folder.is_dir()
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

    def _table(
        self, rows: list[TableRow], file: Path, split: str | None, metadata: bool = False
    ) -> Iterator[Entry]:
        """Clips of a table; paths in metadata count from its folder."""
        present = dict.fromkeys(name for row in rows for name in row.values)
        names = self.columns.of(present)
        if metadata and "path" not in self.columns.given:
            names["path"] = _file_name_column(rows[0])
        for role, missing in (
            ("label", not (names["label"] or self.label_pattern or self.votes)),
            ("path", not names["path"] and not names["id"]),
        ):
            if missing:
                raise ValueError(
                    f"{rows[0].where}: no column is known as the {role}; the columns there are "
                    f"{', '.join(map(shown, present))}. Name it: data.columns.{role}."
                )
        unlabelled, tied, outvoted = 0, [], []
        classes = read_class_list(self.class_list) if self.class_list is not None else {}
        for row in rows:
            if not row.labelled:
                unlabelled += 1
                continue
            extra = {TABLE: file.stem}
            votes = None if self.votes is None else self.votes.read(row)
            value = self._label_of(row, names, extra)
            if self.votes is not None and (value is None or not str(value).strip()):
                first, *others = self._most_votes(votes, row.where)
                tied += [row.where] * bool(others)
                found: dict[str, Any] = {"label": first}
                value = self.card.classes[first]
            else:
                named = None
                if self.class_list is not None:
                    named = partial(
                        name_class, names=classes, path=self.class_list, where=row.where
                    )
                    if self.card.several is None:
                        value, named = named(value), None
                found = self._match(value, row.where, named)
            outvoted += [row.where] * (votes is not None and found["label"] not in leading(votes))
            extra[LABEL] = str(value).strip()
            listed = listed_images(row, names["path"])
            path = fill(row, names["path"], extra) if names["path"] and listed is None else None
            if listed is not None:
                if metadata:
                    folder = file.parent.relative_to(self.root)
                    listed = [str(folder / name) for name in listed]
                path = listed[0]
            elif path is not None and metadata and not Path(path).is_absolute():
                path = str(file.parent.relative_to(self.root) / path)
            start, end = row.seconds(names["start"]), row.seconds(names["end"])
            if (start or 0) < 0 or (end is not None and end <= (start or 0)):
                raise ValueError(
                    f"{row.where}: start {start} and end {end} must be seconds with "
                    "0 <= start < end."
                )
            own = {
                role: fill(row, names[role] or "", extra, default="")
                for role in ("split", "text", "reference", "url")
            }
            yield Entry(
                where=row.where,
                id=fill(row, names["id"], extra) if names["id"] else None,
                path=path,
                **found,
                split=self._split_named(own["split"], row.where) if own["split"] else split,
                start=start,
                end=end,
                text=own["text"],
                reference=own["reference"] or None,
                url=own["url"] or None,
                images=None if listed is None else tuple(listed),
                **self._when(row, names, path, listed),
                votes=votes,
            )
        for places, what in (
            (tied, "tied votes; they are scored by the first of the tied classes on the card"),
            (outvoted, "a label that is not what most of their votes say; they are scored by it"),
        ):
            if places:
                self.notes.append(
                    f"VideoFolder: {len(places)} clips have {what} (first: {places[0]})."
                )
        if unlabelled:
            self.notes.append(
                f"VideoFolder: {file}: left out {unlabelled} videos without annotation."
            )

    def _when(
        self,
        row: TableRow,
        names: Mapping[str, str | None],
        path: str | None,
        listed: list[str] | None,
    ) -> dict[str, Any]:
        """Times and images per second of a clip that is images; other clips have none."""
        if listed is None:
            # Tables of videos may say something else in columns of these names.
            if path is None and self.images != "frames":
                return {}
            with suppress(ValueError):  # no path: `inside` says so
                if path is not None and not (self.root / path).is_dir():
                    return {}
        times = listed_times(row, names["times"])
        return {
            "times": None if times is None else tuple(times),
            "fps": frames_per_second(row, names["fps"]),
        }

    def _most_votes(self, votes: tuple[float, ...] | None, where: str) -> list[int]:
        """The classes that have the most votes; several where these are tied."""
        if votes is None:
            raise ValueError(f"{where}: no votes and no label; every row needs one of the two.")
        first = leading(votes)
        if len(first) > 1 and not self.soft_labels:
            names = " and ".join(self.card.classes[label] for label in first)
            raise ValueError(
                f"{where}: the votes are tied between {names}, so the clip has no label. Decide "
                "in a column of labels (data.columns.label), or set data.soft_labels to true, "
                "which learns all of them by their share."
            )
        return first

    def _match(
        self, value: object, where: str, named: Callable[[object], object] | None = None
    ) -> dict[str, Any]:
        """The fields of an entry that say its class, or its classes."""
        if self.card.several is not None:
            return {"label": None, "labels": match_labels(value, self.card, where, named)}
        return {"label": match_label(value, self.card, where)}

    def _label_of(
        self, row: TableRow, names: Mapping[str, str | None], extra: Mapping[str, str]
    ) -> object:
        """The label as the annotation has it."""
        column = names["label"]
        if self.label_pattern is None:
            if column is not None and "{" in column:
                return fill(row, column, extra)
            return row.values.get(column or "")
        given = "label" if "label" in self.columns.given else "path" if names["path"] else "id"
        text = fill(row, names[given] or "", extra)
        match = self.label_pattern.search(text)
        if match is None:
            raise ValueError(
                f"{row.where}: data.label_regex ({self.label_pattern.pattern}) finds nothing in "
                f"{shown(text)}."
            )
        return match["label"]

    def _conversation(self, row: TableRow, table_split: str | None) -> Entry:
        if not is_conversation(row):
            raise ValueError(
                f"{row.where}: no key 'conversations', 'messages' or 'query', which the first "
                "record has."
            )
        self.card.refuse_several(f"{row.where}: a conversation", TABLE_INSTEAD)
        path, label = read_conversation(row, self.card)
        split = row.text("split", default="")
        return Entry(
            where=row.where,
            id=row.text("id", default="") or None,
            path=path,
            label=label,
            split=self._split_named(split, row.where) if split else table_split,
            reference=read_reference(row),
            votes=None if self.votes is None else self.votes.read(row),
        )

    def _named(self, videos: list[Path]) -> Iterator[Entry]:
        """Clips whose label stands in the file name, with or without folders for the splits."""
        assert self.label_pattern is not None
        parts = [path.relative_to(self.root).parts for path in videos]
        has_splits = all(len(p) > 1 and p[0].casefold() in SPLIT_FOLDERS for p in parts)
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
                **self._match(match["label"], str(path)),
                split=SPLIT_FOLDERS[below[0].casefold()] if has_splits else None,
            )

    def _folders(self, videos: list[Path]) -> tuple[str, list[Entry]]:
        """Clips in a folder per class, with or without folders for the splits above."""
        self.card.refuse_several(f"A folder for each class ({self.root})", TABLE_INSTEAD)
        parts = [path.relative_to(self.root).parts for path in videos]
        named = {*self.card.classes, *self.card.words.values()}
        has_splits = has_split_folders({below[0] for below in parts}, named)
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
                    split=SPLIT_FOLDERS[below[0].casefold()] if has_splits else None,
                )
            )
        levels = "a folder per split and class" if has_splits else "a folder per class"
        return f"{levels} in {self.root}", entries


def _single_columns(given: Mapping[str, Any]) -> dict[str, int | str]:
    """The columns of all roles but the votes: one each."""
    for role, value in given.items():
        if not isinstance(value, int | str):
            raise ValueError(
                f"data.columns.{role} is {shown(value)}; it must be one column. Only votes may "
                "have several."
            )
    return dict(given)


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


def _files(given: Path) -> list[Path]:
    """The files that a table's setting means: one, or all that match its wildcards."""
    if given.exists() or not any(sign in str(given) for sign in WILDCARDS):
        return [given]
    found = sorted(map(Path, glob.glob(str(given))))  # noqa: PTH207, absolute or not
    if not found:
        raise ValueError(f"data.table {given}: no file matches.")
    return found


def _file_name_column(row: TableRow) -> str:
    """Hugging Face's column of file names: `file_name`, or the only one that ends so."""
    if FILE_NAME in row.values:
        return FILE_NAME
    names = [name for name in row.values if name.endswith(f"_{FILE_NAME}")]
    if len(names) > 1:
        names = [name for name in names if name.startswith("video")] or names
    if len(names) != 1:
        several = f"{', '.join(names)} could all be" if names else "missing is"
        raise ValueError(
            f"{row.where}: {several} the column 'file_name' (or one that ends in _file_name); the "
            f"columns there are {', '.join(map(shown, row.values)) or 'none'}. Name it: "
            "data.columns.path."
        )
    return names[0]
