"""What a rank did and when: spans of time, recorded as they end, for Chrome's and Perfetto's viewers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

now = time.perf_counter
"""The clock of all spans: seconds from an arbitrary point, which differs from machine to machine."""

Kind = Literal["step", "compute", "send", "receive", "reduce", "gather", "round", "wait", "update"]

_SUMS, _ROUNDS = "sums and gathers", "rounds"
_BESIDE = {"reduce": _SUMS, "gather": _SUMS, "round": _ROUNDS}
"""Of what goes on beside the rank's own work: the rows of a viewer that it has, as many as it takes."""


class Span(NamedTuple):
    """Something that took time.

    Attributes
    ----------
    kind : str
        A step holds the others. In a ``wait`` the rank can do nothing. A ``reduce``, the sum of a bucket of gradients,
        and a ``gather``, that of its parameters, go on beside the rest, and so does each ``round`` of a collective. The
        rest is the rank's own work.
    name : str
    start, stop : float
        Seconds, by `now`.
    """

    kind: Kind
    name: str
    start: float
    stop: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.stop - self.start


class Trace:
    """Collects the spans of a rank. Threads may add some at the same time; nobody reads them meanwhile.

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

    def shifted(self, seconds: float) -> list[Span]:
        """Return the spans on another clock, which shows so much more."""
        return [span._replace(start=span.start + seconds, stop=span.stop + seconds) for span in self.spans]


def chrome_trace(spans: Sequence[Sequence[Span]]) -> bytes:
    """Return the spans of all ranks in the Trace Event Format (JSON), which chrome://tracing and Perfetto read.

    Parameters
    ----------
    spans : sequence of sequence of Span
        By rank, on one clock.
    """
    first = min((span.start for mine in spans for span in mine), default=0.0)
    events = [event for rank, mine in enumerate(spans) for event in _events(rank, mine, first)]
    return json.dumps({"displayTimeUnit": "ms", "traceEvents": events}).encode()


def _events(rank: int, spans: Sequence[Span], first: float) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}"}}
    yield {"ph": "M", "name": "process_sort_index", "pid": rank, "args": {"sort_index": rank}}
    rows = _rows(spans)
    for number, (name, row) in enumerate(rows):
        yield {"ph": "M", "name": "thread_name", "pid": rank, "tid": number, "args": {"name": name}}
        yield {"ph": "M", "name": "thread_sort_index", "pid": rank, "tid": number, "args": {"sort_index": number}}
        for span in row:
            microseconds = {"ts": (span.start - first) * 1e6, "dur": span.seconds * 1e6}
            yield {"ph": "X", "name": span.name, "cat": span.kind, "pid": rank, "tid": number} | microseconds


def _rows(spans: Sequence[Span]) -> list[tuple[str, list[Span]]]:
    """Return names and spans of a rank's rows: viewers show spans of one row only if one holds the other, or none."""
    rows = [("the rank's own work", [span for span in spans if span.kind not in _BESIDE])]
    for name in (_SUMS, _ROUNDS):
        beside: list[list[Span]] = []
        for span in sorted((span for span in spans if _BESIDE.get(span.kind) == name), key=lambda span: span.start):
            row = next((row for row in beside if row[-1].stop <= span.start), None)
            if row is None:
                beside.append([span])
            else:
                row.append(span)
        rows += [(name, row) for row in beside]
    return rows
