import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from rbft.clip import Clip
from rbft.commands.attended_runs import (
    AttendedRun,
    common_experiment,
    find_clips,
    find_run,
    joined_names,
    read_experiment,
)
from rbft.commands.attention import attention
from rbft.commands.attention_output import frame_seconds
from tests.examples import Yard, YardFiles
from tests.recipe.runs import EXPERIMENTS
from tests.videos import make_video

FILES = [EXPERIMENTS / "miniature_direct.yaml"]


def run_folder(logs: Path, name: str, *stages: str, finished: int = 99, settings: Any = None):
    """A folder as `fit` leaves it, as far as it is looked at here."""
    (logs / name).mkdir(parents=True)
    text = settings or json.dumps({"stages": list(stages)})
    (logs / name / "settings.yaml").write_text(text, encoding="utf-8")
    for stage in stages[:finished]:
        weights = logs / name / stage / "weights"
        weights.mkdir(parents=True)
        (weights / "rbft.json").write_text(json.dumps({"stages": [stage]}), encoding="utf-8")
    return logs / name


def refused(message: str) -> Any:
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def test_what_a_name_stands_for(tmp_path: Path) -> None:
    ours = run_folder(tmp_path, "ours", "rationale", "label")
    run_folder(tmp_path, "half", "rationale", "label", finished=1)
    zero = run_folder(tmp_path, "zero")
    settings = ours / "settings.yaml"

    def found(name: str) -> tuple[str, Path | None, Path | None]:
        run = find_run(name, tmp_path)
        assert run.name == name
        return run.stage.name, run.weights, run.settings

    label = ours / "label/weights"
    assert found("backbone") == ("label", None, None)
    assert found("ours") == ("label", label, settings)
    assert found(str(ours)) == ("label", label, settings)
    assert found("ours/rationale") == ("label", ours / "rationale/weights", settings)
    assert found(str(label)) == ("label", label, settings)
    assert found("zero") == ("label", None, zero / "settings.yaml")
    assert found("half")[1] == tmp_path / "half/rationale/weights"
    elsewhere = tmp_path / "elsewhere"
    label.rename(elsewhere)
    assert found(str(elsewhere)) == ("label", elsewhere, None)


def test_names_that_stand_for_nothing(tmp_path: Path) -> None:
    run_folder(tmp_path, "miniature_direct", "label")
    run_folder(tmp_path, "miniature", "label", finished=0)
    run_folder(tmp_path, "elicited", "rationale_class")
    allowed = "Allowed are names of runs, weights folders and backbone."
    for name, near in (("minature", "miniature, miniature_direct"), ("q", "elicited, miniature, ")):
        with pytest.raises(ValueError, match=re.escape(allowed)) as error:
            find_run(name, tmp_path)
        assert str(error.value).startswith(
            f"--runs names '{name}', which is no run under {tmp_path} and no weights folder (with "
            f"rbft.json). Near by are {near}"
        )
    with refused(
        f"--runs names miniature, but the run {tmp_path / 'miniature'} has no finished stage "
        "(label). Let fit finish it, or name a weights folder."
    ):
        find_run("miniature", tmp_path)
    with refused(
        "--runs names elicited, which answers with its class behind a rationale (stage "
        "rationale_class). The last token of its prompt predicts no class, so it has no map. Name "
        "runs whose answer begins with the class."
    ):
        find_run("elicited", tmp_path)


def test_a_run_that_a_server_answered(tmp_path: Path) -> None:
    settings = {"stages": [], "endpoint": {"model": "gpt-4o"}}
    run_folder(tmp_path, "gpt4o", settings=json.dumps(settings))
    with refused(
        "--runs names gpt4o, which a server answered (gpt-4o): its attention cannot be read. Name "
        "runs of a backbone."
    ):
        find_run("gpt4o", tmp_path)


