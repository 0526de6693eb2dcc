"""Where a run begins: at the start or at a checkpoint, and the same on every rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import Communicator, agree
from hpdl_mpi.data import Samples
from hpdl_mpi.parallel import Replica
from hpdl_mpi.train import checkpoint
from hpdl_mpi.train.manifest import DAMAGED, remedy
from hpdl_mpi.train.progress import Progress, Recipe


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


def require_same_call(comm: Communicator, settings: dict[str, Any], call: str = "fit") -> None:
    """Raise an InputError on all ranks unless they train with the same settings. Collective.

    Ranks that differ would wait for each other in different places, for ever.

    Parameters
    ----------
    comm : Communicator
    settings : dict
        By name.
    call : str
        Which takes them.
    """
    everyone = comm.allgather_obj(settings)
    for rank, theirs in enumerate(everyone):
        for key, value in theirs.items():
            if value != everyone[0][key]:
                found, expected = _differences(key, value, everyone[0][key])
                raise InputError(
                    "ranks train in different ways",
                    where=f"{call}: {key}",
                    found=f"{found} on rank {rank}",
                    expected=f"{expected}, as on rank 0",
                    remedy=f"call {call} alike on every rank; rank 0 alone will write the run folder",
                    shared=True,
                )


def _differences(key: str, mine: Any, theirs: Any) -> tuple[str, str]:
    """Return in what two values of a setting differ, once for each: the values, or of a section those that do."""
    sections = _section(mine), _section(theirs)
    if type(mine) is not type(theirs) or not all(sections):
        return str(mine), str(theirs)
    ours, others = sections
    keys = [name for name in (*ours, *(set(others) - set(ours))) if ours.get(name) != others.get(name)]
    said = [", ".join(f"{key}.{name} = {part.get(name)!r}" for name in keys) for part in sections]
    return said[0], said[1]


def _section(value: Any) -> dict[str, Any]:
    """Return the keys and values of a setting that has several; nothing of others."""
    if isinstance(value, pydantic.BaseModel):
        return dict(value)
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict):
        return {"name": value[0]} | value[1]  # of a loss, an optimizer or a schedule
    return {}


def plain_values(part: object) -> dict[str, Any]:
    """Return the settings among the attributes of a loss, an optimizer or a schedule."""
    return {key: value for key, value in vars(part).items() if isinstance(value, bool | int | float | str | tuple)}


def restore(
    comm: Communicator,
    replica: Replica,
    train: Samples,
    recipe: Recipe,
    folder: Path | None,
    begin: Callable[[], None],
    *,
    index: int = 0,
    count: int = 1,
) -> Progress:
    """Fill the replica from the latest checkpoint, if there is one, and return where the run stands. Collective.

    Parameters
    ----------
    comm : Communicator
        All ranks.
    replica : Replica
        At its start.
    train : Samples
        The training data.
    recipe : Recipe
        Of the run as it shall be.
    folder : Path or None
        Of the checkpoints; None to begin anew.
    begin : callable
        What is done to the replica of a run that begins.
    index, count : int
        See `checkpoint.load`.

    Raises
    ------
    InputError
        Ranks see different data or have built different models, or the checkpoint is damaged, or of other data or
        another recipe.
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
        (list(replica.shapes.items()), list(replica.slots), replica.dtype.str),
        "ranks have built different models or optimizers",
        where="model",
        remedy="build the same on every rank, whatever its number",
    )
    latest = agree(comm, lambda: checkpoint.latest(folder) if folder else None)
    if latest:
        progress = checkpoint.load(latest, replica, place=(index, count), ranks_on_node=comm.node_size)
    else:
        begin()
        progress = Progress(recipe, train.fingerprint)
    require_alike(
        comm,
        (replica.step, checkpoint.digest(replica)),
        "ranks begin with different parameters",
        where=latest or "model",
        remedy="give every rank the same seed, and the same run folder",
    )
    recipe.refuse_changes(progress.recipe)
    if progress.fingerprint != train.fingerprint:
        raise InputError(
            "the training data are not those that the run began with",
            where=train.path,
            found=f"fingerprint {train.fingerprint}",
            expected=progress.fingerprint,
            remedy="name the data of the run, or start a new run with --run-dir",
            shared=True,
        )
    if latest:
        _check_place(progress, replica.step, train.num_samples, latest)
    return progress


def _check_place(progress: Progress, step: int, num_samples: int, path: Path) -> None:
    """Raise an InputError, alike on all ranks, unless the place in the data belongs to the step."""
    batch = progress.recipe.global_batch_size
    expected = progress.epoch * -(-num_samples // batch) + -(-progress.offset // batch)
    if progress.offset >= num_samples or step != expected:
        raise InputError(
            DAMAGED,
            where=path,
            found=f"step {step} at sample {progress.offset} of epoch {progress.epoch}",
            expected=f"step {expected}, at a sample below {num_samples}",
            remedy=remedy(path / "manifest.json"),
            shared=True,
        )
