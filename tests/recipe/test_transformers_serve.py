"""Answers of a real server: `transformers serve` with the miniature's base, over HTTP."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from rbft.engines.chat import Chat
from rbft.engines.content import AsImages
from rbft.engines.endpoint import EndpointEngine
from rbft.engines.replay import ReplayStore
from rbft.engines.request import Request, Sampling
from rbft.video.frame_settings import FrameSettings
from rbft.video.sampling import decode_video
from tests.recipe.runs import ROOT
from tests.servers import Serving, transformers_serve, written_from_images
from tests.videos import make_video

pytestmark = [
    pytest.mark.recipe,
    pytest.mark.skipif(
        find_spec("fastapi") is None or find_spec("uvicorn") is None,
        reason="transformers serve needs fastapi and uvicorn: pip install 'rbft[dev]'",
    ),
]
TOKENS = 24


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("serve")
    with transformers_serve(ROOT / "rbft/miniature/base", folder) as made:
        yield made


def test_a_server_of_transformers_writes_what_generate_writes(
    tmp_path: Path, server: Serving
) -> None:
    sizes = [(56, 84), (84, 84), (112, 56), (84, 112)]
    videos = {
        f"c{number}": decode_video(
            make_video(tmp_path / f"{number}.mp4", 40 + 20 * number, *size),
            FrameSettings(fps=1.0, min_pixels=784, max_pixels=7056),
        )
        for number, size in enumerate(sizes)
    }
    requests = [
        Request(name, "what is the label ?", lambda video=video: video, sampling=Sampling(TOKENS))
        for name, video in videos.items()
    ]
    chat = Chat(server.model, AsImages(), same_model=[server.answers_as])
    store = ReplayStore(tmp_path / "answers.jsonl")
    engine = EndpointEngine(chat, [server.url], store, concurrency=2, attempts=2, timeout=120.0)
    found = {answer.id: answer for answer in engine.answer(requests)}
    assert {answer.status for answer in found.values()} == {"answered"}
    asked = [(request.prompt, videos[request.id]) for request in requests]
    right = written_from_images(Path(server.model), asked, TOKENS)
    assert [found[request.id].text for request in requests] == right
    assert all(right)
    # Its name for the model is not the one that was asked for: unless that is said, it is flagged.
    plain = EndpointEngine(
        Chat(server.model, AsImages(), about={"again": 1}), [server.url], store, timeout=120.0
    )
    [answer] = plain.answer(requests[:1])
    assert (answer.status, answer.model) == ("other_model", server.answers_as)
