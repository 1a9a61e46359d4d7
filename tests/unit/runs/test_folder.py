import os
import shutil
import subprocess

import pytest

import rbft.runs.folder
from rbft.backbone.positions import POSITION_RULE
from rbft.runs.folder import (
    LIBRARIES,
    PROVENANCE,
    Run,
    check_weights,
    digest,
    provenance,
    read_provenance,
    revision,
)
from rbft.runtime.files import replace_folder, temporary_path, write_json

CLIPS = {"train": "c1", "val": "c2"}


def weights(folder, stages=("rationale",), backbone="abc", **facts):
    facts = {"card": "k1", "clips": CLIPS, **facts}
    write_json(
        folder / PROVENANCE,
        provenance(POSITION_RULE, stages=list(stages), backbone=backbone, **facts),
    )
    return folder


def check(folder, stages, backbone="abc", card="k1", clips=CLIPS):
    check_weights(folder, stages, backbone, card, clips)


def test_where_things_are(tmp_path):
    run = Run(tmp_path / "yard")
    assert run.stage("label") == tmp_path / "yard/label"
    assert run.weights("label") == tmp_path / "yard/label/weights"
    assert run.results("label") == tmp_path / "yard/label/test.json"
    assert run.results("label", "val") == tmp_path / "yard/label/val.json"


def test_a_stage_is_finished_when_its_weights_are_whole(tmp_path):
    run = Run(tmp_path)
    assert not run.trained("label")
    part = temporary_path(run.weights("label"))
    weights(part)
    assert not run.trained("label"), "a half-written folder counts"
    run.weights("label").mkdir()
    (run.weights("label") / "model.safetensors").touch()
    assert not run.trained("label"), "a folder without provenance counts"
    (part / PROVENANCE).chmod(0o600)
    replace_folder(part, run.weights("label"))
    assert run.trained("label")
    assert (run.weights("label") / PROVENANCE).stat().st_mode & 0o777 == 0o644
    assert not part.exists()
    assert not (run.weights("label") / "model.safetensors").exists()


def test_the_newest_checkpoint_is_resumed_from(tmp_path):
    run = Run(tmp_path)
    assert run.checkpoint("label") is None
    folder = run.stage("label") / "checkpoints"
    folder.mkdir(parents=True)
    # By step: as text "step=100" comes before "step=50", and a folder that is half deleted, or a
    # file that is copied, is newer than it was.
    for name, time in (("step=50.ckpt", 2), ("step=100.ckpt", 1), ("notes.txt", 3)):
        (folder / name).touch()
        os.utime(folder / name, (time, time))
    for kind in ("part", "new", "old"):
        temporary_path(folder / "step=150.ckpt", kind).mkdir()
    found = run.checkpoint("label")
    assert found is not None
    assert found.name == "step=100.ckpt"


def test_provenance_names_the_position_rule_and_the_versions(tmp_path):
    made = provenance(POSITION_RULE, stages=["label"])
    assert made["stages"] == ["label"]
    assert made["positions"] == POSITION_RULE
    assert set(made["versions"]) == set(LIBRARIES)
    assert read_provenance(tmp_path) is None
    write_json(tmp_path / PROVENANCE, made)
    assert read_provenance(tmp_path) == made


def test_weights_of_the_stages_before_are_accepted(tmp_path):
    check(weights(tmp_path / "weights"), ["rationale"])
    check(weights(tmp_path / "w", ["rationale", "label"]), ["rationale", "label"])


def test_weights_that_are_not_there(tmp_path):
    folder = tmp_path / "weights"
    with pytest.raises(ValueError, match="weights folder") as error:
        check(folder, ["rationale"])
    assert str(error.value) == (
        f"weights folder {folder} does not exist. This stage follows rationale; run fit with all "
        "stages, or set model.weights to a folder that rbft left."
    )
    folder.mkdir()
    with pytest.raises(ValueError, match="holds no") as error:
        check(folder, ["rationale", "label"])
    assert str(error.value).startswith(
        f"weights folder {folder} holds no rbft.json. This stage follows rationale and label; run"
    )


@pytest.mark.parametrize(
    ("stages", "backbone"),
    [(["label"], "abc"), (["rationale", "label"], "abc"), (["rationale"], "xyz"), ([], "abc")],
)
def test_weights_of_another_method_or_backbone(tmp_path, stages, backbone):
    folder = weights(tmp_path / "weights", stages, backbone)
    with pytest.raises(ValueError, match="is the result of the stages") as error:
        check(folder, ["rationale"])
    assert str(error.value) == (
        f"weights folder {folder} is the result of the stages {stages} on backbone {backbone}, but "
        "this stage must follow ['rationale'] on abc. Remove the run's folder to train anew, or "
        "give the experiment another name."
    )


@pytest.mark.parametrize(
    ("name", "found", "now"),
    [("card", "k2", "k1"), ("clips", {"train": "c1", "val": "c3"}, CLIPS), ("card", None, "k1")],
)
def test_weights_of_other_words_or_clips(tmp_path, name, found, now):
    folder = weights(tmp_path / "weights", **{name: found})
    with pytest.raises(ValueError, match="was trained with another") as error:
        check(folder, ["rationale"])
    assert str(error.value) == (
        f"weights folder {folder} was trained with another {name} ({found}) than this run has now "
        f"({now}). Remove the run's folder to train anew, or give the experiment another name."
    )


def test_results_are_found_by_what_made_them(tmp_path):
    run = Run(tmp_path)
    assert run.results("label", "test", "ab12") == tmp_path / "label/test-ab12.json"
    assert run.find_result("label", "test", {"frames": 1}) is None
    write_json(run.results("label"), {"made": {"frames": 1}})
    write_json(run.results("label", "test", "ab12"), {"made": {"frames": 2}})
    write_json(run.results("label", "val"), {"made": {"frames": 3}})
    write_json(run.results("zero_shot", "test"), {"metrics": {}})  # of an earlier version
    assert run.find_result("label", "test", {"frames": 1}) == run.results("label")
    assert run.find_result("label", "test", {"frames": 2}) == run.results("label", "test", "ab12")
    assert run.find_result("label", "test", {"frames": 3}) is None
    assert run.find_result("zero_shot", "test", {"frames": 1}) is None


def test_a_digest_of_ids_does_not_depend_on_their_order():
    assert digest(["a", "b"]) == digest(["b", "a"]) == "7e18f737311b"
    assert digest(["a", "b"]) != digest(["ab"])


def test_the_revision_of_the_checkout(tmp_path, monkeypatch):
    package = tmp_path / "rbft/runs"
    package.mkdir(parents=True)
    (package / "folder.py").write_text("1")
    monkeypatch.setattr(rbft.runs.folder, "__file__", str(package / "folder.py"))
    assert revision() is None, "installed from elsewhere"
    (tmp_path / ".git").touch()
    assert revision() is None, "no repository"
    (tmp_path / ".git").unlink()
    with monkeypatch.context() as patch:
        (tmp_path / ".git").mkdir()
        patch.setenv("PATH", str(tmp_path))
        assert revision() is None, "git is not installed"
        (tmp_path / ".git").rmdir()
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "One"]):
        subprocess.run([*git, *command], check=True)
    head = ["rev-parse", "HEAD"]
    known = subprocess.run([*git, *head], check=True, capture_output=True, text=True).stdout
    assert revision() == known.strip()
    (package / "folder.py").write_text("2")
    assert revision() == f"{known.strip()}-dirty"
