"""`python -m rbft demo` in Chromium: a clip is chosen, and what the model says of it appears."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from rbft import load
from tests.browser import PROGRAM, browsing
from tests.recipe.runs import ROOT
from tests.videos import make_video
from tests.weights import whole_weights

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed"),
    pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed"),
]
RESULT = "document.querySelector('#result')"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, backbones: dict[str, Path]) -> Path:
    return whole_weights(tmp_path_factory.mktemp("demo") / "mine", backbones["qwen2_5_vl"])


@pytest.fixture(scope="module")
def served(weights: Path) -> Iterator[str]:
    """Address of the page; in the end Ctrl-C ends the demo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rbft", "demo", f"--weights={weights}", f"--port={port}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"Open (http://127\.0\.0\.1:\d+/) in a browser\. .*\n", line)
        assert found, line
        # Another one at the same place.
        again = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert again.returncode == 2
        assert f"port {port}: another program has it" in again.stderr
        yield found[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_clip_is_shown_and_classified(served: str, weights: Path, tmp_path: Path) -> None:
    clip, broken = tmp_path / "my clip.mp4", tmp_path / "broken.mp4"
    make_video(clip, frames=40)
    broken.write_bytes(clip.read_bytes()[:900])
    expected = load(weights).predict(clip, rationale=True)
    pictures = Path(os.environ.get("RBFT_PICTURES", tmp_path))
    with browsing(tmp_path) as browser:
        browser.size(1280, 900)
        browser.visit(served)
        browser.wait_for("document.querySelector('#ask')")
        for _ in range(30):  # until the page's script has taken the button
            browser.click("#ask")
            time.sleep(1)
            if browser.run(f"{RESULT}.textContent.includes('Choose a clip first.')"):
                break
        browser.upload("#clip input[type=file]", clip)
        browser.wait_for("document.querySelector('#clip video')?.readyState > 1")
        browser.click("#ask")
        browser.wait_for(f"{RESULT}.querySelector('.rbft-label')")
        browser.wait_for("document.querySelectorAll('#frames img').length == 6")
        browser.wait_for("[...document.querySelectorAll('#frames img')].every(i => i.complete)")
        time.sleep(1)  # fades
        browser.picture(pictures / "demo.png", whole=True)
        label = browser.run(f"{RESULT}.querySelector('.rbft-label').textContent")
        shares = browser.run(
            f"[...{RESULT}.querySelectorAll('.rbft-row')].map(row => row.textContent)"
        )
        bars = browser.run(
            f"[...{RESULT}.querySelectorAll('.rbft-bar')].map(bar => "
            "bar.getBoundingClientRect().width / bar.parentNode.getBoundingClientRect().width)"
        )
        assert label == expected.label
        values = expected.probabilities
        assert shares == [f"{name}{100 * share:.1f} %" for name, share in values.items()]
        assert bars == pytest.approx([*values.values()], abs=0.02)
        text = browser.run("document.querySelector('#rationale textarea').value")
        assert text == (expected.rationale or "").strip() != ""
        about = browser.run("document.querySelector('#frames').textContent")
        assert about.strip().startswith("The model sees 6 frames of ")
        browser.size(390, 844, phone=True)
        time.sleep(1)
        wide = browser.run("document.documentElement.scrollWidth")
        browser.picture(pictures / "demo_phone.png", whole=True)
        assert wide <= 390
        browser.size(1280, 900)
        browser.scheme("dark")
        time.sleep(1)
        browser.picture(pictures / "demo_dark.png")

        browser.run("document.querySelector('#clip button[aria-label=Clear]').click()")
        browser.wait_for("document.querySelector('#clip input[type=file]')")
        browser.wait_for(f"{RESULT}.textContent.includes('Choose a clip, then Classify.')")
        browser.upload("#clip input[type=file]", broken)
        browser.wait_for(
            "document.querySelector('#clip').textContent.includes('broken') || "
            "document.querySelector('#clip button[aria-label=Clear]')"
        )
        time.sleep(1)
        browser.click("#ask")
        browser.wait_for(f"{RESULT}.textContent.includes('broken.mp4 ')")
        assert str(tmp_path) not in browser.run(f"{RESULT}.textContent")
        assert browser.run("document.querySelectorAll('#frames img').length") == 0
        # Nothing was asked of any other place.
        assert not [one for one in browser.complaints if one.startswith("requests ")]
