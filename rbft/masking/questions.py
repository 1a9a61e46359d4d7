"""What models are asked about objects, and the names in their answers."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rbft.masking.formats import FormatName

FILE = Path(__file__).with_name("questions.yaml")
LONGEST = 60  # characters of a name; what is longer is a sentence


@dataclass(frozen=True)
class Questions:
    """The questions about a benchmark's objects.

    Attributes:
        count: How many objects are wanted.
        form: How the model writes boxes; None where it is not asked for any.
    """

    count: int
    form: FormatName | None = None

    @property
    def names(self) -> str:
        """Asks for the names of a clip's objects."""
        return _words()["names"].replace("{count}", str(self.count))

    def boxes(self, names: Sequence[str]) -> str:
        """Asks for the boxes of objects in a frame.

        Args:
            names: Their names; empty leaves it to the model what matters.
        """
        assert self.form is not None
        apart = " ; " if self.form == "paligemma" else ", "
        wanted = apart.join(names) or _words()["salient"].replace("{count}", str(self.count))
        return _words()["boxes"][self.form].replace("{objects}", wanted)


def parse_names(answer: str, count: int) -> list[str]:
    """The names in an answer: a JSON list, also one that was cut off, else lines or commas.

    Args:
        answer: The answer.
        count: How many are taken at most; each counts once, whatever its case.
    """
    start = answer.find("[")
    if start >= 0:
        try:
            found, _ = json.JSONDecoder().raw_decode(answer, start)
            names = [one for one in found if isinstance(one, str)]
        except ValueError:
            names = re.findall(r'"([^"]+)"', answer[start:])
    else:
        names = re.split(r"[\n,;]", answer)
    around = "\\s\"'*`"
    begin, end = rf"^[{around}•-]*(?:\d+[.)])?[{around}]*", rf"[{around}.]+$"
    names = [re.sub(f"{begin}|{end}", "", one) for one in names]
    kept = {one.casefold(): one for one in reversed(names) if 0 < len(one) <= LONGEST}
    return list(reversed(kept.values()))[:count]


@cache
def _words() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))
