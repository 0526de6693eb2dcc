"""What turns a schedule of computations into one that can be run: small functions from schedule to schedule."""

from __future__ import annotations

from hpdl_mpi.parallel.pipeline.action import Action, Op, Schedule
from hpdl_mpi.parallel.pipeline.simulate import simulate


def merge_backward(schedule: Schedule) -> Schedule:
    """Make one B of each I that the W of the same stage and micro-batch follows at once."""
    programs: list[list[Action]] = []
    for program in schedule.programs:
        merged: list[Action] = []
        for action in program:
            same = Action(Op.I, action.stage, action.microbatch)
            if action.op is Op.W and merged and merged[-1] == same:
                merged[-1] = Action(Op.B, action.stage, action.microbatch)
            else:
                merged.append(action)
        programs.append(merged)
    return schedule.with_programs(programs)


def split_backward(schedule: Schedule) -> Schedule:
    """Make an I and a W of each B."""
    halves = {Op.B: (Op.I, Op.W)}
    programs = [
        [
            Action(op, action.stage, action.microbatch)
            for action in program
            for op in halves.get(action.op, (action.op,))
        ]
        for program in schedule.programs
    ]
    return schedule.with_programs(programs)


def add_messages(schedule: Schedule) -> Schedule:
    """Add sends, right after what they send is there, and receives, where the sender has just got so far.

    A send and its receive join their ranks' programs at the same moment of a simulated run. So all messages have one
    order that no rank's program contradicts, and none can wait for ever, even if each send waits for its receive.
    """
    ranks = schedule.stage_ranks
    programs: list[list[Action]] = [[] for _ in ranks[: schedule.num_ranks]]
    timed = [
        (timing.stop, rank, timing.action)
        for rank, timings in enumerate(simulate(schedule).timings)
        for timing in timings
    ]
    for _, rank, action in sorted(timed, key=lambda entry: entry[:2]):
        programs[rank].append(action)
        if action.op is Op.F:
            send, receive, following = Op.SEND_F, Op.RECV_F, action.stage + 1
        elif action.op in (Op.I, Op.B):
            send, receive, following = Op.SEND_B, Op.RECV_B, action.stage - 1
        else:
            continue
        if 0 <= following < len(ranks) and ranks[following] != rank:
            programs[rank].append(Action(send, action.stage, action.microbatch))
            programs[ranks[following]].append(Action(receive, following, action.microbatch))
    return schedule.with_programs(programs)


def add_reductions(schedule: Schedule) -> Schedule:
    """Add the reduction of each stage's gradient where its last weight gradient is done."""
    programs: list[list[Action]] = []
    for program in schedule.programs:
        last = {action.stage: index for index, action in enumerate(program) if action.op in (Op.W, Op.B)}
        programs.append([])
        for index, action in enumerate(program):
            programs[-1].append(action)
            if last.get(action.stage) == index:
                programs[-1].append(Action(Op.REDUCE, action.stage))
    return schedule.with_programs(programs)


def complete(schedule: Schedule) -> Schedule:
    """Return what is run: with messages and reductions.

    Where a rank waits for the gradient of an input, it leaves before that of the weights is computed, also where the
    schedule has both in one; elsewhere both are computed at once.
    """
    return add_reductions(merge_backward(add_messages(split_backward(schedule))))
