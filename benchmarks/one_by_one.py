"""transformers' `generate`, one clip at a time, as the model's own page shows it.

Run by evaluate.py and generate.py: python one_by_one.py SPEC.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from qwen_vl_utils.vision_process import fetch_video
from record import Recorder
from transformers import AutoModelForImageTextToText, AutoProcessor


@torch.no_grad()
def write(spec: dict[str, Any]) -> None:
    """Writes an answer to every clip; decoding the videos is not timed."""
    processor = AutoProcessor.from_pretrained(spec["weights"])
    model = AutoModelForImageTextToText.from_pretrained(
        spec["weights"], dtype=torch.float32, attn_implementation="sdpa"
    )
    content = [{"type": "video"}, {"type": "text", "text": spec["prompt"]}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    videos = [
        fetch_video({"video": path, "fps": 1.0, **spec["pixels"]}, return_video_metadata=True)
        for path in spec["videos"]
    ]
    recorder = Recorder(**{**spec["record"], "file": Path(spec["record"]["file"])})
    recorder.start()
    written = []
    for frames, metadata in videos:
        inputs = processor(
            text=[text],
            videos=[frames],
            video_metadata=[metadata],
            do_sample_frames=False,
            do_resize=False,
            cap_pixels_per_frame=False,
            return_tensors="pt",
        )
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=spec["max_new_tokens"])
        written.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
        recorder.step()
    texts = [processor.tokenizer.decode(ids, skip_special_tokens=True) for ids in written]
    recorder.finish(texts=texts, written=[len(ids) for ids in written])


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
