"""FSDP2: weights, gradients and optimiser state in shares over all processes, `fsdp2`."""

import pickle
from collections.abc import Iterator
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
from rbft.runtime.files import part_of, remove, replace_folder

# Lightning's names for torch's older FSDP, and its class.
FSDP1 = ("fsdp", "fsdp_cpu_offload", "FSDPStrategy")
META = "meta.pt"  # Lightning's name for what is no tensor of the model or the optimiser
TRAINED = StateDictOptions(ignore_frozen_params=True, cpu_offload=True)


class FSDP2(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with all processes sharing one copy of the weights.

    `trainer.strategy: fsdp2`. Its checkpoints are folders to which each process adds its share,
    which appear atomically, and hold only what trains.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=True)

    def setup_environment(self) -> None:
        """Starts the processes' group; all of them share the weights."""
        # Lightning's "auto" is the number of nodes.
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """This process's share of what trains."""
        assert self.model is not None
        return get_model_state_dict(self.model, options=TRAINED)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        """Writes beside the place; the first process renames when all have written."""
        target = Path(self.broadcast(filepath))
        # The name is another one on every process; that of the first is the one that counts.
        part = Path(self.broadcast(part_of(target)))
        with writing(target):
            super().save_checkpoint(checkpoint, part, storage_options)
            if self.is_global_zero:
                replace_folder(part, target)  # there is one where a run went back behind it
        self.barrier("checkpoint is whole")

    def remove_checkpoint(self, filepath: Any) -> None:
        """Takes a checkpoint away so that a kill in between leaves nothing that looks like one."""
        if self.is_global_zero and Path(filepath).exists():
            gone = part_of(Path(filepath))
            Path(filepath).replace(gone)
            remove(gone)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads weights and optimiser state into the shares.

        Returns:
            The rest of the checkpoint.

        Raises:
            ValueError: If other parameters train now than did in the checkpoint.
        """
        path, model = Path(self.broadcast(checkpoint_path)), self.model
        assert model is not None
        state: dict[str, Any] = {"state_dict": get_model_state_dict(model, options=TRAINED)}
        for number, optimizer in enumerate(self.optimizers):
            state[f"optimizer_{number}"] = get_optimizer_state_dict(model, optimizer)
        reader = _Reader(path)
        names = {key for key in reader.read_metadata().state_dict_metadata if "state_dict." in key}
        check_trained(
            {name.removeprefix("state_dict.") for name in names}, set(state["state_dict"])
        )
        load(state, storage_reader=reader, planner=_Planner())
        set_model_state_dict(model, state["state_dict"], options=StateDictOptions(strict=False))
        for number, optimizer in enumerate(self.optimizers):
            set_optimizer_state_dict(model, optimizer, state[f"optimizer_{number}"])
        return torch.load(path / META, weights_only=True)


StrategyRegistry.register("fsdp2", FSDP2, "Shares out weights, gradients and optimiser state.")


class _Unpickler(pickle.Unpickler):
    """Makes what a checkpoint's table of contents is made of, and nothing else."""

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
        if own or dtype or (module, name) in known:
            found = super().find_class(module, name)
            if not own or isinstance(found, type):
                return found
        raise pickle.UnpicklingError(f"A checkpoint's table of contents holds {module}.{name}.")


class _Reader(FileSystemReader):
    """Reads a checkpoint without running what stands in it."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The table of contents."""
        with (Path(self.path) / ".metadata").open("rb") as stream:
            metadata: Metadata = _Unpickler(stream).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Planner(DefaultLoadPlanner):
    """Reads values that are no tensors (learning rates, ...) without running anything."""

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        """Puts one value in its place."""
        torch.load(value, weights_only=True)  # raises where torch's own reading, next, would run it
        value.seek(0)
        super().load_bytes(read_item, value)


def check_trained(found: set[str], expected: set[str]) -> None:
    """Checks that a checkpoint holds exactly the parameters that train; the rest never changes.

    Args:
        found: Names in the checkpoint.
        expected: Names of the parameters that train.

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
    """Whether the strategy wants the weights sharded.

    Raises:
        ValueError: If it is Lightning's strategy that FSDP2 is made from, or that of older FSDP.
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
    """Shares a model out over all processes.

    The first process holds the weights in the processor's memory and hands them out tensor by
    tensor; no device ever holds them all.

    Args:
        model: The model; with weights on the first process, on the meta device on the others.
        blocks: What is gathered at a time; everything else is gathered for the whole forward.
        strategy: The strategy.
        half: Gather and compute in bfloat16; the shares, gradients and their sums stay in 32 bits.
    """
    first, device = strategy.is_global_zero, strategy.root_device
    weights = model.state_dict() if first else {}
    # Not in the state: rotary frequencies, which are computed when a model is made.
    computed = dict(_computed(model)) if first else {}
    ties = _ties(model)
    model.to("meta")
    _tie(model, ties)
    mesh = strategy.device_mesh["data_parallel"]
    dtype = torch.bfloat16 if half else None
    reduce = torch.float32 if half else None
    for block in blocks:
        # Its other inputs (cosines and sines of positions) keep their precision.
        policy = MixedPrecisionPolicy(dtype, reduce, cast_forward_inputs=False)
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(dtype, reduce))
    model.to_empty(device=device)
    _tie(model, ties)
    handed_out = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, weights, options=handed_out)
    with torch.no_grad():
        for name, buffer in _computed(model):
            if first:
                buffer.copy_(computed[name])
            torch.distributed.broadcast(buffer, 0)


def unshard(model: nn.Module) -> None:
    """Gathers all weights on every device until `reshard`, to score and to write.

    While a model writes, how often it runs depends on what it writes, and parts of it run apart
    from the rest; with the weights at hand no process waits for another.
    """
    if isinstance(model, FSDPModule):
        # Without this, the part of the model that runs first would take itself for the whole.
        model._get_fsdp_state()._lazy_init()
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()


def reshard(model: nn.Module) -> None:
    """Gives gathered weights up again, to train on."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
            module.set_reshard_after_forward(module is not model, recurse=False)


def full_state(strategy: Strategy) -> dict[str, Tensor] | None:
    """The backbone's whole state, in the processor's memory of the first process; collective.

    Args:
        strategy: The strategy that trained it.

    Returns:
        Tensors by name for `save_pretrained(state_dict=...)`: nothing on the other processes, and
        None where every process has the weights anyway.
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
        The norm before, the same on every process and in the memory of its device.
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


def _computed(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    saved = model.state_dict().keys()
    return ((name, buffer) for name, buffer in model.named_buffers() if name not in saved)


def _ties(model: nn.Module) -> list[list[str]]:
    """Names of parameters that are one and the same (embedding and head of small models)."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _tie(model: nn.Module, ties: list[list[str]]) -> None:
    """Moving a module to another device parts them."""
    for one, *others in ties:
        for name in others:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, model.get_parameter(one))
