"""The help: ours first and grouped, within the width of the terminal; one group in full."""

import re

import pytest

from rbft.commands import COMMANDS
from rbft.commands.help_page import CHANGED, asked_group, groups, help_page
from rbft.commands.options import DATA, TRAINER, options

HEAD = re.compile(r"^  --([\w.]+)  ", re.MULTILINE)


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_fits_80_columns_and_begins_with_what_the_command_is_for(name: str) -> None:
    page = help_page(name)
    assert max(map(len, page.splitlines())) < 80
    assert page.startswith(f"usage: python -m rbft {name} ")
    own = [one.name for one in options(name) if one.topic == name]
    assert HEAD.findall(page)[: len(own)] == own
    for line in page.splitlines():
        assert "(required)" not in line or "default" not in line


def test_fit_shows_what_people_change_and_then_all_of_ours_but_none_of_lightning_s() -> None:
    page, every = help_page("fit"), options("fit")
    shown = HEAD.findall(page)
    assert shown[4 : 4 + len(CHANGED)] == [*CHANGED]
    assert not set(CHANGED) & set(shown[4 + len(CHANGED) :])
    ours = {one.name for one in every if one.topic != TRAINER}
    lightnings = {one.name for one in every if one.topic == TRAINER}
    assert ours <= set(shown)
    assert set(shown) & lightnings == {one for one in CHANGED if one.startswith("trainer.")}
    order = [page.index(f"({group})") for group in groups()[:-1]]
    assert order == sorted(order)
    assert "rbft fit --help trainer." in page


def test_a_line_says_what_is_allowed_the_default_that_takes_effect_and_one_sentence() -> None:
    assert (
        "  --model.learning_rate  number  (default 1e-05)\n"
        "      Learning rate of the language model.\n"
        "  --model.vision_learning_rate  number  (default 2e-06)\n"
    ) in help_page("fit")
    assert (
        "  --data.sampling  frame|time  (default frame)\n"
        "      How the frames of a clip are chosen: evenly by their number (frame, as\n"
        "      qwen-vl-utils does) or by the time at which they are shown (time), which\n"
        "      differs where the frame rate varies.\n"
    ) in help_page("fit")
    assert "  --model.backbone  text  (required)\n" in help_page("fit")
    assert "null trains the weights." not in help_page("fit")  # the second sentence of model.lora


def test_another_command_shows_its_own_and_what_people_change() -> None:
    shown = HEAD.findall(help_page("predict"))
    own = [one.name for one in options("predict") if one.topic == "predict"]
    assert shown == [*own, *CHANGED]
    assert "rbft fit --help shows all." in help_page("predict")


@pytest.mark.parametrize("group", groups()[1:])
def test_a_group_in_full(group: str) -> None:
    page = help_page("fit", group)
    expected = [one.name for one in options("fit") if one.topic == group]
    assert HEAD.findall(page) == expected
    assert expected
    assert f"({group})" in page.splitlines()[0]
    assert max(map(len, page.splitlines())) < 80


def test_a_setting_in_full() -> None:
    page = help_page("fit", "lora")
    assert HEAD.findall(page) == [
        "model.lora",
        "model.lora.rank",
        "model.lora.alpha",
        "model.lora.dropout",
        "model.lora.use_dora",
        "model.lora.use_rslora",
        "model.lora.target_modules",
        "model.lora.layers_to_transform",
    ]
    assert "train. null trains the weights." in page  # the second sentence
    found = HEAD.findall(help_page("fit", "learning_rate"))
    assert found == ["model.learning_rate"]
    assert HEAD.findall(help_page("test", "--data.fps")) == ["data.fps"]
    assert " of MultiHateClip\n" in help_page("fit", "data.videos")


def test_a_group_that_is_none_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"^--help lr is no group and no setting of fit\. Did you mean model\.learning_rate\? "
        r"Groups are common, run, model, data, SmartHome, MultiHateClip, VideoFolder, Miniature, "
        r"endpoint, decision, trainer\.$",
    ):
        help_page("fit", "lr")
    with pytest.raises(ValueError, match=r"^--help trainer is no group and no setting of report\."):
        help_page("report", "trainer")


@pytest.mark.parametrize(
    ("args", "group"),
    [
        ("", None),
        ("--config a.yaml --name help", None),
        ("--help", ""),
        ("-h", ""),
        ("--config a.yaml --help", ""),
        ("--help data", "data"),
        ("--help=data", "data"),
        ("--help --config=a.yaml", ""),
        ("--data.help VideoFolder", "VideoFolder"),
        ("--data.help=Miniature", "Miniature"),
        ("--data.help", DATA),
        ("--model.lora.help", "model.lora"),
        ("--trainer.logger.help CSVLogger", None),
        ("--data.help=factory.Factory", None),
    ],
)
def test_what_is_asked_for(args: str, group: str | None) -> None:
    assert asked_group(args.split()) == group