def test_a_run_is_named_once(tmp_path: Path) -> None:
    run_folder(tmp_path, "ours", "label")
    for runs, got in ((["ours", "ours"], "ours, ours"), ([], "")):
        with refused(f'--runs must name runs, each once, such as "[direct, ours]"; got {got}.'):
            attention(runs, logs=tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"repeats": 0}, "repeats (0) must be 1 or more."),
        ({"pictures": -1}, "pictures (-1) must be 0 or more."),
        (
            {"masked_share": 1.0},
            "masked_share (1) must be 0 or more and below 1; 0 masks nothing.",
        ),
    ],
)
def test_numbers_out_of_range(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with refused(message):
        attention(["backbone"], logs=tmp_path, **given)


def test_the_output_is_named_after_the_runs(tmp_path: Path) -> None:
    stage = find_run("backbone", tmp_path).stage
    runs = [AttendedRun(name, stage, None, None) for name in ("logs/ours", "backbone")]
    assert joined_names(runs) == "ours-backbone"


def test_all_runs_are_asked_with_the_settings_of_the_first(tmp_path: Path) -> None:
    for name, more in (("one", ["--data.max_frames=8"]), ("other", ["--data.max_frames=6"])):
        made = read_experiment(FILES, ["--name=x", "--model.attention=eager", *more])
        run_folder(tmp_path, name, "label", settings=made.as_yaml())
    one, other, bare = (find_run(name, tmp_path) for name in ("one", "other", "backbone"))
    experiment = common_experiment([bare, one], None, tmp_path)
    data = experiment.settings.data.init_args
    assert (data.max_frames, data.eval_batch_size, data.feature_cache_gb) == (8, 1, 0)
    assert experiment.settings.model.attention == "sdpa"
    assert experiment.logs == tmp_path
    assert torch.get_num_threads() >= 1
    with refused(
        "run other was made with other frames than run one (max_frames: 8 -> 6): their maps are "
        "not of the same video. Compare runs with the same settings of frames."
    ):
        common_experiment([one, other], None, tmp_path)
    with refused(
        f"run one was made with other frames than {FILES[0]} (max_frames: 768 -> 8): their maps "
        "are not of the same video. Compare runs with the same settings of frames."
    ):
        common_experiment([bare, one], FILES, tmp_path)
    with refused(
        "--runs names nothing that has settings of its own. Say which benchmark and backbone: add "
        '--configs "[experiment.yaml]".'
    ):
        common_experiment([bare], None, tmp_path)
    assert common_experiment([bare], FILES, tmp_path).settings.data.init_args.max_frames == 768


class LackingFiles(YardFiles):
    """Files of which two are not usable."""

    @property
    def usable(self) -> set[str]:  # type: ignore[override]
        return {clip.id for clip in self.clips} - {"test_1", "test_2"}

    def grid(self, clip: Clip) -> tuple[int, int, int]:
        if clip.id == "test_1":
            raise ValueError(f"Clip {clip.id} is not usable: {clip.path} is missing.")
        return super().grid(clip)


class Lacking(Yard):
    """A benchmark without usable files for two of its clips."""

    files_class = LackingFiles


def test_clips_by_their_ids(tmp_path: Path) -> None:
    data = Lacking(tmp_path / "card.yaml", {"train": 2, "test": 5})
    assert [clip.id for clip in find_clips(data, None)] == ["test_0", "test_3", "test_4"]
    wanted = ["test_4", "train_0", "test_4"]
    assert [clip.id for clip in find_clips(data, wanted)] == ["test_4", "train_0"]
    with refused(
        "--clips names tes_4, x, which yard does not have. Its ids nearest to tes_4 are test_4, "
        "test_3, test_2, test_1, test_0."
    ):
        find_clips(data, ["test_0", "tes_4", "x"])
    with refused(
        "--clips names test_1, which cannot be shown: Clip test_1 is not usable: test_1.mp4 is "
        "missing."
    ):
        find_clips(data, ["test_0", "test_1"])
    with refused("--clips names test_2, which cannot be shown: test_2.mp4 is not usable."):
        find_clips(data, ["test_2"])


def test_frames_have_the_times_at_which_the_file_shows_them(tmp_path: Path) -> None:
    times = [0, 100, 150, 900, 1000]
    file = make_video(tmp_path / "uneven.mp4", frames=5, times=times)
    clip = Clip("a", file, 0, "test")
    assert frame_seconds(clip, [0, 2, 3], 10.0) == pytest.approx([0.0, 0.15, 0.9])
    later = Clip("a", file, 0, "test", start=0.1)
    assert frame_seconds(later, [1, 4], 10.0) == pytest.approx([0.0, 0.9])
    gone = Clip("a", tmp_path / "gone.mp4", 0, "test")
    assert frame_seconds(gone, [0, 5], 10.0) == pytest.approx([0.0, 0.5])
