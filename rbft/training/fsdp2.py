"""The strategy `fsdp2`: weights, gradients and optimizer states sharded over all processes."""

import pickle
from collections.abc import Iterator
from enum import EnumType
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import (
    FSDPStrategy,
    ModelParallelStrategy,
    ParallelStrategy,
    Strategy,
    StrategyRegistry,
)
from torch import Tensor, nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from rbft.runtime.fault_tolerance import writing
from rbft.runtime.files import remove, replace_folder, temporary_path

# Lightning's names for torch's older FSDP, and the class of that strategy.
FSDP1 = ("fsdp", "fsdp_cpu_offload", "FSDPStrategy")
META = "meta.pt"  # Lightning's file for all but the tensors of model and optimizer
TRAINABLE_ONLY = StateDictOptions(ignore_frozen_params=True, cpu_offload=True)


class FSDP2(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with one copy of the weights sharded over all processes.

    `trainer.strategy: fsdp2`. A checkpoint is a folder to which each process writes its shard. It
    appears atomically and holds the trainable parameters only.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=True)

    def setup_environment(self) -> None:
        """Initialises the process group; the weights are sharded over all of it."""
        # Lightning's "auto" is the number of nodes.
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """This process's shard of the trainable parameters."""
        assert self.model is not None
        return get_model_state_dict(self.model, options=TRAINABLE_ONLY)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        """Writes to a temporary folder; rank 0 renames it after all processes have written."""
        target = Path(self.broadcast(filepath))
        # Each process makes another name; all use that of rank 0.
        part = Path(self.broadcast(temporary_path(target)))
        with writing(target):
            super().save_checkpoint(checkpoint, part, storage_options)
            if self.is_global_zero:
                replace_folder(part, target)  # it exists if the run resumed from an earlier one
        self.barrier("checkpoint is whole")

    def remove_checkpoint(self, filepath: Any) -> None:
        """Removes a checkpoint so that an interruption leaves nothing that looks like one."""
        if self.is_global_zero and Path(filepath).exists():
            gone = temporary_path(Path(filepath))
            Path(filepath).replace(gone)
            remove(gone)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads weights and optimizer states into the shards.

        Returns:
            The rest of the checkpoint.

        Raises:
            ValueError: If other parameters are trainable than in the checkpoint.
        """
        path, model = Path(self.broadcast(checkpoint_path)), self.model
        assert model is not None
        state: dict[str, Any] = {"state_dict": get_model_state_dict(model, options=TRAINABLE_ONLY)}
        for number, optimizer in enumerate(self.optimizers):
            state[f"optimizer_{number}"] = get_optimizer_state_dict(model, optimizer)
        reader = _Reader(path)
        names = {key for key in reader.read_metadata().state_dict_metadata if "state_dict." in key}
        check_trainable(
            {name.removeprefix("state_dict.") for name in names}, set(state["state_dict"])
        )
        load(state, storage_reader=reader, planner=_Planner())
        set_model_state_dict(model, state["state_dict"], options=StateDictOptions(strict=False))
        for number, optimizer in enumerate(self.optimizers):
            set_optimizer_state_dict(model, optimizer, state[f"optimizer_{number}"])
        return torch.load(path / META, weights_only=True)


StrategyRegistry.register("fsdp2", FSDP2, "Shards weights, gradients and optimizer states.")


def _member(kind: Any, name: str) -> Any:
    """A member of an enumeration: early versions of Python 3.11 write getattr(class, name)."""
    if isinstance(kind, EnumType) and name in kind.__members__:
        return kind[name]
    raise pickle.UnpicklingError(f"A checkpoint's table of contents holds {kind!r}.{name}.")


class _Unpickler(pickle.Unpickler):
    """Creates the classes that a checkpoint's metadata consists of, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        """The class of that name."""
        known = {
            ("torch", "Size"),
            ("torch.serialization", "_get_layout"),
            ("pathlib", "PosixPath"),
            ("pathlib", "WindowsPath"),
        }
        own = module.startswith("torch.distributed.checkpoint.")
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) == ("builtins", "getattr"):
            return _member
        if own or dtype or (module, name) in known:
            found = super().find_class(module, name)
            if not own or isinstance(found, type):
                return found
        raise pickle.UnpicklingError(f"A checkpoint's table of contents holds {module}.{name}.")


class _Reader(FileSystemReader):
    """Reads a checkpoint without executing code from it."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The metadata."""
        with (Path(self.path) / ".metadata").open("rb") as stream:
            metadata: Metadata = _Unpickler(stream).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Planner(DefaultLoadPlanner):
    """Reads values that are not tensors (learning rates, ...) without executing code from them."""

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        """Loads one value."""
        torch.load(
            value, weights_only=True
        )  # raises where torch's own reading, below, would execute it
        value.seek(0)
        super().load_bytes(read_item, value)


def check_trainable(found: set[str], expected: set[str]) -> None:
    """Checks that a checkpoint holds exactly the trainable parameters; the rest never changes.

    Args:
        found: Names in the checkpoint.
        expected: Names of the trainable parameters.

    Raises:
        ValueError: If they differ.
    """
    if found != expected:
        missing, extra = sorted(expected - found), sorted(found - expected)
        raise ValueError(
            f"The checkpoint holds {len(found)} trained parameters, but {len(expected)} train now "
            f"(only now: {', '.join(missing[:3]) or 'none'}; only in the checkpoint: "
            f"{', '.join(extra[:3]) or 'none'}). Resume with the settings that it was made with, "
            "or add --restart true."
        )


