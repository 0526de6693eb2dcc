"""Steps of a collective on memory that processes share: copies and sums, and the signals that order them.

A signal is a counter of its own cache line, which one rank alone raises and one rank alone reads. Raising releases and
reading acquires, so that whoever has seen a signal sees all that was written before it.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from hpdl_mpi.kernels.emit import INDEX, Emitter, element_pointer, index
from hpdl_mpi.kernels.jit import inline, kernel
from hpdl_mpi.kernels.processor import FEATURES, VECTOR_BYTES

COPY, STREAM, READ, STREAM_READ, READ_REDUCE, REDUCE_BOTH, SIGNAL, WAIT = range(8)
"""What is in the first column of a table: towards shared memory, the same past the cache, from there, the same past the
cache, from there to be added, the same and the sum back to there."""

SIGNAL_BYTES = 64
"""From one counter to the next."""

_COUNTERS = types.Array(types.int64, 1, "C")


def _require_counters(counters):
    if counters != _COUNTERS:
        raise TypingError(f"signals are a flat array of int64; found {counters}")


@intrinsic
def _raise_signal(typing_context, signals, place, count):
    """Write a counter, after all that this thread has written before."""
    _require_counters(signals)

    def generate(context, builder, signature, arguments):
        pointer = element_pointer(context, builder, signals, arguments[0], arguments[1])
        builder.store_atomic(arguments[2], pointer, "release", INDEX.width // 8)
        return context.get_dummy_value()

    return types.none(signals, types.int64, types.int64), generate


@intrinsic
def _read_signal(typing_context, signals, place):
    """Return a counter, before all that this thread reads afterwards."""
    _require_counters(signals)

    def generate(context, builder, signature, arguments):
        pointer = element_pointer(context, builder, signals, arguments[0], arguments[1])
        return builder.load_atomic(pointer, "acquire", INDEX.width // 8)

    return types.int64(signals, types.int64), generate


@intrinsic
def _stream_vectors(typing_context, source, start, target, place, count):
    """Copy so many whole vectors past the cache; the target is aligned to a vector."""
    dtype = target.dtype

    def generate(context, builder, signature, arguments):
        source_, start_, target_, place_, count_ = arguments
        emit = Emitter(builder, dtype)
        first = element_pointer(context, builder, source, source_, start_)
        last = element_pointer(context, builder, target, target_, place_)
        past_the_cache = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        with cgutils.for_range(builder, count_) as vector:
            offset = builder.mul(vector.index, index(emit.lanes))
            value = emit.load(builder.gep(first, [offset]))
            store = builder.store(value, emit.vector(builder.gep(last, [offset])), align=VECTOR_BYTES)
            store.set_metadata("nontemporal", past_the_cache)
        # On x86 such stores keep no order, not even with the signal that follows.
        if "+sse2" in FEATURES:
            fence = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, fence, "llvm.x86.sse.sfence"), [])
        else:
            builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64, types.int64), generate


@inline
def _stream(source, start, stop, target, place):
    """target[place:] = source[start:stop], past the cache."""
    itemsize = target.itemsize
    head = min(stop - start, (-(target.ctypes.data + place * itemsize) % VECTOR_BYTES) // itemsize)
    for i in range(head):
        target[place + i] = source[start + i]
    lanes = VECTOR_BYTES // itemsize
    count = (stop - start - head) // lanes
    _stream_vectors(source, start + head, target, place + head, count)
    for i in range(head + count * lanes, stop - start):
        target[place + i] = source[start + i]


@kernel
def run_steps(table, position, spins, array, memory, signals, raised, awaited):
    """Do steps from `position` on; return the position of the first that must wait longer, or the number of steps.

    Parameters
    ----------
    table : int64 (num_steps, 5)
        A row for each step: what it does; start and stop of its elements in `array`; where they are in `memory`, or
        the counter in `signals`; the rank that signals or is signalled.
    position : int
    spins : int
        How often a wait looks before it gives up.
    array : (n,)
        This rank's.
    memory : (m,), same dtype
        All that the ranks share.
    signals : int64 (k,)
        The counters.
    raised, awaited : int64 (num_ranks,)
        How often this rank has signalled others and been signalled; kept from call to call.
    """
    while position < len(table):
        op, start, stop, place, peer = table[position]
        if op == SIGNAL:
            raised[peer] += 1
            _raise_signal(signals, place, raised[peer])
        elif op == WAIT:
            wanted = awaited[peer] + 1
            looks = 0
            while _read_signal(signals, place) < wanted:
                looks += 1
                if looks > spins:
                    return position
            awaited[peer] = wanted
        elif op == STREAM:
            _stream(array, start, stop, memory, place)
        elif op == STREAM_READ:
            _stream(memory, place, place + stop - start, array, start)
        else:
            mine, theirs = array[start:stop], memory[place : place + stop - start]
            if op == COPY:
                for i in range(mine.size):
                    theirs[i] = mine[i]
            elif op == READ:
                for i in range(mine.size):
                    mine[i] = theirs[i]
            elif op == READ_REDUCE:
                for i in range(mine.size):
                    mine[i] += theirs[i]
            else:
                for i in range(mine.size):
                    total = mine[i] + theirs[i]
                    mine[i] = total
                    theirs[i] = total
        position += 1
    return position
