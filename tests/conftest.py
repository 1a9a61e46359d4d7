"""Nothing here needs a network or a GPU."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the loaders fork
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors

import random
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.tiny import FAMILY_NAMES, merge_punctuation, tiny_backbone

if find_spec("hypothesis") is not None:  # the checks on a GPU do without
    import hypothesis

    # The same cases in every run, however slow the machine is.
    hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
    hypothesis.settings.load_profile("fixed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The folder of the report of `pytest -m gpu`; what it holds already is not run again."""
    parser.addoption("--gpu_report", help="folder for the report of the checks on a GPU")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps the default run short: Qwen2-VL's unit tests, but not its parity, are the long run's.

    Its decoder is that of Qwen2.5-VL, its vision tower has blocks like those of Qwen3-VL.
    """
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if params.get("backbone") == "qwen2_vl" and "parity" not in item.path.parts:
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of all tests, and of the runs of the command line that they start."""
    before = os.environ.get("RBFT_CACHE")
    folder = tmp_path_factory.mktemp("cache")
    os.environ["RBFT_CACHE"] = str(folder)
    yield folder
    del os.environ["RBFT_CACHE"]
    if before is not None:
        os.environ["RBFT_CACHE"] = before


@pytest.fixture(autouse=True)
def seed() -> None:
    """What a test draws depends on nothing that ran before it."""
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random backbone of each family; treat the folders as read-only."""
    root = tmp_path_factory.mktemp("backbones")
    return {name: tiny_backbone(root / name, name) for name in FAMILY_NAMES}


@pytest.fixture(params=FAMILY_NAMES)
def backbone(request: pytest.FixtureRequest, backbones: dict[str, Path]) -> Path:
    """The tiny backbone of one family; the test runs with each."""
    return backbones[request.param]


@pytest.fixture
def qwen(backbones: dict[str, Path]) -> Path:
    """The tiny Qwen2.5-VL, for what does not depend on the family."""
    return backbones["qwen2_5_vl"]


@pytest.fixture(scope="session")
def merging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2.5-VL whose tokenizer makes one token of punctuation and a line break."""
    folder = tiny_backbone(tmp_path_factory.mktemp("merging") / "qwen2_5_vl", "qwen2_5_vl")
    merge_punctuation(folder)
    return folder
