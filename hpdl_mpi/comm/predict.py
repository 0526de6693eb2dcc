"""How long a collective takes, on paper: programs are run with costs in place of arrays."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from hpdl_mpi.comm.check import ScheduleError
from hpdl_mpi.comm.schedule import Op, Program, Round, Step, is_shared


@dataclass(frozen=True)
class Costs:
    """What steps cost.

    Attributes
    ----------
    latency : float
        Seconds from the start of an empty message to its end.
    bandwidth : float
        Bytes per second that a rank can send, and as many that it can receive meanwhile; what it sends at once shares
        them.
    reduction : float
        Seconds to add a byte.
    copy : float
        Seconds to copy a byte through shared memory.
    signal : float
        Seconds from a signal until another rank sees it.
    """

    latency: float = 20e-6
    bandwidth: float = 125e6
    reduction: float = 1e-10
    copy: float = 1e-10
    signal: float = 5e-7


def predict(programs: Sequence[Program], itemsize: int, costs: Costs) -> float:
    """Return the seconds until all ranks are through their programs, which begin at once.

    A message begins when both its ends are in their rounds, and is added when it is there. What is added while the rest
    of a message is still on its way is not taken off, so long messages that are cut into segments take less than this.

    Parameters
    ----------
    programs : sequence of Program
        Those of all ranks; proved.
    itemsize : int
        Bytes of an element.
    costs : Costs

    Raises
    ------
    ScheduleError
        They wait for one another for ever.
    """
    return _PaperRun(programs, itemsize, costs).seconds


class _PaperRun:
    """The time at every rank, from the start to the end of the programs."""

    def __init__(self, programs: Sequence[Program], itemsize: int, costs: Costs) -> None:
        self.programs, self.itemsize, self.costs = programs, itemsize, costs
        num_ranks = len(programs)
        self.time = [0.0] * num_ranks
        self.round, self.index = [0] * num_ranks, [0] * num_ranks
        self.ends: dict[tuple[int, int], float] = {}
        self.waiting: list[list[Step]] = [[] for _ in programs]
        self.entered = [False] * num_ranks
        self.signals: dict[tuple[int, int], deque[float]] = {}
        stirred = deque(range(num_ranks))
        while stirred:
            stirred.extend(self._advance(stirred.popleft()))
        if any(number < len(program) for number, program in zip(self.round, programs, strict=True)):
            raise ScheduleError("ranks wait for one another for ever")
        self.seconds = max(self.time)

    def _advance(self, rank: int) -> set[int]:
        """Let a rank go as far as it can; return the ranks that may go on because of that."""
        stirred: set[int] = set()
        while self.round[rank] < len(self.programs[rank]):
            steps = self.programs[rank][self.round[rank]]
            if not (self._share if is_shared(steps) else self._exchange)(rank, steps, stirred):
                break
            self.round[rank] += 1
            self.index[rank] = 0
            self.entered[rank] = False
        return stirred

    def _share(self, rank: int, steps: Round, stirred: set[int]) -> bool:
        for step in steps[self.index[rank] :]:
            if step.op is Op.SIGNAL:
                self.signals.setdefault((rank, step.peer), deque()).append(self.time[rank] + self.costs.signal)
                stirred.add(step.peer)
            elif step.op is Op.WAIT:
                arrived = self.signals.get((step.peer, rank))
                if not arrived:
                    return False
                self.time[rank] = max(self.time[rank], arrived.popleft())
            else:
                cost = self.costs.reduction if step.op is Op.READ_REDUCE else self.costs.copy
                self.time[rank] += step.size * self.itemsize * cost
            self.index[rank] += 1
        return True

    def _exchange(self, rank: int, steps: Round, stirred: set[int]) -> bool:
        if not self.entered[rank]:
            self.entered[rank] = True
            self.waiting[rank] = list(steps)
        for step in list(self.waiting[rank]):
            facing = (one for one in self.waiting[step.peer] if one.peer == rank and one.op.writes != step.op.writes)
            theirs = next(facing, None)
            if theirs is None:
                continue
            sender = step.peer if step.op.writes else rank
            at_once = sum(other.op is Op.SEND for other in self.programs[sender][self.round[sender]])
            began = max(self.time[rank], self.time[step.peer])
            arrival = began + self.costs.latency + step.size * self.itemsize * at_once / self.costs.bandwidth
            for end, own in ((rank, step), (step.peer, theirs)):
                added = own.size * self.itemsize * self.costs.reduction if own.op is Op.RECV_REDUCE else 0.0
                self.ends[end, self.round[end]] = max(self.ends.get((end, self.round[end]), 0.0), arrival + added)
                self.waiting[end].remove(own)
            stirred.add(step.peer)
        if self.waiting[rank]:
            return False
        self.time[rank] = max(self.time[rank], self.ends.get((rank, self.round[rank]), 0.0))
        return True
