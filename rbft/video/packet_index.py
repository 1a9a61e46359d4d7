"""Which frames a video file holds, and when each is shown.

The reference is FFmpeg decoding the file from its first packet to its last: the frames it gives, in
its order, are the file's frames. Where the packets alone determine which frames that will be,
only the packets are read and the first frame is decoded; of all other files every frame is decoded
once to list them.
"""

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from stat import S_ISREG
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rbft.clip import Images
from rbft.video.completeness import find_truncation

if TYPE_CHECKING:
    from av import Packet
    from av.container import InputContainer
    from av.video import VideoFrame, VideoStream

MAX_ASPECT_RATIO = 200
MAX_FPS = 1000  # a higher frame rate is taken for a wrong one
MAX_GAP = 60.0  # seconds without a frame above which time stamps are not trusted
MAX_STREAM_GAP = 10.0  # the same in MPEG streams, whose clock may start again, as FFmpeg has it
# Codecs whose packets tell which frames they decode to, where the container times each packet.
INDEXED = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg", "prores", "dnxhd", "ffv1")


class VideoError(ValueError):
    """A video file that cannot be used.

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
    """What is known about a video.

    Attributes:
        frames: Frames that can be decoded.
        fps: Average frames per second, as the file states it.
        width: Pixels, as shown (a phone's rotation is applied).
        height: Pixels, as shown.
        duration: Seconds that the frames are shown for, by their time stamps; `frames / fps` of
            a constant frame rate.
        truncated: What the file lacks of what it promises; empty where it is complete.
        note: What was repaired, such as time stamps that make no sense; empty where nothing was.
    """

    frames: int
    fps: float
    width: int
    height: int
    duration: float
    truncated: str = ""
    note: str = ""


@dataclass(frozen=True)
class PacketIndex:
    """The packets of a video stream, in the order of decoding.

    Attributes:
        times: When each packet's picture is shown, in units of the stream.
        keys: Packets that decoding can start from.
        shown: The packet of each frame, in the order of showing: frame numbers index this.
        skips: Whether the decoder may leave out frames that no other refers to.
    """

    times: Sequence[int]
    keys: Sequence[int]
    shown: Sequence[int]
    skips: bool

    def packet_at(self, time: int | None) -> int | None:
        """The packet whose picture is shown at a time; None where there is none.

        Args:
            time: In units of the stream.
        """
        if time is None:
            return None
        place = bisect_left(self.shown, time, key=self.times.__getitem__)
        if place == len(self.shown) or self.times[self.shown[place]] != time:
            return None
        return self.shown[place]


@dataclass(frozen=True)
class FrameList:
    """The frames of a file.

    Attributes:
        path: The file.
        info: Its frame count, rate and size.
        seconds: When each frame is shown, in seconds after the first one; ascending.
        packets: The packets to decode for a frame; None where a frame is found only by decoding
            the file from its start.
        damaged: Frames that FFmpeg decodes with errors. Empty where there are `packets`: the
            reader then notices errors as it decodes.
        reader_independent: Whether decord and torchcodec, which number frames on their own,
            give the same pictures for the same numbers.
        images: The images that the frames are; None of a video.
    """

    path: Path
    info: VideoInfo
    seconds: Sequence[float]
    packets: PacketIndex | None
    damaged: frozenset[int]
    reader_independent: bool
    images: Images | None = None


def list_frames(path: Path, *, decode: bool = False) -> FrameList:
    """Lists a video's frames.

    Args:
        path: The file.
        decode: Decode the whole file to list them, even where its packets would do.

    Raises:
        VideoError: If the file is missing, empty, no video, too elongated or cannot be decoded.
    """
    cut = _find_truncation(path)
    with open_file(path) as container:
        stream = video_stream(path, container)
        decode = decode or not (
            container.format.name.startswith(("mov", "matroska")) and _codec(stream) in INDEXED
        )
        demuxed = _demux(container, stream, decode=decode)
        first = demuxed.first
        if not demuxed.packets or first is None:
            raise VideoError.of(
                path, f"has no frame that can be decoded: {cut or 'it is damaged'}."
            )
        index = None if decode else _index(stream, demuxed)
        if decode or index is not None:
            width, height = first.width, first.height
            if orientation(first)[0]:
                width, height = height, width
            if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
                raise VideoError.of(
                    path,
                    f"is {width} x {height} pixels; one side may be at most {MAX_ASPECT_RATIO} "
                    "times the other.",
                )
            if index is None:
                times, damaged = _decoded(demuxed, container.format.name)
            else:
                times = array("q", (index.times[number] for number in index.shown))
                damaged = frozenset()
            fps, seconds, note = _timestamps(path, container, stream, demuxed, times)
            duration = len(seconds) / fps
            if len(seconds) > 1:
                timed = seconds[-1] * len(seconds) / (len(seconds) - 1)
                if abs(timed - duration) > 0.5 / fps:
                    duration = timed
            truncated = _truncated(container, stream, demuxed, cut)
            if truncated:
                truncated += f"; {len(seconds)} frames ({duration:.1f} s) are there"
            return FrameList(
                path=path,
                info=VideoInfo(len(seconds), fps, width, height, duration, truncated, note),
                seconds=seconds,
                packets=index,
                damaged=damaged,
                reader_independent=index is not None
                and not truncated
                and _is_reader_independent(stream, demuxed, index),
            )
    return list_frames(path, decode=True)  # with a new decoder: this one is in mid-stream


def full_name(path: Path) -> str:
    """The file's name for FFmpeg: absolute, or "a:b.mp4" would be taken for a protocol."""
    return str(path.absolute())


def open_file(path: Path) -> "InputContainer":
    """Opens a file with PyAV.

    Raises:
        VideoError: If it is missing, may not be read, is empty or no media file.
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
        # A playlist that calls itself a video must not make FFmpeg open URLs.
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
    """The stream that a player would show, set up to decode in one thread.

    Raises:
        VideoError: If there is none.
    """
    from av.codec.context import Flags
    from av.stream import Disposition

    stream: Any = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:  # a cover picture
        raise VideoError.of(path, "has no video stream (only sound or other data).")
    if stream.codec_context is None:
        raise VideoError.of(path, "has a video stream of an unknown codec.")
    # Data loading runs one process per core already, and two threads need more time in all.
    stream.codec_context.thread_count = 1
    stream.codec_context.flags |= Flags.copy_opaque  # a frame then knows its packet
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
    stream: "VideoStream", packet: "Packet | None", number: int = 0
) -> "tuple[list[VideoFrame], bool]":
    """Pictures that the decoder gives for a packet, and whether the packet is damaged.

    Args:
        stream: The packet's.
        packet: None for what the decoder still holds.
        number: The packet's place among the stream's, see `packet_number`.
    """
    from av.error import FFmpegError

    try:
        if packet is not None:
            # A list of its own: PyAV keeps it by its address, and equal numbers share theirs.
            packet.opaque = [number]
        return stream.codec_context.decode(packet), False
    except FFmpegError:
        return [], True


def packet_number(frame: "VideoFrame") -> int | None:
    """The place of the frame's packet among the stream's; None if its decoder does not tell."""
    number: Any = frame.opaque
    return number[0] if number else None


def orientation(frame: "VideoFrame") -> tuple[bool, bool, bool]:
    """How a player turns or mirrors a frame before it shows it (a phone held upright).

    Returns:
        Whether the picture is transposed, and whether the rows, and the columns, of the result
        are then reversed.
    """
    from av.sidedata.sidedata import Type

    found: Any = frame.side_data
    data = found.get(Type.DISPLAYMATRIX)
    if data is None:
        return False, False, False
    # The point (x, y) goes to (a x + c y, b x + d y).
    a, b, _, c, d = memoryview(bytes(data)).cast("i")[:5]
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0


class _Packet(NamedTuple):
    time: int | None
    decode_time: int | None
    is_key: bool
    is_hidden: bool


NO_TIME = -(1 << 63)  # FFmpeg's own mark


class _Packets(Sequence[_Packet]):
    """Packets in arrays: ten hours have a million, of which a list holds four objects each."""

    def __init__(self) -> None:
        self._times, self._decode_times, self._flags = array("q"), array("q"), bytearray()

    def append(self, packet: _Packet) -> None:
        """Adds a packet behind the others."""
        self._times.append(NO_TIME if packet.time is None else packet.time)
        stored = packet.decode_time
        self._decode_times.append(NO_TIME if stored is None else stored)
        self._flags.append(packet.is_key | packet.is_hidden << 1)

    def times(self) -> np.ndarray:
        """Times of showing, `NO_TIME` where there is none."""
        return np.array(self._times, np.int64)

    def decode_times(self) -> np.ndarray:
        """Times of decoding, `NO_TIME` where there is none."""
        return np.array(self._decode_times, np.int64)

    def keys(self) -> np.ndarray:
        """Numbers of the packets that are keyframes."""
        return (np.array(self._flags, np.uint8) & 1).nonzero()[0]

    def hidden(self) -> np.ndarray:
        """Whether packets are not shown."""
        return (np.array(self._flags, np.uint8) & 2) > 0

    def copy_of_times(self) -> array:
        """Times of showing, as `PacketIndex` keeps them."""
        return self._times[:]

    def __len__(self) -> int:
        return len(self._flags)

    def __getitem__(self, number: Any) -> Any:
        time, stored, flags = self._times[number], self._decode_times[number], self._flags[number]
        return _Packet(
            None if time == NO_TIME else time,
            None if stored == NO_TIME else stored,
            bool(flags & 1),
            bool(flags & 2),
        )


class _Frame(NamedTuple):
    packet: int | None
    time: int | None
    is_key: bool
    is_corrupt: bool


@dataclass
class _Demuxed:
    """What one pass over a file's packets found.

    Attributes:
        packets: The video stream's packets.
        frames: What they decode to; empty where only the first frame was decoded.
        errors: Packets that the decoder refused.
        first: The first decoded frame.
        end: Seconds that all streams span.
        clean: Whether nothing was found that keeps packets from telling which frames they
            decode to.
        layers: Whether pictures of one temporal layer may refer to any of a lower one.
        refreshes: Whether packets are marked as keyframes that are none.
        is_cut: Whether the last packet is incomplete.
    """

    packets: _Packets
    frames: list[_Frame]
    errors: list[int]
    first: "VideoFrame | None" = None
    end: float = 0.0
    clean: bool = True
    layers: bool = False
    refreshes: bool = False
    is_cut: bool = False


def _demux(container: "InputContainer", stream: "VideoStream", *, decode: bool) -> _Demuxed:
    """Reads all packets; decodes all of them, or only until there is a frame."""
    demuxed = _Demuxed(_Packets(), [], [])
    spans: dict[int, tuple[int, int, Fraction]] = {}  # by stream, in units of its time base
    parameters: set[bytes] | None = None
    codec, sized = _codec(stream), _has_sizes(stream)

    def take(pictures: "list[VideoFrame]") -> None:
        demuxed.first = demuxed.first or next(iter(pictures), None)
        if decode:
            for picture in pictures:
                number, is_key = packet_number(picture), picture.key_frame
                demuxed.frames.append(_Frame(number, picture.pts, is_key, picture.is_corrupt))

    for packet in stream_packets(container):
        time = packet.pts if packet.pts is not None else packet.dts
        if time is not None:
            begin, end, unit = spans.get(packet.stream_index, (time, time, packet.time_base))
            stop = time + (packet.duration or 0)
            spans[packet.stream_index] = min(begin, time), max(end, stop), unit
        demuxed.is_cut = packet.is_corrupt
        if packet.stream_index != stream.index:
            continue
        number, is_key = len(demuxed.packets), packet.is_keyframe
        if not decode:
            if packet.is_corrupt or (number and packet.has_sidedata("new_extradata")):
                demuxed.clean = False
            if codec in ("h264", "hevc"):
                units = _NalUnits.of(bytes(packet), codec) if sized else None
                if units is None:
                    demuxed.clean = False
                else:
                    if parameters is None:
                        parameters = units.parameters
                    demuxed.clean &= units.parameters <= parameters
                    demuxed.layers |= units.is_layer
                    # Streams that refresh the picture bit by bit mark packets as keyframes
                    # after which frames go missing.
                    demuxed.refreshes |= is_key and not units.is_key
                    is_key = is_key and units.is_key
            elif codec == "vp8" and packet.size:
                demuxed.clean &= bool(bytes(packet)[0] & 16)  # a picture that is only referred to
            elif codec == "mpeg4":
                # DivX and XviD pack two pictures into one packet, and an empty one after it.
                demuxed.clean &= b"DivX" not in bytes(packet) and b"XviD" not in bytes(packet)
        demuxed.packets.append(_Packet(packet.pts, packet.dts, is_key, packet.is_discard))
        if decode or demuxed.first is None:
            pictures, failed = decode_packet(stream, packet, number)
            demuxed.errors += [number] if failed else []
            take(pictures)
    if decode or demuxed.first is None:
        pictures, failed = decode_packet(stream, None)
        demuxed.errors += [len(demuxed.packets)] if failed else []
        take(pictures)
    begin = min((float(begin * unit) for begin, _, unit in spans.values()), default=math.inf)
    end = max((float(end * unit) for _, end, unit in spans.values()), default=-math.inf)
    demuxed.end = end - begin
    return demuxed


class _NalUnits(NamedTuple):
    """The NAL units of an H.264 or HEVC packet, up to the first slice of its picture.

    Attributes:
        parameters: Its parameter sets.
        is_key: Whether nothing shown after its picture refers to anything before it.
        is_layer: Whether it belongs to a temporal layer above the lowest.
    """

    parameters: set[bytes]
    is_key: bool
    is_layer: bool

    @classmethod
    def of(cls, data: bytes, codec: str) -> "_NalUnits | None":
        """None where the packet does not consist of units with their sizes before them."""
        parameters: set[bytes] = set()
        at = 0
        while at + 5 < len(data):
            size = int.from_bytes(data[at : at + 4], "big")
            unit = data[at + 4]
            kind = unit & 31 if codec == "h264" else unit >> 1 & 63
            if at + 4 + size > len(data):
                return None
            if kind in ((7, 8) if codec == "h264" else (32, 33, 34)):
                parameters.add(data[at + 4 : at + 4 + size])
            if codec == "h264" and 1 <= kind <= 5:
                return cls(parameters, kind == 5, False)
            if codec == "hevc" and kind < 32:
                return cls(parameters, 16 <= kind <= 23, data[at + 5] & 7 > 1)
            at += 4 + size
        return None


def _codec(stream: "VideoStream") -> str:
    return stream.codec_context.codec.canonical_name


def _has_sizes(stream: "VideoStream") -> bool:
    """Whether the units in packets of H.264 and HEVC have their size before them, in four bytes."""
    data = stream.codec_context.extradata or b""
    where = 4 if _codec(stream) == "h264" else 21
    return len(data) > where and data[0] == 1 and data[where] & 3 == 3


def _index(stream: "VideoStream", demuxed: _Demuxed) -> PacketIndex | None:
    """The index of the packets; None where they do not determine the frames."""
    packets = demuxed.packets
    times, stored = packets.times(), packets.decode_times()
    known = stored[stored != NO_TIME]  # Matroska does not tell the first
    keys = packets.keys()
    if (
        not demuxed.clean
        or demuxed.errors
        or demuxed.first is None
        or demuxed.first.is_corrupt
        or not len(keys)
        or keys[0] != 0
        or (times == NO_TIME).any()
        or len(np.unique(times)) < len(times)
        or (known[1:] < known[:-1]).any()
        # Times of decoding in the place of those of showing.
        or (stream.codec_context.has_b_frames and len(times) > 1 and np.array_equal(times, stored))
    ):
        return None
    visible = ((times >= times[0]) & ~packets.hidden()).nonzero()[0]
    shown = visible[times[visible].argsort(kind="stable")]
    skips = (
        _codec(stream) in ("h264", "hevc", "mpeg4")
        and not demuxed.layers
        and not demuxed.first.interlaced_frame
    )
    if not len(shown):
        return None
    return PacketIndex(packets.copy_of_times(), _numbers(keys), _numbers(shown), skips)


def _numbers(found: np.ndarray) -> array:
    return array("q", found.astype(np.int64).tobytes())


def _decoded(demuxed: _Demuxed, container: str) -> "tuple[list[int | None], frozenset[int]]":
    """Times of all frames, and those that come after an error with no keyframe in between."""
    stored = [demuxed.packets[f.packet].decode_time for f in demuxed.frames if f.packet is not None]
    slots = [time for time in stored if time is not None]
    times: list[int | None]
    if container == "avi" and len(slots) == len(demuxed.frames):
        times = [*sorted(slots)]  # AVI knows no times of showing, and FFmpeg guesses them badly
    else:
        # PyAV counts where FFmpeg has no time.
        timed = all(packet.time is not None for packet in demuxed.packets)
        times = [frame.time if timed else None for frame in demuxed.frames]
    # What cannot be decoded before the first picture is the end of something not in the file.
    start = next((frame.packet for frame in demuxed.frames), None) or 0
    errors = [number for number in demuxed.errors if start < number < len(demuxed.packets)]
    errors += [f.packet or 0 for f in demuxed.frames if f.is_corrupt]
    errors.sort()
    damaged = set()
    keys = [f for f in demuxed.frames if f.is_key and not f.is_corrupt and f.packet is not None]
    for number, frame in enumerate(demuxed.frames):
        if frame.packet is None:  # the decoder does not tell: everything after an error
            if errors:
                damaged.add(number)
            continue
        before = bisect_left(errors, frame.packet + 1)
        if not before:
            continue
        error = errors[before - 1]
        if error == frame.packet or not any(
            error < (key.packet or 0) <= frame.packet
            and (key.time is None or frame.time is None or key.time <= frame.time)
            for key in keys
        ):
            damaged.add(number)
    return times, frozenset(damaged)


def _timestamps(
    path: Path,
    container: "InputContainer",
    stream: "VideoStream",
    demuxed: _Demuxed,
    times: Sequence[int | None],
) -> tuple[float, Sequence[float], str]:
    """Frames per second, the time of each frame in seconds, and a note of what was repaired.

    The rate is the one that the file states, which other readers use as well, unless the time
    stamps give less than half or more than twice of it (recordings of browsers state 1000). Time
    stamps that make no sense are replaced: frames are then spaced evenly at their median distance.

    Raises:
        VideoError: If nothing tells when frames are shown.
    """
    unit = stream.time_base or Fraction(1)
    stated = float(stream.average_rate or 0)
    known = array("d", (float(time * unit) for time in times if time is not None))
    if len(known) < len(times) or container.format.name == "mpeg" or not known:
        # Raw streams number their frames; MPEG program streams time some of them.
        fault, gaps = "", array("d")
    else:
        gaps = array("d", (b - a for a, b in pairwise(known)))
        fault = _timestamp_fault(known, gaps, container.format.name)
        if not fault:
            if len(known) > 1 and known[-1] > known[0]:
                real = (len(known) - 1) / (known[-1] - known[0])
                stated = stated if real / 2 <= stated <= real * 2 else real
            if stated <= MAX_FPS:
                return stated or 1.0, array("d", (time - known[0] for time in known)), ""
            fault = f"its time stamps give {stated:.0f} frames per second"
    usual = [gap for gap in gaps if gap > 0]
    own = [float(stream.codec_context.framerate or 0), float(stream.base_rate or 0)]
    if not fault:
        rates = [stated, *own]
    elif not usual or 1 / median(usual) > MAX_FPS:
        rates = [*own, stated]  # what is stated was computed from the time stamps
    else:
        rates = [1 / median(usual)]
        if rates[0] / 3 <= stated <= rates[0] * 3:
            rates = [stated]
    sane = [rate for rate in rates if 0.01 <= rate <= MAX_FPS]
    if not sane:
        raise VideoError.of(
            path, f"does not tell when its frames are shown: {fault or 'it has no time stamps'}."
        )
    fps = sane[0]
    note = f"{fault}; its frames are counted, {fps:.6g} per second" if fault else ""
    return fps, array("d", (number / fps for number in range(len(times)))), note


def _timestamp_fault(times: Sequence[float], gaps: Sequence[float], container: str) -> str:
    """What is wrong with the time stamps of frames in the order of decoding; empty for nothing."""
    for number, gap in enumerate(gaps):
        if gap < 0:
            return (
                f"its time stamps go back at frame {number + 1} (from {times[number]:.3f} to "
                f"{times[number + 1]:.3f} s)"
            )
    if sum(gap == 0 for gap in gaps) * 10 > len(gaps):
        return f"{sum(gap == 0 for gap in gaps) + 1} of its {len(times)} frames have the same time"
    longest = max(gaps, default=0.0)
    rest = times[-1] - times[0] - longest
    at = gaps.index(longest) if gaps else 0
    streams = container in ("mpegts", "mpeg", "mpegtsraw")
    if (streams and longest > MAX_STREAM_GAP) or longest > max(MAX_GAP, 10 * rest):
        return (
            f"its time stamps leap at frame {at + 1} (from {times[at]:.3f} to "
            f"{times[at + 1]:.3f} s)"
        )
    return ""


def _truncated(
    container: "InputContainer", stream: "VideoStream", demuxed: _Demuxed, cut: str
) -> str:
    """What the file lacks of what it promises."""
    if container.format.name.startswith(("mov", "avi")):  # others index other things
        held, stated = len(demuxed.packets), len(stream.index_entries)
        if held < stated:
            return f"it holds {held} of the {stated} frames that it lists"
    if cut:
        return cut
    if demuxed.is_cut:
        return "it ends within a frame"
    unit = stream.time_base
    if container.format.name == "avi" and stream.duration and unit:
        stored = [
            packet.decode_time for packet in demuxed.packets if packet.decode_time is not None
        ]
        held, stated = max(stored, default=0) + 1, stream.duration
        if held < stated - 1:
            return f"it holds {held} of the {stated} frames that it states"
    # Not closer than half: the last picture of a stream without sound may stay for long.
    length = (container.duration or 0) / 1_000_000
    if length and demuxed.end < length / 2:
        return f"it ends after {max(demuxed.end, 0):.1f} of the {length:.1f} s that it states"
    return ""


def _is_reader_independent(stream: "VideoStream", demuxed: _Demuxed, index: PacketIndex) -> bool:
    first = demuxed.first
    assert first is not None
    chroma = first.format.components[-1]
    whole = first.width % chroma.width == 0 and first.height % chroma.height == 0
    transpose, rows, columns = orientation(first)
    return (
        _codec(stream) in ("h264", "hevc", "vp8", "vp9", "mpeg4", "mjpeg")
        and first.format.components[0].bits == 8
        and len(index.shown) == len(index.times)
        # decord reserves memory for what the header states and aborts if that is nonsense.
        and stream.frames in (0, len(index.times))
        # decord takes a keyframe's place among the packets for its place among the frames.
        and all(index.shown[key] == key for key in index.keys)
        and not demuxed.refreshes
        # It converts the colours of interlaced and of odd-sized pictures in another way.
        and not first.interlaced_frame
        and whole
        # It turns, and does not mirror.
        and (rows == columns if not transpose else rows != columns)
    )


def _find_truncation(path: Path) -> str:
    with suppress(OSError, ValueError):  # `open_file` says what is wrong
        if S_ISREG(path.stat().st_mode):
            return find_truncation(path)
    return ""
