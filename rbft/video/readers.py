"""Readers: from frame numbers to pictures.

PyAV reads every file. decord and torchcodec number frames on their own, so they are used only for
files of which they are known to give the same pictures for the same numbers; PyAV reads the others.
"""

import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from typing import TYPE_CHECKING, Any

from jaxtyping import UInt8
from numpy import ndarray

from rbft.video.packet_index import (
    FrameList,
    PacketIndex,
    VideoError,
    VideoInfo,
    decode_packet,
    full_name,
    open_file,
    orientation,
    packet_number,
    stream_packets,
    video_stream,
)

if TYPE_CHECKING:
    from av import Packet
    from av.container import InputContainer
    from av.video import VideoFrame, VideoStream
    from av.video.reformatter import VideoReformatter

Picture = UInt8[ndarray, "height width 3"]
Fetch = Callable[[list[int]], UInt8[ndarray, "frames height width 3"]]
DEFAULT_READER = "pyav"  # the fastest, or no slower: see benchmarks/README.md
# Packets before the first that is needed from which on a file is read from its nearest keyframe.
SEEK_FROM = 300
KEPT_FROM = 10_000  # packets of a file from which on it stays open: some minutes
_threads = threading.local()  # of each thread, the long file that it read last


class IndexMismatch(Exception):  # noqa: N818
    """Decoding gave other frames than the packets announce: list them with `decode=True`."""


def read_pyav(listing: FrameList, wanted: list[int]) -> Iterator[Picture]:
    """Pictures of frames (in ascending order) by PyAV.

    Where the listing has an index of packets, those that no wanted frame depends on are not
    decoded.

    Raises:
        IndexMismatch: If decoding by that index misses a frame or gives it with an error.
        VideoError: If the file lost frames since it was listed.
    """
    if listing.packets is None:
        return _read_counted(listing, wanted)
    return _read_indexed(listing, listing.packets, wanted)


def check_damage(listing: FrameList, wanted: list[int]) -> None:
    """Raises an error if a wanted frame is known to be damaged.

    Raises:
        VideoError: Naming the first damaged one and its time.
    """
    for frame in wanted:
        if frame in listing.damaged:
            raise VideoError.of(
                listing.path,
                f"is damaged: frame {frame} (at {listing.seconds[frame]:.1f} s) cannot be decoded "
                "without errors.",
            )


class _Decoding:
    """A file that is decoded from its start on, as far as its frames were asked for.

    Args:
        listing: Its frames.

    Attributes:
        last: Number of the frame that came last; -1 before the first.
        picture: That frame.
    """

    def __init__(self, listing: FrameList) -> None:
        self.listing, self.process = listing, os.getpid()
        self.last, self.picture = -1, None
        self._pictures = self._decode()

    def goes_on(self, listing: FrameList, frame: int) -> bool:
        """Whether a frame of that file is the last one or comes after it.

        Not in a process that was forked since: the two would read from one place in the file.
        """
        return self.listing is listing and self.last <= frame and self.process == os.getpid()

    def next(self, frame: int) -> "VideoFrame":
        """The frame of that number, which is the last one or comes after it.

        Raises:
            VideoError: If the file ends before it.
        """
        while self.last < frame:
            self.picture = next(self._pictures, None)
            if self.picture is None:
                raise VideoError.of(
                    self.listing.path, "changed while it was read: it has fewer frames now."
                )
            self.last += 1
        assert self.picture is not None
        return self.picture

    def _decode(self) -> "Iterator[VideoFrame]":
        with open_file(self.listing.path) as container:
            stream = video_stream(self.listing.path, container)
            for packet in _with_flush(stream_packets(container, stream)):
                yield from decode_packet(stream, packet)[0]


def _read_counted(listing: FrameList, wanted: list[int]) -> Iterator[Picture]:
    """Pictures of a file without packet index: decodes it from the start and counts.

    A long file is decoded on where it was left, so that windows in their order need one pass.
    """
    to_rgb = _Converter(listing.info)
    decoding: _Decoding | None = _threads.__dict__.pop("decoding", None)
    if decoding is None or not decoding.goes_on(listing, wanted[0]):
        decoding = _Decoding(listing)
    converted, shown = None, -1
    for frame in wanted:
        if converted is None or frame != shown:
            converted, shown = to_rgb(decoding.next(frame)), frame
        yield converted
    if listing.info.frames > SEEK_FROM:
        _threads.decoding = decoding


