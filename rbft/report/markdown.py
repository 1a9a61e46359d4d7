"""The report's tables as Markdown, for a paper's appendix."""

import re

from rbft.report.content import Content
from rbft.report.tables import Row, Section, Table


def as_markdown(content: Content, title: str) -> str:
    """All tables, in the order of the page; figures and pictures stand on the page alone.

    Args:
        content: What the report says.
        title: Its heading.
    """
    parts = [f"# {_plain(title)}"]
    for section in content.sections:
        parts.append(_section(section))
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> str:
    parts = [f"## {_plain(section.title)}"]
    tables = [_table(one) for one in section.tables if not one.folded]
    parts += [_plain(section.about)] if section.about and (tables or not section.tables) else []
    parts += tables or ["No run here is a row of them."] * bool(section.tables)
    return "\n\n".join(parts)


def _table(table: Table) -> str:
    lines = [f"### {_plain(table.title)}", ""]
    lines.append(_line(table.columns))
    lines.append("|" + "|".join("---" for _ in table.columns) + "|")
    lines += [_row(one) for one in table.rows]
    if table.notes:
        lines += ["", *(f"- {_plain(note)}" for note in table.notes)]
    return "\n".join(lines)


def _row(row: Row) -> str:
    return _line(tuple(cell.text for cell in row.cells))


def _line(texts: tuple[str, ...]) -> str:
    return "| " + " | ".join(map(_plain, texts)) + " |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line and in one cell.

    Left alone is what means nothing where it stands: brackets that no link follows, and
    underscores within words.
    """
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*|~])", r"\\\1", line)
    line = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)
    return line.replace("](", "]\\(")
