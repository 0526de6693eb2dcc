"""The watch over ranks that are processes: asks where all are, without MPI, which may be what is stuck.

A thread of each rank listens on a UDP socket, and once a second tells two other ranks where its own one is. A rank that
has waited too long asks all. Those that answer also write their stacks, though their main thread may be inside a call
of C. Of those that do not the report shows what the two were told last, and whether the process is stopped. One rank
speaks: the lowest of those that wait. A rank whose thread cannot run either, because a call of C holds Python's lock,
writes its stacks by itself when the time is over, unless that is so short that the job has ended before.

Datagrams are signed with a key that MPI has handed out, so nobody else is answered or believed.
"""

from __future__ import annotations

import faulthandler
import fcntl
import hashlib
import hmac
import itertools
import os
import secrets
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydantic

from hpdl_mpi.base.errors import TrainingError
from hpdl_mpi.comm.communicator import Communicator, Work
from hpdl_mpi.comm.whereabouts import Position, Whereabouts, explain
from hpdl_mpi.comm.witness import Witness

_BEAT_SECONDS = 1.0
"""Between the times that a rank tells where it is."""

_LEAST_DUMP_SECONDS = 2.5 * _BEAT_SECONDS
"""After a beat, before a rank may write its stacks by itself: the next one comes a fifth late at times, and later still
on a machine with much to do."""

_MOST_DUMP_SECONDS = 1e8
"""That the timer of stacks can be set to."""

_ANSWER_SECONDS = 0.6
"""That ranks have to answer; they are asked once more in the middle."""

_LOOK_SECONDS = 0.2
"""Between looks at whether the watch is over."""

_DEFER_SECONDS = 1.0
"""That a rank leaves to the one that should speak."""

_THREAD, _STDERR = "watchdog", 2
_NEVER = 1e9
"""Seconds ago."""

_DIGEST_BYTES = 16
_MOST_BYTES = 60_000
_STATES = {"T": "stopped (SIGSTOP, or a debugger)", "Z": "dead", "X": "dead", "D": "waiting for a disk or file system"}


@dataclass(frozen=True)
class _Host:
    """Where a rank can be reached, and found."""

    addresses: tuple[str, ...]
    port: int
    name: str
    process: int


class _Known(pydantic.BaseModel):
    """What a rank was last told of another one, how many seconds ago, and what the system says of its process."""

    position: Position | None
    seconds: float
    state: str


class _Datagram(pydantic.BaseModel, strict=True, extra="forbid"):
    """What ranks send one another: a question, its answer, an unasked "beat", or that all are about to end."""

    kind: Literal["where", "here", "beat", "farewell"]
    rank: int
    number: int = 0
    stacks: bool = False
    position: Position | None = None
    known: dict[int, _Known] = {}


