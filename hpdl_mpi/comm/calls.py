"""Which collectives a rank has begun, to find those that ranks do not share."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Mapping

import numpy as np

_REMEMBERED = 256
"""Calls that a group remembers, to name those that ranks do not share."""


class Calls:
    """The collectives that a rank has begun in a group, in order.

    Attributes
    ----------
    digest : int
        Of all of them; 32 bits.
    count : int
        How many there were.
    latest : deque of str
    """

    def __init__(self) -> None:
        self.digest = self.count = 0
        self.latest: deque[str] = deque(maxlen=_REMEMBERED)

    def add(self, what: str) -> None:
        """Note one that begins."""
        self.digest = zlib.crc32(what.encode(), self.digest)
        self.count += 1
        self.latest.append(what)

    def said(self, number: int) -> str:
        """Return what call 0, 1, ... was; it must not be older than the latest."""
        place = number - (self.count - len(self.latest))
        return self.latest[place] if place < len(self.latest) else "nothing"


def describe_collective(label: str, array: np.ndarray, way: str = "") -> str:
    """Return what tells a collective from others, the same on all ranks; `way` is how it goes, if there are several."""
    return f"{label}, {array.size} x {array.dtype}" + (f", {way}" if way else "")


def first_difference(histories: Mapping[int, Calls]) -> str:
    """Say what ranks called where they differed first, as far as is remembered, by rank."""
    start = max(calls.count - len(calls.latest) for calls in histories.values())
    stop = max(calls.count for calls in histories.values())
    for number in range(start, stop):
        said = {rank: calls.said(number) for rank, calls in histories.items()}
        if len({*said.values()}) > 1:
            return f"call {number + 1}: " + "; ".join(f"rank {rank}: {what}" for rank, what in said.items())
    return f"a difference before the last {_REMEMBERED} calls"
