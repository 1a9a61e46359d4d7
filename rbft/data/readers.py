"""Readers: from frame numbers to pictures.

decord and torchcodec read a file only where their own numbering of frames is known to agree with
its listing; PyAV reads it otherwise.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from rbft.data.listing import (
    Listing,
    VideoError,
    VideoInfo,
    decode_packet,
    full_name,
    open_file,
    quarter_turns,
    stream_packets,
    video_stream,
)

if TYPE_CHECKING:
    from av.video import VideoFrame

Picture = UInt8[ndarray, "height width 3"]
Fetch = Callable[[list[int]], UInt8[ndarray, "frames height width 3"]]


def read_pyav(listing: Listing, wanted: list[int]) -> Iterator[Picture]:
    """Pictures of frames (in ascending order) by PyAV.

    Packets that no wanted frame depends on are not decoded. Where a frame does not come out that
    way, the file is decoded from its start. A frame for which the decoder then reports no error
    but has no picture (some encoders write empty packets) looks like the one before it, if that
    is less than a second old.

    Raises:
        VideoError: If a wanted frame is damaged.
    """
    done = 0
    if not listing.counted:
        for picture in _decode_frames(listing, wanted, sparing=True):
            if picture is None:
                break
            yield picture
            done += 1
    if done < len(wanted):
        for picture in _decode_frames(listing, wanted[done:], sparing=False):
            assert picture is not None
            yield picture


def _decode_frames(
    listing: Listing, wanted: list[int], *, sparing: bool
) -> "Iterator[Picture | None]":
    """Pictures of frames; sparing: without packets that should not matter, None if they did."""
    spans = _spans(listing, wanted) if sparing else [(listing.keys[0], len(listing.times) - 1)]
    waiting = [(listing.times[listing.shown[frame]], frame) for frame in reversed(wanted)]
    wanted_times = {time for time, _ in waiting}
    before: VideoFrame | None = None
    count = 0
    damaged = False

    def stand_in() -> Picture | None:
        time, frame = waiting.pop()
        if sparing:
            return None
        if (
            before is None
            or before.pts is None
            or damaged
            or listing.counted
            or (time - before.pts) * listing.time_base > 1
        ):
            raise VideoError.of(
                listing.path,
                f"is damaged: frame {frame} (at {float(time * listing.time_base):.1f} s) cannot "
                "be decoded.",
            )
        return _to_rgb(before, listing.info)

    with open_file(listing.path) as container:
        stream = video_stream(listing.path, container)
        codec = stream.codec_context
        for number, packet in enumerate(stream_packets(container, stream)):
            if not waiting or not spans:
                break
            start, stop = spans[0]
            if number < start:
                continue
            if sparing and codec.name in ("h264", "hevc"):
                # Frames that no other frame refers to need no decoding.
                codec.skip_frame = "DEFAULT" if packet.pts in wanted_times else "NONREF"
            pictures, failed = decode_packet(stream, packet)
            damaged |= failed
            if number == stop:
                pictures += decode_packet(stream, None)[0]
                codec.flush_buffers()
                spans.pop(0)
            for picture in pictures:
                time = listing.keys[0] + count if listing.counted else picture.pts
                count += 1
                while waiting and (time is None or waiting[-1][0] < time):
                    yield stand_in()
                # After an error the count may be off.
                while waiting and waiting[-1][0] == time and not (listing.counted and damaged):
                    waiting.pop()
                    yield _to_rgb(picture, listing.info)
                before = picture
    while waiting:
        yield stand_in()


def read_decord(listing: Listing, wanted: list[int]) -> Iterator[Picture]:
    """Pictures of frames (in ascending order) by decord, see `read_pyav`.

    decord 0.6 returns other frames than asked for from transport streams, AVI files and open
    groups of pictures, stands in silently for damaged ones, and aborts the process on some broken
    headers. Such files never reach it.
    """

    def open_with(path: str) -> tuple[int, Fetch]:
        import decord

        decord.logging.set_level(decord.logging.FATAL)
        # A share of frames: not one may be silently replaced by its neighbour.
        tolerance: Any = 0.0001
        video = decord.VideoReader(path, num_threads=1, fault_tol=tolerance)
        return len(video), lambda numbers: video.get_batch(numbers).asnumpy()

    return _read(listing, wanted, open_with)


def read_torchcodec(listing: Listing, wanted: list[int]) -> Iterator[Picture]:
    """Pictures of frames (in ascending order) by torchcodec, see `read_pyav`."""

    def open_with(path: str) -> tuple[int, Fetch]:
        from torchcodec.decoders import (  # pyright: ignore[reportMissingImports]
            VideoDecoder,
        )

        video = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
        return len(video), lambda numbers: video.get_frames_at(numbers).data.numpy()

    return _read(listing, wanted, open_with)


def _read(
    listing: Listing, wanted: list[int], open_with: Callable[[str], tuple[int, Fetch]]
) -> Iterator[Picture]:
    """Pictures by a reader with frame numbers of its own, as far as they agree; then by PyAV."""
    done = 0
    size = (listing.info.height, listing.info.width)
    # Neither library says what is wrong with a file; PyAV then does, or reads it.
    with suppress(Exception):
        if listing.plain:
            frames, fetch = open_with(full_name(listing.path))
            while frames == listing.info.frames and done < len(wanted):
                pictures = fetch(wanted[done : done + 16])
                if pictures.shape[1:3] != size:
                    break
                yield from pictures
                done += len(pictures)
    if done < len(wanted):
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
                f"({str(error).strip().partition(chr(10))[0]}). Run: pip install {name}, or set "
                "data.reader to pyav."
            ) from error
    return READERS[name]


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


def _to_rgb(frame: "VideoFrame", info: VideoInfo) -> Picture:
    width, height = info.width, info.height
    if quarter_turns(frame) % 2:
        width, height = height, width
    picture = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.rot90(picture, quarter_turns(frame))
