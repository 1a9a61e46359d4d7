"""How figures are shown: the machine they were taken on, and medians with their spread."""

import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version


def machine(*packages: str) -> str:
    """Processor, Python and versions in one line."""
    facts = [platform.machine(), f"{os.cpu_count()} cores", f"Python {platform.python_version()}"]
    return ", ".join([*facts, *(f"{name} {version(name)}" for name in packages)])


def middle(values: Sequence[float], form: str = ".2f") -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"
