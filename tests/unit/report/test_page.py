"""The page: well-formed, self-contained, everything escaped, within its size."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rbft.report.content import build_content
from rbft.report.gather import gather
from rbft.report.page import as_page
from rbft.report.videos import Videos
from tests.report_runs import EVIL, answers, settings, write_logs, write_run, write_video_of

VOID = ("meta", "img", "input", "line", "circle", "polyline")
ROOM = 5_000_000


class Page(HTMLParser):
    """What a browser would find in the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside.setdefault(tag, []).append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.inside[tag][-1] += data

    def attributes(self, tag: str, name: str) -> list[str | None]:
        return [found[name] for kind, found in self.tags if kind == tag and name in found]

    @property
    def ids(self) -> list[str | None]:
        return [found["id"] for _, found in self.tags if "id" in found]


@pytest.fixture(scope="module")
def text(content) -> str:
    return as_page(content, f"Runs {EVIL}", ROOM, None).text


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


def test_tags_are_closed_ids_are_unique_and_links_lead_somewhere(page):
    assert len(set(page.ids)) == len(page.ids) > 15
    for tag, name in (("a", "href"), ("section", "aria-labelledby"), ("div", "aria-labelledby")):
        for link in page.attributes(tag, name):
            assert str(link).lstrip("#") in page.ids
    assert {"runs", "paper", "scores", "seeds", "differences", "curves", "calibration"} <= {
        *page.ids
    }
    assert {"mistakes", "masking", "attention", "cost", "settings"} <= {*page.ids}


def test_every_row_has_a_cell_for_each_column(content, page):
    rows = [row for section in content.sections for table in section.tables for row in table.rows]
    widths = {
        len(table.columns) - len(row.cells)
        for section in content.sections
        for table in section.tables
        for row in table.rows
    }
    assert widths == {0}
    assert len([1 for tag, _ in page.tags if tag == "tr"]) > len(rows) > 100


def test_nothing_is_fetched_and_nothing_foreign_may_run(text, page):
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:|//)""", text)
    assert "url(" not in text
    assert "@import" not in text
    assert not any(tag in ("link", "iframe", "object", "base", "embed") for tag, _ in page.tags)
    assert all(str(one).startswith("data:image/") for one in page.attributes("img", "src"))
    for _, found in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in found)
    (policy,) = [p for p in page.attributes("meta", "content") if p and "default-src" in p]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for tag in ("style", "script"):
        (content,) = page.inside[tag]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_whatever_a_run_holds_is_shown_as_text(text, page):
    assert page.inside["title"][0] == f"Runs {EVIL}"  # those of curves follow
    assert page.inside["h1"] == [f"Runs {EVIL}"]
    assert "document.title='owned'" in "".join(page.inside["main"])
    assert text.count("<script>") == 1
    assert text.count("</script>") == 1
    assert f"bear {EVIL}" in "".join(page.inside["h3"])


def test_names_of_runs_classes_settings_and_files_are_escaped(tmp_path):
    name = "<b onclick=x>&amp;'\""
    given = settings(name, ["label"], model__backbone=EVIL.replace("/", "_"))
    folder = write_run(tmp_path, given, answers(20, 0.5, 0))
    write_run(tmp_path, settings("other", ["label"]), answers(20, 0.5, 0))
    (folder / "label/test-x.json").write_text("{")
    made = as_page(build_content(gather(tmp_path)), "Runs", ROOM, None)
    page = Page(made.text)
    assert not any("onclick" in found for _, found in page.tags)
    assert name in page.inside["th"]
    assert EVIL.replace("/", "_") in page.inside["td"]
    assert name in page.attributes("input", "data-name")


def test_clips_and_what_models_wrote_are_escaped(tmp_path):
    rows = answers(4, 0.0, 0, names={0: f"0 {EVIL}"})
    rows[1]["rationale"] = f"1 {EVIL}"
    rows[2]["text"] = f"2 {EVIL}"
    folder = write_run(tmp_path, settings("run", ["label"]), rows)
    clip = {"id": rows[3]["id"], "video": EVIL, "start": None, "end": None}
    (folder / "clips.json").write_text(json.dumps({"test": [clip]}))
    (tmp_path / "rationales").mkdir()
    line = {**clip, "rationale": f"3 {EVIL}", "model": f"4 {EVIL}"}
    (tmp_path / "rationales/r.jsonl").write_text(json.dumps(line) + "\n")
    content = build_content(gather(tmp_path))
    text = as_page(content, "Runs", ROOM, Videos(content.gathered.runs, tmp_path)).text
    assert text.count("<script>") == text.count("</script>") == 1
    page = Page(text)
    assert page.attributes("img", "src") == []
    shown = "".join(page.inside["main"])
    for number in range(5):
        assert f"{number} {EVIL}" in shown
    assert "the video is not where it was" in shown


def test_filters_and_tables_are_labelled(page):
    controls = [tag for tag, found in page.tags if tag in ("input", "select")]
    assert len(controls) == 2 + 9  # text, benchmark, and a box for each run
    labels = page.inside["label"]
    assert len(labels) == len(controls)  # each stands within its label
    assert all(one.strip() for one in labels)
    assert all(page.attributes("th", "scope"))
    images = [found for tag, found in page.tags if tag == "img"]
    assert images
    assert all(found["alt"] for found in images)
    assert all(page.attributes("svg", "aria-label"))
    assert page.attributes("html", "lang") == ["en"]


