"""Runs a frozen vision tower once per clip and caches its outputs, see `FeatureCache`."""

import hashlib
import json
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor

from rbft.backbone.family import Family
from rbft.backbone.loading import parameter_parts
from rbft.batch import Batch
from rbft.video.feature_cache import EncodedVideo, FeatureCache

# Attributes of the video processor that the tower's inputs depend on.
PROCESSING = ("rescale_factor", "image_mean", "image_std", "patch_size", "temporal_patch_size")
# Part of every digest: raise it when the same tower computes other features than before.
VERSION = 1


def check_frozen(max_bytes: int, learning_rate: float, strategy: Strategy) -> None:
    """Refuses to cache the outputs of a vision tower that is trainable or sharded.

    Args:
        max_bytes: Maximum size of the cache; 0 disables it.
        learning_rate: The vision tower's.
        strategy: How the Trainer spreads the model.

    Raises:
        ValueError: Naming the settings.
    """
    if not max_bytes:
        return
    size = f"data.feature_cache_gb ({max_bytes / 1e9:g})"
    if learning_rate > 0:
        raise ValueError(
            f"{size} keeps the outputs of a frozen vision tower, but this one trains: "
            f"model.vision_learning_rate is {learning_rate:g}. Set it to 0 to freeze the tower, or "
            "data.feature_cache_gb to 0."
        )
    if isinstance(strategy, ModelParallelStrategy):
        raise ValueError(
            f"{size} needs the vision tower in one piece, but trainer.strategy is "
            f"{type(strategy).__name__}. Set data.feature_cache_gb to 0, or another strategy."
        )


def tower_digest(backbone: Any, family: Family, processor: Any, precision: str) -> str:
    """Digest of everything that a vision tower's outputs depend on: weights and preprocessing.

    Reads all weights of the tower, a second or two for the 0.7 billion of Qwen2.5-VL.

    Args:
        backbone: The model.
        family: Its family.
        processor: Its processor.
        precision: The Trainer's precision, in which the tower runs.
    """
    facts = {name: getattr(processor.video_processor, name) for name in PROCESSING}
    facts |= {"version": VERSION, "precision": precision}
    facts["vision"] = backbone.config.vision_config.to_diff_dict()
    made = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, parameter in parameter_parts(backbone, family)["vision"]:
        values = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
        made.update(f"{name}:{parameter.dtype}:{tuple(parameter.shape)}".encode())
        made.update(values.numpy().data)
    return made.hexdigest()


def tower_features(
    backbone: Any, family: Family, batch: Batch, cache: FeatureCache
) -> list[Tensor]:
    """The vision tower's output for each clip of a batch; runs for clips without cached output.

    Args:
        backbone: The model; its vision tower must be frozen.
        family: Its family.
        batch: A batch with `cached` features.
        cache: Stores new outputs.
    """
    cached = batch.cached
    assert cached is not None
    grids = batch.video["video_grid_thw"]
    todo = [index for index, found in enumerate(cached.features) if found is None]
    patches = (
        batch.video["pixel_values_videos"].split(grids[todo].prod(-1).tolist()) if todo else ()
    )
    for index, pixels in zip(todo, patches, strict=True):
        # One by one: rounding then depends on the clip alone, and an interrupted run that resumes
        # ends with the same bits.
        with torch.no_grad():
            grid = grids[index : index + 1].to(pixels.device)
            own = family.features(backbone.model.visual, pixels, grid)
        # In the batch too: the model may run on it more than once.
        cached.features[index] = own
        if cached.keys[index]:
            shown = batch.frames[index] if batch.frames else {}
            seen = EncodedVideo(own, grids[index].tolist(), cached.sampled_fps[index], shown)
            cache.put(cached.keys[index], seen)
    return [found for found in cached.features if found is not None]


def embed_features(backbone: Any, family: Family, features: list[Tensor]) -> dict[str, Any]:
    """Arguments of the backbone's forward with video embeddings instead of pixels.

    Runs the merger, which may be trainable, on the tower's outputs.

    Args:
        backbone: The model.
        family: Its family.
        features: The tower's output for each clip.
    """
    return {"mm_encoder_outputs": {"video": family.merge(backbone.model.visual, features)}}
