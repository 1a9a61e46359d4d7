"""TensorBoard itself in Chromium: on what it opens, and what the HParams tab begins with."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rbft.callbacks.board import Board
from tests.browser import PROGRAM, Browser, browsing

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed"),
]
PATIENCE = 90.0  # seconds
# Texts of all elements of a class, also within web components.
TEXTS = """
(() => {
  const found = [];
  const walk = (root) => {
    for (const node of root.querySelectorAll("*")) {
      if (node.matches("SELECTOR")) found.push(node.textContent.trim());
      if (node.shadowRoot) walk(node.shadowRoot);
    }
  };
  walk(document);
  return found;
})()
"""


def write_run(logs: Path) -> None:
    """What a run of two stages leaves, in little."""
    about = {"run": "house", "backbone": "qwen", "benchmark": "Yard", "seed": 0}
    for place, steps in (("zero_shot", 0), ("rationale", 4), ("label", 4)):
        board = Board(logs, "house", place)
        for step in range(1, steps + 1):
            board.log_metrics({"lr/language": 1e-5, "lr/language_no_decay": 1e-5}, step)
            figures = {"loss": 1 / step, "grad_norm": 2.0, "replaced": 0.0}
            board.log_metrics({f"train/{name}": value for name, value in figures.items()}, step)
            board.log_metrics({"speed/waiting_share": 0.1, "epoch": 0}, step)
            board.log_metrics({"val/loss": 1 / step, "val/accuracy": 0.5, "val/n": 9.0}, step)
        scores = {"test/accuracy": 0.5, "test/f1/normal": 0.4, "test/n": 9.0}
        board.log_metrics(scores, steps)
        trained = {"epochs": 1, "learning_rate": 1e-5} if steps else {}
        board.log_row({**about, "stage": place, **trained}, scores, steps)
        board.finalize("success")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("tensorboard")
    write_run(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, f"--port={port}"], stdout=log, stderr=log)
    try:
        url, end = f"http://127.0.0.1:{port}/", time.monotonic() + PATIENCE
        # It answers before it has read the runs.
        while time.monotonic() < end:
            with suppress(OSError), urllib.request.urlopen(f"{url}data/runs") as answer:
                if b"label" in answer.read():
                    break
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with browsing(tmp_path) as made:
        made.size(1400, 950)
        yield made


def texts(browser: Browser, url: str, selector: str, last: str) -> Any:
    """Texts of the elements, as soon as one of them is the last to come."""
    browser.call("Page.navigate", url=url)
    end = time.monotonic() + PATIENCE
    found: list[str] = []
    while last not in found and time.monotonic() < end:
        time.sleep(0.5)
        found = browser.run(TEXTS.replace("SELECTOR", selector))
    return found


def test_it_opens_on_accuracy_and_loss(address: str, browser: Browser) -> None:
    groups = texts(browser, address, ".group-title", "train")
    # Pinned cards, of which there are none, stand above all.
    assert groups == ["Pinned", "accuracy", "loss", "lr", "speed", "test", "train"]
    place = "document.querySelectorAll('.card-group')[1].getBoundingClientRect().top"
    assert browser.run(place) < 800, "the losses are not on the first screen"


def test_the_table_of_runs_begins_with_run_and_stage(address: str, browser: Browser) -> None:
    columns = texts(browser, f"{address}#hparams", ".hparam-checkbox", "seed")
    assert columns[:2] == ["run", "stage"]
    assert {"epochs", "learning_rate"} <= set(columns)
