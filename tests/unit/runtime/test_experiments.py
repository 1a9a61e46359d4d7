"""Experiments and the package's own files are found from any folder."""

from pathlib import Path
from typing import Any

import pytest

from rbft.runtime.experiment_file import read_chain
from rbft.runtime.experiments import (
    FOLDER,
    PACKAGE,
    experiment_names,
    find_experiment,
    own_path,
    settings_paths,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_experiments_of_the_repository_come_with_the_package() -> None:
    files = (ROOT / "experiments").rglob("*.yaml")
    names = {one.relative_to(ROOT / "experiments").with_suffix("").as_posix() for one in files}
    assert set(experiment_names()) == names
    assert FOLDER.resolve() == ROOT / "experiments"


@pytest.mark.parametrize(
    "given",
    ["miniature", "miniature.yaml", "experiments/miniature.yaml", "experiments/miniature"],
)
def test_one_of_rbft_s_is_found_by_its_name(given: str) -> None:
    assert find_experiment(given).resolve() == ROOT / "experiments/miniature.yaml"
    assert find_experiment("hardware/tiny").resolve() == ROOT / "experiments/hardware/tiny.yaml"


def test_a_file_goes_before_a_name() -> None:
    Path("miniature").write_text("name: mine\n")
    assert find_experiment("miniature") == Path("miniature")
    Path("a.yaml").write_text("config: hardware/tiny.yaml\nname: mine\n")
    chain = read_chain(find_experiment("a.yaml").resolve())
    assert [*chain[-1]] == ["name"]
    assert chain[-2]["model"] == {"max_new_tokens": 8}


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("minature", "Did you mean miniature or "),
        ("tiny", "Did you mean hardware/tiny? "),
        ("experiments/smarthome_qwen4.yaml", "Did you mean smarthome_qwen"),
        ("nothing/such", "python -m rbft experiments lists them."),
    ],
)
def test_what_is_neither_is_refused(given: str, hint: str) -> None:
    with pytest.raises(ValueError, match=r"lists them\.$") as error:
        find_experiment(given)
    start = f"there is no experiment '{given}', neither a file nor one of rbft's. "
    assert str(error.value).startswith(start + hint)


def test_a_folder_is_no_experiment(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^experiment .* is a folder\. Name a file in it\.$"):
        find_experiment(str(tmp_path))


def test_own_files_are_found_and_all_other_paths_left(tmp_path: Path) -> None:
    assert own_path("rbft/miniature/base") == str(PACKAGE / "miniature/base")
    for other in ("rbft", "rbft/nothing", "miniature/base", "Qwen/Qwen2.5-VL-7B-Instruct", ""):
        assert own_path(other) == other
    (tmp_path / "rbft/miniature/base").mkdir(parents=True)
    assert own_path("rbft/miniature/base") == "rbft/miniature/base"


def test_settings_by_their_dotted_names() -> None:
    content = {
        "name": "a",
        "data": {"class_path": "A", "init_args": {"fps": 1, "masking": {"seed": 3}}},
        "model": {"costs": {}},
    }
    assert [*settings_paths(content)] == [
        ("name", "a"),
        ("data", "A"),
        ("data.fps", 1),
        ("data.masking.seed", 3),
        ("model.costs", {}),
    ]


def test_the_listing_names_them_all_and_shows_one(capsys: pytest.CaptureFixture[str]) -> None:
    from rbft.commands.experiments import experiments

    experiments()
    shown = capsys.readouterr().out
    for name in experiment_names():
        assert f"\n  {name} " in shown
    assert "smarthome_qwen25 with data.rationale_ratio 0.2\n" in shown
    assert "No GPU: everything in 32 bits on the processor\n" in shown
    experiments("miniature_direct")
    chain = capsys.readouterr().out
    order = [chain.index(f"experiments/{n}.yaml") for n in ("hardware/cpu", "miniature")]
    assert order == sorted(order)
    assert chain.rstrip().endswith("stages: [label]")


def test_the_package_holds_the_experiments_when_it_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What setuptools puts into a wheel; a link that it does not follow would leave them out."""
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.chdir(ROOT)
    made = setuptools.Distribution()
    made.parse_config_files()
    command: Any = made.get_command_obj("build_py")
    command.ensure_finalized()
    command.manifest_files = {}
    held = {Path(file).as_posix() for file in command.find_data_files("rbft", "rbft")}
    assert {f"rbft/experiments/{name}.yaml" for name in experiment_names()} <= held
