"""Pictures within the page, as many as its size allows."""

import base64
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from rbft.runtime.html import plain

WIDEST = 1200  # pixels of an attention strip
QUALITY = 82  # of JPEG


@dataclass
class Budget:
    """How many bytes pictures may still take.

    Attributes:
        left: Bytes that are left.
        taken: Pictures that the page has.
        dropped: Pictures that it has no room for.
        lost: Texts on pictures that are not there or cannot be read.
    """

    left: int
    taken: int = 0
    dropped: int = 0
    lost: list[str] = field(default_factory=list)

    def image(self, data: bytes, kind: str, width: int, height: int, about: str) -> str:
        """The picture as HTML; empty where it has no room.

        Args:
            data: Encoded.
            kind: "jpeg" or "png".
            width: Pixels at which it is shown.
            height: Likewise.
            about: What it shows, for those who cannot see it.
        """
        said = plain(about)
        made = (
            f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}" '
            f'width="{width}" height="{height}" alt="{said}" title="{said}" decoding="async">'
        )
        if len(made) > self.left:
            self.dropped += 1
            return ""
        self.left -= len(made)
        self.taken += 1
        return made


def strip_image(file: Path) -> tuple[bytes, int, int]:
    """A strip of attention maps as a small JPEG.

    Args:
        file: PNG.

    Returns:
        The picture, width and height.

    Raises:
        OSError: If the file cannot be read, or is no picture.
    """
    from PIL import Image

    with Image.open(file) as opened:
        image = opened.convert("RGB")
    if image.width > WIDEST:
        height = max(1, round(image.height * WIDEST / image.width))
        image = image.resize((WIDEST, height), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, format="JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue(), image.width, image.height
