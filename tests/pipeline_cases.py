"""Schedules to test, and a naive twin of checker and simulator: one graph of all ranks' actions."""

from __future__ import annotations

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from hypothesis import strategies as st

from hpdl_mpi.parallel.pipeline import FAMILIES, Action, Op, Schedule, StageCost, make_schedule

NAMES = tuple(FAMILIES)


@st.composite
def schedules(draw: st.DrawFn, max_ranks: int = 5, max_microbatches: int = 9) -> Schedule:
    """Draw a schedule of any name and size, of computations only."""
    name = draw(st.sampled_from(NAMES))
    num_chunks = draw(st.integers(2, 3)) if name == "interleaved" else None
    num_ranks = draw(st.integers(1, max_ranks))
    return make_schedule(name, num_ranks, draw(st.integers(1, max_microbatches)), num_chunks)


costs = st.builds(StageCost, *(st.integers(1, 9).map(float) for _ in range(3)), message=st.integers(0, 5).map(float))

Node = tuple[str, int, int]
"""A kind of action, or "M_F" and "M_B" for a message, with stage and micro-batch of its sender."""


def node_of(action: Action) -> Node:
    """Return what stands for an action: one node for a send and its receive."""
    sender = {Op.RECV_F: action.stage - 1, Op.RECV_B: action.stage + 1}.get(action.op, action.stage)
    kind = {"SEND_F": "M_F", "RECV_F": "M_F", "SEND_B": "M_B", "RECV_B": "M_B"}.get(action.op, str(action.op))
    return kind, sender, action.microbatch


def data_needs(action: Action, schedule: Schedule, nodes: set[Node]) -> list[Node]:
    """Return the nodes whose results an action uses; a message where one crosses ranks."""
    stage, i = action.stage, action.microbatch

    def backward(s: int) -> Node:
        return ("B", s, i) if ("B", s, i) in nodes else ("I", s, i)

    def brought(kind: str, sender: int) -> Node:
        crosses = schedule.stage_ranks[sender] != schedule.stage_ranks[stage]
        if crosses and any(node[0] == "M_F" for node in nodes):
            return f"M_{kind}", sender, i
        return ("F", sender, i) if kind == "F" else backward(sender)

    last = schedule.num_stages - 1
    return {
        Op.F: lambda: [brought("F", stage - 1)] if stage else [],
        Op.I: lambda: [("F", stage, i)] + ([brought("B", stage + 1)] if stage < last else []),
        Op.B: lambda: [("F", stage, i)] + ([brought("B", stage + 1)] if stage < last else []),
        Op.W: lambda: [("I", stage, i)],
        Op.SEND_F: lambda: [("F", stage, i)],
        Op.SEND_B: lambda: [backward(stage)],
        Op.REDUCE: lambda: [node for node in nodes if node[0] in "WB" and node[1] == stage],
    }.get(action.op, list)()


def graph_of(schedule: Schedule) -> dict[Node, set[Node]]:
    """Return for each node what must come before it: its rank's action before, and what it uses."""
    nodes = {node_of(action) for action in schedule.actions()}
    graph: dict[Node, set[Node]] = {}
    for program in schedule.programs:
        for before, action in zip([None, *program], program, strict=False):
            needs = graph.setdefault(node_of(action), set())
            needs.update(data_needs(action, schedule, nodes))
            if before is not None:
                needs.add(node_of(before))
    return graph


def can_run(schedule: Schedule) -> bool:
    """Return whether no rank waits for ever, and each stage's micro-batches come in order."""
    for program in schedule.programs:
        for stage in range(schedule.num_stages):
            for ops in ("F", "IB", "WB"):
                order = [action.microbatch for action in program if action.stage == stage and action.op in ops]
                if order != sorted(order):
                    return False
    try:
        tuple(TopologicalSorter(graph_of(schedule)).static_order())
    except CycleError:
        return False
    return True


def longest_path(schedule: Schedule, stage_costs: Sequence[StageCost]) -> dict[Node, float]:
    """Return when each computation ends: each starts when the last of what it waits for has ended, and arrived."""
    ends: dict[Node, float] = {}
    graph = graph_of(schedule)
    before = {
        node_of(action): node_of(previous) for program in schedule.programs for previous, action in pairwise(program)
    }
    for node in TopologicalSorter(graph).static_order():
        kind, stage, _ = node
        start = 0.0
        for need in graph[node]:
            crosses = schedule.stage_ranks[need[1]] != schedule.stage_ranks[stage] and need != before.get(node)
            start = max(start, ends[need] + (stage_costs[min(need[1], stage)].message if crosses else 0.0))
        ends[node] = start + stage_costs[stage].seconds(Op(kind))
    return ends
