"""Rationale-bootstrapped fine-tuning of vision-language models for video classification."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rbft.api import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # Not imported above: torch takes seconds, and many commands do without it.
    if name == "load":
        from rbft.api import load

        return load
    raise AttributeError(f"module 'rbft' has no attribute '{name}'")
