"""Videos of many kinds, small and made on the spot: containers, codecs, clocks, damage.

Pictures tell their own number, see `tests.videos`. `MADE` needs PyAV alone, `FROM_FFMPEG` the
program ffmpeg with its encoders.
"""

import struct
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from tests.videos import make_video

B = {"g": "12", "bf": "2"}
H264: dict[str, dict[str, str]] = {
    "b_frames": B,
    "one_group": {"g": "250", "bf": "3"},
    "no_b": {"g": "12", "bf": "0"},
    "intra": {"g": "1"},
    "open_groups": {"x264-params": "open-gop=1:keyint=8:bframes=3:b-adapt=0"},
    "refresh": {"x264-params": "intra-refresh=1:keyint=12:bframes=0"},
    "pyramid": {"x264-params": "keyint=24:bframes=5:b-adapt=0:b-pyramid=normal:ref=4"},
}
H265 = "log-level=error:"
CONTAINERS = ("mp4", "mov", "mkv", "avi", "ts", "flv", "h264")

# Ending and arguments of make_video.
ENCODED: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"h264_{style}_{ending}": (ending, {"options": options})
        for ending in CONTAINERS
        for style, options in H264.items()
    },
    **{
        f"hevc_{style}_{ending}": (
            ending,
            {"codec": "libx265", "options": {"x265-params": H265 + options}},
        )
        for ending in ("mp4", "mkv", "ts")
        for style, options in {
            "closed": "keyint=12:bframes=3:open-gop=0",
            "open": "keyint=12:bframes=3:open-gop=1",
            "layers": "keyint=24:bframes=3:temporal-layers=3:b-pyramid=1",
        }.items()
    },
    "h264_fragmented": (
        "mp4",
        {"options": B, "container": {"movflags": "frag_keyframe+empty_moov"}},
    ),
    "h264_faststart": ("mp4", {"options": B, "container": {"movflags": "faststart"}}),
    "h264_sound": ("mp4", {"options": B, "audio": True}),
    "h264_ntsc": ("mp4", {"options": B, "fps": Fraction(30000, 1001)}),
    "h264_interlaced": ("mp4", {"options": {"flags": "+ilme+ildct", "g": "12"}}),
    "h264_interlaced_ts": ("ts", {"options": {"flags": "+ilme+ildct", "g": "12"}}),
    "h264_ten_bits": ("mp4", {"pixels": "yuv420p10le", "options": B}),
    "h264_odd_444": ("mp4", {"pixels": "yuv444p", "height": 97, "width": 131}),
    "h264_full_range": ("mp4", {"pixels": "yuvj420p", "options": B}),
    "h264_no_keyframe_start": ("mp4", {"drop": 7, "options": B}),
    "h264_no_keyframe_start_ts": ("ts", {"drop": 7, "options": B}),
    "h264_no_keyframe_start_mkv": ("mkv", {"drop": 7, "options": B}),
    "h264_one_frame": ("mp4", {"frames": 1}),
    "h264_two_frames": ("avi", {"frames": 2}),
    "hevc_ten_bits": (
        "mp4",
        {
            "codec": "libx265",
            "pixels": "yuv420p10le",
            "options": {"x265-params": H265 + "keyint=12"},
        },
    ),
    "vp8": ("webm", {"codec": "libvpx", "options": {"g": "12"}}),
    "vp8_hidden": (
        "webm",
        {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    ),
    "vp9": ("webm", {"codec": "libvpx-vp9", "options": {"g": "12", "deadline": "realtime"}}),
    "vp9_hidden": (
        "webm",
        {
            "codec": "libvpx-vp9",
            "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"},
        },
    ),
    "vp9_odd": (
        "webm",
        {
            "codec": "libvpx-vp9",
            "height": 97,
            "width": 131,
            "options": {"deadline": "realtime"},
        },
    ),
    "vp9_mp4": ("mp4", {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}}),
    "mpeg4_mp4": ("mp4", {"codec": "mpeg4", "options": B}),
    "mpeg4_avi": ("avi", {"codec": "mpeg4", "options": B}),
    "mpeg4_mkv": ("mkv", {"codec": "mpeg4", "options": B}),
    "mpeg4_no_b_avi": ("avi", {"codec": "mpeg4", "options": {"g": "12"}}),
    "mpeg2_ts": ("ts", {"codec": "mpeg2video", "fps": 25, "options": B}),
    "mpeg2_mpg": ("mpg", {"codec": "mpeg2video", "fps": 25, "options": B}),
    "mpeg2_mp4": ("mp4", {"codec": "mpeg2video", "fps": 25, "options": B}),
    "mpeg2_interlaced": (
        "ts",
        {"codec": "mpeg2video", "fps": 25, "options": {**B, "flags": "+ilme+ildct"}},
    ),
    "mpeg1_mpg": ("mpg", {"codec": "mpeg1video", "fps": 25, "options": B}),
    "mjpeg_avi": ("avi", {"codec": "mjpeg", "pixels": "yuvj420p"}),
    "mjpeg_mp4": ("mp4", {"codec": "mjpeg", "pixels": "yuvj420p"}),
    "mjpeg_mkv": ("mkv", {"codec": "mjpeg", "pixels": "yuvj420p"}),
    "wmv1": ("wmv", {"codec": "wmv1"}),
    "wmv2": ("wmv", {"codec": "wmv2"}),
    "msmpeg4": ("avi", {"codec": "msmpeg4v2"}),
    "divx3": ("avi", {"codec": "msmpeg4"}),
    "flv1": ("flv", {"codec": "flv"}),
    "h263_3gp": ("3gp", {"codec": "h263", "height": 144, "width": 176, "fps": 25}),
    "gif": ("gif", {"codec": "gif", "pixels": "rgb8"}),
    "prores": ("mov", {"codec": "prores_ks", "pixels": "yuv422p10le"}),
    "ffv1_mkv": ("mkv", {"codec": "ffv1"}),
    "ffv1_avi": ("avi", {"codec": "ffv1"}),
    "huffyuv": ("avi", {"codec": "huffyuv", "pixels": "yuv422p"}),
    "raw_avi": ("avi", {"codec": "rawvideo"}),
    "png_mov": ("mov", {"codec": "png", "pixels": "rgb24"}),
    "cinepak": ("avi", {"codec": "cinepak", "pixels": "rgb24", "frames": 12}),
    "real": ("rm", {"codec": "rv20", "height": 144, "width": 176, "fps": 25}),
    "nut": ("nut", {"codec": "mpeg4", "options": B}),
    "uneven_mp4": ("mp4", {"times": [0, 40, 80, 1000, 1040, 5000, 5040, 5100], "frames": 8}),
    "uneven_mkv": ("mkv", {"times": [0, 40, 80, 1000, 1040, 5000, 5040, 5100], "frames": 8}),
}


