import pytest

from rbft.inference.result_table import result_table, title_of
from rbft.runs.folder import ZERO_SHOT


def score(place, accuracy, f1, *, unparsed=0, classes=None, macro=None):
    classes = classes or {"quiet": 68, "alarm": 128}
    metrics = {"accuracy": accuracy, "f1/macro": macro or sum(f1) / len(f1)}
    metrics |= {f"f1/{name}": value for name, value in zip(classes, f1, strict=True)}
    return title_of(place), {
        "classes": classes,
        "metrics": metrics,
        "n_unparsed": unparsed,
        "n_scored": sum(classes.values()),
    }


def test_every_step_beside_the_majority_class():
    scored = [
        score(ZERO_SHOT, 0.5, [0.25, 0.625], unparsed=7),
        score("rationale", 0.6531, [0.5, 0.7]),
        score("label", 1.0, [1.0, 1.0]),
    ]
    # Always "alarm": 128 / 196 right; its F1 is 2 * 128 / (196 + 128).
    assert result_table(scored).splitlines() == [
        "-" * 83,
        "                            accuracy  F1 quiet  F1 alarm  F1 macro  unparsed  clips",
        "-" * 83,
        "majority class                 65.31      0.00     79.01     39.51         0    196",
        "backbone, zero-shot            50.00     25.00     62.50     43.75         7    196",
        "after Stage I (rationales)     65.31     50.00     70.00     60.00         0    196",
        "after Stage II (labels)       100.00    100.00    100.00    100.00         0    196",
        "-" * 83,
    ]


def test_what_has_learnt_label_conditioned_rationales_is_marked():
    zero, (title, after) = score(ZERO_SHOT, 0.5, [0.5, 0.5]), score("label", 0.5, [0.5, 0.5])
    lines = result_table([zero, (title, {**after, "label_conditioned": 12})]).splitlines()
    assert [line.split("  ")[0] for line in lines[3:6]] == [
        "majority class",
        "backbone, zero-shot",
        "after Stage II (labels) *",
    ]
    assert lines[7:] == [
        "* after Stage II (labels): 12 rationales are label-conditioned: their writer was told the "
        "class, which the paper's never is. Results do not compare with the paper's."
    ]


def test_titles():
    assert title_of("class_rationale") == "after P+C+R (Table 3)"
    assert title_of("my_weights-1234abcd") == "my_weights-1234abcd"


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # One class leads a tie: F1 2 * 2 / (4 + 2), the others have none.
        ({"a": 2, "b": 2}, ["50.00", "66.67", "0.00", "33.33", "0", "4"]),
        ({"a": 1, "b": 3}, ["75.00", "0.00", "85.71", "42.86", "0", "4"]),
        # No clip of a class, no F1 of it.
        ({"a": 0, "b": 4}, ["100.00", "-", "100.00", "100.00", "0", "4"]),
    ],
)
def test_the_majority_class(counts, expected):
    scored = [score("label", 0.5, [0.5, 0.5], classes=counts)]
    majority = result_table(scored).splitlines()[3]
    assert majority.removeprefix("majority class").split() == expected


def test_a_class_without_clips_has_no_f1():
    scored = [score("label", 0.5, [0.5, None], macro=0.5, classes={"a": 4, "b": 0})]
    assert result_table(scored).splitlines()[4].split()[-6:] == [
        *("50.00", "50.00", "-", "50.00", "0", "4")
    ]


def test_nothing_scored():
    assert result_table([]) == "No results yet."
