"""Weights of a replica leave for a file, as PyTorch has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpdl_mpi import __version__
from hpdl_mpi.base.files import check_destination, write_file
from hpdl_mpi.comm import agree
from hpdl_mpi.parallel import ProcessGrid, Replica
from hpdl_mpi.weights import counters, encode, tensors


def export(path: Path, replica: Replica, grid: ProcessGrid, *, averaged: bool) -> None:
    """Write a file of all weights, in the safetensors format. Collective; the first pipeline's ranks give theirs.

    Parameters
    ----------
    path : Path
    replica : Replica
        Its moving average is written if it has one.
    grid : ProcessGrid
    averaged : bool
        Whether the weights are averages, for the file to say so.

    Raises
    ------
    InputError
        The file cannot be written there, or the model has no twin in PyTorch.
    StorageError
        The disk is full.
    """

    def check() -> None:
        check_destination(path)
        tensors(replica.model)

    def write() -> None:
        assert found is not None, "rank 0 is the first of a pipeline"
        steps = dict.fromkeys(counters(replica.model), np.array(replica.step))
        about = {"hpdl_mpi": __version__, "step": str(replica.step), "weights": "ema" if averaged else "trained"}
        write_file(path, encode(found | steps, about))

    agree(grid.comm, check)
    found = _gathered(replica) if grid.coordinate("dp") == 0 else None
    agree(grid.comm, write)


def _gathered(replica: Replica) -> dict[str, np.ndarray] | None:
    """Return all tensors, as PyTorch has them, on the first rank of a pipeline; None on others. Collective on it."""
    comm, ranks = replica.pipeline.comm, replica.pipeline.schedule.stage_ranks
    owners: dict[str, int] = {}
    for rank, stage in zip(ranks, replica.stages, strict=True):
        owners = dict.fromkeys(tensors(stage.model), rank) | owners
    mine = replica.arrays(averaged=True)
    found = {}
    for name, tensor in tensors(replica.model).items():
        if owners[name] == comm.rank:
            found[name] = tensor.outward(mine[name])
            if comm.rank > 0:
                comm.send(found.pop(name), 0)
        elif comm.rank == 0:
            found[name] = np.empty(tensor.shape, replica.dtype)
            comm.recv(found[name], owners[name])
    return found if comm.rank == 0 else None