def _remux(path: Path, source: Path, change: Callable[[int, Any], None], **options: str) -> Path:
    """The packets of another file, each changed."""
    with av.open(str(source)) as given, av.open(str(path), "w", options=options) as output:
        stream: Any = given.streams.video[0]
        copy = output.add_stream_from_template(stream)
        for number, packet in enumerate(given.demux(stream)):
            if packet.dts is not None:
                change(number, packet)
                packet.stream = copy
                output.mux_one(packet)
    return path


def _joined(path: Path, **arguments: Any) -> Path:
    """Two files one after the other: the clock starts again."""
    parts = [
        make_video(path.with_name(f"{number}_{path.name}"), first=40 * number, **arguments)
        for number in range(2)
    ]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def _joined_ts(path: Path) -> Path:
    return _joined(path, fps=25, options=B)


def _joined_mpg(path: Path) -> Path:
    return _joined(path, fps=25, codec="mpeg2video", options=B)


def _joined_sizes(path: Path) -> Path:
    """The picture becomes larger in the middle, with other parameter sets."""
    one = make_video(path.with_name("one.h264"), options=B)
    two = make_video(path.with_name("two.h264"), height=112, width=160, first=40, options=B)
    path.write_bytes(one.read_bytes() + two.read_bytes())
    return path


def _decoding_times(path: Path) -> Path:
    """Times of decoding in the place of those of showing."""

    def change(number: int, packet: Any) -> None:
        del number
        packet.pts = packet.dts

    return _remux(path, make_video(path.with_name("given.mp4"), options=B), change)


def _leap(path: Path) -> Path:
    def change(number: int, packet: Any) -> None:
        if number >= 20:
            packet.pts += 10**9
            packet.dts += 10**9

    source = make_video(path.with_name("given.mp4"), options={"bf": "0"})
    return _remux(path, source, change)


