"""constraints.txt, Containerfile and CITATION.cff agree with pyproject.toml."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.recipe.runs import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
PINS: dict[str, str] = dict(re.findall(r"^([\w.-]+)==([\w.]+)$", CONSTRAINTS, re.M))
CONTAINER = (ROOT / "Containerfile").read_text(encoding="utf-8")
# Instructions, each on one line.
INSTRUCTIONS = re.findall(
    r"^([A-Z]+) (.*)$", re.sub(r"^#.*\n", "", CONTAINER, flags=re.M).replace("\\\n", " "), re.M
)
LEAST_PYTHON = re.search(r">=(\d+)\.(\d+)", PROJECT["requires-python"])


def requirements() -> list[Requirement]:
    """What rbft and its tests name; an extra of rbft stands for what it names."""
    extras = PROJECT["optional-dependencies"]
    found, todo = [], [*PROJECT["dependencies"], *extras["dev"]]
    for text in todo:
        one = Requirement(text)
        if one.name == PROJECT["name"]:
            todo += [more for extra in sorted(one.extras) for more in extras[extra]]
        else:
            found.append(one)
    return found


@pytest.mark.parametrize("one", requirements(), ids=lambda one: one.name)
def test_a_dependency_is_pinned_at_a_version_that_is_allowed(one: Requirement) -> None:
    pins = {canonicalize_name(name): version for name, version in PINS.items()}
    assert canonicalize_name(one.name) in pins
    assert pins[canonicalize_name(one.name)] in one.specifier


def test_pins_are_plain_versions_of_an_allowed_python() -> None:
    assert len(PINS) > 100
    every = [line for line in CONSTRAINTS.splitlines() if not line.startswith("#")]
    assert every == [f"{name}=={version}" for name, version in PINS.items()]
    (python,) = re.findall(r"Python (\d+\.\d+)", CONSTRAINTS)
    assert python in SpecifierSet(PROJECT["requires-python"])
    assert "pip install -e . -c constraints.txt" in CONSTRAINTS
    for page in ("README.md", "docs/reproduce.md"):
        assert "-c constraints.txt" in (ROOT / page).read_text(encoding="utf-8")


def test_the_container_has_an_allowed_python_and_installs_what_is_pinned() -> None:
    assert LEAST_PYTHON is not None
    least = f"({LEAST_PYTHON[1]}, {LEAST_PYTHON[2]})"
    assert f"sys.version_info >= {least}" in CONTAINER
    (base,) = re.findall(r"^ARG BASE=\S+/python:([\d.]+)-slim$", CONTAINER, re.M)
    assert base in SpecifierSet(PROJECT["requires-python"])
    assert f"# Linux on x86-64, Python {base}." in CONSTRAINTS
    (install,) = re.findall(r"python -m pip install (.+)$", CONTAINER, re.M)
    package, constraint = install.split()[-1], install.split("--constraint ")[1].split()[0]
    extras = re.fullmatch(r"'\.\[([\w,]+)\]'", package)
    assert extras is not None
    assert set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"])
    assert f"constraints.txt {constraint}" in CONTAINER
    (script,) = PROJECT["scripts"]
    assert ("ENTRYPOINT", f'["{script}"]') in INSTRUCTIONS


def test_the_container_copies_what_the_package_is_built_from() -> None:
    copied = [one for name, rest in INSTRUCTIONS if name == "COPY" for one in rest.split()[:-1]]
    assert all((ROOT / one).exists() for one in copied)
    needed = {"pyproject.toml", "constraints.txt", "rbft", "experiments"}
    assert needed | {PROJECT["readme"], *PROJECT["license-files"]} == set(copied)


def test_nothing_runs_as_root_and_nothing_is_secret() -> None:
    names = [name for name, _ in INSTRUCTIONS]
    users = [rest for name, rest in INSTRUCTIONS if name == "USER"]
    assert users == ["1000:1000"]
    assert "RUN" not in names[names.index("USER") :]
    said = CONTAINER.replace("is secret", "")
    assert not re.search(r"token|secret|password|_key|sudo", said, re.I)


@pytest.mark.skipif(sys.platform == "win32", reason="a line of sh")
def test_an_image_with_torch_keeps_it(tmp_path: Path) -> None:
    (line,) = re.findall(r"(grep -Ev '.*' constraints\.txt)", CONTAINER)
    left = subprocess.run(
        ["sh", "-c", line], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    kept = {text.split("==")[0] for text in left.splitlines() if not text.startswith("#")}
    assert set(PINS) - kept == {
        name
        for name in PINS
        if name in ("torch", "torchvision", "triton") or name.startswith(("nvidia-", "cuda-"))
    }
    assert {"torchmetrics", "transformers"} <= kept


def test_its_commands_are_those_of_the_page() -> None:
    page = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8").replace("\\\n    ", "")
    own = re.sub(r"\\\n# +", "", CONTAINER)
    built, run = re.findall(r"^podman .*$", page, re.M)
    assert f"#   {built}\n" in own
    assert f"#   {run.split(' rbft ')[0]} rbft " in own


def test_how_to_cite_is_about_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["cff-version"], cited["type"]) == ("1.2.0", "software")
    assert (str(cited["version"]), cited["license"]) == (PROJECT["version"], PROJECT["license"])
    assert cited["title"].startswith(f"{PROJECT['name']}: ")
    (paper,) = cited["references"]
    title = "RB-FT: Rationale-Bootstrapped Fine-Tuning for Video Classification"
    assert paper["title"] == title
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert title in readme
