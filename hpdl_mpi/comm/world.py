"""Which form the job's ranks take: processes of an MPI job, or one process on its own."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import sys
import time
import warnings
from collections.abc import Mapping
from typing import NoReturn

from hpdl_mpi.base.errors import BAD_INPUT, InputError
from hpdl_mpi.base.failure import HEAD_START, abort_on_exception
from hpdl_mpi.base.launcher import launched, launcher_rank
from hpdl_mpi.comm.communicator import Communicator
from hpdl_mpi.comm.single import SingleCommunicator


@functools.cache
def world() -> Communicator:
    """Return the group of all ranks of this job. Collective the first time; later calls return the same object.

    The MPI library that mpi4py finds decides; a process that no launcher started is a world of one, with or without
    such a library. Where there are several ranks, an exception that nobody catches ends the whole job from now on
    (see `abort_on_exception`).

    Raises
    ------
    InputError
        The launcher started several processes that the MPI library does not connect, or MPI has ended already.
    """
    size, library, reason = _load_library()
    if size == 0:
        raise InputError("MPI has ended already", remedy="call MPI.Finalize after training, or leave it to mpi4py")
    if error := mismatch(os.environ, size, library, reason):
        if launcher_rank(os.environ) != 0:
            # Rank 0 speaks for all; many launchers end the others as soon as one has failed.
            time.sleep(HEAD_START)
            sys.exit(BAD_INPUT)
        abort_on_exception(SingleCommunicator())
        raise error
    if size == 1:
        return SingleCommunicator()
    from hpdl_mpi.comm.mpi import MpiCommunicator

    comm = MpiCommunicator.world()
    abort_on_exception(comm)
    return comm


# `connect`, `abort` and `leave` make this module a `base.start.LateMpi`: they serve a process that ends without having
# asked for the `world`.


def connect() -> None:
    """Start MPI if there is a library, which waits until all ranks do so."""
    _load_library()


def abort(code: int) -> NoReturn:
    """End all ranks of the job with this exit code; starts MPI if need be, which waits until all ranks do so."""
    if _load_library()[0] < 2:
        raise SystemExit(code)
    from hpdl_mpi.comm import mpi

    mpi.abort(code)


def leave() -> None:
    """Say that this rank's program ends, in a `world` made for that, and wait until all ranks have. Collective."""
    size, library, _ = _load_library()
    if size > 1 and mismatch(os.environ, size, library) is None:
        from hpdl_mpi.comm.mpi import MpiCommunicator

        MpiCommunicator.world().leave()


def _load_library() -> tuple[int, str | None, str]:
    """Start MPI; return the size of its world and the library's name, or 1, None and the reason why there is none.

    The size is 0 if MPI has ended already.
    """
    # What failed is said by ourselves; the library's own words would only follow.
    os.environ.setdefault("MPIR_CVAR_SUPPRESS_ABORT_MESSAGE", "1")
    if "SLURM_PROCID" in os.environ and _mpich_is_a_wheel():
        # UCX announces itself in blocks of 4 kB, of which Slurm's PMI-2 reads 1 kB: now and then ranks do not meet.
        os.environ.setdefault("MPIR_CVAR_CH4_NETMOD", "ofi")
    with warnings.catch_warnings():
        # On every rank of a mismatched launcher; `mismatch` says it once, with the remedy.
        warnings.filterwarnings("ignore", "suspicious MPI execution environment", RuntimeWarning)
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:  # mpi4py is absent, or no library can be loaded
            return 1, None, "; ".join(str(error).splitlines())
    if not MPI.Is_initialized():  # mpi4py was told to leave it to somebody else
        MPI.Init()
    name, version = MPI.get_vendor()
    size = 0 if MPI.Is_finalized() else MPI.COMM_WORLD.size
    return size, f"{name} {'.'.join(map(str, version))}", ""


def _mpich_is_a_wheel() -> bool:
    """Return whether MPICH was installed by pip: it has both network modules, which a cluster's own may not."""
    try:
        importlib.metadata.distribution("mpich")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def mismatch(
    environ: Mapping[str, str], world_size: int, library: str | None = None, reason: str = ""
) -> InputError | None:
    """Return the error to raise when the launcher started more processes than the MPI library connects, else None.

    Parameters
    ----------
    environ : mapping
        The environment of the process.
    world_size : int
        The number of ranks that the MPI library sees; 1 without a library.
    library : str, optional
        The name of the MPI library that mpi4py has loaded.
    reason : str
        Why it has loaded none.
    """
    found = launched(environ)
    if found is None or found[1] <= world_size:
        return None
    variable, processes, _ = found
    if library is None:
        seen = f"no MPI library: {reason}"
        remedy = "Load the cluster's MPI, or install the wheel: pip install mpich"
    else:
        seen = library
        mpirun = os.path.join(sys.prefix, "bin", "mpirun")
        remedy = (
            f"Start the job with the mpirun of {library} (the wheel's is {mpirun}), or with srun --mpi=pmi2 or"
            " --mpi=pmix, whichever that library knows"
        )
    return InputError(
        "the launcher and the MPI library do not belong together",
        found=f"a world of {world_size} in each process ({seen})",
        expected=f"{processes} ranks ({variable}={processes})",
        remedy=remedy,
    )
