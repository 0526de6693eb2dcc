"""Checkpoints: folders that are whole or absent, and load on any grid of ranks.

A checkpoint is a folder ``step-00001234`` of HDF5 files, one per writing rank, and a manifest. A file holds slices of
parameters and of optimizer slots, each under (kind, parameter name) with its first and last element, never positions
of a grid. The folder is written aside, forced to disk and renamed last; only then are old ones removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from hpdl_mpi.base.errors import InputError, StorageError, TrainingError
from hpdl_mpi.base.files import fsync, write_whole
from hpdl_mpi.base.memory import check_memory
from hpdl_mpi.comm import Communicator
from hpdl_mpi.nn import Shape
from hpdl_mpi.parallel import ProcessGrid, Replica
from hpdl_mpi.train.manifest import FORMAT, StoredFile, read_manifest, seal
from hpdl_mpi.train.progress import Progress
from hpdl_mpi.train.slices import AVERAGES, FACTORS, RESIDUAL, pieces, read_slices, residuals, sha256, write_slices

_PREFIX = "step-"

BEST = "best"
"""Name of the link to the best checkpoint, for runs with early stopping."""

Result = TypeVar("Result")


def save(
    folder: Path, replica: Replica, progress: Progress, grid: ProcessGrid, *, keep: int, best: int | None = None
) -> Path:
    """Write a checkpoint below `folder` and remove all but the `keep` latest and the best one. Collective.

    Parameters
    ----------
    folder : Path
        Of all checkpoints of a run, seen by all ranks.
    replica : Replica
        Equal on all data-parallel ranks, which is checked; the ranks of the first pipeline write theirs, and all
        ranks their share of the optimizer's state where that is shared.
    progress : Progress
        What `load` returns.
    grid : ProcessGrid
    keep : int
    best : int, optional
        The step of the best one.

    Raises
    ------
    TrainingError
        Ranks hold different parameters, or such that are not finite; nothing is written.
    StorageError
        The folder cannot be written or the disk is full; earlier checkpoints are intact.
    """
    _compare_checksums(replica, grid)
    require_finite(replica, grid.comm)
    final = path_of(folder, replica.step)
    aside = final.with_name(f".{final.name}.part")
    leads, index = grid.comm.rank == 0, grid.coordinate("dp")
    has_own_state = replica.sharding is not None and replica.sharding.copy == 0
    writes = index == 0 or has_own_state or replica.feedback is not None
    try:
        begun = _together(grid.comm, final, lambda: leads and _begin(final, aside))
        if any(begun):
            stored = _together(
                grid.comm, final, lambda: _store(aside, replica, grid.comm.rank, index) if writes else None
            )
            files = [file for file in stored if file is not None]
            spared = None if best is None else path_of(folder, best)
            _together(
                grid.comm, final, lambda: _end(final, aside, replica, progress, files, keep, spared) if leads else None
            )
    finally:
        if leads:
            shutil.rmtree(aside, ignore_errors=True)
    return final


def _together(comm: Communicator, final: Path, function: Callable[[], Result]) -> list[Result]:
    """Call a function on every rank and return all results; what fails on one, fails on all. Collective."""
    result, failure = None, None
    try:
        result = function()
    except (OSError, RuntimeError) as error:  # HDF5 reports a full disk as either
        failure = _reason(error)
    outcomes = comm.allgather_obj((result, failure))
    for _, reason in outcomes:
        if reason is not None:
            raise StorageError(
                "the checkpoint could not be written; earlier checkpoints are intact",
                where=final,
                found=reason,
                remedy="make room or mend the permissions, then continue with --resume",
                shared=True,
            )
    return [result for result, _ in outcomes]


def require_finite(replica: Replica, comm: Communicator) -> None:
    """Raise a TrainingError on all ranks unless all parameters are finite. Collective."""
    if not all(comm.allgather_obj(replica.is_finite())):
        raise TrainingError(
            f"parameters are not finite after step {replica.step}, so they are not saved",
            where="training",
            remedy="lower optimizer.lr or set training.clip_norm, and continue from the last checkpoint with --resume",
            shared=True,
        )


def path_of(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies, or would lie."""
    return folder / f"{_PREFIX}{step:010d}"


