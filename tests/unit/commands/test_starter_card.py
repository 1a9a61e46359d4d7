from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import Namespace

from rbft.card import Card
from rbft.commands.starter_card import starter_card, write_starter
from rbft.stage_settings import check_stage_settings


def test_the_card_loads_and_is_commented(tmp_path):
    path = tmp_path / "card.yaml"
    path.write_text(starter_card("warehouse safety", ["safe", "yes", "no: 1"]), encoding="utf-8")
    card = Card.load(path)
    assert card.name == "warehouse_safety"
    assert card.persona == "Warehouse safety Expert"
    assert card.words == {"safe": "safe", "yes": "yes", "no: 1": "no: 1"}
    assert card.prompt("label") == (
        "Which word fits this warehouse safety video: safe, yes or no: 1? Answer with one word."
    )
    assert "Act as the following expert: Warehouse safety Expert." in card.prompt("rationale")
    assert path.read_text(encoding="utf-8").count("# ") > 8


@pytest.mark.parametrize("domain", ["动物", "a {b} $c: 'd' \"e\"\n# f", "--", "yes", "x" * 300])
def test_any_domain(domain):
    card = Card(**yaml.safe_load(starter_card(domain, ["a", "b"])))
    assert " ".join(domain.split())[:40].strip() in card.prompt("label")


def test_what_makes_no_card():
    with pytest.raises(ValueError, match="The domain is empty; say in a few words what the clips"):
        starter_card(" \n", ["a", "b"])
    with pytest.raises(
        ValueError, match=r"words has 1 classes \(a\); classification needs at least"
    ):
        starter_card("x", ["a"])
    with pytest.raises(ValueError, match=r"words has 0 classes \(none\)"):
        starter_card("x", [])
    with pytest.raises(ValueError, match=r"A class stands twice among a, b, a\."):
        starter_card("x", ["a", "b", "a"])
    with pytest.raises(ValueError, match=r"the class word 'a' is empty or used twice"):
        starter_card("x", ["a", "A."])


@settings(max_examples=100, deadline=None)
@given(domain=st.text(max_size=20), classes=st.lists(st.text(max_size=8), max_size=3))
def test_any_text_makes_a_card_or_a_value_error(domain, classes):
    try:
        text = starter_card(domain, classes)
    except ValueError:
        return
    assert Card(**yaml.safe_load(text)).classes == tuple(classes)


def test_a_card_and_an_experiment_of_three_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = write_starter("conveyor belt", ["pass", "fail"], Path("my cards/belt.yaml"))
    assert experiment == Path("my cards/belt_experiment.yaml")
    assert Card.load(Path("my cards/belt.yaml")).classes == ("pass", "fail")
    own, choice = experiment.read_text().split("# ", 1)
    assert own == (
        "name: belt_experiment\n"
        "model: {backbone: Qwen/Qwen2.5-VL-7B-Instruct}\n"
        "data: {class_path: VideoFolder, init_args: {root: videos, card: my cards/belt.yaml}}\n"
    )
    assert all(line.startswith("# ") for line in f"# {choice}".splitlines())
    # What is commented out can be taken as it stands.
    taken = yaml.safe_load("\n".join(line[2:] for line in choice.splitlines()[-2:]))
    assert taken == {
        "stages": ["rationale_class"],
        "model": {"backbone": "Qwen/Qwen2.5-VL-7B-Instruct", "answer_weight": 20},
    }
    check_stage_settings(
        Namespace({"rationales_from": "backbone", "model": Namespace(taken["model"])}),
        taken["stages"],
        [],
    )


@pytest.mark.parametrize("name", ["belt.yaml", "belt_experiment.yaml"])
def test_nothing_is_written_over(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=rf"{name} exists\. Give --output another name"):
        write_starter("conveyor belt", ["pass", "fail"], tmp_path / "belt.yaml")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