def _read_indexed(
    listing: FrameList, index: PacketIndex, wanted: list[int], *, seek: bool = True
) -> Iterator[Picture]:
    """Pictures of a file with packet index: decodes only what they depend on.

    Args:
        listing: The file's frames.
        index: Its packets.
        wanted: Numbers of the frames, ascending.
        seek: Pass over what lies far before the first packet that is needed, where the file's own
            index leads to a packet that is known, and keep a long file open for the next frames.
            The frames are the same.
    """
    to_rgb = _Converter(listing.info)
    spans = _spans(index, wanted)[::-1]
    waiting = [index.shown[frame] for frame in reversed(wanted)]
    needed = set(waiting)
    skip = ""
    with _opened(listing, keep=seek and len(index.times) > KEPT_FROM) as (opened, again):
        container, stream = opened
        codec = stream.codec_context
        numbered = enumerate(stream_packets(container, stream))
        if seek and spans and (again or spans[-1][0] >= SEEK_FROM):
            found = _seek(container, stream, index, spans[-1][0])
            if found is None:  # with a new container: this one is somewhere in the file
                yield from _read_indexed(listing, index, wanted, seek=False)
                return
            numbered = found
        for number, packet in numbered:
            if not spans:
                break
            start, stop = spans[-1]
            if number < start:
                continue
            if packet.pts != index.times[number]:
                raise IndexMismatch
            if index.skips:
                # Frames that no other frame refers to need no decoding.
                now = "DEFAULT" if number in needed else "NONREF"
                if now != skip:
                    codec.skip_frame = skip = now
            pictures, failed = decode_packet(stream, packet, number)
            # A frame that is shown before its keyframe is not ours: the next span has it.
            if failed and index.times[number] >= index.times[start]:
                raise IndexMismatch
            if number == stop:
                pictures += decode_packet(stream, None)[0]
                codec.flush_buffers()
                spans.pop()
            for picture in pictures:
                time = picture.pts
                if time is None or time < index.times[start]:
                    continue
                if picture.is_corrupt or (index.skips and picture.interlaced_frame):
                    raise IndexMismatch
                own = packet_number(picture)
                if own in needed:
                    if not waiting or own != waiting[-1]:
                        raise IndexMismatch
                    converted = to_rgb(picture)
                    while waiting and waiting[-1] == own:
                        waiting.pop()
                        yield converted
    if waiting:
        raise IndexMismatch


@contextmanager
def _opened(
    listing: FrameList, *, keep: bool
) -> "Iterator[tuple[tuple[InputContainer, VideoStream], bool]]":
    """A file and its video, and whether it was open already and so is somewhere in the middle.

    Args:
        listing: The file's frames.
        keep: Leave it open for the next call in this thread: to open ten hours of MP4 reads an
            index of megabytes. Not in a process that was forked since, which would read from the
            same place in the file.
    """
    kept: Any = _threads.__dict__.pop("opened", None)
    again = False
    if keep and kept is not None and kept[0] is listing and kept[1] == os.getpid():
        (container, stream), again = kept[2], True
    else:
        container = open_file(listing.path)
        stream = video_stream(listing.path, container)
    try:
        yield (container, stream), again
    except BaseException:
        container.close()
        raise
    if keep:
        _threads.opened = listing, os.getpid(), (container, stream)
    else:
        container.close()


def _seek(
    container: "InputContainer", stream: "VideoStream", index: PacketIndex, wanted: int
) -> "Iterator[tuple[int, Packet]] | None":
    """Packets with their numbers, from a keyframe or from one before it on.

    Args:
        container: The file.
        stream: Its video.
        index: Its packets.
        wanted: Number of the keyframe's packet.

    Returns:
        None where the file does not lead there: its own index may be missing or wrong.
    """
    from av.error import FFmpegError

    with suppress(FFmpegError):
        container.seek(index.times[wanted], stream=stream)
        packets = stream_packets(container, stream)
        first = next(packets, None)
        number = None if first is None else index.packet_at(first.pts)
        if first is not None and number is not None and number <= wanted:
            return enumerate(chain([first], packets), number)
    return None


def _with_flush(packets: Iterator[Any]) -> Iterator[Any]:
    """The packets, then the None that flushes the decoder."""
    yield from packets
    yield None


