"""Our pipeline: the training step of ``hpdl train`` without the loader, recorded while it is timed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpdl_mpi.base.trace import Span, Trace, now
from hpdl_mpi.bench import memory
from hpdl_mpi.bench.workloads import LEARNING_RATE, MOMENTUM, WORKLOADS
from hpdl_mpi.comm import Communicator, clock_offset
from hpdl_mpi.data import Batch
from hpdl_mpi.models import MODELS
from hpdl_mpi.nn import CrossEntropy
from hpdl_mpi.optim import SGD
from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep
from hpdl_mpi.parallel.pipeline import Pipeline, Schedule, split_steps

_WARMUP_STEPS = 2


class PipelineSubject:
    """One rank's part of a pipeline that trains a model of `WORKLOADS`. Constructing one is collective, and turns are.

    Parameters
    ----------
    comm : Communicator
        The ranks of the pipeline.
    model : str
    microbatch_size : int
    schedule : Schedule
    cuts : sequence of int
    level : int
        Bytes that this rank held before.

    Attributes
    ----------
    schedule : Schedule
    warm_seconds : float
        The fastest step before the first turn.
    peak_bytes : int
        The most memory of this rank above `level`, in the first steps.
    """

    def __init__(
        self,
        comm: Communicator,
        model: str,
        microbatch_size: int,
        schedule: Schedule,
        cuts: Sequence[int],
        level: int,
    ) -> None:
        workload, size = WORKLOADS[model], microbatch_size * schedule.num_microbatches
        pipeline = Pipeline(comm, schedule, tuple(cuts))
        optimizer = SGD(LEARNING_RATE, momentum=MOMENTUM)
        replica = Replica(MODELS[model](), workload.input_shape, optimizer, dtype="float32", seed=0, pipeline=pipeline)
        self._step = TrainingStep(replica, CrossEntropy(), ProcessGrid(comm, {"pp": comm.size, "dp": 1}))
        inputs, targets = workload.batch(size)
        self._batch = Batch(
            inputs if pipeline.reads_inputs else None,
            targets if pipeline.reads_targets else None,
            np.arange(size),
            global_size=size,
            offset=0,
        )
        self._comm, self.schedule = comm, schedule
        self.num_parameters = sum(segment.stop - segment.start for segment in replica.layout.segments)
        self._run()
        memory.reset_peak()
        self.warm_seconds = min(self._run() for _ in range(_WARMUP_STEPS))
        self.peak_bytes = memory.peak() - level
        self._trace = Trace()

    def _run(self) -> float:
        start = now()
        self._step(self._batch, epoch=0, lr=LEARNING_RATE)
        return now() - start

    def turn(self, steps: int) -> float:
        """Run steps, recorded, and return the seconds of all; one more goes before them, untimed."""
        self._run()
        self._step.record(self._trace)
        seconds = sum(self._run() for _ in range(steps))
        self._step.record(None)
        return seconds

    def recorded_steps(self) -> list[list[list[Span]]]:
        """Return the steps of all turns of all ranks, on one clock. Collective."""
        return self._comm.allgather_obj(split_steps(self._trace.shifted(clock_offset(self._comm))))
