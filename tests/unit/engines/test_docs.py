"""docs/rationales.md: its Python runs as it stands, against a server on this machine."""

import re
from pathlib import Path
from typing import Any

import pytest

from rbft.engines.budget import Budget, Limits, Prices
from rbft.engines.content import AsImages
from tests.endpoint_server import serving
from tests.recipe.runs import ROOT
from tests.videos import make_video

PAGE = (ROOT / "docs/rationales.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_what_the_page_shows_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    Path("videos").mkdir()
    for name, frames in (("a", 60), ("b", 90)):
        make_video(Path(f"videos/{name}.mp4"), frames)
    [table] = blocks("yaml")
    Path("prices.yaml").write_text(table)
    ask, openai, replay, write, read = blocks("python")
    names: dict[str, Any] = {
        "AsImages": AsImages,
        "Budget": Budget,
        "Limits": Limits,
        "Prices": Prices,
    }
    with serving(prompt_tokens=2000) as server:
        for block in (ask, openai):
            exec(block.replace("http://localhost:8000/v1", server.url), names)
        said = capsys.readouterr().out
        assert "a answered about What is done here?\n" in said
        assert re.search(r"^2 requests cost 0\.0\d USD at most, without repeats$", said, re.M)
        exec(replay, names)
        assert capsys.readouterr().out == "2\n"
        exec(write, names)
        assert capsys.readouterr().out == "[]\n", "both are in the store"
        Path("results.jsonl").touch()
        exec(read, names)
        assert capsys.readouterr().out == "0 answered\n"
        assert server.sent.total() == 2
    parts = [part["type"] for part in server.bodies[0]["messages"][0]["content"]]
    assert parts == ["video_url", "text"]


def test_figures_of_the_page_are_those_of_the_settings() -> None:
    import inspect

    from rbft.engines import batchfile
    from rbft.engines.endpoint import EndpointEngine
    from rbft.engines.faults import AGAIN, Backoff

    settings = inspect.signature(EndpointEngine).parameters
    assert settings["attempts"].default == 8
    assert "`attempts` times (8)" in PAGE
    assert (Backoff().first, Backoff().longest, Backoff().longest_retry_after) == (1, 60, 600)
    assert ", ".join(map(str, sorted(AGAIN))) + " and 5xx" in PAGE
    assert (batchfile.MAX_BYTES, batchfile.MAX_LINES) == (190_000_000, 50_000)
    assert "190 MB and 50,000 requests" in PAGE
