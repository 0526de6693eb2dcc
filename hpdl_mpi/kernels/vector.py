"""The innermost loops of a matrix product, as vector instructions.

LLVM chooses registers and instructions well, but no loop in Python leads it to keep a tile of the result in vector
registers. So Numba's intrinsics give it these few functions in its own language. They know neither blocks nor threads:
`kernels.gemm` does.

Matrices are flat arrays with a place: the index of the first element, and the strides from there, in elements. A
vector has as many lanes as elements go into `VECTOR_BYTES`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

_FEATURES = set((get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES).split(","))

VECTOR_BYTES = 64 if "+avx512f" in _FEATURES else 32 if "+avx2" in _FEATURES else 16

ROWS = 6
"""Of a tile. Each row of op(a) costs a load for all vectors of the tile, each vector of the panel one for all rows."""

VECTORS = 4 if _FEATURES & {"+avx512f", "+neon"} else 2
"""In a row of the largest tile. 24 sums or 12 leave a few of the processor's 32 or 16 registers for operands."""

_INDEX = ir.IntType(64)
_FLAG = ir.IntType(32)
_REALS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
_NAMES = {types.float32: "f32", types.float64: "f64"}


def _index(value: int) -> ir.Constant:
    return ir.Constant(_INDEX, value)


class _Emitter:
    """Writes instructions on vectors of one dtype."""

    def __init__(self, builder: Any, dtype: Any) -> None:
        self.builder = builder
        self.itemsize = dtype.bitwidth // 8
        self.lanes = VECTOR_BYTES // self.itemsize
        self.type = ir.VectorType(_REALS[dtype], self.lanes)
        self.zero = ir.Constant(self.type, [0.0] * self.lanes)
        self._suffix = f"v{self.lanes}{_NAMES[dtype]}"
        self._alignment = ir.Constant(_FLAG, self.itemsize)

    def splat(self, scalar: Any) -> Any:
        """Return the vector all of whose lanes are a scalar."""
        undefined = ir.Constant(ir.VectorType(scalar.type, self.lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(_FLAG, 0))
        return self.shuffle(first, undefined, [0] * self.lanes)

    def shuffle(self, a: Any, b: Any, order: list[int]) -> Any:
        """Return the lanes of a and b, numbered from 0 on through both, in another order."""
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_FLAG, self.lanes), order))

    def first_lanes(self, count: Any) -> Any:
        """Return the mask of the first `count` lanes, which may be none or more than there are."""
        numbers = ir.Constant(ir.VectorType(_INDEX, self.lanes), list(range(self.lanes)))
        return self.builder.icmp_signed("<", numbers, self.splat(count))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """Return a b + c, rounded once where the processor can."""
        return self._call(f"llvm.fmuladd.{self._suffix}", self.type, [a, b, c])

    def load(self, pointer: Any, mask: Any) -> Any:
        """Return the lanes in memory that `mask` has, and zero in the others, whose memory is not touched."""
        arguments = [self.vector(pointer), self._alignment, mask, self.zero]
        return self._call(f"llvm.masked.load.{self._suffix}.p0", self.type, arguments)

    def store(self, vector: Any, pointer: Any, mask: Any = None) -> None:
        """Write all lanes, or those that `mask` has."""
        if mask is None:
            self.builder.store(vector, self.vector(pointer), align=self.itemsize)
        else:
            arguments = [vector, self.vector(pointer), self._alignment, mask]
            self._call(f"llvm.masked.store.{self._suffix}.p0", ir.VoidType(), arguments)

    def prefetch(self, pointer: Any) -> None:
        """Let the processor fetch the memory of a vector, to write it, while it goes on."""
        write, keep, data = (ir.Constant(_FLAG, value) for value in (1, 3, 1))
        self._call("llvm.prefetch.p0", ir.VoidType(), [self.vector(pointer), write, keep, data])

    def vector(self, pointer: Any) -> Any:
        """Return the pointer to the vector whose first element a pointer names."""
        return self.builder.bitcast(pointer, self.type.as_pointer())

    def _call(self, name: str, result: Any, arguments: list[Any]) -> Any:
        function = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, function, name), arguments)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Return the pointer to an element of a flat array."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def _call_apart(builder: Any, name: str, arguments: list[Any], write: Callable[..., None]) -> None:
    """Call a function of its own, written once for all callers.

    The optimizer clones a loop for each value of each flag that does not change in it; what is called apart is not
    cloned along.
    """
    function = builder.module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
        function = ir.Function(builder.module, kind, name)
        function.linkage = "linkonce_odr"
        function.attributes.add("noinline")
        body = ir.IRBuilder(function.append_basic_block())
        write(body, *function.args)
        body.ret_void()
    builder.call(function, arguments)


