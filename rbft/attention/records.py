"""What was read of each clip, a JSON file each, so that a killed command goes on."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbft.runs.record import digest
from rbft.runtime.files import write_json

MAPS = "maps"  # folder within that of the output


@dataclass(frozen=True)
class Records:
    """The files of a run, or of a control of it, in one folder.

    Attributes:
        folder: Where they stand.
        made_from: What determines them, beside the clip.
    """

    folder: Path
    made_from: Mapping[str, Any]

    @classmethod
    def of(cls, output: Path, run: str, made_from: Mapping[str, Any]) -> "Records":
        """Those in an output folder.

        Args:
            output: The folder.
            run: Name of the run, or of a control of it.
            made_from: What determines them: made from something else, they stand elsewhere.
        """
        return cls(output / MAPS / f"{file_name(run)}-{digest(made_from)[:8]}", made_from)

    def read(self, clip: str, about: Mapping[str, Any]) -> dict[str, Any] | None:
        """What was read of a clip; None where there is nothing, or about another video.

        Args:
            clip: Id of the clip.
            about: What determines the record of this clip: its video, segment and label.
        """
        file = self._file(clip)
        if not file.exists():
            return None
        found = json.loads(file.read_text(encoding="utf-8"))
        made = json.loads(json.dumps(dict(self.made_from)))
        same = found["about"] == dict(about) and found["made_from"] == made
        return found if same else None

    def write(self, clip: str, about: Mapping[str, Any], content: Mapping[str, Any]) -> None:
        """Keeps what was read of a clip.

        Args:
            clip: Id of the clip.
            about: See `read`.
            content: What was read.
        """
        whole = {"id": clip, **content, "about": dict(about), "made_from": dict(self.made_from)}
        write_json(self._file(clip), whole)

    def _file(self, clip: str) -> Path:
        return self.folder / f"{file_name(clip)}.json"


def file_name(text: str) -> str:
    """A file name for an id, which may hold anything; other ids have other names."""
    plain = re.sub(r"[^\w.-]+", "_", text, flags=re.ASCII).strip("._")[:80]
    if plain and plain == text:
        return plain
    known = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:8]
    return f"{plain}-{known}" if plain else known
