"""Which frames a video file holds.

PyAV lists a file's packets once and decodes nothing but the first picture. That list is the one
truth about frame numbers, whoever decodes.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from av import Packet
    from av.container import InputContainer
    from av.video import VideoFrame, VideoStream


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
        counted: Whether time stamps are missing or made up (H.264 in AVI, MPEG program
            streams), so that a frame is known only by the order in which the decoder gives them.
        plain: Whether readers that number frames on their own arrive at the same numbers.
    """

    path: Path
    info: VideoInfo
    times: list[int]
    keys: list[int]
    shown: list[int]
    time_base: Fraction
    counted: bool
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
    with open_file(path) as container:
        stream = video_stream(path, container)
        packets, first, seconds = _scan(container, stream)
        _check_complete(path, container, stream, len(packets), seconds)
        codec = stream.codec_context.name
        counted = (
            any(packet.time is None for packet in packets)
            or container.format.name == "mpeg"
            or (container.format.name == "avi" and codec in ("h264", "hevc"))
        )
        known = [packet.time for packet in packets if packet.time is not None]
        fps = _frame_rate(stream, sorted(known))
        times = list(range(len(packets))) if counted else known
        keys = [number for number, packet in enumerate(packets) if packet.is_key] or [0]
        shown = [
            number
            for number in range(keys[0], len(packets))
            if times[number] >= times[keys[0]] and not packets[number].is_hidden
        ]
        shown.sort(key=times.__getitem__)
        if first is None or not shown:
            raise VideoError.of(path, "has no frame that can be decoded: the file is damaged.")
        width, height = first.width, first.height
        if quarter_turns(first) % 2:
            width, height = height, width
        return Listing(
            path=path,
            info=VideoInfo(len(shown), fps, width, height, len(shown) / fps),
            times=times,
            keys=keys,
            shown=shown,
            time_base=1 / Fraction(fps) if counted else stream.time_base or Fraction(1),
            counted=counted,
            plain=not counted
            and container.format.name.startswith(("mov", "matroska"))
            and codec.removeprefix("lib") in ("h264", "hevc", "vp8", "vp9", "mpeg4", "mjpeg")
            and first.format.components[0].bits == 8
            and len(shown) == len(times) == len(set(times))
            # decord reserves memory for what the header states and aborts if that is nonsense.
            and stream.frames in (0, len(times))
            # decord takes a keyframe's place among the packets for its place among the frames.
            and all(shown[key] == key for key in keys)
            and not any(packet.is_refresh for packet in packets),
        )


def full_name(path: Path) -> str:
    """The file's name for FFmpeg: absolute, or "a:b.mp4" would be taken for a protocol."""
    return str(path.absolute())


def open_file(path: Path) -> "InputContainer":
    """Opens a file with PyAV.

    Raises:
        VideoError: If it is missing, empty or no media file.
    """
    import av
    from av.error import FFmpegError

    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise VideoError.of(path, "does not exist.") from None
    except (OSError, ValueError) as error:
        raise VideoError.of(path, f"cannot be read: {error}.") from error
    if not S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise VideoError.of(path, "is not a file.")
    if not status.st_size:
        raise VideoError.of(path, "is empty (0 bytes).")
    try:
        # A playlist that calls itself a video must not make us open other places.
        return av.open(
            full_name(path), metadata_errors="ignore", options={"protocol_whitelist": "file"}
        )
    except PermissionError as error:
        raise VideoError.of(path, f"cannot be read: {error.strerror}.") from error
    except FFmpegError as error:
        raise VideoError.of(
            path, f"cannot be opened ({error.strerror}): no video file, or truncated."
        ) from error


def video_stream(path: Path, container: "InputContainer") -> "VideoStream":
    """The stream that a player would show, decoding in one thread.

    Raises:
        VideoError: If there is none.
    """
    from av.stream import Disposition

    stream: Any = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:  # a cover picture
        raise VideoError.of(path, "has no video stream (only sound or other data).")
    if stream.codec_context is None:
        raise VideoError.of(path, "has a video stream of an unknown codec.")
    # Data loading runs one process per core already.
    stream.codec_context.thread_count = 1
    return stream


