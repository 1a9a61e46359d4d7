"""Readers: which frames a video file holds, and their pictures.

PyAV lists a file's packets once (nothing but the first picture is decoded). That list is the one
truth about frame numbers, whoever decodes: decord and torchcodec read a file only where their own
numbering is known to agree with it, and PyAV reads it otherwise.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video import VideoFrame, VideoStream

Picture = UInt8[ndarray, "height width 3"]
Fetch = Callable[[list[int]], UInt8[ndarray, "frames height width 3"]]


class VideoError(ValueError):
    """A file that gives no clip.

    Attributes:
        reason: What is wrong with it, without the file's name.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        # One argument suffices, or it could not be sent back from a worker process.
        super().__init__(message)
        self.reason = reason or message

    @classmethod
    def of(cls, path: Path, reason: str) -> "VideoError":
        """The error for a file: "Video <path> <reason>"."""
        return cls(f"Video {path} {reason}", reason)


@dataclass(frozen=True)
class VideoInfo:
    """What is known about a video without decoding it.

    Attributes:
        frames: Frames that can be decoded.
        fps: Average frames per second.
        width: Pixels, as shown (a phone's rotation is applied).
        height: Pixels, as shown.
        duration: Seconds, `frames / fps`.
    """

    frames: int
    fps: float
    width: int
    height: int
    duration: float


@dataclass(frozen=True)
class Listing:
    """The packets of a file's video stream, in the order of decoding.

    Attributes:
        path: The file.
        info: Its frame count, rate and size.
        times: When each packet's picture is shown, in units of `time_base`.
        keys: Packets that decoding can start from.
        shown: The packet of each frame, in the order of showing: frame numbers index this.
        time_base: Seconds per unit of time.
        plain: Whether readers that number frames on their own arrive at the same numbers.
    """

    path: Path
    info: VideoInfo
    times: list[int]
    keys: list[int]
    shown: list[int]
    time_base: Fraction
    plain: bool


def probe(path: Path) -> VideoInfo:
    """Frame count, rate and size of a video; reads the file once and decodes one frame.

    Raises:
        VideoError: If the file is missing, empty, truncated, no video or cannot be decoded.
    """
    return list_frames(path).info


def list_frames(path: Path) -> Listing:
    """Lists a video's frames.

    A stream that does not start with a keyframe starts, for us, at its first keyframe: no reader
    can decode what comes before.

    Raises:
        VideoError: See `probe`.
    """
    from av import FFmpegError

    with _open(path) as container:
        stream = _video_stream(path, container)
        times: list[int | None] = []
        keys, hidden = [], set()
        first: VideoFrame | None = None
        begin, end = math.inf, -math.inf
        packets = container.demux()
        while True:
            try:
                packet = next(packets, None)
            except FFmpegError:  # the file ends or breaks here; judged below by what came
                break
            if packet is None:
                break
            time = packet.pts if packet.pts is not None else packet.dts
            if time is not None:
                begin = min(begin, time * packet.time_base)
                end = max(end, (time + (packet.duration or 0)) * packet.time_base)
            if packet.stream_index != stream.index or _ends_stream(packet):
                continue
            if packet.is_keyframe:
                keys.append(len(times))
            if packet.is_discard:
                hidden.add(len(times))
            times.append(packet.pts)
            if first is None and keys:
                first = next(iter(_decode(stream, packet)), None)
        if first is None:
            first = next(iter(_decode(stream, None)), None)
        _check_complete(path, container, stream, len(times), float(end - begin))
        if first is None:
            raise VideoError.of(path, "has no frame that can be decoded: the file is damaged.")
        known = [time for time in times if time is not None]
        if len(known) < len(times):
            raise VideoError.of(
                path,
                "has frames without a time stamp. Rewrite it: ffmpeg -fflags +genpts -i <file> "
                "-c copy <new>.mp4",
            )
        start = keys[0] if keys else 0
        shown = sorted(
            (
                packet
                for packet in range(start, len(known))
                if packet not in hidden and known[packet] >= known[start]
            ),
            key=known.__getitem__,
        )
        quarter_turns = round(first.rotation / 90)
        width, height = first.width, first.height
        if quarter_turns % 2:
            width, height = height, width
        fps = _frame_rate(stream, [known[packet] for packet in shown])
        return Listing(
            path=path,
            info=VideoInfo(len(shown), fps, width, height, len(shown) / fps),
            times=known,
            keys=keys or [0],
            shown=shown,
            time_base=_time_base(stream),
            plain=_is_plain(container, stream, known, keys, shown),
        )


