import os
import re

import pytest
import yaml

from rbft.files import part_of, replace_folder, write_json
from rbft.positions import POSITION_RULE
from rbft.run import (
    FREE_SETTINGS,
    LIBRARIES,
    PROVENANCE,
    Run,
    check_clips,
    check_settings,
    check_weights,
    digest,
    flat,
    provenance,
    read_provenance,
)


def weights(folder, stages=("rationale",), backbone="abc"):
    write_json(folder / PROVENANCE, provenance(stages=list(stages), backbone=backbone))
    return folder


def test_where_things_are(tmp_path):
    run = Run(tmp_path / "yard")
    assert run.stage("label") == tmp_path / "yard/label"
    assert run.weights("label") == tmp_path / "yard/label/weights"
    assert run.results("label") == tmp_path / "yard/label/test.json"
    assert run.results("label", "val") == tmp_path / "yard/label/val.json"


def test_a_stage_is_finished_when_its_weights_are_whole(tmp_path):
    run = Run(tmp_path)
    assert not run.trained("label")
    part = part_of(run.weights("label"))
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
        part_of(folder / "step=150.ckpt", kind).mkdir()
    found = run.checkpoint("label")
    assert found is not None
    assert found.name == "step=100.ckpt"


def test_provenance_names_the_position_rule_and_the_versions(tmp_path):
    made = provenance(stages=["label"])
    assert made["stages"] == ["label"]
    assert made["positions"] == POSITION_RULE
    assert set(made["versions"]) == set(LIBRARIES)
    assert read_provenance(tmp_path) is None
    write_json(tmp_path / PROVENANCE, made)
    assert read_provenance(tmp_path) == made


def test_weights_of_the_stages_before_are_accepted(tmp_path):
    check_weights(weights(tmp_path / "weights"), ["rationale"], "abc")
    check_weights(weights(tmp_path / "w", ["rationale", "label"]), ["rationale", "label"], "abc")


def test_weights_that_are_not_there(tmp_path):
    folder = tmp_path / "weights"
    with pytest.raises(ValueError, match="weights folder") as error:
        check_weights(folder, ["rationale"], "abc")
    assert str(error.value) == (
        f"weights folder {folder} does not exist. This stage follows rationale; run fit with all "
        "stages, or set model.weights to a folder that rbft left."
    )
    folder.mkdir()
    with pytest.raises(ValueError, match="holds no") as error:
        check_weights(folder, ["rationale", "label"], "abc")
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
        check_weights(folder, ["rationale"], "abc")
    assert str(error.value) == (
        f"weights folder {folder} is the result of the stages {stages} on backbone {backbone}, but "
        "this stage must follow ['rationale'] on abc. Remove the run's folder to train anew, or "
        "give the experiment another name."
    )


SETTINGS = {
    "name": "yard",
    "model": {"learning_rate": 1e-5, "attention": "sdpa"},
    "trainer": {"devices": 1, "max_epochs": 1, "callbacks": None},
}


def changed(**values):
    model = {**SETTINGS["model"], **values.pop("model", {})}
    trainer = {**SETTINGS["trainer"], **values.pop("trainer", {})}
    return {**SETTINGS, **values, "model": model, "trainer": trainer}


@pytest.fixture
def started(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    return file


def test_settings_by_dotted_name():
    assert flat({"a": 1, "b": {"c": None, "d": {"e": [1]}}, "f": {}}) == {
        "a": 1,
        "b.c": None,
        "b.d.e": [1],
    }


def test_a_run_goes_on_under_the_same_settings(started, tmp_path):
    check_settings(started, changed())
    check_settings(tmp_path / "none.yaml", changed())


def test_what_decides_only_where_and_how_fast_may_change(started):
    check_settings(
        started,
        changed(
            name="other",
            restart=True,
            model={"attention": "eager"},
            trainer={"devices": 4, "callbacks": [{"class_path": "X"}]},
        ),
    )
    assert "trainer.devices" in FREE_SETTINGS


def test_what_decides_the_result_may_not_change(started):
    with pytest.raises(ValueError, match="was started with other settings") as error:
        check_settings(
            started,
            changed(model={"learning_rate": 1e-4, "stage": "label"}, trainer={"devices": 2}),
        )
    assert str(error.value) == (
        f"The run {started.parent} was started with other settings:\n"
        "  model.learning_rate: 1e-05 -> 0.0001\n"
        "  model.stage: None -> label\n"
        "Give the experiment another name, or add --restart true to throw away what the run has "
        "left so far."
    )


def test_a_digest_of_ids_does_not_depend_on_their_order():
    assert digest(["a", "b"]) == digest(["b", "a"]) == "7e18f737311b"
    assert digest(["a", "b"]) != digest(["ab"])


def test_a_run_on_other_clips_is_refused(tmp_path):
    """With `skip`, a file that appears between a kill and the restart would change the batches."""
    file = tmp_path / "yard" / "clips.json"
    clips = {"train": ["a", "b", "c"], "val": [], "test": ["d"]}
    check_clips(file, clips)
    write_json(file, clips)
    check_clips(file, {"train": ["c", "a", "b"], "val": [], "test": ["d"]})
    text = (
        f"The run {tmp_path}/yard was started with other clips: 4 train clips came (e, f, g); 1 "
        "train clips went (b); 1 test clips went (d). Put their files back as they were, give the "
        "experiment another name, or add --restart true to throw away what the run has left so far."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        check_clips(file, {"train": ["a", "c", "e", "f", "g", "h"], "val": [], "test": []})
