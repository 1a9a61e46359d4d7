from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from rbft.runtime.experiment_file import ExperimentFile, explain, read_chain


def write(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def parser():
    made = ArgumentParser(exit_on_error=False)
    made.add_argument("--config", action=ExperimentFile)
    made.add_argument("--name", type=str)
    made.add_argument("--model.learning_rate", type=float)
    made.add_argument("--model.weight_decay", type=float)
    made.add_argument("--stages", type=list[str])
    return made


def test_a_file_alone(tmp_path):
    file = write(tmp_path / "a.yaml", name="a")
    assert read_chain(file) == [{"name": "a"}]


def test_a_chain_of_three_with_the_base_first(tmp_path):
    write(tmp_path / "base/a.yaml", name="a")
    write(tmp_path / "base/b.yaml", config="a.yaml", name="b")  # relative to itself
    file = write(tmp_path / "c.yaml", config="base/b.yaml", name="c")
    assert [content["name"] for content in read_chain(file)] == ["a", "b", "c"]


def test_later_files_win_and_nothing_on_the_way_is_lost(tmp_path):
    write(tmp_path / "a.yaml", name="a", stages=["rationale", "label"], model={"weight_decay": 0.1})
    write(tmp_path / "b.yaml", config="a.yaml", name="b", model={"learning_rate": 0.5})
    c = write(tmp_path / "c.yaml", config="b.yaml", name="c", stages=["label"])
    overlay = write(tmp_path / "overlay.yaml", model={"learning_rate": 0.25})
    got = parser().parse_args([f"--config={c}", f"--config={overlay}", "--model.weight_decay=0.2"])
    assert got.name == "c"
    assert got.stages == ["label"]
    assert got.model.learning_rate == 0.25
    assert got.model.weight_decay == 0.2
    assert parser().parse_args([f"--config={c}"]).model.weight_decay == 0.1


def test_the_working_directory_does_not_matter(tmp_path, monkeypatch):
    write(tmp_path / "a.yaml", name="a")
    write(tmp_path / "b.yaml", config="a.yaml")
    monkeypatch.chdir(tmp_path)
    assert parser().parse_args(["--config=b.yaml"]).name == "a"


def test_a_file_that_builds_on_itself(tmp_path):
    a = write(tmp_path / "a.yaml", config="b.yaml")
    b = write(tmp_path / "b.yaml", config="a.yaml")
    with pytest.raises(ValueError, match="builds on itself") as error:
        read_chain(a)
    assert str(error.value) == f"Experiment file builds on itself: {a} <- {b} <- {a}."
    alone = write(tmp_path / "c.yaml", config="c.yaml")
    with pytest.raises(ValueError, match=f"builds on itself: {alone} <- {alone}\\."):
        read_chain(alone)


def test_a_file_that_is_not_there(tmp_path):
    a = write(tmp_path / "a.yaml", config="gone.yaml")
    gone = tmp_path / "gone.yaml"
    with pytest.raises(ValueError, match="cannot be read") as error:
        read_chain(a)
    assert str(error.value) == (
        f"Experiment file {gone} <- {a} cannot be read: No such file or directory."
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2\n", r"a\.yaml must hold keys, got \[1, 2\]\.$"),
        ("", r"a\.yaml must hold keys, got None\.$"),
        ("name: [", r"a\.yaml is no valid YAML: while parsing"),
    ],
)
def test_a_file_that_holds_no_keys(tmp_path, text, message):
    file = tmp_path / "a.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_chain(file)


def error_of(arguments):
    made = parser()
    try:
        made.parse_args(arguments)
    except Exception as error:  # jsonargparse's own kind is not public
        return explain(str(error), made)
    raise AssertionError("parsed")


def test_an_unknown_key_in_a_file_names_the_nearest_known_one(tmp_path):
    file = write(tmp_path / "a.yaml", model={"learning_rat": 0.5})
    message = error_of([f"--config={file}"])
    assert "there is no setting '" in message
    assert "Did you mean model.learning_rate" in message


def test_an_unknown_flag_names_the_nearest_known_one():
    assert error_of(["--model.weight_decai=0.1"]) == (
        "there is no setting 'model.weight_decai'. Did you mean model.weight_decay?"
    )
    assert error_of(["--zzzzzz=0.1"]) == "there is no setting 'zzzzzz'."


def test_a_wrong_value_is_said_without_what_only_programmers_understand():
    assert explain("Bad value\n  NestedArg(key='x')\nexpected float", ArgumentParser()) == (
        "Bad value\nexpected float"
    )
    assert "learning_rate" in error_of(["--model.learning_rate=fast"])


def test_the_experiments_of_the_repository_are_chains():
    files = list((Path(__file__).parents[3] / "experiments").glob("*.yaml"))
    assert files
    for file in files:
        assert all(isinstance(content, dict) for content in read_chain(file))


def test_what_is_missing_is_said_in_the_command_s_own_way():
    made = ArgumentParser()
    commands = made.add_subcommands()
    with_experiment, without = ArgumentParser(), ArgumentParser()
    with_experiment.add_argument("--config")
    with_experiment.add_argument("--name")
    for name in ("domain", "classes"):
        without.add_argument(f"--{name}")
    commands.add_subcommand("fit", with_experiment)
    commands.add_subcommand("init", without)
    assert explain("arguments are required: init.domain, init.classes", made) == (
        "domain and classes must be set: add --domain --classes."
    )
    assert explain("arguments are required: fit.name", made) == (
        "name must be set. Name an experiment file (--config) that does, or add --name."
    )