def read_pyav(listing: Listing, wanted: list[int]) -> Iterator[Picture]:
    """Pictures of frames (in ascending order) by PyAV.

    Packets that no wanted frame depends on are not decoded. A frame for which the file holds no
    picture of its own (some encoders write empty packets) looks like the one before it.

    Raises:
        VideoError: If a wanted frame is damaged.
    """
    spans = _spans(listing, wanted)
    waiting = [(listing.times[listing.shown[frame]], frame) for frame in reversed(wanted)]
    wanted_times = {time for time, _ in waiting}
    with _open(listing.path) as container:
        stream = _video_stream(listing.path, container)
        codec = stream.codec_context
        packets = (packet for packet in container.demux(stream) if not _ends_stream(packet))
        shown: VideoFrame | None = None
        damaged: list[Exception] = []
        for number, packet in enumerate(packets):
            if not spans:
                break
            start, stop = spans[0]
            if number < start:
                continue
            # Frames that no other frame refers to need no decoding.
            codec.skip_frame = "DEFAULT" if packet.pts in wanted_times else "NONREF"
            pictures = _decode(stream, packet, damaged)
            if number == stop:
                pictures += _decode(stream, None, damaged)
                codec.flush_buffers()
                spans.pop(0)
            for picture in pictures:
                while waiting and picture.pts is not None and waiting[-1][0] < picture.pts:
                    yield _stand_in(listing, waiting.pop()[1], shown, damaged)
                shown = picture
                while waiting and waiting[-1][0] == picture.pts:
                    waiting.pop()
                    yield _to_rgb(picture, listing.info)
        while waiting:
            yield _stand_in(listing, waiting.pop()[1], shown, damaged)


def read_decord(listing: Listing, wanted: list[int]) -> Iterator[Picture]:
    """Pictures of frames (in ascending order) by decord, see `read_pyav`.

    decord 0.6 returns other frames than asked for from transport streams, AVI files and open
    groups of pictures, stands in silently for damaged ones, and aborts the process on some broken
    headers. Such files never reach it.
    """

    def open_file(path: str) -> tuple[int, Fetch]:
        import decord

        decord.logging.set_level(decord.logging.FATAL)
        # Any frame that decord would silently replace by a neighbour is an error.
        video = decord.VideoReader(path, num_threads=1, fault_tol="0.0000001")
        return len(video), lambda numbers: video.get_batch(numbers).asnumpy()

    return _read(listing, wanted, open_file)


def read_torchcodec(listing: Listing, wanted: list[int]) -> Iterator[Picture]:
    """Pictures of frames (in ascending order) by torchcodec, see `read_pyav`."""

    def open_file(path: str) -> tuple[int, Fetch]:
        from torchcodec.decoders import (  # pyright: ignore[reportMissingImports]
            VideoDecoder,
        )

        video = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
        return len(video), lambda numbers: video.get_frames_at(numbers).data.numpy()

    return _read(listing, wanted, open_file)


def _read(
    listing: Listing, wanted: list[int], open_file: Callable[[str], tuple[int, Fetch]]
) -> Iterator[Picture]:
    """Pictures by a reader with frame numbers of its own, as far as they agree; then by PyAV."""
    done = 0
    size = (listing.info.height, listing.info.width)
    # Neither library says what is wrong with a file; PyAV then does, or reads it.
    with suppress(Exception):
        if listing.plain:
            frames, fetch = open_file(_name(listing.path))
            while frames == listing.info.frames and done < len(wanted):
                pictures = fetch(wanted[done : done + 16])
                if pictures.shape[1:3] != size:
                    break
                yield from pictures
                done += len(pictures)
    yield from read_pyav(listing, wanted[done:])


READERS: dict[str, Callable[[Listing, list[int]], Iterator[Picture]]] = {
    "decord": read_decord,
    "pyav": read_pyav,
    "torchcodec": read_torchcodec,
}


def find_reader(name: str | None) -> Callable[[Listing, list[int]], Iterator[Picture]]:
    """The reader of that name; None is decord where it is installed and PyAV elsewhere.

    Raises:
        ValueError: If there is no such reader or it is not installed.
    """
    if name is None:
        name = "decord" if find_spec("decord") else "pyav"
    if name not in READERS:
        raise ValueError(
            f"data.reader is '{name}'; allowed are {', '.join(READERS)} and null (decord where it "
            "is installed, else pyav)."
        )
    if name != "pyav":
        try:
            __import__(name)
        except (ImportError, OSError, RuntimeError) as error:
            raise ValueError(
                f"data.reader is '{name}', which cannot be imported here "
                f"({str(error).strip().splitlines()[0]}). Run: pip install {name}, or set "
                "data.reader to pyav."
            ) from error
    return READERS[name]


def _name(path: Path) -> str:
    # Absolute, or FFmpeg would take "a:b.mp4" for a protocol.
    return str(path.absolute())


