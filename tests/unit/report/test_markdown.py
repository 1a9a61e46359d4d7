"""The report's tables as Markdown: the same figures, whatever names hold."""

import re

import pytest

from rbft.report.markdown import as_markdown
from tests.report_runs import EVIL


@pytest.fixture(scope="module")
def text(content) -> str:
    return as_markdown(content, f"Runs {EVIL}")


def tables(text: str) -> dict[str, list[list[str]]]:
    """Cells of each table by its heading."""
    found = {}
    for title, lines in re.findall(r"^### ([^\n]+)\n\n((?:\|[^\n]*\n?)+)", text, re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines.splitlines()]
        found[title] = [[cell.strip() for cell in row] for row in rows]
    return found


def test_every_table_of_the_page_is_there_with_its_figures(content, text):
    found = tables(text)
    shown = [one for part in content.sections for one in part.tables if not one.folded]
    assert len(shown) == len(found) > 12
    for table in shown:
        header, rule, *rows = found[table.title]
        assert header == list(table.columns)
        assert set(rule) == {"---"}
        assert len(rows) == len(table.rows)
        for row, expected in zip(rows, table.rows, strict=True):
            assert len(row) == len(expected.cells)
            figures = [cell.text for cell in expected.cells if cell.value is not None]
            assert [one for one in row if one.replace("&lt;", "<") in figures] == [
                one.replace("<", "&lt;") for one in figures
            ]
    for table in shown:
        for note in table.notes:
            assert re.sub(r"[<>&]", "", note)[:30] in text


def test_what_nobody_has_run_is_left_to_the_page(content, text):
    assert "Table 1: SmartHome-LLM" in text
    assert "Table 2" not in text
    assert content.sections[1].tables[-1].folded


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a|b", r"a\|b"),
        ("<script>x</script>", "&lt;script&gt;x&lt;/script&gt;"),
        ("two\nlines", "two lines"),
        ("[a](javascript:b)", r"[a]\(javascript:b)"),
        ("**bold** `code` \\n", r"\*\*bold\*\* \`code\` \\n"),
        ("smarthome_qwen25 _it_", r"smarthome_qwen25 \_it\_"),
        ("71.3 [66.0, 76.1]", "71.3 [66.0, 76.1]"),
        ("a & b", "a &amp; b"),
        ("~~gone~~", r"\~\~gone\~\~"),
    ],
)
def test_what_names_hold_is_shown_as_it_is(content, given, expected):
    assert as_markdown(content, given).splitlines()[0] == f"# {expected}"


def test_no_markup_of_a_run_is_left(text):
    assert not re.search(r"<(?!/?$)[a-z/!]", text)
    assert text.startswith("# Runs &lt;/script&gt;")
