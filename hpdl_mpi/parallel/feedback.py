"""Gradients summed with less traffic than they are long: what a sum leaves out is added to the next step's.

So nothing is lost but time (error feedback: Karimireddy et al., "Error feedback fixes SignSGD and other gradient
compression schemes", 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.memory import aligned
from hpdl_mpi.base.trace import Trace
from hpdl_mpi.comm import (
    Collective,
    Communicator,
    Transfer,
    describe_collective,
    make_allreduce,
    ring_all_gather,
    segment_bytes_between,
)
from hpdl_mpi.kernels.compress import add_at, orthonormalize, take_largest
from hpdl_mpi.kernels.elementwise import add
from hpdl_mpi.kernels.gemm import matmul
from hpdl_mpi.kernels.random import derive_key, fill_normal
from hpdl_mpi.nn import Layout


@dataclass(frozen=True)
class Compression:
    """How gradients are compressed.

    Attributes
    ----------
    kind : {"powersgd", "top-k"}
    rank : int
        Of PowerSGD's matrices.
    density : float
        Which part of the gradients top-k sends.
    """

    kind: Literal["powersgd", "top-k"]
    rank: int = 4
    density: float = 0.01


@dataclass(frozen=True)
class Matrix:
    """A parameter whose gradient travels as the product of two thin matrices.

    Attributes
    ----------
    name : str
    start : int
        In the flat arrays.
    rows, columns : int
    rank : int
    place : int
        Where its right factor, (columns, rank), begins among those of all.
    """

    name: str
    start: int
    rows: int
    columns: int
    rank: int
    place: int


class Feedback:
    """What a rank keeps from step to step where sums are compressed.

    Parameters
    ----------
    compression : Compression
    layout : Layout
    dtype : dtype
    seed : int

    Attributes
    ----------
    residual : array, like the flat gradients
        What this rank's sums have left out so far.
    matrices : list of Matrix
        For PowerSGD.
    factors : array, flat
        Their right factors, the same on all ranks: where the next step begins.
    """

    def __init__(self, compression: Compression, layout: Layout, dtype: np.dtype, seed: int) -> None:
        self.compression = compression
        self.residual = layout.allocate(dtype)
        self.matrices = list(_matrices(compression, layout))
        size = sum(one.columns * one.rank for one in self.matrices)
        self.factors, self._drawn = aligned(size, dtype), aligned(size, dtype)
        for one in self.matrices:
            drawn = self._drawn[one.place : one.place + one.columns * one.rank]
            fill_normal(drawn, derive_key(seed, "powersgd", one.name), 1.0)
        self.reset()

    def reset(self) -> None:
        """Go back to the start."""
        self.residual.fill(0)
        np.copyto(self.factors, self._drawn)

    def right(self, one: Matrix) -> np.ndarray:
        """Return a matrix's right factor, shape (columns, rank)."""
        return _right(self.factors, one)

    def follow(self, one: Matrix, right: np.ndarray) -> None:
        """Let the next step begin with a right factor; in place of a column of zeros with what was drawn."""
        kept = self.right(one)
        np.copyto(kept, right)
        lost = ~right.any(axis=0)
        if lost.any():
            kept[:, lost] = _right(self._drawn, one)[:, lost]


def _right(factors: np.ndarray, one: Matrix) -> np.ndarray:
    return factors[one.place : one.place + one.columns * one.rank].reshape(one.columns, one.rank)


def _matrices(compression: Compression, layout: Layout) -> list[Matrix]:
    """Return the parameters that are worth it."""
    found: list[Matrix] = []
    if compression.kind != "powersgd":
        return found
    place = 0
    for segment in layout.segments:
        rows = segment.shape[0] if len(segment.shape) > 1 else 0
        columns = (segment.stop - segment.start) // rows if rows else 0
        rank = min(compression.rank, rows, columns)
        if rank * (rows + columns) < rows * columns:
            found.append(Matrix(segment.name, segment.start, rows, columns, rank, place))
            place += columns * rank
    return found


def compile_compression(dtype: DTypeLike) -> None:
    """Compress an array of this dtype in each way once, so that no step waits for the compiler. Local."""
    values = np.ones(1, dtype)
    places = np.zeros(1, f"i{values.itemsize}")
    orthonormalize(values.reshape(1, 1))
    take_largest(values, values[0], places, values.copy())
    add_at(values, places, values)


