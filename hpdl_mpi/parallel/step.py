"""The training step: pipelines learn from shares of a batch, rings sum their gradients, all ranks update alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from hpdl_mpi.base.errors import require
from hpdl_mpi.base.memory import aligned
from hpdl_mpi.base.trace import Kind, Trace, now
from hpdl_mpi.comm import Collective, Communicator, among, ring_allreduce
from hpdl_mpi.data import Batch
from hpdl_mpi.nn import Loss, LossSums
from hpdl_mpi.optim import clip_factor
from hpdl_mpi.parallel.grid import ProcessGrid
from hpdl_mpi.parallel.pipeline import Feed
from hpdl_mpi.parallel.replica import Replica

_SUMS = len(LossSums._fields)


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did, the same on every rank.

    Attributes
    ----------
    sums : LossSums
        Over the whole global batch, before the update.
    votes : tuple of int
        How many ranks raised each flag.
    """

    sums: LossSums
    votes: tuple[int, ...]

    @property
    def finite(self) -> bool:
        """Whether the loss is a number; if not, there was no update."""
        return bool(np.isfinite(self.sums.loss))


class TrainingStep:
    """Trains a replica together with the other ranks. A call is collective.

    The gradient of a global batch is that of the sum of its losses over the total weight of its samples, whatever
    share each rank holds, so uneven shares, empty ones too, weigh what they should.

    Parameters
    ----------
    replica : Replica
        Its pipeline is the grid's axis "pp".
    loss : Loss
    grid : ProcessGrid
        With axes "pp" and "dp".
    clip_norm : float, optional
        Upper bound of the gradient's global norm.
    num_flags : int
        Flags that ranks can raise for all to see.

    Raises
    ------
    InputError
        `clip_norm` is out of range.
    """

    def __init__(
        self,
        replica: Replica,
        loss: Loss,
        grid: ProcessGrid,
        *,
        clip_norm: float | None = None,
        num_flags: int = 0,
    ) -> None:
        require("training.clip_norm", clip_norm, clip_norm is None or clip_norm > 0, "a number above 0")
        self._replica = replica
        self._clip_norm = clip_norm
        self._trace: Trace | None = None
        self._executor = replica.trainer(loss, _StageReduction(replica, grid.axis("dp")))
        self._tied = _tied_reductions(replica)
        self._dp = grid.axis("dp")
        self._reduce_statistics = _all_reduce(self._dp, replica.statistics)
        self._totals = aligned(_SUMS + num_flags, np.float64)
        self._reduce_totals = _all_reduce(grid.comm, self._totals)
        self._squares = aligned(1, np.float64)
        self._reduce_squares = _all_reduce(grid.axis("pp"), self._squares)

    def record(self, trace: Trace | None) -> None:
        """Record each step's actions, messages, waits and update from now on, or no longer."""
        self._trace = self._executor.trace = trace

    def __call__(
        self, batch: Batch, *, epoch: int, lr: float, flags: Callable[[], Sequence[bool]] = tuple
    ) -> StepReport:
        """Learn from this rank's share of a global batch, and update.

        Parameters
        ----------
        batch : Batch
            Borrowed.
        epoch : int
        lr : float
        flags : callable
            Returns the flags that this rank raises; asked after its gradients are done.
        """
        started = now()
        totals = self._totals
        totals.fill(0.0)
        nominal = batch.global_size
        totals[:_SUMS], _ = self._executor.run(Feed.of(batch, epoch, 1.0 / nominal))
        began = now()
        for reduce_tied in self._tied:
            reduce_tied()
        for index, flag in enumerate(flags(), _SUMS):
            totals[index] = flag
        self._reduce_totals()
        self._note("wait", "totals", began)
        reduced = totals.tolist()
        report = StepReport(LossSums(*reduced[:_SUMS]), tuple(int(vote) for vote in reduced[_SUMS:]))
        if report.finite:
            weight = report.sums.weight
            self._update(nominal / weight if weight else 0.0, lr)
            self._average_statistics(len(batch.sample_ids), nominal)
            self._follow()
        self._note("step", f"step {self._replica.step}", started)
        return report

    def _average_statistics(self, share: int, nominal: int) -> None:
        """Let all data-parallel ranks have the mean of what their layers track, each weighing as much as it saw."""
        statistics = self._replica.statistics
        if statistics.size and self._dp.size > 1:
            began = now()
            statistics *= share
            self._reduce_statistics()
            statistics /= nominal
            self._note("wait", "statistics", began)

    def _follow(self) -> None:
        if self._replica.average:
            began = now()
            self._replica.follow()
            self._note("update", "moving average", began)

    def _update(self, scale: float, lr: float) -> None:
        if self._clip_norm is not None:
            began = now()
            self._squares[0] = self._replica.squared_gradient()
            self._note("update", "norm", began)
            began = now()
            self._reduce_squares()
            self._note("wait", "norm", began)
            scale *= clip_factor(scale * math.sqrt(self._squares[0]), self._clip_norm)
        began = now()
        self._replica.update(lr=lr, scale=scale)
        self._note("update", "update", began)

    def _note(self, kind: Kind, name: str, began: float) -> None:
        if self._trace:
            self._trace.add(kind, name, began)


@dataclass
class _Part:
    """A stage's slice of the gradients, the stages that add to it, and those of them that are still to come."""

    collective: Collective
    sources: frozenset[int]
    missing: set[int] = field(default_factory=set)


class _StageReduction:
    """Sums a stage's gradient over the data-parallel ranks when it is whole, while the pipeline goes on."""

    def __init__(self, replica: Replica, dp: Communicator) -> None:
        self._parts = []
        own = replica.pipeline.own
        sources = {name: frozenset(s for s in own if name in replica.stages[s].names) for name in replica.names}
        # A parameter lies with the first of the stages that add to its gradient: there the last addition lands.
        slices: dict[int, list[int]] = {}
        for segment in replica.layout.segments:
            slices.setdefault(min(sources[segment.name]), []).extend((segment.start, segment.stop))
        for tag, (stage, bounds) in enumerate(slices.items()):
            # Each has a tag of its own, for several may be under way at once.
            gradient = replica.grads[bounds[0] : bounds[-1]]
            adding = frozenset.union(*(every for every in sources.values() if min(every) == stage))
            self._parts.append(_Part(_all_reduce(dp, gradient, tag), adding, set(adding)))

    def __call__(self, stage: int) -> Iterator[Collective]:
        """Note that a stage's gradient is whole on this rank; start what waits for nothing else, and yield it."""
        for part in self._parts:
            if stage in part.missing:
                part.missing.remove(stage)
                if not part.missing:
                    part.missing.update(part.sources)
                    part.collective.start()
                    yield part.collective


def _all_reduce(comm: Communicator, array: np.ndarray, tag: int | None = None) -> Collective:
    program = ring_allreduce(comm.size, array.size, comm.rank)
    return Collective(comm, program, array) if tag is None else Collective(comm, program, array, tag=tag)


def _tied_reductions(replica: Replica) -> list[Collective]:
    """Return what sums the gradients of parameters that are tied across ranks of the pipeline, in one order for all."""
    comm, collectives = replica.pipeline.comm, []
    views = {segment.name: replica.grads[segment.start : segment.stop] for segment in replica.layout.segments}
    for name in sorted(views):
        ranks = replica.holders(name)
        if len(ranks) > 1:
            program = ring_allreduce(len(ranks), views[name].size, ranks.index(comm.rank))
            collectives.append(Collective(comm, among(program, ranks), views[name]))
    return collectives
