"""A thousand requests to a server that goes wrong in every way, killed in between."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rbft.engines.budget import Budget, Limits
from rbft.engines.replay import ReplayStore
from tests.endpoint_server import Served, serving
from tests.recipe.runs import ROOT
from tests.unit.engines.many_requests import PRICES, engine, requests

COUNT = 1000
FAULTS = ["429", "429 after", "500", "503", "cut", "no JSON", "other JSON", "empty"]
PROGRAM = "tests.unit.engines.many_requests"
FINAL = {"refusal": "refused", "wrong model": "other_model", "filter": "refused"}


def plan(prompt: str) -> list[str]:
    """What goes wrong with a prompt, by its number: 28 % of them."""
    number = int(prompt.split()[1])
    if number % 100 == 7:
        return ["400"] * 99  # never answered
    if number % 100 == 8:
        return [list(FINAL)[number // 100 % 3]] * 99
    if number % 250 == 9:
        return ["slow"]
    if number % 4 == 1:
        return [FAULTS[number // 4 % len(FAULTS)]] * (1 + number % 3)
    return []


def kill_when(
    folder: Path,
    server: Served,
    answered: int,
    money: float,
    open: int,
    count: int,
    sent: signal.Signals = signal.SIGKILL,
) -> None:
    """Runs the program and ends it when the server has given so many answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", PROGRAM, folder, server.url, *map(str, (money, open, count))],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        for _ in range(6000):
            if server.answered.total() >= answered or process.poll() is not None:
                break
            time.sleep(0.01)
        assert process.poll() is None, "it ended before it was killed"
        assert server.answered.total() >= answered
    finally:
        process.send_signal(sent)
        process.wait(30)


def test_every_request_is_answered_or_named_once_though_killed_in_between(tmp_path: Path) -> None:
    money = 1.0
    with serving(plan, retry_after="0.01", slow=2.5, pause=0.002) as server:
        kill_when(tmp_path, server, 400, money, 24, COUNT)
        stored = ReplayStore(tmp_path / "answers.jsonl")
        before = {line["id"]: line for line in stored.lines()}
        assert 300 <= len(before) < 900
        sent_before = dict(server.sent)
        again = engine(tmp_path, server.url, money)
        found = list(again.answer(requests(COUNT)))
    # Every id once: answered, or named with its reason.
    ids = [answer.id for answer in found]
    assert sorted(ids) == [request.id for request in requests(COUNT)]
    for answer in found:
        number = int(answer.id[1:])
        expected = {7: "failed", 8: FINAL[list(FINAL)[number // 100 % 3]]}
        assert answer.status == expected.get(number % 100, "answered"), answer
        assert bool(answer.error) != answer.ok
        if answer.ok:
            assert answer.text == f"about prompt {number}"
    # None twice: what was stored when the kill came was not sent again.
    for id in before:
        prompt = f"prompt {int(id[1:])}"
        assert server.sent[prompt] == sent_before[prompt], prompt
    # None lost: what came before the kill and was not yet stored was asked once more at most.
    repeated = sum(count - 1 for count in server.answered.values() if count > 1)
    slow_or_empty = sum(plan(f"prompt {n}")[:1] in (["slow"], ["empty"]) for n in range(COUNT))
    assert repeated <= 24 + 3 * slow_or_empty
    assert len(again.store) == COUNT - sum(n % 100 == 7 for n in range(COUNT))
    lines = (tmp_path / "answers.jsonl").read_bytes().splitlines()
    assert len(lines) == len(again.store), "an answer stands in the store once"
    # Money: the ledger knows of at least what the server gave answers for, attempts included.
    budget = again.budget
    assert budget.spent.requests >= server.sent.total()
    assert budget.spent.requests <= server.sent.total() + 24
    real = server.answered.total() * (20 * 1.0 + 5 * 2.0) / 1e6
    assert real <= budget.spent.money <= money
    assert budget.reserved.requests <= 24, "of the killed process"


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_the_budget_holds_over_a_kill(tmp_path: Path, sent: signal.Signals) -> None:
    """With half of the money that all need: it stops in time, and the rest is named."""
    count = 300
    money = 0.5 * count * (20 * 1.0 + 5 * 2.0) / 1e6
    with serving(retry_after="0.01", pause=0.002) as server:
        kill_when(tmp_path, server, 60, money, 4, count, sent)
        ledger = Budget("tiny-vl", ledger=tmp_path / "spent.jsonl", prices=PRICES)
        assert bool(ledger.reserved.requests) == (sent == signal.SIGKILL)
        found = list(engine(tmp_path, server.url, money, 4).answer(requests(count)))
        requests_sent = server.sent.total()
        list(engine(tmp_path, server.url, money, 4).answer(requests(count)))
    assert server.sent.total() == requests_sent, "a third start sends nothing"
    real = server.answered.total() * (20 * 1.0 + 5 * 2.0) / 1e6
    spent = Budget("tiny-vl", Limits(money=money), tmp_path / "spent.jsonl", PRICES).spent
    assert real <= spent.money <= money
    assert real > 0.75 * money, "and not much too early"
    answered = [answer for answer in found if answer.ok]
    unsent = [answer for answer in found if answer.status == "not_sent"]
    assert len(answered) + len(unsent) == count
    assert all("the limit of money would be passed" in answer.error for answer in unsent)
