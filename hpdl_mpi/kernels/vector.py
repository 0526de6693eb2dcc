"""The innermost loops of a matrix product, as vector instructions; see `kernels.emit`.

They know neither blocks nor threads: `kernels.gemm` does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hpdl_mpi.kernels.emit import (
    DTYPE_NAMES,
    INDEX,
    Emitter,
    call_apart,
    element_pointer,
    index,
)
from hpdl_mpi.kernels.processor import FEATURES, VECTOR_BYTES

ROWS = 6
"""Of a tile, or half as many where no more are left. Each row of op(a) costs a load for all vectors of the tile, each
vector of the panel one for all rows."""

VECTORS = 4 if FEATURES & {"+avx512f", "+neon"} else 2
"""In a row of the largest tile. 24 sums or 12 leave a few of the processor's 32 or 16 registers for operands."""

_TERMS = 4
"""In a turn of the innermost loop: what is no product, such as counting, is done once for all of them."""


class _Operands(NamedTuple):
    """What a product with a panel takes, as LLVM's values; pointers are to first elements."""

    depth: Any
    a: Any
    a_row: Any
    a_step: Any
    a_tile: Any
    panel: Any
    c: Any
    c_row: Any
    rows: Any
    columns: Any
    onto: Any
    onto_row: Any
    adds: Any
    bias: Any
    biased: Any


def multiply_panel(vectors: int) -> Any:
    """Return a function for kernels that multiplies with a panel of op(b), `vectors` vectors wide."""

    @intrinsic
    def multiply_panel(typing_context, depth, a, a_place, panel, c, c_place, size, added):
        """c[i, j] = sum of a[i, t] panel[t, j] over t in order, plus onto[i, j], plus bias[j].

        Parameters
        ----------
        depth : int
            How many terms a sum has, at least 1.
        a, a_place : flat array, (start, row, step, tile)
            a[i, t] is at start + (i // ROWS) tile + (i % ROWS) row + t step.
        panel : flat array
            panel[t, j] is at t vectors lanes + j.
        c, c_place : flat array, (start, row)
            c[i, j] is at start + i row + j.
        size : (rows, columns)
            Of what is computed of c, columns at most vectors lanes. Nothing else of c is touched.
        added : (flat array, (start, row, whether), flat array, (start, whether))
            onto[i, j] is at start + i row + j, and bias[j] at start + j. Without `whether` they are not read; onto may
            be c.
        """
        dtype = c.dtype

        def generate(context, builder, signature, arguments):
            # a caller of the kernel that absorbed it would be optimized with it, over and over
            builder.function.attributes.add("noinline")
            depth_, a_, a_place_, panel_, c_, c_place_, size_, added_ = arguments
            onto_, onto_place_, bias_, bias_at_ = cgutils.unpack_tuple(builder, added_)
            places = (cgutils.unpack_tuple(builder, place) for place in (a_place_, c_place_, onto_place_, bias_at_))
            (a_start, *a_strides), (c_start, c_row), (onto_start, onto_row, adds), (bias_start, biased) = places
            at = partial(element_pointer, context, builder)
            operands = [depth_, at(a, a_, a_start), *a_strides, at(panel, panel_, index(0)), at(c, c_, c_start), c_row]
            operands += [*cgutils.unpack_tuple(builder, size_), at(added[0], onto_, onto_start), onto_row, adds]
            operands += [at(added[2], bias_, bias_start), biased]
            name = f"hpdl_multiply_panel_{vectors}_{DTYPE_NAMES[dtype]}"
            call_apart(builder, name, operands, partial(_write_product, dtype, vectors))
            return context.get_dummy_value()

        return types.void(depth, a, a_place, panel, c, c_place, size, added), generate

    return multiply_panel