class LowRankSum(Transfer):
    """Sums a bucket's matrices as products of thin ones, and what is no matrix as it is.

    Of M = sum of all ranks' M_i it takes P = M Q, for Q of the step before, makes the columns of P orthonormal, and
    Q = M' P: then P Q' is M projected on them. Vogels, Karimireddy and Jaggi, "PowerSGD: practical low-rank gradient
    compression for distributed optimization" (2019). Constructing it is collective.

    Parameters
    ----------
    comm : Communicator
    feedback : Feedback
    gradients : array, flat
        The bucket; the caller owns it.
    start : int
        Where the bucket begins in the flat arrays.
    algorithm : str
        See `make_allreduce`.
    tag : int
        Of its messages.
    label : str
    """

    algorithm = "powersgd"

    def __init__(
        self,
        comm: Communicator,
        feedback: Feedback,
        gradients: np.ndarray,
        start: int,
        *,
        algorithm: str,
        tag: int,
        label: str,
    ) -> None:
        self.comm, self.label, self._feedback = comm, label, feedback
        stop = start + gradients.size
        self._gradients, self._residual = gradients, feedback.residual[start:stop]
        matrices = [one for one in feedback.matrices if start <= one.start < stop]
        self._plain, self.compressed = _rest(matrices, start, stop), bool(matrices)
        lefts, plain = sum(one.rows * one.rank for one in matrices), sum(last - first for first, last in self._plain)
        left = aligned(lefts + plain, gradients.dtype)
        right = aligned(sum(one.columns * one.rank for one in matrices), gradients.dtype)
        self._tail = left[lefts:]
        self._terms = list(_terms(matrices, feedback, gradients, self._residual, start, left, right))
        self._sums = [
            make_allreduce(comm, array, algorithm, tag=tag, label=f"{label}, {side} factors", joint=False)
            for side, array in (("left", left), ("right", right))
        ]
        self._stage = len(self._sums)
        self._said = describe_collective(label, gradients, f"{self.algorithm} by {algorithm}")

    def start(self) -> None:
        # When the second sum starts depends on when the first one ends, so this is all that ranks have in common.
        self.comm.begin_collective(self._said)
        add(self._gradients, self._residual, self._gradients)
        for term in self._terms:
            matmul(term.gradient, term.kept, term.left)
        self._copy_plain(out=True)
        for first, last in self._plain:
            self._residual[first:last] = 0  # a run that was compressed in another way may have left something
        self._stage = 0
        self._sums[0].start()

    def test(self) -> bool:
        while self._stage < len(self._sums):
            if not self._sums[self._stage].test():
                return False
            self._stage += 1
            if self._stage == 1:
                self._project()
                self._sums[1].start()
            else:
                self._multiply()
        return True

    def _copy_plain(self, *, out: bool) -> None:
        place = 0
        for first, last in self._plain:
            tail = self._tail[place : place + last - first]
            source, target = (self._gradients[first:last], tail) if out else (tail, self._gradients[first:last])
            np.copyto(target, source)
            place += last - first

    def _project(self) -> None:
        """Take this rank's part of the right factors, and keep what their products leave out."""
        for term in self._terms:
            orthonormalize(term.left)
            matmul(term.gradient, term.left, term.right, trans_a=True)
            np.negative(term.right, out=term.kept)
            np.copyto(term.residual, term.gradient)
            matmul(term.left, term.kept, term.residual, trans_b=True, accumulate=True)

    def _multiply(self) -> None:
        for term in self._terms:
            matmul(term.left, term.right, term.gradient, trans_b=True)
            self._feedback.follow(term.matrix, term.right)
        self._copy_plain(out=False)

    @property
    def peers(self) -> Sequence[int]:
        return self._sums[self._stage].peers if self._stage < len(self._sums) else ()

    @property
    def progress(self) -> int | None:
        known = [one.progress for one in self._sums if one.progress is not None]
        return sum(known) if known else None

    def record(self, trace: Trace | None) -> None:
        for one in self._sums:
            one.record(trace)

    def free(self) -> None:
        for one in self._sums:
            one.free()

    def __str__(self) -> str:
        return str(self._sums[min(self._stage, 1)])