def check_strategy(name: str) -> None:
    """Refuses Lightning's strategy for torch's older FSDP.

    Args:
        name: Of the strategy, as Lightning registers it or as its class is called.

    Raises:
        ValueError: If it is that one.
    """
    if name in FSDP1:
        raise ValueError(
            f"trainer.strategy is {name}, torch's older FSDP: resumed from Lightning's checkpoints "
            "of it, a run does not end with the same weights, and it refuses clipping by norm. Set "
            "trainer.strategy to fsdp2, which does both."
        )


def is_sharded(strategy: Strategy) -> bool:
    """Whether the strategy shards the weights.

    Raises:
        ValueError: If it is Lightning's ModelParallelStrategy or its strategy for older FSDP.
    """
    if isinstance(strategy, FSDPStrategy):
        check_strategy("FSDPStrategy")
    if isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, FSDP2):
        raise ValueError(
            "trainer.strategy is ModelParallelStrategy; rbft's form of it is fsdp2, which also "
            "writes checkpoints whole. Set trainer.strategy to fsdp2."
        )
    return isinstance(strategy, FSDP2)


def shard(model: nn.Module, blocks: list[nn.Module], strategy: FSDP2, *, half: bool) -> None:
    """Shards a model over all processes.

    Rank 0 holds the weights in CPU memory and broadcasts them tensor by tensor; no device ever
    holds them all.

    Args:
        model: The model; with weights on rank 0, on the meta device elsewhere.
        blocks: Modules that are unsharded one at a time; everything else is unsharded during the
            whole forward pass.
        strategy: The strategy.
        half: Unshard and compute in bfloat16; shards, gradients and their reduction stay in 32
            bits.
    """
    first, device = strategy.is_global_zero, strategy.root_device
    weights = model.state_dict() if first else {}
    # Not in the state dict: rotary frequencies, which are computed when a model is made.
    buffers = dict(_non_persistent_buffers(model)) if first else {}
    ties = _tied_parameters(model)
    model.to("meta")
    _tie_parameters(model, ties)
    mesh = strategy.device_mesh["data_parallel"]
    dtype = torch.bfloat16 if half else None
    reduce = torch.float32 if half else None
    for block in blocks:
        # Its other inputs (cosines and sines of positions) keep their dtype.
        policy = MixedPrecisionPolicy(dtype, reduce, cast_forward_inputs=False)
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(dtype, reduce))
    model.to_empty(device=device)
    _tie_parameters(model, ties)
    broadcast = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, weights, options=broadcast)
    with torch.no_grad():
        for name, buffer in _non_persistent_buffers(model):
            if first:
                buffer.copy_(buffers[name])
            torch.distributed.broadcast(buffer, 0)


def unshard(model: nn.Module) -> None:
    """Gathers all weights on every device until `reshard`, to score and to write.

    The number of forward passes depends on the texts that a process writes, and parts of the model
    run on their own. With unsharded weights no process waits for another.
    """
    if isinstance(model, FSDPModule):
        # Without this, the submodule that runs first would be taken for the root.
        model._get_fsdp_state()._lazy_init()
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()


def reshard(model: nn.Module) -> None:
    """Frees unsharded weights, to go on with training."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
            module.set_reshard_after_forward(module is not model, recurse=False)


def full_state(strategy: Strategy) -> dict[str, Tensor] | None:
    """The backbone's full state dict in CPU memory on rank 0; collective.

    Args:
        strategy: The strategy that trained it.

    Returns:
        Tensors by name for `save_pretrained(state_dict=...)`; empty on other ranks, and None if
        the weights are not sharded.
    """
    if not isinstance(strategy, FSDP2):
        return None
    assert strategy.model is not None
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(strategy.model, options=options)
    return {name.removeprefix("backbone."): tensor for name, tensor in state.items()}


def clip_gradients(module: Any, limit: float | None) -> Tensor:
    """Scales the gradients so that their norm over all processes is at most the limit.

    Returns:
        The norm before clipping, the same on every process and on its device.
    """
    limit = limit or float("inf")
    parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


def all_gather_objects(world: int, items: list[Any]) -> list[Any]:
    """The items of all processes; collective."""
    if world == 1:
        return items
    gathered: list[Any] = [None] * world
    torch.distributed.all_gather_object(gathered, items)
    return [item for part in gathered for item in part]


def wait_for_all(trainer: Trainer, module: LightningModule) -> None:
    """Waits for the other processes, unless Lightning will start them only later.

    Args:
        trainer: A Trainer, which need not have run.
        module: What it would run.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        return
    strategy = trainer.strategy
    if not isinstance(strategy, ParallelStrategy):
        return
    if not isinstance(strategy.cluster_environment, LightningEnvironment):
        strategy.connect(module)
        strategy.setup_environment()
        strategy.barrier("met")


def _non_persistent_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    saved = model.state_dict().keys()
    return ((name, buffer) for name, buffer in model.named_buffers() if name not in saved)


def _tied_parameters(model: nn.Module) -> list[list[str]]:
    """Names of parameters that are tied (embedding and head of small models)."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _tie_parameters(model: nn.Module, ties: list[list[str]]) -> None:
    """Ties parameters again; moving a module to another device unties them."""
    for one, *others in ties:
        for name in others:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, model.get_parameter(one))
