"""Slots of messages in shared memory: no two messages are in one at once, and there are no more than needed."""

from __future__ import annotations

from hypothesis import given

from hpdl_mpi.parallel.pipeline import Op, Schedule, complete, forward_only
from hpdl_mpi.parallel.pipeline.slots import assign_slots
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
