"""Spans as viewers read them."""

from __future__ import annotations

import json
from itertools import pairwise

from hpdl_mpi.base.trace import Span, chrome_trace


def test_what_goes_on_beside_the_rank_has_rows_of_its_own_without_overlaps() -> None:
    mine = [
        Span("compute", "0B0", 1.0, 5.0),
        Span("round", "round 1 of 2", 2.0, 4.0),
        Span("round", "round 2 of 2", 3.0, 5.0),
        Span("round", "round 1 of 2", 6.0, 7.0),
        Span("reduce", "bucket 1", 3.0, 6.0),
        Span("reduce", "bucket 0", 2.0, 4.0),
        Span("gather", "bucket 0", 6.5, 7.0),
        Span("wait", "totals", 5.0, 6.0),
        Span("step", "step 1", 1.0, 8.0),
    ]
    events = json.loads(chrome_trace([[], mine]))["traceEvents"]
    names = {(one["pid"], one["tid"]): one["args"]["name"] for one in events if one["name"] == "thread_name"}
    own, sums, rounds = "the rank's own work", "sums and gathers", "rounds"
    assert names == {(0, 0): own, (1, 0): own, (1, 1): sums, (1, 2): sums, (1, 3): rounds, (1, 4): rounds}
    kinds = {own: {"compute", "wait", "step"}, sums: {"reduce", "gather"}, rounds: {"round"}}
    for (rank, row), name in names.items():
        spans = [one for one in events if one["ph"] == "X" and (one["pid"], one["tid"]) == (rank, row)]
        assert {one["cat"] for one in spans} <= kinds[name]
        if row:
            assert all(one["ts"] + one["dur"] <= other["ts"] for one, other in pairwise(spans))
    assert sum(one["ph"] == "X" for one in events) == len(mine)
