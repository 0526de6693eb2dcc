"""Slots of messages in shared memory: no two messages are in one at once, and there are no more than needed."""

from __future__ import annotations

import numpy as np
from hypothesis import given

from hpdl_mpi.comm import Arena, Communicator, run_threads
from hpdl_mpi.parallel.pipeline import Op, Schedule, complete, forward_only, make_schedule
from hpdl_mpi.parallel.pipeline.slots import SharedSlots, assign_slots
from tests.pipeline_cases import schedules


def check_slots(schedule: Schedule) -> None:
    """Walk through each program with the slots that are taken."""
    for program in schedule.programs:
        slots = assign_slots(program)
        received = [action for action in program if action.op in (Op.RECV_F, Op.RECV_B)]
        assert slots.keys() == {(action.op, (action.stage, action.microbatch)) for action in received}
        trains = any(action.op in (Op.W, Op.B) for action in program)
        taken: dict[tuple[Op, int], set[int]] = {}
        most: dict[tuple[Op, int], int] = {}
        for action in program:
            key = action.stage, action.microbatch
            if action in received:
                here = taken.setdefault((action.op, action.stage), set())
                assert slots[action.op, key] not in here
                here.add(slots[action.op, key])
                most[action.op, action.stage] = max(len(here), most.get((action.op, action.stage), 0))
            elif action.op in ((Op.W, Op.B) if trains else (Op.F,)):
                for op in (Op.RECV_F, Op.RECV_B):
                    if (op, key) in slots:
                        taken[op, action.stage].remove(slots[op, key])
        assert not any(taken.values())
        for kind, count in most.items():
            used = [slot for (op, (stage, _)), slot in slots.items() if (op, stage) == kind]
            # All that are taken at once, and what was let go of since the message before was awaited.
            assert count <= len(set(used)) <= 2 * count
            assert set(used) == set(range(len(set(used))))


@given(schedules())
def test_a_slot_is_taken_once_and_none_is_in_vain(schedule: Schedule) -> None:
    check_slots(complete(schedule))
    check_slots(complete(forward_only(schedule.stage_ranks, schedule.num_microbatches)))


def test_slots_lie_where_the_memory_is_after_another_user_of_it_has_made_it_grow() -> None:
    schedule = complete(make_schedule("1f1b", 2, 2))
    message, count = (Op.RECV_F, (1, 0)), 2

    def run(comm: Communicator) -> None:
        arena = Arena(comm)
        first, other = (SharedSlots(schedule, arena, "float32") for _ in range(2))
        for slots, width in ((first, 3), (other, 300), (first, 3), (first, 500), (first, 3)):
            slots.prepare(count, dict.fromkeys((Op.RECV_F, Op.RECV_B), [(width,)] * 2))
            (array,) = slots.find(*message, (width,), count)
            assert array.shape == (2, width)
            assert np.shares_memory(array, arena.parts[1])

    run_threads(2, run)
