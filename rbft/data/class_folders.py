"""A folder per class, with or without folders for the splits above: which level says what."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path

from rbft.annotations.lookup import list_videos
from rbft.data.splits import SPLIT_NAMES

# Folders that are splits; Hugging Face's VideoFolder knows the last two besides ours.
SPLIT_FOLDERS = SPLIT_NAMES | {"eval": "test", "evaluation": "test"}
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
EXPECTED = "root/<class>/x.mp4 or root/train/<class>/x.mp4"


def has_split_folders(tops: Collection[str], classes: Collection[str] = ()) -> bool:
    """Whether the folders right below a root are splits, and those below them the classes.

    Args:
        tops: Their names.
        classes: Names and words of the classes, where they are known.
    """
    return not set(tops) <= set(classes) and all(top.casefold() in SPLIT_FOLDERS for top in tops)


def read_class_folders(root: Path) -> dict[str, Counter[str]]:
    """The classes of a folder of videos, as `VideoFolder` reads it.

    Args:
        root: Holds a folder per class, or a folder per split with a folder per class in it.

    Returns:
        For each class, in order of the names, its videos by split; the split is empty where no
        folder says it.

    Raises:
        ValueError: If it is no folder, holds no video, one outside of a class folder, or metadata
            that says the classes.
    """
    if not root.is_dir():
        raise ValueError(
            f"--videos {root} is no folder. Give the one that holds the class folders."
        )
    content = list_videos(root)
    for file in content.others:
        if file.name in METADATA and len(file.relative_to(root).parts) < 3:
            raise ValueError(
                f"--videos {root}: {file} says which class a video has, not the folders. Name the "
                "classes: --classes pass,fail."
            )
    if not content.videos:
        others = content.unused_videos() or "it is empty"
        raise ValueError(
            f"--videos {root} holds no video ({others}). Expected is a folder per class: "
            f"{EXPECTED}."
        )
    parts = [video.relative_to(root).parts for video in content.videos]
    depth = 1 + has_split_folders({below[0] for below in parts})
    found: dict[str, Counter[str]] = {}
    for video, below in zip(content.videos, parts, strict=True):
        if len(below) <= depth:
            raise ValueError(
                f"--videos {root}: {video} lies in no class folder. Expected is {EXPECTED}. Where "
                "something else says the classes, name them: --classes pass,fail."
            )
        split = SPLIT_FOLDERS[below[0].casefold()] if depth == 2 else ""
        found.setdefault(below[depth - 1], Counter())[split] += 1
    return dict(sorted(found.items()))
