import json

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from rbft.card import Card
from rbft.miniature import BASE, language
from rbft.miniature.data import Miniature
from tests.unit.miniature.test_scene import SCENE
from tools.miniature_base.base_model import CHAT_TEMPLATE, TOKENS
from tools.miniature_base.evaluate import encode, figures
from tools.miniature_base.lessons import TIMES, filmed
from tools.miniature_base.pretrain import PHASES


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(BASE)


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(BASE, dtype=torch.float32)


def test_folder_is_small_and_tells_how_it_was_made():
    assert sum(path.stat().st_size for path in BASE.iterdir()) < 4_000_000
    record = json.loads((BASE / "provenance.json").read_text())
    steps = [(phase["name"], phase["steps"]) for phase in record["phases"]]
    assert steps == [(phase.name, phase.steps) for phase in PHASES]
    assert record["cpu_seconds"] <= 1200
    assert record["threads"] == 1


def test_folder_opens_as_a_qwen_folder(processor, model):
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert type(processor.video_processor).__name__ == "Qwen2VLVideoProcessor"
    assert model.config.vision_config.tokens_per_second == 2
    assert model.generation_config.eos_token_id[0] == processor.tokenizer.eos_token_id


def test_words_survive_the_tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == list(TOKENS)
    text = language.rationale(SCENE)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.decode(tokenizer("subjects: bear, bin.")["input_ids"]) == (
        "subjects : bear , bin ."
    )
    assert tokenizer("zebra")["input_ids"] == [tokenizer.unk_token_id]


def test_text_has_the_same_tokens_alone_and_after_the_template():
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    start = "<|im_start|>assistant\n"
    alone = tokenizer("abnormal")["input_ids"]
    assert tokenizer(f"{start}abnormal")["input_ids"] == tokenizer(start)["input_ids"] + alone


def test_turns_are_those_of_qwen(processor):
    assert processor.chat_template == CHAT_TEMPLATE
    messages = [
        {"role": "system", "content": "you are a home visitor ."},
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "where ?"}]},
        {"role": "assistant", "content": "yard ."},
    ]
    assert processor.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>system\nyou are a home visitor .<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>where ?<|im_end|>\n"
        "<|im_start|>assistant\nyard .<|im_end|>\n"
    )
    asked = processor.apply_chat_template(messages[1:2], add_generation_prompt=True, tokenize=False)
    assert asked == (
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>where ?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_card_is_in_the_vocabulary(processor):
    assert Miniature.card_file is not None
    card = Card.load(Miniature.card_file)
    texts = [*map(card.prompt, card.prompts), *card.words.values()]
    for text in texts:
        assert processor.tokenizer.unk_token_id not in processor.tokenizer(text)["input_ids"]


def test_base_describes_general_clips(model, processor):
    found = figures(model, processor, "general", 32, seed=3)
    static = ("subject", "object", "subject_colour", "object_colour", "place", "hour", "weather")
    assert min(found[name] for name in static) > 0.95, found
    assert found["action"] > 0.8, found
    assert found["risk"] > 0.8, found


def test_base_describes_target_clips_well_but_not_perfectly(model, processor):
    found = figures(model, processor, "target", 32, seed=3)
    assert found["subject"] > 0.8, found
    assert found["action"] > 0.6, found


def test_cached_generation_keeps_the_positions(model, processor):
    frames = filmed([SCENE], [TIMES])
    inputs = encode(processor, list(frames), language.SHORT_PROMPT)
    written = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    known = inputs["input_ids"].shape[1]
    new = torch.arange(written.shape[1] - known) + inputs["position_ids"].max() + 1
    with torch.inference_mode():
        logits = model(
            input_ids=written,
            position_ids=torch.cat([inputs["position_ids"], new.expand(3, 1, -1)], dim=-1),
            pixel_values_videos=inputs["pixel_values_videos"],
            video_grid_thw=inputs["video_grid_thw"],
        ).logits
    assert logits[0, known - 1 : -1].argmax(-1).tolist() == written[0, known:].tolist()


def test_atmosphere_is_described_under_its_own_prompt(model, processor):
    inputs = encode(processor, list(filmed([SCENE], [TIMES])), language.ATMOSPHERE_PROMPT)
    written = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    answer = processor.batch_decode(
        written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    assert answer == [language.atmosphere(SCENE)]
