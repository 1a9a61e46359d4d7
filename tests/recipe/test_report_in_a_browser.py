"""The report in Chromium: opened, filtered, sorted, by mouse and keys, light, dark, on a phone."""

import json
from pathlib import Path

import pytest

from rbft.report.content import build_content
from rbft.report.gather import gather
from rbft.report.page import as_page
from tests.browser import PROGRAM, Browser, browsing
from tests.report_runs import EVIL, write_logs

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="chromium is not installed"),
]
TITLE = f"Runs {EVIL}"
SCORES = "#scores table.sortable"
# Elements with text of their own whose contrast with what is behind them is too low (WCAG 2, AA).
CONTRAST = """
(() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const over = (top, under) => {
    const share = top.length > 3 ? top[3] : 1;
    return [0, 1, 2].map((n) => share * top[n] + (1 - share) * under[n]);
  };
  const behind = (node) => {
    const own = node ? parts(getComputedStyle(node).backgroundColor) : [255, 255, 255];
    return own.length > 3 && own[3] < 1 ? over(own, behind(node.parentElement)) : own.slice(0, 3);
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((part) => {
      const share = part / 255;
      return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const text = [...node.childNodes].some((one) => one.nodeType === 3 && one.data.trim());
    if (!text || ["SCRIPT", "title"].includes(node.tagName) || !node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    const back = behind(node);
    const svg = node.ownerSVGElement !== undefined && node.ownerSVGElement !== null;
    const given = over(parts(svg ? style.fill : style.color), back);
    const front = over([...given, Number(style.opacity)], back);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push(`${node.tagName} ${node.className} ${ratio.toFixed(2)}`);
  }
  return [...new Set(found)];
})()
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    content = build_content(gather(write_logs(folder / "logs")))
    page = folder / "report.html"
    page.write_text(as_page(content, TITLE, 5_000_000, None).text, encoding="utf-8")
    return page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory):
    with browsing(tmp_path_factory.mktemp("browser")) as made:
        yield made


@pytest.fixture
def page(browser: Browser, file: Path):
    """The page, opened anew; whatever is done with it, the console must have no errors."""
    browser.complaints.clear()
    browser.size(1280, 900)
    browser.scheme("light")
    browser.open(file)
    yield browser
    assert browser.run("document.title") == TITLE
    assert browser.complaints == []


def visible(page: Browser, selector: str) -> list[str]:
    """Texts of the elements that are to be seen."""
    return page.run(
        f"[...document.querySelectorAll({selector!r})].filter((one) => one.checkVisibility())"
        ".map((one) => one.textContent)"
    )


def column(page: Browser, number: int) -> list[str]:
    """Texts of a column of the table of scores, from 1."""
    return visible(page, f"{SCORES} tbody tr > :nth-child({number})")


def said(page: Browser) -> str:
    """How many runs are shown; a form is reset after its event."""
    page.run("new Promise((done) => setTimeout(() => done(true), 10))")
    return page.run("document.getElementById('shown').textContent")


def test_it_opens_with_everything_shown(page):
    assert said(page) == "9 runs"
    assert len(visible(page, "section")) == 12
    assert len(set(column(page, 1))) == 8 + 1
    assert len(visible(page, "#curves svg")) == 2
    assert visible(page, "form label")[0].startswith("runs")
    # Curves take as much room as a picture of their size.
    assert page.run("document.querySelector('#curves svg').getBoundingClientRect().height") > 150


def test_foreign_markup_is_shown_and_not_run(page):
    assert page.run("document.querySelector('h1').textContent") == TITLE
    assert page.run("document.querySelectorAll('img:not([src^=\"data:\"])').length") == 0
    assert any(EVIL in one for one in visible(page, "#attention h3"))


def test_runs_are_filtered_by_a_part_of_their_name(page):
    page.press("/")  # the search has the focus now
    page.type("QWEN25_")
    assert said(page) == "5 of 9 runs shown"
    names = set(column(page, 1))
    assert "smarthome_qwen2" not in names
    assert {"smarthome_qwen25_seed1", "smarthome_qwen25_less", "majority class"} <= names
    # The paper's own rows stay, those of other runs go.
    paper = visible(page, "#paper-1-title + .wide tbody tr")
    assert any(one.startswith("GPT-4.1") for one in paper)
    assert not any("ours: smarthome_qwen2_direct" in one for one in paper)
    assert any("ours: smarthome_qwen25" in one for one in paper)
    shown = page.run(  # of what is within an SVG, checkVisibility says nothing
        "[...document.querySelectorAll('#curves svg g[data-runs]')]"
        ".filter((one) => getComputedStyle(one).display !== 'none')"
        ".map((one) => one.querySelector('title').textContent)"
    )
    assert shown
    assert all("qwen25_" in one for one in shown)
    for matrix in visible(page, "#scores caption"):
        assert matrix.startswith("smarthome_qwen25_")
    page.press("Escape")  # leaves the field
    page.press("Escape")  # shows all
    assert said(page) == "9 runs"
    page.press("/")
    page.type("no such run")
    assert said(page) == "0 of 9 runs shown"
    assert set(column(page, 1)) == {"majority class"}
    page.click("button[type=reset]")
    assert said(page) == "9 runs"


def test_runs_are_chosen_one_by_one_with_the_mouse(page):
    page.click("#choose summary")
    assert len(visible(page, "#choose label")) == 9
    page.click('#choose input[data-name="smarthome_qwen2"]')
    assert said(page) == "8 of 9 runs shown"
    assert "smarthome_qwen2" not in column(page, 1)
    # A row about several runs is shown with any of them.
    page.click('#choose input[data-name="smarthome_qwen25_seed1"]')
    assert "smarthome_qwen25" in visible(page, "#seeds tbody th")
    page.click('#choose input[data-name="smarthome_qwen25_seed2"]')
    assert "smarthome_qwen25" not in visible(page, "#seeds tbody th")
    page.click('#choose input[data-name="smarthome_qwen25_seed1"]')
    page.click('#choose input[data-name="smarthome_qwen25_seed2"]')
    page.click('#choose input[data-name="smarthome_qwen2"]')
    assert said(page) == "9 runs"
    page.click("h1")
    assert page.run("document.getElementById('choose').open") is False


def test_runs_are_filtered_by_benchmark(page):
    page.run(
        "document.getElementById('benchmark').value = 'SmartHome';"
        "document.getElementById('benchmark').dispatchEvent(new Event('input', {bubbles: true}))"
    )
    assert said(page) == "9 runs"
    assert page.run("[...document.getElementById('benchmark').options].map((o) => o.value)") == [
        "",
        "SmartHome",
    ]


def header(number: int) -> str:
    return f"{SCORES} th:nth-child({number}) button"


def test_a_table_is_sorted_by_figures_and_by_names(page):
    before = column(page, 7)
    page.click(header(7))  # accuracy
    *scores, _, _, _, last = column(page, 7)
    figures = [float(one.partition(" ")[0]) for one in scores]
    assert figures == sorted(figures, reverse=True)
    assert sorted(column(page, 7)) == sorted(before)
    assert column(page, 1)[-4:] == ["majority class"] * 4
    assert last == before[-1] or float(last) > 0
    assert page.run(f"document.querySelector({SCORES!r} + ' [aria-sort]').textContent") == (
        "accuracy"
    )
    page.click(header(7))
    figures = [float(one.partition(" ")[0]) for one in column(page, 7)[:-4]]
    assert figures == sorted(figures)
    page.click(header(1))
    names = column(page, 1)[:-4]
    collated = "new Intl.Collator(undefined, {numeric: true}).compare"
    assert names == page.run(f"{json.dumps(names)}.sort({collated}).reverse()")
    assert page.run(f"document.querySelectorAll({SCORES!r} + ' [aria-sort]').length") == 1
    # Of the same length, a row goes with all its cells.
    first = page.run(f"document.querySelector({SCORES!r} + ' tbody tr').textContent")
    assert first.startswith(names[0])


def test_a_table_is_sorted_with_keys_alone(page):
    page.run(f"document.querySelector({header(5)!r}).focus()")
    page.press("Enter")
    clips = [int(one) for one in column(page, 5)[:-4]]
    assert clips == sorted(clips, reverse=True)
    assert clips[0] == 205
    page.press("Tab")
    assert page.run("document.activeElement.textContent") == "coverage %"


def test_the_first_tab_stop_leads_past_the_header(page):
    page.press("Tab")
    assert page.run("document.activeElement.className") == "skip"
    page.press("Enter")
    assert page.run("document.activeElement.id") == "main"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_in_light_and_dark(page, scheme):
    page.scheme(scheme)
    page.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    back = page.run("getComputedStyle(document.body).backgroundColor")
    assert back == {"light": "rgb(246, 246, 244)", "dark": "rgb(21, 23, 26)"}[scheme]
    assert page.run(CONTRAST) == []


def test_a_phone_scrolls_down_and_not_sideways(page, file):
    page.size(390, 844, phone=True)
    page.open(file)
    page.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    wide, room = page.run("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= room == 390
    # Tables are wider than the screen, and scroll within themselves.
    assert page.run(
        f"(() => {{ const box = document.querySelector({SCORES!r}).parentElement;"
        "return box.scrollWidth > box.clientWidth && box.clientWidth <= innerWidth; })()"
    )
    small = page.run(
        "[...document.querySelectorAll('body *')].filter((one) => one.checkVisibility()"
        " && [...one.childNodes].some((n) => n.nodeType === 3 && n.data.trim())"
        " && !one.closest('svg') && parseFloat(getComputedStyle(one).fontSize) < 11)"
        ".map((one) => one.tagName)"
    )
    assert small == []
    overlapping = page.run(
        "[...document.querySelectorAll('main td, main th')].filter((cell) => {"
        " if (!cell.checkVisibility()) return false;"
        " const text = document.createRange(); text.selectNodeContents(cell);"
        " return text.getBoundingClientRect().right > cell.getBoundingClientRect().right + 1;"
        "}).map((cell) => cell.textContent)"
    )
    assert overlapping == []


def test_without_scripts_everything_but_the_filters_is_there(page, file):
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(file)
        page.call("Emulation.setScriptExecutionDisabled", value=False)
        assert len(visible(page, "section")) == 12
        assert visible(page, "form") == []
        assert len(set(column(page, 1))) == 9
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)
