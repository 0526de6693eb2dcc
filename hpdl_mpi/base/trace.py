"""What a rank did and when: spans of time, recorded as they end."""

from __future__ import annotations

import time
from typing import Literal, NamedTuple

now = time.perf_counter
"""The clock of all spans: seconds from an arbitrary point, another one on each rank."""

Kind = Literal["compute", "send", "receive", "wait", "reduce", "update"]


class Span(NamedTuple):
    """Something that took time.

    Attributes
    ----------
    kind : str
        ``wait`` is time in which the rank could do nothing; the others are its own work.
    name : str
    start, stop : float
        Seconds, by `now`.
    """

    kind: Kind
    name: str
    start: float
    stop: float


class Trace:
    """Collects the spans of a rank. One thread at a time may use it.

    Attributes
    ----------
    spans : list of Span
        In the order in which they ended.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def add(self, kind: Kind, name: str, start: float) -> None:
        """Record what began at `start` and ends now."""
        self.spans.append(Span(kind, name, start, now()))