def test_what_a_filter_hides_names_its_runs(content, page):
    count = len(content.gathered.runs)
    numbers = [one for _, found in page.tags if (one := found.get("data-runs"))]
    assert len(numbers) > 100
    assert {int(one) for text in numbers for one in text.split()} == set(range(count))
    boxes = page.attributes("input", "value")
    assert boxes == [str(number) for number in range(count)]


def test_curves_and_reliability_are_drawn(page):
    drawn = [str(one) for one in page.attributes("svg", "aria-label")]
    assert any(one.startswith("train/loss of Stage II (labels) over optimiser") for one in drawn)
    assert any("smarthome_qwen2 ends at" in one for one in drawn)
    assert sum(one.startswith("Reliability of ") for one in drawn) == 8
    for points in page.attributes("polyline", "points"):
        for point in str(points).split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 340
            assert 0 <= y <= 200


def test_confusion_matrices_are_those_of_the_results(content, page):
    captions = page.inside["caption"]
    assert len(captions) == len(content.finals) == 8
    shown = "".join(page.inside["tbody"])
    final = content.gathered.run("smarthome_qwen2").final
    for count in final.confusion[:, :-1].ravel().tolist():
        assert str(count) in shown


def test_the_surest_mistakes_come_first_with_what_every_run_said(content, page):
    articles = [one for one in page.inside["article"] if "wrong" in one]
    assert len(articles) == 24
    first = articles[0]
    final = {run.name: run.final for run in content.gathered.runs if run.final}
    wrong = [
        (max(row["probabilities"].values()), row["id"], name)
        for name, result in final.items()
        for row in result.rows
        if row["prediction"] != row["label"]
    ]
    sure, clip, name = max(wrong)
    assert first.startswith(clip)
    assert f"{name}: " in first
    assert f"{100 * sure:.1f}\u00a0% wrong" in first


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    """Runs with a video of one clip, and where it is noted."""
    folder = tmp_path_factory.mktemp("filmed")
    logs = write_logs(folder / "logs", seeds=1)
    gathered = gather(logs)
    page = as_page(build_content(gathered), "Runs", ROOM, None).text
    clip = re.findall(r'<article class="mistake"[^>]*><h3>(clip_\d+\.mp4)', page)[0]
    write_video_of(logs, clip, folder / "cache")
    gathered = gather(logs)
    return build_content(gathered), Videos(gathered.runs, folder / "cache"), clip


def test_frames_are_shown_where_the_video_is_still_what_it_was(filmed):
    content, videos, _ = filmed
    made = as_page(content, "Runs", ROOM, videos)
    page = Page(made.text)
    assert made.pictures == 2 + 6  # strips of attention, frames
    assert made.dropped == 0
    images = [
        (found, Image.open(BytesIO(base64.b64decode(str(found["src"]).partition(",")[2]))))
        for tag, found in page.tags
        if tag == "img" and str(found["alt"]).startswith("frame at")
    ]
    assert len(images) == 6
    for found, image in images:
        assert image.size == (96, 64)
        assert (found["width"], found["height"]) == ("96", "64")
    assert images[0][0]["alt"] == "frame at 0.0 s"
    assert len({np.array(image).tobytes() for _, image in images}) == 6
    assert "Without frames: " in made.text
    assert "the run has not noted which video it is" in made.text


def test_a_page_keeps_its_size_by_leaving_pictures_out_and_says_so(filmed):
    content, videos, _ = filmed
    whole = as_page(content, "Runs", ROOM, videos)
    size = len(whole.text.encode())
    bare = len(as_page(content, "Runs", 1, videos).text.encode())
    for limit in (bare + 4_000, bare + 9_000, (size + bare) // 2):
        made = as_page(content, "Runs", limit, videos)
        assert len(made.text.encode()) <= limit
        assert made.dropped > 0
        assert made.pictures < whole.pictures
        assert f"{made.dropped} pictures are left out to keep the page within its size" in made.text
        assert made.notes == ()
        Page(made.text)


def test_a_page_that_is_too_large_without_pictures_says_so(filmed):
    content, videos, _ = filmed
    made = as_page(content, "Runs", 1000, videos)
    assert made.pictures == 0
    size = len(made.text.encode()) / 1e6
    assert made.notes == (
        f"Without any picture the page has {size:.1f} MB, more than --max_mb (0.001). Name fewer "
        "runs (--runs) to make it smaller.",
    )


def test_a_strip_that_is_gone_is_named(tmp_path):
    logs = write_logs(tmp_path / "logs", seeds=1)
    (logs / "attention/bear/strips/0.png").unlink()
    (logs / "attention/bear/strips/1.png").write_text("no picture")
    made = as_page(build_content(gather(logs)), "Runs", ROOM, None)
    text = "".join(Page(made.text).inside["section"])
    assert "smarthome_qwen25_direct_seed1: 0.png cannot be read." in text
    assert "smarthome_qwen25_seed1: 1.png cannot be read." in text
    assert made.notes[0].startswith("Not shown: ")


def test_what_there_is_not_is_said_once(tmp_path: Path):
    write_run(tmp_path, settings("run", []), answers(20, 1.0, 0))
    page = Page(as_page(build_content(gather(tmp_path)), "Runs", ROOM, None).text)
    assert "masking" not in page.ids
    missing = page.inside["section"][-1]
    for said in (
        "Seeds: No two runs differ",
        "Masked objects: No run was scored with masked frames.",
        "Learning curves: no run has left any.",
        "Surest mistakes: no final result",
    ):
        assert said in missing