def name_best(folder: Path, step: int, comm: Communicator) -> None:
    """Let ``folder/best`` be a link to the checkpoint of a step, or nothing if that is not there. Collective.

    Raises
    ------
    StorageError
        The folder cannot be written.
    """
    target, link, aside = path_of(folder, step), folder / BEST, folder / f".{BEST}.part"

    def name() -> None:
        aside.unlink(missing_ok=True)
        if (target / "manifest.json").exists():
            aside.symlink_to(target.name)
            os.replace(aside, link)
        else:
            link.unlink(missing_ok=True)
        fsync(folder)

    _together(comm, link, lambda: name() if comm.rank == 0 else None)


def latest(folder: Path) -> Path | None:
    """Return the latest whole checkpoint below a folder, if there is one."""
    found = _all(folder)
    return found[-1] if found else None


def load(
    path: Path,
    replica: Replica,
    *,
    averaged: bool = False,
    place: tuple[int, int] | None = None,
    ranks_on_node: int = 1,
) -> Progress:
    """Fill a replica from a checkpoint and return where its run stood. Local: every rank reads for itself.

    Parameters
    ----------
    path : Path
    replica : Replica
    averaged : bool
        Take the moving averages, which the checkpoint must have, for parameters and statistics.
    place : (int, int), optional
        Of one that goes on training: this rank's number among the data-parallel ranks, and how many they are now. What
        sums carry over is shared among as many.
    ranks_on_node : int
        How many load on this machine: for that of all of them it must have memory left.

    Raises
    ------
    InputError
        The checkpoint is damaged, of another format, or of another model or optimizer; the replica is not usable.
    """
    if not path.exists():
        raise InputError(
            "the checkpoint is not there for this rank",
            where=path,
            remedy="put the run folder on a file system that all nodes see",
        )
    manifest = read_manifest(path)
    _compare_shapes(path, manifest["parameters"], replica.shapes)
    saved = {(kind, name): stop for entry in manifest["files"] for kind, name, _, stop in entry["slices"]}
    targets = {
        (AVERAGES.get(piece.kind, piece.kind) if averaged else piece.kind, piece.name): piece
        for piece in pieces(replica)
        # Factors of another rank are of no use; these begin as those of a new run do.
        if piece.kind != FACTORS or saved.get((FACTORS, piece.name)) == piece.size
    }
    filled = dict.fromkeys(targets, 0)
    for entry in manifest["files"]:
        if any((kind, name) in targets for kind, name, _, _ in entry["slices"]):
            read_slices(path / entry["name"], entry, targets, filled)
    for (kind, name), found in filled.items():
        if found != targets[kind, name].values.size:
            raise InputError(
                "the checkpoint lacks state that this run needs",
                where=path,
                found=f"{found} elements of {kind} for {name}",
                expected=targets[kind, name].values.size,
                remedy="continue with the optimizer and the moving average (training.ema) that the run began with",
            )
    if place is not None:
        _load_residuals(path, manifest["files"], replica, *place, ranks_on_node)
    replica.step = manifest["step"]
    return manifest["progress"]


def _load_residuals(
    path: Path, files: Sequence[StoredFile], replica: Replica, index: int, count: int, ranks_on_node: int
) -> None:
    """Add up those of what the saved ranks' sums have left out that fall to this rank: all of it is kept by some."""
    saved = {kind for entry in files for kind, _, _, _ in entry["slices"] if kind.startswith(RESIDUAL)}
    numbers = sorted(int(kind.removeprefix(RESIDUAL)) for kind in saved)
    mine = [number for number in numbers if number % count == index]
    feedback, replica.carried = replica.feedback, None
    if feedback:
        feedback.residual.fill(0)
    if not mine:
        return
    new_arrays = 1 if feedback else 2
    what = "what sums of the run before have left out"
    check_memory(new_arrays * replica.params.nbytes, what, ranks_on_node, "start fewer ranks on a node")
    if feedback is None:
        replica.carried = replica.layout.allocate(replica.dtype)
    total = feedback.residual if feedback else replica.carried
    part = replica.layout.allocate(replica.dtype)
    for number in mine:
        # Gradients of tied parameters are summed over the ranks of a pipeline: one has what was left out of them.
        targets = {
            (piece.kind, piece.name): piece for piece in residuals(replica, number, part) if piece.name in replica.owned
        }
        part.fill(0)
        for entry in files:
            if any((kind, name) in targets for kind, name, _, _ in entry["slices"]):
                read_slices(path / entry["name"], entry, targets, dict.fromkeys(targets, 0))
        total += part


