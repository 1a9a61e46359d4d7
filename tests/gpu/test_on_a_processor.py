"""The same checks and the report's cases, tiny and on a processor: so they are known to work."""

import json
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from benchmarks import cases, gpu_report
from benchmarks.cases import (
    FAILED,
    LATE,
    LEFT_OUT,
    PASSED,
    Case,
    Cases,
    Findings,
    LeftOutError,
    run_case,
)
from rbft.backbone import attention, kernels
from rbft.batch import Batch
from rbft.module import RBFTModule
from tests.gpu.checks import CASES
from tests.gpu.running import WatchSteps
from tests.gpu.world import fit, flags_kept

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch and Lightning, about processors


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # Lightning sets it
    with flags_kept():
        yield
    kernels.has_liger.cache_clear()


def run(name: str, folder: Path) -> dict[str, Any]:
    return run_case(CASES[name], CPU, folder)


# FSDP2's process group stays with its process.
@pytest.mark.parametrize("name", [name for name in CASES if name != "fsdp2"])
def test_a_check(name: str, tmp_path: Path) -> None:
    record = run(name, tmp_path)
    if name == "liger":
        assert record["outcome"] == LEFT_OUT
        return
    assert record["wrong"] == []
    assert record["outcome"] == PASSED
    assert record["figures"]
    json.dumps(record)


# What an image for GPUs may lack.
HIDING = """
import importlib.machinery
hidden = {"av", "beartype", "bitsandbytes", "decord", "hypothesis", "jsonargparse", "pyarrow",
          "sklearn", "tensorboard"}
finder = importlib.machinery.PathFinder
find = finder.find_spec
finder.find_spec = classmethod(
    lambda cls, name, path=None, target=None:
    None if name.partition(".")[0] in hidden else find(name, path, target)
)
"""


@pytest.mark.long
def test_a_check_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, with few packages; what is known is not run again."""
    (tmp_path / "sitecustomize.py").write_text(HIDING, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = Cases("tests.gpu.checks", tmp_path, "checks", "Checks", "cpu")
    record = made.run("fsdp2", 120)
    made.close()
    assert record["outcome"] == PASSED, record
    again = Cases("tests.gpu.checks", tmp_path, "checks", "Checks", "cpu")
    assert again.run("fsdp2", 120) == record  # no process was started
    again.close()
    text = (tmp_path / "checks.md").read_text(encoding="utf-8")
    assert text.startswith("# Checks\n\ncode ")
    assert "| fsdp2 | passed | " in text
    assert "- bf16-mixed: backend: gloo" in text


def cases_of(folder: Path, source: str) -> Cases:
    """Cases of a module that is made up."""
    (folder / "made_up_cases.py").write_text(source, encoding="utf-8")
    return Cases("made_up_cases", folder / "report", "checks", "Made up", "cpu")


SOURCE = """
import os, time
from benchmarks.cases import Case

def works(found, device, folder):
    assert device.type == "cpu" and folder.is_dir()
    found.note("seconds", 1.25)

def waits(found, device, folder):
    print("about to wait", flush=True)
    time.sleep(60)

def dies(found, device, folder):
    print("going down", flush=True)
    os.kill(os.getpid(), 11)

