"""Where the time of rbft's own step goes: torch's profiler over a few steps, by kind of operation.

Run: python benchmarks/profile_step.py [--stages label rationale]
"""

import json
import sys
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from table import machine
from torch.profiler import ProfilerActivity, profile
from train_step import TITLES, Setting, prepare, step_options, watched
from world import TINY, Size, make_world

from rbft.cli import main as rbft
from rbft.runtime.console import print_rank_zero, table
from rbft.stages import STAGES

WARM = 3  # steps before
# The first kind whose operations an operation is one of.
KINDS = {
    "AdamW": ("_fused_adam", "_foreach_lerp", "_foreach_addc"),
    "gradient norm and clipping": ("_foreach", "linalg_vector_norm"),
    "attention": ("_scaled_dot_product", "_flash_attention"),
    "loss over the vocabulary": ("_log_softmax", "nll_loss", "cross_entropy"),
    "embedding": ("embedding", "index_select"),
    "head": (),  # products with the vocabulary's size
    "matrix products of tower and decoder": ("mm", "addmm", "bmm", "baddbmm", "convolution", "mkl"),
    "zeros and copies": ("zero", "fill", "copy", "cat", "clone", "empty"),
}
REST = "other operations, element by element"


def kind(name: str, shapes: Any, vocabulary: int) -> str:
    """The kind of an operation, by its name and the shapes of what it takes."""
    plain = name.removeprefix("aten::")
    product = plain in KINDS["matrix products of tower and decoder"]
    if product and any(vocabulary in shape for shape in shapes if isinstance(shape, list)):
        return "head"
    for found, names in KINDS.items():
        if any(plain == start or (len(start) > 4 and plain.startswith(start)) for start in names):
            return found
    return REST


class Profiled(Callback):
    """Profiles all steps of training but the first ones.

    Args:
        file: The JSON file to write: the share of each kind.
        vocabulary: Size of the vocabulary.
    """

    def __init__(self, file: str, vocabulary: int) -> None:
        self.file, self.vocabulary = Path(file), vocabulary
        self.profiler = profile(activities=[ProfilerActivity.CPU], record_shapes=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Starts after the warm steps."""
        if trainer.global_step == WARM:
            self.profiler.start()
            self.began = time.perf_counter()
        elif trainer.global_step == trainer.max_steps:
            passed = time.perf_counter() - self.began
            self.profiler.stop()
            spent = dict.fromkeys([*KINDS, REST], 0.0)
            for event in self.profiler.key_averages(group_by_input_shape=True):
                if event.key.startswith("aten::") or "AddmmBackward" in event.key:
                    found = kind(event.key, event.input_shapes, self.vocabulary)
                    spent[found] += event.self_cpu_time_total / 1e6
            spent["Python, autograd, reading and collating clips"] = passed - sum(spent.values())
            shares = {name: seconds / passed for name, seconds in spent.items()}
            self.file.write_text(json.dumps(shares), encoding="utf-8")


def main() -> None:
    """Trains a few steps of each stage, and prints a table."""
    parser = step_options(str(__doc__).splitlines()[0])
    parser.add_argument("--steps", type=int, default=5, help="steps to profile (default 5)")
    given = parser.parse_args()
    sys.argv = sys.argv[:1]  # Lightning compares
    found = []
    with tempfile.TemporaryDirectory() as folder:
        size = TINY if given.tiny else Size(clips=2 * given.batch)
        world = make_world(Path(folder).resolve(), size)
        torch.set_num_threads(1)
        for name in given.stages:
            setting = Setting(world, STAGES[name], given.batch, 100, checkpointing=False)
            prepare(setting)
            file = setting.folder / "shares.json"
            init = {"file": str(file), "vocabulary": size.vocabulary}
            asked = watched(setting, "profile_step.Profiled", **init)
            with redirect_stdout(StringIO()):
                rbft([*asked, f"--trainer.max_steps={WARM + given.steps}"])
            found.append(json.loads(file.read_text(encoding="utf-8")))
    print_rank_zero(machine("torch", "transformers"))
    rows = [[name, *(f"{shares[name]:.0%}" for shares in found)] for name in found[0]]
    print_rank_zero(
        table(rows, ["share of a step's time", *(TITLES[name] for name in given.stages)])
    )


if __name__ == "__main__":
    main()
