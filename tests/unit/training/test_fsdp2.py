"""What can be told in one process; tests/recipe/test_two_processes.py trains in two."""

import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoModelForImageTextToText

from rbft.backbone.attention import forward_inputs
from rbft.backbone.loading import load_config, load_model
from rbft.training.fsdp2 import (
    FSDP2,
    _Planner,
    _Reader,
    check_trainable,
    full_state,
    is_sharded,
    reshard,
    shard,
    unshard,
)
from tests.examples import collator, examples
from tests.tiny import FamilyName, tiny_model


@pytest.fixture
def strategy(tmp_path: Path) -> Iterator[FSDP2]:
    """The strategy of a single process, whose share is the whole."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    made = FSDP2()
    made.parallel_devices = [torch.device("cpu")]
    made._device_mesh = init_device_mesh(
        "cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel")
    )
    yield made
    torch.distributed.destroy_process_group()


def sharded(folder: Path, strategy: FSDP2, *, half: bool = False) -> Any:
    _, family = load_config(str(folder))
    model = load_model(str(folder), "sdpa", checkpointing=False)
    shard(model, family.blocks(model), strategy, half=half)
    strategy.model = nn.Module()
    strategy.model.backbone = model
    return model


def logits(model: Any, folder: Path) -> Tensor:
    batch = collator(folder, target_stage="label")(examples(2))
    assert batch.answer is not None
    return model(**forward_inputs(batch.answer), **batch.video, use_cache=False).logits


def tied(folder: Path, target: Path) -> Path:
    """The backbone with one matrix for embedding and head, as the small Qwen-VLs have it."""
    from transformers import AutoProcessor

    model = tiny_model(cast("FamilyName", folder.name))
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    model.save_pretrained(target)
    AutoProcessor.from_pretrained(folder).save_pretrained(target)
    return target


@pytest.mark.parametrize("one_matrix", [False, True])
def test_a_sharded_model_computes_the_same_and_leaves_the_same(
    backbone: Path, tmp_path: Path, strategy: FSDP2, one_matrix: bool
) -> None:
    folder = tied(backbone, tmp_path / "tied") if one_matrix else backbone
    whole = load_model(str(folder), "sdpa", checkpointing=False)
    model = sharded(folder, strategy)
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in whole.named_parameters()
    ]
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    for (name, ours), (_, theirs) in zip(model.named_buffers(), whole.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    expected = logits(whole, folder)
    torch.testing.assert_close(logits(model, folder), expected, atol=1e-6, rtol=0)

    unshard(model)
    assert not any(isinstance(parameter, DTensor) for parameter in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(logits(model, folder), expected, atol=1e-6, rtol=0)
    reshard(model)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())

    model.save_pretrained(tmp_path / "left", state_dict=full_state(strategy))
    left = AutoModelForImageTextToText.from_pretrained(tmp_path / "left")
    for (name, ours), (_, theirs) in zip(
        left.named_parameters(), whole.named_parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_half_precision_is_for_computing_alone(qwen: Path, strategy: FSDP2) -> None:
    model = sharded(qwen, strategy, half=True)
    out = logits(model, qwen)
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is None or parameter.grad.dtype == torch.float32
    unshard(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_an_empty_model_has_the_parameters_and_none_of_the_weights(backbone: Path) -> None:
    whole = load_model(str(backbone), "sdpa", checkpointing=False)
    empty = load_model(str(backbone), "sdpa", checkpointing=False, empty=True)
    assert all(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = (
            [(name, tensor.shape, tensor.dtype) for name, tensor in getattr(model, kind)()]
            for model in (empty, whole)
        )
        assert ours == theirs
    assert empty.training == whole.training


def test_which_strategies_share_out(tmp_path: Path) -> None:
    assert is_sharded(FSDP2())
    assert not is_sharded(SingleDeviceStrategy())
    assert full_state(SingleDeviceStrategy()) is None
    with pytest.raises(ValueError, match="ModelParallelStrategy") as found:
        is_sharded(ModelParallelStrategy())
    assert str(found.value) == (
        "trainer.strategy is ModelParallelStrategy; rbft's form of it is fsdp2, which also writes "
        "checkpoints whole. Set trainer.strategy to fsdp2."
    )


def test_older_fsdp_is_refused() -> None:
    with pytest.raises(ValueError, match="FSDPStrategy") as found:
        is_sharded(FSDPStrategy())
    assert str(found.value) == (
        "trainer.strategy is FSDPStrategy, torch's older FSDP: resumed from Lightning's "
        "checkpoints of it, a run does not end with the same weights, and it refuses clipping by "
        "norm. Set trainer.strategy to fsdp2, which does both."
    )


def test_trained_parameters_must_be_those_of_the_checkpoint() -> None:
    check_trainable({"a", "b"}, {"b", "a"})
    with pytest.raises(ValueError, match="The checkpoint holds") as found:
        check_trainable({"a", "c"}, {"a", "b"})
    assert str(found.value) == (
        "The checkpoint holds 2 trained parameters, but 2 train now (only now: b; only in the "
        "checkpoint: c). Resume with the settings that it was made with, or add --restart true."
    )


class Evil:
    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.file,)


class Got:
    def __init__(self, *given: Any) -> None:
        self.given = given

    def __reduce__(self) -> Any:
        return getattr, self.given


def test_a_member_of_an_enumeration_is_read_as_early_pythons_wrote_it(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(pickle.dumps([Got(LoadItemType, "BYTE_IO")]))
    with pytest.raises(AttributeError):  # a list has no storage metadata; reading it went well
        _Reader(tmp_path).read_metadata()
    for given in ((LoadItemType, "__init__"), (MetadataIndex, "__init__"), (Path, "rmdir")):
        (tmp_path / ".metadata").write_bytes(pickle.dumps([Got(*given)]))
        with pytest.raises(pickle.UnpicklingError, match="table of contents holds"):
            _Reader(tmp_path).read_metadata()


def test_reading_a_checkpoint_runs_nothing_that_stands_in_it(tmp_path: Path) -> None:
    evil = Evil(tmp_path / "run")
    (tmp_path / ".metadata").write_bytes(pickle.dumps(evil))
    with pytest.raises(pickle.UnpicklingError, match=r"table of contents holds posix\.mkdir\."):
        _Reader(tmp_path).read_metadata()
    stream = io.BytesIO()
    torch.save(evil, stream)
    stream.seek(0)
    place, none = MetadataIndex("lr"), torch.Size([0])
    item = ReadItem(LoadItemType.BYTE_IO, place, none, place, none, none)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        _Planner().load_bytes(item, stream)
    assert not (tmp_path / "run").exists()
    # The way that torch reads it, it would have run.
    with pytest.raises(AttributeError):
        FileSystemReader(tmp_path).read_metadata()
    assert (tmp_path / "run").exists()
