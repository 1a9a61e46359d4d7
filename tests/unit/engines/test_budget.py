import threading
from pathlib import Path

import pytest

from rbft.engines.budget import Budget, Limits, Price, Prices, Spent
from rbft.engines.request import Answer
from rbft.engines.shared_file import SharedLines

TABLE = """\
currency: USD
date: 2026-11-21
source: https://example.org/pricing
models:
  gpt-4o: {input: 2.5, cached_input: 1.25, output: 10, image_tokens: 255}
  free: {input: 0, output: 0}
"""


def prices(tmp_path: Path, text: str = TABLE) -> Prices:
    file = tmp_path / "prices.yaml"
    file.write_text(text)
    return Prices.load(file)


def test_a_price_table_is_read(tmp_path: Path) -> None:
    made = prices(tmp_path)
    assert (made.currency, made.date, made.source) == (
        "USD",
        "2026-11-21",
        "https://example.org/pricing",
    )
    assert made.models == {"gpt-4o": Price(2.5, 10.0, 1.25, 255), "free": Price(0.0, 0.0)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is no YAML: "),
        ("- a", "must have the keys currency, date, source, models and no others."),
        (TABLE + "tax: 1", "must have the keys currency, date, source, models and no others."),
        (TABLE.split("models")[0] + "models: 3", "models must give a price for each name."),
        (
            TABLE.replace("{input: 0, output: 0}", "{input: 0}"),
            "model free must give input and output, per million tokens, and may give cached_input "
            "and image_tokens; it gives {'input': 0}.",
        ),
        (
            TABLE.replace("output: 0}", "output: 0, outptu: 1}"),
            "and may give cached_input and image_tokens; it gives {'input': 0, 'output': 0, "
            "'outptu': 1}.",
        ),
        (TABLE.replace("input: 0", "input: -1"), "model free: input is -1; it must be a number"),
        (
            TABLE.replace("255", "2.5"),
            "model gpt-4o: image_tokens is 2.5; it must be a whole number.",
        ),
        (TABLE.replace("input: 0", "input: yes"), "model free: input is True; it must be a number"),
    ],
)
def test_a_table_that_says_something_else(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match="Price table") as error:
        prices(tmp_path, text)
    assert message in str(error.value)
    assert str(tmp_path / "prices.yaml") in str(error.value)


def test_what_a_budget_needs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist") as error:
        Prices.load(tmp_path / "no.yaml")
    assert str(error.value) == f"Price table {tmp_path / 'no.yaml'} does not exist."
    with pytest.raises(ValueError, match="has no model") as error:
        Budget("gpt-5", prices=prices(tmp_path))
    assert str(error.value) == (
        f"Price table {tmp_path / 'prices.yaml'} has no model gpt-5; it has gpt-4o, free. Add it "
        "with its input and output prices per million tokens."
    )
    with pytest.raises(ValueError, match="needs a price table") as error:
        Budget("gpt-4o", Limits(money=3.0))
    assert str(error.value) == (
        "A limit of money (3) needs a price table: a YAML file with the prices of gpt-4o per "
        "million tokens (docs/rationales.md has an example)."
    )
    with pytest.raises(ValueError, match="must be 0 or more") as error:
        Budget("gpt-4o", Limits(requests=-1))
    assert str(error.value) == "The limit of requests is -1; it must be 0 or more."


def test_costs(tmp_path: Path) -> None:
    budget = Budget("gpt-4o", prices=prices(tmp_path))
    answer = Answer("a", "answered", prompt_tokens=1000, completion_tokens=100, cached_tokens=400)
    cost = budget.cost(answer)
    assert cost is not None
    assert (cost.requests, cost.tokens) == (1, 1100)
    assert cost.money == pytest.approx((600 * 2.5 + 400 * 1.25 + 100 * 10) / 1e6)
    assert budget.cost(Answer("a", "answered", prompt_tokens=1000)) is None
    most = budget.at_most(1000, 100)
    assert (most.requests, most.tokens) == (1, 1100)
    assert most.money == pytest.approx(3500 / 1e6)
    assert budget.image_tokens == 255
    assert Budget("free").at_most(10, 1) == Spent(1, 11, 0.0)