def _patched(
    path: Path,
    box: bytes,
    change: Callable[[bytearray, int], None],
    options: dict[str, str] = B,
) -> Path:
    """A file with a box of MP4 changed; `change` gets the data and where its payload begins."""
    data = bytearray(make_video(path.with_name("given.mp4"), options=options).read_bytes())
    change(data, data.index(box) + 4)
    path.write_bytes(bytes(data))
    return path


def _no_distances(path: Path) -> Path:
    """All frames at one time."""

    def change(data: bytearray, at: int) -> None:
        for entry in range(int.from_bytes(data[at + 4 : at + 8], "big")):
            data[at + 12 + 8 * entry : at + 16 + 8 * entry] = bytes(4)

    return _patched(path, b"stts", change, {"bf": "0"})


def _matrix(*values: int) -> Callable[[Path], Path]:
    """A display matrix: a, b, c, d of the track's header."""

    def make(path: Path) -> Path:
        a, b, c, d = (value << 16 for value in values)

        def change(data: bytearray, at: int) -> None:
            start = at + 40  # in a header of version 0
            data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)

        return _patched(path, b"tkhd", change)

    return make


def _packed(path: Path) -> Path:
    """DivX packs a B-frame into the packet of the frame before it, then writes an empty one."""
    source = make_video(path.with_name("given.avi"), codec="mpeg4", options={"g": "12", "bf": "1"})
    with av.open(str(source)) as given:
        stream: Any = given.streams.video[0]
        header = bytes(stream.codec_context.extradata or b"")
        packets = [bytes(packet) for packet in given.demux(stream) if packet.size]
    tag = b"\0\0\1\xb2DivX503b1393p"
    made, number = [], 0
    while number < len(packets):
        ahead = number + 1 < len(packets) and _is_b(packets[number + 1])
        body = packets[number] + (packets[number + 1] if ahead else b"")
        if number == 0:
            start = body.index(b"\0\0\1\xb6")
            body = (body[:start] or header) + tag + body[start:]
        made += [body, b"\0\0\1\xb6\x50\0\0"] if ahead else [body]
        number += 2 if ahead else 1
    with av.open(str(path), "w") as output:
        copy: Any = output.add_stream("mpeg4", 10)
        copy.width, copy.height, copy.pix_fmt = 128, 96, "yuv420p"
        copy.codec_context.codec_tag = "DX50"
        output.start_encoding()
        for place, body in enumerate(made):
            packet = av.Packet(body)
            packet.stream, packet.pts, packet.dts = copy, place, place
            packet.time_base = Fraction(1, 10)
            packet.is_keyframe = len(body) > 7 and body[body.index(b"\0\0\1\xb6") + 4] >> 6 == 0
            output.mux(packet)
    return path


def _is_b(data: bytes) -> bool:
    return data[data.index(b"\0\0\1\xb6") + 4] >> 6 == 2


# Ending, and what makes the file.
BUILT: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "joined_ts": ("ts", _joined_ts),
    "joined_mpg": ("mpg", _joined_mpg),
    "joined_sizes": ("h264", _joined_sizes),
    "decoding_times": ("mp4", _decoding_times),
    "leap": ("mp4", _leap),
    "no_distances": ("mp4", _no_distances),
    "packed_avi": ("avi", _packed),
    "turned_90": ("mp4", _matrix(0, 1, -1, 0)),
    "turned_180": ("mp4", _matrix(-1, 0, 0, -1)),
    "turned_270": ("mp4", _matrix(0, -1, 1, 0)),
    "mirrored": ("mp4", _matrix(-1, 0, 0, 1)),
    "upside_down": ("mp4", _matrix(1, 0, 0, -1)),
    "transposed": ("mp4", _matrix(0, 1, 1, 0)),
    "transposed_back": ("mp4", _matrix(0, -1, -1, 0)),
}
MADE = [*ENCODED, *BUILT]

# What a player does with the pictures of those with a display matrix.
UPRIGHT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "turned_90": lambda picture: np.rot90(picture, -1),
    "turned_180": lambda picture: np.rot90(picture, 2),
    "turned_270": lambda picture: np.rot90(picture, 1),
    "mirrored": np.fliplr,
    "upside_down": np.flipud,
    "transposed": lambda picture: picture.transpose(1, 0, 2),
    "transposed_back": lambda picture: np.rot90(picture, 2).transpose(1, 0, 2),
}

