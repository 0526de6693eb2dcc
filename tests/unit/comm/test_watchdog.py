"""A job in which a rank stops ends in time, and names it. Each test starts an ``mpirun`` of its own."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from hpdl_mpi.base.errors import TrainingError
from hpdl_mpi.comm import Communicator
from hpdl_mpi.comm.threads import run_threads
from tests.mpirun import needs_mpirun, run_python
from tests.stalls import GRACE, SCRIPT, SECONDS, script


def stall(fault: str, num_ranks: int = 3) -> tuple[int, float, str]:
    """Run a job in which rank 1 does something else; return the exit code, how long it took from then, what it said."""
    done = run_python(num_ranks, "-c", script(fault))
    return done.returncode, time.time() - float(done.stdout.split()[0]), done.stderr


@needs_mpirun
def test_slow_rank_is_named_and_all_show_their_stacks() -> None:
    code, seconds, said = stall("time.sleep(60)")
    assert code == 1
    assert seconds < SECONDS + GRACE
    assert said.count("Error: ") == 1
    assert "Error: gradients, bucket 0: waited 2 s: rank 1 is late." in said
    assert "rank 1 on" in said
    assert "step 5, operation" in said
    assert [f"[rank {rank} on {socket.gethostname()}" in said for rank in range(3)] == [True] * 3
    assert "time.sleep(60)" in said or "<string>" in said, "the stack of the late rank"


@needs_mpirun
def test_stopped_rank_is_named_with_what_it_told_last() -> None:
    code, seconds, said = stall("time.sleep(1.5); os.kill(os.getpid(), signal.SIGSTOP)")
    assert code == 1
    assert seconds < SECONDS + 1.5 + GRACE
    assert "rank 1 is late" in said
    assert "no answer; its process is stopped (SIGSTOP, or a debugger)" in said
    assert "s ago: step 5, operation" in said


@needs_mpirun
def test_rank_in_a_call_that_holds_the_lock_of_python_shows_its_stacks() -> None:
    code, seconds, said = stall("ctypes.PyDLL(None).sleep(60)")
    assert code == 1
    assert seconds < SECONDS + GRACE
    assert "rank 1 is late" in said
    assert "Timeout (0:00:02.500000)!" in said
    line = 1 + SCRIPT.splitlines().index("        {fault}")
    assert f'File "<string>", line {line} in <module>' in said


@needs_mpirun
def test_killed_rank_is_named() -> None:
    code, seconds, said = stall("os.kill(os.getpid(), signal.SIGKILL)")
    assert code != 0
    assert seconds < GRACE
    assert said.count("Error: ") == 1
    assert f"[rank 1 of 3 on {socket.gethostname()}] Error: process" in said
    assert "was killed, has crashed or left without a word" in said


@needs_mpirun
def test_rank_that_skips_a_step_is_named() -> None:
    code, seconds, said = stall("comm.begin_step(7); comm.barrier()")
    assert code == 1
    assert seconds < SECONDS + GRACE
    assert "all wait for one another, so they do not make the same calls; rank 1 is in another step" in said


@needs_mpirun
def test_rank_that_raises_speaks_for_itself() -> None:
    code, seconds, said = stall("raise ValueError('a fault')")
    assert code == 1
    assert seconds < GRACE
    assert "ValueError: a fault" in said
    assert "was killed" not in said


@needs_mpirun
def test_job_without_faults_says_nothing() -> None:
    code, _, said = stall("pass")
    assert (code, said) == (0, "")


HEALTHY = """
import time
from hpdl_mpi.comm import world

comm = world()
with comm.watched(0.5):
    for _ in range(4):
        comm.barrier()
        time.sleep(1)
"""


@needs_mpirun
def test_healthy_job_says_nothing_though_it_may_wait_for_less_than_a_beat() -> None:
    done = run_python(2, "-c", HEALTHY)
    assert (done.returncode, done.stderr) == (0, "")


@needs_mpirun
@pytest.mark.parametrize("seconds", [2.0, 4.0])
def test_rank_that_ends_its_program_has_left_and_is_not_late(seconds: float) -> None:
    done = run_python(3, "-c", SCRIPT.format(seconds=seconds, fault="sys.exit(0)"))
    assert done.returncode == 1
    assert time.time() - float(done.stdout.split()[0]) < seconds + GRACE
    assert "rank 1 has ended its program; this rank still waited for it" in done.stderr
    assert "late" not in done.stderr


NESTED = """
import time
from hpdl_mpi.comm import world

comm = world()
with comm.watched(60):
    comm.barrier()
    with comm.watched(1), comm.watched(30):
        if comm.rank == 1:
            print(time.time(), flush=True)
            time.sleep(60)
        comm.barrier()
"""


@needs_mpirun
def test_the_shortest_of_watches_holds() -> None:
    done = run_python(2, "-c", NESTED)
    assert done.returncode == 1
    assert time.time() - float(done.stdout.split()[0]) < 1 + GRACE
    assert "waited 1 s: rank 1 is late" in done.stderr


AFTER_NESTED = """
import time
from hpdl_mpi.comm import world

