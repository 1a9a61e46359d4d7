from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rbft.engines.request import Sampling
from rbft.engines.settings import EndpointSettings

ASKED = EndpointSettings("org/some-vl:1", key_variable=None)


def test_a_name_goes_into_file_names(tmp_path: Path) -> None:
    assert ASKED.short_name == "org-some-vl-1"
    assert ASKED.replay(tmp_path).path == tmp_path / "endpoints/org-some-vl-1.jsonl"


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other-vl"},
        {"frames": "video"},
        {"detail": "low"},
        {"times": True},
        {"fields": {"top_k": 1}},
        {"weights": "ab"},
        {"temperature": None},
    ],
)
def test_what_determines_an_answer(change: dict[str, Any]) -> None:
    def facts(settings: EndpointSettings) -> dict[str, Any]:
        return settings.facts(settings.sampling(20, labels=True))

    assert facts(replace(ASKED, **change)) != facts(ASKED)


@pytest.mark.parametrize(
    "change",
    [{"urls": ["http://other/v1"]}, {"concurrency": 2}, {"max_money": 3.0}, {"offline": True}],
)
def test_what_does_not(change: dict[str, Any]) -> None:
    sampling = Sampling(20)
    assert replace(ASKED, **change).facts(sampling) == ASKED.facts(sampling)


def test_log_probabilities_are_asked_for_with_labels_alone() -> None:
    settings = replace(ASKED, top_logprobs=5)
    assert settings.sampling(9, labels=True) == Sampling(9, 0.0, top_logprobs=5)
    assert settings.sampling(9, labels=False) == Sampling(9, 0.0)


def test_a_class_is_asked_for_in_one_way() -> None:
    with pytest.raises(ValueError, match="structured") as error:
        replace(ASKED, labels="structured", top_logprobs=5)
    assert str(error.value) == (
        "endpoint.labels structured takes the class from the form of the answer, and "
        "endpoint.top_logprobs (5) from the probabilities of a free one. Set "
        "endpoint.top_logprobs to 0, or endpoint.labels to free."
    )


@pytest.mark.parametrize("count", [-1, 21])
def test_as_many_log_probabilities_as_servers_give(count: int) -> None:
    with pytest.raises(ValueError, match=rf"endpoint.top_logprobs \({count}\) must be from 0"):
        replace(ASKED, top_logprobs=count)


def test_a_pace_goes_to_the_engine(tmp_path: Path) -> None:
    paced = replace(ASKED, requests_per_minute=5, tokens_per_minute=700).engine(tmp_path).pace
    assert (paced.requests, paced.tokens) == (5, 700)
