from pathlib import Path

import pytest

from rbft.miniature.folders import main


def test_a_folder_per_split_and_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [f"--output={tmp_path / 'videos'}", "--train=5", "--test=3"]
    main(args)
    files = [path.relative_to(tmp_path / "videos") for path in tmp_path.rglob("*.mp4")]
    assert {path.parts[:2] for path in files} <= {
        (split, name) for split in ("train", "test") for name in ("normal", "abnormal")
    }
    assert sum(path.parts[0] == "train" for path in files) == 5
    assert len(files) == 8
    with pytest.raises(SystemExit, match="2"):
        main(args)
    assert "videos exists. Name a folder that does not, or remove it." in capsys.readouterr().err
