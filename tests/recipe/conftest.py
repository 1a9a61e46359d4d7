"""Clips are made once for all runs of the command line."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of the runs, those in processes of their own included."""
    before = os.environ.get("RBFT_CACHE")
    folder = tmp_path_factory.mktemp("cache")
    os.environ["RBFT_CACHE"] = str(folder)
    yield folder
    del os.environ["RBFT_CACHE"]
    if before is not None:
        os.environ["RBFT_CACHE"] = before