@pytest.mark.parametrize("ledger", [False, True])
def test_reserves_come_back_and_unknown_costs_stay(tmp_path: Path, ledger: bool) -> None:
    file = tmp_path / "spent.jsonl" if ledger else None
    budget = Budget("a", Limits(tokens=100), file)
    tickets = [budget.reserve(Spent(1, 40))[0] for _ in range(2)]
    assert budget.reserve(Spent(1, 40)) == ("", "tokens")
    assert (budget.spent, budget.reserved) == (Spent(2, 80), Spent(2, 80))
    assert budget.waiting
    budget.settle(tickets[0], Spent(1, 5))
    assert budget.reserve(Spent(1, 55))[0]
    budget.settle(tickets[1], None)
    assert (budget.spent, budget.reserved) == (Spent(3, 100), Spent(1, 55))
    assert budget.reserve(Spent(1, 1)) == ("", "tokens")
    if file is not None:
        later = Budget("a", Limits(tokens=101), file)
        assert (later.spent, later.waiting) == (Spent(3, 100), False), "of a killed process"
        assert later.reserve(Spent(1, 1))[0]


def test_a_prompt_that_was_longer_than_expected_is_learnt_from() -> None:
    budget = Budget("a")
    ticket, _ = budget.reserve(budget.at_most(100, 10))
    budget.settle(ticket, Spent(1, 160), estimate=100, counted=150)
    assert budget.at_most(100, 10).tokens == 161
    ticket, _ = budget.reserve(budget.at_most(100, 10))
    budget.settle(ticket, Spent(1, 60), estimate=100, counted=50)
    assert budget.at_most(100, 10).tokens == 161


def test_budgets_of_one_ledger_are_one(tmp_path: Path) -> None:
    file = tmp_path / "spent.jsonl"
    one, two = (Budget("a", Limits(requests=5), file) for _ in range(2))
    taken = [one.reserve(Spent(1, 3))[0], *(two.reserve(Spent(1, 3))[0] for _ in range(4))]
    assert all(taken)
    assert one.reserve(Spent(1, 3)) == two.reserve(Spent(1, 3)) == ("", "requests")
    two.settle(taken[1], Spent(1, 1))
    assert one.reserve(Spent(1, 3)) == ("", "requests")
    assert one.spent == two.spent == Spent(5, 13)


def test_who_reserves_waits_for_who_is_at_it(tmp_path: Path) -> None:
    file = tmp_path / "spent.jsonl"
    budget = Budget("a", Limits(requests=5), file)
    thread = threading.Thread(target=budget.reserve, args=(Spent(1, 3),))
    with SharedLines(file).owned():  # as another process would
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert file.read_bytes() == b""
    thread.join(10)
    assert budget.spent == Spent(1, 3)


def test_a_damaged_ledger_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "spent.jsonl"
    budget = Budget("a", ledger=file)
    budget.reserve(Spent(1, 3))
    with file.open("a") as stream:
        stream.write('{"sent": "b"}\n')
    with pytest.raises(ValueError, match="line 2 is damaged") as error:
        Budget("a", ledger=file)
    assert str(error.value) == (
        f"{file}, line 2 is damaged. What was spent is not known: take the file from a backup, or "
        "remove it and set limits for what is left."
    )


def test_what_was_spent_in_words(tmp_path: Path) -> None:
    budget = Budget("gpt-4o", Limits(10, 5000, 0.5), None, prices(tmp_path))
    ticket, _ = budget.reserve(budget.at_most(1000, 100))
    assert budget.describe() == (
        "1 of 10 requests, 1100 of 5000 tokens, 0.0035 of 0.5 USD (prices of 2026-11-21)"
    )
    assert Budget("a").describe() == "0 requests, 0 tokens"
    assert ticket
