"""Who of transformers' openers was told whether to run the code that comes with a backbone."""

from typing import Any

import pytest
import transformers

OPENED, EMPTY = "AutoModelForImageTextToText", "AutoModelForImageTextToText, empty"
OPENERS = (
    ("AutoConfig", "AutoConfig", "from_pretrained"),
    ("AutoProcessor", "AutoProcessor", "from_pretrained"),
    (OPENED, "AutoModelForImageTextToText", "from_pretrained"),
    (EMPTY, "AutoModelForImageTextToText", "from_config"),
)


def note_trust(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool | None]]:
    """Has every opener note its name and what it is told; they open as before.

    Returns:
        The notes, which grow; None where an opener was told nothing.
    """
    told: list[tuple[str, bool | None]] = []

    def noting(name: str, open_it: Any) -> Any:
        def call(*given: Any, **options: Any) -> Any:
            told.append((name, options.get("trust_remote_code")))
            return open_it(*given, **options)

        return call

    for name, owner, method in OPENERS:
        auto = getattr(transformers, owner)
        monkeypatch.setattr(auto, method, noting(name, getattr(auto, method)))
    return told
