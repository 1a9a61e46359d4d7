"""What the demo shows of a clip, without Gradio; its page is in tests/recipe, with a browser."""

import base64
import re
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rbft import load
from rbft.commands.demo_page import MOST_FRAMES, result, show, strip
from rbft.video_classifier import Prediction, SeenFrame, VideoClassifier
from tests.recipe.runs import rbft
from tests.videos import make_video
from tests.weights import whole_weights


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, backbones: dict[str, Path]) -> VideoClassifier:
    return load(whole_weights(tmp_path_factory.mktemp("demo") / "mine", backbones["qwen2_5_vl"]))


def test_a_clip_with_its_frames_bars_and_rationale(model: VideoClassifier, tmp_path: Path) -> None:
    clip = make_video(tmp_path / "clip.mp4", frames=40)
    found = model.predict(clip, rationale=True)
    shown = show(model, str(clip), rationale=True)
    assert shown.result == result(found)
    assert shown.rationale == (found.rationale or "").strip() != ""
    assert shown.frames == strip(model.frames(clip))
    assert show(model, str(clip), rationale=False).rationale == ""


def test_what_is_wrong_is_said_without_the_place_of_the_upload(
    model: VideoClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "<b>.mp4"
    broken.write_bytes(b"no video")
    shown = show(model, str(broken), rationale=True)
    assert shown.result.startswith('<p class="rbft-error">&lt;b&gt;.mp4 ')
    assert str(tmp_path) not in shown.result
    assert (shown.rationale, shown.frames) == ("", "")
    assert show(model, None, rationale=True).result == (
        '<p class="rbft-error">Choose a clip first.</p>'
    )

    def fail(*_: object, **__: object) -> None:
        raise ValueError("The model's scores are not finite")

    monkeypatch.setattr(model, "predict", fail)
    clip = make_video(tmp_path / "clip.mp4", frames=8)
    shown = show(model, str(clip), rationale=False)
    assert "The model&#x27;s scores are not finite" in shown.result


def test_bars_are_as_long_as_the_probabilities() -> None:
    shown = result(Prediction(Path("a.mp4"), "b & c", {"a": 0.25, "b & c": 0.75}))
    assert shown.startswith('<p class="rbft-label">b &amp; c</p>')
    assert re.findall(r"<span>(.*?)</span>", shown) == ["a", "25.0 %", "b &amp; c", "75.0 %"]
    assert re.findall(r"width: (\S+)%", shown) == ["25.00", "75.00"]
    assert "threshold" not in shown
    decided = result(Prediction(Path("a.mp4"), "a", {"a": 0.25, "b": 0.75}, likeliest="b"))
    assert "The threshold that was chosen for a decides; likeliest is b." in decided
    written = result(Prediction(Path("a.mp4"), None, text="I <i>think</i>"))
    assert '"rbft-label">no class<' in written
    assert "The model wrote: I &lt;i&gt;think&lt;/i&gt;" in written


def test_frames_are_those_that_the_model_sees(model: VideoClassifier) -> None:
    grey = np.arange(200, dtype=np.uint8)
    frames = [SeenFrame(n / 10, np.full((28, 56, 3), grey[n], np.uint8)) for n in range(200)]
    shown = strip(frames[:3])
    assert "<p>The model sees 3 frames of 56 x 28 pixels, from 0.0 to 0.2 s.</p>" in shown
    for n, encoded in enumerate(re.findall(r"base64,([^\"]+)", shown)):
        picture = np.asarray(Image.open(BytesIO(base64.b64decode(encoded))))
        assert picture.shape == (28, 56, 3)
        assert np.abs(picture.astype(int) - grey[n]).max() <= 2
    assert re.findall(r'alt="frame at (\S+) s"', shown) == ["0.0", "0.1", "0.2"]
    many = strip(frames)
    assert f"from 0.0 to 19.9 s. {MOST_FRAMES} of them are shown.</p>" in many
    seconds = [float(one) for one in re.findall(r"<figcaption>(\S+) s", many)]
    assert (len(seconds), seconds[0], seconds[-1]) == (MOST_FRAMES, 0.0, 19.9)
    assert sorted(set(seconds)) == seconds


def test_without_gradio_it_says_what_to_install(
    tmp_path: Path,
    qwen: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    weights = whole_weights(tmp_path / "mine", qwen)
    with pytest.raises(SystemExit, match="2"):
        rbft(tmp_path, "demo", f"--weights={weights}")
    assert capsys.readouterr().err.endswith(
        "error: demo needs Gradio, which is not installed. Run: pip install 'rbft[demo]' (or pip "
        "install gradio).\n"
    )


def test_all_classes_of_a_clip() -> None:
    shares = {"cat": 0.8, "dog": 0.7}
    both = result(Prediction(Path("a.mp4"), None, shares, labels=("cat", "dog")))
    assert both.startswith('<p class="rbft-label">cat, dog</p>')
    assert re.findall(r"width: (\S+)%", both) == ["80.00", "70.00"]
    none = result(Prediction(Path("a.mp4"), None, shares, labels=()))
    assert none.startswith('<p class="rbft-label">none of the classes</p>')
