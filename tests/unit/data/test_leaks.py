import csv
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbft.data.leaks import SharedVideos, find_shared, overlaps, seconds
from rbft.data.manifest import ManifestRow


def row(name: str, split: str = "train", content: str | None = "a", **values: Any) -> ManifestRow:
    facts = {"duration": 60.0, **values}
    status = facts.pop("status", "ok")
    return ManifestRow(name, split, 0, f"{name}.mp4", None, status, digest=content, **facts)


def ids(pairs: tuple[tuple[ManifestRow, ManifestRow], ...]) -> list[tuple[str, str]]:
    return [(one.id, other.id) for one, other in pairs]


def test_a_copy_under_another_id_is_the_same_video() -> None:
    found = find_shared(
        [row("one"), row("two", content="b"), row("copy", "test"), row("new", "test", "c")]
    )
    assert ids(found.leaks) == [("one", "copy")]
    assert (found.held_out, found.repeats, found.apart) == ((), (), 0)


def test_each_pair_of_splits_has_its_own_list() -> None:
    found = find_shared(
        [
            row("train"), row("train2"),
            row("val", "val"),
            row("test", "test"), row("test2", "test"),
            row("private", "private"), row("excluded", "excluded"),
        ]
    )  # fmt: skip
    assert [other for _, other in ids(found.leaks)] == ["test", "test2"]
    assert [other for _, other in ids(found.held_out)] == ["val"]
    assert ids(found.repeats) == [("train", "train2"), ("test", "test2")]


def test_a_validation_clip_leaks_too() -> None:
    assert ids(find_shared([row("one", "val"), row("two", "test")]).leaks) == [("one", "two")]


def test_clips_that_are_not_used_do_not_leak() -> None:
    rows = [row("one", status="too_short"), row("gone", content=None), row("two", "test")]
    rows += [row("gone too", "test", None)]
    assert find_shared(rows) == SharedVideos((), (), (), 0)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((None, None), (None, None), True),
        ((None, None), (10.0, 20.0), True),
        ((0.0, 10.0), (9.0, 20.0), True),
        ((0.0, 10.0), (10.0, 20.0), False),
        ((0.0, 0.1 + 0.2), (0.3, 20.0), False),  # 0.1 + 0.2 is a little more than 0.3
        ((10.0, 20.0), (0.0, 10.0), False),
        ((0.0, 30.0), (10.0, 20.0), True),
        ((10.0, 20.0), (0.0, 30.0), True),
        ((None, 10.0), (10.0, None), False),
        ((None, 10.5), (10.0, None), True),
        # The file lasts 60 s.
        ((None, -30.0), (30.0, None), False),
        ((None, -29.0), (30.0, None), True),
        ((50.0, 99.0), (59.0, None), True),
        ((50.0, 99.0), (60.0, 70.0), False),
    ],
)
def test_seconds_of_one_file(one: tuple[Any, Any], other: tuple[Any, Any], same: bool) -> None:
    clips = [row("one", start=one[0], end=one[1]), row("two", "test", start=other[0], end=other[1])]
    found = find_shared(clips)
    assert bool(found.leaks) == same
    assert found.apart == (not same)


def test_a_file_of_unknown_length() -> None:
    late = row("one", duration=None, start=500.0), row("two", "test", duration=None, start=600.0)
    assert ids(find_shared(late).leaks) == [("one", "two")]


spans = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 15)), max_size=12)


@given(ones=spans, others=spans)
def test_every_overlap_is_found(ones: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    """Against all pairs."""
    made = [
        [
            row(f"{split}{n}", split, start=float(a), end=float(a + b))
            for n, (a, b) in enumerate(some)
        ]
        for split, some in (("train", ones), ("test", others))
    ]

    def meet(one: ManifestRow, other: ManifestRow) -> bool:
        (start, end), (start2, end2) = seconds(one), seconds(other)
        return max(start, start2) < min(end, end2)

    found = overlaps(*made)
    assert all(meet(one, other) for one, other in found)
    assert [other for _, other in found] == [
        other for other in made[1] if any(meet(one, other) for one in made[0])
    ]
    repeats = find_shared(made[0]).repeats
    assert all(meet(one, other) for one, other in repeats)
    ordered = sorted(made[0], key=lambda clip: (clip.start, clip.end))
    expected = sum(
        any(meet(one, other) for one in ordered[:number]) for number, other in enumerate(ordered)
    )
    assert len(repeats) == expected


def test_a_short_clip_does_not_hide_a_long_one() -> None:
    clips = [row("long", end=30.0), row("short", start=1.0, end=2.0)]
    clips.append(row("test", "test", start=10.0, end=20.0))
    assert ids(find_shared(clips).leaks) == [("long", "test")]


def test_seconds_one_after_the_other() -> None:
    """In floating point, many of these end a little behind the beginning of the next."""
    rows = [
        row(str(n), ("train", "test")[n % 2], start=n / 10, end=n / 10 + 0.1, duration=999.0)
        for n in range(1000)
    ]
    assert sum(seconds(one)[1] + 1e-3 > seconds(other)[0] for one, other in pairwise(rows)) > 100
    found = find_shared(rows)
    assert (found.leaks, found.repeats, found.apart) == ((), (), 500)


def test_messages() -> None:
    nothing = SharedVideos((), (), (), 0)
    assert nothing.leak_message("Yard", 9) == ""
    assert nothing.notes("Yard") == []
    one, other = row("one", start=1.5, end=20.0), row("two", "test", start=2.0)
    assert SharedVideos(((one, other),), (), (), 0).leak_message("Yard", 9) == (
        "1 of 9 test clips of Yard show what a training or validation clip shows, so they test "
        "what was learnt by heart (test two (two.mp4 from 2 s to the end) = train one (one.mp4 "
        "from 1.5 s to 20 s))."
    )
    many = tuple((row(f"a{n}"), row(f"b{n}", "test")) for n in range(4))
    assert (
        SharedVideos(many, (), (), 0)
        .leak_message("Yard", 9)
        .endswith(
            "(first: test b0 (b0.mp4) = train a0 (a0.mp4), test b1 (b1.mp4) = train a1 (a1.mp4), "
            "test b2 (b2.mp4) = train a2 (a2.mp4))."
        )
    )
    held_out, repeats = (row("a"), row("b", "val")), (row("c"), row("d"))
    assert SharedVideos((), (held_out,), (repeats,), 7).notes("Yard") == [
        "1 validation clips of Yard show what a training clip shows (val b (b.mp4) = train a "
        "(a.mp4)): the validation loss is too low.",
        "1 clips of Yard show what another clip of their split shows (train d (d.mp4) = train c "
        "(c.mp4)); each counts for itself.",
        "7 test clips of Yard are other seconds of a file that has training or validation clips "
        "too. They count as different clips.",
    ]


def test_all_pairs_as_a_table(tmp_path: Path) -> None:
    found = find_shared([row("caf\udce9"), row("b"), row("c", "val"), row("d,", "test")])
    file = tmp_path / "new" / "shared.csv"
    found.save(file)
    with file.open(encoding="utf-8", newline="") as stream:
        lines = list(csv.reader(stream))
    assert lines[0] == ["split", "id", "path", "same_split", "same_id", "same_path"]
    assert [line[:2] for line in lines[1:]] == [["test", "d,"], ["val", "c"], ["train", "b"]]
    assert lines[3][3:] == ["train", "caf\\udce9", "caf\\udce9.mp4"]
