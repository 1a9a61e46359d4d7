import pytest

from rbft.files import write_json
from rbft.run import ZERO_SHOT, Run
from rbft.summary import result_table


def score(run, place, accuracy, f1, *, split="test", unparsed=0, classes=None):
    classes = classes or {"quiet": 68, "alarm": 128}
    metrics = {"accuracy": accuracy, "f1/macro": sum(f1) / len(f1)}
    metrics |= {f"f1/{name}": value for name, value in zip(classes, f1, strict=True)}
    write_json(
        run.results(place, split),
        {
            "classes": classes,
            "metrics": metrics,
            "n_unparsed": unparsed,
            "n_scored": sum(classes.values()),
        },
    )


def test_every_step_beside_the_majority_class(tmp_path):
    run = Run(tmp_path)
    score(run, ZERO_SHOT, 0.5, [0.25, 0.625], unparsed=7)
    score(run, "rationale", 0.6531, [0.5, 0.7])
    score(run, "label", 1.0, [1.0, 1.0])
    # Always "alarm": 128 / 196 right; its F1 is 2 * 128 / (196 + 128).
    assert result_table(run, ["rationale", "label"]).splitlines() == [
        "-" * 83,
        "                            accuracy  F1 quiet  F1 alarm  F1 macro  unparsed  clips",
        "-" * 83,
        "majority class                 65.31      0.00     79.01     39.51         0    196",
        "backbone, zero-shot            50.00     25.00     62.50     43.75         7    196",
        "after Stage I (rationales)     65.31     50.00     70.00     60.00         0    196",
        "after Stage II (labels)       100.00    100.00    100.00    100.00         0    196",
        "-" * 83,
    ]


def test_what_is_not_scored_is_left_out(tmp_path):
    run = Run(tmp_path)
    score(run, "label", 0.5, [0.5, 0.5])
    score(run, "class_rationale", 0.5, [0.5, 0.5], split="val")
    lines = result_table(run, ["rationale", "label"]).splitlines()
    assert [line.split("  ")[0] for line in lines[3:-1]] == [
        "majority class",
        "after Stage II (labels)",
    ]
    assert "P+C+R (Table 3)" in result_table(run, ["class_rationale"], "val")


def test_a_folder_of_weights_under_its_own_name(tmp_path):
    run = Run(tmp_path)
    score(run, "my_weights", 0.5, [0.5, 0.5])
    assert "\nmy_weights " in result_table(run, ["my_weights"])


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # One class leads a tie: F1 2 * 2 / (4 + 2), the others have none.
        ({"a": 2, "b": 2}, ["50.00", "66.67", "0.00", "33.33", "0", "4"]),
        ({"a": 1, "b": 3}, ["75.00", "0.00", "85.71", "42.86", "0", "4"]),
        ({"a": 0, "b": 4}, ["100.00", "0.00", "100.00", "50.00", "0", "4"]),
    ],
)
def test_the_majority_class(tmp_path, counts, expected):
    run = Run(tmp_path)
    score(run, "label", 0.5, [0.5, 0.5], classes=counts)
    majority = result_table(run, ["label"]).splitlines()[3]
    assert majority.removeprefix("majority class").split() == expected


def test_nothing_scored(tmp_path):
    assert result_table(Run(tmp_path), ["label"]) == "No results yet."
