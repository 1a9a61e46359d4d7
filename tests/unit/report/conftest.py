"""One folder of made-up runs for all tests of the report; treat it as read-only."""

from pathlib import Path

import pytest

from rbft.report.content import Content, build_content
from rbft.report.gather import Gathered, gather
from tests.report_runs import write_logs


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_logs(tmp_path_factory.mktemp("report") / "lightning_logs")


@pytest.fixture(scope="session")
def gathered(logs: Path) -> Gathered:
    return gather(logs)


@pytest.fixture(scope="session")
def content(gathered: Gathered) -> Content:
    return build_content(gathered)
