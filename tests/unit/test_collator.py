import pickle
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from rbft.backbone.attention import forward_inputs
from rbft.batch import IGNORED, Transferable
from rbft.clip import Clip
from rbft.collator import _shared
from rbft.data.sampler import SampleSlot
from rbft.inference.generation import find_class
from rbft.stages import CLASS, RATIONALE, STAGES, Stage
from rbft.video.times import PairTimes
from tests.examples import (
    CARD,
    PAPER_STAGES,
    answer_of,
    batch_of,
    clips,
    collator,
    examples,
    prompt_of,
    random_video,
)

VIDEO, END, PAD = 383, 376, 377
TIMES = PairTimes((0.0,), (0.5,), 1.0)


def test_the_video_stands_first_in_the_user_s_turn(backbone):
    make = collator(backbone, prompt_stage="label")
    ids = make.prompt_ids("Is it?", TIMES, 3)
    time = "<0.5 seconds>" if make.family.says_times else ""
    assert make.processor.tokenizer.decode(ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{time}<|vision_start|>" + "<|video_pad|>" * 3 + "<|vision_end|>Is it?"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    place = ids.index(VIDEO)
    tokenizer = make.processor.tokenizer
    around = tokenizer.convert_ids_to_tokens([ids[place - 1], ids[place + 3]])
    assert around == ["<|vision_start|>", "<|vision_end|>"]


def test_a_clip_takes_as_many_tokens_as_its_merged_patches(backbone):
    batch = collator(backbone, prompt_stage="label")(examples(4))
    # (4, 56, 84): 2 pairs x 2 x 3; (10, 84, 56): 5 x 3 x 2; (2, 56, 56): 1 x 2 x 2; (6, 56, 112)
    assert (prompt_of(batch).input_ids == VIDEO).sum(1).tolist() == [12, 30, 4, 24]
    assert batch.video["video_grid_thw"].tolist() == [[2, 4, 6], [5, 6, 4], [1, 4, 4], [3, 4, 8]]


@pytest.mark.parametrize("merge", [1, 2, 3])
def test_a_video_token_for_each_square_of_patches(qwen, merge):
    make = collator(qwen, prompt_stage="label")
    make.config.vision_config.spatial_merge_size = merge
    (row,) = make._prompts(examples(1), [[2, 6, 12]], STAGES["label"], CARD)
    assert row.count(make.config.video_token_id) == 2 * 6 * 12 // merge**2


def test_odd_frames_make_a_whole_pair(backbone):
    clip = clips(1)[0]
    one = replace(examples(1)[0], video=random_video(clip.id, (3, 56, 56)))
    batch = collator(backbone, prompt_stage="label")([one])
    assert batch.video["video_grid_thw"].tolist() == [[2, 4, 4]]


def test_a_tokenizer_that_begins_texts_with_a_token_changes_nothing(qwen):
    """What it would begin a text with stands in the middle of ours."""
    usual, make = collator(qwen, target_stage="label"), collator(qwen, target_stage="label")
    make.processor.tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", PAD)]
    )
    assert make.processor.tokenizer("Is it?")["input_ids"][0] == PAD
    assert make.prompt_ids("Is it?", TIMES, 3) == usual.prompt_ids("Is it?", TIMES, 3)
    assert make.part_ids("normal", last=True) == usual.part_ids("normal", last=True)


def test_labels_stand_on_the_answer_and_its_end_and_nowhere_else(backbone):
    make = collator(backbone, target_stage="label")
    batch = make(examples(4))
    answer = answer_of(batch)
    for row, one in enumerate(examples(4)):
        word = "normal" if one.clip.label == 0 else "abnormal"
        expected = [*make.processor.tokenizer(word)["input_ids"], END]
        length = int(answer.attention_mask[row].sum())
        start = length - len(expected)
        assert answer.labels[row, start:length].tolist() == expected
        assert answer.input_ids[row, start:length].tolist() == expected
        assert (answer.labels[row, :start] == IGNORED).all()
        assert (answer.labels[row, length:] == IGNORED).all()
    assert batch.prompt is None


def test_an_end_of_turn_in_the_prompt_and_padding_are_not_learnt(backbone):
    # The padding token and the end of the turn both stand outside answers too.
    batch = collator(backbone, target_stage="label")(examples(3))
    assert ((answer_of(batch).labels == END).sum(1) == 1).all()
    assert (answer_of(batch).labels != PAD).all()


