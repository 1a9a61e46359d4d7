"""All checks by name, in the order in which they run, with what time they may take on a GPU."""

from benchmarks.cases import Case
from tests.gpu.kernels import compiled, liger, masked_rows, packed_rows, patches
from tests.gpu.numbers import bf16_true, checkpointing, padded, precisions, stage0
from tests.gpu.running import deterministic, found_inf, fsdp2, qlora, true_size, waits

FILE, TITLE = "gpu_checks", "Checks on a GPU"
CASES = {
    check.__name__: Case(check, limit, (check.__doc__ or "").splitlines()[0])
    for check, limit in (
        (masked_rows, 60),
        (padded, 60),
        (patches, 90),
        (packed_rows, 90),
        (precisions, 90),
        (checkpointing, 60),
        (waits, 60),
        (found_inf, 60),
        (deterministic, 60),
        (bf16_true, 60),
        (stage0, 90),
        (qlora, 90),
        (fsdp2, 90),
        (compiled, 240),
        (liger, 90),
        (true_size, 180),
    )
}
