"""The figures of experiments/README.md are those of `rbft/report/paper.yaml`, row by row."""

import re

import pytest

from rbft.report.paper import paper_tables
from tests.recipe.runs import EXPERIMENTS

README = (EXPERIMENTS / "README.md").read_text(encoding="utf-8")
SECTIONS = dict(
    re.findall(r"^## Table (\d)[^\n]*\n(.*?)(?=^## )", README, re.MULTILINE | re.DOTALL)
)
# Not run by rbft, so that they have no line there: the file, and what is in the report alone.
ONLY_HERE = {"UniFormerV2", "InternVideo2"}
ONLY_THERE = {"any server"}


def lines(section: str) -> list[tuple[str, str, str, list[float] | None]]:
    """Backbone, method, file and figures of each line of a table."""
    found, backbone = [], ""
    for line in re.findall(r"^\|(.+)\|$", section, re.MULTILINE)[2:]:
        first, *others = (one.strip() for one in line.split("|"))
        if re.match(r"P_|none", first):  # the table of prompts has no column of backbones
            method, rest = first, others
        else:
            backbone, (method, *rest) = first or backbone, others
        file, figures = rest[0].strip("`").removesuffix(".yaml"), rest[1:]
        shown = [float(one) for one in figures] if all(figures) else None
        found.append((backbone, method, file, shown))
    return found


@pytest.mark.parametrize("table", [one for one in paper_tables() if one.number != 5])
def test_the_readme_and_the_report_have_the_same_figures(table):
    expected = [
        (
            "" if table.number == 6 else row.backbone,
            row.method,
            row.experiment or "in every table",
            None if row.scores is None else list(row.scores),
        )
        for row in table.rows
        if row.backbone not in ONLY_HERE
    ]
    found = [one for one in lines(SECTIONS[str(table.number)]) if one[0] not in ONLY_THERE]
    # The last line of Table 1 names no backbone, as the one before it does not.
    found = [("" if "always" in one[1] else one[0], *one[1:]) for one in found]
    assert found == expected
    assert len(found) >= 4


@pytest.mark.skipif("5" not in SECTIONS, reason="the README has no Table 5")
def test_the_masked_rows_have_the_same_figures():
    """There the files are those that mask; in the report, those of the runs that are scored."""
    (table,) = (one for one in paper_tables() if one.number == 5)
    expected = [(row.method, row.frames, list(row.scores or ())) for row in table.rows]
    found = [
        (method, frames, figures)
        for method, frames, _, figures in lines(SECTIONS["5"])
        if "not in the paper" not in method
    ]
    assert found == expected
