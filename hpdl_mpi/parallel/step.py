"""The training step: pipelines learn from shares of a batch, rings sum their gradients, all ranks update alike."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np

from hpdl_mpi.base.errors import InputError, is_number, require
from hpdl_mpi.base.memory import aligned
from hpdl_mpi.base.trace import Kind, Trace, now
from hpdl_mpi.comm import AUTO, Collective, Communicator, Transfer, among, make_allreduce, ring_allreduce
from hpdl_mpi.data import Batch
from hpdl_mpi.nn import Layer, Loss, LossSums
from hpdl_mpi.optim import clip_factor
from hpdl_mpi.parallel.buckets import GradientBuckets, progress_of
from hpdl_mpi.parallel.grid import ProcessGrid
from hpdl_mpi.parallel.node_memory import MemorySharing, share_memory, wants_memory
from hpdl_mpi.parallel.pipeline import Feed
from hpdl_mpi.parallel.progress_thread import progress_thread
from hpdl_mpi.parallel.replica import Replica
from hpdl_mpi.parallel.shards import BUCKET_BYTES

_SUMS = len(LossSums._fields)


def checked_clip_norm(value: float | None) -> float | None:
    """Return the upper bound of a gradient's norm, or None without one; raise an InputError if it is none."""
    possible = value is None or (is_number(value) and value > 0)
    require("training.clip_norm", value, possible, "a number above 0")
    return None if value is None else float(value)


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
    bucket_bytes : int
    algorithm, compression : str
        How gradients are summed, see `GradientBuckets`.
    shared_memory : {"auto", "none", "gradients", "parameters"}
        What ranks of a machine have in memory that they share, where `AUTO` sums it; see `share_memory`.
    sync_batch_norm : bool
        Whether batch normalisation takes the moments of the micro-batches that data-parallel ranks have at once.

    Attributes
    ----------
    algorithms : list of str
        What sums each bucket of gradients, of all ranks of the pipeline; none if there is one data-parallel rank.
    compressed : bool
        Whether any of them, on any rank of the pipeline, is summed in fewer bytes than it has.
    lacks_memory : bool
        Whether gradients of any rank of the pipeline are summed by messages because there is too little memory to
        share, or there are no more windows.

    Raises
    ------
    InputError
        `clip_norm` is out of range, or the ranks cannot use the algorithm, or share memory.
    """

    def __init__(
        self,
        replica: Replica,
        loss: Loss,
        grid: ProcessGrid,
        *,
        clip_norm: float | None = None,
        num_flags: int = 0,
        bucket_bytes: int = BUCKET_BYTES,
        algorithm: str = AUTO,
        compression: str | None = None,
        shared_memory: MemorySharing = "none",
        sync_batch_norm: bool = False,
    ) -> None:
        self._replica = replica
        self._clip_norm = checked_clip_norm(clip_norm)
        self._comm = grid.comm
        self._trace: Trace | None = None
        dp, one_copy = grid.axis("dp"), replica.sharding is not None and replica.sharding.one_copy
        self._memory = share_memory(grid, replica, shared_memory, algorithm)
        # What is clipped must be summed before it is updated, and so must what other machines have.
        fuses = one_copy and dp.num_nodes == 1 and clip_norm is None
        self._terms = self._memory.terms if self._memory and fuses else None
        make_buckets = partial(
            GradientBuckets, replica, dp, max_bytes=bucket_bytes, algorithm=algorithm, compression=compression
        )
        try:
            buckets = make_buckets(memory=self._memory, fuses=fuses)
        except InputError as error:
            if not (error.shared and self._memory):
                raise
            self._memory.free()  # all ranks are here
            if shared_memory != "auto":
                raise
            self._memory = None
            buckets = make_buckets()
        lacks_memory = self._memory is None and wants_memory(grid, replica, shared_memory, algorithm)
        if replica.carried is not None:
            replica.grads += replica.carried
            replica.carried = None
        self._sums = _Sums(replica, grid, num_flags, buckets)
        found = grid.axis("pp").allgather_obj((buckets.algorithms, buckets.compressed, lacks_memory))
        self.algorithms = [name for names, _, _ in found for name in names]
        self.compressed = any(compressed for _, compressed, _ in found)
        self.lacks_memory = any(lacking for _, _, lacking in found)
        self._meetings = _Meetings(dp) if sync_batch_norm and dp.size > 1 else None
        self._executor = replica.trainer(loss, self._sums, self._meetings)
        self._tied = _tied_reductions(replica)
        self._squares = aligned(1, np.float64)
        # Several ranks have summed the same chunks, where each machine has all of them.
        self._copies = replica.sharding.num_copies if replica.sharding else 1
        # Of its pipeline's parameters a rank has all, unless data-parallel ranks share them.
        norm_ranks = grid.comm if replica.sharding else grid.axis("pp")
        self._reduce_squares = make_allreduce(norm_ranks, self._squares, label="the gradient's norm")

    def record(self, trace: Trace | None) -> None:
        """Record each step's actions, messages, sums, waits and update from now on, or no longer.

        Nothing may be under way. Without a trace a step does no more for it than to see that there is none.
        """
        self._trace = self._executor.trace = self._sums.buckets.trace = trace
        for collective in (*self._sums.reductions, *self._tied, self._reduce_squares):
            collective.record(trace)
        if self._meetings is not None:
            self._meetings.trace = trace

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
            Returns the flags that this rank raises; asked after its outputs are done.
        """
        started = now()
        nominal = batch.global_size
        self._comm.begin_step(self._replica.step + 1)
        self._sums.begin(len(batch.sample_ids), nominal, flags)
        with self._sums.moved_along():
            self._executor.run(Feed.of(batch, epoch, 1.0 / nominal))
        began = now()
        report = self._sums.report()
        self._note("wait", "totals", began)
        if report.finite:
            weight = report.sums.weight
            self._update(nominal / weight if weight else 0.0, lr)
            self._follow()
        else:
            for _ in self._sums.buckets.wait():
                pass  # nothing may be under way when the next step begins
            self._replica.grads.fill(0)
            if self._replica.feedback:
                self._replica.feedback.reset()  # what is carried over is no number either
        self._note("step", f"step {self._replica.step}", started)
        return report

    def _follow(self) -> None:
        if self._replica.average:
            began = now()
            self._replica.follow()
            self._note("update", "moving average", began)

    def _update(self, scale: float, lr: float) -> None:
        slices = self._summed_slices()
        if self._tied or self._clip_norm is not None:
            slices = iter(list(slices))
        for reduce_tied in self._tied:
            reduce_tied()
        if self._clip_norm is not None:
            began = now()
            self._squares[0] = self._replica.squared_gradient() / self._copies
            self._note("update", "norm", began)
            began = now()
            self._reduce_squares()
            self._note("wait", "norm", began)
            scale *= clip_factor(scale * math.sqrt(self._squares[0]), self._clip_norm)
        began = now()
        buckets = self._sums.buckets
        self._replica.update(lr=lr, scale=scale, slices=slices, terms=self._terms, updated=buckets.gather)
        self._note("update", "update", began)
        began = now()
        buckets.wait_gathered()
        self._note("wait", "parameters", began)

    def free(self) -> None:
        """Give back the memory that ranks share; no further step is taken. Collective."""
        self._executor.free()
        self._reduce_squares.free()
        self._sums.free()
        if self._memory:
            self._memory.free()

    def _summed_slices(self) -> Iterator[tuple[int, int]]:
        """Yield the slices of the gradients as their sums come in."""
        slices = self._sums.buckets.wait()
        while True:
            began = now()
            summed = next(slices, None)
            self._note("wait", "gradients", began)
            if summed is None:
                return
            yield summed

    def _note(self, kind: Kind, name: str, began: float) -> None:
        if self._trace:
            self._trace.add(kind, name, began)