CASES = {case.__name__: Case(case, 1, "") for case in (works, waits, dies)}
"""


def test_whatever_a_case_does_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = cases_of(tmp_path, SOURCE)
    follows = {"waits": "dies", "dies": "works", "works": None}
    found = {name: made.run(name, 1.0, after) for name, after in follows.items()}
    made.close()
    outcomes = {name: record["outcome"] for name, record in found.items()}
    assert outcomes == {"waits": LATE, "dies": FAILED, "works": PASSED}
    assert found["waits"]["wrong"] == ["not done after 1 s"]
    assert "about to wait" in found["waits"]["output"]
    assert found["dies"]["wrong"] == ["ended with status -11"]
    assert "going down" in found["dies"]["output"]
    assert found["works"]["figures"] == {"seconds": 1.25}
    text = (tmp_path / "report/checks.md").read_text(encoding="utf-8")
    assert "| waits | over its time limit | 1." in text
    assert "- seconds: 1.25" in text


def test_what_comes_out_of_a_case(tmp_path: Path, capsys: Any) -> None:
    def fails(found: Findings, *_: Any) -> None:
        found.at_most("error", float("nan"), 0.5)
        found.at_most("time", 0.5, 0.5)
        found.same("rows", 2, 3)

    def raises(found: Findings, *_: Any) -> None:
        found.note("before", 1)
        raise TypeError("unexpected keyword 'enable_gqa'\nsecond line")

    def lacks(*_: Any) -> None:
        raise LeftOutError("bitsandbytes is not installed")

    found = [run_case(Case(case, 1, ""), CPU, tmp_path) for case in (fails, raises, lacks)]
    assert [record["outcome"] for record in found] == [FAILED, FAILED, LEFT_OUT]
    assert found[0]["wrong"] == ["error is nan; at most 0.5 is right", "rows is 2; 3 is right"]
    assert found[1]["wrong"] == ["TypeError: unexpected keyword 'enable_gqa'"]
    assert found[1]["figures"] == {"before": 1}
    assert "second line" in capsys.readouterr().err
    assert found[2]["wrong"] == ["bitsandbytes is not installed"]


def test_what_is_known_is_not_run_again_unless_something_changed(tmp_path: Path) -> None:
    def known(**changes: Any) -> Cases:
        made = cases_of(tmp_path, SOURCE)
        made.facts = {**made.facts, **changes}
        made._write()
        return made

    made = cases_of(tmp_path, SOURCE)
    record = {"figures": {}, "wrong": [], "seconds": 1.0, "made_from": made.facts, "limit": 10.0}
    made.known = {
        name: {**record, "outcome": o} for name, o in (("works", PASSED), ("waits", LATE))
    }
    made._write()
    made.close()
    same = known()
    assert same._kept("works", 10.0) == made.known["works"]
    assert same._kept("works", 20.0) is not None
    assert same._kept("waits", 10.0) is not None
    assert same._kept("waits", 20.0) is None, "it may be done in more time"
    assert same._kept("fails", 10.0) is None
    other = known(torch="another")
    assert other._kept("works", 10.0) is None
    assert "works" not in other.markdown.read_text(encoding="utf-8")
    assert "works" in other.json.read_text(encoding="utf-8")
    for one in (same, other):
        one.close()


def test_the_code_is_part_of_what_a_case_was_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("rbft", "tests", "benchmarks"):
        (tmp_path / folder).mkdir()
    file = tmp_path / "rbft/loss.py"
    file.write_text("a = 1")
    monkeypatch.setattr(cases, "ROOT", tmp_path)
    first = cases.made_from("cpu")
    assert first == cases.made_from("cpu")
    assert first["torch"] == torch.__version__.partition("+")[0] or first["torch"]
    assert first["flash-attn"] is None
    file.write_text("a = 2")
    changed = cases.made_from("cpu")
    assert {name for name in first if changed[name] != first[name]} == {"code"}


def test_one_command_for_checks_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with pytest.raises(SystemExit):
        gpu_report.main([f"--folder={tmp_path}"])
    said = "no GPU here; tests/gpu runs the same code at a tiny size on a processor."
    assert said in capsys.readouterr().err
    ran: list[tuple[str, float, str | None]] = []

    class Noted(Cases):
        def __init__(self, module: str, folder: Path, name: str, *args: Any) -> None:
            super().__init__(module, folder, name, args[0], "cpu", *args[2:])

        def run(self, name: str, limit: float, after: str | None = None) -> dict[str, Any]:
            ran.append((name, limit, after))
            self.known[name] = {
                "outcome": PASSED,
                "wrong": [],
                "figures": {},
                "seconds": 1.0,
                "made_from": self.facts,
                "limit": limit,
            }
            self._write()
            return self.known[name]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_report, "Cases", Noted)
    gpu_report.main([f"--folder={tmp_path}", "--checks", "--cases", "lora_kept", "stage0"])
    follows = [*list(CASES)[1:], None]
    checks = [(n, CASES[n].limit, after) for n, after in zip(CASES, follows, strict=True)]
    assert ran == [*checks, ("lora_kept", 120.0, "stage0"), ("stage0", 120.0, None)]
    assert {path.name for path in tmp_path.iterdir()} == {
        "gpu_checks.json",
        "gpu_checks.md",
        "gpu_report.json",
        "gpu_report.md",
    }
    assert "stage0: passed (1 s)\n" in capsys.readouterr().out


# A fault in rbft, and the check that must see it.
def _masks_a_row(self: Any, batch: Batch) -> Any:
    heads, seen = torch.zeros(1, 1, 2, 8), torch.tensor([[False, False], [True, True]])
    nn.functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=seen)
    return predict_step(self, batch)


def _wrong_product(self: Any, input: Tensor) -> Tensor:
    rows = nn.functional.linear(input.flatten(1).flip(1), self.weight.flatten(1), self.bias)
    return rows[:, :, None, None, None]


attend = attention.attend
forward, predict_step = RBFTModule.forward, RBFTModule.predict_step


def _across(query: Any, key: Any, value: Any, segments: Any, **how: Any) -> Tensor:
    return attend(query, key, value, (sum(segments),), **how)


def _looks(self: Any, batch: Batch) -> Tensor:
    assert batch.answer is not None
    bool((batch.answer.input_ids == 0).any().item())
    return forward(self, batch)


def _rounded(self: Any, *args: Any, **settings: Any) -> Any:
    return LightningModule.to(self, *args, **settings)


def _no_found_inf(self: Any, optimizer: Any, *args: Any, **settings: Any) -> None:
    _clip(self, optimizer, *args, **settings)
    optimizer.found_inf = torch.zeros(())


_clip = RBFTModule.configure_gradient_clipping
FAULTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "mask": ("masked_rows", lambda p: p.setattr(RBFTModule, "predict_step", _masks_a_row)),
    "product": (
        "patches",
        lambda p: p.setattr(kernels.PatchProjection, "forward", _wrong_product),
    ),
    "segments": ("packed_rows", lambda p: p.setattr("tests.gpu.kernels.attend", _across)),
    "packing": ("precisions", lambda p: p.setattr(attention, "attend", _across)),
    "host": ("waits", lambda p: p.setattr(RBFTModule, "forward", _looks)),
    "frequencies": ("bf16_true", lambda p: p.setattr(RBFTModule, "to", _rounded)),
    "steps": (
        "found_inf",
        lambda p: p.setattr(RBFTModule, "configure_gradient_clipping", _no_found_inf),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, put_in = FAULTS[fault]
    put_in(monkeypatch)
    assert run(name, tmp_path)["outcome"] == FAILED


def test_what_waits_on_a_gpu_is_named_by_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's warnings of a GPU, which something here gives in its place."""
    modes: list[str] = []

    def waits(self: Any, batch: Batch) -> Tensor:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        return forward(self, batch)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(RBFTModule, "forward", waits)
    watch, shown = WatchSteps(CPU), warnings.showwarning
    watch.on_gpu = True
    fit(tmp_path, CPU, watch)
    assert modes == ["warn", "default"]
    assert warnings.showwarning is shown
    assert len(watch.seen) == 5  # in all micro-batches but the first
    (line,) = set(watch.seen)
    assert line.startswith("gpu/test_on_a_processor.py:")
    assert " < rbft/module.py:" in line


