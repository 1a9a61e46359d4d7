"""Whether a video file is complete, told from its bytes alone.

Demuxers read a file that was cut off (a broken download, a full disk) as a shorter one. Most
containers say somewhere how long they are, or mark their end.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

_TAIL = 1 << 17  # longer than a page of Ogg or a pack of MPEG
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"moof", b"pnot")


def find_truncation(path: Path) -> str:
    """In words, how a file is truncated, such as "it holds 900 of the 1,000 bytes that it states".

    Known are AVI, MP4 and MOV, Matroska and WebM, ASF (WMV), FLV, Ogg, GIF, MPEG program and
    transport streams (the last are read whole: their damage shows nowhere else). Other files, and
    headers that state no length (a live recording), are taken to be complete.

    Returns:
        The words; empty where nothing is known to be missing.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        head = stream.read(4096)
        if head[:4] == b"RIFF" and head[8:11] == b"AVI":
            return _bytes_missing(_riff_end(stream, size), size)
        if head[4:8] in _BOXES:
            return _bytes_missing(_boxes_end(stream, size), size)
        if head[:4] == _EBML:
            return _bytes_missing(_segment_end(head), size)
        if head[:16] == _ASF:
            return _bytes_missing(_asf_end(head), size)
        length = _packet_length(head)
        if length:
            return _transport_cut(stream, length, size)
        stream.seek(max(0, size - _TAIL))
        tail = stream.read()
    if head[:3] == b"GIF":
        return "" if tail.rstrip(b"\0")[-1:] == b";" else "it has no end mark"
    if head[:3] == b"FLV":
        return "" if _ends_with_tag(tail) else "it ends within a tag"
    if head[:4] == b"OggS":
        return _ogg_cut(tail)
    if head[:4] == b"\0\0\1\xba":
        return "" if _ends_with_packet(tail) else "it ends within a packet"
    return ""


def _bytes_missing(promised: int, size: int) -> str:
    return f"it holds {size:,} of the {promised:,} bytes that it states" if promised > size else ""


def _riff_end(stream: BinaryIO, size: int) -> int:
    """End of the last chunk; large AVI files are several."""
    end = 0
    while end < size:
        stream.seek(end)
        head = stream.read(8)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):  # a recording that was not closed
            break
        end += 8 + length
    return end


def _boxes(stream: BinaryIO, size: int) -> Iterator[tuple[int, bytes, int]]:
    """Start, kind and length of the outermost boxes of MP4."""
    start = 0
    while start + 8 <= size:
        stream.seek(start)
        head = stream.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        if length == 0:  # to the file's end
            length = size - start
        if length < 8 or not all(32 <= byte < 127 for byte in kind):
            return  # no box: what follows is not part of the video
        yield start, kind, length
        start += length


def _boxes_end(stream: BinaryIO, size: int) -> int:
    return max((start + length for start, _, length in _boxes(stream, size)), default=0)


def _segment_end(head: bytes) -> int:
    at = head.find(_SEGMENT)
    if at < 0 or at + 5 > len(head):
        return 0
    at += 4
    width = 9 - head[at].bit_length()  # a number's first bits tell how many bytes it has
    value = int.from_bytes(head[at : at + width], "big") & ((1 << 7 * width) - 1)
    unknown = value == (1 << 7 * width) - 1  # a live stream
    return 0 if unknown or width > 8 else at + width + value


def _asf_end(head: bytes) -> int:
    at = head.find(_ASF_PROPERTIES)
    if at < 0 or at + 104 > len(head):
        return 0
    live = head[at + 88] & 1
    return 0 if live else int.from_bytes(head[at + 40 : at + 48], "little")


def _ends_with_tag(tail: bytes) -> bool:
    """Whether FLV ends with the length of its last tag, as it should."""
    length = int.from_bytes(tail[-4:], "big")
    if length + 4 > len(tail):
        return len(tail) >= _TAIL  # too long to be looked at, or nonsense in a short file
    tag = tail[-4 - length :]
    return (
        length >= 11
        and tag[0] & 31 in (8, 9, 18)
        and int.from_bytes(tag[1:4], "big")
        in (
            length - 11,
            length,
        )
    )


def _ogg_cut(tail: bytes) -> str:
    at = tail.rfind(b"OggS")
    if at < 0:
        return ""
    segments = tail[at + 26] if at + 26 < len(tail) else 0
    table = tail[at + 27 : at + 27 + segments]
    if len(tail) < at + 27 + segments + sum(table):
        return "it ends within a page"
    return "" if tail[at + 5] & 4 else "it has no end mark"


def _ends_with_packet(tail: bytes) -> bool:
    """Whether an MPEG program stream ends where one of its packets does."""
    at = tail.rfind(b"\0\0\1\xba")
    if at < 0:
        return True  # cannot be told
    if at + 14 > len(tail):
        return False
    at += 14 + (tail[at + 13] & 7) if tail[at + 4] >> 6 == 1 else 12  # MPEG-2, MPEG-1
    while at + 4 <= len(tail) and tail[at : at + 3] == b"\0\0\1" and tail[at + 3] != 0xB9:
        at += 6 + int.from_bytes(tail[at + 4 : at + 6], "big")
    return at <= len(tail)


def _packet_length(head: bytes) -> int:
    """Bytes of a transport stream's packets; 0 for other files."""
    for length, sync in ((188, 0), (192, 4)):  # those of Blu-ray have a time before them
        if len(head) > 3 * length and all(head[sync + n * length] == 0x47 for n in range(3)):
            return length
    return 0


def _transport_cut(stream: BinaryIO, length: int, size: int) -> str:
    if size % length:
        return "it ends within a packet"
    stream.seek(0)
    damaged = 0
    while data := stream.read(length << 16):
        packets = np.frombuffer(data, np.uint8).reshape(-1, length)[:, length - 188 :]
        damaged += int(((packets[:, 0] != 0x47) | (packets[:, 1] > 127)).sum())
    return f"{damaged:,} of its {size // length:,} packets are damaged" if damaged else ""
