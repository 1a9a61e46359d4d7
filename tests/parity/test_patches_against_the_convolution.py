"""The patch embedding as a matrix product against transformers' convolution."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from rbft.backbone.kernels import PatchProjection
from rbft.backbone.loading import load_config, load_model, load_processor
from rbft.backbone.vision_features import tower_digest
from tests.examples import batch_of, collator, examples, module

NAME = "model.visual.patch_embed.proj.weight"


@pytest.fixture
def both(backbone: Path) -> tuple[Any, Any]:
    """Ours, as it is where there is a GPU, and transformers' own."""
    with gpu():
        ours = load_model(str(backbone), "sdpa", False)
    return ours, AutoModelForImageTextToText.from_pretrained(backbone, dtype=torch.float32)


@contextmanager
def gpu() -> Iterator[None]:
    """As if there were a GPU when a model is loaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        yield


def test_on_a_processor_it_stays_a_convolution(qwen: Path) -> None:
    model = load_model(str(qwen), "sdpa", False)
    assert not isinstance(model.model.visual.patch_embed.proj, PatchProjection)


def test_a_step_of_training(backbone: Path) -> None:
    batch, found = batch_of(collator(backbone, target_stage="label", packing=True), examples(4)), []
    for context in (gpu(), nullcontext()):
        with context:
            model = module(backbone)
        loss = model.loss(batch)
        loss.backward()
        gradients = {n: p.grad for n, p in model.backbone.named_parameters() if p.grad is not None}
        found.append((loss.detach(), gradients))
    (ours, gradients), (theirs, expected) = found
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert gradients.keys() == expected.keys()
    assert NAME in gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-3, msg=name)


def patches(backbone: Path) -> tuple[Tensor, Tensor]:
    video = collator(backbone, prompt_stage="label")(examples(3)).video
    return video["pixel_values_videos"], video["video_grid_thw"]


def test_forward_and_backward(backbone: Path, both: tuple[Any, Any]) -> None:
    pixels, _ = patches(backbone)
    found = []
    for model in both:
        embed = model.model.visual.patch_embed
        made = embed(pixels)
        made.sin().sum().backward()
        found.append((made.detach(), embed.proj.weight.grad))
    (made, gradient), (expected, theirs) = found
    torch.testing.assert_close(made, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradient, theirs, atol=1e-6 * float(theirs.abs().max()), rtol=1e-5)
    assert gradient.shape == (32, 3, 2, 14, 14)


def test_the_whole_tower(backbone: Path, both: tuple[Any, Any]) -> None:
    pixels, grids = patches(backbone)
    ours, theirs = (model.model.visual(pixels, grid_thw=grids).pooler_output for model in both)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_in_half_precision_it_is_no_worse(backbone: Path, both: tuple[Any, Any]) -> None:
    pixels, _ = patches(backbone)
    exact = both[1].model.visual.patch_embed(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (model.model.visual.patch_embed(pixels) for model in both)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    error, usual = ((made.float() - exact).abs().max() for made in (ours, theirs))
    assert error <= 1.5 * usual


def test_no_convolution_runs(
    backbone: Path, both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a convolution")

    monkeypatch.setattr(nn.functional, "conv3d", refuse)
    pixels, _ = patches(backbone)
    both[0].model.visual.patch_embed(pixels)
    with pytest.raises(AssertionError, match=r"^a convolution$"):
        both[1].model.visual.patch_embed(pixels)


def test_the_weights_keep_their_names_shapes_and_digest(
    backbone: Path, both: tuple[Any, Any], tmp_path: Path
) -> None:
    ours, theirs = both
    assert isinstance(ours.model.visual.patch_embed.proj, PatchProjection)
    assert ours.training
    assert ours.model.visual.patch_embed.proj.training
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == {
        name: tensor.shape for name, tensor in theirs.state_dict().items()
    }
    _, family = load_config(str(backbone))
    one, other = (
        tower_digest(model, family, load_processor(str(backbone)), "32-true") for model in both
    )
    assert one == other
    ours.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    with gpu():
        empty = load_model(str(backbone), "sdpa", False, empty=True)
    assert isinstance(empty.model.visual.patch_embed.proj, PatchProjection)
    assert empty.get_parameter(NAME).is_meta
    assert empty.get_parameter(NAME).shape == theirs.get_parameter(NAME).shape


def test_a_convolution_that_is_no_patch_embedding_is_left_to_torch() -> None:
    with pytest.raises(AssertionError):
        PatchProjection.of(nn.Conv3d(3, 8, (2, 14, 14), stride=(1, 14, 14), bias=False))
    biased = nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4)).eval()
    made, given = PatchProjection.of(biased), torch.randn(5, 3, 2, 4, 4)
    torch.testing.assert_close(made(given), biased(given), atol=1e-5, rtol=1e-5)
    assert not made.training
