"""Mutation testing: puts small faults into rbft one at a time and sees which the tests notice.

cosmic-ray's operators make the faults, and a few of our own that it lacks. Each faulty source is
tested in a forked process in which the import system reads it instead of the file; the libraries
are imported once, before the fork, and nothing in the checkout is written. A process that a test
starts (the command line, other ranks) reads the faulty source too.

    python -m tests.mutation --out /tmp/mutants.jsonl --count 300 --seed 1

Every tested fault becomes a line of the output; started again, the command leaves out what has a
line. tests/mutation.yaml says which tests are those of a file, and which faults change nothing.
"""

import argparse
import contextlib
import difflib
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import parso
import yaml
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.provider import OperatorProvider

ROOT = Path(__file__).parents[1]
FEW = 3  # faults that are drawn of a file at least
# What takes long to import, and the tests need.
LIBRARIES = """
av beartype bitsandbytes hypothesis jaxtyping jsonargparse lightning.pytorch lightning.pytorch.cli
matplotlib.figure numpy peft PIL pytest sklearn.metrics torch torch._dynamo torch.distributed.fsdp
torch.distributed.checkpoint.state_dict torch.utils.tensorboard torchmetrics
torchmetrics.classification torchvision tqdm transformers transformers.generation.utils
transformers.models.auto.processing_auto transformers.models.qwen2_5_vl.modeling_qwen2_5_vl
transformers.models.qwen2_vl.modeling_qwen2_vl transformers.models.qwen2_vl.processing_qwen2_vl
transformers.models.qwen2_vl.video_processing_qwen2_vl transformers.trainer
"""


class DropKeyword:
    """Leaves a keyword argument out of a call, so that the callee's default holds."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "argument" and node.children[1] == "=":
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        # An empty list unpacked stands at every place where an argument may stand.
        return parso.parse(f"{node.get_first_leaf().prefix}**{{}}")


class DropStatement:
    """Leaves out a call whose value is not used, an assignment to a member, or an `x += y`."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.parent is None or node.parent.type != "simple_stmt":
            return
        if node.type in ("atom_expr", "power") and node.children[-1].get_code()[:1] == "(":
            yield node.start_pos, node.end_pos
        if node.type == "expr_stmt":
            target, sign = node.children[0], node.children[1].get_code().strip()
            member = target.type in ("atom_expr", "power") and sign == "="
            if member or sign in ("+=", "-=", "*=", "/=", "|=", "&="):
                yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        return parso.parse(f"{node.get_first_leaf().prefix}pass")


# Of two operators whose replacements differ little, one replaces: else 132 of a `+` would outweigh
# all else, and nearly all of them end in a TypeError that any test notices.
BINARY = """
Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul FloorDiv_Div Mod_FloorDiv Pow_Mul RShift_LShift
LShift_RShift BitOr_BitAnd BitAnd_BitOr BitXor_BitAnd
"""
COMPARISONS = """
Eq_NotEq Eq_LtE Eq_GtE NotEq_Eq NotEq_Lt NotEq_Gt Lt_LtE Lt_NotEq Lt_GtE LtE_Lt LtE_Eq LtE_Gt
Gt_GtE Gt_NotEq Gt_LtE GtE_Gt GtE_Eq GtE_Lt Is_IsNot IsNot_Is
"""
OTHERS = """
AddNot ReplaceTrueWithFalse ReplaceFalseWithTrue ReplaceAndWithOr ReplaceOrWithAnd NumberReplacer
ReplaceBreakWithContinue ReplaceContinueWithBreak ExceptionReplacer ZeroIterationForLoop
ReplaceUnaryOperator_Delete_Not ReplaceUnaryOperator_Delete_USub ReplaceUnaryOperator_Delete_Invert
"""
OWN = {"DropKeyword": DropKeyword, "DropStatement": DropStatement}
OPERATORS = (
    *(f"ReplaceBinaryOperator_{name}" for name in BINARY.split()),
    *(f"ReplaceComparisonOperator_{name}" for name in COMPARISONS.split()),
    *OTHERS.split(),
    *OWN,
)
# What nothing can notice: the locale of the tests is UTF-8, and lengths that differ are our fault.
NOTHING = {"encoding", "strict"}


