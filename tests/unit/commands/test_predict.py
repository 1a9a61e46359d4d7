from pathlib import Path

from rbft.clip import Clip
from rbft.commands.predict import _content
from rbft.runtime.digests import hash_file


def test_a_video_that_cannot_be_read_has_no_digest(tmp_path: Path) -> None:
    there = Clip("there", tmp_path / "there.mp4", None, "predict")
    assert _content(tmp_path / "cache", there) is None
    there.path.write_bytes(b"x")
    assert _content(tmp_path / "cache", there) == hash_file(there.path)