def read_decord(listing: FrameList, wanted: list[int]) -> Iterator[Picture]:
    """Pictures of frames (in ascending order) by decord, see `read_pyav`.

    decord 0.6 returns other frames than asked for from transport streams, AVI files and open
    groups of pictures, converts the colours of interlaced and odd-sized ones in another way, and
    aborts the process on some broken headers; such files are left to PyAV. It does not tell
    whether a frame was decoded with errors that the decoder concealed.
    """

    def open_with(path: str) -> tuple[int, Fetch]:
        import decord

        decord.logging.set_level(decord.logging.FATAL)
        # The share of frames that may fail to decode and be replaced by a neighbour: none.
        tolerance: Any = 0.0001
        video = decord.VideoReader(path, num_threads=1, fault_tol=tolerance)
        return len(video), lambda numbers: video.get_batch(numbers).asnumpy()

    return _read(listing, wanted, open_with)


def read_torchcodec(listing: FrameList, wanted: list[int]) -> Iterator[Picture]:
    """Pictures of frames (in ascending order) by torchcodec, see `read_pyav`."""

    def open_with(path: str) -> tuple[int, Fetch]:
        from torchcodec.decoders import (  # pyright: ignore[reportMissingImports]
            VideoDecoder,
        )

        video = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
        return len(video), lambda numbers: video.get_frames_at(numbers).data.numpy()

    return _read(listing, wanted, open_with)


def _read(
    listing: FrameList, wanted: list[int], open_with: Callable[[str], tuple[int, Fetch]]
) -> Iterator[Picture]:
    """Pictures by another library as far as its frames agree with the listing; the rest by PyAV."""
    done = 0
    size = (listing.info.height, listing.info.width)
    # Neither library says what is wrong with a file; PyAV then does, or reads it.
    with suppress(Exception):
        if listing.reader_independent:
            frames, fetch = open_with(full_name(listing.path))
            while frames == listing.info.frames and done < len(wanted):
                pictures = fetch(wanted[done : done + 16])
                if pictures.shape[1:3] != size:
                    break
                yield from pictures
                done += len(pictures)
    if done < len(wanted):
        yield from read_pyav(listing, wanted[done:])


READERS: dict[str, Callable[[FrameList, list[int]], Iterator[Picture]]] = {
    "decord": read_decord,
    "pyav": read_pyav,
    "torchcodec": read_torchcodec,
}


def find_reader(name: str | None) -> Callable[[FrameList, list[int]], Iterator[Picture]]:
    """The reader of that name; None is PyAV.

    Raises:
        ValueError: If there is no such reader or it is not installed.
    """
    name = name or DEFAULT_READER
    if name not in READERS:
        raise ValueError(
            f"data.reader is '{name}'; allowed are {', '.join(READERS)} and null "
            f"({DEFAULT_READER})."
        )
    if name != "pyav":
        try:
            __import__(name)
        except (ImportError, OSError, RuntimeError) as error:
            raise ValueError(
                f"data.reader is '{name}', which cannot be imported here "
                f"({str(error).strip().partition(chr(10))[0]}). Run: pip install {name}, or set "
                "data.reader to pyav."
            ) from error
    return READERS[name]


def _spans(index: PacketIndex, wanted: list[int]) -> list[tuple[int, int]]:
    """Runs of packets to decode, from a keyframe to the last packet that is needed."""
    spans: list[tuple[int, int]] = []
    for frame in wanted:
        stop = index.shown[frame]
        time = index.times[stop]
        # Frames shown before a keyframe but stored after it need the keyframe before that.
        before = bisect_right(index.keys, stop) - 1
        while index.times[index.keys[before]] > time:
            before -= 1
        start = index.keys[before]
        if spans and start <= spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
        else:
            spans.append((start, stop))
    return spans


class _Converter:
    """Converts decoded frames to RGB pictures of the size and orientation that a player shows."""

    def __init__(self, info: VideoInfo) -> None:
        self.info = info
        self.reformatter: VideoReformatter | None = None

    def __call__(self, frame: "VideoFrame") -> Picture:
        from av.video.reformatter import VideoReformatter

        # One for all frames: each would else set up tables of its own.
        self.reformatter = self.reformatter or VideoReformatter()
        transpose, rows, columns = orientation(frame)
        width, height = self.info.width, self.info.height
        if transpose:
            width, height = height, width
        picture = self.reformatter.reformat(frame, width, height, "rgb24", threads=1).to_ndarray()
        picture = picture.transpose(1, 0, 2) if transpose else picture
        return picture[:: -1 if rows else 1, :: -1 if columns else 1]
