"""`rbft.load` and what it gives: in Python the numbers, the order and the errors of `predict`."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import rbft
from rbft import load, video_classifier
from rbft.backbone.loading import fingerprint
from rbft.clip import Clip
from rbft.runtime.files import write_json
from rbft.video.sampling import VideoError, decode_video
from rbft.video_classifier import VideoClassifier, _clip
from tests.recipe.runs import ROOT
from tests.several import PETS
from tests.videos import make_video, picture
from tests.weights import adapter, whole_weights


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Seven clips, all different."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [folder / f"{n}.mp4" for n in range(7)]
    for number, path in enumerate(paths):
        make_video(path, frames=24 + 12 * number, first=30 * number)
    return paths


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, backbones: dict[str, Path]) -> Path:
    return whole_weights(tmp_path_factory.mktemp("weights") / "mine", backbones["qwen2_5_vl"])


@pytest.fixture(scope="module")
def model(weights: Path) -> VideoClassifier:
    return load(weights)


def test_the_package_does_without_torch_until_it_loads() -> None:
    code = "import sys, rbft; assert 'torch' not in sys.modules; assert 'load' in rbft.__all__"
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True
    )
    with pytest.raises(AttributeError, match="module 'rbft' has no attribute 'lode'"):
        _ = rbft.lode  # type: ignore[attr-defined]


def test_one_video_several_and_as_many_as_come(model: VideoClassifier, videos: list[Path]) -> None:
    several = model.predict(videos)
    assert [one.path for one in several] == videos
    assert len({one.probabilities["alarm"] for one in several}) == len(videos)
    for path, found in zip(videos, several, strict=True):
        assert found.label == max(found.probabilities, key=found.probabilities.__getitem__)
        assert list(found.probabilities) == list(model.classes) == ["quiet", "alarm"]
        assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-6)
        assert (found.error, found.text, found.rationale, found.likeliest) == ("", "", None, None)
        alone = model.predict(str(path))
        assert alone.label == found.label
        # In a batch of its own it is computed in another order.
        assert alone.probabilities == pytest.approx(found.probabilities, abs=1e-6)
    assert list(model.predict(iter(videos))) == several
    assert model.predict(tuple(videos)) == several
    twice = model.predict([videos[0], videos[0]], batch_size=2)
    assert twice[0] == twice[1]


def test_a_clip_is_called_what_predict_calls_it() -> None:
    """Self-consistency draws by the name."""
    for given in ("./a/../b.mp4", Path("./a/../b.mp4")):
        assert _clip(given) == Clip("a/../b.mp4", Path("a/../b.mp4"), None, "predict")


def test_an_iterator_is_followed_a_batch_at_a_time(
    model: VideoClassifier, videos: list[Path]
) -> None:
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            yield videos[taken % len(videos)]
            taken += 1

    given = model.predict(endless())
    assert taken == 0
    first = [next(given) for _ in range(4)]
    assert [one.path for one in first] == videos[:4]
    assert taken < 6  # two batches of the three that the weights' note says
    one_by_one = model.predict(endless(), batch_size=1)
    taken = 0
    next(one_by_one)
    assert taken == 0
    with pytest.raises(ValueError, match=r"^batch_size \(0\) must be 1 or more\.$"):
        model.predict(videos, batch_size=0)


def test_nothing_is_kept_of_what_was_predicted(model: VideoClassifier, videos: list[Path]) -> None:
    """Frames and outputs of the batches before are gone."""
    import gc

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())

    given = model.predict((videos[n % 7] for n in range(30)), batch_size=2)
    next(given)
    before = tensors()
    for _ in range(27):
        next(given)
    assert tensors() <= before


def test_a_file_that_cannot_be_used(
    model: VideoClassifier, videos: list[Path], tmp_path: Path
) -> None:
    broken, gone = tmp_path / "broken.mp4", tmp_path / "gone.mp4"
    broken.write_bytes(videos[0].read_bytes()[:700])
    found = model.predict([broken, videos[0], gone, "https://x.org/a.mp4"])
    assert [one.label is None for one in found] == [True, False, True, True]
    assert found[0].error.startswith(f"Video {broken} ")
    assert found[2].error == f"Video {gone} does not exist."
    assert found[3].error.startswith("https://x.org/a.mp4 is a URL, and videos are read from the")
    assert found[1].probabilities == pytest.approx(model.predict(videos[0]).probabilities, abs=1e-6)
    for path, one in zip((broken, gone), (found[0], found[2]), strict=True):
        with pytest.raises(VideoError) as error:
            model.predict(path)
        assert str(error.value) == one.error


def test_a_rationale_on_request(model: VideoClassifier, videos: list[Path]) -> None:
    plain, explained = model.predict(videos[0]), model.predict(videos[0], rationale=True)
    assert plain.rationale is None
    assert explained.rationale
    assert explained.probabilities == pytest.approx(plain.probabilities, abs=1e-6)


def test_a_window_is_the_segment_of_those_seconds(
    model: VideoClassifier, videos: list[Path], tmp_path: Path
) -> None:
    """As a clip whose start and end columns say them; here the classifier's own parts, by hand."""
    found = list(model.predict_windows(videos[6], every=2, window=3, batch_size=2))
    assert [(one.start, one.end) for one in found] == [(0, 3), (2, 5), (4, 7), (6, 9), (8, 9.6)]
    for one in found:
        clip = Clip("x", videos[6], None, "predict", start=one.start, end=one.end)
        (alone,) = model._each([clip], False, 1)
        assert one.path == videos[6]
        assert one.probabilities == pytest.approx(alone.probabilities, abs=1e-6)
        own = model._data.reader.decode(clip)
        frames = decode_video(videos[6], model._data.frames, start=one.start, end=one.end)
        assert torch.equal(own.frames, frames.frames)
        assert own.indices[0] == 10 * (one.start or 0)
    assert len({one.probabilities["alarm"] for one in found}) == len(found)
    (whole,) = model.predict_windows(videos[0], every=60)
    assert whole.probabilities == pytest.approx(model.predict(videos[0]).probabilities, abs=1e-6)
    assert (whole.start, whole.end) == (0, 2.4)
    (explained,) = model.predict_windows(videos[0], every=60, rationale=True)
    assert explained.rationale
    with pytest.raises(VideoError, match=r"gone\.mp4 does not exist\.$"):
        model.predict_windows(tmp_path / "gone.mp4", every=1)
    with pytest.raises(VideoError, match=r"^https://x\.org/a\.mp4 is a URL"):
        model.predict_windows("https://x.org/a.mp4", every=1)
    with pytest.raises(ValueError, match=r"^every \(0\) must be above 0; it is seconds of video"):
        model.predict_windows(videos[0], every=0)
    with pytest.raises(ValueError, match=r"^window \(-1\) must be above 0; it is seconds of vid"):
        model.predict_windows(videos[0], every=1, window=-1)


