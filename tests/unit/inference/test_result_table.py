import numpy as np
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


def counted(place, *confusion, classes=("quiet", "alarm")):
    """Results as they stand in files, from the confusion matrix; no answer is the last column."""
    matrix = np.array(confusion)
    right, size = np.diag(matrix), len(classes)
    f1 = 2 * right / (matrix.sum(axis=1) + matrix[:, :size].sum(axis=0))
    title, result = score(
        place,
        right.sum() / matrix.sum(),
        f1.tolist(),
        unparsed=int(matrix[:, -1].sum()),
        classes=dict(zip(classes, matrix.sum(axis=1).tolist(), strict=True)),
    )
    return title, {**result, "confusion": matrix.tolist()}


def test_every_step_beside_the_majority_class():
    scored = [
        counted(ZERO_SHOT, [40, 24, 4], [30, 95, 3]),
        counted("rationale", [50, 18, 0], [30, 98, 0]),
        counted("label", [60, 8, 0], [11, 117, 0]),
    ]
    # Always "alarm": 128 / 196 right; its F1 is 2 * 128 / (196 + 128).
    assert result_table(scored).splitlines() == [
        "-" * 80,
        "                      accuracy       F1 quiet       F1 alarm       F1 macro",
        "-" * 80,
        "majority class        65.3            0.0           79.0           39.5",
        "backbone, zero-shot   68.9 [62, 75]  58.0 [47, 67]  76.9 [71, 82]  67.4 [60, 74]",
        "Stage I (rationales)  75.5 [69, 81]  67.6 [58, 76]  80.3 [75, 86]  73.9 [67, 80]",
        "Stage II (labels)     90.3 [85, 94]  86.3 [80, 92]  92.5 [89, 96]  89.4 [85, 94]",
        "-" * 80,
        "196 clips. In brackets: 95 % interval.",
        "Coverage of backbone, zero-shot: 96.4 % (7 of 196 without a class).",
    ]


def test_intervals_are_shortened_and_left_out_until_the_table_fits():
    """Never wrapped: those of the classes go first, then that of the macro F1."""
    short = [counted("label", [68, 0, 0], [0, 128, 0], classes=("a", "b"))]
    assert result_table(short).splitlines()[4] == (
        "Stage II (labels)  100.0 [98.1, 100.0]  100.0  100.0  100.0 [100.0, 100.0]"
    )
    perfect = [counted("label", [68, 0, 0], [0, 128, 0], classes=("normal", "abnormal"))]
    assert result_table(perfect).splitlines() == [
        "-" * 76,
        "                   accuracy         F1 normal  F1 abnormal  F1 macro",
        "-" * 76,
        "majority class      65.3                  0.0         79.0   39.5",
        "Stage II (labels)  100.0 [98, 100]      100.0        100.0  100.0 [100, 100]",
        "-" * 76,
        "196 clips, coverage 100 %. In brackets: 95 % interval.",
    ]
    three = [
        counted(
            ZERO_SHOT, [50, 9, 2, 1], [3, 20, 4, 0], [1, 3, 9, 0],
            classes=("normal", "offensive", "hateful"),
        )
    ]  # fmt: skip
    (row,) = [line for line in result_table(three).splitlines() if line.startswith("backbone")]
    assert row.split()[2:] == ["77.5", "[68,", "84]", "86.2", "67.8", "64.3", "72.8"]
    names = tuple(f"class {number}" for number in range(12))  # wider than 80 in any case
    many = [counted("label", *np.eye(12, 13, dtype=int).tolist(), classes=names)]
    assert "Stage II (labels)  100.0 [76, 100]       100.0 " in result_table(many)


def test_stored_intervals_are_shown():
    ends = {"accuracy": {"low": 0.1, "high": 0.2}, "f1/macro": {"low": None, "high": None}}
    title, found = counted("label", [60, 8, 0], [11, 117, 0])
    row = result_table([(title, {**found, "intervals": ends})]).splitlines()[4]
    assert row == "Stage II (labels)  90.3 [10, 20]      86.3      92.5      89.4"


