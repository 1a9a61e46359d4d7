"""Which setting was meant by a name that is none."""

import difflib
from collections.abc import Collection

# What other trainers call our settings, by the last part of the name.
OTHER_NAMES = {
    "adapter": ("model.lora",),
    "attn_implementation": ("model.attention",),
    "base_model": ("model.backbone",),
    "bf16": ("trainer.precision",),
    "checkpoint": ("model.weights", "ckpt_path"),
    "class_names": ("data.card",),
    "dataloader_num_workers": ("data.num_workers",),
    "dataset": ("data", "data.root"),
    "dataset_dir": ("data.root",),
    "deepspeed": ("trainer.strategy",),
    "device": ("trainer.accelerator",),
    "do_sample": ("model.rationale_sampling",),
    "dtype": ("trainer.precision",),
    "early_stopping": ("patience", "keep"),
    "epoch": ("trainer.max_epochs",),
    "epochs": ("trainer.max_epochs",),
    "eval_steps": ("trainer.val_check_interval",),
    "experiment_name": ("name",),
    "finetuning_type": ("model.lora",),
    "fp16": ("trainer.precision",),
    "frames": ("data.num_frames", "data.fps"),
    "freeze_vit": ("model.vision_learning_rate",),
    "gpu": ("trainer.accelerator", "trainer.devices"),
    "gpus": ("trainer.devices",),
    "grad_accum": ("data.global_batch_size",),
    "grad_clip": ("trainer.gradient_clip_val",),
    "gradient_accumulation_steps": ("data.global_batch_size",),
    "load_in_4bit": ("model.quantize",),
    "lora_target": ("model.lora.target_modules",),
    "lora_target_modules": ("model.lora.target_modules",),
    "log_dir": ("trainer.default_root_dir",),
    "logging_steps": ("trainer.log_every_n_steps",),
    "lora_alpha": ("model.lora.alpha",),
    "lora_dropout": ("model.lora.dropout",),
    "lora_r": ("model.lora.rank",),
    "lora_rank": ("model.lora.rank",),
    "lr": ("model.learning_rate",),
    "max_grad_norm": ("trainer.gradient_clip_val",),
    "max_num_frames": ("data.max_frames",),
    "model_id": ("model.backbone",),
    "model_name": ("model.backbone",),
    "model_name_or_path": ("model.backbone",),
    "model_path": ("model.backbone", "model.weights"),
    "n_frames": ("data.num_frames",),
    "nframes": ("data.num_frames",),
    "nproc_per_node": ("trainer.devices",),
    "num_epochs": ("trainer.max_epochs",),
    "num_gpus": ("trainer.devices",),
    "num_train_epochs": ("trainer.max_epochs",),
    "output_dir": ("trainer.default_root_dir", "name"),
    "per_device_eval_batch_size": ("data.eval_batch_size",),
    "per_device_train_batch_size": ("data.batch_size",),
    "pretrained": ("model.backbone", "model.weights"),
    "prompt": ("data.card", "data.rationale_prompt"),
    "report_to": ("trainer.logger",),
    "resolution": ("data.max_pixels",),
    "resume": ("ckpt_path",),
    "resume_from_checkpoint": ("ckpt_path",),
    "run_name": ("name",),
    "save_steps": ("checkpoint_every",),
    "steps": ("trainer.max_steps",),
    "task": ("stages", "model.stage"),
    "test_batch_size": ("data.eval_batch_size",),
    "train_batch_size": ("data.global_batch_size", "data.batch_size"),
    "use_lora": ("model.lora",),
    "val_ratio": ("data.val_fraction",),
    "val_size": ("data.val_fraction",),
    "val_split": ("data.val_fraction",),
    "video_dir": ("data.root", "data.videos"),
    "video_folder": ("data.root", "data.videos"),
    "wandb": ("trainer.logger",),
    "warmup": ("model.warmup_ratio",),
    "wd": ("model.weight_decay",),
    "workers": ("data.num_workers",),
}
MOST = 3  # that are suggested


def near_misses(name: str, known: Collection[str]) -> list[str]:
    """Settings that may be meant, the likeliest first: at most three.

    Those that are called so elsewhere come first, then those of the same last part (`batch_size`
    for `data.batch_size`), then those that are spelt much alike.

    Args:
        name: What was given, without leading hyphens.
        known: Dotted names of all settings.
    """
    name = name.replace("-", "_")
    last = name.rpartition(".")[2]
    ends = {one: one.rpartition(".")[2] for one in sorted(known)}
    elsewhere = [one for one in OTHER_NAMES.get(last.lower(), ()) if one in known]
    same = [one for one, end in ends.items() if end == last.lower()]
    if found := list(dict.fromkeys([*elsewhere, *same])):
        return found[:MOST]
    if near := difflib.get_close_matches(name, ends, n=MOST, cutoff=0.6):
        return near
    like = difflib.get_close_matches(last, set(ends.values()), n=1, cutoff=0.75)
    return [one for one, end in ends.items() if end in like][:MOST]


def unknown_setting(name: str, known: Collection[str]) -> str:
    """What is said of a setting that is none.

    Args:
        name: What was given.
        known: Dotted names of all settings.
    """
    near = near_misses(name, known)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"there is no setting '{name}'.{hint}"
