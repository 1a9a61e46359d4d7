"""Looking for objects in the frames of a split, whoever names and finds them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from rbft.analysis.scored import some
from rbft.backbone.loading import fingerprint, load_config
from rbft.build import Experiment
from rbft.clip import Clip
from rbft.data.base import VideoDataModule
from rbft.inputs import check_inputs
from rbft.masking.asked import ServerAsker
from rbft.masking.box_file import BoxFile
from rbft.masking.boxes import Box
from rbft.masking.detector import Detector
from rbft.masking.formats import FORMAT_NAMES, FORMATS, FormatName
from rbft.masking.plain_file import PlainBoxes, boxes_in, read_plain_file
from rbft.masking.questions import Questions, parse_names
from rbft.object_pass import Size, ask_backbone, single_frame
from rbft.runs.folder import versions
from rbft.runtime.console import print_rank_zero
from rbft.runtime.digests import hash_file
from rbft.runtime.progress import track
from rbft.video.frame_settings import determining
from rbft.video.sampling import Video, VideoError

Localiser = Literal["detector", "backbone", "endpoint", "file", "truth"]
Namer = Literal["list", "backbone", "endpoint"]
# Boxes in frames of these numbers of a clip, looking for these names.
Find = Callable[[Clip, Video, Sequence[int], Sequence[str]], list[list[Box]]]
NAMED = 3  # clips and frames that a message names
# How the backbones write boxes, by their model type.
OWN_FORMS: dict[str, FormatName] = {
    "qwen2_vl": "qwen2",
    "qwen2_5_vl": "qwen2.5",
    "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3",
    "qwen3_5": "qwen3",
}
Item = TypeVar("Item")


@runtime_checkable
class KnowsBoxes(Protocol):
    """A benchmark that knows where its objects are."""

    def true_boxes(self, clip: Clip) -> Mapping[int, Sequence[Box]]:
        """Boxes in each frame of a clip's file."""
        ...


