"""A failure on one rank of an MPI job ends all of it. Each test starts an ``mpirun`` of its own."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError, TrainingError
from hpdl_mpi.base.failure import exit_code, message
from tests.mpirun import MPIRUN, needs_mpirun, run, run_python

PROLOGUE = """
import os, signal, sys, threading, time
import numpy as np
from hpdl_mpi.base.errors import InputError, TrainingError
from hpdl_mpi.comm import agree, world

comm = world()
failing = comm.rank == 1
"""

EPILOGUE = """
comm.barrier()
comm.allreduce(np.zeros(1))
"""


def run_ranks(body: str, num_ranks: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a script whose ranks meet in collectives after `body`, in which rank 1 fails."""
    script = PROLOGUE + body + EPILOGUE
    return run_python(num_ranks, "-c", script)


@needs_mpirun
def test_job_in_which_nothing_fails_ends_in_order() -> None:
    done = run_ranks("print(agree(comm, lambda: comm.size))")
    assert (done.returncode, done.stdout.count("2"), done.stderr) == (0, 2, "")


@needs_mpirun
def test_exception_on_one_rank_ends_the_job_with_one_traceback() -> None:
    done = run_ranks("if failing: raise RuntimeError('one rank is broken')")
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.startswith("[rank 1 of 2 on ")
    assert done.stderr.rstrip().endswith("RuntimeError: one rank is broken")


@needs_mpirun
def test_exception_on_all_ranks_is_told_by_rank_0_alone() -> None:
    done = run_ranks("raise RuntimeError('all ranks are broken')")
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.startswith("[rank 0 of 2 on ")


@needs_mpirun
def test_explained_error_on_one_rank_shows_its_message_without_a_traceback() -> None:
    done = run_ranks("if failing: raise InputError('truncated', where='shard-1.h5', remedy='copy it again')")
    assert done.returncode == 2
    assert "Error: shard-1.h5: truncated. Copy it again." in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


@needs_mpirun
def test_bad_input_found_by_rank_0_is_told_once_and_exits_with_2() -> None:
    done = run_ranks("def check(): raise InputError('unknown key', where='training.epoch')\nagree(comm, check)")
    assert (done.returncode, done.stderr) == (2, "Error: training.epoch: unknown key.\n")


@needs_mpirun
def test_bad_input_that_holds_hdf5_objects_ends_in_order(tmp_path: Path) -> None:
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "elsewhere.h5"), "x", (2,))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("x", layout)
        file["y"] = np.zeros(2)
    done = run_ranks(f"from hpdl_mpi.data import Dataset\nagree(comm, lambda: Dataset.open({str(tmp_path)!r}))")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "x: is stored in other files" in done.stderr


@needs_mpirun
def test_wrong_usage_is_told_once() -> None:
    done = run([*shlex.split(str(MPIRUN)), "-n", "3", sys.executable, "-m", "hpdl_mpi", "train", "--nope"])
    assert (done.returncode, done.stderr.count("No such option")) == (2, 1)


@needs_mpirun
def test_exception_in_a_thread_ends_the_job() -> None:
    done = run_ranks(
        "def work(): raise RuntimeError('a thread is broken')\nif failing: threading.Thread(target=work).start()"
    )
    assert done.returncode == 1
    assert "RuntimeError: a thread is broken" in done.stderr


@needs_mpirun
@pytest.mark.parametrize("code", [0, 3])
def test_rank_that_exits_while_others_wait_ends_the_job(code: int) -> None:
    done = run_ranks(f"if failing: sys.exit({code})")
    assert done.returncode != 0
    assert "rank 1 has ended its program; this rank still waited for it" in done.stderr


@needs_mpirun
def test_rank_that_exits_while_others_make_a_group_ends_the_job() -> None:
    done = run_ranks("if failing: sys.exit(3)\ncomm.split(0)", num_ranks=3)
    assert done.returncode != 0
    assert "rank 1 has ended its program; this rank still waited for it" in done.stderr


START = """
import os, signal, subprocess, sys, threading, time
import hpdl_mpi
from hpdl_mpi.base.errors import InputError

failing = os.environ["PMI_RANK"] == "1"
{}
from hpdl_mpi.comm import world
world().barrier()
"""


def run_start(body: str) -> subprocess.CompletedProcess[str]:
    """Run a script whose rank 1 fails in `body`, before any rank has started MPI."""
    return run([*shlex.split(str(MPIRUN)), "-n", "2", sys.executable, "-c", START.format(body)])


@needs_mpirun
def test_exception_before_mpi_has_started_ends_the_job_with_one_traceback() -> None:
    done = run_start("if failing: raise RuntimeError('one rank is broken')")
    assert done.returncode == 1
    assert done.stderr.startswith("[rank 1 of 2 on ")
    assert done.stderr.rstrip().endswith("RuntimeError: one rank is broken")
    assert done.stderr.count("Traceback") == 1


@needs_mpirun
def test_exception_before_mpi_has_started_ends_ranks_that_start_it_without_us() -> None:
    done = run_start(
        "from mpi4py import MPI\n"
        "if failing: raise InputError('no such file')\n"
        "MPI.COMM_WORLD.Recv(bytearray(1), source=1)"
    )
    assert done.returncode == 2
    assert "Error: no such file." in done.stderr
    assert "Traceback" not in done.stderr


