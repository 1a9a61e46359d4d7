import json
from pathlib import Path

import pytest

from rbft.runtime.jsonl import JsonLines, append_lines, complete_lines, json_line


def test_a_line_escapes_only_what_must_be() -> None:
    record = {"id": "ü\u00a0\udcff", "text": 'a\nb "c"\u2028d\u2029e\u0085f', "n": 1}
    line = json_line(record)
    assert json.loads(line) == record
    assert len(line.splitlines()) == 1
    assert line == (
        '{"id": "ü\u00a0\\udcff", "text": "a\\nb \\"c\\"\\u2028d\\u2029e\\u0085f", "n": 1}\n'
    )


def test_a_line_that_was_cut_off_is_taken_off_before_others_follow(tmp_path: Path) -> None:
    file = tmp_path / "deep/a.jsonl"
    size = append_lines(file, [{"n": 1}, {"n": 2}])
    assert size == file.stat().st_size
    with file.open("ab") as stream:
        stream.write(b'{"n": 3, "te')
    assert [number for number, _ in complete_lines(file.read_bytes())] == [1, 2]
    assert append_lines(file, [{"n": 4}]) == file.stat().st_size
    assert [json.loads(line)["n"] for _, line in complete_lines(file.read_bytes())] == [1, 2, 4]


@pytest.mark.parametrize("torn", [b"", b'{"n"'])
def test_a_file_without_a_whole_line(tmp_path: Path, torn: bytes) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(torn)
    assert list(complete_lines(torn)) == []
    append_lines(file, [{"n": 1}])
    assert file.read_bytes() == b'{"n": 1}\n'


def test_parts_are_joined_and_gone(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "a[1].jsonl")
    assert lines.files() == []
    (tmp_path / "a1.jsonl.part0").touch()  # of another file, whose name the brackets would match
    (tmp_path / "a[1].jsonl.part0.csv.part").touch()
    for rank in (1, 0):
        append_lines(lines.part(rank), [{"rank": rank}])
    (tmp_path / "a[1].jsonl.part0.csv.part").unlink()
    assert lines.files() == lines.parts() == [lines.part(0), lines.part(1)]
    lines.join([{"rank": 0}, {"rank": 1}])
    assert lines.files() == [lines.path]
    assert lines.path.read_text() == '{"rank": 0}\n{"rank": 1}\n'
    assert lines.sidecar == tmp_path / "a[1].provenance.json"
