"""How a number of things is divided: contiguous shares, equal within one."""

from __future__ import annotations


def share(size: int, index: int, count: int) -> tuple[int, int]:
    """Return (start, stop) of share `index` of `count` of a range of `size`; together they are the range, in order."""
    return index * size // count, (index + 1) * size // count