@needs_mpirun
def test_exception_of_all_ranks_before_mpi_has_started_is_told_by_rank_0_alone() -> None:
    done = run_start("raise RuntimeError('all ranks are broken')")
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.startswith("[rank 0 of 2 on ")


@needs_mpirun
@pytest.mark.parametrize("code", [0, 3])
def test_rank_that_exits_before_mpi_has_started_ends_the_job(code: int) -> None:
    done = run_start(f"if failing: sys.exit({code})")
    assert done.returncode != 0
    assert "rank 1 has ended its program; this rank still waited for it" in done.stderr


@needs_mpirun
def test_interrupt_before_mpi_has_started_ends_the_job() -> None:
    done = run_start("if failing: os.kill(os.getpid(), signal.SIGINT)")
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


@needs_mpirun
@pytest.mark.parametrize("code", [0, 3])
def test_exit_of_all_ranks_without_mpi_is_the_job_s(code: int) -> None:
    done = run_start(f"print('before', flush=True); sys.exit({code})")
    assert (done.returncode, done.stdout.count("before"), done.stderr) == (code, 2, "")


@needs_mpirun
def test_process_that_a_rank_starts_is_not_taken_for_a_rank() -> None:
    done = run_start(
        "if failing: subprocess.run([sys.executable, '-c', 'import hpdl_mpi'], check=True)\n"
        "if failing and os.fork() == 0: sys.exit()"
    )
    assert (done.returncode, done.stderr) == (0, "")


@needs_mpirun
@pytest.mark.parametrize("which", ["failing", "True"])
def test_program_that_ends_mpi_itself_ends_in_order(which: str) -> None:
    done = run_ranks(f"from mpi4py import MPI\ncomm.barrier()\nif {which}: MPI.Finalize()\nsys.exit()\n")
    assert (done.returncode, done.stderr) == (0, "")


@needs_mpirun
def test_mpi_that_mpi4py_was_told_not_to_start_is_started() -> None:
    script = "from hpdl_mpi.comm import world; print(world().size)"
    command = [*shlex.split(str(MPIRUN)), "-n", "2", sys.executable, "-c", script]
    done = run(command, {"MPI4PY_RC_INITIALIZE": "0"})
    assert (done.returncode, done.stdout.count("2"), done.stderr) == (0, 2, "")


@needs_mpirun
def test_mpi_that_has_ended_is_refused() -> None:
    script = "from mpi4py import MPI; MPI.Finalize(); from hpdl_mpi.comm import world; world()"
    done = run([*shlex.split(str(MPIRUN)), "-n", "2", sys.executable, "-c", script])
    assert done.returncode == 2
    assert "Error: MPI has ended already. Call MPI.Finalize after training" in done.stderr


@needs_mpirun
def test_exception_of_a_forked_process_does_not_end_the_job() -> None:
    done = run_ranks("if failing and os.fork() == 0: raise RuntimeError('a child is broken')")
    assert done.returncode == 0
    assert "a child is broken" in done.stderr
    assert "rank" not in done.stderr


@needs_mpirun
def test_exit_code_that_all_ranks_give_is_the_job_s() -> None:
    done = run_ranks("sys.exit(3)")
    assert (done.returncode, done.stderr) == (3, "")


@needs_mpirun
@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM"])
def test_rank_that_a_signal_kills_ends_the_job(number: str) -> None:
    assert run_ranks(f"if failing: os.kill(os.getpid(), signal.{number})").returncode != 0


@needs_mpirun
def test_interrupted_rank_ends_the_job_without_a_traceback() -> None:
    done = run_ranks("if failing: os.kill(os.getpid(), signal.SIGINT)")
    assert done.returncode == 130
    assert "[rank 1 of 2 on " in done.stderr
    assert "Traceback" not in done.stderr


@needs_mpirun
def test_rank_waiting_in_a_collective_answers_signals() -> None:
    done = run_ranks(
        """
signal.signal(signal.SIGALRM, lambda *_: print("answered", flush=True))
if failing:
    time.sleep(1.0)
else:
    signal.setitimer(signal.ITIMER_REAL, 0.2)
"""
    )
    assert (done.returncode, done.stdout.count("answered"), done.stderr) == (0, 1, "")


def test_singletons_of_another_launcher_are_refused_by_one_message() -> None:
    script = "from hpdl_mpi.comm import world; world()"
    ranks = [
        run([sys.executable, "-c", script], {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": rank})
        for rank in "01"
    ]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert ranks[0].stderr.startswith("Error: ")
    assert ranks[0].stderr.count("the launcher and the MPI library do not belong together") == 1
    assert ranks[1].stderr == ""


def test_exit_codes_and_messages_by_kind_of_error() -> None:
    assert [exit_code(error) for error in (InputError("x"), TrainingError("x"), KeyboardInterrupt(), KeyError())] == [
        2,
        1,
        130,
        1,
    ]
    assert message(InputError("too few", found=1), None) == "Error: too few. Found 1."
    assert message(KeyError("k"), None).endswith("KeyError: 'k'")