def _open(path: Path) -> "InputContainer":
    import av

    if not path.exists():
        raise VideoError.of(path, "does not exist.")
    if not path.is_file():  # opening a pipe would wait for ever
        raise VideoError.of(path, "is not a file.")
    if path.stat().st_size == 0:
        raise VideoError.of(path, "is empty (0 bytes).")
    try:
        # A playlist that calls itself a video must not make us open other places.
        return av.open(
            _name(path), metadata_errors="ignore", options={"protocol_whitelist": "file"}
        )
    except av.FFmpegError as error:
        raise VideoError.of(
            path, f"cannot be opened ({error.strerror}): no video file, or truncated or damaged."
        ) from error


def _video_stream(path: Path, container: "InputContainer") -> "VideoStream":
    from av.stream import Disposition

    stream: Any = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:  # a cover picture
        raise VideoError.of(path, "has no video stream (only sound or other data).")
    if stream.codec_context is None:
        raise VideoError.of(path, "has a video stream of an unknown codec.")
    # Data loading runs one process per core already.
    stream.codec_context.thread_count = 1
    return stream


def _ends_stream(packet: Any) -> bool:
    return not packet.size and packet.dts is None


def _decode(
    stream: "VideoStream", packet: Any, damaged: list[Exception] | None = None
) -> "list[VideoFrame]":
    from av import FFmpegError

    try:
        return stream.codec_context.decode(packet)
    except FFmpegError as error:
        if damaged is not None:
            damaged.append(error)
        return []


def _check_complete(
    path: Path, container: "InputContainer", stream: "VideoStream", packets: int, seconds: float
) -> None:
    stated = len(stream.index_entries)
    if packets < stated:
        raise VideoError.of(
            path, f"is truncated or damaged: it holds {packets} of the {stated} frames it lists."
        )
    # Not closer than half: the last picture of a stream without sound may stay for long.
    length = (container.duration or 0) / 1_000_000
    if seconds < length / 2:
        raise VideoError.of(
            path,
            f"is truncated or damaged: it ends after {max(seconds, 0):.1f} of the {length:.1f} s "
            "that it states.",
        )


def _time_base(stream: "VideoStream") -> Fraction:
    assert stream.time_base is not None
    return stream.time_base


def _frame_rate(stream: "VideoStream", times: list[int]) -> float:
    """The file's average rate, or where it is off by more than half, that of the time stamps.

    The file's own figure is what other readers use; recordings of browsers state 1000.
    """
    stated = float(stream.average_rate or 0)
    if len(times) < 2 or times[-1] == times[0]:
        return stated or 1.0
    real = (len(times) - 1) / float((times[-1] - times[0]) * _time_base(stream))
    # One frame more or less counts in a short clip.
    return stated if real / 2 <= stated <= real * 2 else real


def _is_plain(
    container: "InputContainer",
    stream: "VideoStream",
    times: list[int],
    keys: list[int],
    shown: list[int],
) -> bool:
    codecs = ("h264", "hevc", "vp8", "vp9", "mpeg4", "mjpeg")
    return (
        container.format.name.startswith(("mov", "matroska"))
        and stream.codec_context.name.removeprefix("lib") in codecs
        and len(shown) == len(times) == len(set(times))
        # decord reserves memory for what the header states and aborts if that is nonsense.
        and stream.frames in (0, len(times))
        # decord takes a keyframe's place among the packets for its place among the frames.
        and all(shown[key] == key for key in keys)
    )


def _spans(listing: Listing, wanted: list[int]) -> list[tuple[int, int]]:
    """Runs of packets to decode, from a keyframe to the last packet that is needed."""
    spans: list[tuple[int, int]] = []
    for frame in wanted:
        stop = listing.shown[frame]
        time = listing.times[stop]
        # Frames shown before a keyframe but stored after it need the keyframe before that.
        before = bisect_right(listing.keys, stop)
        start = next(
            (key for key in reversed(listing.keys[:before]) if listing.times[key] <= time),
            listing.keys[0],
        )
        if spans and start <= spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
        else:
            spans.append((start, stop))
    return spans


def _stand_in(
    listing: Listing, frame: int, before: "VideoFrame | None", damaged: list[Exception]
) -> Picture:
    if before is None or damaged:
        seconds = float(listing.times[listing.shown[frame]] * listing.time_base)
        raise VideoError.of(
            listing.path, f"is damaged: frame {frame} (at {seconds:.1f} s) cannot be decoded."
        )
    return _to_rgb(before, listing.info)


def _to_rgb(frame: "VideoFrame", info: VideoInfo) -> Picture:
    quarter_turns = round(frame.rotation / 90)
    width, height = info.width, info.height
    if quarter_turns % 2:
        width, height = height, width
    picture = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.rot90(picture, quarter_turns)
