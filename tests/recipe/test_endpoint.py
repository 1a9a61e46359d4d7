"""`test`, `rationalize` and `fit` with a server on this machine in the backbone's place."""

import shlex
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from sklearn.metrics import accuracy_score, f1_score

from rbft.data.clip_reader import ClipReader
from tests.endpoint_server import Served, serving
from tests.recipe.killing import run
from tests.recipe.runs import (
    LOGS,
    ROOT,
    command_blocks,
    outcome,
    rationales,
    rbft,
    read_json,
    read_lines,
    small,
)

pytestmark = pytest.mark.recipe
SECRET = "sk-test-0123456789abcdef"
NOWHERE = Path("no/backbone/is/here")
PLACE = Path("small/endpoint-tiny-vl")
WORDS = ["Normal.", "abnormal", "normal", "**Abnormal**", "normal"]


def options(server: Served, *more: str, backbone: Path = NOWHERE) -> list[str]:
    return small(
        backbone,
        "--endpoint.model=tiny-vl",
        f"--endpoint.urls=[{server.url}]",
        "--endpoint.key_variable=null",
        "--endpoint.concurrency=1",  # so that the clips come in order
        "--endpoint.attempts=1",
        *more,
    )


@pytest.fixture
def server(cache: Path) -> Iterator[Served]:
    with serving(text=lambda prompt, number: WORDS[number % len(WORDS)]) as made:
        yield made


def by_status(rows: list[dict[str, Any]]) -> dict[str | None, int]:
    return dict(Counter(row.get("status") for row in rows))


def test_a_split_is_scored_without_a_backbone(server, tmp_path, capsys, monkeypatch):
    """The second of five clips is refused, the third answered by another model."""
    monkeypatch.setenv("THE_KEY", SECRET)
    server.plan = lambda prompt: ["fine", "refusal", "wrong model", "key", "fine"]
    more = "--endpoint.key_variable=THE_KEY"
    rbft(tmp_path, "test", *options(server, more))
    said = capsys.readouterr()
    result = read_json(tmp_path / LOGS / PLACE / "test.json")
    rows = read_lines(tmp_path / LOGS / PLACE / "test_predictions.jsonl")
    assert [row["prediction"] for row in rows] == ["normal", None, None, None, "normal"]
    assert [row.get("status") for row in rows] == [None, "refused", "other_model", "failed", None]
    assert rows[1]["reason"].endswith("declined. I cannot help with that.")
    assert rows[2]["text"] == "normal"  # kept, and no number
    assert rows[3]["reason"] == "HTTP 400: I was given [key]."
    labels = [row["label"] for row in rows]
    names, reference = list(result["classes"]), cast(Any, f1_score)  # its stubs know only strings
    found = [row["prediction"] or "unparsed" for row in rows]
    assert result["metrics"]["accuracy"] == pytest.approx(accuracy_score(labels, found))
    f1 = reference(labels, found, labels=names, average=None, zero_division=0)
    assert [result["metrics"][f"f1/{name}"] for name in names] == pytest.approx(list(f1))
    only = result["answered_only"]
    some = [place for place in range(5) if rows[place]["prediction"]]
    right = accuracy_score([labels[n] for n in some], [found[n] for n in some])
    assert (only["n_scored"], only["coverage"]) == (2, 0.4)
    assert only["metrics"]["accuracy"] == pytest.approx(right)
    assert result["unanswered"] == {
        status: [rows[n]["id"]] for n, status in ((1, "refused"), (2, "other_model"), (3, "failed"))
    }
    assert (result["n_unparsed"], result["n_scored"], result["models"]) == (
        3,
        5,
        ["cheaper-vl", "tiny-vl"],
    )
    lines = said.out.splitlines()
    assert lines[0].startswith("tiny-vl: 5 of 5 test clips to ask about, at most ")
    for name, accuracy, clips in (
        ("unanswered is wrong", result["metrics"]["accuracy"], 5),
        ("answered only", right, 2),
    ):
        (line,) = [line for line in lines if line.startswith(f"tiny-vl, {name}")]
        found = line.removeprefix(f"tiny-vl, {name}").split()
        assert found[0] == f"{100 * accuracy:.1f}"
        assert found[1].startswith("[")
        assert found[-1] == str(clips)
    assert "Coverage of tiny-vl, unanswered is wrong: 40.0 % (3 of 5 without a class)." in lines
    assert "tiny-vl answered 2 of 5 test clips with a class (coverage 40.00%)." in lines
    assert f"  1 other_model: {rows[2]['id']}" in lines
    sent = {header["authorization"] for header in server.headers}
    assert sent == {f"Bearer {SECRET}"}
    texts = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert not any(SECRET.encode() in text for text in texts)
    assert SECRET not in said.out + said.err
    # Once more: the failed request alone is sent again, and is answered now.
    rbft(tmp_path, "test", *options(server, more))
    assert server.sent.total() == 6
    again = read_lines(tmp_path / LOGS / PLACE / "test_predictions.jsonl")
    assert [row.get("status") for row in again] == [None, "refused", "other_model", None, None]