class Watchdog:
    """Watches over the ranks of a job. Collective to make and to end.

    Parameters
    ----------
    comm : Communicator
        Those that are watched.
    names : sequence of int
        What each of them is called: its rank in the job.
    whereabouts : Whereabouts
        This rank's own.
    seconds : float
        How long a rank may wait.
    """

    def __init__(self, comm: Communicator, names: Sequence[int], whereabouts: Whereabouts, seconds: float) -> None:
        self._rank, self._whereabouts, self._seconds = names[comm.rank], whereabouts, seconds
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("", 0))
        self._socket.settimeout(_LOOK_SECONDS)
        self._key = comm.bcast_obj(secrets.token_bytes(32))
        mine = _Host(_addresses(), self._socket.getsockname()[1], socket.gethostname(), os.getpid())
        self._hosts: dict[int, _Host] = dict(zip(names, comm.allgather_obj(mine), strict=True))
        self._nodes = dict(zip(names, comm.nodes, strict=True))
        self._keepers = [names[keeper] for keeper in _keepers(comm.rank, comm.nodes)]
        self._told: dict[int, tuple[Position, float]] = {}
        self._answers: dict[int, _Datagram] = {}
        self._numbers = itertools.count(1)
        self._number = 0
        self._deferred = self._speaks_at = 0.0
        self._shown = (-1, 0)
        self._witness = Witness(comm, list(names))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, name=_THREAD, daemon=True)
        self._thread.start()

    def say_farewell(self) -> None:
        """See `Witness`; say it on all machines."""
        self._witness.say_farewell()
        nodes = list(self._nodes.values())
        for rank, node in self._nodes.items():
            if node != self._nodes[self._rank] and nodes.index(node) == list(self._nodes).index(rank):
                self._send(_Datagram(kind="farewell", rank=self._rank), rank)

    def end(self) -> None:
        """Watch no more. Local."""
        self._witness.end()
        self._ended.set()
        self._thread.join()
        self._socket.close()
        faulthandler.cancel_dump_traceback_later()

    @contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """Let this rank wait no longer than this inside the context, or than before if that is shorter. Local."""
        before, self._seconds = self._seconds, min(self._seconds, seconds)
        try:
            yield
        finally:
            self._seconds = before

    @contextmanager
    def guarding(self, work: Work, peers: Sequence[int]) -> Iterator[None]:
        """End the job if what goes on inside the context takes too long: this rank cannot look after others itself.

        A thread raises what `check` does, which ends all ranks (see `abort_on_exception`).
        """
        over, since = threading.Event(), time.monotonic()

        def guard() -> None:
            while not over.wait(_LOOK_SECONDS):
                self._whereabouts.wait(work, since, peers)
                self.check(work, since)

        thread = threading.Thread(target=guard, name="guard", daemon=True)
        thread.start()
        with self._whereabouts.waiting():
            try:
                yield
            finally:
                over.set()
                thread.join()

    def check(self, work: Work, since: float) -> None:
        """Raise a TrainingError that names the ranks that are late if this one has waited for too long.

        Parameters
        ----------
        work : Work
        since : float
            When the wait began, by `time.monotonic`.
        """
        now = time.monotonic()
        if now - since < self._seconds or now < self._speaks_at:
            return
        answers = self._ask([rank for rank in self._hosts if rank != self._rank], stacks=False)
        first = min([self._rank, *(rank for rank, answer in answers.items() if _waits(answer))])
        if first != self._rank and self._deferred != since:
            self._deferred, self._speaks_at = since, time.monotonic() + _DEFER_SECONDS
            return
        answers |= self._ask(list(answers), stacks=True)
        _write_stacks(self._rank, self._hosts[self._rank])
        positions = {rank: answer.position for rank, answer in answers.items() if answer.position}
        positions[self._rank] = self._whereabouts.position()
        known = self._known()
        for answer in answers.values():
            for rank, theirs in answer.known.items():
                if rank not in known or theirs.seconds < known[rank].seconds:
                    known[rank] = theirs
        raise TrainingError(
            f"waited {now - since:.0f} s: {self._report(positions, known)}",
            where=work.label or work,
            remedy="Ranks that answer have written their stacks. If one is only slow, raise parallel.timeout_seconds",
        )

    def _report(self, positions: Mapping[int, Position], known: Mapping[int, _Known]) -> str:
        lines = [f"{explain(positions, list(self._hosts))}. Where all are:"]
        for rank, host in sorted(self._hosts.items()):
            said = str(positions[rank]) if rank in positions else _describe(known.get(rank))
            lines.append(f"  rank {rank} on {host.name}, process {host.process}: {said}")
        return "\n".join(lines)

    def _ask(self, others: Sequence[int], *, stacks: bool) -> dict[int, _Datagram]:
        """Return the answers of those ranks that give one."""
        self._answers, self._number = {}, next(self._numbers)
        question = _Datagram(kind="where", rank=self._rank, number=self._number, stacks=stacks)
        start = time.monotonic()
        asked = 0
        while (passed := time.monotonic() - start) < _ANSWER_SECONDS and len(self._answers) < len(others):
            if passed >= asked * _ANSWER_SECONDS / 2:
                asked += 1
                for rank in others:
                    if rank not in self._answers:
                        self._send(question, rank)
            time.sleep(0.01)
        return dict(self._answers)

    def _known(self) -> dict[int, _Known]:
        """Return what this rank knows of others: what those of which it is a keeper have told, and their processes."""
        found = {}
        for rank, host in self._hosts.items():
            position, when = self._told.get(rank, (None, None))
            state = _process_state(host.process) if self._nodes[rank] == self._nodes[self._rank] else ""
            if position or state:
                seconds = time.monotonic() - when if when is not None else _NEVER
                found[rank] = _Known(position=position, seconds=seconds, state=state)
        return found

    def _listen(self) -> None:
        """Hear what comes in, and tell the keepers where this rank is once in a while, until the end."""
        beat = 0.0
        while not self._ended.is_set():
            now = time.monotonic()
            if now >= beat:
                beat = now + _BEAT_SECONDS
                self._beat()
            with suppress(TimeoutError):
                self._hear(*self._socket.recvfrom(_MOST_BYTES))

    def _beat(self) -> None:
        # Stacks are written only if nothing renews this in time.
        seconds = min(max(self._seconds, _LEAST_DUMP_SECONDS), _MOST_DUMP_SECONDS)
        faulthandler.dump_traceback_later(seconds, file=_STDERR)
        beat = _Datagram(kind="beat", rank=self._rank, position=self._whereabouts.position())
        for keeper in self._keepers:
            self._send(beat, keeper)

    def _hear(self, data: bytes, address: tuple[str, int]) -> None:
        message = self._opened(data)
        if message is None:
            return
        if message.kind == "where":
            answer = _Datagram(
                kind="here",
                rank=self._rank,
                number=message.number,
                position=self._whereabouts.position(),
                known=self._known(),
            )
            self._send_to(answer, address)
            if message.stacks and self._shown != (message.rank, message.number):
                self._shown = message.rank, message.number
                _write_stacks(self._rank, self._hosts[self._rank])
        elif message.kind == "here":
            if message.number == self._number:
                self._answers[message.rank] = message
        elif message.kind == "beat":
            if message.position:
                self._told[message.rank] = message.position, time.monotonic()
        else:
            self._witness.say_farewell()

    def _send(self, message: _Datagram, rank: int) -> None:
        host, near = self._hosts[rank], self._nodes[rank] == self._nodes[self._rank]
        for address in ("127.0.0.1",) if near else host.addresses:
            self._send_to(message, (address, host.port))

    def _send_to(self, message: _Datagram, address: tuple[str, int]) -> None:
        with suppress(OSError):  # no way there, but another address may have one; who gets no answer asks again
            self._socket.sendto(self._signed(message), address)

    def _signed(self, message: _Datagram) -> bytes:
        data = message.model_dump_json().encode()
        return self._digest(data) + data

    def _opened(self, data: bytes) -> _Datagram | None:
        """Return what a datagram says, or None if it does not come from a rank of this job."""
        digest, text = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if not hmac.compare_digest(digest, self._digest(text)):
            return None
        return _Datagram.model_validate_json(text)

    def _digest(self, data: bytes) -> bytes:
        return hmac.new(self._key, data, hashlib.sha256).digest()[:_DIGEST_BYTES]


