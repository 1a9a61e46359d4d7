"""BackboneModule: what training, scoring and writing have in common as Lightning modules."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from rbft.backbone.attention import tower_inputs
from rbft.backbone.family import Family
from rbft.backbone.loader import BackboneLoader
from rbft.backbone.vision_features import embed_features, tower_digest, tower_features
from rbft.batch import Batch
from rbft.collator import Collator
from rbft.data.base import VideoDataModule
from rbft.training.fsdp2 import FSDP2, is_sharded, reshard, shard, unshard


class BackboneModule(LightningModule):
    """A backbone that is loaded where the strategy wants it, and shown clips.

    Args:
        loader: Reads the backbone.
        max_new_tokens: Longest text that the model writes, in tokens.
    """

    def __init__(self, loader: BackboneLoader, max_new_tokens: int) -> None:
        super().__init__()
        self.loader, self.max_new_tokens = loader, max_new_tokens
        self.backbone: Any = None
        self.tower = ""  # digest of the vision tower, where its outputs are kept
        self._generation: dict[str, Any] | None = None

    def collators(self) -> Mapping[str, Collator]:
        """What makes the batches of each of the data module's loaders; reads the processor.

        Returns:
            By the name of the loader: train, val, test, predict.
        """
        raise NotImplementedError

    def prepare(self, *, training: bool) -> None:
        """Readies a backbone that was just loaded, before the strategy wraps or shards it.

        Args:
            training: Whether a stage is trained.
        """

    @property
    def data(self) -> VideoDataModule:
        """The data module of the run."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, VideoDataModule)
        return data

    @property
    def config(self) -> Any:
        """The backbone's configuration."""
        return self.loader.config

    @property
    def family(self) -> Family:
        """The backbone's family."""
        return self.loader.family

    @property
    def processor(self) -> Any:
        """Tokenizer, chat template and video processor."""
        return self.loader.processor

    @property
    def generation(self) -> dict[str, Any]:
        """How the model writes, see `generation_settings`; reads the processor, but no weights."""
        if self._generation is None:
            self._generation = self.loader.generation(self.max_new_tokens)
        return self._generation

    def to(self, *args: Any, **settings: Any) -> "BackboneModule":
        """Moves and converts as torch does, but leaves rotary frequencies in 32 bits.

        Lightning converts all that is in the module for bf16-true and 16-true. Frequencies in
        bfloat16 are off by up to 0.4 %: the angle of the 500th token by half a radian.
        """
        before = {name: held for name, held in self.named_buffers() if name.endswith("inv_freq")}
        super().to(*args, **settings)
        for name, held in before.items():
            owner, _, attribute = name.rpartition(".")
            if (now := self.get_buffer(name)).dtype != held.dtype:
                setattr(self.get_submodule(owner), attribute, held.to(now.device))
        return self

    def setup(self, stage: str) -> None:
        """Refuses settings of the Trainer that do not go with the module's."""
        if (
            self.trainer.world_size > 1
            and self.trainer._accelerator_connector.use_distributed_sampler
        ):
            raise ValueError(
                "trainer.use_distributed_sampler must be false: rbft's own sampler shares the "
                "clips out, and Lightning's would count some of them twice."
            )
        quantize = self.loader.quantize
        if quantize and isinstance(self.trainer.strategy, FSDP2):
            raise ValueError(
                f"model.quantize is {quantize}, but trainer.strategy "
                f"{type(self.trainer.strategy).__name__} shares out whole weights only. Set "
                "model.quantize to null, or trainer.strategy to auto."
            )
        # Lightning would halve the precision of all that is in a batch, weights and counts too; the
        # vision tower casts its patches itself.
        self.trainer.precision_plugin.convert_input = _as_it_is

    def configure_model(self) -> None:
        """Loads the weights; Lightning calls this where the strategy wants them."""
        if self.backbone is not None:
            return
        if self._trainer is None:
            self.backbone = self.loader.load("32-true", torch.device("cpu"))
            self.prepare(training=True)
            return
        strategy = self.trainer.strategy
        sharded = is_sharded(strategy)
        training = self.trainer.state.fn == TrainerFn.FITTING
        precision = str(self.trainer.precision)
        self.backbone = self.loader.load(
            precision,
            strategy.root_device,
            sharded=sharded,
            empty=sharded and not self.trainer.is_global_zero,
            training=training,
        )
        self.prepare(training=training)
        if self.data.feature_cache.max_bytes:
            self.tower = tower_digest(self.backbone, self.family, self.processor, precision)
        if isinstance(strategy, FSDP2):
            half = precision == "bf16-mixed"
            shard(self.backbone, self.family.blocks(self.backbone), strategy, half=half)

    def load_alone(self, trainer: Trainer) -> None:
        """Loads the weights to be asked outside of a Trainer's loops, as its loops would.

        Args:
            trainer: Says the precision and the one device.
        """
        strategy, precision = trainer.strategy, trainer.precision_plugin
        device = strategy.root_device
        trainer.accelerator.setup_device(device)
        with strategy.tensor_init_context(), precision.module_init_context():
            self.backbone = self.loader.load(str(trainer.precision), device, training=False)
        self.prepare(training=False)
        precision.convert_module(self)
        self.to(device)
        self.eval()

    def vision(self, batch: Batch) -> dict[str, Any]:
        """Arguments of the backbone's forward that show it the batch's clips."""
        if batch.cached is None:
            vision = self.backbone.config.vision_config
            tower = tower_inputs(vision._attn_implementation, batch.tower, batch.weight.device)
            return {**batch.video, **tower}
        features = tower_features(self.backbone, self.family, batch, self.data.feature_cache)
        return embed_features(self.backbone, self.family, features)

    def on_validation_start(self) -> None:
        """Gathers the weights, where they are sharded."""
        unshard(self.backbone)

    def on_validation_end(self) -> None:
        """Shards the weights again."""
        reshard(self.backbone)

    def on_test_start(self) -> None:
        """Gathers the weights, where they are sharded."""
        unshard(self.backbone)

    def on_predict_start(self) -> None:
        """Gathers the weights, where they are sharded."""
        unshard(self.backbone)


def _as_it_is(data: Any) -> Any:
    return data