def test_sides_of_the_padding(backbone):
    config = collator(backbone).config
    both = replace(collator(backbone, target_stage="label"), prompt_stage=STAGES["label"])
    batch = both(examples(3))
    for sequences, side in ((answer_of(batch), "right"), (prompt_of(batch), "left")):
        widths = sequences.attention_mask.sum(1).tolist()
        width = sequences.input_ids.shape[1]
        assert len(set(widths)) == 3
        assert max(widths) == width
        for row, used in enumerate(widths):
            padding = slice(used, width) if side == "right" else slice(0, width - used)
            assert (sequences.attention_mask[row, padding] == 0).all()
            assert (sequences.input_ids[row, padding] == PAD).all()
            assert (sequences.position_ids[:, row, padding] == 0).all()
            real = sequences.attention_mask[row].bool()
            assert (sequences.input_ids[row, real] == config.video_token_id).any()
    assert (prompt_of(batch).labels == IGNORED).all()


@pytest.mark.parametrize("name", PAPER_STAGES)
def test_a_packed_row_is_the_padded_ones_behind_each_other(backbone, name):
    padded = batch_of(collator(backbone, target_stage=name), examples(4))
    packed = batch_of(collator(backbone, target_stage=name, packing=True), examples(4))
    ours, theirs = answer_of(packed), answer_of(padded)
    real = theirs.attention_mask.bool()
    assert ours.lengths == tuple(real.sum(1).tolist())
    assert ours.attention_mask.tolist() == [[1] * sum(ours.lengths)]
    for field in ("input_ids", "labels"):
        assert torch.equal(getattr(ours, field)[0], getattr(theirs, field)[real])
    assert torch.equal(ours.position_ids[:, 0], theirs.position_ids[:, real])


@pytest.mark.parametrize("packing", [False, True])
def test_targets_are_the_labels_and_the_places_before_them(backbone, packing):
    make = collator(backbone, target_stage="rationale", packing=packing)
    batch = batch_of(make, examples(4))
    answer, targets = answer_of(batch), batch.targets
    assert targets is not None
    assert (answer.labels.flatten()[targets.logit_indices + 1] == targets.ids).all()
    assert len(targets.ids) == int((answer.labels != IGNORED).sum())
    tokens = [make.answer_ids(one.clip, one.rationale) for one in examples(4)]
    assert targets.ids.tolist() == [token for ids in tokens for token in ids]
    assert targets.clips.tolist() == [n for n, ids in enumerate(tokens) for _ in ids]


@pytest.mark.parametrize(
    ("family", "step", "times"),
    [
        ("qwen2_5_vl", 10, [0, 4]),  # 1 frame a second, 2 positions a second, 2 frames a pair
        ("qwen2_5_vl", 5, [0, 2]),
        ("qwen2_5_vl", 13, [0, 5]),  # 5.2, cut off
        ("qwen2_vl", 10, [0, 1]),
        ("qwen2_vl", 5, [0, 1]),
    ],
)
def test_the_true_frame_rate_reaches_the_positions(backbones, family, step, times):
    make = collator(backbones[family], prompt_stage="label")
    video = random_video("x", (4, 56, 56), step)
    prompt = prompt_of(make([replace(examples(1)[0], video=video)]))
    is_video = prompt.input_ids[0] == VIDEO
    first = int(is_video.int().argmax())
    assert (prompt.position_ids[0, 0, is_video] - first).unique().tolist() == times


def test_what_comes_along_with_the_tensors(backbone):
    draws = [SampleSlot(2, 0.5, 12.5), SampleSlot(1, 0.0, 12.5)]
    batch = collator(backbone, prompt_stage="label")(examples(2, draws))
    assert len(batch) == 2
    assert batch.index.tolist() == [2, 1]
    assert batch.label.tolist() == [0, 1]
    assert batch.weight.tolist() == [0.5, 0.0]
    assert batch.total.item() == 12.5


def test_an_unlabelled_clip_can_be_asked_about(backbone):
    made = examples(1)[0]
    one = replace(made, clip=Clip("x", made.clip.path, None, "predict"))
    assert collator(backbone, prompt_stage="label")([one]).label.tolist() == [-1]


