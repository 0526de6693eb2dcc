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
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from hpdl_mpi.base.errors import InputError, StorageError, TrainingError
from hpdl_mpi.base.files import fsync, write_whole
from hpdl_mpi.comm import Communicator
from hpdl_mpi.data.hdf5 import lies_elsewhere, reading
from hpdl_mpi.nn import Shape
from hpdl_mpi.parallel import Replica
from hpdl_mpi.train.manifest import DAMAGED, FORMAT, StoredFile, damaged, read_manifest, remedy, seal
from hpdl_mpi.train.progress import Progress

_PREFIX = "step-"


def save(folder: Path, replica: Replica, progress: Progress, comm: Communicator, *, keep: int) -> Path:
    """Write a checkpoint below `folder` and remove all but the `keep` latest. Collective over the data-parallel ranks.

    Parameters
    ----------
    folder : Path
        Of all checkpoints of a run, seen by all ranks.
    replica : Replica
        Equal on all ranks of `comm`, which is checked; rank 0 writes its own.
    progress : Progress
        What `load` returns.
    comm : Communicator
    keep : int

    Raises
    ------
    TrainingError
        Ranks hold different parameters, or such that are not finite; nothing is written.
    StorageError
        The folder cannot be written or the disk is full; earlier checkpoints are intact.
    """
    _compare_checksums(replica, comm)
    require_finite(replica)
    final = folder / f"{_PREFIX}{replica.step:010d}"
    failure = None
    if comm.rank == 0:
        try:
            _write(final, replica, progress)
            for old in _all(folder)[:-keep]:
                _remove(old)
        except (OSError, RuntimeError) as error:  # HDF5 reports a full disk as either
            failure = _reason(error)
    failure = comm.bcast_obj(failure)
    if failure is not None:
        raise StorageError(
            "the checkpoint could not be written; earlier checkpoints are intact",
            where=final,
            found=failure,
            remedy="make room or mend the permissions, then continue with --resume",
            shared=True,
        )
    return final


def require_finite(replica: Replica) -> None:
    """Raise a TrainingError, alike on all ranks, unless all parameters are finite."""
    if not replica.is_finite():
        raise TrainingError(
            f"parameters are not finite after step {replica.step}, so they are not saved",
            where="training",
            remedy="lower optimizer.lr or set training.clip_norm, and continue from the last checkpoint with --resume",
            shared=True,
        )


def latest(folder: Path) -> Path | None:
    """Return the latest whole checkpoint below a folder, if there is one."""
    found = _all(folder)
    return found[-1] if found else None


def load(path: Path, replica: Replica) -> Progress:
    """Fill a replica from a checkpoint and return where its run stood. Local: every rank reads for itself.

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
    shapes = {segment.name: segment.shape for segment in replica.layout.segments}
    _compare_shapes(path, manifest["parameters"], shapes)
    targets = {
        (kind, segment.name): array[segment.start : segment.stop]
        for kind, array in _arrays(replica).items()
        for segment in replica.layout.segments
    }
    filled = dict.fromkeys(targets, 0)
    for entry in manifest["files"]:
        _read_slices(path / entry["name"], entry, targets, filled)
    for (kind, name), count in filled.items():
        if count != targets[kind, name].size:
            raise InputError(
                "the checkpoint lacks state that this run needs",
                where=path,
                found=f"{count} elements of {kind} for {name}",
                expected=targets[kind, name].size,
                remedy="continue with the optimizer that the run began with",
            )
    replica.step = manifest["step"]
    return manifest["progress"]


def checksum(replica: Replica) -> str:
    """Return a digest of the parameters' bytes."""
    return hashlib.blake2b(replica.params.data, digest_size=16).hexdigest()


def _all(folder: Path) -> list[Path]:
    """Return the whole checkpoints below a folder, oldest first."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if (path / "manifest.json").exists())


def _compare_checksums(replica: Replica, comm: Communicator) -> None:
    sums = comm.allgather_obj(checksum(replica))
    astray = [rank for rank, value in enumerate(sums) if value != sums[0]]
    if astray:
        raise TrainingError(
            f"data-parallel ranks {astray} hold other parameters than rank 0 after step {replica.step}",
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


def _write(final: Path, replica: Replica, progress: Progress) -> None:
    if (final / "manifest.json").exists():
        return  # this step is saved already, and its state is the same
    aside = final.with_name(f".{final.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        name = "rank-00000.h5"
        slices = _write_slices(aside / name, replica)
        manifest = {
            "format": FORMAT,
            "step": replica.step,
            "dtype": replica.dtype.name,
            "input_shape": replica.input_shape,
            "parameters": {segment.name: segment.shape for segment in replica.layout.segments},
            "files": [{"name": name, "sha256": _sha256(aside / name), "slices": slices}],
            "progress": progress.to_dict(),
        }
        write_whole(aside / "manifest.json", seal(manifest))
        shutil.rmtree(final, ignore_errors=True)  # what is left of one that was removed
        os.rename(aside, final)
        fsync(final.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _arrays(replica: Replica) -> dict[str, np.ndarray]:
    """Return the flat arrays that a checkpoint holds, by their kinds."""
    return {"params": replica.params} | {f"slot:{name}": array for name, array in replica.slots.items()}


def _write_slices(path: Path, replica: Replica) -> list[tuple[str, str, int, int]]:
    """Write all segments of all flat arrays; return (kind, parameter name, first, last + 1 element) of each.

    HDF5 only lays the file out. We write the elements ourselves, straight from the flat arrays: where the disk is full
    that raises an error, while HDF5 can crash the process.
    """
    slices, places = [], []
    with h5py.File(path, "w") as file:
        for kind, array in _arrays(replica).items():
            for segment in replica.layout.segments:
                part = array[segment.start : segment.stop]
                dataset = _lay_out(file, f"{kind}/{segment.name}/0", part)
                slices.append((kind, segment.name, 0, part.size))
                places.append((dataset.id.get_offset(), part))
    with open(path, "r+b", buffering=0) as file:
        for offset, part in places:
            file.seek(offset)
            rest = part.data.cast("B")
            while rest:
                rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    return slices


def _lay_out(file: h5py.File, name: str, array: np.ndarray) -> h5py.Dataset:
    """Create an array of the same shape and dtype that has its place in the file but no content yet."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return file.create_dataset(name, array.shape, array.dtype, dcpl=properties)


def _read_slices(
    path: Path, entry: StoredFile, targets: Mapping[tuple[str, str], np.ndarray], filled: dict[tuple[str, str], int]
) -> None:
    """Copy the slices of one file to their targets, and note in `filled` how many elements each of these has got."""
    with reading(path, DAMAGED, remedy(path)):
        if _sha256(path) != entry["sha256"]:
            raise damaged(path, "another checksum than the manifest's")
        with h5py.File(path, "r") as file:
            for kind, name, start, stop in entry["slices"]:
                if (kind, name) not in targets:
                    continue  # state of another optimizer: `load` refuses it if ours is then missing
                key, target = f"{kind}/{name}/{start}", targets[kind, name]
                if not start == filled[kind, name] <= stop <= target.size:
                    raise damaged(path, f"{kind} of {name} from {start} to {stop}")
                source = file.get(key)
                if (
                    not isinstance(source, h5py.Dataset)
                    or lies_elsewhere(file, source)
                    or source.shape != (stop - start,)
                ):
                    raise damaged(path, f"no array {key} of {stop - start} elements")
                source.read_direct(target[start:stop])
                filled[kind, name] = stop


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