def _flat_array(context: Any, builder: Any, dtype: Any, data: Any, size: Any) -> Any:
    """Return the one-dimensional array of `size` elements from `data` on, which it does not own."""
    result = context.make_array(types.Array(dtype, 1, "C"))(context, builder)
    itemsize = context.get_constant(types.intp, dtype.bitwidth // 8)
    populate_array(result, data, [size], [itemsize], itemsize, None)
    return result._getvalue()


@intrinsic
def memory_of(typing_context, array):
    """Return the memory from an array's first element on as a flat array, whatever its strides; unchecked."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(array)(context, builder, arguments[0]).data
        return _flat_array(context, builder, array.dtype, data, _index(2**62 // (array.dtype.bitwidth // 8)))

    return types.Array(array.dtype, 1, "C")(array), generate


def multiply_panel(vectors: int) -> Any:
    """Return a function for kernels that multiplies with a panel of op(b), `vectors` vectors wide."""

    @intrinsic
    def multiply_panel(typing_context, depth, a, a_place, panel, c, c_place, size, add):
        """c[i, j] = sum of a[i, t] panel[t, j] over t in order.

        Parameters
        ----------
        depth : int
            How many terms a sum has, at least 1.
        a, a_place : flat array, (start, row, step)
            a[i, t] is at start + i row + t step.
        panel : flat array
            panel[t, j] is at t vectors lanes + j.
        c, c_place : flat array, (start, row)
            c[i, j] is at start + i row + j.
        size : (rows, columns)
            Of what is computed of c, columns at most vectors lanes. Nothing else of c is touched.
        add : bool
            Add to what c holds.
        """

        def write(builder, depth, a, a_row, a_step, panel, c, c_row, height, columns, add):
            emit = _Emitter(builder, dtype)
            with cgutils.for_range_slice(builder, _index(0), height, _index(ROWS), _INDEX) as (top, _):
                first = builder.gep(c, [builder.mul(c_row, top)])
                rows = [builder.gep(first, [builder.mul(c_row, _index(i))]) for i in range(ROWS)]
                tile = [[builder.gep(row, [_index(j * emit.lanes)]) for j in range(vectors)] for row in rows]
                for pointer in chain(*tile):
                    emit.prefetch(pointer)
                present = builder.sub(height, top)
                left = builder.gep(a, [builder.mul(a_row, top)]), a_row, a_step
                sums = _tile_sums(emit, depth, left, present, emit.vector(panel), vectors)
                _write_tile(emit, sums, tile, (present, columns), add)

        def generate(context, builder, signature, arguments):
            # a caller of the kernel that absorbed it would be optimized with it, over and over
            builder.function.attributes.add("noinline")
            depth_, a_, a_place_, panel_, c_, c_place_, size_, add_ = arguments
            a_start, *a_strides = cgutils.unpack_tuple(builder, a_place_)
            c_start, c_row = cgutils.unpack_tuple(builder, c_place_)
            a_data, panel_data, c_data = (
                _pointer(context, builder, array, value, start)
                for array, value, start in ((a, a_, a_start), (panel, panel_, _index(0)), (c, c_, c_start))
            )
            sizes = cgutils.unpack_tuple(builder, size_)
            values = [depth_, a_data, *a_strides, panel_data, c_data, c_row, *sizes, add_]
            _call_apart(builder, f"hpdl_multiply_panel_{vectors}_{_NAMES[dtype]}", values, write)
            return context.get_dummy_value()

        dtype = c.dtype
        return types.void(depth, a, a_place, panel, c, c_place, size, add), generate

    return multiply_panel


def _tile_sums(emit: _Emitter, depth: Any, a_place: tuple, rows: Any, b_first: Any, vectors: int) -> list[list[Any]]:
    """Write the loop over a tile's terms and return its sums, `ROWS` x `vectors` vectors."""
    builder = emit.builder
    a_first, a_row, a_step = a_place
    # a row that is not there reads the last one again
    last = builder.sub(rows, _index(1))
    numbers = [builder.select(builder.icmp_signed("<", _index(i), rows), _index(i), last) for i in range(ROWS)]
    offsets = [builder.mul(a_row, number) for number in numbers]
    entry = builder.block
    loop, done = builder.append_basic_block("terms"), builder.append_basic_block("sums")
    builder.branch(loop)
    builder.position_at_end(loop)

    def counter(first: Any) -> Any:
        phi = builder.phi(first.type)
        phi.add_incoming(first, entry)
        return phi

    term, a, b = counter(_index(0)), counter(a_first), counter(b_first)
    sums = [[counter(emit.zero) for _ in range(vectors)] for _ in range(ROWS)]
    operands = [builder.load(builder.gep(b, [_index(j)]), align=VECTOR_BYTES) for j in range(vectors)]
    factors = [emit.splat(builder.load(builder.gep(a, [offset]))) for offset in offsets]
    totals = [
        [emit.fma(factor, operand, before) for operand, before in zip(operands, row, strict=True)]
        for factor, row in zip(factors, sums, strict=True)
    ]
    following = builder.add(term, _index(1))
    term.add_incoming(following, loop)
    a.add_incoming(builder.gep(a, [a_step]), loop)
    b.add_incoming(builder.gep(b, [_index(vectors)]), loop)
    for row, row_after in zip(sums, totals, strict=True):
        for before, after in zip(row, row_after, strict=True):
            before.add_incoming(after, loop)
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, done)
    builder.position_at_end(done)
    return totals


