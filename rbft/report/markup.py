"""Sections and tables as HTML, and by which runs a filter shows a thing."""

import math
from collections.abc import Iterable, Mapping, Set

from rbft.report.tables import Cell, Row, Section, Table
from rbft.runtime.html import plain

SHORT = 24  # letters of a text that stays on one line
Places = Mapping[str, int]  # number of each run, by name


def section_html(section: Section, places: Places, figures: str) -> str:
    """A section; empty where there is nothing to show."""
    if not section.tables and not figures:
        return ""
    about = f'<p class="about">{plain(section.about)}</p>' if section.about else ""
    tables = "".join(
        _table(one, f"{section.key}-{number}", places)
        for number, one in enumerate(section.tables, start=1)
    )
    return framed(section.key, section.title, about + tables + figures)


def framed(key: str, title: str, body: str) -> str:
    """A section with its heading.

    Args:
        key: Its id.
        title: The heading.
        body: HTML.
    """
    return (
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{plain(title)}'
        f"</h2>\n{body}</section>\n"
    )


def _table(table: Table, key: str, places: Places) -> str:
    numbers = {
        place for row in table.rows for place, one in enumerate(row.cells) if one.value is not None
    } - {0}
    head = "".join(
        _header(name, table.sortable, place in numbers) for place, name in enumerate(table.columns)
    )
    rows = "".join(_row(one, numbers, places) for one in table.rows)
    notes = "".join(f"<li>{plain(note)}</li>" for note in table.notes)
    kind = ' class="sortable"' if table.sortable else ""
    body = (
        f'<div class="wide" role="region" tabindex="0" aria-labelledby="{key}-title">'
        f"<table{kind}><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )
    title = f'<h3 id="{key}-title">{plain(table.title)}</h3>'
    if table.folded:
        return f"<details><summary>{title}</summary>{body}</details>\n"
    return f"<div>{title}{body}</div>\n"


def _header(name: str, sortable: bool, number: bool) -> str:
    shown = f'<button type="button">{plain(name)}</button>' if sortable else plain(name)
    return f'<th scope="col"{_kind(number)}>{shown}</th>'


def _row(row: Row, numbers: Set[int], places: Places) -> str:
    kind = f' class="{row.kind}"' if row.kind else ""
    first, *others = row.cells
    cells = f'<th scope="row"{_kind(False, first.text)}{_value(first)}>{plain(first.text)}</th>'
    cells += "".join(
        f"<td{_kind(place in numbers, one.text)}{_value(one)}>{plain(one.text)}</td>"
        for place, one in enumerate(others, start=1)
    )
    return f"<tr{kind}{shown_with(row.runs, places)}>{cells}</tr>\n"


def _kind(number: bool, text: str = "") -> str:
    kind = "number" if number else "short" if 0 < len(text) <= SHORT else ""
    return f' class="{kind}"' if kind else ""


def _value(cell: Cell) -> str:
    known = cell.value is not None and math.isfinite(cell.value)
    return f' data-value="{cell.value:.9g}"' if known else ""


def shown_with(names: Iterable[str], places: Places) -> str:
    """By which runs a filter shows it; nothing is shown always."""
    found = run_numbers(names, places)
    return f' data-runs="{found}"' if found else ""


def run_numbers(names: Iterable[str], places: Places) -> str:
    """The numbers of runs, as the page's script reads them."""
    return " ".join(str(places[name]) for name in dict.fromkeys(names) if name in places)