def test_what_is_asked_and_what_determines_a_result(server, tmp_path):
    rbft(tmp_path, "test", *options(server))
    file = tmp_path / LOGS / PLACE / "test.json"
    made = read_json(file)["made"]
    (prompt,) = server.sent
    assert made["prompt"] == prompt
    assert made["endpoint"]["model"] == "tiny-vl"
    assert made["endpoint"]["sampling"] == {"max_tokens": 8, "temperature": 0.0}
    assert made["frames"]["max_frames"] == 4
    content = server.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url"] * 4 + ["text"]
    before = file.read_bytes()
    rbft(tmp_path, "test", *options(server, "--data.max_frames=2"))
    assert server.sent.total() == 10
    assert file.read_bytes() == before
    (other,) = file.parent.glob("test-*.json")
    assert read_json(other)["made"]["frames"]["max_frames"] == 2


def test_log_probabilities_give_probabilities(server, tmp_path):
    server.top = [("ab", -0.5), ("normal", -1.5)]
    rbft(tmp_path, "test", *options(server, "--endpoint.top_logprobs=5"))
    assert {(body["logprobs"], body["top_logprobs"]) for body in server.bodies} == {(True, 5)}
    rows = read_lines(tmp_path / LOGS / PLACE / "test_predictions.jsonl")
    # The fourth text opens with marks, of which a real server's first token would consist.
    assert {row["prediction"] for row in rows} == {"abnormal"}
    assert all(row["probabilities"]["abnormal"] == pytest.approx(0.7310586) for row in rows)
    assert read_json(tmp_path / LOGS / PLACE / "test.json")["by_logprobs"] == 5


def test_structured_labels(server, tmp_path, capsys):
    """One of five answers has not the form; another server knows no forms."""
    texts = ['{"label": "normal"}', '{"label": "abnormal"}', "normal"]
    server.text = lambda prompt, number: texts[number % 3]
    more = "--endpoint.labels=structured"
    rbft(tmp_path, "test", *options(server, more))
    words = {"type": "string", "enum": ["normal", "abnormal"]}
    for body in server.bodies:
        form = body["response_format"]["json_schema"]
        assert form["schema"]["properties"] == {"label": words}
    file = tmp_path / LOGS / PLACE / "test.json"
    result, rows = read_json(file), read_lines(tmp_path / LOGS / PLACE / "test_predictions.jsonl")
    assert [row["prediction"] for row in rows] == ["normal", "abnormal", None, "normal", "abnormal"]
    assert rows[2]["status"] == "no_class"
    assert rows[2]["reason"].endswith("the server may not keep to response_format.")
    assert result["made"]["endpoint"]["sampling"]["response_format"]["type"] == "json_schema"
    # Free answers are other answers, in a file of their own.
    rbft(tmp_path, "test", *options(server))
    assert server.sent.total() == 10
    assert len(list(file.parent.glob("test-*.json"))) == 1
    capsys.readouterr()
    server.plan = lambda prompt: ["no form"] * 99
    with pytest.raises(SystemExit, match="2"):
        rbft(tmp_path, "test", *options(server, more, "--data.max_frames=2"))
    assert (
        "HTTP 400: 'response_format' of type 'json_schema' is not supported. The server takes no "
        "structured answer of this form (response_format): ask another model, or for free labels "
        "(endpoint.labels free)."
    ) in capsys.readouterr().err
    assert server.sent.total() == 11, "nothing is sent after that"


def test_a_clip_that_cannot_be_decoded_is_named_and_not_sent(server, tmp_path, monkeypatch):
    from rbft.video.sampling import VideoError

    decode, lost = ClipReader.decode, []

    def broken(self: ClipReader, clip: Any) -> Any:
        if not lost or clip.id in lost:
            lost.append(clip.id)
            raise VideoError.of(clip.path, "is broken.")
        return decode(self, clip)

    monkeypatch.setattr(ClipReader, "decode", broken)
    rbft(tmp_path, "test", *options(server))
    result = read_json(tmp_path / LOGS / PLACE / "test.json")
    assert result["undecodable"] == result["unanswered"]["undecodable"] == lost[:1]
    assert (result["n_scored"], result["answered_only"]["n_scored"]) == (5, 4)
    assert server.sent.total() == 4
    rows = read_lines(tmp_path / LOGS / PLACE / "test_predictions.jsonl")
    assert [set(row) for row in rows if "error" in row] == [{"id", "label", "prediction", "error"}]


