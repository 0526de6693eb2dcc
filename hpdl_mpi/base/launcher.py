"""What the launcher of a job tells each process."""

from __future__ import annotations

from collections.abc import Mapping

LAUNCHERS = (
    ("PMI_SIZE", "PMI_RANK"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("MPI_LOCALNRANKS", "MPI_LOCALRANKID"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)
"""Variables in which launchers tell how many processes they started and which one this is. An ``mpirun`` inside a
Slurm job starts its helpers through ``srun``, whose variables then count the helpers: so Slurm's come last."""


def launched(environ: Mapping[str, str]) -> tuple[str, int, int] | None:
    """Return (variable, number of processes, number of this one) as the launcher tells, or None without a launcher."""
    for size, rank in LAUNCHERS:
        # What is not a number does not come from a launcher.
        if environ.get(size, "").isdecimal() and environ.get(rank, "").isdecimal():
            return size, int(environ[size]), int(environ[rank])
    return None


def launcher_rank(environ: Mapping[str, str]) -> int:
    """Return this process's number among those that the launcher started; 0 without a launcher."""
    found = launched(environ)
    return found[2] if found else 0
