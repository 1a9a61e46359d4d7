"""The miniature world as a benchmark."""

from functools import cached_property
from pathlib import Path
from typing import Any

from rbft.clip import Clip
from rbft.data.base import VideoDataModule
from rbft.masking.boxes import Box
from rbft.miniature.world import make_clips, read_annotations, true_boxes
from rbft.runtime.ranges import check_ranges


class Miniature(VideoDataModule):
    """The miniature world's target domain: is what a subject does there normal or abnormal?

    The clips are made on first use, in seconds, and kept in a cache folder ($RBFT_CACHE, or
    ~/.cache/rbft).

    Args:
        train_size: Training clips.
        val_size: Validation clips.
        test_size: Test clips.
        clip_seed: Seed of the clips; another seed is another draw of all three splits.
        clips_folder: Where the clips are kept. null is a folder of the cache.
        **kwargs: Settings shared by all benchmarks, see VideoDataModule.
    """

    card_file = Path(__file__).with_name("miniature.yaml")

    def __init__(
        self,
        train_size: int = 120,
        val_size: int = 0,
        test_size: int = 300,
        clip_seed: int = 0,
        clips_folder: Path | None = None,
        **kwargs: Any,
    ) -> None:
        check_ranges("data.", locals())
        super().__init__(**kwargs)
        if sorted(self.card.classes) != ["abnormal", "normal"]:
            raise ValueError(
                f"Card '{self.card.name}' has the classes {', '.join(self.card.classes)}; the "
                "clips of Miniature are normal or abnormal. Give data.card these two classes."
            )
        self.sizes = {"train": train_size, "val": val_size, "test": test_size}
        self.clip_seed, self.clips_folder = clip_seed, clips_folder

    @property
    def benchmark(self) -> str:
        """Another seed draws other clips, which need rationales of their own."""
        return f"{self.card.name}{self.clip_seed}"

    def read(self) -> list[Clip]:
        """All clips; makes them first where they are missing."""
        folder = make_clips(self.clips_folder, sizes=self.sizes, seed=self.clip_seed)
        return [
            Clip(
                id=row.id,
                path=folder / row.file,
                label=self.card.classes.index(row.label),
                split=row.split,
                reference=row.caption,
            )
            for row in read_annotations(folder)
        ]

    def true_boxes(self, clip: Clip) -> dict[int, list[Box]]:
        """Boxes of subject and object in each frame of a clip's file, see `true_boxes`."""
        return self._boxes[clip.id]

    @cached_property
    def _boxes(self) -> dict[str, dict[int, list[Box]]]:
        folder = make_clips(self.clips_folder, sizes=self.sizes, seed=self.clip_seed)
        return {row.id: true_boxes(row.factors) for row in read_annotations(folder)}
