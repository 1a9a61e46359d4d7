"""Frames of a clip, or what the vision tower made of them: decoded once, then read."""

from dataclasses import dataclass

from rbft.clip import Clip
from rbft.data.clip_files import ClipFiles
from rbft.masking.clip_mask import ClipMask
from rbft.masking.settings import Masks
from rbft.video.feature_cache import EncodedVideo, FeatureCache
from rbft.video.frame_cache import FrameCache, clip_key
from rbft.video.frame_settings import FrameSettings
from rbft.video.sampling import Video, VideoError


@dataclass(frozen=True)
class ClipMasks:
    """What is masked in clips, by the content of their files.

    Attributes:
        masks: The masks of a box file.
        files: The clips' files.
    """

    masks: Masks
    files: ClipFiles

    def of(self, clip: Clip) -> ClipMask | None:
        """The masks of a clip; None where its file cannot be read, which decoding will say."""
        try:
            return self.masks.of(clip.id, self.files.digest(clip))
        except OSError:
            return None


@dataclass(frozen=True)
class ClipReader:
    """Reads clips through the caches; all that a worker process of a loader needs to have.

    Attributes:
        frames: Which frames are taken, and how large.
        frame_cache: Where decoded frames are kept.
        feature_cache: Where the outputs of a frozen vision tower are kept.
        masks: What is masked in the clips; None masks nothing.
    """

    frames: FrameSettings
    frame_cache: FrameCache
    feature_cache: FeatureCache
    masks: ClipMasks | None = None

    def decode(self, clip: Clip) -> Video:
        """Frames of a clip.

        Raises:
            VideoError: If it cannot be decoded.
            ValueError: If the benchmark's videos have gone since they were looked for. Counted
                as broken files, they would be replaced, or scored as wrong answers.
        """
        mask = None if self.masks is None else self.masks.of(clip)
        try:
            return self.frame_cache.get_or_decode(
                clip.source, self.frames, start=clip.start, end=clip.end, mask=mask
            )
        except VideoError as error:
            if clip.split != "predict" and not clip.path.parent.is_dir():
                raise ValueError(
                    f"The folder {clip.path.parent} is gone, with the clip {clip.id} in it. Bring "
                    "it back (is a disk no longer mounted?); started again, the run goes on from "
                    "its last checkpoint."
                ) from error
            raise

    def load(self, clip: Clip, tower: str = "") -> tuple[Video | EncodedVideo, str]:
        """What the vision tower made of a clip where that is kept, else its frames.

        Args:
            clip: The clip.
            tower: Digest of the vision tower; empty where its outputs are not kept.

        Returns:
            Features or frames, and the key of the features; empty where none are kept.
        """
        if not tower:
            return self.decode(clip), ""
        try:
            mask = None if self.masks is None else self.masks.of(clip)
            facts = (tower,) if mask is None else (tower, {"mask": mask.key})
            key = clip_key(clip.source, self.frames, *facts, start=clip.start, end=clip.end)
        except (OSError, ValueError):
            return self.decode(clip), ""  # says what is wrong
        return self.feature_cache.get(key) or self.decode(clip), key
