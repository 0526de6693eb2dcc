"""The largest of many numbers, a vector of them at a time."""

from __future__ import annotations

from numba.core import cgutils
from numba.extending import intrinsic

from hpdl_mpi.kernels.emit import INDEX, Emitter, element_pointer, index


@intrinsic
def largest(typing_context, row, least):
    """Return the largest element of a contiguous array of one dimension, or `least`, of its dtype.

    LLVM makes no vector loop of it, since a NaN would come out elsewhere; here it is passed over.
    """

    def generate(context, builder, signature, arguments):
        emit = Emitter(builder, row.dtype)
        array = context.make_array(row)(context, builder, arguments[0])
        first = element_pointer(context, builder, row, arguments[0], index(0))
        tops = cgutils.alloca_once_value(builder, emit.splat(arguments[1]))

        def take(vector, mask=None):
            before = builder.load(tops)
            larger = builder.fcmp_ordered(">", vector, before)
            builder.store(builder.select(builder.and_(larger, mask) if mask else larger, vector, before), tops)

        whole = builder.and_(array.nitems, index(-emit.lanes))
        with cgutils.for_range_slice(builder, index(0), whole, index(emit.lanes), INDEX) as (start, _):
            take(emit.load(builder.gep(first, [start])))
        rest = emit.first_lanes(builder.sub(array.nitems, whole))
        take(emit.load(builder.gep(first, [whole]), rest), rest)
        width = emit.lanes
        while width > 1:
            width //= 2
            order = [lane ^ width for lane in range(emit.lanes)]
            found = builder.load(tops)
            take(emit.shuffle(found, found, order))
        return builder.extract_element(builder.load(tops), index(0))

    return row.dtype(row, row.dtype), generate