def _waits(answer: _Datagram) -> bool:
    return answer.position is not None and answer.position.waited > 0


def _describe(known: _Known | None) -> str:
    """Say what is known of a rank that does not answer."""
    if known is None:
        return "no answer"
    state = f"; its process is {known.state}" if known.state else ""
    last = f"; {known.seconds:.0f} s ago: {known.position}" if known.position else ""
    return f"no answer{state}{last}"


def _keepers(rank: int, nodes: Sequence[int]) -> list[int]:
    """Return whom a rank tells where it is: the next one, and the next on another machine."""
    others = [(rank + i) % len(nodes) for i in range(1, len(nodes))]
    elsewhere = [other for other in others if nodes[other] != nodes[rank]]
    return list(dict.fromkeys([*others[:1], *elsewhere[:1]]))


def _addresses() -> tuple[str, ...]:
    """Return the IPv4 addresses of this machine that others may reach."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                reply = fcntl.ioctl(asking.fileno(), 0x8915, request)  # SIOCGIFADDR
            except OSError:  # an interface without an address
                continue
            found.append(socket.inet_ntoa(reply[20:24]))
    return tuple(address for address in found if not address.startswith("127."))


def _process_state(process: int) -> str:
    """Return what the system says of a process of this machine, if that explains its silence."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):  # before it is opened, and before it is read
        return "gone"
    return _STATES.get(stat.rpartition(")")[2].split()[0], "")


def _write_stacks(rank: int, host: _Host) -> None:
    """Write the stacks of all threads of this process to standard error."""
    frames = sys._current_frames()
    lines = [f"[rank {rank} on {host.name}, process {host.process}] stacks:"]
    for thread in threading.enumerate():
        frame = frames.get(thread.ident) if thread.ident else None
        if frame is not None and thread.name != _THREAD:
            lines += [f"thread {thread.name}:", *"".join(traceback.format_stack(frame)).splitlines()]
    print("\n".join(lines), file=sys.stderr, flush=True)