def _write_tile(emit: _Emitter, sums: list[list[Any]], tile: list[list[Any]], size: tuple[Any, Any], add: Any) -> None:
    """Write a tile's sums, plus what is there if `add`, as far as the tile is inside the matrix."""
    builder = emit.builder
    rows, columns = size
    in_columns = [emit.first_lanes(builder.sub(columns, _index(j * emit.lanes))) for j in range(len(tile[0]))]
    in_rows = [emit.splat(builder.icmp_signed("<", _index(i), rows)) for i in range(ROWS)]
    adds = emit.splat(add)
    written = []
    for pointers, vectors, in_row in zip(tile, sums, in_rows, strict=True):
        for pointer, vector, in_column in zip(pointers, vectors, in_columns, strict=True):
            inside = builder.and_(in_row, in_column)
            before = emit.load(pointer, builder.and_(inside, adds))
            written.append((builder.fadd(before, vector), pointer, inside))
    whole = builder.and_(
        builder.icmp_signed(">=", rows, _index(ROWS)),
        builder.icmp_signed(">=", columns, _index(len(tile[0]) * emit.lanes)),
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
        emit = _Emitter(builder, dtype)
        last = builder.sub(rows, _index(1))
        inside = emit.first_lanes(columns)
        square = []
        for i in range(emit.lanes):
            there = builder.select(builder.icmp_signed("<", _index(i), rows), _index(i), last)
            square.append(emit.load(builder.gep(source, [builder.mul(source_row, there)]), inside))
        # Row i and row i + half interleave to rows 2 i and 2 i + 1: a perfect shuffle of the bits of both indices,
        # which after log2(lanes) rounds has exchanged them.
        half = emit.lanes // 2
        low = [lane for i in range(half) for lane in (i, emit.lanes + i)]
        high = [lane + half for lane in low]
        for _ in range(emit.lanes.bit_length() - 1):
            pairs = list(zip(square[:half], square[half:], strict=True))
            square = [emit.shuffle(a, b, order) for a, b in pairs for order in (low, high)]
        for i, vector in enumerate(square):
            emit.store(vector, builder.gep(target, [builder.mul(target_row, _index(i))]))

    def generate(context, builder, signature, arguments):
        source_, source_place_, size_, target_, target_place_ = arguments
        source_start, source_row = cgutils.unpack_tuple(builder, source_place_)
        target_start, target_row = cgutils.unpack_tuple(builder, target_place_)
        source_data = _pointer(context, builder, source, source_, source_start)
        target_data = _pointer(context, builder, target, target_, target_start)
        values = [source_data, source_row, *cgutils.unpack_tuple(builder, size_), target_data, target_row]
        _call_apart(builder, f"hpdl_transpose_square_{_NAMES[dtype]}", values, write)
        return context.get_dummy_value()

    return types.void(source, source_place, size, target, target_place), generate
