"""Our training step: the one that ``hpdl train`` runs on one rank, without the loader."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hpdl_mpi.bench.subject import Subject

if TYPE_CHECKING:
    from hpdl_mpi.parallel import Replica


def load(model: str, batch: int, threads: int, exact: bool = False) -> Callable[[], Subject]:
    """Import, set the threads, wake Numba (it loads much of itself at the first call); return what builds the step.

    With `exact`, convolutions do without Winograd's method.
    """
    make = load_parts(threads)

    def build() -> Subject:
        replica, step = make(model, batch, exact)
        return Subject(step, replica.num_parameters)

    return build


def load_parts(threads: int) -> Callable[[str, int, bool], tuple[Replica, Callable[[], object]]]:
    """Do as `load`; return what builds the model of a name, exact or not, and its step on a batch of a size."""
    import numpy as np

    from hpdl_mpi.bench.workloads import LEARNING_RATE, MOMENTUM, WORKLOADS
    from hpdl_mpi.comm import SingleCommunicator
    from hpdl_mpi.data import Batch
    from hpdl_mpi.kernels.elementwise import add
    from hpdl_mpi.kernels.threads import set_threads
    from hpdl_mpi.models import MODELS
    from hpdl_mpi.nn import CrossEntropy, make_exact
    from hpdl_mpi.optim import SGD
    from hpdl_mpi.parallel import ProcessGrid, Replica, TrainingStep

    set_threads(threads)
    add(np.zeros(1), np.zeros(1), np.zeros(1))

    def build(model: str, batch: int, exact: bool) -> tuple[Replica, Callable[[], object]]:
        workload = WORKLOADS[model]
        optimizer = SGD(LEARNING_RATE, momentum=MOMENTUM)
        network = make_exact(MODELS[model]()) if exact else MODELS[model]()
        replica = Replica(network, workload.input_shape, optimizer, dtype="float32", seed=0)
        learn = TrainingStep(replica, CrossEntropy(), ProcessGrid(SingleCommunicator(), {"pp": 1, "dp": 1}))
        inputs, targets = workload.batch(batch)
        data = Batch(inputs, targets, np.arange(batch), global_size=batch, offset=0)
        return replica, lambda: learn(data, epoch=0, lr=LEARNING_RATE)

    return build
