"""A process that says which rank of its machine was killed, since launchers end all others before these can.

``python -I -S witness.py '{"0": PROCESS, ...}' SIZE`` waits until one of the processes is gone, and writes to standard
error which, unless somebody has said good-bye by then. Standard input is a socket to which each process connects: of
one that ends the system closes that connection together with the one to the launcher, which ends the others then; which
of them is over first is chance. It needs nothing but Python, so that it starts fast and is small.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import select
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpdl_mpi.comm.communicator import Communicator

_LAST_WORDS = 0.2
"""Seconds that a good-bye may be late."""

_PARTING_SECONDS = 2.0
"""That the witness may take to leave once it has heard a good-bye."""

_EVENTS = "/sys/fs/cgroup{}/memory.events"


class Witness:
    """The witness of this rank's machine, started by the first rank there. Collective to make and to end.

    Parameters
    ----------
    comm : Communicator
    names : sequence of int
        The ranks' numbers in the job.
    """

    def __init__(self, comm: Communicator, names: list[int]) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._process: subprocess.Popen[bytes] | None = None
        processes = comm.allgather_obj(os.getpid())
        place = b""
        if comm.node_rank == 0:
            here = {
                name: process
                for name, process, node in zip(names, processes, comm.nodes, strict=True)
                if node == comm.node
            }
            with suppress(OSError):  # a job goes on without a witness
                place = self._start(here, comm)
        place = comm.allgather_obj(place)[comm.nodes.index(comm.node)]
        with suppress(OSError):
            self._socket.connect(place)

    def _start(self, here: dict[int, int], comm: Communicator) -> bytes:
        """Start it, and return where it listens."""
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(b"")  # the system finds a name
            end.listen(comm.node_size)
            command = [sys.executable, "-I", "-S", __file__, json.dumps(here), str(comm.size)]
            # What ends the ranks is not to end it: it has a session of its own.
            self._process = subprocess.Popen(command, stdin=end.fileno(), start_new_session=True)
            return end.getsockname()

    def say_farewell(self) -> None:
        """Let nobody take it for a crash that processes end from now on. Local."""
        try:
            self._socket.send(b"farewell", socket.MSG_NOSIGNAL)
        except OSError:  # it has left
            return

    def end(self) -> None:
        """Say farewell, and wait until the witness has left, where it was started. Local."""
        self.say_farewell()
        self._socket.close()
        if self._process:
            try:
                self._process.wait(_PARTING_SECONDS)
            except subprocess.TimeoutExpired:  # it cannot have heard that
                self._process.kill()
                self._process.wait()


def watch(processes: dict[int, int], size: int) -> None:
    """Wait for the end of a rank, and tell which it was if that comes unannounced.

    Parameters
    ----------
    processes : dict of int to int
        By rank.
    size : int
        Ranks of the job.
    """
    killed = count_kills()
    end = wait_for_end({process: rank for rank, process in processes.items()})
    if end is None:
        return
    gone, when = end
    reason = ", for lack of memory" if count_kills() > killed else ", has crashed or left without a word"
    where = f"[rank {gone} of {size} on {socket.gethostname()}]"
    print(
        f"{where} Error: process {processes[gone]} was killed{reason}, at {when:%H:%M:%S.%f}"[:-3] + ".",
        file=sys.stderr,
        flush=True,
    )


def wait_for_end(ranks: dict[int, int]) -> tuple[int, datetime.datetime] | None:
    """Return the rank that has ended first, and when; None if that was announced.

    Parameters
    ----------
    ranks : dict of int to int
        By process.
    """
    door = socket.socket(fileno=0)
    guests: dict[socket.socket, int] = {}
    # Who has forked leaves its connection open to its children.
    ends = {end: rank for process, rank in ranks.items() if (end := open_process(process)) is not None}
    found: tuple[int, datetime.datetime] | None = None
    deadline = math.inf
    while (left := deadline - time.monotonic()) > 0:
        waited: list[Any] = [door, *guests, *ends]
        for one in select.select(waited, [], [], None if math.isinf(left) else left)[0]:
            if one is door:
                guest, _ = door.accept()
                process, _, _ = struct.unpack("3i", guest.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                if process in ranks:
                    guests[guest] = ranks[process]
                else:  # nobody of this job
                    guest.close()
            elif isinstance(one, socket.socket) and hear(one):
                return None
            else:
                rank = ends.pop(one) if isinstance(one, int) else guests.pop(one)
                if found is None:
                    found, deadline = (rank, datetime.datetime.now()), time.monotonic() + _LAST_WORDS
    return found


def open_process(process: int) -> int | None:
    """Return what can be waited for until a process is over; None if the system is too old, or it is already."""
    try:
        return os.pidfd_open(process)
    except OSError:
        return None


def hear(guest: socket.socket) -> bool:
    """Return whether a process says good-bye; if not, it has ended."""
    try:
        return bool(guest.recv(64))
    except OSError:
        return False


def count_kills() -> int:
    """Return how many processes of this job's group the system has ended for lack of memory."""
    try:
        with open("/proc/self/cgroup", encoding="ascii") as groups:
            group = next((line.strip().split("::")[1] for line in groups if line.startswith("0::")), "/")
        with open(_EVENTS.format(group.rstrip("/")), encoding="ascii") as events:
            return sum(int(line.split()[1]) for line in events if line.startswith("oom_kill "))
    except (OSError, ValueError, IndexError):
        return 0  # there are no such groups here


if __name__ == "__main__":
    watch({int(rank): process for rank, process in json.loads(sys.argv[1]).items()}, int(sys.argv[2]))
