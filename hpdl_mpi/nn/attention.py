"""Scaled dot-product attention with several heads (Vaswani et al., "Attention is all you need", 2017).

These layers have no parameters: the projections of queries, keys, values and outputs are `Linear` layers before and
after them. So a block reads like its figure, and weights have whatever names its origin gave them.
"""

from __future__ import annotations

import abc
from typing import Any

import numpy as np

from hpdl_mpi.base.errors import is_number
from hpdl_mpi.kernels.attention import attend
from hpdl_mpi.kernels.attention_backward import attend_backward
from hpdl_mpi.kernels.attention_blocks import Place, layout_of, scratch_size
from hpdl_mpi.kernels.attention_step import attend_one
from hpdl_mpi.kernels.jit import thread_count
from hpdl_mpi.nn.context import Context
from hpdl_mpi.nn.layer import Layer, Shape, require_count, require_flag
from hpdl_mpi.nn.members import joined_members, member_shapes, members


class _Attention(Layer):
    """Computes heads; subclasses say where queries, keys and values lie."""

    _sources: tuple[int, int, int]
    """The numbers of the inputs that queries, keys and values are parts of."""

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
        self._laid_out: tuple[tuple[Shape, ...], np.ndarray] = (), np.zeros((0, 0), np.int64)

    @abc.abstractmethod
    def _dim(self, input_shape: Shape) -> int:
        """Return the dim of a head."""

    @abc.abstractmethod
    def _places(self, shapes: tuple[Shape, ...], dim: int) -> tuple[Place, ...]:
        """Return where queries, keys and values lie in inputs of these shapes."""

    def _layout(self, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
        """Return the layout that the kernel takes, made once for each shape of the inputs."""
        shapes = tuple(array.shape for array in inputs)
        if shapes != self._laid_out[0]:
            dim = self._dim(joined_members(tuple(shape[1:] for shape in shapes)))
            sizes = shapes[0][0], shapes[0][1], shapes[-1][1], self.num_heads, self.num_kv_heads, dim
            result = (*shapes[0][:2], self.num_heads * dim)
            self._laid_out = shapes, layout_of(sizes, *self._places(shapes, dim), _place(result, 0, dim))
        return self._laid_out[1]

    def _offset(self, keys: int) -> int:
        """Return how far a query sees beyond the key of its own number."""
        return 0 if self.causal else keys

    def _forward(self, inputs: tuple[np.ndarray, ...], mask: np.ndarray | None, ctx: Context) -> np.ndarray:
        layout, dtype = self._layout(inputs), inputs[0].dtype
        self._require_mask(mask, inputs[-1])
        visible = np.zeros((len(inputs[0]), 0), dtype) if mask is None else mask
        sources = [inputs[number] for number in self._sources]
        y, norms = self._attend(sources, layout, self._offset(int(layout[0, 2])), visible, ctx)
        ctx.save(inputs=inputs, visible=visible, y=y, norms=norms)
        ctx.release(norms)
        return y

    def _require_mask(self, mask: np.ndarray | None, hidden: np.ndarray) -> None:
        """Raise if there is a mask that is none of what holds the keys."""
        shape, dtype = hidden.shape[:2], hidden.dtype
        if mask is not None and (mask.shape != shape or mask.dtype != dtype):
            raise self.refuse(
                "a mask of something else",
                found=f"shape {mask.shape}, {mask.dtype}",
                expected=f"shape {shape}, {dtype}, as what it hides",
            )

    def _attend(
        self, sources: list[np.ndarray], layout: np.ndarray, offset: int, visible: np.ndarray, ctx: Context
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the outputs for what holds queries, keys and values, and what their weights can be made from again."""
        (n, queries, keys, heads), dim = layout[0].tolist(), int(layout[1, 1])
        dtype = visible.dtype
        y = ctx.take((n, queries, heads * dim), dtype)
        norms = ctx.take((n, heads, 2, queries), dtype)
        scratch = ctx.take((thread_count(), scratch_size(keys, dim)), dtype)
        attend(
            *(array.reshape(-1) for array in sources),
            y.reshape(-1),
            layout,
            offset,
            visible,
            *self._drop(ctx),
            ctx.batch.sample_ids,
            norms,
            scratch,
        )
        ctx.release(scratch)
        return y, norms

    def _attend_one(
        self, queries: np.ndarray, memory: np.ndarray, keys: int, mask: np.ndarray | None, ctx: Context
    ) -> np.ndarray:
        """Return the outputs of a single step, (n, 1, heads dim), that looks at the first steps of a memory."""
        n, dtype = len(queries), queries.dtype
        dim = memory.shape[2] // (2 * self.num_kv_heads)
        y = ctx.take((n, 1, self.num_heads * dim), dtype)
        scores = ctx.take((n, self.num_heads, memory.shape[1]), dtype)
        visible = ctx.take((n, 0), dtype) if mask is None else mask
        attend_one(queries[:, 0], memory, keys, self.num_kv_heads, visible, scores, y[:, 0])
        ctx.release(scores)
        if mask is None:
            ctx.release(visible)
        return y

    def _drop(self, ctx: Context) -> tuple[float, np.uint64]:
        return (self.dropout if ctx.training else 0.0), ctx.key

    def backward_input(self, dy: np.ndarray, ctx: Context) -> Any:
        inputs, visible, y, norms = (ctx.saved[name] for name in ("inputs", "visible", "y", "norms"))
        layout = self._layout(inputs)
        keys, dim = int(layout[0, 2]), int(layout[1, 1])
        gradients = tuple(ctx.take(array.shape, array.dtype) for array in inputs)
        scratch = ctx.take((thread_count(), scratch_size(keys, dim)), y.dtype)
        attend_backward(
            *(inputs[number].reshape(-1) for number in self._sources),
            y.reshape(-1),
            dy.reshape(-1),
            *(gradients[number].reshape(-1) for number in self._sources),
            layout,
            self._offset(keys),
            visible,
            *self._drop(ctx),
            ctx.batch.sample_ids,
            norms,
            scratch,
        )
        ctx.release(scratch)
        masked = visible.shape[1] > 0
        ctx.drop("inputs", "visible", "y", "norms")
        return joined_members((*gradients, None) if masked else gradients)


def _place(shape: Shape, first: int, dim: int) -> Place:
    """Return the place of heads side by side in the last dim of an array (n, steps, width), from `first` on."""
    _, steps, width = shape
    return first, steps * width, width, dim


class SelfAttention(_Attention):
    """Every step of a sequence looks at all steps, or at those up to itself.

    Samples are of shape (steps, (num_heads + 2 num_kv_heads) dim): the queries of all heads, their keys, their values.
    The result has shape (steps, num_heads dim). A mask, (steps,), may follow as a second member, if it is `masked`:
    steps where it is not above 0 have no weight; what stands there must be finite. It has the dtype of the samples. A
    step that sees nothing at all gets zeros.

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

    replayable = True
    unread = ("bias", "masked_bias")  # which GPT-2 once had of its causal mask
    _sources = 0, 0, 0

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

    def _places(self, shapes: tuple[Shape, ...], dim: int) -> tuple[Place, ...]:
        firsts = (0, self.num_heads * dim, (self.num_heads + self.num_kv_heads) * dim)
        return tuple(_place(shapes[0], first, dim) for first in firsts)

    def forward(self, x: Any, ctx: Context) -> np.ndarray:
        qkv, *mask = members(x)
        if ctx.remembers:
            self._require_one_way(mask)
            return self._go_on(qkv, ctx)
        return self._forward((qkv,), mask[0] if mask else None, ctx)

    def _require_one_way(self, mask: list[np.ndarray]) -> None:
        if not self.causal or mask:
            raise self.refuse(
                "cannot take a sequence in pieces",
                found="a mask" if mask else "a layer that looks at later steps",
                expected="causal attention without a mask",
            )

    def _go_on(self, qkv: np.ndarray, ctx: Context) -> np.ndarray:
        """Return the outputs of steps that also see those before them, whose keys and values are remembered."""
        n, steps, width = qkv.shape
        past, seen, dim = ctx.batch.past, ctx.batch.past + steps, width // self._parts
        memory = ctx.recall("keys and values")
        if memory is None:
            memory = ctx.take((n, ctx.batch.capacity, 2 * self.num_kv_heads * dim), qkv.dtype)
            ctx.remember("keys and values", memory, grows=True)
            ctx.release(memory)
        memory[:, past:seen] = qkv[:, :, self.num_heads * dim :]
        if steps == 1:
            return self._attend_one(qkv, memory, seen, None, ctx)
        places = (_place(memory.shape, first, dim) for first in (0, self.num_kv_heads * dim))
        result = (n, steps, self.num_heads * dim)
        sizes = (n, steps, seen, self.num_heads, self.num_kv_heads, dim)
        layout = layout_of(sizes, _place(qkv.shape, 0, dim), *places, _place(result, 0, dim))
        y, norms = self._attend([qkv, memory, memory], layout, past, np.zeros((n, 0), qkv.dtype), ctx)
        ctx.release(norms)
        return y


class CrossAttention(_Attention):
    """Every step of one sequence looks at all steps of another one, the memory.

    Samples are of shapes (steps, num_heads dim), the queries, and (memory steps, 2 num_kv_heads dim), the keys of all
    heads and their values. The result has the shape of the queries. A mask of the memory may follow as a third member.
    What is not said here is as `SelfAttention` has it.
    """

    replayable = True
    reads, writes = 3, 2
    _sources = 0, 1, 1

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

    def _places(self, shapes: tuple[Shape, ...], dim: int) -> tuple[Place, ...]:
        queries, memory = shapes
        return _place(queries, 0, dim), _place(memory, 0, dim), _place(memory, self.num_kv_heads * dim, dim)

    def forward(self, x: Any, ctx: Context) -> np.ndarray:
        queries, memory, *mask = x
        if ctx.remembers and queries.shape[1] == 1:
            self._require_mask(mask[0] if mask else None, memory)
            return self._attend_one(queries, memory, memory.shape[1], mask[0] if mask else None, ctx)
        return self._forward((queries, memory), mask[0] if mask else None, ctx)
