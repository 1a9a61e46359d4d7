import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbft.masking.boxes import Box
from rbft.masking.formats import FORMAT_NAMES, FORMATS, FormatName

SIZE = (336, 448)  # height and width
LABELS = st.sampled_from(["person", "black bear", "trash can", "Hund"])


@st.composite
def boxes(draw: st.DrawFn) -> list[Box]:
    """Boxes that no format rounds away."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        x, y = draw(st.floats(0, 0.9)), draw(st.floats(0, 0.9))
        x2, y2 = draw(st.floats(x + 0.02, 1)), draw(st.floats(y + 0.02, 1))
        found.append(Box(x, y, x2, y2, draw(LABELS)))
    return found


def step(name: FormatName) -> tuple[float, float]:
    """What a format cannot tell apart, in width and height."""
    steps = FORMATS[name].steps
    wide, high = (steps, steps) if steps else (SIZE[1], SIZE[0])
    # Tokens have none for the last edge.
    share = 1.0 if name in ("paligemma", "florence2") else 0.5
    return share / wide + 1e-9, share / high + 1e-9


@pytest.mark.parametrize("name", FORMAT_NAMES)
@given(given_boxes=boxes())
def test_what_is_written_is_read_again(name: FormatName, given_boxes: list[Box]) -> None:
    form = FORMATS[name]
    parsed = form.parse(form.write(given_boxes, SIZE), SIZE)
    assert (parsed.rejected, parsed.answered) == (0, True)
    assert [box.label for box in parsed.boxes] == [box.label for box in given_boxes]
    wide, high = step(name)
    for box, was in zip(parsed.boxes, given_boxes, strict=True):
        assert abs(box.x1 - was.x1) <= wide
        assert abs(box.x2 - was.x2) <= wide
        assert abs(box.y1 - was.y1) <= high
        assert abs(box.y2 - was.y2) <= high


# A box from (10 %, 20 %) to (50 %, 80 %) in each form, as models write it.
PLAIN = {
    "gemini": '```json\n[{"box_2d": [200, 100, 800, 500], "label": "dog"}]\n```',
    "qwen3": 'Here it is: [{"bbox_2d": [100, 200, 500, 800], "label": "dog"}]',
    "qwen2.5": '```json\n[\n\t{"bbox_2d": [44.8, 67.2, 224, 268.8], "label": "dog"}\n]\n```',
    "qwen2": "<|object_ref_start|>dog<|object_ref_end|><|box_start|>(100,200),(500,800)<|box_end|>",
    "paligemma": "<loc0205><loc0102><loc0819><loc0512> dog",
    "florence2": "dog<loc_100><loc_200><loc_500><loc_800>",
}


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_each_form_has_its_own_order_and_unit(name: FormatName) -> None:
    (box,) = FORMATS[name].parse(PLAIN[name], SIZE).boxes
    assert box.label == "dog"
    assert box.edges == pytest.approx((0.1, 0.2, 0.5, 0.8), abs=1e-3)


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_swapped_corners_and_boxes_that_are_none(name: FormatName) -> None:
    form = FORMATS[name]
    text = form.write([Box(0.1, 0.2, 0.5, 0.8, "dog")], SIZE)
    first, second, flat = {
        "gemini": ("200, 100, 800, 500", "800, 500, 200, 100", "200, 100, 800, 100"),
        "qwen3": ("100, 200, 500, 800", "500, 800, 100, 200", "100, 200, 100, 800"),
        "qwen2.5": ("45, 67, 224, 269", "224, 269, 45, 67", "45, 67, 45, 269"),
        "qwen2": ("(100,200),(500,800)", "(500,800),(100,200)", "(100,200),(100,800)"),
        "paligemma": (
            "<loc0205><loc0102><loc0819><loc0512>",
            "<loc0819><loc0512><loc0205><loc0102>",
            "<loc0205><loc0102><loc0819><loc0102>",
        ),
        "florence2": (
            "<loc_100><loc_200><loc_500><loc_800>",
            "<loc_500><loc_800><loc_100><loc_200>",
            "<loc_100><loc_200><loc_100><loc_800>",
        ),
    }[name]
    assert first in text
    assert form.parse(text.replace(first, second), SIZE).boxes == form.parse(text, SIZE).boxes
    without = form.parse(text.replace(first, flat), SIZE)
    assert (without.boxes, without.rejected, without.answered) == ((), 1, True)


def test_the_last_edge_is_the_last_token() -> None:
    whole = [Box(0.0, 0.0, 1.0, 1.0, "dog")]
    assert FORMATS["paligemma"].write(whole, SIZE) == "<loc0000><loc0000><loc1023><loc1023> dog"
    assert FORMATS["florence2"].write(whole, SIZE) == "dog<loc_0><loc_0><loc_999><loc_999>"
    assert "(0,0),(1000,1000)" in FORMATS["qwen2"].write(whole, SIZE)
    assert "[0, 0, 448, 336]" in FORMATS["qwen2.5"].write(whole, SIZE)


@pytest.mark.parametrize("name", ["gemini", "qwen3", "qwen2.5"])
def test_a_list_that_was_cut_off_gives_what_is_whole(name: FormatName) -> None:
    form = FORMATS[name]
    two = [Box(0.0, 0.0, 0.5, 0.5, "a"), Box(0.5, 0.5, 1.0, 1.0, "b")]
    text = form.write(two, SIZE)
    first = text.index("}") + 1
    for end in range(len(text)):
        found = form.parse(text[:end], SIZE).boxes
        whole = 0 if end < first else 1 if end <= text.rindex("}") else 2
        assert [box.label for box in found] == ["a", "b"][:whole]
    inside = json.dumps({"objects": [{"box": {form.key: [0, 0, 100, 100], "label": "c"}}]})
    assert [box.label for box in form.parse(inside, SIZE).boxes] == ["c"]
    assert [box.label for box in form.parse(f"{{{inside}", SIZE).boxes] == ["c"]


def test_answers_without_boxes() -> None:
    for name in ("gemini", "qwen3", "qwen2.5"):
        assert FORMATS[name].parse("```json\n[]\n```", SIZE).answered
        assert not FORMATS[name].parse("I see a dog.", SIZE).answered
        assert not FORMATS[name].parse("", SIZE).answered
        wrong = f'[{{"{FORMATS[name].key}": [1, 2, "x", 3], "label": "a"}}]'
        assert FORMATS[name].parse(wrong, SIZE).rejected == 1
    assert not FORMATS["qwen2"].parse("There is no dog.", SIZE).answered


def test_tokenizers_that_leave_out_special_tokens() -> None:
    text = "dog(100,200),(500,800)\nthe black bear (0,0),(10,10)"
    found = FORMATS["qwen2"].parse(text, SIZE).boxes
    assert [box.label for box in found] == ["dog", "the black bear"]
    assert found[0].edges == (0.1, 0.2, 0.5, 0.8)
    several = FORMATS["qwen2"].parse(PLAIN["qwen2"] + "<|box_start|>(0,0),(9,9)<|box_end|>", SIZE)
    assert [box.label for box in several.boxes] == ["dog", "dog"]
    several = FORMATS["florence2"].parse(PLAIN["florence2"] + "<loc_0><loc_0><loc_9><loc_9>", SIZE)
    assert [box.label for box in several.boxes] == ["dog", "dog"]