class _Meetings:
    """The ranks whose micro-batches batch normalisation takes together; a rank waits for the others in each layer.

    Parameters
    ----------
    comm : Communicator
    """

    def __init__(self, comm: Communicator) -> None:
        self.size, self._comm = comm.size, comm
        self.trace: Trace | None = None

    def allgather(self, array: np.ndarray, out: np.ndarray) -> None:
        """See `Ranks`."""
        began = now()
        self._comm.allgather(array, out)
        if self.trace:
            self.trace.add("wait", "moments", began)


def _has_averages(dp: Communicator, statistics: np.ndarray) -> bool:
    """Return whether there are statistics that ranks would track apart."""
    return dp.size > 1 and statistics.size > 0


def needs_thread(comm: Communicator) -> bool:
    """Return whether messages between ranks go on only if somebody looks after them, and a thread can."""
    return comm.num_nodes > 1 and comm.takes_threads


class _Sums:
    """What ranks sum in a step, beside its computations: totals, statistics, gradients.

    Totals and statistics are known when the last output is, so backward hides their sums. Between machines a thread
    moves them along while backward computes.
    """

    def __init__(self, replica: Replica, grid: ProcessGrid, num_flags: int, buckets: GradientBuckets) -> None:
        dp = grid.axis("dp")
        self.buckets = buckets
        self._statistics = replica.statistics
        self._dp = dp
        # Each line of the grid has a place for what its ranks have called.
        self._calls = _SUMS + num_flags + grid.coordinate("pp")
        self._totals = aligned(_SUMS + num_flags + grid.shape["pp"], np.float64)
        self._early = [make_allreduce(grid.comm, self._totals, label="totals")]
        self._averages = _has_averages(dp, self._statistics)
        if self._averages:
            # Under way at the same time as the buckets, which have the tags before this one, and as the totals.
            tag = len(self.buckets.slices)
            self._early.append(make_allreduce(dp, self._statistics, tag=tag, label="running statistics"))
        self._num_known = _SUMS + num_flags
        self._share = self._nominal = self._digest = 0
        self._flags: Callable[[], Sequence[bool]] = tuple
        self._pending: list[Transfer] = []
        self._lock = threading.Lock()
        self._needs_thread = needs_thread(grid.comm)

    def begin(self, share: int, nominal: int, flags: Callable[[], Sequence[bool]]) -> None:
        """Get ready for a batch, of which this rank has `share` of `nominal` samples."""
        self._share, self._nominal, self._flags = share, nominal, flags

    def forward_done(self, sums: LossSums) -> None:
        """See `Companion`."""
        self._totals[:_SUMS] = sums
        self._totals[_SUMS:] = 0.0
        for index, flag in enumerate(self._flags(), _SUMS):
            self._totals[index] = flag
        self._digest = self._dp.calls.digest
        self._totals[self._calls] = self._digest
        if self._averages:
            self._statistics *= self._share  # the mean weighs what each rank tracks by how much it saw
        with self._lock:
            for reduction in self._early:
                reduction.start()
            self._pending = list(self._early)

    def layer_landed(self, layer: Layer) -> None:
        """See `Companion`."""
        with self._lock:
            self.buckets.layer_landed(layer)

    def stage_landed(self, stage: int) -> None:
        """See `Companion`."""
        with self._lock:
            self.buckets.stage_landed(stage)

    def moved_along(self) -> AbstractContextManager[None]:
        """Return a context in which sums go on though nothing here is called."""
        return progress_thread(self._move, self._lock) if self._needs_thread else nullcontext()

    def move_along(self) -> None:
        """See `Companion`."""
        with self._lock:
            self._move()

    def _move(self) -> None:
        if self._pending:
            self._pending = [reduction for reduction in self._pending if not reduction.test()]
        self.buckets.move_along()

    @property
    def reductions(self) -> list[Transfer]:
        """All that ranks sum or collect in a step."""
        return [*self._early, *self.buckets.reductions]

    @property
    def progress(self) -> int | None:
        """See `Work.progress`."""
        with self._lock:
            return progress_of(self.reductions)

    def free(self) -> None:
        """See `TrainingStep.free`."""
        for reduction in self._early:
            reduction.free()
        self.buckets.free()

    def report(self) -> StepReport:
        """Return the totals over all ranks, and let all have the mean of the statistics. Collective."""
        for reduction in self._pending:
            reduction.wait()
        self._pending.clear()
        if self._averages:
            self._statistics /= self._nominal
        reduced = self._totals.tolist()
        if reduced[self._calls] != self._digest * self._dp.size:
            self._dp.explain_mismatch()
        return StepReport(LossSums(*reduced[:_SUMS]), tuple(int(vote) for vote in reduced[_SUMS : self._num_known]))


def _tied_reductions(replica: Replica) -> list[Collective]:
    """Return what sums the gradients of parameters that are tied across ranks of the pipeline, in one order for all."""
    comm, collectives = replica.pipeline.comm, []
    views = {segment.name: replica.grads[segment.start : segment.stop] for segment in replica.layout.segments}
    for name in sorted(views):
        ranks = replica.holders(name)
        if len(ranks) > 1:
            program = ring_allreduce(len(ranks), views[name].size, ranks.index(comm.rank))
            label = f"gradient of {name}, which is tied"
            collectives.append(Collective(comm, among(program, ranks), views[name], label=label, joint=False))
    return collectives