def stream_packets(container: "InputContainer", *streams: "VideoStream") -> "Iterator[Packet]":
    """Packets in the order of the file, of some streams or (without any named) of all."""
    from av.error import FFmpegError

    # Where a file breaks off, its packets end; whether that is too early is judged by their number.
    # PyAV 18 raises IndexError at the end of a file that announces a stream on its way.
    with suppress(FFmpegError, IndexError):
        for packet in container.demux(*streams):
            if packet.size or packet.dts is not None:  # PyAV marks the end by an empty packet
                yield packet


def decode_packet(
    stream: "VideoStream", packet: "Packet | None"
) -> "tuple[list[VideoFrame], bool]":
    """Pictures that the decoder gives for a packet, and whether the packet is damaged."""
    from av.error import FFmpegError

    try:
        return stream.codec_context.decode(packet), False
    except FFmpegError:
        return [], True


def quarter_turns(frame: "VideoFrame") -> int:
    """Turns to the left that a player makes before it shows the picture (a phone held upright)."""
    return round(frame.rotation / 90)


class _Packet(NamedTuple):
    time: int | None
    is_key: bool
    is_hidden: bool
    is_refresh: bool


def _scan(
    container: "InputContainer", stream: "VideoStream"
) -> "tuple[list[_Packet], VideoFrame | None, float]":
    """The stream's packets, its first picture and the seconds that all streams span."""
    found: list[_Packet] = []
    first: VideoFrame | None = None
    spans: dict[int, tuple[int, int, Fraction]] = {}  # by stream, in units of its time base
    for packet in stream_packets(container):
        time = packet.pts if packet.pts is not None else packet.dts
        if time is not None:
            begin, end, unit = spans.get(packet.stream_index, (time, time, packet.time_base))
            stop = time + (packet.duration or 0)
            spans[packet.stream_index] = min(begin, time), max(end, stop), unit
        if packet.stream_index != stream.index:
            continue
        is_refresh = (
            packet.is_keyframe
            and stream.codec_context.name == "h264"
            and not _has_idr(bytes(packet))
        )
        found.append(_Packet(packet.pts, packet.is_keyframe, packet.is_discard, is_refresh))
        if first is None:
            first = next(iter(decode_packet(stream, packet)[0]), None)
    if first is None:
        first = next(iter(decode_packet(stream, None)[0]), None)
    begin = min((float(begin * unit) for begin, _, unit in spans.values()), default=math.inf)
    end = max((float(end * unit) for _, end, unit in spans.values()), default=-math.inf)
    return found, first, end - begin


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
    if length and seconds < length / 2:
        raise VideoError.of(
            path,
            f"is truncated or damaged: it ends after {max(seconds, 0):.1f} of the {length:.1f} s "
            "that it states.",
        )


def _frame_rate(stream: "VideoStream", times: list[int]) -> float:
    """The file's average rate, or where it is off by more than half, that of the time stamps.

    The file's own figure is what other readers use; recordings of browsers state 1000.
    """
    stated = float(stream.average_rate or 0)
    if len(times) < 2 or times[-1] == times[0]:
        return stated or 1.0
    real = (len(times) - 1) / float((times[-1] - times[0]) * (stream.time_base or 1))
    return stated if real / 2 <= stated <= real * 2 else real


def _has_idr(data: bytes) -> bool:
    """Whether a packet of H.264 (as in MP4 and Matroska) holds a picture that depends on nothing.

    Streams that refresh the picture bit by bit mark other packets as keyframes, and frames go
    missing after a jump to one.
    """
    position = 0
    while position + 4 < len(data):
        if data[position + 4] & 31 == 5:
            return True
        position += 4 + int.from_bytes(data[position : position + 4])
    return False
