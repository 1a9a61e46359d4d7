from pathlib import Path

from rbft.clip import Clip
from rbft.commands.predict import _content, _draw
from rbft.runtime.digests import hash_file


def test_a_video_that_cannot_be_read_has_no_digest(tmp_path: Path) -> None:
    there = Clip("there", tmp_path / "there.mp4", None, "predict")
    assert _content(tmp_path / "cache", there) is None
    there.path.write_bytes(b"x")
    assert _content(tmp_path / "cache", there) == hash_file(there.path)


def test_a_picture_for_each_file(tmp_path: Path) -> None:
    """Also where two have one name; a file that cannot be read has none."""
    rows = [
        {"path": path, "start": 0.0, "end": 2.0, "label": "a", "probabilities": {"a": 1.0}}
        for path in ("x/film.mp4", "y/film.mp4", "z/film-2.mp4")
    ]
    rows.append({"path": "broken.mp4", "label": None, "error": "Video broken.mp4 is empty."})
    folder = _draw(rows, ["a"], tmp_path / "found.jsonl")
    assert folder == tmp_path / "found_timelines"
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["film-2-2.png", "film-2.png", "film.png"]