@dataclass
class BoxSearch:
    """A search for objects, as `rbft.commands.mask.mask` was asked for it.

    Attributes:
        experiment: The settings, without masks.
        localiser: Who finds boxes.
        namer: Who names objects.
        names: Given names.
        objects: Most boxes and names.
        detector: The detector's folder or hub id.
        threshold: Its least score.
        text_threshold: Its least score of words.
        form: How boxes are written.
        file: File of boxes.
        rejected: Boxes that were found and are none.
        unread: Frames, and clips whose objects were to be named, about which an answer holds no
            list.
    """

    experiment: Experiment
    localiser: Localiser
    namer: Namer
    names: list[str] | dict[str, list[str]] | None
    objects: int
    detector: str
    threshold: float
    text_threshold: float
    form: FormatName | None
    file: Path | None
    rejected: int = 0
    unread: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Refuses what does not go together, before anything is read.

        Raises:
            ValueError: Naming the option and what to do.
        """
        endpoint = self.experiment.endpoint
        for name, who in (("localiser", self.localiser), ("namer", self.namer)):
            if who == "endpoint" and endpoint is None:
                raise ValueError(
                    f"--{name} is endpoint, and there is none. Name its model with "
                    "--endpoint.model."
                )
        known = self.localiser in ("file", "truth")
        if known and (self.names is not None or self.namer != "list"):
            raise ValueError(
                f"--localiser {self.localiser} has boxes of its own and needs no names. Leave out "
                "--names and --namer."
            )
        if self.namer != "list" and self.names is not None:
            raise ValueError(
                f"--names and --namer {self.namer} both say what to look for. Leave out one."
            )
        if self.localiser == "detector" and self.namer == "list" and not self.names:
            raise ValueError(
                'A detector looks for objects by name. Give some: --names "[person, package]", or '
                "have them named: --namer backbone, --namer endpoint."
            )
        if (self.file is None) == (self.localiser == "file"):
            raise ValueError(
                f"--localiser {self.localiser} {'needs a' if self.file is None else 'reads no'} "
                f"--file{'' if self.file is None else f' ({self.file})'}. Give both, or neither."
            )
        if self.localiser == "endpoint" and self.form is None:
            raise ValueError(
                "How endpoint.model "
                f"{'' if endpoint is None else endpoint.model} writes boxes is not known. Set "
                f"--form to one of {', '.join(FORMAT_NAMES)}."
            )
        if isinstance(self.names, dict):
            self._check_classes(self.names)

    def write(self, output: Path, split: str) -> None:
        """Looks at all frames of a split that nobody has looked at, and writes the file.

        Args:
            output: The box file.
            split: The split.

        Raises:
            ValueError: If the split is empty, or something cannot be read.
        """
        data = self._data()
        clips = data.clips(split)
        if not clips:
            raise ValueError(f"{type(data).__name__} has no {split} split.")
        order = [clip.id for clip in data.all_clips]
        boxes = BoxFile(output, self.made_from(data))
        find = self._finder(data, clips)
        boxes.recover(order)
        todo = [clip for clip in clips if self._lacking(clip, data, boxes)]
        if len(todo) < len(clips):
            print_rank_zero(f"{len(clips) - len(todo)} of {len(clips)} clips stand in {output}.")
        try:
            names = self._named(todo, data, output, order)
            if find is None:
                self._ask_about_frames(todo, data, boxes, names)
            else:
                for clip in self._bar(todo, f"Finding objects ({self.localiser})"):
                    self._look(clip, data, boxes, names.get(clip.id, []), find)
        finally:
            boxes.recover(order)
        self._say(boxes, clips, data)

    def made_from(self, data: VideoDataModule, *, names_alone: bool = False) -> dict[str, Any]:
        """What determines the boxes.

        Args:
            data: The benchmark.
            names_alone: What determines the names that somebody gives the objects.
        """
        facts: dict[str, Any] = {"namer": self.namer, "objects": self.objects}
        if self.namer == "endpoint" or (self.localiser == "endpoint" and not names_alone):
            facts["endpoint"] = self._server.settings.facts(self._server.sampling)
        if self.namer == "backbone" or (self.localiser == "backbone" and not names_alone):
            facts["backbone"] = fingerprint(self.experiment.settings.model.backbone)
            facts["max_new_tokens"] = self.experiment.settings.model.max_new_tokens
        if self.namer != "list":
            facts["question"] = self._questions.names
        facts["frames"] = determining(asdict(data.frames))
        facts["versions"] = versions()
        if names_alone:
            return facts
        facts |= {"localiser": self.localiser, "names": self.names}
        if self.localiser == "detector":
            facts["detector"] = fingerprint(self.detector)
            facts["threshold"] = self.threshold
            facts["text_threshold"] = self.text_threshold
        elif self.localiser in ("backbone", "endpoint"):
            questions = self._questions
            facts |= {"form": questions.form, "box_question": questions.boxes(["{objects}"])}
        elif self.file is not None:
            facts["file"] = hash_file(self.file)
        return facts

    def _data(self) -> VideoDataModule:
        """The benchmark; the backbone's settings are looked at too where it is asked."""
        if "backbone" in (self.localiser, self.namer):
            return check_inputs(self.experiment.changed(stages=[])).data
        data = self.experiment.data()
        data.check([])
        for note in data.notes:
            print_rank_zero(note)
        return data

    def _check_classes(self, names: Mapping[str, Sequence[str]]) -> None:
        classes = self.experiment.data().card.classes
        if set(names) != set(classes):
            raise ValueError(
                f"--names names objects of the classes {', '.join(names)}; the card's are "
                f"{', '.join(classes)}. Give those of each, or one list for all."
            )

    def _finder(self, data: VideoDataModule, clips: Sequence[Clip]) -> Find | None:
        """What finds boxes in the frames of a clip; None for the backbone, asked about all at once.

        Raises:
            ValueError: If what it needs is not there.
        """
        if self.localiser == "truth":
            if not isinstance(data, KnowsBoxes):
                raise ValueError(
                    f"{type(data).__name__} does not know where its objects are; only the "
                    "miniature does. Take another --localiser."
                )
            return partial(_true_boxes, data)
        if self.localiser == "file":
            assert self.file is not None
            plain = read_plain_file(self.file)
            if lacking := [clip.id for clip in clips if clip.id not in plain]:
                raise ValueError(
                    f"--file {self.file} has no line about {len(lacking)} of {len(clips)} clips "
                    f"(first: {', '.join(lacking[:NAMED])}). A clip without objects has a line "
                    "with its id alone."
                )
            return partial(_from_file, plain)
        if self.localiser == "detector":
            return partial(_detected, Detector(self.detector, self.threshold, self.text_threshold))
        return self._ask_server if self.localiser == "endpoint" else None

    def _lacking(self, clip: Clip, data: VideoDataModule, boxes: BoxFile) -> list[int]:
        """Frames of a clip that nobody has looked at; an error is noted and leaves none."""
        video = data.files.digest(clip)
        if "error" in boxes.whole(video):
            return []
        try:
            indices = data.reader.decode(clip).indices
        except VideoError as error:
            line = {"id": clip.id, "video": video, "frame": None, "boxes": [], "error": str(error)}
            boxes.append([line])
            return []
        return [frame for frame in sorted(set(indices)) if not boxes.knows(video, frame)]

    def _look(
        self,
        clip: Clip,
        data: VideoDataModule,
        boxes: BoxFile,
        names: Sequence[str],
        find: Find,
    ) -> None:
        """Finds the objects in a clip's frames; they are on disk when this returns."""
        frames = self._lacking(clip, data, boxes)  # clips may show the same video
        if not frames:
            return
        found = find(clip, data.reader.decode(clip), frames, names)
        video = data.files.digest(clip)
        boxes.append(
            self._line(clip.id, video, frame, own) for frame, own in zip(frames, found, strict=True)
        )

    def _line(self, clip: str, video: str, frame: int, found: Sequence[Box]) -> dict[str, Any]:
        """A line of the box file: the surest boxes, those without a score in their order."""
        ranked = sorted(found, key=lambda box: -(box.score or 0.0))[: self.objects]
        own = [box.as_list() for box in ranked]
        return {"id": clip, "video": video, "frame": frame, "boxes": own}

    def _named(
        self, clips: Sequence[Clip], data: VideoDataModule, output: Path, order: Sequence[str]
    ) -> dict[str, list[str]]:
        """What to look for in each clip, by its id; asked for once and kept beside the boxes."""
        if self.namer == "list":
            given = self.names
            if isinstance(given, dict):
                classes = data.card.classes
                unlabelled = [clip.id for clip in clips if clip.label is None]
                if unlabelled:
                    raise ValueError(
                        f"--names gives objects by class, and {len(unlabelled)} clips have none "
                        f"(first: {unlabelled[0]}). Give one list for all."
                    )
                return {clip.id: given[classes[clip.label or 0]] for clip in clips}
            return {clip.id: given or [] for clip in clips}
        path = output.with_name(f"{output.stem}-names.jsonl")
        file = BoxFile(path, self.made_from(data, names_alone=True))
        file.recover(order)
        videos = {clip.id: data.files.digest(clip) for clip in clips}
        todo = {videos[clip.id]: clip for clip in reversed(clips)}  # each video once
        todo = {video: clip for video, clip in todo.items() if not file.knows(video, None)}
        question = self._questions.names

        def take(name: str, text: str, size: Size = (0, 0), error: str = "") -> None:
            names = parse_names(text, self.objects)
            line = {"id": name, "video": videos[name], "frame": None, "boxes": [], "names": names}
            file.append([line | ({"error": error} if error else {})])

        try:
            wanted = [clip for clip in clips if clip in todo.values()]
            if self.namer == "backbone" and wanted:
                asked = {clip.id: question for clip in wanted}
                ask_backbone(self.experiment, asked, wanted, "Naming objects", take)
            elif self.namer == "endpoint":
                for clip in self._bar(wanted, "Naming objects (endpoint)"):
                    prompts = {clip.id: (question, partial(data.reader.decode, clip))}
                    take(clip.id, self._server.ask(prompts)[clip.id])
        finally:
            file.recover(order)
        named = {name: file.whole(video).get("names", []) for name, video in videos.items()}
        self.unread += [name for name, found in named.items() if not found]
        return named

    def _ask_server(
        self, clip: Clip, video: Video, frames: Sequence[int], names: Sequence[str]
    ) -> list[list[Box]]:
        """Boxes in the frames of a clip, by the endpoint."""
        question = self._questions.boxes(names)
        prompts = {
            f"{clip.id} frame {frame}": (question, partial(_still, video, frame))
            for frame in frames
        }
        size = (int(video.frames.shape[2]), int(video.frames.shape[3]))
        found = self._server.ask(prompts)
        return [self._parsed(name, found[name], size) for name in prompts]

    def _ask_about_frames(
        self,
        clips: Sequence[Clip],
        data: VideoDataModule,
        boxes: BoxFile,
        names: Mapping[str, Sequence[str]],
    ) -> None:
        """Has the backbone find the objects of all frames that nobody has looked at."""
        asked: dict[str, tuple[Clip, str, int]] = {}
        singles, questions, seen = {}, {}, set[tuple[str, int]]()
        for clip in clips:
            video = data.files.digest(clip)
            for frame in self._lacking(clip, data, boxes):
                if (video, frame) in seen:  # of another clip of the same file
                    continue
                seen.add((video, frame))
                single = single_frame(clip, frame, data.reader.decode(clip).fps)
                asked[single.id] = clip, video, frame
                singles[single.id] = single
                questions[single.id] = self._questions.boxes(names.get(clip.id, []))

        def take(name: str, text: str, size: Size, error: str) -> None:
            clip, video, frame = asked[name]
            found = self._parsed(name, text, size)
            line = self._line(clip.id, video, frame, found)
            boxes.append([line | ({"problem": error} if error else {})])

        if singles:
            own = [*singles.values()]
            ask_backbone(self.experiment, questions, own, "Finding objects (backbone)", take)

    def _parsed(self, name: str, text: str, size: Size) -> list[Box]:
        """The boxes in an answer; what is wrong with it is counted."""
        parsed = FORMATS[self._form].parse(text, size)
        self.rejected += parsed.rejected
        if not parsed.answered:
            self.unread.append(name)
        return list(parsed.boxes)

    @property
    def _questions(self) -> Questions:
        """What is asked; how boxes are written matters only where boxes are asked for."""
        finds = self.localiser in ("backbone", "endpoint")
        return Questions(self.objects, self._form if finds else None)

    @cached_property
    def _form(self) -> FormatName:
        """How boxes are written."""
        if self.form is not None:
            return self.form
        model = self.experiment.settings.model
        _, family = load_config(model.backbone, model.trust_remote_code)
        return OWN_FORMS[family.model_type]

    @cached_property
    def _server(self) -> ServerAsker:
        assert self.experiment.endpoint is not None
        images = replace(self.experiment.endpoint, frames="images")
        return ServerAsker(images, self.experiment.logs)

    def _bar(self, items: Sequence[Item], title: str) -> Iterator[Item]:
        shown = self.experiment.settings.trainer.enable_progress_bar is not False
        yield from track(items, title, len(items), "clip", shown=shown)

    def _say(self, boxes: BoxFile, clips: Iterable[Clip], data: VideoDataModule) -> None:
        """How much was found, and what was not."""
        videos = dict.fromkeys(data.files.digest(clip) for clip in clips)
        lost = [boxes.whole(video)["id"] for video in videos if "error" in boxes.whole(video)]
        frames = [own for video in videos for own in boxes.boxes(video).values()]
        count, empty = sum(map(len, frames)), sum(not own for own in frames)
        print_rank_zero(
            f"{count} boxes in {len(frames)} frames of {len(videos) - len(lost)} videos, {empty} "
            f"frames without: {boxes.path}"
        )
        if lost:
            print_rank_zero(f"{some(lost, 'clip')} cannot be decoded and have no boxes.")
        if self.rejected:
            print_rank_zero(
                f"{self.rejected} boxes were none (no area, or outside the frame) and are left out."
            )
        if self.unread:
            print_rank_zero(
                f"{some(self.unread, 'answer')} held nothing that could be read, and count as no "
                "object."
            )


def _true_boxes(
    data: KnowsBoxes, clip: Clip, video: Video, frames: Sequence[int], names: Sequence[str]
) -> list[list[Box]]:
    known = data.true_boxes(clip)
    return [list(known[frame]) for frame in frames]


def _from_file(
    plain: PlainBoxes, clip: Clip, video: Video, frames: Sequence[int], names: Sequence[str]
) -> list[list[Box]]:
    return [boxes_in(plain[clip.id], frame) for frame in frames]


def _detected(
    detector: Detector, clip: Clip, video: Video, frames: Sequence[int], names: Sequence[str]
) -> list[list[Box]]:
    if not names:
        return [[] for _ in frames]
    return detector.find(video.frames[[video.indices.index(frame) for frame in frames]], names)


def _still(video: Video, frame: int) -> Video:
    """One frame of a clip."""
    place = video.indices.index(frame)
    return replace(video, frames=video.frames[place : place + 1], indices=[frame])
