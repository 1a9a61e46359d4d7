"""Writes clips of the miniature world: real video files and a table of what they show."""

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from rbft.masking.boxes import Box
from rbft.miniature.camera import SIZE, SPREAD, film, placed_sprites
from rbft.miniature.language import generic_label, rationale
from rbft.miniature.scene import DOMAINS, TARGET, Domain, Scene, draw_scene, is_abnormal, pose
from rbft.runtime.progress import track

SECONDS = 6
FPS = 4  # of the file; the model looks at one frame a second
TIMES: list[float] = np.linspace(0, 1, SECONDS * FPS).tolist()  # of each frame of the file
VERSION = 1  # part of the cache folder's name: raise it when clips or annotations change
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Annotation:
    """One line of `annotations.jsonl`.

    Attributes:
        id: Domain, split and number.
        file: Name of the video file in the same folder.
        label: "normal" or "abnormal": by the target domain's rule there, by the general meaning in
            the general domain.
        split: "train", "val" or "test".
        caption: The reference rationale.
        factors: The scene behind the clip.
    """

    id: str
    file: str
    label: str
    split: str
    caption: str
    factors: Scene


def cache_folder() -> Path:
    """Where clips are kept: under $RBFT_CACHE, or ~/.cache/rbft where that is not set."""
    return Path(os.environ.get("RBFT_CACHE") or Path.home() / ".cache" / "rbft") / "miniature"


def make_clips(
    folder: Path | None = None,
    domain: Literal["general", "target"] = "target",
    *,
    sizes: dict[str, int],
    seed: int = 0,
) -> Path:
    """Writes clips and their `annotations.jsonl`, unless the folder is there already.

    The folder appears atomically, also with several callers at once. The same arguments
    give the same clips; a longer split begins with the clips of a shorter one.

    Args:
        folder: Where to. None is a folder of `cache_folder`, named by all that decides the clips.
        domain: The base model's own world, or the one to adapt to.
        sizes: Number of clips of each split: "train", "val" and "test"; a missing one has none.
        seed: Of the scenes.

    Returns:
        The folder.

    Raises:
        ValueError: If the folder holds anything but these clips.
    """
    if folder is None:
        counts = "-".join(str(sizes.get(split, 0)) for split in SPLITS)
        folder = cache_folder() / f"{domain}-seed{seed}-{counts}-v{VERSION}"
    annotations = draw_annotations(DOMAINS[domain], sizes, seed)
    table = "".join(json.dumps(asdict(row)) + "\n" for row in annotations)
    if folder.exists() and any(folder.iterdir()):
        _check(folder, table)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as unfinished:
        whole = Path(unfinished, "clips")
        whole.mkdir()
        # Shown only where it takes longer than a glance.
        for row in track(annotations, "Drawing the miniature's clips", len(annotations), "clip"):
            write_video(whole / row.file, film(row.factors, DOMAINS[domain], TIMES))
        (whole / "annotations.jsonl").write_text(table, encoding="utf-8")
        try:
            whole.rename(folder)
        except OSError:
            # Somebody else was faster; if not with the same clips, it is an error after all.
            _check(folder, table)
    return folder


def _check(folder: Path, table: str) -> None:
    path = folder / "annotations.jsonl"
    if not path.exists() or path.read_text(encoding="utf-8") != table:
        raise ValueError(
            f"Folder {folder} holds something else than the clips that were asked for (other "
            "sizes, another seed or domain, or no clips). Name an empty or a new folder in "
            "data.clips_folder, or delete this one."
        )


def draw_annotations(domain: Domain, sizes: dict[str, int], seed: int) -> list[Annotation]:
    """The rows of `annotations.jsonl`, without filming anything."""
    rows = []
    for split in SPLITS:
        rng = np.random.default_rng([seed, list(DOMAINS).index(domain.name), SPLITS.index(split)])
        for number in range(sizes.get(split, 0)):
            scene = draw_scene(rng, domain)
            name = f"{domain.name}-{split}-{number:04d}"
            label = generic_label(scene)
            if domain is TARGET:
                label = "abnormal" if is_abnormal(scene) else "normal"
            rows.append(Annotation(name, f"{name}.mp4", label, split, rationale(scene), scene))
    return rows


def read_annotations(folder: Path) -> list[Annotation]:
    """The rows that `make_clips` wrote."""
    lines = (folder / "annotations.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    rows = [json.loads(line) for line in lines]
    return [Annotation(**{**row, "factors": Scene(**row["factors"])}) for row in rows]


def true_boxes(scene: Scene) -> dict[int, list[Box]]:
    """Where subject and object, and what takes their colour, are in each frame of a clip's file.

    Args:
        scene: The scene behind the clip.
    """
    found: dict[int, list[Box]] = {}
    for frame, time in enumerate(TIMES):
        placed = [(one.name, one.box(SPREAD)) for one in placed_sprites(scene, pose(scene, time))]
        found[frame] = [
            Box(box[0] / SIZE, box[1] / SIZE, box[2] / SIZE, box[3] / SIZE, name)
            for name, box in placed
            if box is not None
        ]
    return found


def write_video(path: Path, frames: UInt8[ndarray, "frames height width 3"]) -> None:
    """Writes frames as an H.264 file."""
    import av

    with av.open(path, "w", format="mp4") as container:
        stream = container.add_stream("libx264", FPS, {"crf": "18", "preset": "ultrafast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
