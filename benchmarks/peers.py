"""Runs another trainer as its documentation says, with a recorder among its callbacks.

Run by train_step.py in the trainer's own environment: python peers.py NAME SPEC.json. Needs
nothing of rbft. All of them are built on transformers' Trainer, whose list of default callbacks
takes the recorder.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import Recorder


def settings(spec: dict[str, Any]) -> dict[str, Any]:
    """Transformers' TrainingArguments for the paper's settings, one thread, 32 bits."""
    return {
        "output_dir": spec["output"],
        "per_device_train_batch_size": spec["batch"],
        "gradient_accumulation_steps": 1,
        "num_train_epochs": spec["epochs"],
        "learning_rate": 1e-5,
        "weight_decay": 0.1,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": spec["clip"],
        "logging_steps": 1 if spec["record"]["compare"] else 5,
        "gradient_checkpointing": spec["checkpointing"],
        "save_strategy": "no",
        "report_to": "none",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "bf16": False,
    }


def conversations(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The clips as rbft exported them for ms-swift."""
    text = Path(spec["data"]["swift"]).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def load(spec: dict[str, Any]) -> tuple[Any, Any]:
    """Model and processor."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(
        spec["backbone"], dtype=torch.float32, attn_implementation="sdpa"
    )
    return model, AutoProcessor.from_pretrained(spec["backbone"])


def collator(
    processor: Any, pixels: dict[str, int], fps: int
) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """What a user has to write for a trainer that takes no video."""
    from qwen_vl_utils.vision_process import fetch_video

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        texts, videos, metadata, lengths = [], [], [], []
        for row in rows:
            question, answer = (turn["content"] for turn in row["messages"])
            content = [{"type": "video"}, {"type": "text", "text": question.split("<video>")[1]}]
            asked = processor.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            texts.append(f"{asked}{answer}<|im_end|>")
            lengths.append(len(processor.tokenizer(f"{answer}<|im_end|>")["input_ids"]))
            video, facts = fetch_video(
                {"video": row["videos"][0], "fps": fps, **pixels}, return_video_metadata=True
            )
            videos.append(video)
            metadata.append(facts)
        batch = processor(
            text=texts,
            videos=videos,
            video_metadata=metadata,
            do_sample_frames=False,
            do_resize=False,
            cap_pixels_per_frame=False,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for row, (mask, length) in enumerate(zip(batch["attention_mask"], lengths, strict=True)):
            labels[row, : int(mask.sum()) - length] = -100
        return {**batch, "labels": labels}

    return collate


def transformers(spec: dict[str, Any]) -> None:
    """Transformers' Trainer, with a collator of one's own."""
    from transformers import Trainer, TrainingArguments

    model, processor = load(spec)
    args = TrainingArguments(**settings(spec), warmup_steps=0.03, use_cpu=True)
    record(spec)
    Trainer(
        model,
        args,
        train_dataset=conversations(spec),
        data_collator=collator(processor, spec["pixels"], spec["fps"]),
    ).train()


def trl(spec: dict[str, Any]) -> None:
    """TRL's SFTTrainer, which takes no video either, with the same collator."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, processor = load(spec)
    args = SFTConfig(
        **settings(spec),
        warmup_steps=0.03,
        use_cpu=True,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    record(spec)
    SFTTrainer(
        model,
        args,
        train_dataset=Dataset.from_list(conversations(spec)),
        data_collator=collator(processor, spec["pixels"], spec["fps"]),
        processing_class=processor,
    ).train()


def swift(spec: dict[str, Any]) -> None:
    """ms-swift's `swift sft`, all parts trained at the paper's three learning rates."""
    os.environ |= {
        "FPS": str(spec["fps"]),
        "FPS_MIN_FRAMES": "4",
        "VIDEO_MIN_PIXELS": str(spec["pixels"]["min_pixels"]),
        "VIDEO_MAX_PIXELS": str(spec["pixels"]["max_pixels"]),
    }
    from swift import sft_main
    from swift.template import TEMPLATE_MAPPING

    record(spec)  # after the import, which puts other default callbacks in place
    # rbft learns the end of the turn, not the line break after it: the same tokens for all.
    TEMPLATE_MAPPING["qwen2_5_vl"].suffix = ["<|im_end|>"]
    given = {
        **settings(spec),
        "model": spec["backbone"],
        "model_type": "qwen2_5_vl",
        "template": "qwen2_5_vl",
        "dataset": spec["data"]["swift"],
        "tuner_type": "full",
        "freeze_vit": False,
        "freeze_aligner": False,
        "vit_lr": 2e-6,
        "aligner_lr": 1e-5,
        "warmup_ratio": 0.03,
        "torch_dtype": "float32",
        "attn_impl": "sdpa",
        "vit_gradient_checkpointing": spec["checkpointing"],
        "max_length": 32_768,
        "split_dataset_ratio": 0,
        "dataset_num_proc": 1,
    }
    sft_main(
        [
            part
            for name, value in given.items()
            for part in (f"--{name}", str(value).lower() if isinstance(value, bool) else str(value))
        ]
    )


def llamafactory(spec: dict[str, Any]) -> None:
    """LLaMA-Factory's `llamafactory-cli train`, all parts trained at one learning rate."""
    from llamafactory.data.template import TEMPLATES
    from llamafactory.train.tuner import run_exp

    record(spec)
    TEMPLATES["qwen2_vl"].format_assistant.slots = ["{{content}}<|im_end|>"]  # as above
    data = Path(spec["data"]["llamafactory"])
    given = {
        **settings(spec),
        "model_name_or_path": spec["backbone"],
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "freeze_vision_tower": False,
        "freeze_multi_modal_projector": False,
        "template": "qwen2_vl",
        "dataset": data.stem,
        "dataset_dir": str(data.parent),
        "cutoff_len": 32_768,
        "flash_attn": "sdpa",
        "disable_gradient_checkpointing": not spec["checkpointing"],
        "video_fps": float(spec["fps"]),
        "video_min_pixels": spec["pixels"]["min_pixels"],
        "video_max_pixels": spec["pixels"]["max_pixels"],
        "warmup_steps": 0.03,
        "use_cpu": True,
        "preprocessing_num_workers": 1,
    }
    run_exp(given)


def record(spec: dict[str, Any]) -> None:
    """Puts a recorder among the callbacks of every Trainer that is made from now on."""
    from transformers import TrainerCallback
    from transformers.trainer import DEFAULT_CALLBACKS

    recorder = Recorder(**{**spec["record"], "file": Path(spec["record"]["file"])})

    class Clock(TrainerCallback):
        """Tells the recorder of every optimiser step."""

        def on_train_begin(self, *args: Any, model: Any, **_: Any) -> None:
            recorder.watch(model)

        def on_pre_optimizer_step(self, *args: Any, model: Any, **_: Any) -> None:
            recorder.gradients(model)

        def on_step_end(self, *args: Any, **_: Any) -> None:
            recorder.step()

        def on_log(self, *args: Any, logs: dict[str, Any], **_: Any) -> None:
            if "loss" in logs:
                recorder.logged(float(logs["loss"]))

    DEFAULT_CALLBACKS.append(Clock)


PEERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "transformers": transformers,
    "trl": trl,
    "swift": swift,
    "llamafactory": llamafactory,
}

if __name__ == "__main__":
    name, file = sys.argv[1:]
    given = json.loads(Path(file).read_text(encoding="utf-8"))
    import torch

    torch.set_num_threads(1)
    PEERS[name](given)
