"""Scaled dot-product attention with several heads (Vaswani et al., "Attention is all you need", 2017).

These layers have no parameters: the projections of queries, keys, values and outputs are `Linear` layers before and
after them. So a block reads like its figure, and weights have whatever names its origin gave them.
"""

from __future__ import annotations

import abc
from typing import Any

import numpy as np

from hpdl_mpi.base.errors import is_number
from hpdl_mpi.kernels import attention as kernel
from hpdl_mpi.kernels.jit import thread_count
from hpdl_mpi.nn.context import Context
from hpdl_mpi.nn.layer import Layer, Shape, require_count, require_flag
from hpdl_mpi.nn.members import joined_members, member_shapes, members

Place = tuple[int, int, int, int]
"""Of the heads in an array: the first element, and from sample to sample, from step to step, from head to head."""


class _Attention(Layer):
    """Computes heads; subclasses say where queries, keys and values lie."""

    def __init__(self, num_heads: int, num_kv_heads: int | None, *, causal: bool, dropout: float) -> None:
        self.num_heads = require_count(self, num_heads, "heads")
        self.num_kv_heads = self.num_heads if num_kv_heads is None else require_count(self, num_kv_heads, "kv heads")
        if self.num_heads % self.num_kv_heads:
            raise self.refuse(
                "heads cannot share keys and values evenly",
                found=f"{self.num_heads} heads, {self.num_kv_heads} of keys and values",
                expected="a divisor of the number of heads",
            )
        self.causal = require_flag(self, causal, "causal")
        if not (is_number(dropout) and 0 <= dropout < 1):
            raise self.refuse("dropout out of range", found=repr(dropout), expected="at least 0 and below 1")
        self.dropout = dropout

    @abc.abstractmethod
    def _dim(self, input_shape: Shape) -> int:
        """Return the dim of a head."""

    @abc.abstractmethod
    def _places(self, inputs: tuple[np.ndarray, ...]) -> tuple[tuple[int, Place], ...]:
        """Return of which input queries, keys and values are parts, and where they lie in it."""

    def _sizes(self, inputs: tuple[np.ndarray, ...]) -> tuple[int, int, int, int, int, int]:
        """Return the sizes that the kernel takes."""
        dim = self._dim(joined_members(tuple(array.shape[1:] for array in inputs)))
        queries, keys = inputs[0].shape[1], inputs[-1].shape[1]
        return len(inputs[0]), queries, keys, self.num_heads, self.num_kv_heads, dim

    def _forward(self, inputs: tuple[np.ndarray, ...], mask: np.ndarray | None, ctx: Context) -> np.ndarray:
        n, queries, keys, heads, _, dim = sizes = self._sizes(inputs)
        dtype = inputs[0].dtype
        if mask is None:
            mask = np.zeros((n, 0), dtype)
        (q, q_place), (k, k_place), (v, v_place) = self._places(inputs)
        y = ctx.take((n, queries, heads * dim), dtype)
        sums = ctx.take((n, heads, queries), dtype)
        scratch = ctx.take((thread_count(), kernel.scratch_size(keys, dim)), dtype)
        flat = [array.reshape(-1) for array in inputs]
        kernel.attend(
            flat[q],
            q_place,
            flat[k],
            k_place,
            flat[v],
            v_place,
            sizes,
            0 if self.causal else keys,
            mask,
            self._drop(ctx),
            ctx.batch.sample_ids,
            y.reshape(-1),
            _place(y, 0, dim),
            sums,
            scratch,
        )
        ctx.release(scratch)
        ctx.save(inputs=inputs, mask=mask, y=y, sums=sums)
        ctx.release(sums)
        return y

    def _drop(self, ctx: Context) -> tuple[float, np.uint64]:
        return (self.dropout if ctx.training else 0.0), ctx.key

    def _backward(self, dy: np.ndarray, ctx: Context) -> tuple[np.ndarray, ...]:
        inputs, mask, y, sums = (ctx.saved[name] for name in ("inputs", "mask", "y", "sums"))
        _, _, keys, _, _, dim = sizes = self._sizes(inputs)
        gradients = tuple(ctx.take(array.shape, array.dtype) for array in inputs)
        flat, into = ([array.reshape(-1) for array in arrays] for arrays in (inputs, gradients))
        (q, q_place), (k, k_place), (v, v_place) = self._places(inputs)
        scratch = ctx.take((thread_count(), kernel.scratch_size(keys, dim)), y.dtype)
        kernel.attend_backward(
            (flat[q], flat[k], flat[v], y.reshape(-1), dy.reshape(-1), into[q], into[k], into[v]),
            (q_place, k_place, v_place, _place(y, 0, dim), _place(dy, 0, dim), q_place, k_place, v_place),
            sizes,
            0 if self.causal else keys,
            mask,
            self._drop(ctx),
            ctx.batch.sample_ids,
            sums,
            scratch,
        )
        ctx.release(scratch)
        ctx.drop("inputs", "mask", "y", "sums")
        return gradients


def _place(array: np.ndarray, first: int, dim: int) -> Place:
    """Return the place of heads side by side in the last dim of an array (n, steps, width), from `first` on."""
    _, steps, width = array.shape
    return first, steps * width, width, dim


