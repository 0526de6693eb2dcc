"""One direction of one recurrent layer: its parameters, forward, and backward in two halves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hpdl_mpi.kernels import recurrent as kernel
from hpdl_mpi.kernels.elementwise import add_row_sums
from hpdl_mpi.kernels.gemm import as_matrix, matmul
from hpdl_mpi.kernels.jit import thread_count
from hpdl_mpi.kernels.packed import packed_shape
from hpdl_mpi.nn.context import Context

Arrays = dict[str, np.ndarray]


class Cell(NamedTuple):
    """A kind of cell, and how many parts of the size of h its arrays have; see `kernels.recurrent_cells`."""

    number: int
    products: int
    gates: int
    state: int


class Kept(NamedTuple):
    """What forward keeps for backward: the input, the gates, and the state before each step.

    After `Pass.backward_input` the gradients of what gates are made from stand in their place.
    """

    x: np.ndarray
    gates: np.ndarray
    before: np.ndarray


class Pass(NamedTuple):
    """One direction of one layer.

    Attributes
    ----------
    name : str
        Ends the names of its parameters, as in PyTorch.
    cell : Cell
    size : int
        Of h.
    reverse : bool
        Whether it goes from the last step to the first.
    first : int
        The column of y in which h begins.
    """

    name: str
    cell: Cell
    size: int
    reverse: bool
    first: int

    @property
    def rows(self) -> int:
        """Of the weights, which are the columns of their products."""
        return self.cell.products * self.size

    def shapes(self, features: int, *, bias: bool) -> dict[str, tuple[int, ...]]:
        """Return the shapes of its parameters, by name, for inputs of so many features."""
        shapes: dict[str, tuple[int, ...]] = {
            f"weight_ih_{self.name}": (self.rows, features),
            f"weight_hh_{self.name}": (self.rows, self.size),
        }
        if bias:
            shapes |= {f"bias_ih_{self.name}": (self.rows,), f"bias_hh_{self.name}": (self.rows,)}
        return shapes

    def forward(
        self,
        params: Arrays,
        x: np.ndarray,
        mask: np.ndarray,
        state: np.ndarray,
        y: np.ndarray,
        ctx: Context,
    ) -> Kept:
        """Write h after each step into its columns of y.

        Parameters
        ----------
        params : dict of str to array
        x : array, shape (n, t, features)
        mask : array, shape (n, t) or (n, 0)
        state : array, shape (n, size of the cell's state)
            Before the first step; written: after the last.
        y : array, shape (n, t, width)
        ctx : Context

        Returns
        -------
        kept : Kept
            Held for the caller, but for x. Of use only if backward comes.
        """
        n, steps, _ = x.shape
        keep = ctx.batch.saving and ctx.needs_backward
        gates = ctx.take((n, steps, self.cell.gates * self.size), x.dtype)
        before = ctx.take((n, steps, state.shape[1] if keep else 0), x.dtype)
        weight, into = params[f"weight_ih_{self.name}"], as_matrix(gates)[:, : self.rows]
        matmul(as_matrix(x), weight, into, trans_b=True, packer=ctx.batch.packer)
        packed = ctx.take(packed_shape(self.size, self.rows, x.itemsize), x.dtype)
        products = ctx.take((n, self.rows), x.dtype)
        bias = self._take_bias(params, x.dtype, ctx)
        kernel.forward(
            *(self.cell.number, gates, params[f"weight_hh_{self.name}"], packed, bias, mask, self.reverse),
            *(products, state, before, y, self.first, thread_count()),
        )
        ctx.release((packed, products, bias))
        return Kept(x, gates, before)

    def backward_input(
        self,
        params: Arrays,
        dy: np.ndarray,
        mask: np.ndarray,
        kept: Kept,
        dstate: np.ndarray,
        dx: np.ndarray | None,
        ctx: Context,
    ) -> None:
        """Turn the gates into their gradients, and write dx; the second direction adds to the first one's.

        Parameters
        ----------
        params : dict of str to array
        dy : array, shape (n, t, width)
        mask : array, shape (n, t) or (n, 0)
        kept : Kept
        dstate : array, shape (n, size of the cell's state)
            The gradient of the state after the last step. Written over.
        dx : array, shape (n, t, features), or None
        ctx : Context
        """
        packed = ctx.take(packed_shape(self.rows, self.size, dy.itemsize), dy.dtype)
        dproducts = ctx.take((len(dy), self.rows), dy.dtype)
        rows = np.ascontiguousarray(dy)  # the kernel reads memory, and all gradients but odd views lie so
        kernel.backward(
            *(self.cell.number, kept.gates, params[f"weight_hh_{self.name}"], packed, rows, self.first, mask),
            *(self.reverse, kept.before, dstate, dproducts, thread_count()),
        )
        ctx.release((packed, dproducts))
        if dx is not None:
            dgates, weight = as_matrix(kept.gates)[:, : self.rows], params[f"weight_ih_{self.name}"]
            matmul(dgates, weight, as_matrix(dx), accumulate=self.first > 0, packer=ctx.batch.packer)

    def backward_weight(self, grads: Arrays, kept: Kept, ctx: Context) -> None:
        """Add the gradients of its parameters, from those of the gates."""
        dgates, h = as_matrix(kept.gates), as_matrix(kept.before)[:, : self.size]
        dweight = grads[f"weight_ih_{self.name}"]
        matmul(dgates[:, : self.rows], as_matrix(kept.x), dweight, trans_a=True, accumulate=True)
        for gates, rows in self._of_state():
            dweight = grads[f"weight_hh_{self.name}"][rows]
            matmul(dgates[:, gates], h, dweight, trans_a=True, accumulate=True)
        if f"bias_ih_{self.name}" in grads:
            sums = ctx.take(dgates.shape[1:], dgates.dtype)
            sums.fill(0)
            add_row_sums(dgates, sums)
            grads[f"bias_ih_{self.name}"] += sums[: self.rows]
            for gates, rows in self._of_state():
                grads[f"bias_hh_{self.name}"][rows] += sums[gates]
            ctx.release(sums)

    def _of_state(self) -> list[tuple[slice, slice]]:
        """Pair gates with the rows of the state's weights that they are made from."""
        if self.cell.gates == self.cell.products:
            return [(slice(0, self.rows), slice(0, self.rows))]
        # the last rows have a gate of their own, behind
        last = self.rows - self.size
        return [(slice(0, last), slice(0, last)), (slice(self.rows, self.rows + self.size), slice(last, self.rows))]

    def _take_bias(self, params: Arrays, dtype: np.dtype, ctx: Context) -> np.ndarray:
        """Return the sums of what the biases add to each gate."""
        bias = ctx.take((self.cell.gates * self.size,), dtype)
        bias.fill(0)
        if f"bias_ih_{self.name}" in params:
            bias[: self.rows] = params[f"bias_ih_{self.name}"]
            for gates, rows in self._of_state():
                bias[gates] += params[f"bias_hh_{self.name}"][rows]
        return bias
