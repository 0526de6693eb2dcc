"""Products of few rows, which take as long as the matrix takes to come from memory: each element is read once.

`kernels.gemm` copies a matrix into panels, which pays when many rows meet them. Here nothing is copied. The sum behind
an element has the same terms in the same order, so it has the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hpdl_mpi.kernels.emit import DTYPE_NAMES, INDEX, Emitter, call_apart, element_pointer, index
from hpdl_mpi.kernels.jit import contracting_kernel, exact_kernel
from hpdl_mpi.kernels.vector import transposed

FEW = 4
"""Rows. More are faster with panels."""

_STEPS = 8
"""Rows of b that are added up in one pass over the sums."""

_COLUMNS = 64
"""Of a product with a transposed matrix, of which the terms of all runs are added up before the next."""


@contracting_kernel
def _add_scaled_rows(factors, b, b_row, count, sums):
    """sums[j] += factors[t] b[t, j], for t below `count`, at most `_STEPS`, in order; b[t, j] is at t b_row + j."""
    size = sums.size
    if count < _STEPS:
        for t in range(count):
            factor, row = factors[t], b[t * b_row : t * b_row + size]
            for j in range(size):
                sums[j] += factor * row[j]
        return
    f0, f1, f2, f3 = factors[0], factors[1], factors[2], factors[3]
    f4, f5, f6, f7 = factors[4], factors[5], factors[6], factors[7]
    b0, b1 = b[:size], b[b_row : b_row + size]
    b2, b3 = b[2 * b_row : 2 * b_row + size], b[3 * b_row : 3 * b_row + size]
    b4, b5 = b[4 * b_row : 4 * b_row + size], b[5 * b_row : 5 * b_row + size]
    b6, b7 = b[6 * b_row : 6 * b_row + size], b[7 * b_row : 7 * b_row + size]
    for j in range(size):
        total = sums[j] + f0 * b0[j] + f1 * b1[j] + f2 * b2[j] + f3 * b3[j]
        sums[j] = total + f4 * b4[j] + f5 * b5[j] + f6 * b6[j] + f7 * b7[j]


@exact_kernel
def multiply_down(depth, a, a_place, b, b_place, c, c_place, size, add, sums):
    """c[i, j] = sum of a[i, t] b[t, j] over t in order.

    Parameters
    ----------
    depth : int
        How many terms a sum has.
    a, a_place, b, b_place, c, c_place : flat array, (start, row)
        The element i, j is at start + i row + j.
    size : (rows, columns)
        Of c; rows at most `FEW`.
    add : bool
        Add to what c holds.
    sums : flat array
        Scratch. So many columns are computed at once as it holds of `FEW` rows.
    """
    rows, most = size[0], sums.size // FEW
    for first in range(0, size[1], most):
        columns = min(most, size[1] - first)
        sums[: rows * columns] = 0
        for t in range(0, depth, _STEPS):
            beyond = b[b_place[0] + t * b_place[1] + first :]
            for i in range(rows):
                factors = a[a_place[0] + i * a_place[1] + t :]
                mine = sums[i * columns : (i + 1) * columns]
                _add_scaled_rows(factors, beyond, b_place[1], min(np.int64(_STEPS), depth - t), mine)
        for i in range(rows):
            start = c_place[0] + i * c_place[1] + first
            mine, target = sums[i * columns : (i + 1) * columns], c[start : start + columns]
            for j in range(columns):
                target[j] = (target[j] if add else target.dtype.type(0)) + mine[j]


@intrinsic
def multiply_across(typing_context, depth, a, b, b_place, c, size, add):
    """c[j] = sum of a[t] b[j, t] over t in order.

    Parameters
    ----------
    depth : int
        How many terms a sum has, at least 1.
    a : flat array
    b, b_place : flat array, (start, row)
        b[j, t] is at start + j row + t.
    c : flat array
    size : int
        Of c.
    add : bool
        Add to what c holds.
    """
    dtype = c.dtype

    def write(builder, depth, a, b, b_row, c, size, add):
        emit = Emitter(builder, dtype)
        step = index(emit.lanes)
        adds = emit.splat(add)
        with cgutils.for_range_slice(builder, index(0), size, step, INDEX) as (first, _):
            there = builder.sub(size, first)
            last = builder.sub(there, index(1))
            numbers = [
                builder.select(builder.icmp_signed("<", index(i), there), index(i), last) for i in range(emit.lanes)
            ]
            rows = [builder.gep(b, [builder.mul(b_row, builder.add(first, number))]) for number in numbers]
            ahead = builder.mul(b_row, step)
            total = cgutils.alloca_once(builder, emit.type)
            builder.store(emit.zero, total)

            def add_terms(term, inside):
                """Add the terms of a square, of which `inside`, if given, says which are there."""
                for row in rows:
                    emit.prefetch(builder.gep(row, [builder.add(ahead, term)]), writes=False)
                square = [emit.load(builder.gep(row, [term]), inside) for row in rows]
                factors = builder.gep(a, [term])
                few = None if inside is None else emit.load(factors, inside)
                value = builder.load(total)
                for i, column in enumerate(transposed(emit, square)):
                    if few is None:
                        factor = builder.load(builder.gep(factors, [index(i)]))
                    else:
                        factor = builder.extract_element(few, ir.Constant(ir.IntType(32), i))
                    value = emit.fma(emit.splat(factor), column, value)
                builder.store(value, total)

            rest = builder.srem(depth, step)
            whole = builder.sub(depth, rest)
            with cgutils.for_range_slice(builder, index(0), whole, step, INDEX) as (term, _):
                add_terms(term, None)
            with builder.if_then(builder.icmp_signed(">", rest, index(0))):
                add_terms(whole, emit.first_lanes(rest))
            inside = emit.first_lanes(there)
            target = builder.gep(c, [first])
            before = emit.load(target, builder.and_(inside, adds))
            emit.store(builder.fadd(before, builder.load(total)), target, inside)

    def generate(context, builder, signature, arguments):
        depth_, a_, b_, b_place_, c_, size_, add_ = arguments
        b_start, b_row = cgutils.unpack_tuple(builder, b_place_)
        a_data, b_data, c_data = (
            element_pointer(context, builder, array, value, start)
            for array, value, start in ((a, a_, index(0)), (b, b_, b_start), (c, c_, index(0)))
        )
        values: list[Any] = [depth_, a_data, b_data, b_row, c_data, size_, add_]
        call_apart(builder, f"hpdl_multiply_across_{DTYPE_NAMES[dtype]}", values, write)
        return context.get_dummy_value()

    return types.void(depth, a, b, b_place, c, size, add), generate


@exact_kernel
def multiply_few(terms, a, a_place, b, b_place, trans_b, c, c_place, size, add, sums):
    """c[i, j] = sum of a[i, t] op(b)[t, j] over t, of at most `FEW` rows; of one, where `op` transposes.

    `terms` is how many terms a sum has, and how many runs these are cut into, each added up in order. For the other
    parameters, see `multiply_down`.
    """
    k, runs = terms
    # All runs of some columns follow one another where they lie side by side in memory.
    wide = np.int64(_COLUMNS) if trans_b else max(size[1], np.int64(1))
    for first in range(0, size[1], wide):
        columns = min(wide, size[1] - first)
        for run in range(runs):
            t = run * k // runs
            depth, plus = (run + 1) * k // runs - t, add or run > 0
            if trans_b:
                row = c[c_place[0] + first :]
                place = b_place[0] + first * b_place[1] + t, b_place[1]
                multiply_across(depth, a[a_place[0] + t :], b, place, row, columns, plus)
            else:
                a_start, b_start = (a_place[0] + t, a_place[1]), (b_place[0] + t * b_place[1], b_place[1])
                multiply_down(depth, a, a_start, b, b_start, c, c_place, size, plus, sums)