class SelfAttention(_Attention):
    """Every step of a sequence looks at all steps, or at those up to itself.

    Samples are of shape (steps, (num_heads + 2 num_kv_heads) dim): the queries of all heads, their keys, their values.
    The result has shape (steps, num_heads dim). A mask, (steps,), may follow as a second member, if it is `masked`:
    steps where it is 0 are not looked at. A step that sees nothing at all gets zeros.

    Parameters
    ----------
    num_heads : int
    num_kv_heads : int, optional
        A divisor of `num_heads`, of which as many share keys and values (Ainslie et al., "GQA", 2023).
    causal : bool
        Whether steps look at none after themselves.
    dropout : float
        The rate at which weights are dropped while training: drawn for each sample, head, query and key.
    masked : bool
        Whether what follows as a second member is a mask; in a decoder it is the memory, which is handed on.
    """

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int | None = None,
        *,
        causal: bool = False,
        dropout: float = 0.0,
        masked: bool = True,
    ) -> None:
        super().__init__(num_heads, num_kv_heads, causal=causal, dropout=dropout)
        self.reads = 2 if require_flag(self, masked, "masked") else 1

    @property
    def _parts(self) -> int:
        return self.num_heads + 2 * self.num_kv_heads

    def build(self, input_shape: Shape) -> None:
        shape: Any = member_shapes(input_shape)[0]
        if len(shape) != 2 or shape[1] % self._parts or shape[1] < 1:
            raise self.refuse(
                "needs the queries, keys and values of all heads",
                found=f"samples of shape {shape}",
                expected=f"(steps, a multiple of {self._parts})",
            )

    def _dim(self, input_shape: Shape) -> int:
        return input_shape[-1] // self._parts

    def output_shape(self, input_shape: Shape) -> Shape:
        steps, width = member_shapes(input_shape)[0]
        return steps, self.num_heads * (width // self._parts)

    def operations(self, input_shape: Shape) -> int:
        steps, width = self.output_shape(input_shape)
        return 4 * steps * steps * width // (2 if self.causal else 1)

    def _places(self, inputs: tuple[np.ndarray, ...]) -> tuple[tuple[int, Place], ...]:
        dim = self._dim(inputs[0].shape)
        firsts = (0, self.num_heads * dim, (self.num_heads + self.num_kv_heads) * dim)
        return tuple((0, _place(inputs[0], first, dim)) for first in firsts)

    def forward(self, x: Any, ctx: Context) -> np.ndarray:
        qkv, *mask = members(x)
        return self._forward((qkv,), mask[0] if mask else None, ctx)

    def backward_input(self, dy: np.ndarray, ctx: Context) -> Any:
        masked = ctx.saved["mask"].shape[1] > 0  # a micro-batch may have no samples
        (dx,) = self._backward(dy, ctx)
        return (dx, None) if masked else dx


class CrossAttention(_Attention):
    """Every step of one sequence looks at all steps of another one, the memory.

    Samples are of shapes (steps, num_heads dim), the queries, and (memory steps, 2 num_kv_heads dim), the keys of all
    heads and their values. The result has the shape of the queries. A mask of the memory may follow as a third member.
    What is not said here is as `SelfAttention` has it.
    """

    reads, writes = 3, 2

    def __init__(self, num_heads: int, num_kv_heads: int | None = None, *, dropout: float = 0.0) -> None:
        super().__init__(num_heads, num_kv_heads, causal=False, dropout=dropout)

    def build(self, input_shape: Shape) -> None:
        shapes: Any = member_shapes(input_shape)
        possible = len(shapes) >= 2 and all(len(shape) == 2 for shape in shapes[:2])
        dim = shapes[0][-1] // self.num_heads if possible else 0
        if dim < 1 or shapes[0][1] != self.num_heads * dim or shapes[1][1] != 2 * self.num_kv_heads * dim:
            raise self.refuse(
                "needs queries, and the keys and values of a memory",
                found=f"samples of shape {input_shape}",
                expected=f"(steps, {self.num_heads} dim) and (memory steps, {2 * self.num_kv_heads} dim)",
            )

    def _dim(self, input_shape: Shape) -> int:
        return member_shapes(input_shape)[0][-1] // self.num_heads

    def output_shape(self, input_shape: Shape) -> Shape:
        return member_shapes(input_shape)[0]

    def operations(self, input_shape: Shape) -> int:
        (steps, width), (memory, _), *_ = member_shapes(input_shape)
        return 4 * steps * memory * width

    def _places(self, inputs: tuple[np.ndarray, ...]) -> tuple[tuple[int, Place], ...]:
        queries, memory = inputs
        dim = queries.shape[2] // self.num_heads
        keys, values = (_place(memory, first, dim) for first in (0, self.num_kv_heads * dim))
        return (0, _place(queries, 0, dim)), (1, keys), (1, values)

    def forward(self, x: Any, ctx: Context) -> np.ndarray:
        queries, memory, *mask = x
        return self._forward((queries, memory), mask[0] if mask else None, ctx)

    def backward_input(self, dy: np.ndarray, ctx: Context) -> Any:
        masked = ctx.saved["mask"].shape[1] > 0  # a micro-batch may have no samples
        gradients = self._backward(dy, ctx)
        return (*gradients, None) if masked else gradients
