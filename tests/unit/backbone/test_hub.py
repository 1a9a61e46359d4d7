"""A hub that cannot be reached is said in one sentence, and not tried over and over."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from rbft.backbone import hub
from rbft.backbone.hub import check_hub, no_way
from rbft.backbone.loading import load_config

SOURCE = "nobody/nothing"


class ConnectError(Exception):
    """Named like what the hub's client raises."""


class LateError(Exception):
    """Another error, which says that somebody was there."""


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The servers that are asked; none of them can be reached."""
    found: list[str] = []

    class Session:
        def head(self, url: str, timeout: float) -> None:
            assert timeout <= 10
            found.append(url)
            raise ConnectError("Name or service not known.")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", Session)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    no_way.cache_clear()
    yield found
    no_way.cache_clear()


def test_what_is_neither_here_nor_in_the_cache_is_refused_after_one_try(asked: list[str]) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match=r"cannot be reached") as error:
            load_config(SOURCE)
        assert str(error.value) == (
            f"model.backbone '{SOURCE}' is no folder here and not in the local cache "
            f"({constants.HF_HUB_CACHE}), and the hub {constants.ENDPOINT} cannot be reached: Name "
            "or service not known. Give a folder that holds config.json, model weights and "
            "processor, or download it where there is a network: hf download nobody/nothing "
            "--local-dir FOLDER."
        )
    assert asked == [constants.ENDPOINT]


def test_what_is_in_the_cache_is_taken_from_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: "config.json")
    check_hub(SOURCE)
    assert capsys.readouterr().out == (
        f"The hub {constants.ENDPOINT} cannot be reached (Name or service not known): {SOURCE} is "
        "taken from the local cache.\n"
    )
    assert constants.HF_HUB_OFFLINE
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    check_hub(SOURCE)
    assert capsys.readouterr().out == ""


def test_a_folder_or_what_can_be_none_of_the_hub_s_is_not_asked_for(
    qwen: Path, asked: list[str]
) -> None:
    for source in (str(qwen), "./nowhere", "../nowhere", "/nowhere/at/all", "a/b/c", "~/x"):
        check_hub(source)
    assert asked == []


def test_who_wants_to_be_offline_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_hub(SOURCE)
    assert asked == []


def test_a_hub_that_answers_late_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def head(self, url: str, **_: Any) -> None:
            raise LateError

    monkeypatch.setattr(huggingface_hub.utils, "get_session", Session)
    assert hub.no_way("https://somewhere") is None
    check_hub(SOURCE)
