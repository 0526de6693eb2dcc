"""Vector instructions for kernels, written with Numba's intrinsics.

No loop in Python leads LLVM to keep a tile of numbers in vector registers; it does so with instructions that name them.
A function of these takes flat arrays with a place: the index of the first element, and the strides from there, in
elements. A vector has as many lanes as elements go into `VECTOR_BYTES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from hpdl_mpi.kernels.processor import VECTOR_BYTES

INDEX = ir.IntType(64)
_FLAG = ir.IntType(32)
_REALS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
DTYPE_NAMES = {types.float32: "f32", types.float64: "f64"}


def index(value: int) -> ir.Constant:
    """Return a number for addresses and counts."""
    return ir.Constant(INDEX, value)


class Emitter:
    """Writes instructions on vectors of one dtype."""

    def __init__(self, builder: Any, dtype: Any) -> None:
        self.builder = builder
        self.itemsize = dtype.bitwidth // 8
        self.lanes = VECTOR_BYTES // self.itemsize
        self.type = ir.VectorType(_REALS[dtype], self.lanes)
        self.zero = ir.Constant(self.type, [0.0] * self.lanes)
        self._suffix = f"v{self.lanes}{DTYPE_NAMES[dtype]}"
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
        numbers = ir.Constant(ir.VectorType(INDEX, self.lanes), list(range(self.lanes)))
        return self.builder.icmp_signed("<", numbers, self.splat(count))

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """Return a b + c, rounded once where the processor can."""
        return self._call(f"llvm.fmuladd.{self._suffix}", self.type, [a, b, c])

    def load(self, pointer: Any, mask: Any = None) -> Any:
        """Return all lanes, or those that `mask` has and zero in the others, whose memory is not touched."""
        if mask is None:
            return self.builder.load(self.vector(pointer), align=self.itemsize)
        arguments = [self.vector(pointer), self._alignment, mask, self.zero]
        return self._call(f"llvm.masked.load.{self._suffix}.p0", self.type, arguments)

    def store(self, vector: Any, pointer: Any, mask: Any = None) -> None:
        """Write all lanes, or those that `mask` has."""
        if mask is None:
            self.builder.store(vector, self.vector(pointer), align=self.itemsize)
        else:
            arguments = [vector, self.vector(pointer), self._alignment, mask]
            self._call(f"llvm.masked.store.{self._suffix}.p0", ir.VoidType(), arguments)

    def prefetch(self, pointer: Any, *, writes: bool = True) -> None:
        """Let the processor fetch the memory of a vector while it goes on: to write it soon, or to read it later."""
        # What is to be read waits in the second-level cache.
        write, keep, data = (ir.Constant(_FLAG, value) for value in (int(writes), 3 if writes else 2, 1))
        self._call("llvm.prefetch.p0", ir.VoidType(), [self.vector(pointer), write, keep, data])

    def opaque(self, value: Any) -> Any:
        """Return an address, or a number, of which the optimizer knows nothing more: it is computed where it stands."""
        kind = ir.FunctionType(value.type, [value.type])
        return self.builder.asm(kind, "", "=r,0", [value], False)

    def vector(self, pointer: Any) -> Any:
        """Return the pointer to the vector whose first element a pointer names."""
        return self.builder.bitcast(pointer, self.type.as_pointer())

    def _call(self, name: str, result: Any, arguments: list[Any]) -> Any:
        function = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, function, name), arguments)


def element_pointer(context: Any, builder: Any, array_type: Any, array: Any, place: Any) -> Any:
    """Return the pointer to an element of a flat array."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [place])


def call_apart(builder: Any, name: str, arguments: list[Any], write: Callable[..., None]) -> None:
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
        return _flat_array(context, builder, array.dtype, data, index(2**62 // (array.dtype.bitwidth // 8)))

    return types.Array(array.dtype, 1, "C")(array), generate
