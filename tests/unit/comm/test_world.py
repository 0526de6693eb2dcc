"""Which world a process finds itself in."""

from __future__ import annotations

import sys

import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.base.launcher import launcher_rank
from hpdl_mpi.comm.world import _load_library, mismatch


@pytest.mark.parametrize(
    ("environ", "world_size"),
    [
        pytest.param({}, 1, id="no launcher"),
        pytest.param({"PMI_SIZE": "4", "PMI_RANK": "2"}, 4, id="mpirun of MPICH"),
        pytest.param({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, 4, id="mpirun of Open MPI"),
        pytest.param({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, 4, id="srun"),
        pytest.param({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, 1, id="one process in a batch script of four tasks"),
        pytest.param(
            {"PMI_SIZE": "4", "PMI_RANK": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"},
            4,
            id="mpirun in a batch script, with a helper on each of two nodes",
        ),
        pytest.param(
            {"PMI_SIZE": "1", "PMI_RANK": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"},
            1,
            id="mpirun of one rank, with a helper on each of two nodes",
        ),
        pytest.param({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, 4, id="mpirun in an interactive step"),
    ],
)
def test_world_as_large_as_the_launcher_says_is_accepted(environ: dict[str, str], world_size: int) -> None:
    assert mismatch(environ, world_size) is None


@pytest.mark.parametrize(
    "environ",
    [
        {"PMI_SIZE": "4", "PMI_RANK": "3"},
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"},
        {"MV2_COMM_WORLD_SIZE": "4", "MV2_COMM_WORLD_RANK": "3"},
        {"MPI_LOCALNRANKS": "4", "MPI_LOCALRANKID": "3"},
        {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"},
    ],
    ids=lambda environ: next(iter(environ)),
)
def test_singletons_of_another_launcher_are_refused(environ: dict[str, str]) -> None:
    error = mismatch(environ, 1, "MPICH 5.0.2")
    assert isinstance(error, InputError)
    variable = next(iter(environ))
    assert f"a world of 1 in each process (MPICH 5.0.2); expected 4 ranks ({variable}=4)" in str(error)
    assert "Start the job with the mpirun of MPICH 5.0.2" in str(error)
    assert launcher_rank(environ) == 3


def test_several_processes_without_a_library_are_told_to_get_one() -> None:
    error = mismatch({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, 1, None, "libmpi.so.12: file too short")
    assert "a world of 1 in each process (no MPI library: libmpi.so.12: file too short)" in str(error)
    assert "pip install mpich" in str(error)


def test_reason_why_no_library_can_be_loaded_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __getattr__(self, name: str) -> object:
            raise RuntimeError("cannot load MPI library\nlibmpi.so.12: file too short")

    monkeypatch.setitem(sys.modules, "mpi4py", Broken())
    assert _load_library() == (1, None, "cannot load MPI library; libmpi.so.12: file too short")


def test_process_without_a_launcher_is_rank_0() -> None:
    assert launcher_rank({}) == 0
