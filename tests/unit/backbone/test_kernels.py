import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from rbft.backbone import blocks, kernels
from rbft.backbone.blocks import TrainingForward
from rbft.backbone.kernels import apply_kernels, can_compile, has_liger, set_cudnn_attention
from rbft.backbone.loading import available_attention, load_model
from rbft.module import RBFTModule
from tests.examples import CARD, MODULE_SETTINGS, Yard, fed, trainer
from tests.tiny import FAMILY_NAMES

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    for function in (available_attention, has_liger, can_compile):
        function.cache_clear()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    for function in (available_attention, has_liger, can_compile):
        function.cache_clear()
    torch.backends.cuda.enable_cudnn_sdp(True)


def test_flash_attention_falls_back_aloud_and_once(qwen: Path, capsys: Any) -> None:
    settings = {**MODULE_SETTINGS, "attention": "flash_attention_2"}
    for _ in range(2):
        assert RBFTModule(str(qwen), CARD, **settings).loader.attention == "sdpa"
    assert capsys.readouterr().out == (
        "model.attention: flash_attention_2 needs a GPU and the package flash-attn, and one of "
        "them is missing; going on with sdpa.\n"
    )
    for name in ("sdpa", "eager"):
        assert available_attention(name) == name
    assert capsys.readouterr().out == ""


def test_flash_attention_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("transformers.utils.import_utils.is_flash_attn_2_available", lambda: True)
    assert available_attention("flash_attention_2") == "flash_attention_2"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("wanted", [False, True])
def test_cudnn_s_attention_is_off_unless_it_is_asked_for(qwen: Path, wanted: bool) -> None:
    assert torch.backends.cuda.cudnn_sdp_enabled()  # torch's own choice
    settings = {**MODULE_SETTINGS, **({"cudnn_attention": True} if wanted else {})}
    RBFTModule(str(qwen), CARD, **settings).configure_model()
    assert torch.backends.cuda.cudnn_sdp_enabled() is wanted
    # A later step in the same process decides for itself.
    set_cudnn_attention(cudnn=not wanted)
    assert torch.backends.cuda.cudnn_sdp_enabled() is not wanted
    assert torch.backends.cuda.flash_sdp_enabled()


def test_liger_is_left_out_aloud_and_once(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, qwen: Path
) -> None:
    model = load_model(str(qwen), "sdpa", False)
    for _ in range(2):
        apply_kernels(model, compile=False, liger=True, device=CPU)
    assert capsys.readouterr().out == (
        "model.liger: the Liger kernels need a GPU; going on without.\n"
    )
    monkeypatch.setattr(kernels, "find_spec", lambda _: None)
    assert not has_liger(GPU)
    assert capsys.readouterr().out == (
        "model.liger: liger-kernel is not installed (pip install liger-kernel); going on without.\n"
    )


def test_liger_replaces_all_but_the_loss(
    backbone: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    calls: dict[str, dict[str, Any]] = {}
    package, inner = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    for name in FAMILY_NAMES:
        function = f"apply_liger_kernel_to_{name}"
        setattr(inner, function, lambda name=name, **given: calls.update({name: given}))
    inner.LigerSwiGLUMLP = SimpleNamespace(  # type: ignore[attr-defined]
        forward=lambda self, hidden: ("Liger", self, hidden)
    )
    package.transformers = inner  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", inner)
    monkeypatch.setattr(kernels, "find_spec", lambda _: object())
    model: Any = load_model(str(backbone), "sdpa", False)
    apply_kernels(model, compile=False, liger=True, device=GPU)
    off = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    assert calls == {model.config.model_type: {"model": model, **off}}
    # Those of the decoder are among what Liger replaces by itself.
    for block in model.model.visual.blocks:
        gated = model.config.model_type == "qwen2_5_vl"
        assert ("forward" in vars(block.mlp)) == gated
        assert not gated or block.mlp(3) == ("Liger", block.mlp, 3)
    assert capsys.readouterr().out == ""


def test_liger_without_kernels_for_a_family(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, inner = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    package.transformers = inner  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", inner)
    monkeypatch.setattr(kernels, "has_liger", lambda _: True)
    text = (
        "model.liger: this version of liger-kernel has no kernels for a qwen2_5_vl. Set "
        "model.liger to false, or install a newer liger-kernel."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        apply_kernels(load_model(str(qwen), "sdpa", False), compile=False, liger=True, device=GPU)


def test_no_compiler_is_said_and_left_out(
    qwen: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        def run(*_: Any) -> Any:
            raise RuntimeError("No working C++ compiler found.\nSet TORCHDYNAMO_VERBOSE=1")

        return run

    monkeypatch.setattr(torch, "compile", fail)
    model: Any = load_model(str(qwen), "sdpa", False)
    for _ in range(2):
        apply_kernels(model, compile=True, liger=False, device=CPU)
    assert capsys.readouterr().out == (
        "model.compile: torch.compile does not work here (No working C++ compiler found); going "
        "on without.\n"
    )
    assert not any(isinstance(module.forward, TrainingForward) for module in model.modules())


@pytest.mark.filterwarnings("ignore:.*not a leaf Tensor is being accessed.*")  # torch's own
@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_are_compiled_for_training(
    qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    """By a compiler that passes the graph on: what it makes is torch's affair."""
    graphs = []

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(kernels, "can_compile", lambda _: True)
    monkeypatch.setattr(kernels, "compile_blocks", partial(blocks.compile_blocks, backend=keep))
    weights, names = [], []
    for compile in (False, True):
        made = RBFTModule(
            str(qwen),
            CARD,
            **{**MODULE_SETTINGS, "gradient_checkpointing": checkpointing},
            compile=compile,
        )
        yard = Yard(tmp_path / f"{compile}.yaml", {"train": 4, "val": 2})
        trainer(tmp_path).fit(made, fed(yard, made))
        weights.append([parameter.detach() for parameter in made.backbone.parameters()])
        names.append([name for name, _ in made.backbone.named_parameters()])
        own = {
            name
            for name, part in made.backbone.named_modules()
            if isinstance(part.forward, TrainingForward) and part.forward.compiled
        }
        # The tower's attention is a call for each window on a processor.
        assert own == {f"model.language_model.layers.{n}" for n in (0, 1) if compile}
        assert bool(graphs) == compile
    assert names[0] == names[1]
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    torch.compiler.reset()


def test_the_tower_is_compiled_where_its_attention_is_one_call(
    backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "can_compile", lambda _: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for attention, tower in (("sdpa", True), ("eager", False)):
        model: Any = load_model(str(backbone), attention, False)
        apply_kernels(model, compile=True, liger=False, device=CPU)
        found = [
            all(isinstance(block.forward, TrainingForward) for block in stack)
            for stack in (model.model.language_model.layers, model.model.visual.blocks)
        ]
        assert found == [True, tower]