def test_images_are_clips(weights: Path, model: VideoClassifier, tmp_path: Path) -> None:
    """A still, and a folder whose setting says how fast its images follow each other."""
    film = make_video(tmp_path / "a.mkv", 20, 56, 84, codec="ffv1", pixels="bgr0")
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(20):
        Image.fromarray(picture(number, 56, 84)).save(folder / f"{number}.png")
    timed = load(weights, settings={"data.image_fps": 10})
    expected = model.predict(film)
    found, still = timed.predict([folder, folder / "7.png"])
    assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
    assert (found.path, still.path) == (folder, folder / "7.png")
    one = make_video(tmp_path / "one.mkv", 1, 56, 84, codec="ffv1", pixels="bgr0", first=7)
    of_one = model.predict(one).probabilities
    assert still.probabilities == pytest.approx(of_one, abs=1e-6)
    assert [frame.seconds for frame in timed.frames(folder)][-1] == pytest.approx(1.9)
    windows = timed.predict_windows(folder, every=1)
    assert [(window.start, window.end) for window in windows] == [(0, 1), (1, 2)]
    (failed,) = model.predict([folder])
    assert failed.error.startswith(f"{folder} is 20 images, and nothing says when they are shown.")


def test_windows_are_decoded_as_they_are_asked_for(
    weights: Path, videos: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And leave nothing in the frame cache."""
    monkeypatch.setenv("RBFT_CACHE", str(tmp_path))
    model, decoded = load(weights), []
    decode = video_classifier.decode_video

    def noted(*given: Any, **more: Any) -> Any:
        decoded.append(more["start"])
        return decode(*given, **more)

    monkeypatch.setattr(video_classifier, "decode_video", noted)
    windows = model.predict_windows(videos[6], every=1, batch_size=2)
    assert decoded == []
    assert next(windows).start == 0
    assert sorted(decoded) == [0, 1]
    assert len(list(windows)) == 9
    assert not list(tmp_path.rglob("*.clip"))
    model.predict(videos[0])
    assert len(list(tmp_path.rglob("*.clip"))) == 1


def test_a_threshold_decides_the_label(
    qwen: Path, videos: list[Path], tmp_path: Path, model: VideoClassifier
) -> None:
    shares = [one.probabilities["alarm"] for one in model.predict(videos)]
    low, high = sorted(shares)[2:4]
    folder = whole_weights(tmp_path / "mine", qwen)
    chosen = {"wanted": {"positive": "alarm"}, "threshold": (low + high) / 2}
    write_json(folder / "decision.json", {"weights": fingerprint(str(folder)), **chosen})
    decided = load(folder).predict(videos)
    assert [one.label for one in decided] == [
        "alarm" if share >= high else "quiet" for share in shares
    ]
    assert {one.likeliest for one in decided} == {"quiet"}


def test_written_answers_have_no_probabilities(weights: Path, videos: list[Path]) -> None:
    found = load(weights, settings={"model.answer": "generate"}).predict(videos[0])
    assert found.probabilities == {}
    assert found.text
    assert found.label in ("quiet", "alarm", None)


def test_the_frames_that_the_model_sees(model: VideoClassifier, videos: list[Path]) -> None:
    seen = model.frames(videos[3])
    expected = decode_video(videos[3], model._data.frames)
    assert len(seen) == len(expected.indices) > 2
    for one, place, frame in zip(seen, expected.indices, expected.frames, strict=True):
        assert one.seconds == pytest.approx(place / expected.fps)
        assert torch.equal(torch.from_numpy(one.picture).permute(2, 0, 1), frame)


def test_settings_and_an_adapter(
    weights: Path, qwen: Path, videos: list[Path], tmp_path: Path, model: VideoClassifier
) -> None:
    level = logging.getLogger("lightning.pytorch").level
    fewer = load(weights, device="cpu", settings={"data.max_frames": 2, "data.fps": 1})
    assert logging.getLogger("lightning.pytorch").level == level
    assert len(fewer.frames(videos[6])) == 2 < len(model.frames(videos[6]))
    other = load(adapter(tmp_path / "adapter", qwen))
    assert other.predict(videos[0]).probabilities != model.predict(videos[0]).probabilities
    assert other.model == f"{tmp_path}/adapter\nrun yard_run, trained on rationale -> label"
    # The first is what it was.
    assert model.predict(videos[0]) == load(weights).predict(videos[0])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"weights": "nowhere"}, r"^--weights nowhere does not exist\. Give a folder that rbft"),
        ({"device": "tpu"}, r"^device is 'tpu'; allowed are cpu, cuda, cuda:<number>, mps and N"),
        ({"settings": {"data.fsp": 2}}, r"^there is no setting 'fsp'\. Did you mean fps\?$"),
        ({"settings": {"model.answer": "say"}}, r"^model\.answer is 'say'; allowed is 'score', 'g"),
        (
            {"config": "gone.yaml"},
            r"^there is no experiment 'gone\.yaml', neither a file nor one of",
        ),
        ({"settings": {"data.fps": 0}}, r"^data\.fps \(0(\.0)?\) must be above 0"),
    ],
)
def test_what_is_wrong_is_said_in_an_error(weights: Path, wrong: dict, said: str) -> None:
    random = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=said):
        load(**{"weights": weights, **wrong})
    assert torch.equal(torch.random.get_rng_state(), random)


def test_videos_with_several_classes(qwen: Path, videos: list[Path], tmp_path: Path) -> None:
    """The folder's card says so; thresholds beside the weights decide."""
    weights = whole_weights(tmp_path / "run/label/weights", qwen)
    PETS.save(weights / "card.yaml")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    found = load(weights).predict([videos[0], broken, videos[1]])
    for one in (found[0], found[2]):
        shares = one.probabilities
        assert one.labels == tuple(name for name in PETS.classes if shares[name] >= 0.5)
        assert (one.label, one.error) == (None, "")
    assert (found[1].label, found[1].labels) == (None, None)
    assert found[1].error.startswith(f"Video {broken} ")
    low, high = sorted(one.probabilities["dog"] for one in (found[0], found[2]))
    chosen = {"cat": 1.1, "dog": (low + high) / 2, "bird": 0.0}
    file = weights.parent / "decision.json"
    known = fingerprint(str(weights))
    write_json(file, {"weights": known, "wanted": {"f1": True}, "thresholds": chosen})
    decided = load(weights).predict([videos[0], videos[1]])
    assert {one.labels for one in decided} == {("bird",), ("dog", "bird")}
    assert [one.probabilities for one in decided] == [
        pytest.approx(one.probabilities, abs=1e-6) for one in (found[0], found[2])
    ]