class Moment:
    """Stands for an event of the device: each is two milliseconds after the one before."""

    count = 0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Moment.count += 1
        self.time = 2.0 * Moment.count

    def elapsed_time(self, other: "Moment") -> float:
        return other.time - self.time


def test_steps_on_a_gpu_are_timed_by_its_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "Event", Moment)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: calls.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 << 30)
    clock = gpu_report.Clock(CPU, steps=2)
    clock.on_gpu = True
    fit(tmp_path, CPU, clock)
    # The first step makes the optimiser's state; nothing waits before the last is marked.
    assert calls == ["reset", "synchronize", "synchronize"]
    assert clock.seconds == pytest.approx([2e-3, 2e-3])
    assert clock.peak == 3 << 30
    assert len(clock.losses) == 6


def test_what_takes_longest_on_a_gpu_are_its_kernels() -> None:
    def event(key: str, kind: str, **times: float) -> SimpleNamespace:
        return SimpleNamespace(key=key, count=2, device_type=f"DeviceType.{kind}", **times)

    new = [event(f"kernel {n}", "CUDA", self_device_time_total=n * 1e3) for n in range(25)]
    new.append(event("aten::mm", "CPU", self_device_time_total=9e6))
    rows = gpu_report.top_operators(SimpleNamespace(key_averages=lambda: new), on_gpu=True)
    assert rows[0] == ["kernel 24", 24.0, 8.0, 2]
    assert [row[0] for row in rows] == [f"kernel {n}" for n in range(24, 4, -1)]
    old = [event("kernel", "CUDA", self_cuda_time_total=5e3)]
    rows = gpu_report.top_operators(SimpleNamespace(key_averages=lambda: old), on_gpu=True)
    assert rows == [["kernel", 5.0, 100.0, 2]]


def tiny(name: str) -> Any:
    """A case of the report at a size for a processor."""
    if name in gpu_report.TRAININGS:
        setting = replace(gpu_report.TRAININGS[name], size="tiny", frames=8, steps=2)
        return lambda found, folder: gpu_report.train(found, CPU, folder, setting)
    size: dict[str, Any] = {"size": "tiny", "frames": 6, "clips": 2, "tokens": 4}
    return lambda found, folder: gpu_report.CASES[name].run(found, CPU, folder, **size)


REPORTED = ("lora_kept", "lora_kept_rationale", "lora_tower", "full_half_checkpoint", "full_mixed")
REPORTED += ("lora_kept_liger", "stage0")


@pytest.mark.parametrize("name", REPORTED)
def test_a_case_of_the_report(name: str, tmp_path: Path) -> None:
    case = tiny(name)
    record = run_case(Case(lambda found, _, folder: case(found, folder), 60, ""), CPU, tmp_path)
    if name.endswith("liger"):
        assert record["outcome"] == LEFT_OUT
        return
    assert record["wrong"] == []
    figures = record["figures"]
    record |= {"seconds": 1.0}
    text = "\n".join(gpu_report.show({name: record}))
    assert f"| {name} | " in text
    if name.startswith("stage0"):
        assert figures["clips a minute"] > 0
        return
    assert len(figures["of each step"]) == 2
    assert figures["tokens a second"] == pytest.approx(
        figures["tokens a step"] / figures["seconds a step"]
    )
    assert figures["estimate GiB"] > 0
    assert math.isfinite(figures["loss"])
    assert 0 < len(figures["operators"]) <= gpu_report.TOP
    assert f"## {name}: what takes longest" in text
