"""How a run begins on a node: its threads, and its kernels compiled once, by the node's first rank."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np

from hpdl_mpi.base.errors import require
from hpdl_mpi.comm import Communicator, compile_reduction, find_wire
from hpdl_mpi.data import Batch
from hpdl_mpi.kernels.mixup import MIXED
from hpdl_mpi.kernels.packed import PackedWeights
from hpdl_mpi.kernels.threads import available_cores, max_threads, set_threads
from hpdl_mpi.nn import Loss, Ranks
from hpdl_mpi.parallel import ProcessGrid, Replica
from hpdl_mpi.parallel.feedback import compile_compression
from hpdl_mpi.parallel.pipeline import Feed

Result = TypeVar("Result")

_PATIENCE, _LEAST_PATIENT_SECONDS = 10, 600.0


def start_threads(comm: Communicator, wanted: int | None, environ: Mapping[str, str] = os.environ) -> int:
    """Set the number of threads of this rank and return it. Collective.

    Parameters
    ----------
    comm : Communicator
        All ranks of the job.
    wanted : int, optional
        By default the cores that the ranks of a node may use, shared among them, at most the CPUs per task of the Slurm
        allocation and what Numba was told (``NUMBA_NUM_THREADS``); the least of all nodes. Ranks that share a process
        take one each: Numba's own threads serve one caller at a time.
    environ : mapping

    Raises
    ------
    InputError
        More threads than there can be.
    """
    if comm.shares_process:
        expected = "1, since the ranks are threads of one process"
        require("parallel.threads", wanted, wanted is None or wanted == 1, expected)
        wanted = 1
    mine = available_cores()
    on_this_node = [cores for node, cores in comm.allgather_obj((comm.node, mine)) if node == comm.node]
    share = len(set().union(*on_this_node)) // comm.node_size
    allocated = environ.get("SLURM_CPUS_PER_TASK", "")
    bounds = (share, len(mine), max_threads(), int(allocated) if allocated.isdecimal() else share)
    possible = max(1, min(bounds))
    # One number for all: parts of a sum depend on it, and ranks must update alike.
    threads = wanted or min(comm.allgather_obj(possible))
    set_threads(threads)
    return threads


def patient_seconds(timeout_seconds: float) -> float:
    """Return how long a rank may wait outside of steps: others may open data, measure, or compile meanwhile."""
    return max(_PATIENCE * timeout_seconds, _LEAST_PATIENT_SECONDS)


def first_on_node(grid: ProcessGrid, function: Callable[[], Result]) -> Result:
    """Call a function on each node's first rank and its pipeline, and after that on all others. Collective.

    The function may be collective over a pipeline.
    """
    first = any(grid.axis("pp").allgather_obj(grid.comm.node_rank == 0))
    if first:
        result = function()
    grid.comm.barrier()
    if not first:
        result = function()
    return result


def rehearse_evaluation(replica: Replica, batch: Batch, loss: Loss) -> None:
    """Run every kernel of an evaluation step once, so that only a node's first pipeline waits for the compiler."""
    replica.evaluate(Feed.of(batch), loss.plain())


def rehearse(
    replica: Replica, batch: Batch, loss: Loss, ranks: Ranks | None = None, compression: str | None = None
) -> None:
    """Run every kernel of a training and of an evaluation step once, and go back to the start.

    It compiles what the cache lacks, so that no step of the run waits for the compiler; but where large batches go by
    other kernels than small ones (AlexNet's weight gradients do) the first step compiles those. For `ranks` see
    `MicroBatch`, for `compression` `make_allreduce`. Collective on the pipeline.
    """
    replica.learn(Feed.of(batch), loss, ranks)
    if replica.pipeline.schedule.num_microbatches > 1:
        # the rows of one sample may be too few to ask for it
        PackedWeights().find(np.zeros((1, 1), replica.dtype), False)
    replica.squared_gradient()
    replica.update(lr=0.0, scale=1.0)
    if replica.average:
        replica.average.follow(replica.params, replica.statistics)
    rehearse_evaluation(replica, _unmixed(batch), loss)
    for dtype in (np.float64, replica.dtype):  # of the loss and of the gradients
        compile_reduction(dtype, find_wire(compression, dtype))
    if replica.feedback:
        compile_compression(replica.dtype)
    replica.reset()


def _unmixed(batch: Batch) -> Batch:
    """Return a batch with one class for each sample, as those to evaluate have."""
    targets = batch.targets
    if targets is None or targets.dtype != MIXED:
        return batch
    return replace(batch, targets=targets["label"].copy())