def digest(replica: Replica) -> str:
    """Return a digest of all parameters of the model, the same on every grid. Collective on the pipeline."""
    values = replica.layout.views(replica.params)
    own = {name: hashlib.blake2b(values[name].data, digest_size=16).digest() for name in replica.owned}
    parts = {name: part for rank in replica.pipeline.comm.allgather_obj(own) for name, part in rank.items()}
    whole = hashlib.blake2b(digest_size=16)
    for name, part in sorted(parts.items()):
        whole.update(name.encode() + b"\0" + part)
    return whole.hexdigest()


def _all(folder: Path) -> list[Path]:
    """Return the whole checkpoints below a folder, oldest first."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if (path / "manifest.json").exists())


def _compare_checksums(replica: Replica, grid: ProcessGrid) -> None:
    values = replica.layout.views(replica.params)
    tied = [name for name in replica.names if len(replica.holders(name)) > 1]
    mine = {name: hashlib.blake2b(values[name].data, digest_size=16).digest() for name in tied}
    stage = hashlib.blake2b(digest_size=16)
    averages = (replica.average.params, replica.average.statistics) if replica.average else ()
    for array in (replica.params, replica.statistics, *averages):
        stage.update(array.data)
    mine[f"stage {grid.coordinate('pp')}"] = stage.digest()
    first: dict[str, bytes] = {}
    astray = [
        rank
        for rank, sums in enumerate(grid.comm.allgather_obj(mine))
        if any(first.setdefault(name, value) != value for name, value in sums.items())
    ]
    if astray:
        raise TrainingError(
            f"ranks {astray} hold other parameters or statistics than their replicas, after step {replica.step}",
            remedy="this is a fault of the machine or of a layer that is not deterministic: continue from the last "
            "checkpoint with --resume",
            shared=True,
        )


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint, first of all what makes it whole; what is left does no harm."""
    with contextlib.suppress(OSError):  # it is tried again after the next checkpoint
        (checkpoint / "manifest.json").unlink()
        shutil.rmtree(checkpoint)


def sweep(folder: Path) -> None:
    """Remove what a killed process has left below a folder of checkpoints: nobody else may be writing there."""
    for part in (*folder.glob(f".{_PREFIX}*.part"), *folder.glob(f"{_PREFIX}*")):
        if not (part / "manifest.json").exists() or part.name.startswith("."):
            shutil.rmtree(part, ignore_errors=True)


def _begin(final: Path, aside: Path) -> bool:
    """Make room for a checkpoint aside; return False if this step is saved already, for its state is the same."""
    if (final / "manifest.json").exists():
        return False
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    return True


def _store(aside: Path, replica: Replica, rank: int, index: int) -> StoredFile:
    """Write the parameters that this rank owns, and their state, or what it alone has of that."""
    name = f"rank-{rank:05d}.h5"
    slices = write_slices(aside / name, replica, index)
    return {"name": name, "sha256": sha256(aside / name), "slices": slices}


def _end(
    final: Path,
    aside: Path,
    replica: Replica,
    progress: Progress,
    files: Sequence[StoredFile],
    keep: int,
    spared: Path | None,
) -> None:
    """Write the manifest, put the checkpoint in its place and remove old ones, but not the one that is spared."""
    manifest = {
        "format": FORMAT,
        "step": replica.step,
        "dtype": replica.dtype.name,
        "input_shape": replica.input_shape,
        "parameters": replica.shapes,
        "files": files,
        "progress": progress.to_dict(),
    }
    write_whole(aside / "manifest.json", seal(manifest))
    shutil.rmtree(final, ignore_errors=True)  # what is left of one that was removed
    os.rename(aside, final)
    fsync(final.parent)
    for old in _all(final.parent)[:-keep]:
        if old != spared:
            _remove(old)


def _compare_shapes(path: Path, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise InputError(
                f"a checkpoint of another model: they differ in {name}",
                where=path,
                found=f"shape {found[name]}" if name in found else "no such parameter",
                expected=f"shape {expected[name]}" if name in expected else "no such parameter",
                remedy="start a new run folder with --run-dir, or train the model that this run began with",
            )


def _reason(error: BaseException) -> str:
    """Return the operating system's words for a failed write: HDF5 buries its number in a page of its own."""
    number = re.search(r"errno =? ?(\d+)", str(error), re.IGNORECASE)
    return os.strerror(int(number[1])) if number else str(error)