def pointless(node: Any) -> bool:
    """Whether a fault here says nothing: in types, decorators, assertions, hook signatures."""
    inner: Any = node
    outer: Any = node.parent
    while inner is not None:
        if inner.type in ("decorator", "assert_stmt"):
            return True
        if inner.type == "if_stmt" and inner.children[1].get_code().strip() == "TYPE_CHECKING":
            return True
        if inner.type == "param" and inner.name.value == "dataloader_idx":
            return True
        if inner.type == "argument" and inner.children[0].get_code().strip() in NOTHING:
            return True
        if outer is not None:
            annotation = {"tfpdef": -1, "annassign": 1}.get(outer.type)
            if annotation is not None and inner is outer.children[annotation]:
                return True
            if outer.type == "funcdef" and inner is outer.annotation:
                return True
        inner, outer = outer, getattr(outer, "parent", None)
    return False


class Pointed:
    """An operator without the places where a fault says nothing."""

    def __init__(self, operator: Any) -> None:
        self.operator = operator

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        found = list(self.operator.mutation_positions(node))
        if found and not pointless(node) and not self._orders_words(node):
            yield from found

    def _orders_words(self, node: Any) -> bool:
        """Whether it would ask which of two words comes first in the alphabet."""
        name = type(self.operator).__name__
        order = name.startswith("ReplaceComparison") and not name.endswith("Eq_NotEq")
        words = [child for child in getattr(node, "children", ()) if child.type == "string"]
        return order and not name.endswith("NotEq_Eq") and bool(words)

    def mutate(self, node: Any, index: int) -> Any:
        return self.operator.mutate(node, index)


def operator(name: str) -> Any:
    """One of `OPERATORS`, by name."""
    known: Any = OWN[name] if name in OWN else OperatorProvider()[name]
    return Pointed(known())


@dataclass(frozen=True)
class Mutant:
    """A source file with one fault in it.

    Attributes:
        file: The file, from the checkout's root.
        operator: One of `OPERATORS`.
        occurrence: Which of the places where the operator finds something to change.
        line: Number of the first changed line.
        was: The changed lines as they are, without indentation.
        becomes: The same with the fault.
        text: The whole faulty source.
    """

    file: str
    operator: str
    occurrence: int
    line: int
    was: str
    becomes: str
    text: str = field(repr=False)

    @property
    def key(self) -> str:
        """The same for the same fault in the same source."""
        return hashlib.sha256(f"{self.operator}\n{self.text}".encode()).hexdigest()[:16]


Fault = tuple[str, int]  # operator, and which of the places where it finds something to change


def faults(file: str) -> list[Fault]:
    """Every fault that the operators find in a file."""
    nodes = list(ast_nodes(get_ast((ROOT / file).read_text(encoding="utf-8"))))
    found = []
    for name in OPERATORS:
        made = operator(name)
        places = sum(1 for node in nodes for _ in made.mutation_positions(node))
        found += [(name, occurrence) for occurrence in range(places)]
    return found


def mutant(file: str, fault: Fault) -> Mutant | None:
    """The file with a fault in it; None where that is no Python any more."""
    name, occurrence = fault
    source = (ROOT / file).read_text(encoding="utf-8")
    try:
        text: Any = mutate_code(source, operator(name), occurrence)
        compile(text, file, "exec")
    except (SyntaxError, AttributeError):  # no names in `except (one.two, three)`
        return None
    before, after = source.splitlines(), text.splitlines()
    match = difflib.SequenceMatcher(None, before, after, autojunk=False)
    changes = [
        (i, before[i:j], after[k:m]) for tag, i, j, k, m in match.get_opcodes() if tag != "equal"
    ]
    was = " ".join(line.strip() for _, lines, _ in changes for line in lines)
    becomes = " ".join(line.strip() for _, _, lines in changes for line in lines)
    return Mutant(file, name, occurrence, changes[0][0] + 1, was, becomes, text)