@pytest.mark.parametrize("name", PAPER_STAGES)
def test_answer_tokens_are_counted_without_the_video(backbone, name):
    make = collator(backbone, target_stage=name)
    batch = batch_of(make, examples(3))
    counted = [make.answer_tokens(e.clip, e.rationale) for e in examples(3)]
    assert (answer_of(batch).labels != IGNORED).sum(1).tolist() == counted
    assert batch.total.item() == sum(counted)


def test_class_answers_end_with_the_turn_or_where_the_rationale_begins(backbone):
    make = collator(backbone)
    ids = make.processor.tokenizer
    normal, abnormal = (ids(w)["input_ids"] for w in CARD.words.values())
    (separator,) = ids("\n")["input_ids"]
    for name in ("label", "rationale_class"):
        assert make.class_answers(STAGES[name]) == [[*normal, END], [*abnormal, END]]
    assert make.class_answers(STAGES["class_rationale"]) == [
        [*normal, separator],
        [*abnormal, separator],
    ]
    # What is scored is the class that comes first, however the answer goes on.
    again = Stage("again", (CLASS, RATIONALE, CLASS), "C+R+C")
    assert make.class_answers(again) == make.class_answers(STAGES["class_rationale"])


# Words in angle brackets, as in the paper's answers, and a tokenizer that has a token for a
# bracket and the line break after it; the rationale's full stop merges too.
BRACKETS = replace(CARD, words={"quiet": "<normal>", "alarm": "<abnormal>"})
MERGED = (">\n", ".\n")


@pytest.mark.parametrize("name", ["class_rationale", "rationale_class"])
@pytest.mark.parametrize("card", [CARD, BRACKETS])
def test_what_is_scored_is_what_was_trained(merging, name, card):
    make = replace(collator(merging, target_stage=name), card=card)
    tokenizer, stage = make.processor.tokenizer, STAGES[name]
    for one in examples(4):
        one = replace(one, rationale="It climbs.")
        ids = make.answer_ids(one.clip, one.rationale)
        assert tokenizer.decode(ids) == f"{stage.target(card, one.clip, 'It climbs.')}<|im_end|>"
        scored = make.class_answers(stage)[one.clip.label or 0]
        if name == "class_rationale":
            assert ids[: len(scored)] == scored
            assert find_class(ids, make.class_answers(stage), at_end=False)[0] == one.clip.label
        else:
            before = make.part_ids("It climbs.", last=False)
            assert ids == [*before, *scored]
            assert tokenizer.convert_ids_to_tokens(before)[-1] == ".\u010a"  # the line break
        answer = answer_of(batch_of(make, [one]))
        assert answer.labels[0, -len(ids) :].tolist() == ids


def test_the_tokenizer_merges_a_bracket_and_the_line_break(merging):
    tokenizer = collator(merging).processor.tokenizer
    for text in MERGED:
        assert len(tokenizer(text)["input_ids"]) == 1
        assert len(tokenizer(text[0])["input_ids"] + tokenizer("\n")["input_ids"]) == 2
    words = replace(collator(merging), card=BRACKETS).class_answers(STAGES["class_rationale"])
    assert {tokenizer.decode(ids[-1:]) for ids in words} == {">\n"}


# Rationales that were cut off


@pytest.mark.parametrize("name", PAPER_STAGES)
def test_a_rationale_that_was_cut_off_does_not_end_the_turn(backbone, name):
    make = collator(backbone, target_stage=name)
    made = [replace(one, cut=number % 2 == 1) for number, one in enumerate(examples(4))]
    answer = answer_of(batch_of(make, made))
    ends = (answer.labels == END).sum(1).tolist()
    # Where the class comes last, the answer is whole whatever its rationale is.
    assert ends == ([1, 0, 1, 0] if name in ("rationale", "class_rationale") else [1, 1, 1, 1])
    for row, one in enumerate(made):
        ids = answer.labels[row][answer.labels[row] != IGNORED].tolist()
        assert make.answer_tokens(one.clip, one.rationale, one.cut) == len(ids)
        whole = make.answer_ids(one.clip, one.rationale)
        assert ids == (whole if ends[row] else whole[:-1])


def test_an_answer_has_a_token(qwen):
    make = collator(qwen, target_stage="rationale")
    assert make.answer_ids(clips(1)[0], "  ", cut=True) == [END]


