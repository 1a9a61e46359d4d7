"""Commands that need clips of one class say so before they load or ask anything."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from rbft.attention.module import MapSettings
from rbft.build import Experiment
from rbft.commands import attention_maps
from rbft.commands import judge as judging
from rbft.commands.attention_maps import MapReading
from rbft.commands.batch import batch
from rbft.commands.judge import judge
from rbft.commands.mask import mask
from rbft.commands.rationales import check_sentence
from rbft.endpoint import score_with_endpoint
from rbft.engines.settings import EndpointSettings
from rbft.inputs import Inputs
from tests.several import PETS, Pets

REFUSED = (
    "{} needs clips of one class, but card 'pets' has the key several: its clips may have several "
    "classes, or none.{}"
)
ENDPOINT = " Have a backbone classify (--endpoint null); an endpoint can write its rationales."


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mock:
    """An experiment whose card lets a clip have several classes; nothing else of it is asked."""
    made = Mock(spec=Experiment)
    made.data.return_value = Pets(tmp_path, {"train": 2, "test": 2})
    made.changed.return_value = made
    made.logs, made.masking, made.stages = tmp_path, None, ["label"]
    made.settings = Mock(cpu_threads=None)
    made.endpoint = EndpointSettings(model="x")
    inputs = Mock(spec=Inputs, card=PETS)
    for module in (judging, attention_maps):
        monkeypatch.setattr(module, "check_inputs", lambda *_, **__: inputs)
    return made


def read_maps(experiment: Any) -> None:
    MapReading(experiment, [], Mock(spec=MapSettings), [], experiment.logs)


@pytest.mark.parametrize(
    ("command", "begins", "ends"),
    [
        (mask, "mask", ""),
        (batch, "An endpoint that classifies", ENDPOINT),
        (lambda one: score_with_endpoint(one, "test"), "An endpoint that classifies", ENDPOINT),
        (judge, "judge, whose rubric asks about one question of the card,", ""),
        (read_maps, "attention, which maps the answer to one question about a clip,", ""),
    ],
)
def test_what_needs_clips_of_one_class(
    experiment: Mock, command: Callable[[Any], None], begins: str, ends: str
) -> None:
    with pytest.raises(ValueError, match="key several") as error:
        command(experiment)
    assert str(error.value) == REFUSED.format(begins, ends)


def test_whether_texts_tell_the_class_is_not_checked(tmp_path: Path) -> None:
    assert check_sentence([], Pets(tmp_path, {"train": 1})) == (
        "Whether the class can be guessed from the texts was not checked: a clip may have several "
        "classes (the key several of card 'pets')."
    )
