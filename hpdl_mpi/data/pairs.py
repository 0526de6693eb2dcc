"""Pairs of token sequences: a source to read, and a target to write."""

from __future__ import annotations

SOURCE, TARGET = "source", "target"
"""The arrays."""


def length_name(array: str) -> str:
    """Return the name of the array that holds the lengths of the sequences in another."""
    return f"{array}_length"
