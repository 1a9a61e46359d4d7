"""The documents: links lead somewhere, every page is found from the README, commands name files."""

import re
from pathlib import Path

import pytest
import yaml

from tests.recipe.runs import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / name for name in ("experiments/README.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def links(page: Path) -> list[str]:
    """Where the page's relative links lead."""
    found = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    return [link for link in found if not link.startswith("http")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_in_commands_exist(page: Path) -> None:
    for link in links(page):
        assert (page.parent / link).exists(), link
    text = page.read_text(encoding="utf-8")
    for file in re.findall(r"--config[ =](experiments/\S+\.yaml)", text):
        assert (ROOT / file).exists(), file
    for file in re.findall(
        r"`((?:rbft|tests|tools|benchmarks|experiments|docs)/[\w/]+\.\w+)`", text
    ):
        assert (ROOT / file).exists(), file


def test_every_page_is_found_from_the_readme_and_the_readme_is_short() -> None:
    found = {(ROOT / link).resolve() for link in links(ROOT / "README.md")}
    assert {page for page in PAGES if page.parent.name == "docs"} <= found
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_what_is_said_of_faults_is_about_the_code_as_it_is() -> None:
    """`tests/mutation.yaml`: files, their tests, and lines in which no fault can be noticed."""
    about = yaml.safe_load((ROOT / "tests/mutation.yaml").read_text(encoding="utf-8"))
    for file, entry in about.items():
        code = " ".join((ROOT / file).read_text(encoding="utf-8").split())
        assert all((ROOT / "tests" / test).exists() for test in entry["tests"]), file
        for fault in (*entry.get("equivalent", ()), *entry.get("gpu", ())):
            assert " ".join(fault["was"].split()) in code, fault["was"]
