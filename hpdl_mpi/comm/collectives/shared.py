"""Collectives in memory that ranks of one machine share: no messages, only signals.

Chunk k of the array is summed by its owner, rank k, in the order k, k + 1, ..., around; the others copy its bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from hpdl_mpi.base.shares import share
from hpdl_mpi.comm.schedule import Op, Program, Round, Step

_TURN = 1 << 17
"""Elements of a turn, pieces of all chunks together: 512 KiB of float32. Shorter ones wait more often for one another,
longer ones leave the cache of a core before they are read again."""

_PIECE = 1 << 12
"""Elements that are summed and written before the next ones are: 16 KiB of float32, which the nearest cache holds."""

_SLOTS = 3
"""Turns whose pieces a window holds: were they fewer, some would be written anew while others still read them."""


def one_shot_allreduce(num_ranks: int, num_elements: int, rank: int) -> Program:
    """Let every rank show its array and add up all of them, in the order of ranks: a single wait, for short arrays."""
    others = _others(range(num_ranks), rank)
    if not others:
        return []
    reads = [Step(Op.READ_REDUCE if source else Op.READ, 0, num_elements, source) for source in range(num_ranks)]
    return [(Step(Op.COPY, 0, num_elements, rank), *_signals(others), *_waits(others), *reads)]


def two_shot_allreduce(num_ranks: int, num_elements: int, rank: int, piece: int | None = None) -> Program:
    """Let every rank add up its chunk of what the others show, and show the sum: each sum is made once.

    Pieces of the chunks pass through the windows in turns, and windows are small enough to stay in the cache.

    Parameters
    ----------
    num_ranks, num_elements, rank : int
    piece : int, optional
        Elements of a piece.
    """
    return exchange(range(num_ranks), num_ranks, num_elements, rank, piece)


def window_allreduce(num_ranks: int, num_elements: int, rank: int, piece: int | None = None) -> Program:
    """Sum arrays that lie in the windows themselves: each rank makes its chunk of the sum and writes it to all.

    One pass over the memory, and nothing is copied. See `two_shot_allreduce` for the parameters.
    """
    ranks = range(num_ranks)
    meet = meeting(ranks, rank)
    chunk = share(num_elements, rank, num_ranks)
    work = over_chunk(ranks, rank, chunk, (Op.READ_REDUCE, Op.WRITE), piece)
    return [(*meet, *work, *meet)] if meet else []


def over_chunk(
    ranks: Sequence[int], rank: int, chunk: tuple[int, int], ops: Sequence[Op], piece: int | None = None
) -> list[Step]:
    """Return steps that do all of `ops` with the windows of all other ranks, piece by piece of a chunk.

    Each op takes them in the opposite order of the one before, so that two ops in a row are on one window.
    """
    (first, last), length, others = chunk, piece or _PIECE, _others(ranks, rank)
    return [
        Step(op, start, min(start + length, last), peer, start)
        for start in range(first, last, length)
        for turn, op in enumerate(ops)
        for peer in (others if turn % 2 == 0 else reversed(others))
    ]


def meeting(ranks: Sequence[int], rank: int) -> Round:
    """Return steps that are over when all ranks have begun them."""
    others = _others(ranks, rank)
    return (*_signals(others), *_waits(others))


def exchange(
    ranks: Sequence[int],
    num_owners: int,
    num_elements: int,
    rank: int,
    piece: int | None = None,
    *,
    reduces: bool = True,
    gathers: bool = True,
) -> Program:
    """Sum chunks by their owners and copy the sums to all, or one half of that.

    Turns follow one another like parts on an assembly line: all show their pieces of a turn, while owners add up those
    of the turn before and show the sums, while all copy the sums of the turn before that.

    Parameters
    ----------
    ranks : sequence of int
        Those of one machine, the owners first.
    num_owners : int
        Into how many chunks the array is cut.
    num_elements, rank : int
    piece : int, optional
        Elements of a piece at most.
    reduces, gathers : bool
        Whether chunks are summed, and whether they are copied to all.
    """
    others = _others(ranks, rank)
    if not others:
        return []
    length = piece or max(1, _TURN // num_owners)
    owners = {owner: share(num_elements, chunk, num_owners) for chunk, owner in enumerate(ranks[:num_owners])}
    num_turns = max(-(-(stop - start) // length) for start, stop in owners.values())

    def step(op: Op, turn: int, owner: int, peer: int) -> Step:
        first, last = owners[owner]
        start, stop = (first + edge for edge in share(last - first, turn, num_turns))
        return Step(op, start, stop, peer, (turn % _SLOTS * num_owners + ranks.index(owner)) * length)

    def show_parts(turn: int) -> Round:
        theirs = [owner for owner in owners if owner != rank]
        shown = [step(Op.COPY, turn, owner, rank) for owner in theirs] if reduces else []
        return (*shown, *_signals(theirs))

    def show_sum(turn: int) -> Round:
        if rank not in owners:
            return ()
        reads = [[step(Op.READ_REDUCE, turn, rank, peer)] if reduces else [] for peer in others]
        shown = [step(Op.COPY, turn, rank, rank)] if gathers else []
        return (*_after_waits(others, reads), *shown, *_signals(others))

    def copy_sums(turn: int) -> Round:
        theirs = [owner for owner in others if owner in owners]
        return _after_waits(theirs, [[step(Op.READ, turn, owner, owner)] if gathers else [] for owner in theirs])

    stages = (show_parts, show_sum, copy_sums)
    rounds = [
        stage(now - lag)
        for now in range(num_turns + len(stages) - 1)
        for lag, stage in enumerate(stages)
        if 0 <= now - lag < num_turns
    ]
    return [steps for steps in rounds if steps]


def _others(ranks: Sequence[int], rank: int) -> list[int]:
    """Return all but one of some ranks, those that follow it first."""
    place = ranks.index(rank)
    return [*ranks[place + 1 :], *ranks[:place]]


def _signals(peers: Sequence[int]) -> list[Step]:
    return [Step(Op.SIGNAL, 0, 0, peer) for peer in peers]


def _waits(peers: Sequence[int]) -> list[Step]:
    return [Step(Op.WAIT, 0, 0, peer) for peer in peers]


def _after_waits(peers: Sequence[int], steps: Sequence[Sequence[Step]]) -> Round:
    """Return a wait for each peer, with what is to be done after it."""
    return tuple(chain.from_iterable([wait, *after] for wait, after in zip(_waits(peers), steps, strict=True)))
