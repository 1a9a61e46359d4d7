"""Clips that are images: the frames of the video that they were taken from, by its rules."""

import os
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from rbft.clip import Images
from rbft.runtime.digests import hash_file
from rbft.video.frame_cache import FrameCache, clip_key
from rbft.video.frame_settings import FrameSettings
from rbft.video.images import images_digest, images_key, list_images, timed_digest
from rbft.video.listings import probe
from rbft.video.sampling import VideoError, decode_video
from tests.videos import make_video, numbers, picture

SETTINGS = FrameSettings(fps=2.0, min_pixels=28 * 28, max_pixels=60 * 84)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without loss, 37 frames, 10 a second."""
    path = tmp_path_factory.mktemp("video") / "a.mkv"
    return make_video(path, 37, codec="ffv1", pixels="bgr0", options={"g": "5"})


@pytest.fixture(scope="module")
def files(video: Path) -> tuple[Path, ...]:
    """Its frames as PNG."""
    found = []
    with av.open(str(video)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            path = video.parent / f"frame {number}.png"
            Image.fromarray(frame.to_ndarray(format="rgb24")).save(path)
            found.append(path)
    return tuple(found)


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        replace(SETTINGS, num_frames=6),
        replace(SETTINGS, max_frames=4),
        replace(SETTINGS, min_frames=20),
        replace(SETTINGS, sampling="time"),
        replace(SETTINGS, max_pixels=150_000),
    ],
)
@pytest.mark.parametrize(("start", "end"), [(None, None), (0.5, 2.0), (1.0, -1.0)])
def test_images_are_sampled_as_their_video(
    video: Path,
    files: tuple[Path, ...],
    settings: FrameSettings,
    start: float | None,
    end: float | None,
) -> None:
    expected = decode_video(video, settings, start=start, end=end)
    by_fps = Images(video.parent, files, 10.0)
    by_times = Images.timed(video.parent, files, [7 + n / 10 for n in range(37)])
    assert by_times.seconds is None
    for images in (by_fps, by_times):
        found = decode_video(images, settings, start=start, end=end)
        assert torch.equal(found.frames, expected.frames)
        assert found.indices == expected.indices
        assert found.total_frames == expected.total_frames
        assert found.fps == pytest.approx(expected.fps, rel=1e-9)
        assert found.pair_times.starts == pytest.approx(expected.pair_times.starts)
        assert found.pair_times.middles == pytest.approx(expected.pair_times.middles)


def test_uneven_images_are_sampled_by_their_times(files: tuple[Path, ...]) -> None:
    """As the frames of a video with the same time stamps."""
    times = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 4.0]
    images = Images.timed(files[0], files[:10], times)
    assert images.fps == pytest.approx(9 / 4.0)
    found = decode_video(images, replace(SETTINGS, num_frames=6))
    # At 0, 0.8, 1.6, ... 4 seconds; the ninth is shown for long.
    assert found.indices == [0, 8, 8, 8, 8, 9]
    assert found.times == pytest.approx([0, 0.8, 1.6, 2.4, 3.2, 4.0])
    assert numbers(found.frames) == found.indices
    video = make_video(
        files[0].parent / "uneven.mkv",
        10,
        codec="ffv1",
        pixels="bgr0",
        times=[round(1000 * one) for one in times],
    )
    expected = decode_video(video, replace(SETTINGS, num_frames=6, sampling="time"))
    assert torch.equal(found.frames, expected.frames)
    assert (found.indices, found.total_frames) == (expected.indices, expected.total_frames)
    assert found.fps == pytest.approx(expected.fps)
    assert decode_video(images, SETTINGS, start=3.0).indices == [9, 9]


def test_times_and_positions_are_those_of_the_images(files: tuple[Path, ...]) -> None:
    seconds = [0.0, 0.4, 3.0, 3.2, 7.0, 7.1, 9.0, 12.0]
    images = Images.timed(files[0], files[:8], [100 + one for one in seconds])
    found = decode_video(images, replace(SETTINGS, fps=1.0))
    assert len(found.indices) == 8  # at 0, 1.7, 3.4, ... seconds
    first = {index: place for place, index in reversed([*enumerate(found.indices)])}
    assert found.times is not None
    begin = seconds[found.indices[0]]
    for index, place in first.items():
        assert found.times[place] == pytest.approx(seconds[index] - begin)
    assert found.times == sorted(found.times)
    held = [place for place in range(8) if place not in first.values()]
    for place in held:
        assert found.times[place] == pytest.approx(place * 12 / 7 - begin)
    middles = found.pair_times.middles
    assert middles == pytest.approx([sum(found.times[n : n + 2]) / 2 for n in (0, 2, 4, 6)])
    assert found.pair_times.step is None
    starts = found.pair_times.starts
    assert starts[1] / starts[3] == pytest.approx(found.times[2] / found.times[6])
    assert found.shown["times"] == found.times
    # Of three of them that are even, nothing need be said.
    even = Images.timed(files[0], files[:4], [0.0, 1.0, 2.0, 9.0])
    assert decode_video(even, replace(SETTINGS, fps=1.0), end=2.5).times is None


def test_only_chosen_images_are_decoded(files: tuple[Path, ...], tmp_path: Path) -> None:
    copies = []
    for number in range(30):
        copies.append(tmp_path / f"{number}.png")
        copies[-1].write_bytes(files[number].read_bytes() if number in (0, 29) else b"no image")
    images = Images(tmp_path, tuple(copies), 10.0)
    found = decode_video(images, replace(SETTINGS, num_frames=2))
    assert found.indices == [0, 29]
    with pytest.raises(VideoError, match=r"1\.png is no image that can be read \(JPEG, PNG, WebP"):
        probe(images)
    with pytest.raises(VideoError, match=r"10\.png is no image that can be read"):
        decode_video(images, replace(SETTINGS, num_frames=4))


def test_a_still_is_shown_twice_at_the_beginning(files: tuple[Path, ...]) -> None:
    found = decode_video(files[5], SETTINGS)
    assert (found.indices, found.total_frames) == ([0, 0], 1)
    assert numbers(found.frames) == [5, 5]
    # As a video of one frame.
    one = make_video(files[0].parent / "one.mkv", 1, codec="ffv1", pixels="bgr0", first=5)
    expected = decode_video(one, SETTINGS)
    assert torch.equal(found.frames, expected.frames)
    assert found.indices == expected.indices
    assert numbers(decode_video(files[5], replace(SETTINGS, sampling="time")).frames) == [5, 5]
    assert decode_video(files[5], replace(SETTINGS, num_frames=4)).indices == [0, 0, 0, 0]
    assert probe(files[5]).frames == 1
    with pytest.raises(VideoError, match=r"has no such part: no frame lies between start 2\.0 s"):
        decode_video(files[5], SETTINGS, start=2.0)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def shown(path: Path) -> np.ndarray:
    """The picture as the model gets it, not resized."""
    listing = list_images(Images(path, (path,), 1.0))
    size = listing.info.height * listing.info.width
    settings = FrameSettings(fps=1.0, min_pixels=size, max_pixels=size)
    return decode_video(path, settings).frames[0].permute(1, 2, 0).numpy()


def test_what_images_look_like(tmp_path: Path) -> None:
    pixels = picture(0b1011_0110_1100_0101, 56, 84)
    image = Image.fromarray(pixels)
    for name in ("a.png", "a.bmp", "a.JPEG", "a.webp"):
        options = {"lossless": True} if "webp" in name else {}
        found = shown(saved(tmp_path / name, image, **options))
        if name == "a.JPEG":
            assert np.abs(found.astype(int) - np.asarray(Image.open(tmp_path / name))).max() == 0
        else:
            assert np.array_equal(found, pixels)
    # Grey of 8, 1 and 16 bits; palettes.
    grey = np.linspace(0, 255, 56 * 84).reshape(56, 84).astype(np.uint8)
    for image_of in (
        Image.fromarray(grey),
        Image.fromarray(grey.astype(np.uint16) * 257),
        Image.fromarray(grey).convert("P"),
    ):
        found = shown(saved(tmp_path / "grey.png", image_of))
        assert np.array_equal(found, np.repeat(grey[:, :, None], 3, 2)), image_of.mode
    # What is transparent is white.
    alpha = Image.fromarray(np.dstack([pixels, np.full((56, 84), 255, np.uint8)]))
    alpha.putpixel((3, 5), (200, 0, 0, 0))
    alpha.putpixel((4, 5), (200, 0, 0, 128))
    found = shown(saved(tmp_path / "alpha.png", alpha))
    assert found[5, 3].tolist() == [255, 255, 255]
    assert np.abs(found[5, 4].astype(int) - [227, 127, 127]).max() <= 1
    assert np.array_equal(found[6:], pixels[6:])
    palette = Image.fromarray(grey).convert("P")
    saved(tmp_path / "palette.png", palette, transparency=0)
    dark = np.asarray(palette) == 0
    assert (shown(tmp_path / "palette.png")[dark] == 255).all()
    # A phone held upright.
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = shown(saved(tmp_path / "phone.png", image, exif=exif))
    assert np.array_equal(turned, np.rot90(pixels, -1))


def test_images_that_cannot_be_used(tmp_path: Path, files: tuple[Path, ...]) -> None:
    whole = files[0].read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("<html>")
    frames = [Image.new("RGB", (56, 56), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "film.webp", save_all=True, append_images=frames[1:])
    saved(tmp_path / "long.png", Image.new("RGB", (2010, 10)))
    for name, reason in (
        ("cut.png", "is damaged: "),
        ("empty.png", r"is empty \(0 bytes\)\.$"),
        ("text.jpg", r"is no image that can be read \(JPEG, PNG, WebP, BMP\)\.$"),
        ("film.webp", r"holds 2 pictures, an animation\. Convert it to a video \(mp4\), or save t"),
        ("long.png", r"is 2010 x 10 pixels; one side may be at most 200 times the other\.$"),
        ("gone.png", r"does not exist\.$"),
    ):
        with pytest.raises(VideoError, match=rf"^Video {tmp_path / name} {reason}"):
            decode_video(tmp_path / name, SETTINGS)
        with pytest.raises(VideoError, match=reason):
            probe(tmp_path / name)
    other = saved(tmp_path / "other.png", Image.new("RGB", (84, 56)))
    images = Images(tmp_path, (files[0], files[1], other), 1.0)
    said = (
        r"other\.png is 84 x 56 pixels, but the first image of the clip 128 x 96\. Images of one "
        r"clip must have one size\.$"
    )
    with pytest.raises(VideoError, match=said):
        probe(images)
    with pytest.raises(VideoError, match=said):
        decode_video(images, SETTINGS)


def test_the_key_changes_with_any_image(files: tuple[Path, ...], tmp_path: Path) -> None:
    copies = tuple(tmp_path / f"{n}.png" for n in range(4))
    for copy, file in zip(copies, files, strict=False):
        copy.write_bytes(file.read_bytes())
    images = Images(tmp_path, copies, 2.0)
    first, digest = clip_key(images, SETTINGS), images_digest(images)
    assert clip_key(images, SETTINGS) == first
    others = [
        replace(images, fps=3.0),
        Images.timed(tmp_path, copies, [0.0, 1.0, 5.0, 6.0]),
        replace(images, files=copies[:3]),
        replace(images, files=copies[::-1]),
    ]
    assert len({first, *(clip_key(one, SETTINGS) for one in others)}) == 5
    # The digest is of the content alone, the other one of the times as well.
    assert [images_digest(one) == digest for one in others] == [True, True, False, False]
    assert len({timed_digest(digest, one) for one in (images, *others[:2])}) == 3
    assert timed_digest(digest, None) == digest
    cache = FrameCache(tmp_path / "cache", 10**8)
    before = cache.get_or_decode(images, SETTINGS)
    assert torch.equal(cache.get_or_decode(images, SETTINGS).frames, before.frames)
    status = copies[2].stat()
    content = bytearray(files[30].read_bytes())
    copies[2].write_bytes(content.ljust(status.st_size, b"\0")[: max(status.st_size, len(content))])
    os.utime(copies[2], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert clip_key(images, SETTINGS) != first
    assert images_digest(images) != digest
    assert images_key(images) != images_key(replace(images, files=copies[:3]))
    assert numbers(cache.get_or_decode(images, SETTINGS).frames) == [0, 1, 30, 3]
    copies[1].unlink()
    with pytest.raises(VideoError, match=r"1\.png does not exist"):
        cache.get_or_decode(images, SETTINGS)


def test_a_still_is_known_by_its_file(files: tuple[Path, ...], tmp_path: Path) -> None:
    images = Images(files[3], (files[3],), 1.0)
    assert images_digest(images) == hash_file(files[3]) == images_digest(images, tmp_path)
    assert timed_digest("x", images) == "x"
    assert clip_key(files[3], SETTINGS) != clip_key(files[4], SETTINGS)


def test_times_that_cannot_be(files: tuple[Path, ...]) -> None:
    with pytest.raises(ValueError, match=r"^2 times for 3 images; each image needs one\.$"):
        Images.timed(files[0], files[:3], [0.0, 1.0])
    with pytest.raises(ValueError, match=r"^its times must ascend, but that of image 3 is 1 s, b"):
        Images.timed(files[0], files[:3], [0.0, 1.0, 1.0])
    assert Images.timed(files[0], files[:1], [3.0]) == Images(files[0], files[:1], 1.0)
    assert Images.timed(files[0], files[:3], [3.0, 3.033, 3.067]).seconds is None  # 30 a second
    assert Images.timed(files[0], files[:3], [3.0, 3.03, 3.07]).seconds == pytest.approx(
        (0, 0.03, 0.07)
    )


def test_lists_that_begin_alike_have_names_of_their_own(files: tuple[Path, ...]) -> None:
    folder = Images(files[0].parent, files, 1.0)
    assert folder.name == str(files[0].parent)
    lists = [Images(files[0], files[:count], 1.0) for count in (1, 2, 3)]
    assert lists[0].name == str(files[0])
    assert lists[1].name.startswith(f"{files[0]} and 1 more (")
    assert len({one.name for one in lists}) == 3