# Ending, and arguments of ffmpeg behind its input.
FROM_FFMPEG: dict[str, tuple[str, str]] = {
    "xvid_packed": ("avi", "-c:v libxvid -bf 2 -q:v 3"),
    "xvid_packed_long_group": ("avi", "-c:v libxvid -bf 2 -q:v 3 -g 250"),
    "xvid_plain": ("avi", "-c:v libxvid -q:v 3"),
    "xvid_mp4": ("mp4", "-c:v libxvid -bf 2 -q:v 3"),
    "theora": ("ogv", "-c:v libtheora"),
    "av1": ("mp4", "-c:v libaom-av1 -cpu-used 8 -g 12"),
    "av1_svt": ("mkv", "-c:v libsvtav1 -preset 10 -g 12"),
    "dv": ("dv", "-c:v dvvideo -s 720x576 -r 25 -frames:v 8"),
    "dnxhd": ("mov", "-c:v dnxhd -s 1280x720 -r 25 -b:v 60M -pix_fmt yuv422p -frames:v 8"),
    "apng": ("apng", "-c:v apng"),
    "vob": ("vob", "-c:v mpeg2video -bf 2 -r 25"),
    "vcd": ("mpg", "-target pal-vcd"),
    "m2ts": ("m2ts", "-c:v libx264 -bf 2 -mpegts_m2ts_mode 1"),
    "asf_h264": ("asf", "-c:v libx264 -bf 2"),
    "fields": ("mp4", "-vf tinterlace=4 -c:v libx264 -x264opts tff=1 -flags +ilme+ildct"),
    "mbaff_ts": ("ts", "-c:v libx264 -x264opts interlaced=1:bframes=3"),
    "edit_list": ("mp4", "-c:v libx264 -bf 3 -ss 0.55 -avoid_negative_ts disabled"),
    "snow": ("avi", "-c:v snow -strict -2"),
    "qtrle": ("mov", "-c:v qtrle"),
    "svq1": ("mov", "-c:v svq1"),
    "rv10": ("rm", "-c:v rv10 -s 176x144 -r 25"),
    "speedhq": ("mov", "-c:v speedhq -pix_fmt yuv422p"),
    "mxf": ("mxf", "-c:v mpeg2video -bf 2 -r 25"),
    "gxf": ("gxf", "-c:v mpeg2video -r 25 -s 720x576 -frames:v 8"),
    "swf": ("swf", "-c:v flv -r 25"),
    "vp9_odd_profile1": ("webm", "-c:v libvpx-vp9 -pix_fmt yuv444p -deadline realtime"),
}


def make_variant(name: str, folder: Path) -> Path:
    """The file of that name in a folder of its own; made by the first call."""
    ending = (ENCODED.get(name) or BUILT.get(name) or FROM_FFMPEG[name])[0]
    place = folder / name
    path = place / f"{name}.{ending}"
    if path.exists():
        return path
    place.mkdir(exist_ok=True)
    if name in ENCODED:
        return make_video(path, **ENCODED[name][1])
    if name in BUILT:
        return BUILT[name][1](path)
    source = make_video(place / "source.mkv", codec="ffv1")
    command = ["ffmpeg", "-v", "error", "-y", "-i", str(source), "-an"]
    command += [*FROM_FFMPEG[name][1].split(), str(path)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise OSError(made.stderr.strip())
    return path


def decode_all(path: Path) -> list[np.ndarray]:
    """FFmpeg's own decoding from start to end, as the decoder gives it, not turned upright.

    Raises:
        FFmpegError: If FFmpeg refuses a packet after the first picture.
    """
    pictures: list[np.ndarray] = []
    size: tuple[int, int] | None = None
    with av.open(str(path)) as container:
        stream: Any = container.streams.best("video")
        stream.thread_count = 1
        for packet in container.demux(stream):
            try:
                frames = stream.decode(packet)
            except FFmpegError:
                if pictures:
                    raise
                continue
            for frame in frames:
                size = size or (frame.width, frame.height)
                pictures.append(frame.to_ndarray(format="rgb24", width=size[0], height=size[1]))
    return pictures