comm = world()
with comm.watched(60):
    with comm.watched(0.5):
        comm.barrier()
    if comm.rank == 1:
        time.sleep(2)
    comm.barrier()
"""


@needs_mpirun
def test_a_watch_holds_inside_its_context_alone() -> None:
    done = run_python(2, "-c", AFTER_NESTED)
    assert (done.returncode, done.stderr) == (0, "")


IN_THE_LIBRARY = """
import os, signal, time
from hpdl_mpi.comm import world

comm = world()
with comm.watched(2):
    if comm.rank == 1:
        meet = comm.barrier
        def stop():
            meet()
            print(time.time(), flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        comm.barrier = stop
    comm.{verb}
"""


@needs_mpirun
@pytest.mark.parametrize(("verb", "said"), [("split(0)", "split of 3 ranks"), ("share(8)", "share of 3 ranks")])
def test_a_wait_inside_the_library_ends_in_time_too(verb: str, said: str) -> None:
    done = run_python(3, "-c", IN_THE_LIBRARY.format(verb=verb))
    assert done.returncode != 0
    assert time.time() - float(done.stdout.split()[0]) < 2 + GRACE
    assert "waited 2 s: rank 1 is late" in done.stderr
    assert said in done.stderr


MISMATCHED_SPLIT = """
from hpdl_mpi.comm import world

comm = world()
comm.check_calls = True
with comm.watched(20):
    comm.split(0) if comm.rank else comm.{verb}
"""


@needs_mpirun
@pytest.mark.parametrize(("verb", "said"), [("barrier()", "rank 0: barrier"), ("share(8)", "rank 0: share of 8 bytes")])
def test_groups_and_windows_are_compared_like_all_calls(verb: str, said: str) -> None:
    done = run_python(2, "-c", MISMATCHED_SPLIT.format(verb=verb))
    assert done.returncode == 1
    assert f"{said}; rank 1: split" in done.stderr


@needs_mpirun
def test_a_watch_may_be_longer_than_any_timer() -> None:
    done = run_python(2, "-c", HEALTHY.replace("0.5", "1e10").replace("sleep(1)", "sleep(0.3)"))
    assert (done.returncode, done.stderr) == (0, "")


PARTING = """
import time
from hpdl_mpi.comm import departures, world

departures._PARTING_SECONDS = 0.5
comm = world()
if comm.rank > 1:
    time.sleep(2)
"""


@needs_mpirun
def test_ranks_that_have_ended_say_once_for_whom_they_wait() -> None:
    done = run_python(4, "-c", PARTING)
    assert done.returncode == 0
    said = done.stderr.strip().splitlines()
    assert len(said) == 1, said
    assert re.fullmatch(r"\[rank 0 of 4 on .*\] has ended its program and waits for ranks 2 and 3 to do so\.", said[0])


STALL_BEFORE_STEPS = """
import sys, time
from pathlib import Path
import hpdl_mpi as hp
from hpdl_mpi import nn
from hpdl_mpi.comm import world
from hpdl_mpi.train import launch
from tests.training_cases import fit_images, make_trainer, write_images

comm = world()
data = Path(sys.argv[1], "images.h5")
if comm.rank == 0:
    write_images(data)
comm.barrier()
fit_images(make_trainer(comm), data)  # compiles what may not be in the cache yet
launch._PATIENCE, launch._LEAST_PATIENT_SECONDS = 2, 1.0
trainer = make_trainer(comm, parallel=hp.Parallel(threads=1, timeout_seconds=1))
if comm.rank == 1:
    def stall(*arguments):
        print("stalls at", time.time(), flush=True)
        time.sleep(60)
    trainer.model.build = stall
fit_images(trainer, data)
"""


@needs_mpirun
def test_a_rank_that_stops_before_the_first_step_is_named_after_a_longer_time(tmp_path: Path) -> None:
    done = run_python(2, "-c", STALL_BEFORE_STEPS, str(tmp_path))
    assert done.returncode == 1
    stalled = re.search(r"stalls at (\S+)", done.stdout)
    assert stalled, done.stdout
    assert time.time() - float(stalled[1]) < 2 + GRACE
    assert "waited 2 s: rank 1 is late" in done.stderr


def test_thread_that_is_late_is_named() -> None:
    def work(comm: Communicator) -> None:
        with comm.watched(0.2):
            comm.begin_step(3)
            if comm.rank == 1:
                time.sleep(1)
            comm.allreduce(np.ones(1))

    with pytest.raises(TrainingError, match=r"has waited 0.2 s:\n(.*\n)*  rank 1 runs \(step 3\)"):
        run_threads(3, work, timeout=10)


def test_the_shortest_of_watches_holds_among_threads() -> None:
    def work(comm: Communicator) -> None:
        with comm.watched(0.2), comm.watched(30):
            if comm.rank == 1:
                time.sleep(1)
            comm.barrier()

    with pytest.raises(TrainingError, match=r"has waited 0.2 s"):
        run_threads(2, work, timeout=10)