def _write_product(dtype: Any, vectors: int, builder: Any, *operands: Any) -> None:
    """Write the loop over the tiles of a product with a panel."""
    of = _Operands(*operands)
    emit = Emitter(builder, dtype)
    across = [index(j * emit.lanes) for j in range(vectors)]
    bias_row = [builder.gep(of.bias, [column]) for column in across]

    def rows_of(matrix: Any, row: Any, top: Any) -> list[list[Any]]:
        first = builder.gep(matrix, [builder.mul(row, top)])
        rows = [builder.gep(first, [builder.mul(row, index(i))]) for i in range(ROWS)]
        return [[builder.gep(start, [column]) for column in across] for start in rows]

    tiles = builder.udiv(of.rows, index(ROWS))
    # as a tile is computed, its share of the panel behind this one comes into the second-level cache
    behind = builder.gep(of.panel, [builder.mul(of.depth, index(vectors * emit.lanes))])
    lines = builder.udiv(builder.mul(of.depth, index(vectors)), builder.add(tiles, index(1)))

    def multiply(count: int, top: Any, left: Any, present: Any) -> None:
        tile, begun = rows_of(of.c, of.c_row, top), rows_of(of.onto, of.onto_row, top)
        share = builder.mul(lines, builder.udiv(top, index(ROWS)))
        soon = tile[0][0], of.c_row, builder.gep(behind, [builder.mul(share, index(emit.lanes))])
        a_place = left, of.a_row, of.a_step
        sums = _tile_sums(emit, of.depth, a_place, (count, present), emit.vector(of.panel), vectors, soon)
        _write_tile(emit, sums, tile[:count], (present, of.columns), (begun, of.adds), (bias_row, of.biased))

    with cgutils.for_range(builder, tiles) as loop:
        left = builder.gep(of.a, [builder.mul(of.a_tile, loop.index)])
        multiply(ROWS, builder.mul(loop.index, index(ROWS)), left, index(ROWS))
    done = builder.mul(tiles, index(ROWS))
    with cgutils.for_range_slice(builder, done, of.rows, index(ROWS // 2), INDEX) as (top, _):
        left = builder.add(builder.mul(of.a_tile, tiles), builder.mul(of.a_row, builder.sub(top, done)))
        multiply(ROWS // 2, top, builder.gep(of.a, [left]), builder.sub(of.rows, top))


def _tile_sums(
    emit: Emitter, depth: Any, a_place: tuple, rows: tuple[int, Any], b_first: Any, vectors: int, soon: tuple
) -> list[list[Any]]:
    """Write the loops over a tile's terms and return its sums, rows x `vectors` vectors.

    `rows` is how many are computed, and how many of these are there. `soon` is what is fetched meanwhile: the tile of
    c, as (first, row), a row at a time, since all at once would keep the panel's from coming, and the lines from a
    pointer on, one in a turn.
    """
    builder = emit.builder
    a_first, a_row, a_step = a_place
    count, present = rows
    # half a tile is reached from one pointer: more would not find a register
    half = ROWS // 2
    pointers = [builder.gep(a_first, [builder.mul(a_row, index(i))]) for i in range(0, count, half)]
    offsets = [builder.mul(a_row, index(i)) for i in range(half)]
    if count == half:  # a row that is not there reads the first again
        there = [builder.icmp_signed("<", index(i), present) for i in range(half)]
        offsets = [builder.select(*choice, index(0)) for choice in zip(there, offsets, strict=True)]

    def add_term(b: Any, *state: Any) -> list[Any]:
        pointers, sums = state[: count // half], state[count // half :]
        operands = [builder.load(builder.gep(b, [index(j)]), align=VECTOR_BYTES) for j in range(vectors)]
        factors = [emit.splat(builder.load(builder.gep(*place))) for place in product(pointers, zip(offsets))]
        totals = [
            emit.fma(factor, operand, before)
            for (factor, operand), before in zip(product(factors, operands), sums, strict=True)
        ]
        # the optimizer would keep where each of a turn's terms lies, and has no registers for that
        moved = [emit.opaque(builder.gep(pointer, [a_step])) for pointer in pointers]
        return [builder.gep(b, [index(vectors)]), *moved, *totals]

    def add_terms(line: Any, *begun: Any) -> list[Any]:
        emit.prefetch(line, writes=False)
        state = list(begun)
        for _ in range(_TERMS):
            state = add_term(*state)
        return [builder.gep(line, [index(emit.lanes)]), *state]

    turns = builder.udiv(depth, index(_TERMS))

    def add_share(number: Any, *state: Any) -> list[Any]:
        row = builder.gep(soon[0], [builder.mul(soon[1], number)])
        for j in range(vectors):
            emit.prefetch(builder.gep(row, [index(j * emit.lanes)]))
        following = builder.add(number, index(1))
        start, stop = (builder.udiv(builder.mul(turns, share), index(count)) for share in (number, following))
        return [following, *_repeat(builder, builder.sub(stop, start), list(state), add_terms)]

    state = [b_first, *pointers, *[emit.zero] * (count * vectors)]
    _, _, *state = _repeat(builder, index(count), [index(0), soon[2], *state], add_share)
    sums = _repeat(builder, builder.urem(depth, index(_TERMS)), state, add_term)[1 + len(pointers) :]
    return [sums[i * vectors : (i + 1) * vectors] for i in range(count)]


def _repeat(builder: Any, count: Any, state: list[Any], body: Callable[..., list[Any]]) -> list[Any]:
    """Write a loop that puts what `body` makes of the state in its place, `count` times or never; return the last."""
    entry, loop, done = builder.block, *(builder.append_basic_block(name) for name in ("loop", "done"))
    builder.cbranch(builder.icmp_signed(">", count, index(0)), loop, done)
    builder.position_at_end(loop)
    first = [count, *state]
    before = [builder.phi(value.type) for value in first]
    after = [builder.sub(before[0], index(1)), *body(*before[1:])]
    end = builder.block
    builder.cbranch(builder.icmp_signed(">", after[0], index(0)), loop, done)
    builder.position_at_end(done)
    last = [builder.phi(value.type) for value in first]
    for phi, begun, following in zip(before + last, first * 2, after * 2, strict=True):
        phi.add_incoming(begun, entry)
        phi.add_incoming(following, end)
    return last[1:]


def _write_tile(
    emit: Emitter, sums: list[list[Any]], tile: list[list[Any]], size: tuple[Any, Any], onto: tuple, bias: tuple
) -> None:
    """Write a tile's sums as far as the tile is inside the matrix.

    To these comes what lies at the pointers of `onto` and of `bias`, each with whether it does.
    """
    builder = emit.builder
    rows, columns = size
    in_columns = [emit.first_lanes(builder.sub(columns, index(j * emit.lanes))) for j in range(len(tile[0]))]
    in_rows = [emit.splat(builder.icmp_signed("<", index(i), rows)) for i in range(len(tile))]
    adds, biased = emit.splat(onto[1]), emit.splat(bias[1])
    shifts = [
        emit.load(pointer, builder.and_(inside, biased)) for pointer, inside in zip(bias[0], in_columns, strict=True)
    ]
    written = []
    for i, j in product(range(len(tile)), range(len(tile[0]))):
        inside = builder.and_(in_rows[i], in_columns[j])
        before = builder.fadd(emit.load(onto[0][i][j], builder.and_(inside, adds)), shifts[j])
        written.append((builder.fadd(before, sums[i][j]), tile[i][j], inside))
    whole = builder.and_(
        builder.icmp_signed(">=", rows, index(len(tile))),
        builder.icmp_signed(">=", columns, index(len(tile[0]) * emit.lanes)),
    )
    # a store under a mask is slow on some processors
    with builder.if_else(whole) as (then, otherwise):
        with then:
            for vector, pointer, _ in written:
                emit.store(vector, pointer)
        with otherwise:
            for vector, pointer, inside in written:
                emit.store(vector, pointer, inside)


@intrinsic
def copy_panels(typing_context, source, source_place, size, target, distance):
    """target[k distance + i width + j] = source[i, k width + j] for j below the width of the widest panel.

    Each row of a panel is copied as a single vector.

    Parameters
    ----------
    source, source_place : flat array, (start, row)
        source[i, j] is at start + i row + j.
    size : (rows, panels)
    target : flat array
    distance : int
        From one panel to the next in `target`.
    """
    dtype = source.dtype

    def write(builder, source, source_row, rows, panels, target, distance):
        emit = Emitter(builder, dtype)
        columns = VECTORS * emit.lanes
        vector_pointer = ir.VectorType(emit.type.element, columns).as_pointer()
        with cgutils.for_range(builder, rows) as row:
            source_first = builder.gep(source, [builder.mul(source_row, row.index)])
            target_first = builder.gep(target, [builder.mul(index(columns), row.index)])
            with cgutils.for_range(builder, panels) as panel:
                piece = builder.gep(source_first, [builder.mul(index(columns), panel.index)])
                place = builder.gep(target_first, [builder.mul(distance, panel.index)])
                vector = builder.load(builder.bitcast(piece, vector_pointer), align=emit.itemsize)
                builder.store(vector, builder.bitcast(place, vector_pointer), align=emit.itemsize)

    def generate(context, builder, signature, arguments):
        source_, source_place_, size_, target_, distance_ = arguments
        start, source_row = cgutils.unpack_tuple(builder, source_place_)
        source_data = element_pointer(context, builder, source, source_, start)
        target_data = element_pointer(context, builder, target, target_, index(0))
        values = [source_data, source_row, *cgutils.unpack_tuple(builder, size_), target_data, distance_]
        call_apart(builder, f"hpdl_copy_panels_{DTYPE_NAMES[dtype]}", values, write)
        return context.get_dummy_value()

    return types.void(source, source_place, size, target, distance), generate


def transposed(emit: Emitter, square: list[Any]) -> list[Any]:
    """Return the columns of a square of lanes x lanes elements, of which a vector is a row."""
    # Row i and row i + half interleave to rows 2 i and 2 i + 1: a perfect shuffle of the bits of both indices,
    # which after log2(lanes) rounds has exchanged them.
    half = emit.lanes // 2
    low = [lane for i in range(half) for lane in (i, emit.lanes + i)]
    high = [lane + half for lane in low]
    for _ in range(emit.lanes.bit_length() - 1):
        pairs = list(zip(square[:half], square[half:], strict=True))
        square = [emit.shuffle(a, b, order) for a, b in pairs for order in (low, high)]
    return square


@intrinsic
def transpose_square(typing_context, source, source_place, size, target, target_place):
    """target[j, i] = source[i, j] for a square of lanes x lanes elements.

    Parameters
    ----------
    source, source_place : array, (start, row)
    size : (rows, columns)
        How much of the square is there, at least 1 x 1; the rest of `source` is not read.
    target, target_place : array, (start, row)
        All of its square is written: what is not in the source with something arbitrary.
    """
    dtype = target.dtype

    def write(builder, source, source_row, rows, columns, target, target_row):
        emit = Emitter(builder, dtype)
        last = builder.sub(rows, index(1))
        inside = emit.first_lanes(columns)
        square = []
        for i in range(emit.lanes):
            there = builder.select(builder.icmp_signed("<", index(i), rows), index(i), last)
            square.append(emit.load(builder.gep(source, [builder.mul(source_row, there)]), inside))
        for i, vector in enumerate(transposed(emit, square)):
            emit.store(vector, builder.gep(target, [builder.mul(target_row, index(i))]))

    def generate(context, builder, signature, arguments):
        source_, source_place_, size_, target_, target_place_ = arguments
        source_start, source_row = cgutils.unpack_tuple(builder, source_place_)
        target_start, target_row = cgutils.unpack_tuple(builder, target_place_)
        source_data = element_pointer(context, builder, source, source_, source_start)
        target_data = element_pointer(context, builder, target, target_, target_start)
        values = [source_data, source_row, *cgutils.unpack_tuple(builder, size_), target_data, target_row]
        call_apart(builder, f"hpdl_transpose_square_{DTYPE_NAMES[dtype]}", values, write)
        return context.get_dummy_value()

    return types.void(source, source_place, size, target, target_place), generate