def sample(plan: "Plan", count: int | None, seed: int, files: Sequence[str]) -> list[Mutant]:
    """A drawn part of the faults of all files, or all.

    Args:
        plan: Names the files and their weights.
        count: About how many; each file has a share in proportion to its faults times its weight,
            and at least `FEW`. None takes every fault.
        seed: Of what is drawn.
        files: Those of which the drawn faults are returned; what is drawn of one does not depend
            on which others are named.
    """
    known = {file: faults(file) for file in (plan.files if count else files)}
    sizes = {file: len(found) * plan.weight(file) for file, found in known.items()}
    chosen = []
    for file in files:
        order = random.Random(f"{seed} {file}").sample(known[file], len(known[file]))
        made = (found for fault in order if (found := mutant(file, fault)) is not None)
        if count is not None:
            made = islice(made, max(FEW, round(count * sizes[file] / sum(sizes.values()))))
        chosen += made
    return chosen


class Watch:
    """A plugin of pytest that notes which test failed first, or which file of tests."""

    def __init__(self) -> None:
        self.failed = ""

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


# Where a path that is imported is the faulty one, another text is read and no compiled one.
STAND_IN = """
import os
from importlib.machinery import SourceFileLoader

def _stand_in(path, text, data=SourceFileLoader.get_data, stats=SourceFileLoader.path_stats):
    def get_data(self, name):
        return text if str(name) == path else data(self, name)

    def path_stats(self, name):
        if str(name) == path:
            raise OSError("a stand-in has no times, so no compiled file is looked for")
        return stats(self, name)

    SourceFileLoader.get_data, SourceFileLoader.path_stats = get_data, path_stats

if "RBFT_MUTANT" in os.environ:
    with open(os.environ["RBFT_MUTANT_TEXT"], "rb") as stream:
        _stand_in(os.environ["RBFT_MUTANT"], stream.read())
"""


def run(tests: Sequence[str], mutant: Mutant | None, limit: float | None) -> dict[str, Any]:
    """Runs tests in a forked process up to the first failure.

    Args:
        tests: What pytest is called with, from tests/.
        mutant: What is imported instead of its file; None tests the source as it is.
        limit: Seconds after which the process and all it has started are killed.

    Returns:
        outcome ("survived", "killed" or "timeout"), test (which noticed), seconds, and what was
        said.
    """
    folder = Path(tempfile.mkdtemp(prefix="mutant-"))
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _test(folder, tests, mutant)
    code = _wait(child, limit)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    seconds = round(time.monotonic() - started, 1)
    report = folder / "report.json"
    watch = json.loads(report.read_text()) if report.exists() else {"failed": ""}
    if code is None:
        outcome = "timeout"
    elif code == 0:
        outcome = "survived"
    else:  # a process that died without a word is noticed as well
        outcome = "killed"
    said = (folder / "output.txt").read_text(errors="replace")[-3000:]
    shutil.rmtree(folder, ignore_errors=True)
    return {"outcome": outcome, "test": watch["failed"], "seconds": seconds, "said": said}


def _wait(child: int, limit: float | None) -> int | None:
    started = time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if limit is not None and time.monotonic() - started > limit:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.05)


def _test(folder: Path, tests: Sequence[str], mutant: Mutant | None) -> None:
    """The forked process; does not return."""
    code = 70
    try:
        os.setsid()
        output = os.open(folder / "output.txt", os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        (folder / "sitecustomize.py").write_text(STAND_IN)
        os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{ROOT}"
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder / "hypothesis")
        os.environ["TMPDIR"] = str(folder)
        tempfile.tempdir = None
        if mutant is not None:
            (folder / "mutant.txt").write_text(mutant.text, encoding="utf-8")
            os.environ["RBFT_MUTANT"] = str(ROOT / mutant.file)
            os.environ["RBFT_MUTANT_TEXT"] = str(folder / "mutant.txt")
        exec(STAND_IN, {})
        watch, pytest = Watch(), importlib.import_module("pytest")
        options = ["-n", "0", "-x", "-q", "-p", "no:cacheprovider", "--assert=plain"]
        options += ["--basetemp", f"{folder}/tmp"]
        code = int(pytest.main([*options, *(f"tests/{test}" for test in tests)], plugins=[watch]))
        (folder / "report.json").write_text(json.dumps(vars(watch)))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


