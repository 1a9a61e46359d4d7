"""`python -m rbft mask`: whoever finds the boxes, killed or not, with what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from rbft.masking.boxes import Box
from rbft.miniature.scene import TARGET
from rbft.miniature.world import draw_annotations
from tests.detectors import tiny_owl
from tests.endpoint_server import serving
from tests.recipe.killing import run
from tests.recipe.runs import EXPERIMENTS, LOGS, rbft, read_json, read_lines, small

pytestmark = pytest.mark.recipe
BOXES = LOGS / "boxes/miniature0.jsonl"
MASKED = f"--config={EXPERIMENTS / 'miniature_masked_objects.yaml'}"


@pytest.fixture(scope="module")
def options(qwen_folder: Path) -> list[str]:
    return small(qwen_folder, "--data.train_size=2", "--data.test_size=3", "--data.num_workers=0")


@pytest.fixture(scope="module")
def qwen_folder(backbones: dict[str, Path]) -> Path:
    return backbones["qwen2_5_vl"]


@pytest.fixture(scope="module")
def truth(options: list[str], tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("truth")
    rbft(folder, "mask", *options, "--localiser=truth")
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    return read_lines(folder / BOXES)


def test_true_boxes_are_written_once(truth, options, capsys):
    found = lines(truth)
    clips = [f"target-test-{number:04d}" for number in range(3)]
    assert list(dict.fromkeys(line["id"] for line in found)) == clips
    assert all(len([one for one in found if one["id"] == clip]) == 4 for clip in clips)
    sidecar = read_json((truth / BOXES).with_suffix(".provenance.json"))
    assert (sidecar["localiser"], sidecar["frames"]["fps"]) == ("truth", 1.0)
    before = (truth / BOXES).read_bytes()
    rbft(truth, "mask", *options, "--localiser=truth")
    shown = capsys.readouterr().out
    count = sum(len(line["boxes"]) for line in found)
    empty = sum(not line["boxes"] for line in found)
    assert f"3 of 3 clips stand in {BOXES}.\n" in shown
    assert f"{count} boxes in 12 frames of 3 videos, {empty} frames without: {BOXES}\n" in shown
    assert (truth / BOXES).read_bytes() == before


def test_killed_at_any_write_it_comes_to_the_same_bytes(truth, options, tmp_path):
    name = BOXES.stem
    for part, number in (
        (f"open*{name}.jsonl.part0", 2),
        (f"os.remove*{name}.jsonl.part0", 1),
    ):
        status = run(tmp_path, [*options, "--localiser=truth"], part, number, command="mask")
        assert status == -9, (tmp_path / "log.txt").read_text(encoding="utf-8")[-2000:]
    assert run(tmp_path, [*options, "--localiser=truth"], command="mask") == 0
    assert (tmp_path / BOXES).read_bytes() == (truth / BOXES).read_bytes()
    assert not list((tmp_path / BOXES).parent.glob("*.part*"))


def test_boxes_of_a_file(truth, options, tmp_path, capsys):
    """What `mask` wrote, as somebody else would have written it."""
    file = tmp_path / "theirs.jsonl"
    rows = [
        {
            "id": line["id"],
            "frame": line["frame"],
            "label": label,
            "x1": a,
            "y1": b,
            "x2": c,
            "y2": d,
        }
        for line in lines(truth)
        for a, b, c, d, label, _ in line["boxes"]
    ]
    rows += [{"id": line["id"]} for line in lines(truth)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    rbft(tmp_path, "mask", *options, "--localiser=file", f"--file={file}")
    assert (tmp_path / BOXES).read_bytes() == (truth / BOXES).read_bytes()
    capsys.readouterr()
    file.write_text(json.dumps({"id": "target-test-0001"}))
    with pytest.raises(SystemExit):
        rbft(tmp_path, "mask", *options, "--localiser=file", f"--file={file}", "--output=b.jsonl")
    assert capsys.readouterr().err == (
        f"error: --file {file} has no line about 2 of 3 clips (first: target-test-0000, "
        "target-test-0002). A clip without objects has a line with its id alone.\n"
    )


def test_boxes_of_a_detector(options, tmp_path, capsys):
    owl = tiny_owl(tmp_path / "owl")
    asked = ["--localiser=detector", f"--detector={owl}", "--threshold=0.1"]
    rbft(tmp_path, "mask", *options, *asked, "--names=[dog, trash can]", "--objects=2")
    found = [line["boxes"] for line in lines(tmp_path)]
    assert len(found) == 12
    assert max(map(len, found)) == 2
    assert {box[4] for boxes in found for box in boxes} <= {"dog", "trash can"}
    for boxes in found:
        scores = [box[5] for box in boxes]
        assert scores == sorted(scores, reverse=True)
        assert all(score > 0.1 for score in scores)
    by_class = "--names={normal: [dog], abnormal: [trash can]}"
    rbft(tmp_path, "mask", *options, *asked, by_class, "--output=by_class.jsonl")
    labels = {one.id: one.label for one in draw_annotations(TARGET, {"test": 3}, 0)}
    assert set(labels.values()) == {"normal", "abnormal"}
    for line in read_lines(tmp_path / "by_class.jsonl"):
        wanted = {"normal": "dog", "abnormal": "trash can"}[labels[line["id"]]]
        assert {box[4] for box in line["boxes"]} <= {wanted}
    capsys.readouterr()
    with pytest.raises(SystemExit):
        rbft(tmp_path, "mask", *options, *asked, "--names=[cat]", "--objects=2")
    assert capsys.readouterr().err.startswith(
        f"error: The boxes in {BOXES} were made from something else than now:\n  names: ['dog', "
        "'trash can'] there, ['cat'] now\nGive another --output, or remove it and "
    )


def test_the_backbone_names_and_finds_objects(options, tmp_path, capsys, monkeypatch):
    """What a tiny random one writes is nothing; what is asked, and of what, is looked at."""
    asked: list[tuple[str, Any]] = []

    def texts(ids: Any, tokenizer: Any, settings: Any) -> list[str]:
        return ['["dog", "bin"]' if "Naming" in asked[-1][0] else answer for _ in ids]

    from rbft import object_pass

    real = object_pass.build

    def build(
        experiment: Any, stage: str, weights: Any, title: str, *rest: Any, **more: Any
    ) -> Any:
        asked.append((title, [(c.id, c.text, c.start) for c in more["feed"]["predict_clips"]]))
        return real(experiment, stage, weights, title, *rest, **more)

    monkeypatch.setattr(object_pass, "build", build)
    monkeypatch.setattr("rbft.rationale_module.decode_texts", texts)
    # Frames are of 56 x 56 pixels, which Qwen2.5-VL counts.
    answer = '[{"bbox_2d": [14, 28, 42, 56], "label": "dog"}, {"bbox_2d": [9, 9, 9, 9]}]'
    rbft(tmp_path, "mask", *options, "--localiser=backbone", "--namer=backbone")
    naming, finding = asked
    assert naming[0] == "Naming objects"
    assert [name for name, _, _ in naming[1]] == [f"target-test-{n:04d}" for n in range(3)]
    assert "Name the 3 objects in this video" in naming[1][0][1]
    assert finding[0] == "Finding objects (backbone)"
    assert [name for name, _, _ in finding[1]][:2] == [
        "target-test-0000 frame 0",
        "target-test-0000 frame 8",
    ]
    assert all("Locate dog, bin in this picture" in text for _, text, _ in finding[1])
    expected = [Box(0.25, 0.5, 0.75, 1.0, "dog").as_list()]
    assert [line["boxes"] for line in lines(tmp_path)] == [expected] * 12
    frames = [(line["id"], line["frame"]) for line in lines(tmp_path)]
    assert [f"{clip} frame {frame}" for clip, frame in frames] == [one[0] for one in finding[1]]
    assert "12 boxes were none (no area, or outside the frame) and are left out." in (
        capsys.readouterr().out
    )
    names = read_lines(tmp_path / LOGS / "boxes/miniature0-names.jsonl")
    assert [line["names"] for line in names] == [["dog", "bin"]] * 3
    rbft(tmp_path, "mask", *options, "--localiser=backbone", "--namer=backbone")
    assert len(asked) == 2  # nothing is asked again


def test_an_endpoint_names_and_finds_objects(options, tmp_path, capsys):
    def text(prompt: str, number: int) -> str:
        if "Name the 2 objects" in prompt:
            return '```json\n["dog", "bin"]\n```'
        assert "Detect dog, bin in this picture" in prompt
        return '```json\n[{"box_2d": [500, 250, 1000, 750], "label": "dog"}, {"box_2d": [1, 2'

    asked = ["--localiser=endpoint", "--namer=endpoint", "--objects=2", "--form=gemini"]
    with serving(text=text, prompt_tokens=5000) as server:
        endpoint = ["--endpoint.model=tiny-vl", f"--endpoint.urls=[{server.url}]"]
        endpoint += ["--endpoint.key_variable=null", "--endpoint.concurrency=4"]
        rbft(tmp_path, "mask", *options, *asked, *endpoint)
        assert sum(server.sent.values()) == 3 + 12
        first = (tmp_path / BOXES).read_bytes()
        (tmp_path / BOXES).unlink()  # every answer is in the replay store
        rbft(tmp_path, "mask", *options, *asked, *endpoint)
        assert sum(server.sent.values()) == 3 + 12
    assert (tmp_path / BOXES).read_bytes() == first
    expected = [Box(0.25, 0.5, 0.75, 1.0, "dog").as_list()]
    assert [line["boxes"] for line in lines(tmp_path)] == [expected] * 12
    sizes = [
        sum(part["type"] == "image_url" for part in body["messages"][-1]["content"])
        for body in server.bodies
    ]
    assert sorted(sizes) == [1] * 12 + [4] * 3  # a still picture each; the whole clip to name
    capsys.readouterr()
    with serving(text=lambda *_: "I cannot see.", prompt_tokens=5000) as server:
        endpoint[1] = f"--endpoint.urls=[{server.url}]"
        more = ["--output=none.jsonl", f"--endpoint.store={tmp_path / 'other.jsonl'}"]
        asked = ["--localiser=endpoint", "--form=gemini"]
        rbft(tmp_path, "mask", *options, *asked, *endpoint, *more)
    assert "12 answers (target-test-0000 frame 0, target-test-0000 frame 8, target-test-0000 " in (
        capsys.readouterr().out
    )


REFUSED = {
    "a detector without names": (
        ["--localiser=detector"],
        'A detector looks for objects by name. Give some: --names "[person, package]", or have '
        "them named: --namer backbone, --namer endpoint.\n",
    ),
    "two who name": (
        ["--localiser=detector", "--names=[a]", "--namer=backbone"],
        "--names and --namer backbone both say what to look for. Leave out one.\n",
    ),
    "names where none are needed": (
        ["--localiser=truth", "--names=[a]"],
        "--localiser truth has boxes of its own and needs no names. Leave out --names and "
        "--namer.\n",
    ),
    "no endpoint": (
        ["--localiser=endpoint"],
        "--localiser is endpoint, and there is none. Name its model with --endpoint.model.\n",
    ),
    "no form": (
        ["--localiser=endpoint", "--endpoint.model=gpt"],
        "How endpoint.model gpt writes boxes is not known. Set --form to one of gemini, qwen3, "
        "qwen2.5, qwen2, paligemma, florence2.\n",
    ),
    "no file": (
        ["--localiser=file"],
        "--localiser file needs a --file. Give both, or neither.\n",
    ),
    "a file too many": (
        ["--localiser=truth", "--file=a.csv"],
        "--localiser truth reads no --file (a.csv). Give both, or neither.\n",
    ),
    "other classes": (
        ["--localiser=detector", "--names={dog: [a], normal: [b]}"],
        "--names names objects of the classes dog, normal; the card's are normal, abnormal. Give "
        "those of each, or one list for all.\n",
    ),
    "no such split": (
        ["--localiser=truth", "--split=val"],
        "Miniature has no val split.\n",
    ),
    "too few objects": (
        ["--localiser=truth", "--objects=0"],
        "objects (0) must be 1 or more; it is the most boxes of a frame.\n",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused(case, options, tmp_path, capsys):
    more, message = REFUSED[case]
    with pytest.raises(SystemExit) as ended:
        rbft(tmp_path, "mask", *options, *more)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {message}"
    assert not (tmp_path / BOXES).exists()


def test_a_test_without_boxes_ends_before_a_model_is_loaded(options, tmp_path, capsys, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("rbft.backbone.loader.load_model", refuse)
    masked = [*options, "--weights=backbone", "--data.masking.boxes=boxes.jsonl"]
    with pytest.raises(SystemExit):
        rbft(tmp_path, "test", *masked)
    assert capsys.readouterr().err == (
        "error: The box file boxes.jsonl (data.masking.boxes) does not exist. Have it written: "
        "python -m rbft mask with the same --config.\n"
    )
    rbft(tmp_path, "mask", *options, "--localiser=truth", "--output=boxes.jsonl")
    for more, said in (
        ("--data.test_size=4", "has no boxes of 1 of the 4 test clips (first: target-test-0003)."),
        ("--data.fps=2", "(fps: 1.0 -> 2.0). Set data to what it was, or run python -m rbft mask"),
        ("--endpoint.model=gpt", "data.masking masks what a backbone is shown, and endpoint.model"),
    ):
        weights = [] if "endpoint" in more else ["--weights=backbone"]
        with pytest.raises(SystemExit):
            rbft(tmp_path, "test", *masked, more, *weights)
        assert said in capsys.readouterr().err
