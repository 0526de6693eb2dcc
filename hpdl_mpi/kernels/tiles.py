"""Linear transforms of small tiles of an image, as vector instructions; see `kernels.emit`.

A tile is a square of vectors over channels. A transform multiplies it from both sides with a constant matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import combinations
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hpdl_mpi.kernels.emit import DTYPE_NAMES, INDEX, Emitter, call_apart, element_pointer, index
from hpdl_mpi.kernels.schemes import Matrix, Scheme


def tile_transform(
    name: str, matrix_of: Callable[[type[Scheme]], Matrix], *, biased: bool = False, adds: bool = False
) -> Any:
    """Return a function for kernels that computes target = matrix @ source @ matrix.T.

    Parameters
    ----------
    name : str
        Of these instructions, unlike all others.
    matrix_of : callable
        Returns the matrix, (m, n), of a scheme.
    biased : bool
        Whether a vector is added to each of the target's.
    adds : bool
        Whether the result is added to what the target holds.
    """

    @intrinsic
    def transform(typing_context, scheme, source, source_place, inside, target, target_place, within, channels, bias):
        """Transform a tile.

        Parameters
        ----------
        scheme : Scheme
        source, source_place : flat array, (start, down, right)
            Channel c of the tile's element i, j is at start + i down + j right + c.
        inside : (top, bottom, left, right)
            The elements that exist: top <= i < bottom, left <= j < right. The others count as zero.
        target, target_place : flat array, (start, down, right)
        within : (rows, columns)
            How many of the target's are written.
        channels : int
        bias : flat array, (channels,)
            Read if `biased`.
        """
        dtype = target.dtype
        kind = scheme.instance_class
        matrix = matrix_of(kind)
        m, n = len(matrix), len(matrix[0])

        def write(builder, source, *numbers):
            s_down, s_right, top, bottom, left, right, target, t_down, t_right, rows, columns, channels, bias = numbers
            emit = Emitter(builder, dtype)
            sources, targets = _offsets(builder, (s_down, s_right), n), _offsets(builder, (t_down, t_right), m)
            exists = _square(builder, (top, bottom), (left, right), n)
            wanted = _square(builder, (index(0), rows), (index(0), columns), m)
            # What does not exist is read here, and what nobody wants goes there: cheaper than masks.
            zeros, waste = (builder.bitcast(cgutils.alloca_once(builder, emit.type), source.type) for _ in range(2))
            builder.store(emit.zero, emit.vector(zeros))
            whole = exists[0][0]
            for flag in (exists[-1][-1], wanted[-1][-1]):
                whole = builder.and_(whole, flag)

            def write_vectors(first: Any, lanes: Any, edge: bool) -> None:
                def load(pointer: Any) -> Any:
                    return emit.load(pointer, lanes)

                def pointer(base: Any, offset: Any, there: Any, instead: Any) -> Any:
                    found = builder.gep(base, [builder.add(first, offset)])
                    return builder.select(there, found, instead) if edge else found

                half = []
                for j in range(n):
                    column = [load(pointer(source, sources[i][j], exists[i][j], zeros)) for i in range(n)]
                    half.append(_combine(emit, matrix, column))
                plus = load(builder.gep(bias, [first])) if biased else None
                for i, row in enumerate(zip(*half, strict=True)):
                    for j, vector in enumerate(_combine(emit, matrix, row)):
                        place = pointer(target, targets[i][j], wanted[i][j], waste)
                        for term in (plus, load(place) if adds else None):
                            vector = vector if term is None else builder.fadd(vector, term)
                        emit.store(vector, place, lanes)

            with cgutils.for_range_slice(builder, index(0), channels, index(emit.lanes), INDEX) as (first, _):
                left_over = builder.sub(channels, first)
                with builder.if_else(builder.icmp_signed(">=", left_over, index(emit.lanes))) as (full, tail):
                    with full, builder.if_else(whole) as (inner, border):
                        with inner:
                            write_vectors(first, None, edge=False)
                        with border:
                            write_vectors(first, None, edge=True)
                    with tail:
                        write_vectors(first, emit.first_lanes(left_over), edge=True)

        def generate(context, builder, signature, arguments):
            _, source_, source_place_, inside_, target_, target_place_, within_, channels_, bias_ = arguments
            source_start, *source_strides = cgutils.unpack_tuple(builder, source_place_)
            target_start, *target_strides = cgutils.unpack_tuple(builder, target_place_)
            source_data, target_data, bias_data = (
                element_pointer(context, builder, array, value, start)
                for array, value, start in (
                    (source, source_, source_start),
                    (target, target_, target_start),
                    (bias, bias_, index(0)),
                )
            )
            values = [source_data, *source_strides, *cgutils.unpack_tuple(builder, inside_)]
            values += [target_data, *target_strides, *cgutils.unpack_tuple(builder, within_), channels_, bias_data]
            call_apart(builder, f"hpdl_tile_{name}_{kind.__name__}_{DTYPE_NAMES[dtype]}", values, write)
            return context.get_dummy_value()

        parameters = scheme, source, source_place, inside, target, target_place, within, channels, bias
        return types.void(*parameters), generate

    return transform


def _offsets(builder: Any, strides: tuple[Any, Any], size: int) -> list[list[Any]]:
    """Return where the elements of a tile lie."""
    down, right = strides
    return [
        [builder.add(builder.mul(down, index(i)), builder.mul(right, index(j))) for j in range(size)]
        for i in range(size)
    ]


def _square(builder: Any, rows: tuple[Any, Any], columns: tuple[Any, Any], size: int) -> list[list[Any]]:
    """Return which elements of a tile are between two rows and two columns."""

    def between(bounds: tuple[Any, Any], number: int) -> Any:
        low, high = bounds
        return builder.and_(
            builder.icmp_signed("<=", low, index(number)), builder.icmp_signed("<", index(number), high)
        )

    down, right = ([between(bounds, number) for number in range(size)] for bounds in (rows, columns))
    return [[builder.and_(row, column) for column in right] for row in down]


def _combine(emit: Emitter, matrix: Matrix, vectors: Sequence[Any]) -> list[Any]:
    """Return matrix @ vectors.

    Two rows that differ in the signs of some entries alone, such as those for the points a and -a, are the sum and the
    difference of two parts.
    """
    rows: list[Any] = [None] * len(matrix)
    for i, j in combinations(range(len(matrix)), 2):
        pairs = list(zip(matrix[i], matrix[j], vectors, strict=True))
        same = [(one, vector) for one, other, vector in pairs if one == other != 0]
        opposite = [(one, vector) for one, other, vector in pairs if one == -other != 0]
        if rows[i] is rows[j] is None and same and opposite and all(abs(one) == abs(other) for one, other, _ in pairs):
            part, other_part = _sum(emit, same), _sum(emit, opposite)
            rows[i] = emit.builder.fadd(part, other_part)
            rows[j] = emit.builder.fsub(part, other_part)
    return [
        _sum(emit, list(zip(factors, vectors, strict=True))) if row is None else row
        for row, factors in zip(rows, matrix, strict=True)
    ]


def _sum(emit: Emitter, terms: Sequence[tuple[Fraction, Any]]) -> Any:
    """Return the sum of factors times vectors, those with the factor 1 or -1 first."""
    builder = emit.builder
    total = None
    for factor, vector in sorted(terms, key=lambda term: (abs(term[0]) != 1, term[0] < 0)):
        if factor == 0:
            continue
        scale = ir.Constant(emit.type, [float(factor)] * emit.lanes)
        if total is None:
            total = vector if factor == 1 else builder.fmul(vector, scale)
        elif factor == 1:
            total = builder.fadd(total, vector)
        elif factor == -1:
            total = builder.fsub(total, vector)
        else:
            total = emit.fma(vector, scale, total)
    assert total is not None, "a row has something in it"
    return total


def prefetch_range(writes: bool) -> Any:
    """Return a function for kernels that lets the processor fetch part of an array, to write it or to read it soon."""

    @intrinsic
    def prefetch(typing_context, array, start, stop):
        """Fetch the elements from start to stop of a flat array, which need not exist."""

        def generate(context, builder, signature, arguments):
            array_, start_, stop_ = arguments
            emit = Emitter(builder, array.dtype)
            with cgutils.for_range_slice(builder, start_, stop_, index(emit.lanes), INDEX) as (place, _):
                emit.prefetch(element_pointer(context, builder, array, array_, place), writes=writes)
            return context.get_dummy_value()

        return types.void(array, start, stop), generate

    return prefetch
