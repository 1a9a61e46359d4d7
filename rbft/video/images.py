"""Clips that are images: a still, or a list of frames in files of their own.

Only the images that are shown are decoded. They are turned as their EXIF says; what is transparent
stands on white, as Qwen's own processing has it; grey and palettes become RGB.
"""

import hashlib
import json
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from rbft.clip import IMAGE_SUFFIXES, Images
from rbft.runtime.digests import LENGTH, file_digest, hash_file, identity, sample_digest
from rbft.video.packet_index import MAX_ASPECT_RATIO, FrameList, VideoError, VideoInfo

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
DAMAGES = (OSError, ValueError, SyntaxError, EOFError, struct.error, MemoryError)  # Pillow's
STILL_FPS = 1.0  # no frame of a still follows another


def still(path: Path) -> Images | None:
    """The one image that a path is by its ending; None where it is none."""
    return Images(path, (path,), STILL_FPS) if path.suffix.lower() in IMAGE_SUFFIXES else None


def list_images(images: Images, *, every: bool = False) -> FrameList:
    """The frames of a clip that is images; their size is that of the first.

    Args:
        images: The images.
        every: Look at all of them: that they are there, can be opened and have one size.

    Raises:
        VideoError: If one cannot be used.
    """
    width, height = _size(images.files[0])
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise VideoError.of(
            images.files[0],
            f"is {width} x {height} pixels; one side may be at most {MAX_ASPECT_RATIO} times the "
            "other.",
        )
    if every:
        _decode(images.files[0], (width, height))
        for file in images.files[1:]:
            _check_size(file, _size(file), (width, height))
    count = len(images.files)
    seconds = images.seconds or tuple(number / images.fps for number in range(count))
    duration = count / images.fps
    if images.seconds is not None and count > 1:
        duration = seconds[-1] * count / (count - 1)
    return FrameList(
        path=images.path,
        info=VideoInfo(count, images.fps, width, height, duration),
        seconds=array("d", seconds),
        packets=None,
        damaged=frozenset(),
        reader_independent=False,
        images=images,
    )


def read_images(
    listing: FrameList, wanted: list[int]
) -> Iterator[UInt8[ndarray, "height width 3"]]:
    """Pictures of frames, in ascending order; one that is shown several times is decoded once.

    Raises:
        VideoError: If one cannot be decoded, or has another size than the first.
    """
    assert listing.images is not None
    size = listing.info.width, listing.info.height
    last, picture = -1, None
    for frame in wanted:
        if picture is None or frame != last:
            last, picture = frame, _decode(listing.images.files[frame], size)
        yield picture


def images_key(images: Images) -> str:
    """What changes with the images, as far as the file system and samples of them tell.

    Raises:
        OSError: If one is not there or cannot be read.
    """
    files = [
        [str(file.resolve()), *identity(file.stat()), sample_digest(file)] for file in images.files
    ]
    return _digest([files, images.fps, images.seconds])


def images_digest(images: Images, cache_folder: Path | None = None) -> str:
    """Content digest of all images in their order, whatever their names and times.

    That of a single one is its file's, see `rbft.runtime.digests.hash_file`.

    Args:
        images: The images.
        cache_folder: See `file_digest`; None reads all files.

    Raises:
        OSError: If one cannot be read.
    """
    made = [
        hash_file(file) if cache_folder is None else file_digest(file, cache_folder)
        for file in images.files
    ]
    return made[0] if len(made) == 1 else _digest(made)


def timed_digest(digest: str, images: Images | None) -> str:
    """A content digest with the times of the images, where a clip is several.

    Args:
        digest: See `images_digest`; of a video, that of its file.
        images: The clip's images; None where it is a video.
    """
    if images is None or len(images.files) == 1:
        return digest
    return _digest([digest, images.fps, images.seconds])


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:LENGTH]


def _opened(path: Path) -> "Image":
    """An image whose header is read.

    Raises:
        VideoError: If there is none, or several.
    """
    from PIL import Image, UnidentifiedImageError

    empty = False
    try:
        empty = not path.stat().st_size
        found = Image.open(path, formats=FORMATS)
    except FileNotFoundError:
        raise VideoError.of(path, "does not exist.") from None
    except UnidentifiedImageError:
        known = "is no image that can be read (JPEG, PNG, WebP, BMP)."
        raise VideoError.of(path, "is empty (0 bytes)." if empty else known) from None
    except Image.DecompressionBombError as error:
        raise VideoError.of(path, f"is too large to be decoded: {error}") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise VideoError.of(path, f"cannot be read: {error}.") from error
    # MPO: a photo of two lenses, of which the first is shown.
    count = 1 if found.format == "MPO" else getattr(found, "n_frames", 1)
    if count > 1:
        found.close()
        raise VideoError.of(
            path,
            f"holds {count} pictures, an animation. Convert it to a video (mp4), or save the one "
            "that is meant.",
        )
    return found


def _damaged(path: Path, error: Exception) -> VideoError:
    return VideoError.of(path, f"is damaged: {str(error).rstrip('.')}.")


def _size(path: Path) -> tuple[int, int]:
    """Width and height of an image as it is shown.

    Raises:
        VideoError: See `_opened`.
    """
    with _opened(path) as image:
        width, height = image.size
        try:
            turned = _orientation(image) >= 5
        except DAMAGES as error:
            raise _damaged(path, error) from error
    return (height, width) if turned else (width, height)


def _orientation(image: "Image") -> int:
    """How EXIF says that an image is turned; from 5 on its sides change places."""
    from PIL import ExifTags

    found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return found if isinstance(found, int) else 1


def _check_size(path: Path, size: tuple[int, int], first: tuple[int, int]) -> None:
    if size != first:
        raise VideoError.of(
            path,
            f"is {size[0]} x {size[1]} pixels, but the first image of the clip {first[0]} x "
            f"{first[1]}. Images of one clip must have one size.",
        )


def _decode(path: Path, size: tuple[int, int]) -> UInt8[ndarray, "height width 3"]:
    """An image's pixels.

    Raises:
        VideoError: If it cannot be decoded, or has another size than the clip's first.
    """
    from PIL import ImageOps

    with _opened(path) as image:
        try:
            picture = np.array(_rgb(ImageOps.exif_transpose(image)))
        except DAMAGES as error:
            raise _damaged(path, error) from error
    _check_size(path, (picture.shape[1], picture.shape[0]), size)
    return picture


def _rgb(image: "Image") -> "Image":
    from PIL import Image

    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits of grey, of which Pillow would cut the upper ones off
        return Image.fromarray((np.array(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGB", image.size, "white")
        ground.paste(image, mask=image.getchannel("A"))
        return ground
    return image.convert("RGB")