class Plan:
    """tests/mutation.yaml: each file's tests, and faults that they cannot notice."""

    def __init__(self) -> None:
        text = (ROOT / "tests" / "mutation.yaml").read_text(encoding="utf-8")
        self.files: dict[str, dict[str, Any]] = yaml.safe_load(text)

    def tests(self, file: str) -> list[str]:
        """What pytest is called with, from tests/."""
        return self.files[file]["tests"]

    def weight(self, file: str) -> float:
        """How many times larger than its size the file's share of what is drawn is."""
        return self.files[file].get("weight", 1)

    def known(self, fault: dict[str, Any]) -> str | None:
        """ "equivalent" or "gpu" where a fault is listed, see the file's head; else None."""
        for kind in ("equivalent", "gpu"):
            for row in self.files[fault["file"]].get(kind, ()):
                if all(_bare(row[name]) == _bare(fault[name]) for name in ("was", "becomes")):
                    return kind
        return None


def _bare(line: str) -> str:
    """Without white space, of which the operators add some."""
    return "".join(line.split())


KINDS = ("killed", "timeout", "survived", "equivalent", "gpu")


def figures(plan: Plan, results: Sequence[dict[str, Any]]) -> str:
    """Every survivor that is not listed, and a table by file."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    left = []
    for row in results:
        kind = row["outcome"]
        if kind == "survived":
            kind = plan.known(row) or kind
        if kind == "survived":
            place = f"{row['file']}:{row['line']} {row['operator']}"
            left.append(f"{place}\n  - {row['was']}\n  + {row['becomes']}")
        counts[row["file"]][kind] += 1
        counts["all"][kind] += 1
    lines = [f"{'':34}" + "".join(f"{kind:>12}" for kind in KINDS) + f"{'noticed':>10}"]
    for file, count in sorted(counts.items(), key=lambda item: (item[0] == "all", item[0])):
        noticed = count["killed"] + count["timeout"]
        share = noticed / max(1, noticed + count["survived"])
        lines.append(f"{file:34}" + "".join(f"{count[k]:12}" for k in KINDS) + f"{share:10.1%}")
    return "\n".join([*sorted(left), "", *lines]) + "\n"


def main() -> None:
    """Draws, tests and reports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="lines of what was tested")
    parser.add_argument("--files", nargs="*", help="some of the files of tests/mutation.yaml")
    parser.add_argument("--count", type=int, help="how many are drawn; without it, every one")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn")
    parser.add_argument("--again", action="store_true", help="test recorded survivors once more")
    parser.add_argument("--list", action="store_true", help="only say how many there are")
    given = parser.parse_args()
    os.chdir(ROOT)
    plan = Plan()
    files = given.files or list(plan.files)
    if given.list:
        found = {file: len(faults(file)) for file in files}
        sys.stdout.write("".join(f"{number:5} {file}\n" for file, number in found.items()))
        return
    chosen = sample(plan, given.count, given.seed, files)
    lines = given.out.read_text().splitlines() if given.out.exists() else []
    done = {row["key"]: row for row in map(json.loads, lines)}
    again = {"survived", "timeout"} if given.again else set()
    todo = [m for m in chosen if m.key not in done or done[m.key]["outcome"] in again]
    todo = [m for m in todo if not plan.known(asdict(m))]
    if todo:
        _prepare()
    limits: dict[str, float] = {}
    for number, mutant in enumerate(todo, start=1):
        tests = plan.tests(mutant.file)
        if mutant.file not in limits:
            clean = run(tests, None, None)
            if clean["outcome"] != "survived":
                raise SystemExit(f"{tests} fail without a fault:\n{clean['said']}")
            limits[mutant.file] = 60 + 4 * clean["seconds"]
            sys.stdout.write(f"{mutant.file}: {clean['seconds']} s without a fault\n")
        result = run(tests, mutant, limits[mutant.file])
        row = {"key": mutant.key, **asdict(mutant), **result}
        del row["text"], row["said"]
        done[mutant.key] = row
        with given.out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        sys.stdout.write(
            f"{number}/{len(todo)} {result['outcome']:11} {result['seconds']:6} s {mutant.file}:"
            f"{mutant.line} {mutant.operator}  {result['test']}\n"
        )
        sys.stdout.flush()
    # What is listed is not tested.
    rows = [done.get(m.key, {**asdict(m), "outcome": "survived"}) for m in chosen]
    sys.stdout.write(figures(plan, rows))


def _prepare() -> None:
    """Imports what all tests need, once."""
    os.nice(10)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    for name in LIBRARIES.split():
        importlib.import_module(name)


if __name__ == "__main__":
    main()
