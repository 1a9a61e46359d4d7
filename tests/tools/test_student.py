import numpy as np
import pytest
import torch

from rbft.miniature import language
from rbft.miniature.scene import GENERAL, draw_scene
from tools.miniature_base import lessons
from tools.miniature_base.base_model import new_processor
from tools.miniature_base.evaluate import encode
from tools.miniature_base.student import Student


def test_loss_against_the_library_with_each_turn_on_its_own():
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng, GENERAL) for _ in range(2)]
    frames = lessons.filmed(scenes, [lessons.TIMES] * 2)
    # Random weights of ordinary size: at their initial size attention hardly looks anywhere.
    student = Student(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    turns = [
        [
            (language.SHORT_PROMPT, language.event(scene)),
            (language.LABEL_PROMPT, language.generic_label(scene)),
            (language.ATMOSPHERE_PROMPT, language.atmosphere(scene)),
        ][: 2 + index]
        for index, scene in enumerate(scenes)
    ]
    processor = new_processor()
    model = student.model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        tokens = student.see(lessons.patches(torch.from_numpy(frames).float()))
        ours = student.talk_loss(tokens, lessons.pack(turns))
        for video, own in zip(frames, turns, strict=True):
            for prompt, answer in own:
                inputs = encode(processor, [video], prompt)
                answer_ids = processor.tokenizer(f"{answer} <|im_end|>", return_tensors="pt")
                answer_ids = answer_ids["input_ids"]
                known = inputs["input_ids"].shape[1]
                more = inputs["position_ids"].max() + 1 + torch.arange(answer_ids.shape[1])
                positions = torch.cat([inputs["position_ids"], more.expand(3, 1, -1)], dim=-1)
                logits = model(
                    input_ids=torch.cat([inputs["input_ids"], answer_ids], dim=1),
                    position_ids=positions,
                    pixel_values_videos=inputs["pixel_values_videos"],
                    video_grid_thw=inputs["video_grid_thw"],
                ).logits[0, known - 1 : -1]
                loss = torch.nn.functional.cross_entropy(logits, answer_ids[0], reduction="sum")
                total, count = total + loss.item(), count + answer_ids.shape[1]
    assert ours.item() == pytest.approx(total / count, rel=1e-5)
