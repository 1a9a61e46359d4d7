import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbft.annotations.conversations import is_conversation, read_conversation
from rbft.annotations.tables import TableRow
from rbft.card import Card

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


IMAGE_TURNS = [{"from": "human", "value": "<image>\nSafe or odd?"}, TURNS[1]]


def parts(video):
    answer = [{"type": "text", "text": "o"}, {"type": "text", "text": "dd"}]
    return [
        {"role": "user", "content": [video, {"type": "text", "text": "Safe or odd?"}]},
        {"role": "assistant", "content": answer},
    ]


def read(**values):
    return read_conversation(TableRow("a.json, item 3", values), CARD)


@pytest.mark.parametrize(
    "record",
    [
        {"id": "x", "video": "a/b.mp4", "conversations": TURNS},
        {"video": ["a/b.mp4"], "conversations": TURNS, "ground_truth": "abnormal"},
        {"videos": ["a/b.mp4"], "conversations": TURNS},
        {"videos": ["a/b.mp4"], "messages": MESSAGES, "label": None},
        {"videos": ["a/b.mp4"], "messages": MESSAGES[:2], "label": "odd"},
        {"video": "a/b.mp4", "conversations": IMAGE_TURNS, "data_source": "0_30_s"},
        {"messages": parts({"type": "video_url", "video_url": {"url": "a/b.mp4"}})},
        {"messages": parts({"type": "video_url", "video_url": "a/b.mp4"})},
        {"messages": parts({"type": "video", "video": "a/b.mp4"})},
        {"messages": parts({"type": "video"}), "videos": ["a/b.mp4"]},
        {"query": "<video>Safe or odd?", "response": "odd", "videos": ["a/b.mp4"]},
        {"query": "Safe or odd?", "response": "odd", "videos": ["a/b.mp4"], "history": []},
        {
            "query": "Sure?",
            "response": "odd",
            "history": [["<video>Safe or odd?", "safe"]],
            "videos": ["a/b.mp4"],
        },
    ],
)
def test_known_formats(record):
    assert is_conversation(TableRow("", record))
    assert read(**record) == ("a/b.mp4", 1)


def test_file_urls():
    (video,) = [{"type": "video_url", "video_url": {"url": "file:///d/a%20b/%23c.mp4"}}]
    assert read(messages=parts(video)) == ("/d/a b/#c.mp4", 1)


def test_a_table_row_is_no_conversation():
    assert not is_conversation(TableRow("", {"id": "x", "video": "b.mp4", "label": "odd"}))


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
            "label: label ['normal', 'abnormal'] is a list of classes, but with card 't' a clip",
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
            {"video": "b.mp4", "image": "c.png", "conversations": IMAGE_TURNS},
            "0 <video> tags for 1 video",
        ),
        (
            {"query": "<video><video>?", "response": "odd", "videos": ["b.mp4"]},
            "2 <video> tags for 1 video",
        ),
        (
            {"query": "?", "response": "odd", "videos": ["b.mp4"], "history": [["?"]]},
            "history is [['?']]; it must be a list of pairs, each a query and its response.",
        ),
        (
            {"query": 1, "response": "odd", "videos": ["b.mp4"]},
            "query is [{'role': 'user', 'content': 1}, {'role': 'assistant', 'content': 'odd'}];",
        ),
        (
            {"messages": parts({"type": "image_url", "image_url": {"url": "b.png"}})},
            "a turn has the part {'type': 'image_url', 'image_url': {'url': 'b.png'}}; allowed are "
            "parts of the type text, video and video_url. Frames as pictures are not supported.",
        ),
        (
            {"messages": parts({"type": "video_url", "video_url": {"url": "https://x/b.mp4"}})},
            "video is 'https://x/b.mp4', no file. Put the videos below data.root and name the ",
        ),
        (
            {"messages": parts({"type": "video"})},
            "video is None; a record must name exactly one video file.",
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
    | st.sampled_from(["<video>", "<image>", "odd", "text", "video"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["from", "role", "value", "content", "type", "text", "video"]), inner
        )
    ),
    max_leaves=6,
)


@settings(max_examples=500, deadline=None)
@given(
    values=st.dictionaries(
        st.sampled_from(["video", "videos", "label", "conversations", "ground_truth", "history"]),
        JSON,
    ),
    key=st.sampled_from(["conversations", "messages", "query", "response"]),
    turns=st.just(TURNS) | JSON,
)
def test_whatever_a_record_holds_only_value_errors_come_out(values, key, turns):
    try:
        asked = {"query": "<video>", "response": "odd"} if key in ("query", "response") else {}
        path, label = read(**{**values, **asked, key: turns})
    except ValueError:
        return
    assert isinstance(path, str)
    assert label in (0, 1)
