"""Cases one by one, each in a process of its own with a time limit; what is known is not run again.

A fault on a GPU can end a process or leave it waiting for ever, and no case shall take the others
along. The process of the next case starts while this one runs, so that no one waits for imports.

What comes out stands in one JSON file, to which every case is added when it ends, and in one
Markdown file. A case that is in the JSON file already, made by the same code, libraries and device,
is not run again: after an interruption, the same command goes on.
"""

import hashlib
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
START = 300.0  # seconds that imports may take
TAIL = 4000  # characters of a case's output that are kept where it did not pass
# What decides what comes out, besides torch's own CUDA.
LIBRARIES = ("torch", "transformers", "lightning", "peft", "triton", "flash-attn")
LIBRARIES += ("liger-kernel", "bitsandbytes")
CODE = ("rbft/**/*.py", "rbft/**/*.yaml", "tests/*.py", "tests/gpu/*.py", "benchmarks/*.py")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_DISABLE_TORCH_CHECK": "1",  # as rbft's command line does
    "PYTHONUNBUFFERED": "1",
}
PASSED, FAILED, LATE, LEFT_OUT = "passed", "failed", "over its time limit", "left out"


class LeftOutError(Exception):
    """A case needs what is not here: says what."""


class Findings:
    """What a case found: figures, and which of them are not as they must be."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}
        self.wrong: list[str] = []

    def note(self, name: str, value: Any) -> None:
        """Keeps a figure that nothing is asked of."""
        self.figures[name] = value

    def at_most(self, name: str, value: float, limit: float) -> None:
        """Keeps a figure that must be at most so large; what is no number is not."""
        self.figures[name] = value
        if not value <= limit:
            self.wrong.append(f"{name} is {value:.4g}; at most {limit:.4g} is right")

    def same(self, name: str, found: Any, expected: Any) -> None:
        """Keeps what must be equal to something else."""
        self.figures[name] = found
        if found != expected:
            self.wrong.append(f"{name} is {found!r:.300}; {expected!r:.300} is right")


@dataclass(frozen=True)
class Case:
    """What is to be run.

    Attributes:
        run: Is given what to note findings in, the device and an empty folder.
        limit: Seconds that it may take, imports left out.
        about: What it shows.
    """

    run: Callable[[Findings, Any, Path], None]
    limit: float
    about: str


def own_packages() -> None:
    """Has `tests` and `benchmarks` be the checkout's, whatever else is installed by these names.

    And takes the scripts' folder off the path, in which the names of some are those of packages.
    """
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != ROOT / "benchmarks"]
    for name in ("tests", "benchmarks"):
        package: Any = types.ModuleType(name)
        package.__path__ = [str(ROOT / name)]
        sys.modules[name] = package
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))


def made_from(device: str) -> dict[str, Any]:
    """What decides the outcome: the code by its content, versions and the device."""
    import torch

    digest = hashlib.sha256()
    for file in sorted({file for pattern in CODE for file in ROOT.glob(pattern)}):
        digest.update(f"{file.relative_to(ROOT)} {file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    facts: dict[str, Any] = {"code": digest.hexdigest()[:16], "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = None
    on_gpu = device == "cuda"
    facts["cuda"] = torch.version.cuda
    facts["cudnn"] = torch.backends.cudnn.version() if on_gpu else None
    facts["device"] = torch.cuda.get_device_name() if on_gpu else f"no GPU, {platform.machine()}"
    return facts


class Cases:
    """Runs the cases of a module.

    Args:
        module: Dotted name of the module, whose `CASES` are cases by name.
        folder: Where the two files go.
        name: Their name.
        title: Title of the Markdown file.
        device: cuda or cpu.
        show: Makes the lines of the Markdown file of all that is known, case by case.
    """

    def __init__(
        self,
        module: str,
        folder: Path,
        name: str,
        title: str,
        device: str,
        show: Callable[[Mapping[str, dict[str, Any]]], Sequence[str]] | None = None,
    ) -> None:
        self.module, self.title, self.device = module, title, device
        self.show = show or list_figures
        folder.mkdir(parents=True, exist_ok=True)
        self.json, self.markdown = folder / f"{name}.json", folder / f"{name}.md"
        self.facts = made_from(device)
        self.known: dict[str, Any] = {}
        if self.json.exists():
            self.known = json.loads(self.json.read_text(encoding="utf-8"))["cases"]
        self._spare: _Child | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="cases-")

    def run(self, name: str, limit: float, after: str | None = None) -> dict[str, Any]:
        """What came out of a case, which is run unless it is known.

        Args:
            name: The case.
            limit: Seconds that it may take.
            after: The case that follows, if any: its process is started meanwhile.
        """
        if (found := self._kept(name, limit)) is not None:
            return found
        child = self._spare or _Child(self.module, Path(self._scratch.name))
        follows = after is not None and self._kept(after, limit) is None
        self._spare = _Child(self.module, Path(self._scratch.name)) if follows else None
        record = child.run(name, self.device, limit)
        record |= {"limit": limit, "made_from": self.facts}
        record["date"] = datetime.now().astimezone().isoformat(timespec="seconds")
        self.known[name] = record
        self._write()
        return record

    def _kept(self, name: str, limit: float) -> dict[str, Any] | None:
        """What is known of a case, if it was made by the same things."""
        found = self.known.get(name)
        if found is None or found["made_from"] != self.facts:
            return None
        # Whoever gives a case more time than it had wants to know.
        return None if found["outcome"] == LATE and found["limit"] < limit else found

    def close(self) -> None:
        """Ends the process that waits for a case."""
        if self._spare is not None:
            self._spare.kill()
        self._scratch.cleanup()

    def _write(self) -> None:
        text = json.dumps({"title": self.title, "cases": self.known}, indent=1)
        _replace(self.json, text + "\n")
        # Cases of other versions stay in the JSON file.
        now = {name: one for name, one in self.known.items() if one["made_from"] == self.facts}
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items() if value)
        lines = [f"# {self.title}", "", facts, "", *self.show(now)]
        _replace(self.markdown, "\n".join(lines) + "\n")


class _Child:
    """A process that has imported the module and waits for a case."""

    def __init__(self, module: str, scratch: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=scratch))
        self.output = (self.folder / "output.txt").open("w+b")
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), module],
            stdin=subprocess.PIPE,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path},
            start_new_session=True,  # so that what it starts ends with it
        )

    def run(self, name: str, device: str, limit: float) -> dict[str, Any]:
        """Hands a case over and waits for its end."""
        asked = {"case": name, "device": device, "folder": str(self.folder)}
        with suppress(BrokenPipeError):  # it has ended already, and its output says why
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(asked).encode() + b"\n")
            self.process.stdin.close()
        handed, started, late = time.monotonic(), None, False
        while self.process.poll() is None and not late:
            now = time.monotonic()
            if started is None and (self.folder / "started").exists():
                started = now
            late = now - handed > START if started is None else now - started > limit
            time.sleep(0.02)
        seconds = time.monotonic() - (started or handed)
        self.kill()
        result = self.folder / "result.json"
        if result.exists():
            record = json.loads(result.read_text(encoding="utf-8"))
        elif late:
            record = {"outcome": LATE, "figures": {}, "wrong": [f"not done after {seconds:.0f} s"]}
        else:
            status = self.process.returncode
            record = {"outcome": FAILED, "figures": {}, "wrong": [f"ended with status {status}"]}
        record["seconds"] = round(seconds, 2)
        if record["outcome"] in (FAILED, LATE):
            self.output.seek(0)
            record["output"] = self.output.read().decode("utf-8", "replace")[-TAIL:]
        self.output.close()
        return record

    def kill(self) -> None:
        """Ends it and what it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()