@pytest.mark.parametrize(
    ("learn", "needs_rationales", "learns_class"),
    [
        (None, False, False),
        ("rationale", True, False),
        ("label", False, True),
        ("class_rationale", True, False),
        ("rationale_class", True, False),
    ],
)
def test_what_the_data_module_asks_it(qwen, learn, needs_rationales, learns_class):
    make = collator(qwen, target_stage=learn)
    assert (make.needs_rationales, make.learns_class) == (needs_rationales, learns_class)


def test_it_goes_to_another_process(backbone):
    make = collator(backbone, target_stage="rationale", prompt_stage="label")
    copied = pickle.loads(pickle.dumps(make))
    ours, theirs = make(examples(2)), copied(examples(2))
    for mine, other in ((answer_of(ours), answer_of(theirs)), (prompt_of(ours), prompt_of(theirs))):
        for name in ("input_ids", "attention_mask", "position_ids", "labels"):
            assert torch.equal(getattr(mine, name), getattr(other, name))
    assert pickle.loads(pickle.dumps(ours)).total.item() == ours.total.item()


def test_every_tensor_moves(qwen):
    make = collator(qwen, target_stage="label", prompt_stage="label")
    batch = replace(make, extra_prompts=((STAGES["rationale"], CARD),))(examples(2))
    moved = batch.to(torch.device("meta"))
    assert len(moved.extra_prompts) == 1
    for sequences in (answer_of(moved), prompt_of(moved), *moved.extra_prompts):
        given = [value for value in forward_inputs(sequences).values() if value is not None]
        assert {tensor.device.type for tensor in given} == {"meta"}
        assert sequences.labels.device.type == "meta"
    assert moved.video["pixel_values_videos"].device.type == "meta"
    assert moved.video["video_grid_thw"].device.type == "cpu"  # where it is read
    assert moved.tower["video_cu_seqlens"].device.type == "cpu"
    assert moved.tower["video_position_ids"].device.type == "meta"
    assert moved.tower["video_max_seqlen"] == batch.tower["video_max_seqlen"]
    for name in ("label", "index", "weight", "total"):
        assert getattr(moved, name).device.type == "meta"
    assert batch.label.device.type == "cpu"


@pytest.mark.parametrize("packing", [False, True])
def test_where_the_video_tokens_stand(backbone, packing):
    make = collator(backbone, target_stage="rationale", prompt_stage="label", packing=packing)
    batch = make(examples(3))
    for sequences in (answer_of(batch), prompt_of(batch)):
        assert sequences.video_indices is not None
        is_video = sequences.input_ids == make.config.video_token_id
        assert sequences.video_indices.tolist() == is_video.flatten().nonzero().flatten().tolist()
        tokens = batch.video["video_grid_thw"].prod(-1) // 4
        assert len(sequences.video_indices) == int(tokens.sum())


def test_every_tensor_is_pinned(qwen, monkeypatch):
    pinned = []

    def pin(tensor):
        pinned.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    batch = collator(qwen, target_stage="label")(examples(2))
    copied = batch.pin_memory()
    assert len(pinned) == 5 + 3 + 1 + 2 + 4  # sequences, targets, video, tower, the rest
    assert copied.prompt is None
    assert torch.equal(answer_of(copied).labels, answer_of(batch).labels)
    assert answer_of(copied).labels is not answer_of(batch).labels


@dataclass(frozen=True)
class Luggage(Transferable):
    items: Any


def test_tensors_move_in_whatever_holds_them():
    here = torch.zeros(1)
    held = [None, (here, "word"), {"list": [here], "video_grid_thw": here}, Luggage(here)]
    none, pair, mapping, other = Luggage(held).to(torch.device("meta")).items
    assert none is None
    assert isinstance(pair, tuple)
    assert pair[1] == "word"
    assert mapping["video_grid_thw"] is here
    assert {t.device.type for t in (pair[0], mapping["list"][0], other.items)} == {"meta"}
    assert here.device.type == "cpu"


@pytest.mark.parametrize(
    ("prompts", "alike"),
    [
        ([[1, 2, 3, 4], [1, 2, 5, 4]], 2),
        ([[1, 2, 3], [1, 2, 3]], 2),  # something must be left to ask
        ([[1, 2], [1, 2, 3]], 1),
        ([[1, 2, 3], [4, 2, 3]], 0),
        ([[1, 2, 3, 4], [1, 2, 3, 5], [1, 6, 3, 4]], 1),
        ([[1], [1, 2]], 0),
    ],
)
def test_how_far_prompts_begin_alike(prompts, alike):
    assert _shared(prompts) == alike
