from rbft.runtime.differences import differences, flat


def test_nested_settings_by_dotted_name() -> None:
    assert flat({"a": 1, "b": {"c": [1], "d": {"e": None}}}) == {"a": 1, "b.c": [1], "b.d.e": None}


def test_what_differs() -> None:
    before = {"a": 1, "b": {"c": 2, "gone": 3}, "same": {"x": [1]}}
    now = {"b": {"c": 4, "came": 5}, "same": {"x": [1]}, "a": 1}
    assert differences(before, now) == {"b.c": (2, 4), "b.gone": (3, None), "b.came": (None, 5)}
    assert differences(before, before) == {}
