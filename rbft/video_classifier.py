"""A trained model in Python: classifies a video, a list of them, or as many as come."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import UInt8
from numpy import ndarray

from rbft.analysis.multilabel import LABELS
from rbft.annotations.images import images_of_row
from rbft.annotations.video_list import refuse_url
from rbft.build import Experiment, quiet_trainer
from rbft.callbacks.answer_rows import prediction_row
from rbft.clip import Clip
from rbft.collator import Collator
from rbft.data.dataset import ClipDataset
from rbft.data.sampler import SampleSlot
from rbft.data.windows import Windows
from rbft.prediction import set_up
from rbft.runtime.ranges import check_ranges
from rbft.video.listings import known_frames
from rbft.video.packet_index import VideoError
from rbft.video.sampling import Video, decode_video

Source = str | os.PathLike[str]


@dataclass(frozen=True)
class Prediction:
    """What the model says about a video.

    Attributes:
        path: The video.
        label: The class; None where the file cannot be decoded or the answer is no class.
        probabilities: Probability of each class; empty where there are none.
        rationale: The rationale that was asked for; None where none was.
        text: What the model wrote to find the class; empty where it only compared class words.
        likeliest: The likeliest class, where a threshold decides the label; else None.
        expected: The expected value, where the card's classes are levels of a scale; else None.
        error: What is wrong with the file; empty where nothing is.
        start: Seconds from the file's start at which the window begins; None of a whole video.
        end: Seconds at which it ends.
        labels: Where the card lets a video have several classes (its key several): all that the
            model finds in it, which may be none; `label` is None then. None on other cards, and
            where the file cannot be decoded.
    """

    path: Path
    label: str | None
    probabilities: dict[str, float] = field(default_factory=dict)
    rationale: str | None = None
    text: str = ""
    likeliest: str | None = None
    error: str = ""
    start: float | None = None
    end: float | None = None
    labels: tuple[str, ...] | None = None
    expected: float | None = None


@dataclass(frozen=True)
class SeenFrame:
    """A frame as the model is shown it.

    Attributes:
        seconds: When it is shown, from the file's start.
        picture: RGB values.
    """

    seconds: float
    picture: UInt8[ndarray, "height width 3"]


class VideoClassifier:
    """A model with its weights loaded, on one device.

    `rbft.load` makes one of a weights folder.

    Args:
        experiment: The settings.
        weights: See `rbft.inputs.find_weights`.

    Attributes:
        classes: Names of the classes.
        model: Which weights these are, for people.
        device: Where they are.

    Raises:
        ValueError: See `rbft.prediction.set_up`.
    """

    def __init__(self, experiment: Experiment, weights: str) -> None:
        given = experiment.settings.trainer.devices
        one = given if isinstance(given, list) and len(given) == 1 else 1
        alone = {"devices": one, "num_nodes": 1, "strategy": "auto"}
        setup = set_up(experiment, weights, alone)
        self._data, self._threshold = setup.inputs.data, setup.threshold
        asked = experiment.changed(model__stage=setup.stage, model__weights=setup.folder)
        objects = asked.objects()
        trainer = quiet_trainer(objects, **alone)
        self._module, self._precision = objects.model, trainer.precision_plugin
        self._module.load_alone(trainer)
        self.classes, self.model = self._data.card.classes, setup.model
        self.device = trainer.strategy.root_device
        self._collator: Callable[[bool], Collator] = cache(
            lambda rationale: self._module.collators(rationale=rationale)["predict"]
        )

    @overload
    def predict(  # pyright: ignore[reportOverlappingOverload] (a text is a sequence of texts)
        self, videos: Source, *, rationale: bool = ..., batch_size: int | None = ...
    ) -> Prediction: ...
    @overload
    def predict(
        self, videos: Sequence[Source], *, rationale: bool = ..., batch_size: int | None = ...
    ) -> list[Prediction]: ...
    @overload
    def predict(
        self, videos: Iterable[Source], *, rationale: bool = ..., batch_size: int | None = ...
    ) -> Iterator[Prediction]: ...
    def predict(
        self,
        videos: Source | Iterable[Source],
        *,
        rationale: bool = False,
        batch_size: int | None = None,
    ) -> Prediction | list[Prediction] | Iterator[Prediction]:
        """The class of a video, or of several.

        Args:
            videos: A path of a video, a still image or a folder of images (`data.image_fps` then
                says how fast they follow each other), or several. Of a list or another sequence
                comes a list of predictions, of any other iterable an iterator: it takes a batch of
                paths, gives their predictions one by one, in order, and keeps none of them.
            rationale: Also have the model write a rationale of each video.
            batch_size: Videos that the model is shown together; None takes that of the weights'
                note, 1 asks for no path before the one in hand is answered.

        Returns:
            A prediction for each path. Among several, a file that cannot be used has its `error`
            and no label.

        Raises:
            VideoError: If the one file cannot be used; a ValueError.
            ValueError: If the model's scores are not finite.
        """
        size = self._batch_size(batch_size)
        if isinstance(videos, str | os.PathLike):
            (one,) = self._each([_clip(videos)], rationale, 1)
            if one.error:
                raise VideoError(one.error)
            return one
        found = self._each(map(_clip, videos), rationale, size)
        return list(found) if isinstance(videos, Sequence) else found

    def predict_windows(
        self,
        video: Source,
        *,
        every: float | int,
        window: float | int | None = None,
        rationale: bool = False,
        batch_size: int | None = None,
    ) -> Iterator[Prediction]:
        """The class of a window that runs over a video: what happens when in a long recording.

        Args:
            video: A path.
            every: Seconds from the beginning of one window to that of the next.
            window: Seconds that a window lasts; None is as long as `every`. A last one that has
                less than half of it is left out, unless it is the only one.
            rationale: See `predict`.
            batch_size: Windows that the model is shown together, see `predict`.

        Returns:
            An iterator over the windows in their order, each with its `start` and `end`: it decodes
            a batch at a time and keeps none. A window whose frames cannot be decoded has an
            `error`.

        Raises:
            VideoError: If the file cannot be used.
            ValueError: If a number is out of range.
        """
        given = {"every": float(every), "window": float(every if window is None else window)}
        check_ranges("", given)
        size, clip = self._batch_size(batch_size), self._with_images(_clip(video))
        windows = Windows(*given.values()).of(clip, self._data.frames)
        if windows == [clip]:
            self._decode(clip)  # says what is wrong
        return self._each(windows, rationale, size)

    def frames(self, video: Source) -> list[SeenFrame]:
        """The frames of a video that the model is shown, at the size at which it is shown them.

        Args:
            video: A path.

        Raises:
            VideoError: If the file cannot be used.
        """
        clip = self._with_images(_clip(video))
        shown = self._data.reader.decode(clip)
        seconds = known_frames(clip.source).seconds
        return [
            SeenFrame(
                seconds[place] if place < len(seconds) else place / shown.fps,
                frame.permute(1, 2, 0).numpy(),
            )
            for place, frame in zip(shown.indices, shown.frames, strict=True)
        ]

    def _batch_size(self, given: int | None) -> int:
        size = self._data.eval_batch_size if given is None else given
        if size < 1:
            raise ValueError(f"batch_size ({size}) must be 1 or more.")
        return size

    def _each(self, clips: Iterable[Clip], rationale: bool, size: int) -> Iterator[Prediction]:
        waiting = iter(clips)
        with ThreadPoolExecutor(max(1, self._data.num_workers)) as pool:
            while given := list(islice(waiting, size)):
                yield from self._batch(given, rationale, pool)

    def _batch(
        self, clips: list[Clip], rationale: bool, pool: ThreadPoolExecutor
    ) -> list[Prediction]:
        """The predictions of one batch; its videos are decoded side by side."""
        dataset = ClipDataset(clips, self._load, None, side=self._data.frames.side)
        examples = list(pool.map(dataset.__getitem__, map(SampleSlot, range(len(clips)))))
        batch = self._collator(rationale)(examples).to(self.device)
        with torch.inference_mode(), self._precision.predict_step_context():
            outputs = self._module.predict_step(batch)
        levels = self._data.card.levels
        rows = [
            prediction_row(outputs, batch, place, self.classes, self._threshold, levels)
            for place in range(len(clips))
        ]
        return [_prediction(clip, row) for clip, row in zip(clips, rows, strict=True)]

    def _load(self, clip: Clip) -> tuple[Video, str]:
        return self._decode(self._with_images(clip)), ""

    def _with_images(self, clip: Clip) -> Clip:
        """The clip, of a folder its images.

        Raises:
            VideoError: If it is a URL, or a folder of which the images cannot be taken.
        """
        try:
            refuse_url(clip.path)
            fps = self._data.image_fps
            found = clip.images or images_of_row(clip.path.parent, clip.path, None, None, fps)
        except ValueError as error:
            raise VideoError(str(error)) from error
        return replace(clip, images=found)

    def _decode(self, clip: Clip) -> Video:
        if clip.end is None:
            return self._data.reader.decode(clip)
        # Windows are decoded once: kept, they would push other clips out of the cache.
        return decode_video(clip.source, self._data.frames, start=clip.start, end=clip.end)


def _clip(video: Source) -> Clip:
    path = Path(video)
    # As `predict` calls it: self-consistency draws by the name.
    return Clip(str(path), path, None, "predict")


def _prediction(clip: Clip, row: dict[str, Any]) -> Prediction:
    names = ("probabilities", "rationale", "text", "likeliest", "error", "expected")
    found = {name: row[name] for name in names if name in row}
    if row.get(LABELS) is not None:
        found[LABELS] = tuple(row[LABELS])
    return Prediction(clip.path, row.get("label"), **found, start=clip.start, end=clip.end)
