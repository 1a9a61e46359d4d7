"""The miniature world: small clips, captions and a tiny base model, all made without a network."""

from pathlib import Path

BASE = Path(__file__).with_name("base")
"""Folder of the shipped base model; its `provenance.json` tells how it was made."""
