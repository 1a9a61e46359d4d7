import pytest

from rbft.annotations.entries import Entry, check_once, count_votes, join_labels, segment_id

CLASSES = ("cat", "dog")


def vote(line, label, **values):
    return Entry(f"line {line}", "x", "x.mp4", label, **{"split": "train", **values})


def test_the_majority_is_the_label():
    rows = [vote(1, 0, reference="A cat."), vote(2, 1, reference="A dog."), vote(3, 1), vote(4, 0)]
    rows.append(vote(5, 1))
    ids, entries, note = count_votes(["x", "x", "y", "y", "x"], [*rows[:3], vote(4, 1), rows[4]],
                                     CLASSES)  # fmt: skip
    assert ids == ["x", "y"]
    assert [entry.label for entry in entries] == [1, 1]
    assert entries[0] == vote(1, 1, reference="A dog.", votes=(1.0, 2.0))
    assert entries[1].votes == (0.0, 2.0)
    assert note == "5 votes on 2 videos, 1 of which are not unanimous"


def test_ties_are_refused_by_name():
    rows = [vote(1, 0), vote(2, 1), vote(3, 0), vote(4, 0)]
    with pytest.raises(ValueError, match="no majority") as error:
        count_votes(["x", "x", "y", "y"], rows, CLASSES)
    assert str(error.value) == (
        "1 of 2 videos have no majority among their votes: 'x': 1 cat, 1 dog (line 1). Decide them "
        "in the table, or take their rows out."
    )
    many = [vote(n, n % 2) for n in range(10)]
    with pytest.raises(ValueError, match=r"^5 of 5 videos .* \(line 4\); \.\.\.\. Decide"):
        count_votes([str(n // 2) for n in range(10)], many, CLASSES)


def test_ties_where_they_may_be():
    rows = [vote(1, 1), vote(2, 0), vote(3, 1)]
    ids, entries, note = count_votes(["x", "x", "y"], rows, CLASSES, ties=True)
    assert ids == ["x", "y"]
    assert [(entry.label, entry.votes) for entry in entries] == [(0, (1, 1)), (1, (0, 1))]
    assert note == (
        "3 votes on 2 videos, 1 of which are not unanimous; 1 are tied (first: 'x': 1 cat, 1 dog "
        "(line 1)), and scored by the first of the tied classes on the card"
    )


@pytest.mark.parametrize(
    ("what", "value"), [("split", "test"), ("path", "y.mp4"), ("start", 1.0), ("end", 2.0)]
)
def test_votes_on_one_video_must_agree_in_the_rest(what, value):
    other = Entry(**{**vote(2, 0).__dict__, what: value})
    with pytest.raises(ValueError, match=rf"^line 2: {what} of 'x' is .* in line 1; votes on one"):
        count_votes(["x", "x"], [vote(1, 0), other], CLASSES)


def test_ids_of_segments():
    assert segment_id("a", vote(1, 0)) == "a"
    assert segment_id("a", vote(1, 0, start=0.0, end=12.5)) == "a_0_12.5"
    assert segment_id("a", vote(1, 0, start=3.25)) == "a_3.25_end"
    assert segment_id("a", vote(1, 0, end=12345.678)) == "a_0_12345.678"


def test_several_rows_say_what_they_can_be():
    rows = [vote(1, 0), vote(2, 0)]
    check_once(["a", "b"], ["a", "b"], rows)
    with pytest.raises(ValueError, match="stands twice") as error:
        check_once(["a", "a"], ["a", "a"], rows)
    assert str(error.value) == (
        "line 2: id 'a' stands twice (first: line 1). Remove one of the two. Or say what several "
        "rows of one video are: data.repeats segments (clips of their own, by start and end), "
        "votes (of several annotators) or labels (of a clip with several classes)."
    )


def test_the_classes_of_all_rows_of_a_clip():
    rows = [
        vote(1, None, labels=(1,), text="A dog."),
        vote(2, None, labels=()),
        vote(3, None, labels=(0, 1), text="Both."),
        vote(4, None, labels=()),
    ]
    places, made, said = join_labels(["x", "y", "x", "y"], rows)
    assert places == [0, 1]
    assert made == [vote(1, None, labels=(0, 1), text="A dog."), vote(2, None, labels=())]
    assert said == "4 rows with the classes of 2 clips"


@pytest.mark.parametrize(("what", "value"), [("split", "test"), ("path", "y.mp4")])
def test_rows_about_one_clip_must_agree_in_the_rest(what, value):
    other = Entry(**{**vote(2, None).__dict__, what: value})
    with pytest.raises(ValueError, match="must agree") as error:
        join_labels(["x", "x"], [vote(1, None), other])
    assert str(error.value) == (
        "line 2: 'x' has another file or split than in line 1; rows about one clip must agree in "
        "that."
    )
