"""Any videos at all, for prediction with nothing but a weights folder."""

from rbft.clip import Clip
from rbft.data.base import VideoDataModule


class Unlabelled(VideoDataModule):
    """Videos without annotations, as `predict` and `demo` are given them.

    It has no clips of its own, so that nothing can be trained or scored on it.
    """

    def read(self) -> list[Clip]:
        """Refuses.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "Unlabelled has no clips of its own: it stands for the videos that predict and demo "
            "are given. Set data to a benchmark, such as VideoFolder."
        )
