"""What is trained: a table at the start, and proof after the first step."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from rbft.backbone.loading import parameter_parts
from rbft.runtime.console import print_rank_zero, table
from rbft.training.optim import parameter_table


class TrainableParts(Callback):
    """Prints part, parameters, learning rate and decay, and checks that each part learns.

    Args:
        shown: Tables that were printed already, which are not printed again.
    """

    def __init__(self, shown: set[str] | None = None) -> None:
        self.checked, self.shown = False, set[str]() if shown is None else shown

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the table."""
        if trainer.is_global_zero:
            module: Any = pl_module
            parts = parameter_parts(module.backbone, module.family)
            headers, rows = parameter_table(trainer.optimizers[0].param_groups, parts)
            text = table(rows, headers)
            if text not in self.shown:
                print_rank_zero(text)
            self.shown.add(text)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Before the first update, looks for a gradient in every group.

        Raises:
            ValueError: If a group that should train has none.
        """
        if self.checked:
            return
        self.checked = True
        for group in optimizer.param_groups:
            # Under FSDP1 a process may hold nothing of a parameter.
            held = [p for p in group["params"] if p.requires_grad and p.numel()]
            gradients: list[Any] = [p.grad for p in held]
            if held and not any(g is not None and bool((g != 0).any()) for g in gradients):
                raise ValueError(
                    f"No gradient reached the parameters of '{group['name']}' "
                    f"({len(gradients)} tensors) in the first step, although they should train. "
                    "Freeze the part on purpose (learning rate 0), or check adapters and freezing."
                )
