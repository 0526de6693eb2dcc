"""Segments of messages go their own way, in the order that their elements ask for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdl_mpi.comm import ALLREDUCES, Collective, Communicator, run_threads
from hpdl_mpi.comm.communicator import Transfer
from hpdl_mpi.comm.faults import Delay
from hpdl_mpi.comm.messages import Messages
from hpdl_mpi.comm.schedule import Op, Program, Step
from hpdl_mpi.kernels.wire import WIRES

BY_MESSAGES = [name for name, kind in ALLREDUCES.items() if not kind.shares]


class Message(Transfer):
    """A message that is over when the test says so."""

    peers: Sequence[int] = ()

    def __init__(self, name: str) -> None:
        self.name = name
        self.started = self.over = False

    def start(self) -> None:
        self.started, self.over = True, False

    def test(self) -> bool:
        return self.over


class Wire:
    """In place of a Communicator: keeps the messages that are prepared."""

    world_ranks = range(9)

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def _prepare(self, array: np.ndarray, peer: int, tag: int) -> Message:
        self.messages.append(Message(f"{len(self.messages)}"))
        return self.messages[-1]

    send_init = recv_init = _prepare

    @property
    def started(self) -> list[int]:
        """The numbers of the messages that have started."""
        return [number for number, message in enumerate(self.messages) if message.started]


def test_rounds_are_told_of_as_they_end_in_whatever_order() -> None:
    """Two pieces go to rank 1 and rank 2 in rounds 0 and 1; round 3 sends on what round 2 brings."""
    program = [
        (Step(Op.SEND, 0, 4, 1),),
        (Step(Op.SEND, 4, 8, 2),),
        (Step(Op.RECV, 8, 12, 1),),
        (Step(Op.SEND, 8, 12, 2),),
    ]
    told: list[tuple[int, int, float]] = []
    wire, array = Wire(), np.zeros(12, np.float32)
    messages = Messages(wire, list(enumerate(program)), array, 0, 2)
    messages.record(lambda *what: told.append(what))
    messages.start(1)
    assert not told
    for number in (2, 3, 4):  # of two segments each: all of round 1, half of round 2
        wire.messages[number].over = True
    assert not messages.test()
    assert [(first, last) for first, last, _ in told] == [(1, 1)]
    for message in wire.messages:
        message.over = True
    assert not messages.test()
    wire.messages[6].over = wire.messages[7].over = True
    assert messages.test()
    assert [first for first, _, _ in told] == [1, 0, 2, 3]
    began = {first: when for first, _, when in told}
    assert began[0] <= began[1] <= began[2] < began[3]
    messages.record(None)
    messages.start(2)
    assert len(told) == 4


def begin(program: Program, size: int, length: int) -> tuple[Messages, Wire, np.ndarray]:
    wire, array = Wire(), np.zeros(size, np.float32)
    messages = Messages(wire, list(enumerate(program)), array, 0, length)
    messages.start(1)
    return messages, wire, array


def test_a_segment_is_sent_on_as_soon_as_it_has_come() -> None:
    messages, wire, _ = begin([(Step(Op.RECV, 0, 4, 1),), (Step(Op.SEND, 0, 4, 2),)], 4, 2)
    assert wire.started == [0, 1]  # both receives
    wire.messages[0].over = True
    assert not messages.test()
    assert wire.started == [0, 1, 2]
    wire.messages[1].over = True
    messages.test()
    assert wire.started == [0, 1, 2, 3]
    assert str(messages) == "round 1: send [0, 4) to rank 2 (0 of 2 segments)"
    assert messages.peers == [2]
    wire.messages[2].over = wire.messages[3].over = True
    assert messages.test()


def test_nothing_is_written_over_before_it_has_left() -> None:
    messages, wire, _ = begin([(Step(Op.SEND, 0, 2, 1),), (Step(Op.RECV, 1, 3, 2),)], 3, 1)
    assert wire.started == [0, 1]  # of [1, 3) the first element is still to be sent, and messages keep their order
    wire.messages[0].over = wire.messages[1].over = True
    messages.test()
    assert wire.started == [0, 1, 2, 3]


def test_what_is_exchanged_is_added_when_its_own_has_left() -> None:
    program = [(Step(Op.RECV_REDUCE, 0, 2, 1), Step(Op.SEND, 0, 2, 1))]
    messages, wire, _ = begin(program, 2, 2)
    messages.test()
    receive, send = wire.messages
    receive.over = True
    assert not messages.test()
    assert messages.peers == [1, 1]
    send.over = True
    assert messages.test()


def test_few_segments_wait_to_be_added() -> None:
    messages, wire, _ = begin([(Step(Op.RECV_REDUCE, 0, 5, 1),)], 5, 1)
    assert wire.started == [0, 1]
    wire.messages[0].over = True
    messages.test()
    assert wire.started == [0, 1, 2]


@pytest.mark.parametrize("wire", [None, *WIRES])
@pytest.mark.parametrize("name", BY_MESSAGES)
@settings(max_examples=15, deadline=None)
@given(num_ranks=st.integers(1, 6), size=st.integers(0, 60), length=st.integers(1, 70), slow=st.integers(0, 5))
def test_any_cut_gives_the_same_bits(
    name: str, wire: str | None, num_ranks: int, size: int, length: int, slow: int
) -> None:
    """With messages of one rank late, too, and called again; rounded ones differ from exact sums by what is rounded."""
    random = np.random.default_rng(size)
    terms = random.standard_normal((num_ranks, size)).astype(np.float32)
    faults = [Delay(slow % num_ranks, other, 1e-3) for other in range(num_ranks) if other != slow % num_ranks]

    def add_up(comm: Communicator, segment_bytes: int) -> list[bytes]:
        array = np.empty(size, np.float32)
        program = ALLREDUCES[name].programs(comm.nodes, size, comm.rank)
        kind = WIRES[wire] if wire else None
        collective = Collective(comm, program, array, segment_bytes=segment_bytes, wire=kind)
        results = []
        for _ in range(2):
            array[:] = terms[comm.rank]
            collective()
            results.append(array.tobytes())
        return results

    whole = run_threads(num_ranks, lambda comm: add_up(comm, 1 << 20))
    cut = run_threads(num_ranks, lambda comm: add_up(comm, 4 * length), faults=faults)
    assert len({bits for results in (*whole, *cut) for bits in results}) == 1
    # A number is rounded once on its way to each of two neighbours at most in each of a ring's rounds, to 8 or 11 bits.
    rounded = {None: 0.0, "bf16": 2.0**-8, "fp16": 2.0**-11}[wire] * 2 * num_ranks
    bound = 1e-5 + rounded * np.abs(terms).sum(0)
    assert (np.abs(np.frombuffer(cut[0][0], np.float32) - terms.sum(0)) <= bound).all()
