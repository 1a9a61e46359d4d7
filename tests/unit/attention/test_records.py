from pathlib import Path

import pytest

from rbft.attention.records import Records, file_name

ABOUT = {"video": "1f", "label": "normal"}


def test_a_record_is_found_again(tmp_path: Path) -> None:
    records = Records.of(tmp_path, "ours", {"weights": "ab", "layers": (1, 2)})
    assert records.read("a/b.mp4", ABOUT) is None
    records.write("a/b.mp4", ABOUT, {"map": [[[1.0]]]})
    found = Records.of(tmp_path, "ours", {"weights": "ab", "layers": (1, 2)}).read("a/b.mp4", ABOUT)
    assert found is not None
    assert found["map"] == [[[1.0]]]
    assert found["id"] == "a/b.mp4"
    assert found["made_from"] == {"weights": "ab", "layers": [1, 2]}


@pytest.mark.parametrize(
    ("made_from", "about"),
    [({"weights": "cd"}, ABOUT), ({"weights": "ab"}, {**ABOUT, "video": "2f"})],
)
def test_a_record_of_something_else_is_not(tmp_path: Path, made_from: dict, about: dict) -> None:
    Records.of(tmp_path, "ours", {"weights": "ab"}).write("a", ABOUT, {})
    assert Records.of(tmp_path, "ours", made_from).read("a", about) is None
    assert Records.of(tmp_path, "ours", {"weights": "ab"}).read("a", ABOUT) is not None


def test_a_record_that_was_put_there_by_hand_is_not(tmp_path: Path) -> None:
    records = Records.of(tmp_path, "ours", {"weights": "ab"})
    records.write("a", ABOUT, {})
    (file,) = records.folder.iterdir()
    file.write_text(file.read_text(encoding="utf-8").replace('"ab"', '"cd"'), encoding="utf-8")
    assert records.read("a", ABOUT) is None


def test_ids_that_are_no_file_names_have_names_of_their_own() -> None:
    assert file_name("target-test-0001") == "target-test-0001"
    names = [file_name(one) for one in ("a/b", "a_b", "a b", "../a", "é", "\udcff", "x" * 300, "")]
    assert len({*names}) == len(names)
    for name in names:
        assert name
        assert "/" not in name
        assert len(name) <= 90
