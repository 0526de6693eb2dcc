"""What is done to all elements of a row, a vector at a time.

LLVM's own loops take several vectors at once, and what is left over one number after the other: most of a short row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hpdl_mpi.kernels.emit import INDEX, Emitter, element_pointer, index
from hpdl_mpi.kernels.jit import kernel


def _each_vector(emit: Emitter, count: Any, body: Callable[[Any, Any], None]) -> None:
    """Write `body` for each whole vector of `count` elements, and under a mask for the rest."""
    builder = emit.builder
    whole = builder.and_(count, index(-emit.lanes))
    with cgutils.for_range_slice(builder, index(0), whole, index(emit.lanes), INDEX) as (start, _):
        body(start, None)
    with builder.if_then(builder.icmp_signed("<", whole, count)):
        body(whole, emit.first_lanes(builder.sub(count, whole)))


def _fold(emit: Emitter, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Return all lanes of a vector, combined."""
    width = emit.lanes
    while width > 1:
        width //= 2
        vector = combine(vector, emit.shuffle(vector, vector, [lane ^ width for lane in range(emit.lanes)]))
    return emit.builder.extract_element(vector, index(0))


@intrinsic
def largest(typing_context, row, least):
    """Return the largest element of a contiguous array of one dimension, or `least`, of its dtype.

    LLVM makes no vector loop of it, since a NaN would come out elsewhere; here it is passed over.
    """

    def generate(context, builder, signature, arguments):
        emit = Emitter(builder, row.dtype)
        first = element_pointer(context, builder, row, arguments[0], index(0))
        tops = cgutils.alloca_once_value(builder, emit.splat(arguments[1]))

        def larger(before, vector):
            return builder.select(builder.fcmp_ordered(">", vector, before), vector, before)

        def take(start, mask):
            before = builder.load(tops)
            after = larger(before, emit.load(builder.gep(first, [start]), mask))
            builder.store(after if mask is None else builder.select(mask, after, before), tops)

        _each_vector(emit, context.make_array(row)(context, builder, arguments[0]).nitems, take)
        return _fold(emit, builder.load(tops), larger)

    return row.dtype(row, row.dtype), generate


@intrinsic
def inner_product(typing_context, row, other):
    """Return the sum of the products of the elements of two contiguous arrays of one dimension and one length."""

    def generate(context, builder, signature, arguments):
        emit = Emitter(builder, row.dtype)
        pairs = zip((row, other), arguments, strict=True)
        firsts = [element_pointer(context, builder, kind, array, index(0)) for kind, array in pairs]
        sums = cgutils.alloca_once_value(builder, emit.zero)

        def take(start, mask):
            one, two = (emit.load(builder.gep(first, [start]), mask) for first in firsts)
            builder.store(emit.fma(one, two, builder.load(sums)), sums)

        _each_vector(emit, context.make_array(row)(context, builder, arguments[0]).nitems, take)
        return _fold(emit, builder.load(sums), builder.fadd)

    return row.dtype(row, other), generate


@intrinsic
def scale_row(typing_context, row, factor):
    """Multiply the elements of a contiguous array of one dimension by a number of its dtype."""

    def generate(context, builder, signature, arguments):
        emit = Emitter(builder, row.dtype)
        first = element_pointer(context, builder, row, arguments[0], index(0))
        factors = emit.splat(arguments[1])

        def take(start, mask):
            place = builder.gep(first, [start])
            emit.store(builder.fmul(emit.load(place, mask), factors), place, mask)

        _each_vector(emit, context.make_array(row)(context, builder, arguments[0]).nitems, take)
        return context.get_dummy_value()

    return types.void(row, row.dtype), generate


@kernel
def copy_row(source, target):
    """target[:] = source, as far as there is a target."""
    for j in range(target.size):
        target[j] = source[j]