def test_rows_about_fewer_clips_say_how_many():
    every, answered = counted("x", [60, 8, 1], [11, 117, 3]), counted("y", [60, 8, 0], [11, 117, 0])
    lines = result_table([every, answered]).splitlines()
    assert [line.split()[-1] for line in lines[1:6] if "-" not in line] == [
        *("clips", "200", "200", "196")
    ]
    assert lines[7:] == [
        "In brackets: 95 % interval.",
        "Coverage of x: 98.0 % (4 of 200 without a class).",
    ]


def test_what_writing_before_the_answer_costs_is_said():
    plain, writing = counted("x", [60, 8, 0], [11, 117, 0]), counted("y", [60, 8, 0], [11, 117, 0])
    lines = result_table([plain, (writing[0], {**writing[1], "tokens_written": 7585})]).splitlines()
    assert lines[8:] == ["y: 38.7 tokens written about a clip to answer."]


def test_results_without_counts_have_no_intervals():
    lines = result_table([score("label", 0.5, [0.25, 0.625])]).splitlines()
    assert lines[4] == "Stage II (labels)      50.0      25.0      62.5      43.8"
    assert lines[6] == "196 clips, coverage 100 %."


def test_what_has_learnt_label_conditioned_rationales_is_marked():
    zero, (title, after) = score(ZERO_SHOT, 0.5, [0.5, 0.5]), score("label", 0.5, [0.5, 0.5])
    lines = result_table([zero, (title, {**after, "label_conditioned": 12})]).splitlines()
    assert [line.split("  ")[0] for line in lines[3:6]] == [
        "majority class",
        "backbone, zero-shot",
        "Stage II (labels) *",
    ]
    assert lines[8:] == [
        "* Stage II (labels): 12 rationales are label-conditioned: their writer was told the "
        "class, which the paper's never is. Results do not compare with the paper's."
    ]


def test_titles():
    assert title_of("class_rationale") == "P+C+R (Table 3)"
    assert title_of("my_weights-1234abcd") == "my_weights-1234abcd"


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # One class leads a tie: F1 2 * 2 / (4 + 2), the others have none.
        ({"a": 2, "b": 2}, ["50.0", "66.7", "0.0", "33.3"]),
        ({"a": 1, "b": 3}, ["75.0", "0.0", "85.7", "42.9"]),
        # No clip of a class, no F1 of it.
        ({"a": 0, "b": 4}, ["100.0", "-", "100.0", "100.0"]),
    ],
)
def test_the_majority_class(counts, expected):
    scored = [score("label", 0.5, [0.5, 0.5], classes=counts)]
    majority = result_table(scored).splitlines()[3]
    assert majority.removeprefix("majority class").split() == expected


def test_a_class_without_clips_has_no_f1():
    scored = [score("label", 0.5, [0.5, None], macro=0.5, classes={"a": 4, "b": 0})]
    assert result_table(scored).splitlines()[4].split()[-4:] == ["50.0", "50.0", "-", "50.0"]


def test_nothing_scored():
    assert result_table([]) == "No results yet."


def test_clips_with_several_classes():
    metrics = {
        "accuracy": 0.5, "f1/cat": 0.8, "f1/dog": None, "f1/macro": 0.8, "f1/micro": 0.75,
        "ap/macro": 0.9,
    }  # fmt: skip
    result = {
        "several": True,
        "classes": {"cat": 3, "dog": 0},
        "metrics": metrics,
        "majority": {**metrics, "accuracy": 0.25, "ap/macro": 0.4},
        "intervals": {"accuracy": {"low": 0.2, "high": 0.8}},
        "n_unparsed": 1,
        "n_scored": 4,
    }
    assert result_table([(title_of("label"), result)]).splitlines()[1:] == [
        "                   accuracy       F1 cat  F1 dog  F1 macro  F1 micro   mAP",
        "--------------------------------------------------------------------------",
        "most frequent set  25.0             80.0       -      80.0      75.0  40.0",
        "Stage II (labels)  50.0 [20, 80]    80.0       -      80.0      75.0  90.0",
        "--------------------------------------------------------------------------",
        "4 clips. In brackets: 95 % interval.",
        "Coverage of Stage II (labels): 75.0 % (1 of 4 without an answer).",
    ]
