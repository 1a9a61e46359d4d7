"""`batch`: requests into files, results into the store, and the rest by the command itself."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.endpoint_server import completion, serving
from tests.recipe.runs import LOGS, ROOT, command_blocks, rbft, read_lines, small

pytestmark = pytest.mark.recipe
NOWHERE = Path("no/backbone/is/here")
BATCHES = LOGS / "batches"


def options(*more: str, url: str = "http://127.0.0.1:9/v1") -> list[str]:
    return small(
        NOWHERE,
        "--endpoint.model=tiny-vl",
        f"--endpoint.urls=[{url}]",
        "--endpoint.key_variable=null",
        "--endpoint.attempts=1",
        *more,
    )


def result(line: dict[str, Any], text: str) -> dict[str, Any]:
    """What a batch API says about a request."""
    response = {"status_code": 200, "body": completion("", text=text)}
    return {"custom_id": line["custom_id"], "response": response, "error": None}


def turned_down(line: dict[str, Any]) -> dict[str, Any]:
    body = {"error": {"message": "too long"}}
    return {"custom_id": line["custom_id"], "response": {"status_code": 400, "body": body}}


def write(file: Path, lines: list[dict[str, Any]]) -> None:
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def page_s_commands() -> list[list[str]]:
    """Those of docs/rationales.md, without the experiment file."""
    page = (ROOT / "docs/rationales.md").read_text(encoding="utf-8")
    block = next(one for one in command_blocks(page) if "-m rbft batch" in one)
    return [[words[3], *words[6:]] for words in map(shlex.split, block.splitlines())]


def test_half_a_batch_and_the_rest_from_a_server(tmp_path, capsys):
    """Of five clips two are answered, one is turned down, and two are in no file."""
    (writes, *no_option), (reads, *read), (asks, *_) = page_s_commands()
    assert (writes, reads, asks, no_option) == ("batch", "batch", "test", [])
    rbft(tmp_path, writes, *options())
    said = capsys.readouterr().out
    assert "tiny-vl: 5 of 5 requests of test written.\n" in said
    assert f"\n  {BATCHES / 'tiny-vl-test-00001.jsonl'} (" in said
    lines = read_lines(tmp_path / BATCHES / "tiny-vl-test-00001.jsonl")
    assert [one["url"] for one in lines] == ["/v1/chat/completions"] * 5
    output = [result(lines[3], "abnormal"), result(lines[0], "normal")]
    write(tmp_path / "output.jsonl", output)
    write(tmp_path / "errors.jsonl", [turned_down(lines[1])])
    rbft(tmp_path, reads, *options(*read))
    said = capsys.readouterr().out
    ids = [one["custom_id"] for one in lines]
    assert f"tiny-vl: 2 answered; 1 failed ({ids[1]}); 2 missing ({ids[2]}, {ids[4]}). " in said
    assert f"  1 failed: {ids[1]} (HTTP 400: too long)\n" in said
    assert "3 are without an answer: python -m rbft test asks the server for them, and " in said
    with serving(text=lambda prompt, number: "normal") as server:
        rbft(tmp_path, asks, *options(url=server.url))
        assert server.sent.total() == 3
        # What the files hold is what a server is sent.
        sent = [json.dumps(body, sort_keys=True) for body in server.bodies]
        asked = [json.dumps(lines[n]["body"], sort_keys=True) for n in (1, 2, 4)]
        assert sorted(sent) == sorted(asked)
    rows = read_lines(tmp_path / LOGS / "small/endpoint-tiny-vl/test_predictions.jsonl")
    assert [row["id"] for row in rows] == ids
    assert [row["prediction"] for row in rows] == [*["normal"] * 3, "abnormal", "normal"]
    # Everything is answered now: no file.
    rbft(tmp_path, "batch", *options())
    assert "0 of 5 requests of test written; 5 are answered already." in capsys.readouterr().out
    assert list((tmp_path / BATCHES).glob("*-0*.jsonl")) == []


def test_what_a_batch_costs_is_said_and_limited(tmp_path, capsys):
    (tmp_path / "prices.yaml").write_text(
        "currency: USD\ndate: 2026-11-21\nsource: made up\n"
        "models:\n  tiny-vl: {input: 2.0, output: 8.0, image_tokens: 100}\n"
    )
    priced = options(f"--endpoint.prices={tmp_path / 'prices.yaml'}")
    rbft(tmp_path, "batch", *priced)
    found = re.search(
        r"They cost at most (\d+) tokens, (\S+) USD \(prices of 2026-11-21\);",
        capsys.readouterr().out,
    )
    assert found
    (line, *others) = read_lines(tmp_path / BATCHES / "tiny-vl-test-00001.jsonl")
    answers = sum(one["body"]["max_tokens"] for one in [line, *others])
    assert int(found[1]) > answers
    money = (2.0 * (int(found[1]) - answers) + 8.0 * answers) / 1e6
    assert float(found[2]) == pytest.approx(money, abs=5e-5)
    with pytest.raises(SystemExit, match="2"):
        rbft(tmp_path, "batch", *priced, f"--endpoint.max_money={money / 2}")
    assert (
        "error: No request file is written for tiny-vl: its 5 requests could pass "
        f"endpoint.max_money (at most {found[1]} tokens, {found[2]} USD; spent are 0 requests"
    ) in capsys.readouterr().err
    assert list((tmp_path / BATCHES).glob("*-0*.jsonl")) == []


def test_rationales_of_several_prompts_without_a_server(tmp_path, capsys):
    more = ["--data.train_size=2", "--prompts=[rationale, less]"]
    asks = ["--command=rationalize", "--path=b/r.jsonl"]
    rbft(tmp_path, "batch", *options(*more, *asks))
    lines = read_lines(tmp_path / "b/r-00001.jsonl")
    assert len(lines) == 4
    assert {one["custom_id"].partition("/")[0] for one in lines} == {"rationale", "less"}
    write(tmp_path / "out.jsonl", [result(one, f"About {one['custom_id']}.") for one in lines])
    rbft(tmp_path, "batch", *options(*more, *asks, "--results=[out.jsonl]"))
    said = capsys.readouterr().out
    assert "tiny-vl: 4 answered. " in said
    assert "python -m rbft rationalize with the same settings finds them." in said
    offline = ["--endpoint.offline=true"]
    rbft(tmp_path, "rationalize", *options(*more, *offline))
    for prompt in ("rationale", "less"):
        (file,) = (tmp_path / LOGS / "rationales").glob(f"*-{prompt}-*.jsonl")
        written = {one["id"]: one["rationale"] for one in read_lines(file)}
        assert len(written) == 2
        assert written == {name: f"About {prompt}/{name}." for name in written}
    with pytest.raises(SystemExit, match="2"):
        rbft(tmp_path, "batch", *options(*more, *asks))
    assert (
        "error: rationalize has nothing to ask: every clip has its rationale, or there are no "
        "clips." in capsys.readouterr().err
    )
    with pytest.raises(SystemExit, match="2"):
        rbft(tmp_path, "batch", *options(*asks, "--results=[out.jsonl]", "--endpoint.model=other"))
    assert (
        "error: The batch b/r.jsonl was written with model 'tiny-vl', and now it is 'other'. Read "
        "it with the settings that it was written with." in capsys.readouterr().err
    )
    assert not (tmp_path / LOGS / "endpoints/other.jsonl").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--endpoint=null"],
            "error: batch writes down what an endpoint is asked, and there is none. Name its model "
            "with --endpoint.model.",
        ),
        (
            ["--prompts=[less]"],
            "error: --prompts [less] is for --command rationalize; test has one prompt. Leave it "
            "out.",
        ),
        (
            ["--command=validate"],
            "error: Miniature has no val split to ask about.",
        ),
    ],
)
def test_what_cannot_be_a_batch(tmp_path, capsys, more, message):
    with pytest.raises(SystemExit, match="2"):
        rbft(tmp_path, "batch", *options(*more))
    assert message in capsys.readouterr().err


def test_videos_that_have_gone_are_no_batch(tmp_path, monkeypatch):
    from rbft.data.clip_reader import ClipReader

    def gone(self: ClipReader, clip: Any) -> Any:
        raise ValueError("The folder of the videos has gone.")

    monkeypatch.setattr(ClipReader, "decode", gone)
    with pytest.raises(ValueError, match=r"^The folder of the videos has gone\."):
        rbft(tmp_path, "batch", *options())
    assert list((tmp_path / BATCHES).glob("*.jsonl")) == []