def list_figures(known: Mapping[str, dict[str, Any]]) -> list[str]:
    """A table of outcomes, and all figures below it."""
    lines = ["| case | outcome | seconds | |", "|---|---|---|---|"]
    for name, record in known.items():
        wrong = "; ".join(record["wrong"]).replace("|", "/").replace("\n", " ")
        lines.append(f"| {name} | {record['outcome']} | {record['seconds']:.1f} | {wrong[:400]} |")
    for name, record in known.items():
        lines += ["", f"## {name}", ""]
        lines += [f"- {figure}: {show(value)}" for figure, value in record["figures"].items()]
        if "output" in record:
            lines += ["", "```", record["output"].replace("```", "'''").strip(), "```"]
    return lines


def show(value: Any) -> str:
    """A figure as it is read."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "; ".join(map(show, value))
    return str(value)


def run_case(case: Case, device: Any, folder: Path) -> dict[str, Any]:
    """Runs a case in this process; whatever it raises is part of what came out."""
    findings = Findings()
    try:
        case.run(findings, device, folder)
        outcome, wrong = FAILED if findings.wrong else PASSED, findings.wrong
    except LeftOutError as error:
        outcome, wrong = LEFT_OUT, [str(error)]
    except Exception as error:  # the next case goes on
        traceback.print_exc()
        reason = (str(error).strip().splitlines() or [""])[0]
        outcome, wrong = FAILED, [*findings.wrong, f"{type(error).__name__}: {reason}"]
    return {"outcome": outcome, "wrong": wrong, "figures": findings.figures}


def _replace(file: Path, text: str) -> None:
    """Writes a file atomically."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def main() -> None:
    """Imports a module, waits for the name of a case, runs it and leaves what came out."""
    own_packages()
    # Itself by the name that others import it by: there is one class of each kind.
    cases = importlib.import_module("benchmarks.cases")
    found = importlib.import_module(sys.argv[1]).CASES
    line = sys.stdin.readline()
    if not line:  # nobody wants it any more
        return
    import torch

    asked = json.loads(line)
    folder = Path(asked["folder"])
    os.environ["RBFT_CACHE"] = str(folder / "cache")
    (folder / "started").touch()
    work = folder / "work"
    work.mkdir()
    record = cases.run_case(found[asked["case"]], torch.device(asked["device"]), work)
    _replace(folder / "result.json", json.dumps(record, allow_nan=True, default=str))
    sys.stdout.flush()
    # A library's clean-up must not turn what came out into a failure, or hang.
    os._exit(0)


if __name__ == "__main__":
    main()
