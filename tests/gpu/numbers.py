"""Checks of a tiny model's numbers: device against processor, and one way against another."""

import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Findings
from rbft.backbone.family import FAMILIES, PARTS
from rbft.module import RBFTModule
from tests.gpu.world import (
    apart,
    ask,
    distance,
    flags_kept,
    fresh,
    make_batch,
    predict,
    scores_of,
    share_same,
    step,
    texts_of,
    wait,
)

# Attention, and whether clips stand in one row.
WAYS = (("sdpa", True), ("sdpa", False), ("eager", False), ("flash_attention_2", True))


def padded(found: Findings, device: torch.device, folder: Path) -> None:
    """Four clips in a padded batch against one by one: the same scores and texts, all finite."""
    for precision, limit in (("32-true", 1e-4), ("bf16-mixed", 2e-3)):
        scores, texts = {}, {}
        for batch in (1, 4):
            how = {"precision": precision, "batch": batch, "max_new_tokens": 12}
            _, said = predict(folder, device, "label", **how)
            scores[batch] = scores_of(said)
            _, said = predict(folder, device, "rationale", **how)
            texts[batch] = texts_of(said)
        found.same(f"{precision}: scores are finite", bool(scores[4].isfinite().all()), True)
        found.at_most(f"{precision}: scores apart", apart(scores[4], scores[1]), limit)
        name = f"{precision}: share of the same tokens"
        if precision == "32-true":
            found.same(name, share_same(texts[4], texts[1]), 1.0)
        else:  # rounding tips the scales between tokens that a random model finds alike
            found.note(name, share_same(texts[4], texts[1]))


def precisions(found: Findings, device: torch.device, folder: Path) -> None:
    """Loss, gradients and scores on the device against eager attention in float32 on the processor.

    For every attention, packed and padded, one clip and several, in float32 and in bf16-mixed.
    """
    from transformers.utils.import_utils import is_flash_attn_2_available

    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    processor, family = torch.device("cpu"), FAMILIES["qwen2_5_vl"]
    for clips in (3, 1):
        reference = fresh(folder, processor, attention="eager")
        batch = make_batch(folder, processor, clips, packing=False)
        loss, gradients, scores = step(reference, batch)
        for attention, packing in WAYS:
            if attention == "flash_attention_2" and not is_flash_attn_2_available():
                found.note("flash_attention_2", "left out: it is not installed")
                continue
            made = fresh(folder, device, attention=attention, packing=packing)
            there = make_batch(folder, device, clips, packing=packing)
            for bf16 in (False, True):
                if attention == "flash_attention_2" and not bf16:
                    continue
                own, grads, said = step(made, there, bf16=bf16)
                limit = 2e-3 if bf16 else 1e-4
                name = f"{attention} {'packed' if packing else 'padded'}, {clips} clips, "
                name += "bf16" if bf16 else "float32"
                found.at_most(f"{name}: loss", apart(own, loss), limit)
                found.at_most(f"{name}: scores", apart(said, scores), limit)
                for part in PARTS:
                    names = [n for n in gradients if family.part(n) == part]
                    far = distance({n: grads[n] for n in names}, {n: gradients[n] for n in names})
                    found.at_most(f"{name}: gradients of {part}", far, 2e-2 if bf16 else 1e-4)


def checkpointing(found: Findings, device: torch.device, folder: Path) -> None:
    """Checkpointing on and off: same loss and gradients. Are two equal steps equal to the bit?"""
    batch = make_batch(folder, device, 3, packing=True)
    for name, bf16, limit in (("float32", False, 1e-5), ("bf16", True, 1e-2)):
        plain = fresh(folder, device, packing=True)
        loss, gradients, _ = step(plain, batch, bf16=bf16)
        again, repeated, _ = step(plain, batch, bf16=bf16)
        equal = all(torch.equal(repeated[n], gradients[n]) for n in gradients)
        found.note(f"{name}: two equal steps are equal to the bit", equal and bool(again == loss))
        found.at_most(f"{name}: two equal steps apart", distance(repeated, gradients), limit)
        made = fresh(folder, device, packing=True, gradient_checkpointing=True)
        runs, before = _runs(made), _runs(plain)
        own, grads, _ = step(made, batch, bf16=bf16)
        step(plain, batch, bf16=bf16)
        found.same(f"{name}: times that a block runs more often", len(runs) - len(before), 1)
        found.at_most(f"{name}: loss", apart(own, loss), limit)
        found.at_most(f"{name}: gradients", distance(grads, gradients), limit)


def _runs(made: RBFTModule) -> list[None]:
    """Grows by one whenever the first decoder block's MLP begins."""
    seen: list[None] = []
    mlp = made.backbone.model.language_model.layers[0].mlp
    mlp.register_forward_pre_hook(lambda *_: seen.append(None))
    return seen


def bf16_true(found: Findings, device: torch.device, folder: Path) -> None:
    """bf16-true: rotary frequencies stay in 32 bits, and scores are about those of bf16-mixed."""
    made, said = predict(folder, device, "label", precision="bf16-true", batch=4)
    waves = {b.dtype for name, b in made.backbone.named_buffers() if name.endswith("inv_freq")}
    found.same("precision of inv_freq", sorted(map(str, waves)), ["torch.float32"])
    weights = {parameter.dtype for parameter in made.backbone.parameters()}
    found.same("precision of the weights", sorted(map(str, weights)), ["torch.bfloat16"])
    _, mixed = predict(folder, device, "label", precision="bf16-mixed", batch=4)
    _, exact = predict(folder, device, "label", precision="32-true", batch=4)
    found.at_most("scores, apart from bf16-mixed", apart(scores_of(said), scores_of(mixed)), 2e-3)
    found.at_most("scores, apart from 32-true", apart(scores_of(said), scores_of(exact)), 2e-3)


def stage0(found: Findings, device: torch.device, folder: Path) -> None:
    """Stage 0 writes the same text again; time by token with cuDNN's attention off and on."""
    tokens = 64 if device.type == "cuda" else 8
    texts, seconds = {}, 0.0
    how: dict[str, Any] = {
        "precision": "bf16-mixed" if device.type == "cuda" else "32-true",
        "batch": 8,
        "clips": 8,
    }
    for cudnn in (False, True):
        with flags_kept():
            made, _ = predict(
                folder, device, "rationale", **how, max_new_tokens=tokens, cudnn_attention=cudnn
            )
            made.generation["eos_token_id"] = []  # none ends before the others
            runs = []
            for _ in range(2):
                wait(device)
                started = time.perf_counter()
                runs.append(texts_of(ask(folder, device, made, **how)))
                wait(device)
                seconds = time.perf_counter() - started
        name = f"cuDNN {'on' if cudnn else 'off'}"
        found.note(
            f"{name}: ms a token of 8 clips, prompts and frames included", 1e3 * seconds / tokens
        )
        found.same(f"{name}: tokens of a text", sorted({len(ids) for ids in runs[0]}), [tokens])
        found.same(f"{name}: share of the same tokens, again", share_same(*runs), 1.0)
        texts[cudnn] = runs[0]
    found.note("share of the same tokens, on and off", share_same(texts[True], texts[False]))
