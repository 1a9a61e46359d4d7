"""What a source says of its parameters; that it says the same as the parsers stands beside."""

import subprocess
import sys
from pathlib import Path

import pytest

import rbft.commands.source
from rbft.commands.source import REQUIRED, Source, argument_texts

MODULE = '''
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional, Union

from rbft.near_source import LIMIT, Kind, Other
from rbft.stages import STAGES

if TYPE_CHECKING:
    from somewhere import Unknown

StageName: Any = Literal[tuple(STAGES)]
Both = Union[int, Kind]


@dataclass(frozen=True)
class Inner:
    """Settings.

    Args:
        size: How
            many.
        names: Names.
    """

    size: int
    names: Sequence[str] = field(default_factory=list)


class Thing:
    """A thing.

    Args:
        inner: Its settings: a few.
        **kwargs: Others.

    Raises:
        ValueError: Never.
    """

    def __init__(self, inner: Inner | None, stage: StageName = "label", **kwargs: Any) -> None:
        pass


def command(
    one: int,
    two: "Path | None" = None,
    *,
    three: Optional[Both] = LIMIT,
    four: dict[str, int] = {},
    five: list[Kind] = ["a"],
    six: Unknown = Path("a/b"),
    seven: float = -1.5,
    eight: tuple[Other, ...] = (),
    nine: float,
    bare=3,
) -> None:
    """Does it."""
'''
NEAR = """
from typing import Literal

Kind = Literal["a", "b"]
LIMIT = 3


class Other:
    pass
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module as part of rbft, in files of the test."""
    files = {"rbft.made_source": MODULE, "rbft.near_source": NEAR}
    written = {}
    for name, text in files.items():
        written[name] = tmp_path / f"{name}.py"
        written[name].write_text(text)
    find = rbft.commands.source._file
    monkeypatch.setattr(rbft.commands.source, "_file", lambda name: written.get(name) or find(name))
    monkeypatch.setattr(rbft.commands.source, "source", rbft.commands.source.Source)  # none is kept
    return "rbft.made_source"


def test_parameters_of_a_function(module: str) -> None:
    found = {one.name: (one.kinds, one.default) for one in Source(module).parameters("command")}
    assert found == {
        "one": (("whole number",), REQUIRED),
        "two": (("path", "null"), None),
        "three": (("whole number", "a", "b", "null"), 3),
        "four": (("{...}",), {}),
        "five": (("[a|b, ...]",), ["a"]),
        "six": (("Unknown",), "a/b"),
        "seven": (("number",), -1.5),
        "eight": (("[Other, ...]",), []),
        "nine": (("number",), REQUIRED),
    }


def test_parameters_of_a_class_and_of_its_settings(module: str) -> None:
    inner, stage = Source(module).parameters("Thing")
    assert (inner.name, inner.kinds, inner.text) == (
        "inner",
        ("settings", "null"),
        "Its settings: a few.",
    )
    assert [(one.name, one.kinds, one.default, one.text) for one in inner.nested] == [
        ("size", ("whole number",), REQUIRED, "How many."),
        ("names", ("[text, ...]",), [], "Names."),
    ]
    assert stage.default == "label"
    assert "label" in stage.kinds
    assert "rationale_class" in stage.kinds


def test_texts_of_arguments() -> None:
    doc = """Does it.

        Args:
            one: First: of two
                lines.

                And a paragraph.
            **two: Second.

        Returns:
            three: Nothing.
        """
    assert argument_texts(doc) == {"one": "First: of two lines. And a paragraph.", "two": "Second."}
    assert argument_texts("Does it.") == argument_texts(None) == {}


def test_nothing_is_imported_that_takes_long() -> None:
    code = (
        "import sys\n"
        "from rbft.commands.help_page import help_page\n"
        "from rbft.commands.misspelt import check_settings\n"
        "help_page('fit'), help_page('fit', 'trainer'), check_settings('fit', ['--name=x'])\n"
        "slow = ('torch', 'lightning', 'transformers', 'numpy', 'matplotlib')\n"
        "print([name for name in slow if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
