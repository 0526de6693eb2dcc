"""Contenders: processes that take turns, and whose failures are told with what they said last."""

from __future__ import annotations

import os
import sys
import textwrap
import time

import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.bench.contender import Contender, ContenderError, worker_command

MEBIBYTE = 2**20

SUBJECTS = """
import time
from hpdl_mpi.bench.subject import Subject

calls = 0

def plain():
    return lambda: Subject(lambda: time.sleep(0.001), num_parameters=7)

def talkative():
    print("on standard output, which is not the pipe")
    return plain()

def unable():
    raise OSError("no such accelerator")

def crashing():
    def step():
        global calls
        calls += 1
        if calls == 8:
            raise ValueError("step eight went wrong")
    return lambda: Subject(step, 0)

def vanishing():
    import os
    def step():
        global calls
        calls += 1
        if calls == 8:
            os.abort()
    return lambda: Subject(step, 0)

def stuck():
    def the_step_that_never_ends():
        global calls
        calls += 1
        if calls == 8:
            time.sleep(1000)
    return lambda: Subject(the_step_that_never_ends, 0)

def never_ready():
    time.sleep(1000)

def remembering(imports, warmup, step):
    kept = bytearray(imports)
    def work():
        global calls
        calls += 1
        bytearray(warmup if calls == 1 else step)
    return lambda: Subject(work, num_parameters=len(kept))
"""


@pytest.fixture
def contender(tmp_path):
    """Return a function that makes a contender of a function above."""
    (tmp_path / "subjects.py").write_text(textwrap.dedent(SUBJECTS))
    path = os.pathsep.join([str(tmp_path), *sys.path])

    def make(function: str, settings: dict | None = None, **kwargs: float | str) -> Contender:
        command = worker_command(f"subjects:{function}", settings or {})
        return Contender(function, command, environ={"PYTHONPATH": path}, **kwargs)

    return make


def test_a_contender_says_that_it_is_ready_and_answers_every_turn(contender):
    with contender("plain") as one:
        assert one.ready["num_parameters"] == 7
        # A sleep lasts at least as long as it should.
        assert one.ready["step_seconds"] >= 0.001
        assert one.ask(steps=5)["seconds"] >= 0.005
        assert one.ask(steps=10)["seconds"] >= 0.010


def test_what_a_contender_prints_does_not_disturb_the_benchmark(contender):
    with contender("talkative") as one:
        assert set(one.ask(steps=1)) == {"seconds", "peak_bytes"}


def test_memory_counts_above_the_imports_and_after_the_warmup(contender):
    sizes = {"imports": 256 * MEBIBYTE, "warmup": 128 * MEBIBYTE, "step": 32 * MEBIBYTE}
    with contender("remembering", sizes) as one:
        peak = one.ask(steps=3)["peak_bytes"]
    # Arrays of this size come from the system and go back to it. The interpreter's own needs, and what the kernel has
    # not counted yet (it adds up pages in batches of each core), stay far below this.
    slack = 8 * MEBIBYTE
    assert abs(peak - sizes["step"]) < slack


def test_a_contender_that_cannot_start_is_bad_input_with_the_remedy_and_its_last_words(contender):
    with pytest.raises(InputError, match=r"unable: ended with exit code 1 before its first turn") as caught:
        contender("unable", remedy="buy one").__enter__()
    assert "Buy one. Its last words:" in str(caught.value)
    assert "OSError: no such accelerator" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_contender_that_is_never_ready_is_ended(contender):
    with pytest.raises(InputError, match=r"gave no answer within 0.5 s before its first turn"):
        contender("never_ready", start_seconds=0.5).__enter__()


def test_a_crash_in_a_turn_is_told_with_its_traceback(contender):
    with contender("crashing") as one:
        with pytest.raises(ContenderError, match=r"crashing: ended with exit code 1 in its turn") as caught:
            one.ask(steps=10)
        assert "ValueError: step eight went wrong" in str(caught.value)
        assert caught.value.exit_code == 1
        with pytest.raises(ContenderError, match="ended with exit code 1"):
            one.ask(steps=1)


def test_a_signal_that_ends_a_contender_is_named(contender):
    with contender("vanishing") as one, pytest.raises(ContenderError, match="was ended by SIGABRT in its turn"):
        one.ask(steps=10)


def test_a_contender_that_hangs_is_ended_and_shows_where_it_was(contender):
    with contender("stuck", turn_seconds=0.5) as one:
        with pytest.raises(ContenderError, match=r"gave no answer within 0.5 s in its turn") as caught:
            one.ask(steps=10)
        assert "in the_step_that_never_ends" in str(caught.value)


@pytest.mark.parametrize("failure", [None, KeyError])
def test_no_process_outlives_the_benchmark(tmp_path, failure):
    """The contender ignores that its pipe is closed; its child would outlive it."""
    script = """
        import json, os, pathlib, socket, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        pathlib.Path(sys.argv[1]).write_text(f"{os.getpid()} {child.pid}")
        socket.socket(fileno=int(sys.argv[2])).sendall(b"{}\\n")
        time.sleep(1000)
    """
    pids = tmp_path / "pids"
    contender = Contender("deaf", [sys.executable, "-c", textwrap.dedent(script), str(pids)], grace_seconds=0.1)
    try:
        with contender:
            if failure:
                raise failure
    except KeyError:
        pass
    for pid in map(int, pids.read_text().split()):
        wait_for_end(pid)


def wait_for_end(pid: int) -> None:
    """A killed process goes when the kernel gets round to it, unless nobody killed it."""
    deadline = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < deadline, f"{pid} lives"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended may wait for init to notice."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
