"""The checks on a GPU, each in a process of its own: `pytest -m gpu --gpu_report FOLDER`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.cases import LEFT_OUT, PASSED, Cases
from tests.gpu.checks import CASES, FILE, TITLE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
NAMES = list(CASES)


@pytest.fixture(scope="module")
def cases(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cases]:
    folder = request.config.getoption("--gpu_report") or tmp_path_factory.mktemp("gpu_report")
    made = Cases("tests.gpu.checks", Path(folder), FILE, TITLE, "cuda")
    yield made
    made.close()


@pytest.mark.parametrize("name", NAMES)
def test_check(cases: Cases, name: str) -> None:
    follows = [*NAMES, None][NAMES.index(name) + 1]
    record = cases.run(name, CASES[name].limit, follows)
    said = "; ".join(record["wrong"])
    if record["outcome"] == LEFT_OUT:
        pytest.skip(said)
    assert record["outcome"] == PASSED, f"{said}\n{record.get('output', '')}"