@dataclass(frozen=True)
class _Term:
    """A matrix of a bucket: views of its gradient, its residual, its factors, and the right factor that is kept."""

    matrix: Matrix
    gradient: np.ndarray
    residual: np.ndarray
    left: np.ndarray
    right: np.ndarray
    kept: np.ndarray


def _terms(
    matrices: Sequence[Matrix],
    feedback: Feedback,
    gradients: np.ndarray,
    residual: np.ndarray,
    start: int,
    left: np.ndarray,
    right: np.ndarray,
) -> list[_Term]:
    terms, lefts, rights = [], 0, 0
    for one in matrices:
        part, shape = slice(one.start - start, one.start - start + one.rows * one.columns), (one.rows, one.columns)
        next_left, next_right = lefts + one.rows * one.rank, rights + one.columns * one.rank
        terms.append(
            _Term(
                one,
                gradients[part].reshape(shape),
                residual[part].reshape(shape),
                left[lefts:next_left].reshape(one.rows, one.rank),
                right[rights:next_right].reshape(one.columns, one.rank),
                feedback.right(one),
            )
        )
        lefts, rights = next_left, next_right
    return terms


def _rest(matrices: Sequence[Matrix], start: int, stop: int) -> list[tuple[int, int]]:
    """Return the runs of a bucket between its matrices, counted from its start."""
    runs, place = [], start
    for one in [*matrices, None]:
        end = stop if one is None else one.start
        if end > place:
            runs.append((place - start, end - start))
        if one is not None:
            place = one.start + one.rows * one.columns
    return runs


class LargestSum(Transfer):
    """Sums the largest elements of each rank's bucket; top-k: Stich, Cordonnier and Jaggi, "Sparsified SGD" (2018).

    Each rank sends as many values and their places. Constructing it is collective.

    Parameters
    ----------
    comm, feedback, gradients, start, tag, label
        See `LowRankSum`.
    """

    algorithm, compressed = "top-k", True

    def __init__(
        self, comm: Communicator, feedback: Feedback, gradients: np.ndarray, start: int, *, tag: int, label: str
    ) -> None:
        self.comm, self.label = comm, label
        self._gradients, self._residual = gradients, feedback.residual[start : start + gradients.size]
        count = max(1, round(feedback.compression.density * gradients.size))
        self._sizes = np.zeros_like(gradients)
        wire = aligned((comm.size, 2, count), gradients.dtype)
        self._values, self._places = wire[:, 0], wire[:, 1].view(f"i{wire.itemsize}")
        program = ring_all_gather(comm.size, wire.size, comm.rank)
        self._gather = Collective(
            comm, program, wire.reshape(-1), tag=tag, segment_bytes=segment_bytes_between(comm), label=label
        )
        self._over = True

    def start(self) -> None:
        add(self._residual, self._gradients, self._residual)
        np.abs(self._residual, out=self._sizes)
        count, own = self._values.shape[1], self.comm.rank
        self._sizes.partition(self._sizes.size - count)
        threshold = self._sizes[self._sizes.size - count]
        take_largest(self._residual, threshold, self._places[own], self._values[own])
        self._over = False
        self._gather.start()

    def test(self) -> bool:
        if not self._over and self._gather.test():
            self._gradients.fill(0)
            for places, values in zip(self._places, self._values, strict=True):
                add_at(self._gradients, places, values)
            self._over = True
        return self._over

    @property
    def peers(self) -> Sequence[int]:
        return self._gather.peers

    def record(self, trace: Trace | None) -> None:
        self._gather.record(trace)

    def __str__(self) -> str:
        return str(self._gather)


def compressed_sum(
    comm: Communicator,
    feedback: Feedback,
    gradients: np.ndarray,
    start: int,
    *,
    algorithm: str,
    tag: int,
    label: str,
) -> Transfer:
    """Return what sums a bucket as the compression says. Collective; see `LowRankSum`."""
    if feedback.compression.kind == "powersgd":
        return LowRankSum(comm, feedback, gradients, start, algorithm=algorithm, tag=tag, label=label)
    return LargestSum(comm, feedback, gradients, start, tag=tag, label=label)
