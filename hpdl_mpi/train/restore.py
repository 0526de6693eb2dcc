"""Where a run begins: at the start or at a checkpoint, and the same on every rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import Communicator, agree
from hpdl_mpi.data import Dataset
from hpdl_mpi.parallel import Replica
from hpdl_mpi.train import checkpoint
from hpdl_mpi.train.metrics import Progress


def require_alike(comm: Communicator, value: Any, what: str, *, where: object, remedy: str) -> None:
    """Raise an InputError on all ranks unless `value` is the same on all of them. Collective.

    Parameters
    ----------
    comm : Communicator
    value : object
        Small, and comparable.
    what : str
        What it means if it differs.
    where : object
        The file, folder or part of the job that it concerns.
    remedy : str
    """
    values = comm.allgather_obj(value)
    astray = [rank for rank in range(comm.size) if values[rank] != values[0]]
    if astray:
        ranks = ", ".join(map(str, astray))
        raise InputError(what, where=where, found=f"a difference of rank {ranks} to rank 0", remedy=remedy, shared=True)


def restore(comm: Communicator, replica: Replica, train: Dataset, folder: Path | None) -> Progress:
    """Fill the replica from the latest checkpoint, if there is one, and return where the run stands. Collective.

    Parameters
    ----------
    comm : Communicator
        All ranks.
    replica : Replica
        At its start.
    train : Dataset
        The training data.
    folder : Path or None
        Of the checkpoints; None to begin anew.

    Raises
    ------
    InputError
        Ranks see different data or have built different models, or the checkpoint is damaged or of other data.
    """
    require_alike(
        comm,
        train.fingerprint,
        "ranks see different data",
        where=train.path,
        remedy="put the data on a file system that all nodes see, or copy the same files to each node",
    )
    require_alike(
        comm,
        ([(place.name, place.shape) for place in replica.layout.segments], list(replica.slots), replica.dtype.str),
        "ranks have built different models or optimizers",
        where="model",
        remedy="build the same on every rank, whatever its number",
    )
    latest = agree(comm, lambda: checkpoint.latest(folder) if folder else None)
    progress = (
        Progress.from_dict(checkpoint.load(latest, replica)) if latest else Progress(fingerprint=train.fingerprint)
    )
    require_alike(
        comm,
        (replica.step, checkpoint.checksum(replica)),
        "ranks begin with different parameters",
        where=latest or "model",
        remedy="give every rank the same seed, and the same run folder",
    )
    if progress.fingerprint != train.fingerprint:
        raise InputError(
            "the training data are not those that the run began with",
            where=train.path,
            found=f"fingerprint {train.fingerprint}",
            expected=progress.fingerprint,
            remedy="name the data of the run, or start a new run with --run-dir",
            shared=True,
        )
    return progress
