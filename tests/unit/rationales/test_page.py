"""The page to read rationales in; what it does in a browser is seen where chromium is installed."""

import base64
import hashlib
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rbft.card import Card
from rbft.rationales.page import PageClip, PageRationale, film_strip, write_page
from rbft.rationales.quality import Flag
from rbft.rationales.sample import Sample

CARD = Card(
    name="yard",
    persona="guard",
    words={"normal": "normal", "abnormal": "abnormal"},
    prompts={"label": "Is it {words}?", "rationale": "Describe it."},
)
EVIL = (
    "<script>document.title='owned'</script></p></section><img src=x onerror=\"open()\">"
    "<style>*{display:none}</style>&lt;b&gt; \"quoted\" 'single' <!-- <iframe src=http://a.example>"
)
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


class Page(HTMLParser):
    """What a browser would find in the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside.setdefault(tag, []).append("")
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.inside[tag][-1] += data

    def attributes(self, tag: str, name: str) -> list[str | None]:
        return [found[name] for kind, found in self.tags if kind == tag and name in found]


def rationale(column: str, text: str, *flags: Flag, **more) -> PageRationale:
    return PageRationale(column, Sample("a", text, 0, **more), "writer-7b", flags)


def strip(width: int = 84, height: int = 84, count: int = 8):
    return film_strip(np.zeros((count, height, width, 3), dtype=np.uint8))


def clips() -> list[PageClip]:
    flag = Flag("a", 0, "refusal", "a sentence begins with 'sorry'", dropped=True)
    shown = Flag("b", 0, "class_words", "says normal", dropped=False)
    return [
        PageClip("a.mp4", "normal", strip(), (rationale("full", "Sorry, no dog.", flag),)),
        PageClip(
            "b.mp4",
            "abnormal",
            strip(160, 90),
            (
                rationale("full", "All is normal here.\n\nA cat sleeps.", shown, tokens=9),
                rationale("least", "A pale light.", label_conditioned=True),
            ),
        ),
        PageClip("c.mp4", None, (), (rationale("full", "A bird", number=1, finish="length"),)),
        PageClip("d.mp4", "normal", (), (), note="d.mp4 cannot be decoded."),
    ]


def written(tmp_path: Path, given: list[PageClip], about: str = "") -> str:
    path = tmp_path / "page.html"
    assert write_page(path, "Yard", iter(given), CARD, about) == len(given)
    return path.read_text(encoding="utf-8")


def test_every_clip_stands_with_its_texts_flags_and_facts(tmp_path):
    page = Page(written(tmp_path, clips(), "the rules & more"))
    assert page.attributes("section", "data-class") == ["normal", "abnormal", "no label", "normal"]
    assert page.inside["h2"] == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    chips = [one for one in page.attributes("span", "class") if one and "class " in one]
    assert chips == ["class hue0", "class hue1", "class hue", "class hue0"]
    assert page.inside["h3"] == ["full", "full", "least", "full sample 2"]
    assert page.attributes("article", "data-flags") == [
        "refusal",
        "class_words",
        "label_conditioned",
        "",
    ]
    assert page.attributes("article", "data-words") == ["3", "7", "3", "2"]
    assert page.attributes("article", "data-column") == ["0", "0", "1", "0"]
    assert page.inside["li"] == [
        "refusal: a sentence begins with 'sorry'",
        "class words: says normal",
        "label-conditioned: the writer was told the class",
    ]
    assert page.attributes("li", "class") == ["dropped", "shown", "told"]
    assert page.inside["mark"] == ["normal"]
    text = "".join(page.inside["main"])
    assert "7 words · 9 tokens · writer-7b" in text
    assert "2 words · length · writer-7b" in text
    assert "d.mp4 cannot be decoded." in text
    assert "nothing was written about this clip" in text
    assert page.inside["pre"] == ["the rules & more"]
    assert page.open == []


def test_what_can_be_chosen_is_counted(tmp_path):
    text = written(tmp_path, clips())
    options = re.findall(r'<option value="([^"]*)">([^<]*)</option>', text)
    assert options == [
        ("", "all"),
        ("normal", "normal (2)"),
        ("abnormal", "abnormal (1)"),
        ("no label", "no label (1)"),
        ("", "all"),
        ("any", "any flag (3)"),
        ("none", "no flag (1)"),
        ("refusal", "refusal (1)"),
        ("class_words", "class words (1)"),
        ("label_conditioned", "label-conditioned (1)"),
        ("", "all"),
        ("0", "full (3)"),
        ("1", "least (1)"),
    ]


def evil() -> list[PageClip]:
    flag = Flag("a", 0, "refusal", EVIL, dropped=True)
    one = PageRationale(EVIL, Sample(EVIL, EVIL, 0), EVIL, (flag,))
    return [PageClip(EVIL, EVIL, strip(), (one,), note=EVIL), *clips()]


def test_nothing_that_is_shown_is_taken_for_markup(tmp_path):
    path = tmp_path / "page.html"
    write_page(path, EVIL, evil(), CARD, EVIL)
    page, plain = Page(path.read_text(encoding="utf-8")), Page(written(tmp_path, clips(), "x"))
    for tag in ("script", "style", "img", "iframe"):
        extra = 8 if tag == "img" else 0  # the film strip
        assert page.attributes(tag, "onerror") == []
        assert len(page.inside.get(tag, [])) == len(plain.inside.get(tag, [])) + extra, tag
    assert page.inside["p"][2] == EVIL  # after noscript and the note
    assert page.inside["h2"][0] == page.inside["h1"][0] == page.inside["title"][0] == EVIL
    assert page.inside["pre"][0] == EVIL
    assert page.attributes("section", "data-class")[0] == EVIL
    assert page.open == []


def test_the_policy_allows_the_pages_own_script_and_style_and_no_network(tmp_path):
    text = written(tmp_path, clips())
    page = Page(text)
    policy = page.attributes("meta", "content")[0] or ""
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(content) == 1
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    assert page.attributes("img", "src") == page.attributes("script", "src") == []
    assert all(
        (one or "").startswith("data:image/jpeg") for one in page.attributes("img", "data-src")
    )
    assert "http://" not in text
    assert "https://" not in text
    assert not any("style" in attributes for _, attributes in page.tags)


def test_pictures_are_small_and_lazy(tmp_path):
    page = Page(written(tmp_path, clips()))
    assert page.attributes("img", "loading") == ["lazy"] * 16
    assert page.attributes("img", "height") == ["104"] * 16
    assert page.attributes("img", "width") == ["104"] * 8 + ["185"] * 8
    data = base64.b64decode((page.attributes("img", "data-src")[8] or "").partition(",")[2])
    assert Image.open(BytesIO(data)).size == (160, 90)
    strips = [attributes["class"] for tag, attributes in page.tags if tag == "div"]
    assert [one for one in strips if one and one.startswith("strip")] == [
        "strip",
        "strip wide",
        "strip",
        "strip",
    ]


def test_a_film_strip_has_the_first_the_last_and_what_is_between():
    frames = np.zeros((30, 300, 400, 3), dtype=np.uint8)
    frames[:] = np.arange(30, dtype=np.uint8)[:, None, None, None] * 8
    nearest = [0, 4, 8, 12, 17, 21, 25, 29]
    pictures = film_strip(frames, [0.5 * number for number in range(30)])
    assert [one.seconds for one in pictures] == [0.5 * number for number in nearest]
    assert {(one.width, one.height) for one in pictures} == {(171, 128)}
    for one, expected in zip(pictures, nearest, strict=True):
        image = np.asarray(Image.open(BytesIO(one.jpeg)))
        assert image.shape == (128, 171, 3)
        assert abs(image.mean() - 8 * expected) < 2
    assert len(film_strip(frames[:3])) == 3
    assert film_strip(frames[:1])[0].seconds is None
    assert len(film_strip(frames, count=4, height=64)) == 4
    assert film_strip(frames, height=64)[0].height == 64


def test_longer_columns_are_wider(tmp_path):
    text = written(tmp_path, clips())
    short, long = "x" * 10, "y" * 90
    one = PageClip("a", "normal", (), (rationale("s", short), rationale("l", long)))
    text = written(tmp_path, [one])
    assert '.rationale[data-column="0"] { flex-grow: 1.00; }' in text
    assert '.rationale[data-column="1"] { flex-grow: 3.00; }' in text


def test_strange_characters_are_shown(tmp_path):
    name = "\udcff.mp4"  # of a file whose name is no UTF-8
    one = PageClip(name, "normal", (), (rationale("full", "a\x00b\x1b[0m"),))
    text = written(tmp_path, [one])
    assert "\\udcff.mp4" in text
    assert "a\ufffdb\ufffd[0m" in text


def test_a_page_without_clips_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no clip to show") as error:
        write_page(tmp_path / "page.html", "Yard", [], CARD)
    assert str(error.value) == (
        f"There is no clip to show in {tmp_path / 'page.html'}. Have rationales written first, or "
        "name another split."
    )
    assert list(tmp_path.iterdir()) == []


def browse(tmp_path: Path, text: str) -> Page:
    """The page after its scripts ran."""
    path = tmp_path / "shown.html"
    path.write_text(text, encoding="utf-8")
    options = "--headless=new --no-sandbox --disable-gpu --virtual-time-budget=2000 --dump-dom"
    done = subprocess.run(
        [str(BROWSER), *options.split(), f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return Page(done.stdout.strip())


def shown(page: Page) -> str:
    return page.inside["span"][0]


@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
def test_in_a_browser_the_script_runs_and_foreign_markup_does_not(tmp_path):
    path = tmp_path / "page.html"
    write_page(path, "Yard", evil(), CARD)
    page = browse(tmp_path, path.read_text(encoding="utf-8"))
    assert shown(page) == "5 shown"
    assert page.inside["title"] == ["Yard"]
    assert len(page.attributes("img", "src")) == 24  # those that are near


ACTIONS = {
    "set('class', 'normal')": ("2 shown (4 in all)", []),
    "set('flag', 'refusal')": ("1 shown (4 in all)", []),
    "set('flag', 'any')": ("2 shown (4 in all)", []),
    "set('flag', 'none')": ("1 shown (4 in all)", []),
    "set('column', '1')": ("1 shown (4 in all)", ["0"]),
    "set('least', '7')": ("1 shown (4 in all)", ["1"]),
    "set('most', '3')": ("3 shown (4 in all)", ["0"]),
    "set('text', 'CAT')": ("1 shown (4 in all)", ["1"]),
    "set('text', 'b.MP4')": ("1 shown (4 in all)", []),
    "set('text', 'cat'); set('flag', 'refusal')": ("0 shown (4 in all)", []),
    "press('j'); press('j')": ("clip 2 of 4 shown", []),
    "press('j'); press('j'); press('k')": ("clip 1 of 4 shown", []),
    "press('k')": ("clip 1 of 4 shown", []),
    "for (let i = 0; i < 9; i++) press('j')": ("clip 4 of 4 shown", []),
    "set('class', 'abnormal'); press('j')": ("clip 1 of 1 shown (4 in all)", []),
    "set('class', 'abnormal'); press('Escape')": ("4 shown", []),
    "for (let i = 0; i < 9; i++) press('j'); set('flag', 'refusal')": ("1 shown (4 in all)", []),
    "press('j'); press('j'); set('flag', 'any')": ("clip 2 of 2 shown (4 in all)", []),
}


@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
def test_in_a_browser_filters_and_keys_do_what_they_say(tmp_path):
    text = re.sub(
        r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", written(tmp_path, clips())
    )
    calls = ",".join(f"() => {{ {action} }}" for action in ACTIONS)
    script = f"""<script>
    const put = (target, event) => target.dispatchEvent(event);
    const set = (name, value) => {{
      field(name).value = value;
      put(field(name), new Event("input", {{ bubbles: true }}));
    }};
    const press = (key) =>
      put(document.body, new KeyboardEvent("keydown", {{ key, bubbles: true }}));
    (async () => {{
      for (const call of [{calls}]) {{
        call();
        await new Promise((done) => setTimeout(done, 5));
        const dim = [...document.querySelectorAll(".clip:not([hidden]) .rationale.other")];
        const line = document.createElement("output");
        const lost = current < 0 && window.scrollY > 0 ? " scrolled away" : "";
        line.textContent =
          field("shown").textContent + lost + "|" + dim.map((n) => n.dataset.column);
        document.body.append(line);
        form.reset();
        await new Promise((done) => setTimeout(done, 5));
        current = -1;
        step(0);
      }}
    }})();
    </script></body>"""
    page = browse(tmp_path, text.replace("</body>", script))
    expected = [f"{said}|{','.join(dim)}" for said, dim in ACTIONS.values()]
    assert dict(zip(ACTIONS, page.inside["output"], strict=True)) == dict(
        zip(ACTIONS, expected, strict=True)
    )
