"""Matrix products through SciPy's BLAS, called from compiled code with strides and accumulation, without a copy.

`np.dot` in Numba can neither accumulate nor take a transposed slice, so `gemm` calls the Fortran routines that
``scipy.linalg.cython_blas`` exports. BLAS itself runs on one thread; `matmul` splits the product over threads.
"""

from __future__ import annotations

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import get_cython_function_address, intrinsic

from hpdl_mpi.kernels.jit import kernel, parallel_kernel, thread_count

_ROUTINES = {types.float32: "sgemm", types.float64: "dgemm"}
for _routine in _ROUTINES.values():
    # A symbol, not an address, goes into the compiled code: so the code can be kept in the cache.
    llvmlite.binding.add_symbol(f"hpdl_{_routine}", get_cython_function_address("scipy.linalg.cython_blas", _routine))

_N = np.uint8(ord("N"))
_T = np.uint8(ord("T"))


@intrinsic
def _blas_gemm(typing_context, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """Call ?gemm of BLAS (column major): c = alpha op(a) op(b) + beta c; matrices as addresses."""
    if alpha not in _ROUTINES:
        raise TypeError(f"gemm takes float32 or float64 arrays, not {alpha}")
    char, integer, address = types.uint8, types.int32, types.uintp
    signature = types.void(
        char, char, integer, integer, integer, alpha, address, integer, address, integer, alpha, address, integer
    )

    def generate(context, builder, signature, arguments):
        pointer = ir.IntType(8).as_pointer()
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [pointer] * 13), f"hpdl_{_ROUTINES[alpha]}"
        )
        matrices = {6, 8, 11}
        pointers = [
            builder.inttoptr(value, pointer)
            if position in matrices
            else builder.bitcast(cgutils.alloca_once_value(builder, value), pointer)
            for position, value in enumerate(arguments)
        ]
        builder.call(function, pointers)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _check(typing_context, a, b, c):
    """Refuse, while compiling, matrices of several dtypes or with rows that are not contiguous: BLAS cannot tell."""
    if not a.dtype == b.dtype == c.dtype or "F" in (a.layout, b.layout, c.layout):
        raise TypeError(f"gemm takes matrices of one dtype with contiguous rows, not {a}, {b}, {c}")
    return types.void(a, b, c), lambda context, builder, signature, arguments: context.get_dummy_value()


@kernel
def gemm_block(a, b, c, trans_a, trans_b, beta, rows, columns):
    """c[rows, columns] = (op(a) @ op(b) + beta c)[rows, columns], where op transposes if its flag is set.

    Parameters
    ----------
    a, b, c : array, 2-d
        The same float dtype, rows contiguous. Shapes after `op`: (m, k), (k, n), (m, n).
    trans_a, trans_b : bool
    beta : float
        0 overwrites c (whatever it holds, NaN too), 1 adds to it.
    rows, columns : (int, int)
        Start and stop of the block of c that is computed.
    """
    _check(a, b, c)
    item = c.itemsize
    m = rows[1] - rows[0]
    n = columns[1] - columns[0]
    k = a.shape[0] if trans_a else a.shape[1]
    if m <= 0 or n <= 0:
        return
    # the stride of a dimension of length 0 or 1 may be anything, and BLAS takes none below the length of a row
    lda = max(1, a.shape[1], a.strides[0] // item)
    ldb = max(1, b.shape[1], b.strides[0] // item)
    ldc = max(1, c.shape[1], c.strides[0] // item)
    a_start = a.ctypes.data + (rows[0] if trans_a else rows[0] * lda) * item
    b_start = b.ctypes.data + (columns[0] * ldb if trans_b else columns[0]) * item
    c_start = c.ctypes.data + (rows[0] * ldc + columns[0]) * item
    # BLAS is column major: it sees the transposes, so it computes c^T = op(b)^T op(a)^T.
    _blas_gemm(
        _T if trans_b else _N,
        _T if trans_a else _N,
        np.int32(n),
        np.int32(m),
        np.int32(k),
        c.dtype.type(1.0),
        b_start,
        np.int32(ldb),
        a_start,
        np.int32(lda),
        c.dtype.type(beta),
        c_start,
        np.int32(ldc),
    )


@kernel
def gemm(a, b, c, trans_a, trans_b, beta):
    """c = op(a) @ op(b) + beta c on the calling thread; see `gemm_block`."""
    gemm_block(a, b, c, trans_a, trans_b, beta, (0, c.shape[0]), (0, c.shape[1]))


@parallel_kernel
def _matmul(a, b, c, trans_a, trans_b, beta, parts):
    m, n = c.shape
    for part in prange(parts):
        if m >= n:
            gemm_block(a, b, c, trans_a, trans_b, beta, (part * m // parts, (part + 1) * m // parts), (0, n))
        else:
            gemm_block(a, b, c, trans_a, trans_b, beta, (0, m), (part * n // parts, (part + 1) * n // parts))


def matmul(a, b, c, *, trans_a: bool = False, trans_b: bool = False, accumulate: bool = False) -> None:
    """c = op(a) @ op(b), or c += with `accumulate`, on this process's threads; see `gemm_block`."""
    _matmul(a, b, c, trans_a, trans_b, 1.0 if accumulate else 0.0, thread_count())