def test_a_run_that_is_killed_asks_for_the_rest(server, tmp_path):
    status = run(tmp_path, options(server), "endpoints/tiny-vl.jsonl", 3, command="test")
    assert status == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
    assert not (tmp_path / LOGS / PLACE / "test.json").exists()
    kept = len(read_lines(tmp_path / LOGS / "endpoints/tiny-vl.jsonl"))
    sent = server.sent.total()
    # The kill came as the answer that was just given was to be kept.
    assert 0 < kept < sent == kept + 1 < 5
    assert run(tmp_path, options(server), command="test") == 0, (tmp_path / "log.txt").read_text()
    assert server.sent.total() == sent + 5 - kept
    assert read_json(tmp_path / LOGS / PLACE / "test.json")["answered_only"]["n_scored"] == 5


def test_limits_stop_before_they_are_passed(server, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        rbft(tmp_path, "test", *options(server, "--endpoint.max_requests=2"))
    error = capsys.readouterr().err
    assert "tiny-vl was not asked about 3 of 5 test clips (first: " in error
    assert "limit of requests would be passed; spent are 2 of 2 requests" in error
    assert server.sent.total() == 2
    assert not (tmp_path / LOGS / PLACE / "test.json").exists()
    with pytest.raises(SystemExit, match="2"):
        rbft(tmp_path, "test", *options(server, "--endpoint.max_requests=2"))
    error = capsys.readouterr().err
    assert (
        "error: Nothing can be sent to tiny-vl: any of the 3 requests could pass "
        "endpoint.max_requests; spent are 2 of 2 requests, "
    ) in error
    assert server.sent.total() == 2
    rbft(tmp_path, "test", *options(server, "--endpoint.max_requests=5"))
    assert server.sent.total() == 5
    # All is there now: neither limit nor server matters.
    rbft(tmp_path, "test", *options(server, "--endpoint.max_requests=2"))
    rbft(tmp_path, "test", *options(server, "--endpoint.offline=true", "--endpoint.urls=[]"))
    assert server.sent.total() == 5


def test_money_is_estimated_before_the_first_request(server, tmp_path, capsys):
    (tmp_path / "prices.yaml").write_text(
        "currency: USD\ndate: 2026-11-21\nsource: a test\n"
        "models: {tiny-vl: {input: 1, output: 1, image_tokens: 100}}\n"
    )
    prices = [f"--endpoint.prices={tmp_path / 'prices.yaml'}", "--endpoint.max_money=0.0001"]
    with pytest.raises(SystemExit, match="2"):
        rbft(tmp_path, "test", *options(server, *prices))
    said = capsys.readouterr()
    assert "USD (prices of 2026-11-21), without repeats. Spent so far: 0 requests" in said.out
    assert "requests could pass endpoint.max_money; spent are 0 requests" in said.err
    assert not server.sent


def test_a_server_that_is_not_there_leaves_no_result(server, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        rbft(tmp_path, "test", *options(server, "--endpoint.urls=[http://127.0.0.1:9/v1]"))
    error = capsys.readouterr().err
    assert "error: tiny-vl gave no answer to any of 5 requests about test clips (first: " in error
    assert "Look at endpoint.urls and at the server, and start again." in error
    assert not (tmp_path / LOGS / PLACE).exists()


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        (
            "test",
            ["--weights=backbone"],
            "error: --weights backbone and endpoint.model tiny-vl both say who is asked. Leave "
            "one of them out (--endpoint null).",
        ),
        (
            "fit",
            ["--stages=[label]"],
            "error: endpoint.model is tiny-vl, but fit asks an endpoint for rationales alone, "
            "which the stages [label] do not learn from. To have it classify, run python -m rbft "
            "test with the same settings; to train without it, add --endpoint null.",
        ),
        (
            "predict",
            ["--videos=a.mp4"],
            "error: predict asks a backbone, not the endpoint (tiny-vl). Add --endpoint null, or "
            "score a benchmark with python -m rbft test.",
        ),
        (
            "validate",
            [],
            "error: Miniature has no val split. Set data.val_fraction to carve a validation split "
            "from the training clips.",
        ),
    ],
)
def test_what_no_endpoint_is_asked(server, tmp_path, capsys, command, more, message):
    with pytest.raises(SystemExit, match="2"):
        rbft(tmp_path, command, *options(server, *more))
    assert message in capsys.readouterr().err
    assert not server.sent


