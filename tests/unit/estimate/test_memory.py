"""Estimated memory against counts, against what autograd keeps and against torch's own tracker.

The tracker follows a whole step on tensors without data (FakeTensorMode); no GPU is involved.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode

from rbft.backbone.adapters import LoRA, add_adapters
from rbft.backbone.blocks import recompute_blocks
from rbft.backbone.family import FAMILIES
from rbft.backbone.loading import parameter_parts
from rbft.estimate.flops import ClipTokens
from rbft.estimate.memory import (
    FOUR_BIT_BYTES,
    MemorySettings,
    compute_bytes_of,
    decoder_bytes_per_token,
    step_memory,
    tower_bytes_per_patch,
    weight_bytes,
)
from rbft.training.loss import token_nll
from tests.tiny import FAMILY_NAMES, FamilyName

PRECISIONS = ("32-true", "bf16-true", "bf16-mixed")
# Qwen2.5-VL-7B, Qwen2-VL-7B and Qwen3-VL-8B, as the hub counts their files' tensors.
PARAMETERS = {
    "qwen2_5_vl": 8_292_166_656,
    "qwen2_vl": 8_291_375_616,
    "qwen3_vl": 8_767_123_696,
}
SEVEN = {"hidden": 3584, "inner": 18944, "heads": 28, "few": 4, "layers": 28, "depth": 32}
SEVEN |= {"width": 1280, "tower_inner": 3420, "tower_heads": 16, "vocabulary": 152064}
EIGHT = {"hidden": 4096, "inner": 12288, "heads": 32, "few": 8, "layers": 36, "depth": 27}
EIGHT |= {"width": 1152, "tower_inner": 4304, "tower_heads": 16, "vocabulary": 151936}
# The proportions of the 7B model at an eighth of its width.
SMALL = {"hidden": 448, "inner": 2368, "heads": 7, "few": 1, "layers": 2, "depth": 2}
SMALL |= {"width": 160, "tower_inner": 428, "tower_heads": 2, "vocabulary": 2000}


def backbone(family: FamilyName, size: dict[str, int]) -> Any:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
    )

    head = size["hidden"] // size["heads"]
    text = {
        "vocab_size": size["vocabulary"],
        "hidden_size": size["hidden"],
        "intermediate_size": size["inner"],
        "num_hidden_layers": size["layers"],
        "num_attention_heads": size["heads"],
        "num_key_value_heads": size["few"],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [head // 8, 3 * head // 16, 3 * head // 16],
        },
    }
    if family == "qwen3_vl":
        places = list(range(8, size["depth"], 8)) or [0]
        vision = {"hidden_size": size["width"], "intermediate_size": size["tower_inner"]}
        vision |= {"depth": size["depth"], "num_heads": size["tower_heads"]}
        vision |= {"out_hidden_size": size["hidden"], "deepstack_visual_indexes": places}
        text["rope_parameters"] |= {"mrope_interleaved": True}
        return Qwen3VLForConditionalGeneration(
            Qwen3VLConfig(text_config={**text, "head_dim": head}, vision_config=vision)
        )
    if family == "qwen2_vl":
        vision = {"embed_dim": size["width"], "hidden_size": size["hidden"]}
        vision |= {"depth": size["depth"], "num_heads": size["tower_heads"]}
        return Qwen2VLForConditionalGeneration(
            Qwen2VLConfig(text_config=text, vision_config=vision)
        )
    vision = {"hidden_size": size["width"], "out_hidden_size": size["hidden"]}
    vision |= {"depth": size["depth"], "num_heads": size["tower_heads"]}
    vision |= {"intermediate_size": size["tower_inner"]}
    vision |= {"fullatt_block_indexes": list(range(7, size["depth"], 8)) or [1]}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return Qwen2_5_VLForConditionalGeneration(config)


@contextmanager
def default_dtype(precision: str) -> Iterator[Any]:
    """Torch's default dtype and autocast as Lightning sets them."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if precision == "bf16-true" else torch.float32)
    mixed = precision == "bf16-mixed"
    autocast = torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
    try:
        yield autocast if mixed else nullcontext()
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_real_models_are_counted_exactly(family):
    with torch.device("meta"):
        model = backbone(family, EIGHT if family == "qwen3_vl" else SEVEN)
    parts = parameter_parts(model, FAMILIES[family])
    sizes = {part: sum(p.numel() for _, p in named) for part, named in parts.items()}
    assert sum(sizes.values()) == PARAMETERS[family]
    clip = ClipTokens((8, 20, 20), 800, 100, 100)
    memory = step_memory(model, FAMILIES[family], model.config, [clip], MemorySettings(2, True))
    assert memory.weights == memory.gradients == 4 * PARAMETERS[family]
    assert memory.optimizer_states == 2 * memory.weights
    assert memory.peak > 16 * PARAMETERS[family]
    shared = step_memory(
        model, FAMILIES[family], model.config, [clip], MemorySettings(2, True, shards=8)
    )
    assert shared.persistent == 16 * PARAMETERS[family] // 8
    ddp = MemorySettings(2, True, ddp=True)
    copied = step_memory(model, FAMILIES[family], model.config, [clip], ddp)
    assert copied.gradients == 2 * memory.gradients


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made and still referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            storage = made.untyped_storage()
            place, size = storage.data_ptr(), storage.nbytes()
            if place not in self.known:
                self.known.add(place)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.free, place, size)
        return made

    def free(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.now -= size


def kept_bytes(model: nn.Module, run: Any) -> int:
    """What autograd keeps of a forward pass, weights and autocast's copies of them left out.

    The identities that DoRA makes for a moment are left out too.
    """
    kept: dict[int, Tensor] = {}
    shapes = {p.shape for p in model.parameters()}
    shapes |= {shape[::-1] for shape in shapes if len(shape) == 2}

    def keep(tensor: Tensor) -> Tensor:
        square = tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]
        if tensor.shape not in shapes and not square:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_block_keeps_what_the_formula_says(family, precision):
    tokens = 608  # no other size of the model
    with default_dtype(precision) as autocast:
        model = backbone(family, SMALL).train()
        settings = MemorySettings(compute_bytes_of(precision), False)
        decoder, vision = model.model.language_model, model.model.visual
        hidden = torch.randn(1, tokens, SMALL["hidden"], requires_grad=True)
        positions = torch.arange(tokens).expand(3, 1, -1)
        angles = decoder.rotary_emb(hidden, positions)
        shared = {"position_embeddings": angles, "attention_mask": None}
        with autocast:
            layer = decoder.layers[0]
            found = kept_bytes(layer, lambda: layer(hidden, position_ids=positions[0], **shared))
            patches = vision.patch_embed(torch.randn(tokens, 6 * vision.config.patch_size**2))
            angles = torch.randn(tokens, SMALL["width"] // SMALL["tower_heads"])
            bounds = torch.tensor([0, tokens // 2, tokens])
            seen = {"cu_seqlens": bounds, "max_seqlen": tokens // 2}
            seen["position_embeddings"] = (angles, angles)
            block = vision.blocks[0]
            tower = kept_bytes(block, lambda: block(patches, **seen))
    assert found / tokens == pytest.approx(
        decoder_bytes_per_token(model, model.config, settings), rel=0.1
    )
    # Beside the formula's, the angles of a head in 32 bits, much for two heads, little for sixteen.
    assert tower / tokens == pytest.approx(
        tower_bytes_per_patch(model, model.config, settings), rel=0.13
    )


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("rank", [4, 32])
def test_a_block_with_adapters_keeps_what_the_formula_says(rank, dora):
    """Frozen weights in bf16, adapters in 32 bits, as in bf16-mixed."""
    tokens = 608
    with default_dtype("bf16-true"):
        model = backbone("qwen2_5_vl", SMALL).train()
        hidden = torch.randn(1, tokens, SMALL["hidden"], requires_grad=True)
    with default_dtype("bf16-mixed") as autocast:
        add_adapters(model, LoRA(rank=rank, use_dora=dora), None, merger=False)
        layer = model.model.language_model.layers[0]
        positions = torch.arange(tokens).expand(3, 1, -1)
        angles = model.model.language_model.rotary_emb(hidden, positions)
        shared = {"position_embeddings": angles, "attention_mask": None}
        with autocast:
            found = kept_bytes(layer, lambda: layer(hidden, position_ids=positions[0], **shared))
            live = LiveBytes()
            with live:
                kept = layer.mlp(hidden)
    expected = decoder_bytes_per_token(model, model.config, MemorySettings(2, False))
    assert found / tokens == pytest.approx(expected, rel=0.2)
    if dora:  # the norms of the widest layer's weights, for a moment
        large = (4 + 2) * SMALL["inner"] ** 2 + 12 * SMALL["inner"] * SMALL["hidden"]
        assert live.peak - live.now == pytest.approx(large, rel=0.2)
        clip, family = ClipTokens((8, 20, 20), 800, 100, 100), FAMILIES["qwen2_5_vl"]
        settings = MemorySettings(2, True)
        decomposed = step_memory(model, family, model.config, [clip], settings)
        plain = backbone("qwen2_5_vl", SMALL)
        add_adapters(plain, LoRA(rank=rank), None, merger=False)
        without = step_memory(plain, family, model.config, [clip], settings)
        assert decomposed.block_backward > without.block_backward + large
        rows = 3 * SMALL["hidden"] + 2 * SMALL["inner"] + 2 * 64
        assert decomposed.gradients - without.gradients == 4 * SMALL["layers"] * rows
    assert kept is not None


@pytest.mark.parametrize("checkpointing", [True, 0.5, False])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_peak_of_a_step_is_what_torch_tracks(precision, checkpointing):
    """The second step, when gradients and optimiser state are there."""
    grid, prompt, answer = (12, 32, 32), 40, 60
    clip = ClipTokens(grid, 12 * 32 * 32 // 4, prompt, answer)
    family = FAMILIES["qwen2_vl"]  # no windows: a tenth of the operations
    size = {**SMALL, "hidden": 896, "inner": 4864, "heads": 14, "few": 2}
    with default_dtype(precision) as autocast, FakeTensorMode(allow_non_fake_inputs=True):
        model = backbone("qwen2_vl", size).train()
        recompute_blocks(model, checkpointing)
        optimiser = torch.optim.AdamW(model.parameters(), fused=True)
        tracker = MemTracker()
        tracker.track_external(model)
        for _ in range(2):
            tracker.reset_mod_stats()
            with tracker:
                with autocast:
                    loss = forward(model, clip)
                loss.backward()
                optimiser.step()
        settings = MemorySettings(compute_bytes_of(precision), checkpointing)
        memory = step_memory(model, family, model.config, [clip], settings)
    tracked = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    assert memory.peak == pytest.approx(tracked["Total"], rel=0.1)
    # Weights and the rest do not hide it: activations are a good part of the peak.
    assert checkpointing is True or memory.saved_decoder + memory.saved_vision > 0.3 * memory.peak


def forward(model: Any, clip: ClipTokens) -> Tensor:
    """A forward pass as the module makes it, but of frames whose places no data decides."""
    vision, decoder = model.model.visual, model.model.language_model
    hidden = vision.patch_embed(torch.randn(clip.patches, 1176))
    angles = torch.randn(clip.patches, SMALL["width"] // SMALL["tower_heads"])
    frames = Bounds(list(range(0, clip.patches + 1, clip.grid[1] * clip.grid[2])))
    for block in vision.blocks:
        hidden = block(hidden, cu_seqlens=frames, position_embeddings=(angles, angles))
    words = decoder.embed_tokens(torch.zeros(1, clip.prompt + clip.answer, dtype=torch.long))
    inputs = torch.cat([vision.merger(hidden)[None].to(words.dtype), words], 1)
    hidden = decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[0, -clip.answer :])
    targets = torch.zeros(clip.answer, dtype=torch.long)
    return token_nll(logits, targets).mean()


class Bounds:
    """Stands for a tensor of places, whose values FakeTensorMode does not know."""

    def __init__(self, places: list[int]) -> None:
        self.places = places

    def __getitem__(self, part: slice) -> "Bounds":
        return Bounds(self.places[part])

    def __sub__(self, other: "Bounds") -> "Bounds":
        return Bounds([a - b for a, b in zip(self.places, other.places, strict=True)])

    def tolist(self) -> list[int]:
        return self.places


def test_four_bits_pack_the_decoder_s_frozen_layers_only():
    with torch.device("meta"):
        model = backbone("qwen2_5_vl", SMALL)
    add_adapters(model, LoRA(rank=4), None, merger=False)
    family = FAMILIES["qwen2_5_vl"]
    plain = weight_bytes(model, family, MemorySettings(2, True))
    packed = weight_bytes(model, family, MemorySettings(2, True, four_bit=True))
    layers = model.model.language_model.layers
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    inside = sum(
        module.base_layer.weight.numel()
        for name, module in layers.named_modules()
        if name.endswith(names)
    )
    assert plain == sum(4 * p.numel() for p in model.parameters())
    assert packed == pytest.approx(plain - inside * (4 - FOUR_BIT_BYTES), abs=100)


def test_more_clips_take_more_and_frozen_towers_less():
    with torch.device("meta"):
        model = backbone("qwen2_5_vl", SMALL)
    family, clip = FAMILIES["qwen2_5_vl"], ClipTokens((8, 20, 20), 800, 100, 100)

    def memory(count: int) -> Any:
        return step_memory(model, family, model.config, [clip] * count, MemorySettings(4, True))

    one, two = memory(1), memory(2)
    assert (two.saved_decoder, two.saved_vision, two.logits) == (
        2 * one.saved_decoder,
        2 * one.saved_vision,
        2 * one.logits,
    )
    assert two.persistent == one.persistent
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(family.part(name) != "vision")
    assert memory(1).saved_vision == 0
    assert memory(1).weights == one.weights
    assert memory(1).gradients < one.gradients
