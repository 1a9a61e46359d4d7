"""Rationales are read, filtered and judged by commands; `docs/rationale_quality.md` shows them."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

import tests.endpoint_server as server
from rbft.commands import rationales as command
from rbft.data.clip_reader import ClipReader
from rbft.rationales.rubric import Rubric
from tests.recipe.runs import LOGS, ROOT, rbft, read_json, read_lines, small

pytestmark = pytest.mark.recipe
DOCS = (ROOT / "docs/rationale_quality.md").read_text(encoding="utf-8")
EVIL = "<script>alert(1)</script> A cat & a dog walk in the yard."
SORRY = "I'm sorry, I cannot help with that."
RULES = ("--data.rationale_rules.refusals=true", "--data.rationale_rules.max_words=6")
NAMES = ("rationale", "less", "least")
BOTH = "--prompts=[rationale, less]"


@pytest.fixture(scope="module")
def options(backbones: dict[str, Path]) -> list[str]:
    return small(backbones["qwen2_5_vl"], "--data.val_size=2")


@pytest.fixture(scope="module")
def first(options: list[str], tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A folder with rationales of three prompts: texts by hand in the lines of the backbone."""
    folder = tmp_path_factory.mktemp("written")
    rbft(folder, "rationalize", *options, f"--prompts=[{', '.join(NAMES)}]")
    for name in NAMES:
        file = written(folder, name)
        lines = read_lines(file)
        assert {line["model"] for line in lines} == {"qwen2_5_vl"}
        for number, line in enumerate(lines):
            line["rationale"] = f"{name}: clip {number} shows somebody."
            line["finish"] = "stop"
        lines[0]["rationale"] = EVIL
        lines[3]["rationale"] = SORRY
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture
def folder(first: Path, tmp_path: Path, cache: Path) -> Path:
    shutil.copytree(first, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def may_load() -> None:
    """For tests that train."""


@pytest.fixture(autouse=True)
def _no_weights(request: pytest.FixtureRequest, first: Path, monkeypatch: Any) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    if "may_load" not in request.fixturenames:
        monkeypatch.setattr("rbft.backbone.loader.load_model", refuse)


def written(folder: Path, name: str) -> Path:
    (file,) = (folder / LOGS / "rationales").glob(f"*-{name}-*.jsonl")
    return file


def page(folder: Path) -> str:
    return written(folder, "rationale").with_suffix(".html").read_text(encoding="utf-8")


def refusal(folder: Path, capsys: Any, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        rbft(folder, *arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err.rstrip()


# The page


def test_a_page_shows_clips_beside_what_was_written(folder, options, capsys):
    rbft(folder, "rationales", *options, BOTH, *RULES)
    shown, text = capsys.readouterr().out, page(folder)
    assert text.count('<section class="clip"') == 16  # training and validation
    assert text.count("data:image/jpeg") >= 16 * 4
    assert re.findall(r"<h3>(\w+)</h3>", text) == ["rationale", "less"] * 16
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    # Both rules flag what they will drop; the report says so on page and screen.
    assert text.count('<li class="dropped">refusal: ') == 2
    assert text.count('<li class="dropped">length: ') == 2 * 2
    for place in (shown, text):
        assert place.count("12 of 14 rationales keep the rules.") == 2
    assert shown.count("16 of 16 clips have a rationale") == 2
    assert shown.count("The class guessed from 14 rationales alone") == 2
    assert f"Wrote 16 clips to {LOGS / 'rationales'}" in shown


def test_a_broken_video_and_a_missing_rationale_are_said(folder, options, capsys, monkeypatch):
    file = written(folder, "rationale")
    lines = read_lines(file)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines[1:]), encoding="utf-8")
    monkeypatch.setenv("RBFT_CACHE", str(folder / "cache"))
    before = ClipReader.decode

    def decode(data: Any, clip: Any) -> Any:
        if clip.id == lines[2]["id"]:
            raise command.VideoError.of(clip.path, "is damaged.")
        return before(data, clip)

    monkeypatch.setattr(ClipReader, "decode", decode)
    rbft(folder, "rationales", *options, f"--output={folder / 'own.html'}")
    shown = capsys.readouterr().out
    assert "15 of 16 clips have a rationale, 1 are missing." in shown
    text = (folder / "own.html").read_text(encoding="utf-8")
    assert re.search(r"No pictures: Video \S+ is damaged\.", text)
    # The benchmark's references are shown as well, so that no clip is without a text.
    assert text.count("<h3>human reference</h3>") == 16
    assert text.count("<h3>rationale</h3>") == 15
    assert "No rules are set for rationales: all 13 are kept." in shown


def test_without_scikit_learn_the_texts_are_not_checked(folder, options, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    rbft(folder, "rationales", *options)
    shown = capsys.readouterr().out
    assert "was not checked: The check of rationales by a text classifier needs" in shown
    assert "pip install 'rbft[analysis]'" in shown
    assert "Wrote 16 clips" in shown


def test_nothing_to_show_is_refused(tmp_path, options, capsys, cache):
    said = refusal(tmp_path, capsys, "rationales", *options)
    assert re.fullmatch(
        r"error: No rationale is written yet: \S+-rationale-\w+\.jsonl holds none of the "
        r"benchmark's clips\. Run python -m rbft rationalize with the same settings\.",
        said,
    )
    assert not (tmp_path / LOGS).exists()


def test_writers_are_named_and_rules_that_fit_refuses_are_shown_as_flags(folder, options, capsys):
    file = written(folder, "rationale")
    lines = read_lines(file)
    del lines[0]["model"]  # as rbft wrote it before
    lines[1]["model"] = "another"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    rbft(folder, "rationales", *options, "--data.rationale_rules.min_words=50")
    assert page(folder).count(" · qwen2_5_vl</div>") == 15
    assert page(folder).count(" · another</div>") == 1
    shown = capsys.readouterr().out
    assert "fit will refuse these rules: No rationale of class" in shown
    assert page(folder).count('<li class="shown">length: ') == 14


# Rules


def test_the_dry_run_says_what_the_rules_drop(folder, options, capsys):
    rbft(folder, "fit", *options, *RULES, "--dry_run=true")
    shown = capsys.readouterr().out
    assert "data.rationale_rules: 12 of 14 rationales keep the rules." in shown
    assert not (folder / LOGS / "small").exists()
    rbft(folder, "fit", *options, "--dry_run=true")
    assert "rationale_rules" not in capsys.readouterr().out


def test_a_class_left_with_none_is_refused_before_a_model_is_loaded(folder, options, capsys):
    strict = "--data.rationale_rules.min_words=50"
    for more in ((strict,), (strict, "--dry_run=true")):
        said = refusal(folder, capsys, "fit", *options, *more)
        assert re.search(
            r"error: No rationale of class '\w+' keeps data\.rationale_rules: its \d clips lose "
            r"all theirs \(length \d\)\. Loosen these rules",
            said,
        )


@pytest.mark.usefixtures("may_load")
def test_fit_lists_what_it_dropped(folder, options, capsys):
    one = ("--model.stage=rationale", "--score_each_stage=false", "--trainer.max_epochs=1")
    rbft(folder, "fit", *options, *RULES, *one)
    assert "data.rationale_rules: 12 of 14 rationales keep the rules." in capsys.readouterr().out
    stage = folder / LOGS / "small/rationale"
    lines = read_lines(written(folder, "rationale"))
    found = read_json(stage / "rationale_rules.json")
    assert found["dropped"] == {
        "length": [lines[0]["id"], lines[3]["id"]],
        "refusal": [lines[3]["id"]],
    }
    assert found["kept"] == 12
    taught = read_json(stage / "rationales.json")
    assert {lines[0]["id"], lines[3]["id"]}.isdisjoint(taught)
    assert len(taught) == 12 + 2
    # The rules bind: the stage is finished with them.
    said = refusal(folder, capsys, "fit", *options, *one)
    assert "data.init_args.rationale_rules" in said


# The judge


def verdict(level: int) -> str:
    rubric = Rubric.load()
    findings = {**dict.fromkeys(rubric.findings, False), **rubric.levels[level].when}
    return json.dumps({"reason": "so", **findings, "level": level})


@pytest.fixture
def judging(monkeypatch: pytest.MonkeyPatch):
    """A server whose judge gives every text about clips level 3, and others level 0."""

    def respond(handler: Any, fault: str, prompt: str, body: dict[str, Any], number: int) -> None:
        level = 3 if "shows somebody" in prompt else 0
        handler.whole(prompt, server.completion(prompt, body["model"], verdict(level)))

    monkeypatch.setattr(server._Handler, "respond", respond)
    with server.serving() as served:
        yield served


def endpoint(url: str, *more: str) -> list[str]:
    return [
        "--endpoint.model=judge-1",
        f"--endpoint.urls=[{url}]",
        "--endpoint.key_variable=null",
        *more,
    ]


def test_a_judge_grades_the_texts_once(folder, options, judging, capsys):
    more = [BOTH, "--repeats=2", "--temperature=null"]
    rbft(folder, "judge", *options, *endpoint(judging.url), *more)
    shown = capsys.readouterr().out
    # 12 of the 14 training texts of each prompt have level 3 (0.75), the other two level 0.
    assert re.search(r"rationale +0\.64 +0\.\d\d to 0\.\d\d +14 +0\.000", shown)
    assert "less " in shown
    assert "56 of 56 questions are to be sent to judge-1" in shown
    assert "rbft has no anchor texts for the card" in shown
    made = read_json(
        written(folder, "rationale").with_name(f"{written(folder, 'rationale').stem}-judge.json")
    )
    assert made["means"]["rationale"]["mean"] == pytest.approx(0.75 * 12 / 14)
    assert made["judge"] == "judge-1"
    assert len(made["items"]) == 28
    assert all(len(one["scores"]) == 2 for one in made["items"])
    body = judging.bodies[0]
    assert body["response_format"]["json_schema"]["schema"] == Rubric.load().schema
    assert body["top_logprobs"] == 10
    assert "temperature" not in body
    assert isinstance(body["messages"][-1]["content"], str)  # no picture
    asked = len(judging.bodies)
    rbft(folder, "judge", *options, *endpoint(judging.url, "--endpoint.offline=true"), *more)
    assert len(judging.bodies) == asked == 56 - 2 * 2  # two texts stand in both prompts' files
    again = capsys.readouterr().out
    assert "No anchor has moved" in again
    assert re.search(r"rationale +0\.64", again)


def test_anchors_are_asked_anew_with_other_texts(folder, options, judging, capsys, monkeypatch):
    """Their answers of before would hide that the judge has changed."""
    anchors = folder / "anchors.yaml"
    levels = range(len(Rubric.load().levels))
    anchors.write_text(
        json.dumps([{"id": f"a{n}", "level": n, "text": f"Anchor {n}."} for n in levels]),
        encoding="utf-8",
    )
    more = [f"--anchors={anchors}", "--repeats=1"]
    rbft(folder, "judge", *options, *endpoint(judging.url), *more, "--texts=3")
    assert "Anchor 'a4' should get 1.00 and got 0.00." in capsys.readouterr().out

    def kinder(handler: Any, fault: str, prompt: str, body: dict[str, Any], number: int) -> None:
        handler.whole(prompt, server.completion(prompt, body["model"], verdict(3)))

    monkeypatch.setattr(server._Handler, "respond", kinder)
    rbft(folder, "judge", *options, *endpoint(judging.url), *more, "--texts=5")
    shown = capsys.readouterr().out
    assert "The judge has drifted since the last judgement in this file: anchor a0 from" in shown
    assert f"{2 + len(levels)} of {5 + len(levels)} questions are to be sent" in shown


def test_scores_of_people_correct_the_mean(folder, options, judging, capsys):
    ids = [line["id"] for line in read_lines(written(folder, "rationale"))][4:10]
    human = folder / "human.jsonl"
    rows = [{"condition": "rationale", "id": name, "score": 0.25} for name in ids]
    human.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    more = [f"--human={human}", "--repeats=1"]
    rbft(folder, "judge", *options, *endpoint(judging.url), *more)
    assert "corrected by people" in capsys.readouterr().out
    file = written(folder, "rationale")
    made = read_json(file.with_name(f"{file.stem}-judge.json"))
    assert made["calibrated"]["rationale"]["n_human"] == 6
    assert made["calibrated"]["rationale"]["mean"] < made["means"]["rationale"]["mean"]
    asked = len(judging.bodies)
    human.write_text(json.dumps({**rows[0], "id": "elsewhere"}), encoding="utf-8")
    assert refusal(folder, capsys, "judge", *options, *endpoint(judging.url), *more) == (
        "error: --human scores 1 texts that are not graded (first: clip elsewhere of prompt "
        "rationale). condition must be a name of --prompts, and id that of a training clip among "
        "--texts."
    )
    human.write_text(json.dumps(rows[0]), encoding="utf-8")
    said = refusal(folder, capsys, "judge", *options, *endpoint(judging.url), *more)
    assert said.startswith("error: --human scores 1 text of the prompt rationale; 2 or more are")
    assert len(judging.bodies) == asked


def test_another_model_s_verdicts_are_no_scores(folder, options, judging, capsys, monkeypatch):
    def other(handler: Any, fault: str, prompt: str, body: dict[str, Any], number: int) -> None:
        handler.whole(prompt, server.completion(prompt, "cheaper", verdict(4)))

    monkeypatch.setattr(server._Handler, "respond", other)
    said = refusal(folder, capsys, "judge", *options, *endpoint(judging.url), "--texts=2")
    assert said.startswith("error: The judge judge-1 graded no text: 6 other_model (first: ")
    assert not list((folder / LOGS / "rationales").glob("*judge.json"))


def test_a_judge_of_its_own_texts_is_named(folder, options, judging, capsys, backbones):
    own = f"--endpoint.model=lab/{backbones['qwen2_5_vl'].name}"
    rbft(folder, "judge", *options, *endpoint(judging.url), own, "--texts=2", "--repeats=1")
    assert (
        f"The judge lab/{backbones['qwen2_5_vl'].name} has written the rationales of rationale "
        "itself; judges favour their own texts. Take another model to judge."
    ) in capsys.readouterr().out


def test_what_the_judge_refuses(folder, options, capsys):
    assert refusal(folder, capsys, "judge", *options) == (
        "error: judge asks a server, and endpoint is null. Set --endpoint.model to the model that "
        "judges and --endpoint.urls to its server (OpenAI's where it is left out). The backbone is "
        "not offered as a judge of its own texts."
    )
    said = refusal(folder, capsys, "judge", *options, "--repeats=0")
    assert said == "error: repeats (0) must be 1 or more."
    said = refusal(folder, capsys, "judge", *options, "--top_logprobs=21")
    assert said == "error: top_logprobs (21) must be from 0 to 20; 0 asks for none."


# The documents


def test_the_commands_of_the_page_run(folder, options, judging, capsys):
    text = DOCS.replace("\\\n", " ")
    commands = [shlex.split(line) for line in re.findall(r"^python -m rbft .*", text, re.MULTILINE)]
    assert [words[3] for words in commands] == ["rationales", "rationales", "fit", "fit", "judge"]
    for words in commands:
        assert words[4:6] == ["--config", "experiments/smarthome_qwen25.yaml"]
        more = ["--dry_run=true"] if words[3] == "fit" else []
        if words[3] == "judge":
            more = [*endpoint(judging.url), "--texts=2"]
        given = [word for word in words[6:] if word != "gpt-4o"]
        given = [word for word in given if word != "--endpoint.model"]
        rbft(folder, words[3], *options, *given, *more)
