import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbft.data.card import Card
from rbft.data.conversations import is_conversation, read_conversation
from rbft.data.tables import Row

CARD = Card("t", "p", {"normal": "safe", "abnormal": "odd"}, {"label": "?", "rationale": "?"})
ASK = {"from": "human", "value": "<video>\nSafe or odd?"}
TURNS = [ASK, {"from": "gpt", "value": "Odd."}]
MESSAGES = [
    {"role": "system", "content": "You are an expert."},
    {"role": "user", "content": "<video>Safe or odd?"},
    {"role": "assistant", "content": "safe"},
    {"role": "user", "content": "Are you sure?"},
    {"role": "assistant", "content": "abnormal"},
]


def read(**values):
    return read_conversation(Row("a.json, item 3", values), CARD)


@pytest.mark.parametrize(
    "record",
    [
        {"id": "x", "video": "a/b.mp4", "conversations": TURNS},
        {"video": ["a/b.mp4"], "conversations": TURNS, "ground_truth": "abnormal"},
        {"videos": ["a/b.mp4"], "conversations": TURNS},
        {"videos": ["a/b.mp4"], "messages": MESSAGES, "label": None},
        {"videos": ["a/b.mp4"], "messages": MESSAGES[:2], "label": "odd"},
    ],
)
def test_known_formats(record):
    assert is_conversation(Row("", record))
    assert read(**record) == ("a/b.mp4", 1)


def test_a_table_row_is_no_conversation():
    assert not is_conversation(Row("", {"id": "x", "video": "b.mp4", "label": "odd"}))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"video": "b.mp4", "conversations": TURNS, "ground_truth": "normal"},
            "the labels contradict each other: ground_truth says normal, last assistant turn says "
            "abnormal.",
        ),
        (
            {"video": "b.mp4", "conversations": [ASK, {"from": "gpt", "value": "A bear."}]},
            "last assistant turn: label 'A bear.' is no class of card 't'; allowed are normal",
        ),
        (
            {"video": "b.mp4", "conversations": TURNS, "label": ["normal", "abnormal"]},
            "label: label ['normal', 'abnormal'] is a list of classes.",
        ),
        ({"video": "b.mp4", "conversations": [ASK]}, "no assistant turn and no field 'label'"),
        ({"video": "b.mp4", "conversations": TURNS[1:]}, "0 <video> tags for 1 video"),
        ({"video": "b.mp4", "conversations": [ASK, *TURNS]}, "2 <video> tags for 1 video"),
        (
            {"videos": ["b.mp4", "c.mp4"], "conversations": TURNS},
            "video is ['b.mp4', 'c.mp4']; a record must name exactly one video file.",
        ),
        ({"conversations": TURNS}, "video is None; a record must name exactly one video file."),
        (
            {"video": "b.mp4", "conversations": []},
            "conversations is []; it must be a list of turns",
        ),
        ({"video": "b.mp4", "messages": "hi"}, "messages is 'hi'; it must be a list of turns"),
        (
            {"video": "b.mp4", "messages": [{"role": "user", "content": [{"type": "video"}]}]},
            "messages is [{'role': 'user', 'content': [{'type': 'video'}]}]; it must be a list",
        ),
    ],
)
def test_bad_records(record, message):
    with pytest.raises(ValueError, match=f"^a.json, item 3[:,] {re.escape(message)}"):
        read(**record)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["<video>", "odd"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["from", "role", "value", "content"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=500, deadline=None)
@given(
    values=st.dictionaries(
        st.sampled_from(["video", "videos", "label", "conversations", "ground_truth"]), JSON
    ),
    key=st.sampled_from(["conversations", "messages"]),
    turns=st.just(TURNS) | JSON,
)
def test_whatever_a_record_holds_only_value_errors_come_out(values, key, turns):
    try:
        path, label = read(**{**values, key: turns})
    except ValueError:
        return
    assert isinstance(path, str)
    assert label in (0, 1)
