"""Schedules: who computes what, and in which order. Compute only: messages are added by `passes`.

All but ZB-V are one staircase. A rank starts with some forwards; then each backward is followed by the next forward.
Weight gradients may lag behind: nobody waits for them, so they fill the time in which a rank would wait for others.

| schedule | forwards before the first backward, rank r of p | lag of weight gradients | most activations held |
|---|---|---|---|
| GPipe | m | 0 | m |
| 1F1B | p - r | 0 | p |
| ZB-H1 | p - r | r | p |
| ZB-H2 | 2 (p - r) - 1 | 2 r | 2 p - 1 |

Huang et al., "GPipe" (2019); Narayanan et al., "PipeDream" (2019) and "Efficient large-scale language model training on
GPU clusters" (2021, interleaving); Qi et al., "Zero bubble pipeline parallelism" (2024), "Pipeline parallelism with
controllable memory" (2024, ZB-V).
"""

from __future__ import annotations

from collections.abc import Callable

from hpdl_mpi.base.shares import share
from hpdl_mpi.parallel.pipeline.action import Action, Op, Program, Schedule, loop_placement, v_placement
from hpdl_mpi.parallel.pipeline.passes import merge_backward

_Pair = tuple[int, int]
"""Stage and micro-batch."""


def _staircase(forwards: list[_Pair], backwards: list[_Pair], warmup: int, lag: int) -> Program:
    """Return a rank's program: `warmup` forwards, then by turns a backward and a forward, dgrad `lag` before wgrad."""
    program = [Action(Op.F, *pair) for pair in forwards[:warmup]]
    for k, pair in enumerate(backwards):
        program.append(Action(Op.I, *pair))
        if k >= lag:
            program.append(Action(Op.W, *backwards[k - lag]))
        if warmup + k < len(forwards):
            program.append(Action(Op.F, *forwards[warmup + k]))
    program += [Action(Op.W, *late) for late in backwards[max(0, len(backwards) - lag) :]]
    return tuple(program)


def _one_stage_each(p: int, m: int, warmup: Callable[[int], int], lag: Callable[[int], int]) -> Schedule:
    """Return the schedule of one stage on each rank; `warmup` and `lag` are functions of the rank."""
    orders = [[(rank, i) for i in range(m)] for rank in range(p)]
    programs = tuple(_staircase(order, order, warmup(rank), lag(rank)) for rank, order in enumerate(orders))
    return Schedule(loop_placement(p, 1), m, programs)


def gpipe(num_ranks: int, num_microbatches: int) -> Schedule:
    """All forwards, then all backwards."""
    return merge_backward(_one_stage_each(num_ranks, num_microbatches, lambda rank: num_microbatches, lambda rank: 0))


def one_forward_one_backward(num_ranks: int, num_microbatches: int) -> Schedule:
    """GPipe's time with fewer activations: a micro-batch is finished before a new one is let in."""
    return merge_backward(_one_stage_each(num_ranks, num_microbatches, lambda rank: num_ranks - rank, lambda rank: 0))


def zb_h1(num_ranks: int, num_microbatches: int) -> Schedule:
    """A third of 1F1B's bubble with its memory."""
    return _one_stage_each(num_ranks, num_microbatches, lambda rank: num_ranks - rank, lambda rank: rank)


def zb_h2(num_ranks: int, num_microbatches: int) -> Schedule:
    """No bubble between the steps of a run, with twice the memory of 1F1B."""
    return _one_stage_each(num_ranks, num_microbatches, lambda rank: 2 * (num_ranks - rank) - 1, lambda rank: 2 * rank)


def interleaved(num_ranks: int, num_microbatches: int, num_chunks: int) -> Schedule:
    """1F1B with several stages on each rank, one after the other for groups of micro-batches; a shorter bubble.

    Groups have at least as many micro-batches as there are ranks, as far as there are enough.
    """
    p, m, v = num_ranks, num_microbatches, num_chunks
    num_groups = max(1, m // p)
    groups = [range(*share(m, group, num_groups)) for group in range(num_groups)]
    programs = []
    for rank in range(p):
        forwards = [(chunk * p + rank, i) for group in groups for chunk in range(v) for i in group]
        backwards = [(chunk * p + rank, i) for group in groups for chunk in reversed(range(v)) for i in group]
        warmup = (v - 1) * max(map(len, groups)) + 2 * (p - rank - 1) + 1
        programs.append(_staircase(forwards, backwards, warmup, 0))
    return merge_backward(Schedule(loop_placement(p, v), m, tuple(programs)))


def zb_v(num_ranks: int, num_microbatches: int) -> Schedule:
    """No bubble between the steps of a run, with 1F1B's memory: two stages on each rank, there and back."""
    p, n = num_ranks, max(num_microbatches, 2 * num_ranks - 1)
    programs = []
    for r in range(p):
        phases = [
            (2 * (p - r) - 1, "F0"),
            (r, "F1 F0"),
            (p - r, "F1 I1 W1"),
            (n - 2 * p + r + 1, "F0 I0 W0 F1 I1 W1"),
            (p - r - 1, "I0 W0 F1 I1 W1"),
            (r, "I0 I1"),
            (p - r, "I0 W0"),
            (r, "W1"),
            (r, "W0"),
        ]
        stages = {"0": r, "1": 2 * p - 1 - r}
        done: dict[str, int] = {}
        program = []
        for word in (word for count, words in phases for word in words.split() * count):
            program.append(Action(Op(word[0]), stages[word[1]], done.get(word, 0)))
            done[word] = done.get(word, 0) + 1
        # written for at least 2 p - 1 micro-batches: with fewer, the rest is left out
        programs.append(tuple(action for action in program if action.microbatch < num_microbatches))
    return Schedule(v_placement(p), num_microbatches, tuple(programs))


def forward_only(stage_ranks: tuple[int, ...], num_microbatches: int) -> Schedule:
    """Evaluation and prediction.

    Where stages go around, groups of micro-batches follow one another as in `interleaved`; on any other placement each
    action has a turn that comes after those of what it needs.
    """
    p = max(stage_ranks) + 1
    num_chunks = len(stage_ranks) // p
    around = stage_ranks == loop_placement(p, num_chunks)

    def turn(pair: _Pair) -> tuple[int, ...]:
        stage, i = pair
        return (i // p, stage // p, i) if around else (num_chunks * i + stage, stage)

    programs = []
    for rank in range(p):
        own = [stage for stage, owner in enumerate(stage_ranks) if owner == rank]
        pairs = sorted(((stage, i) for stage in own for i in range(num_microbatches)), key=turn)
        programs.append(tuple(Action(Op.F, *pair) for pair in pairs))
    return Schedule(stage_ranks, num_microbatches, tuple(programs))