def test_rationales_are_written_and_learnt(server, tmp_path, backbones, capsys):
    server.text = lambda prompt, number: f" A thing of kind {number} happens. "
    more = ["--data.train_size=6"]
    again = options(server, *more)
    part = "rationales/*jsonl.part0"
    assert run(tmp_path, again, part, 3, command="rationalize") == -signal.SIGKILL
    sent = server.sent.total()
    assert 0 < sent < 6
    assert run(tmp_path, again, command="rationalize") == 0, (tmp_path / "log.txt").read_text()
    assert server.sent.total() == 6
    file = rationales(tmp_path)
    assert file.name.startswith("miniature0-tiny-vl-rationale-")
    records = read_lines(file)
    assert sorted(record["rationale"] for record in records) == [
        f"A thing of kind {number} happens." for number in range(6)
    ]
    assert {(one["finish"], one["tokens"], one["source"]) for one in records} == {
        ("stop", 5, "tiny-vl")
    }
    assert {(len(one["frames"]), one["frames"][0], one["fps"]) for one in records} == {(4, 0, 4.0)}
    before = outcome(tmp_path)
    fit = ["--stages=[rationale]", "--score_each_stage=false"]
    options_fit = options(server, *more, *fit, backbone=backbones["qwen2_5_vl"])
    rbft(tmp_path, "fit", *options_fit)
    assert "6 of 6 rationales reused" in capsys.readouterr().out
    assert server.sent.total() == 6
    after = outcome(tmp_path)
    assert {name: after[name] for name in before} == before
    assert (tmp_path / LOGS / "small/rationale/weights/model.safetensors").exists()
    learnt = read_json(tmp_path / LOGS / "small/rationale/rationales.json")
    assert learnt.keys() == {record["id"] for record in records}


def test_fit_has_missing_rationales_written(server, tmp_path, backbones):
    server.text = lambda prompt, number: f"Thing {number}."
    fit = ["--stages=[rationale]", "--score_each_stage=false", "--data.train_size=4"]
    rbft(tmp_path, "fit", *options(server, *fit, backbone=backbones["qwen2_5_vl"]))
    assert server.sent.total() == 4
    assert {one["source"] for one in read_lines(rationales(tmp_path))} == {"tiny-vl"}


def test_clips_without_a_rationale_are_named(server, tmp_path, capsys):
    server.text = lambda prompt, number: f"Thing {number}."
    server.plan = lambda prompt: ["fine", "refusal", "500", "wrong model", "empty"]
    more = ["--data.train_size=6"]
    with pytest.raises(SystemExit, match="2"):
        rbft(tmp_path, "rationalize", *options(server, *more))
    error = capsys.readouterr().err
    assert error.startswith("error: Clips have no rationale, and training needs one of each:\n")
    for status in ("refused", "failed", "other_model", "empty"):
        assert f"\n  1 {status}: target-train-" in error
    assert len(read_lines(rationales(tmp_path))) == 2
    assert server.sent.total() == 6
    with pytest.raises(SystemExit, match="2"):
        rbft(tmp_path, "rationalize", *options(server, *more))
    assert "1 failed" not in capsys.readouterr().err
    assert len(read_lines(rationales(tmp_path))) == 3
    assert server.sent.total() == 7, "only the failed one is sent again"


def test_another_writer_has_another_file(server, tmp_path):
    server.text = lambda prompt, number: f"Thing {number}."
    more = ["--data.train_size=2", "--prompts=[rationale, less]"]
    rbft(tmp_path, "rationalize", *options(server, *more))
    rbft(tmp_path, "rationalize", *options(server, *more, "--endpoint.detail=low"))
    files = sorted((tmp_path / LOGS / "rationales").glob("*.jsonl"))
    assert Counter(file.name.rpartition("-")[0] for file in files) == {
        "miniature0-tiny-vl-rationale": 2,
        "miniature0-tiny-vl-less": 2,
    }
    assert server.sent.total() == 8


def test_the_page_s_commands_run(server, tmp_path):
    """Those of docs/rationales.md, on the miniature instead."""
    page = (ROOT / "docs/rationales.md").read_text(encoding="utf-8")
    block = next(b for b in command_blocks(page) if "-m rbft test" in b)
    commands = [shlex.split(line) for line in block.replace("\\\n", "").splitlines()]
    assert [words[3] for words in commands] == ["test", "test", "rationalize"]
    for number, words in enumerate(commands):
        assert names_endpoint(ROOT / words[5]) is (number == 0)
        given = words[6:] or ["--endpoint.model=gpt-4o"]
        own = ["--data.train_size=3", f"--endpoint.urls=[{server.url}]"]
        rbft(tmp_path, words[3], *small(NOWHERE), *given, *own, "--endpoint.key_variable=null")
    assert sorted(path.name for path in (tmp_path / LOGS / "small").glob("endpoint-*")) == [
        "endpoint-gpt-4o",
        "endpoint-smarthome",
    ]
    assert rationales(tmp_path).name.startswith("miniature0-gpt-4o-2024-08-06-rationale-")
    assert server.sent.total() == 5 + 5 + 3


def names_endpoint(file: Path) -> bool:
    """Whether an experiment file names an endpoint."""
    return "endpoint" in yaml.safe_load(file.read_text(encoding="utf-8"))
